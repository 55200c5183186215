package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// The least of HTTP/2 that a client and a server of benchmarks need: header blocks are made by hand, of fields that go
// into the dynamic table once and are named by their index after, as real ones are; blocks of the peer are not decoded.

// Frame types and flags of RFC 9113.
const (
	frameData, frameHeaders, frameRST, frameSettings = 0, 1, 3, 4
	framePing, frameGoAway, frameWindow              = 6, 7, 8
	flagEnd, flagAck, flagEndHeaders                 = 1, 1, 4
	frameHead                                        = 9
	hugeWindow                                       = 1 << 30
	preface                                          = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// block makes header blocks: first of literals that are added to the table, then of their indexes.
type block struct {
	static []byte
	fields [][2]string // name, or "#n" for the static name n
	sent   bool
}

func (b *block) append(dst []byte) []byte {
	dst = append(dst, b.static...)
	for i, f := range b.fields {
		if b.sent {
			dst = append(dst, 0x80|byte(61+len(b.fields)-i)) // the first added is the last of the table
			continue
		}
		if n, err := fmt.Sscanf(f[0], "#%d", new(int)); n == 1 && err == nil {
			var index int
			_, _ = fmt.Sscanf(f[0], "#%d", &index)
			dst = append(dst, 0x40|byte(index))
		} else {
			dst = append(append(dst, 0x40, byte(len(f[0]))), f[0]...)
		}
		dst = append(append(dst, byte(len(f[1]))), f[1]...)
	}
	b.sent = true
	return dst
}

// wire is a connection of frames. Reads and writes are one goroutine's.
type wire struct {
	conn    net.Conn
	r       *bufio.Reader
	out     []byte
	given   int // bytes of DATA since credit was given back last
	payload []byte
}

func newWire(conn net.Conn, client bool) *wire {
	w := &wire{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	if client {
		w.out = append(w.out, preface...)
	}
	settings := []byte{0, 3, 0, 0, 0x10, 0, 0, 4, 0x40, 0, 0, 0} // 4096 streams, windows of 1 GiB
	if client {
		settings = append([]byte{0, 2, 0, 0, 0, 0}, settings...) // no push
	}
	w.frame(frameSettings, 0, 0, settings)
	w.frame(frameWindow, 0, 0, binary.BigEndian.AppendUint32(nil, hugeWindow))
	return w
}

func (w *wire) head(typ, flags byte, stream uint32, n int) {
	w.out = append(w.out, byte(n>>16), byte(n>>8), byte(n), typ, flags)
	w.out = binary.BigEndian.AppendUint32(w.out, stream)
}

func (w *wire) frame(typ, flags byte, stream uint32, payload []byte) {
	w.head(typ, flags, stream, len(payload))
	w.out = append(w.out, payload...)
}

// headers writes a block.
func (w *wire) headers(b *block, stream uint32, end bool) {
	at := len(w.out)
	flags := byte(flagEndHeaders)
	if end {
		flags |= flagEnd
	}
	w.head(frameHeaders, flags, stream, 0)
	w.out = b.append(w.out)
	n := len(w.out) - at - frameHead
	w.out[at], w.out[at+1], w.out[at+2] = byte(n>>16), byte(n>>8), byte(n)
}

func (w *wire) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	_, err := w.conn.Write(w.out)
	w.out = w.out[:0]
	return err
}

// got is a frame about a stream.
type got struct {
	typ, flags byte
	stream     uint32
	payload    []byte // valid until the next one
}

func (g *got) end() bool {
	return g.flags&flagEnd != 0 && (g.typ == frameData || g.typ == frameHeaders)
}

// next reads frames until one is about a stream, and answers the others. Output is flushed before it waits.
func (w *wire) next() (*got, error) {
	for {
		if w.r.Buffered() < frameHead {
			if err := w.flush(); err != nil {
				return nil, err
			}
		}
		var h [frameHead]byte
		if _, err := io.ReadFull(w.r, h[:]); err != nil {
			return nil, err
		}
		n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
		g := &got{typ: h[3], flags: h[4], stream: binary.BigEndian.Uint32(h[5:]) & (1<<31 - 1)}
		if cap(w.payload) < n {
			w.payload = make([]byte, max(n, 16<<10))
		}
		g.payload = w.payload[:n]
		if _, err := io.ReadFull(w.r, g.payload); err != nil {
			return nil, err
		}
		switch {
		case g.typ == frameSettings && g.flags&flagAck == 0:
			w.frame(frameSettings, flagAck, 0, nil)
		case g.typ == framePing && g.flags&flagAck == 0:
			w.frame(framePing, flagAck, 0, g.payload)
		case g.typ == frameGoAway && n >= 8 && binary.BigEndian.Uint32(g.payload[4:]) != 0:
			return nil, fmt.Errorf("GOAWAY %d: %s", binary.BigEndian.Uint32(g.payload[4:]), g.payload[8:])
		case g.typ == frameData:
			if w.given += n; w.given > hugeWindow/4 {
				w.frame(frameWindow, 0, 0, binary.BigEndian.AppendUint32(nil, uint32(w.given)))
				w.given = 0
			}
			return g, nil
		case g.typ == frameHeaders, g.typ == frameRST:
			return g, nil
		}
	}
}

// isOK says that a block begins with :status 200.
func isOK(b []byte) bool {
	for len(b) > 0 && b[0]&0xe0 == 0x20 { // a change of the table's size
		b = b[1:]
	}
	return len(b) > 0 && b[0] == 0x88
}

var errReset = errors.New("stream was reset")
