package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strconv"
)

// replySize is the body of every answer, in bytes.
const replySize = 1024

// requestHandlers are the servers of requests, by port.
var requestHandlers = map[int]func(net.Conn) error{
	http1Port:  serve1,
	http2Port:  func(c net.Conn) error { return serve2(c, http2Requests) },
	grpcPort:   func(c net.Conn) error { return serve2(c, grpcUnary) },
	streamPort: func(c net.Conn) error { return serve2(c, grpcStreams) },
}

// serve1 answers GET requests of HTTP/1.1.
func serve1(c net.Conn) error {
	reply := append([]byte("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "+strconv.Itoa(replySize)+"\r\n\r\n"), message(replySize)...)
	r := bufio.NewReaderSize(c, 16<<10)
	for {
		closes := false
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return err
			}
			if len(line) <= 2 {
				break
			}
			closes = closes || bytes.EqualFold(bytes.TrimSpace(line), []byte("connection: close"))
		}
		if _, err := c.Write(reply); err != nil || closes {
			return err
		}
	}
}

// serve2 answers HTTP/2: each request when it is complete, or each message when it has come.
func serve2(c net.Conn, k kind) error {
	var first [len(preface)]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return err
	}
	w := newWire(c, false)
	typ := "application/grpc"
	if k == http2Requests {
		typ = "application/json"
	}
	// Two blocks share the table: the trailer's field is behind the head's.
	head := &block{static: []byte{0x88}, fields: [][2]string{{"content-type", typ}}}
	reply := message(replySize)
	if k == grpcUnary {
		reply = grpcMessage(replySize - 5)
	}
	trailer := append([]byte{0x00, 11}, "grpc-status\x010"...) // a literal, not added to the table
	for {
		g, err := w.next()
		if err != nil {
			return err
		}
		switch {
		case g.typ == frameRST:
		case k == grpcStreams:
			if g.typ == frameHeaders {
				w.headers(head, g.stream, false)
			} else {
				w.frame(frameData, 0, g.stream, g.payload)
			}
		case g.end():
			w.headers(head, g.stream, false)
			if k == http2Requests {
				w.frame(frameData, flagEnd, g.stream, reply)
				break
			}
			w.frame(frameData, 0, g.stream, reply)
			w.frame(frameHeaders, flagEnd|flagEndHeaders, g.stream, trailer)
		}
	}
}
