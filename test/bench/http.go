package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// The kinds of work at the level of requests. Their servers are in httpserver.go.
const (
	http1Requests kind = "h1"          // GET over HTTP/1.1, one at a time on each connection
	http2Requests kind = "h2"          // GET over HTTP/2, Streams at a time
	grpcUnary     kind = "grpc"        // a call with a message of 100 bytes, answered by one of Size
	grpcStreams   kind = "grpc-stream" // open streams, a message of Size there and back on each
)

// Ports of the servers of requests.
const (
	http1Port  = 9011
	http2Port  = 9012
	grpcPort   = 9013
	streamPort = 9014
)

var requestPorts = map[kind]int{http1Requests: http1Port, http2Requests: http2Port, grpcUnary: grpcPort, grpcStreams: streamPort}

// pace makes a loop open: turn waits until it is time and says from when latency counts.
type pace struct {
	next  time.Time
	every time.Duration
}

func (c *client) pace(i int) *pace {
	p := &pace{}
	if c.rate > 0 {
		p.every = time.Duration(c.conns) * time.Second / time.Duration(c.rate)
		p.next = time.Now().Add(p.every * time.Duration(i) / time.Duration(c.conns))
	}
	return p
}

func (p *pace) turn() time.Time {
	begin := time.Now()
	if p.every == 0 {
		return begin
	}
	if d := p.next.Sub(begin); d > 0 {
		time.Sleep(d)
	}
	if begin = time.Now(); begin.Sub(p.next) > slack {
		begin = p.next
	}
	p.next = p.next.Add(p.every)
	return begin
}

// requests1 is HTTP/1.1 on one connection.
func (c *client) requests1(i int, conn net.Conn) {
	req := []byte("GET /api/v1/items/42?full=true HTTP/1.1\r\nHost: web.bench\r\nUser-Agent: bench\r\nAccept: */*\r\nX-Trace-Tag: 0123456789\r\n\r\n")
	r := bufio.NewReaderSize(conn, 16<<10)
	p := c.pace(i)
	for c.phase.Load() < stopping {
		begin := p.turn()
		if _, err := conn.Write(req); err != nil {
			c.fail(err)
			return
		}
		if err := answer1(r, c.size); err != nil {
			c.fail(err)
			return
		}
		c.done(i, begin)
	}
}

// answer1 reads an answer of 200 with size bytes.
func answer1(r *bufio.Reader, size int) error {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		switch {
		case first:
			if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
				return fmt.Errorf("answer %q", line)
			}
		case len(line) <= 2:
			if length != size {
				return fmt.Errorf("a body of %d bytes", length)
			}
			_, err := r.Discard(length)
			return err
		case len(line) > 15 && bytes.EqualFold(line[:15], []byte("content-length:")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[15:]))); err != nil {
				return err
			}
		}
	}
}

// call is what is under way on a stream.
type call struct {
	begin time.Time
	bytes int
	ok    bool
}

// requests2 is HTTP/2 on one connection: several streams at a time, or one if there is a rate.
func (c *client) requests2(i int, conn net.Conn) {
	w := newWire(conn, true)
	b := &block{static: []byte{0x82, 0x86}, fields: [][2]string{{"#1", "web.bench"}, {"#4", "/api/v1/items/42?full=true"}, {"user-agent", "bench"}, {"x-trace-tag", "0123456789"}}}
	var body []byte
	if c.kind != http2Requests {
		b = &block{static: []byte{0x83, 0x86}, fields: [][2]string{{"#1", "web.bench"}, {"#4", "/bench.Items/Get"}, {"content-type", "application/grpc"}, {"te", "trailers"}, {"user-agent", "bench"}}}
		size := 100
		if c.kind == grpcStreams {
			size = c.size - 5
		}
		body = grpcMessage(size)
	}
	p := c.pace(i)
	calls := map[uint32]*call{}
	var id uint32 = 1
	open := func() {
		x := &call{begin: p.turn()}
		calls[id] = x
		w.headers(b, id, body == nil)
		if body != nil {
			flags := byte(flagEnd)
			if c.kind == grpcStreams {
				flags = 0
			}
			w.frame(frameData, flags, id, body)
		}
		id += 2
	}
	for range c.streams {
		open()
	}
	for c.phase.Load() < stopping {
		g, err := w.next()
		if err != nil {
			c.fail(err)
			return
		}
		x := calls[g.stream]
		if x == nil {
			continue
		}
		switch {
		case g.typ == frameRST:
			c.fail(errReset)
			return
		case g.typ == frameHeaders && !x.ok:
			if x.ok = isOK(g.payload); !x.ok {
				c.fail(fmt.Errorf("header block %x", g.payload))
				return
			}
		case g.typ == frameData:
			x.bytes += len(g.payload)
		}
		if c.kind == grpcStreams {
			if g.end() {
				c.fail(errors.New("the stream has ended"))
				return
			}
			if x.bytes == c.size {
				c.done(i, x.begin)
				x.begin, x.bytes = p.turn(), 0
				w.frame(frameData, 0, g.stream, body)
			}
			continue
		}
		if g.end() {
			if x.bytes != c.size {
				c.fail(fmt.Errorf("an answer of %d bytes", x.bytes))
				return
			}
			delete(calls, g.stream)
			c.done(i, x.begin)
			if c.rate > 0 {
				if err := w.flush(); err != nil {
					c.fail(err)
					return
				}
			}
			open()
		}
	}
}

// grpcMessage is a message with its prefix.
func grpcMessage(size int) []byte {
	m := make([]byte, 5+size)
	m[1], m[2], m[3], m[4] = byte(size>>24), byte(size>>16), byte(size>>8), byte(size)
	copy(m[5:], message(size))
	return m
}

// probe1 asks once over HTTP/1.1. It does not ask for the connection's end: an Envoy would reset the tunnel's stream then, and
// take the answer back.
func probe1(conn net.Conn, size int) error {
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET /api/v1/items/42?full=true HTTP/1.1\r\nHost: web.bench\r\n\r\n"); err != nil {
		return err
	}
	return answer1(bufio.NewReader(conn), size)
}
