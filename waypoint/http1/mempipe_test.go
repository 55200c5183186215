package http1

import (
	"io"
	"math/rand/v2"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// memPipe is one end of a byte stream in memory that takes and gives as little as it likes.
type memPipe struct {
	l    *loop.Loop
	rnd  *rand.Rand
	h    loop.PipeHandler
	peer *memPipe

	in       []byte // to be read here
	window   int    // how many bytes in may hold
	eof      bool   // the peer has ended its direction
	err      error  // the peer has reset
	closed   bool
	full     bool // the last write was cut short
	posted   bool // a visit is under way
	readMax  int
	writeMax int
	writes   int
}

// memPair is a stream whose ends belong to l.
func memPair(l *loop.Loop, rnd *rand.Rand, window, readMax, writeMax int) (a, b *memPipe) {
	a = &memPipe{l: l, rnd: rnd, window: window, readMax: readMax, writeMax: writeMax}
	b = &memPipe{l: l, rnd: rnd, window: window, readMax: readMax, writeMax: writeMax, peer: a}
	a.peer = b
	return a, b
}

func (p *memPipe) Loop() *loop.Loop              { return p.l }
func (p *memPipe) SetHandler(h loop.PipeHandler) { p.h = h }
func (p *memPipe) Readable() bool                { return !p.closed && (len(p.in) > 0 || p.eof || p.err != nil) }
func (p *memPipe) Writable() bool                { return !p.closed && !p.full }

func (p *memPipe) Wake() {
	if p.posted || p.closed {
		return
	}
	p.posted = true
	p.l.Inject(func() {
		p.posted = false
		if !p.closed && p.h != nil {
			p.h.PipeReady()
		}
	})
}

func (p *memPipe) Read(b []byte) (int, error) {
	switch {
	case p.closed:
		return 0, loop.ErrClosed
	case len(p.in) > 0:
		n := copy(b[:min(len(b), p.upTo(p.readMax))], p.in)
		p.in = p.in[n:]
		if q := p.peer; q.full && len(p.in) <= p.window/2 {
			q.full = false
			q.Wake()
		}
		return n, nil
	case p.err != nil:
		return 0, p.err
	case p.eof:
		return 0, io.EOF
	}
	return 0, loop.ErrAgain
}

func (p *memPipe) Write(b []byte) (int, error) {
	switch {
	case p.closed:
		return 0, loop.ErrClosed
	case p.err != nil:
		return 0, p.err
	}
	p.writes++
	q := p.peer
	n := min(len(b), max(q.window-len(q.in), 0), p.upTo(p.writeMax))
	if q.closed {
		n = len(b)
	}
	q.in = append(q.in, b[:n]...)
	if n > 0 {
		q.Wake()
	}
	if n < len(b) {
		p.full = true
		if len(q.in) <= q.window/2 { // it takes more soon
			p.l.Inject(func() {
				p.full = false
				p.Wake()
			})
		}
	}
	return n, nil
}

func (p *memPipe) Writev(bufs [][]byte) (int, error) {
	done := 0
	for _, b := range bufs {
		n, err := p.Write(b)
		if done += n; err != nil || n < len(b) {
			return done, err
		}
	}
	return done, nil
}

func (p *memPipe) CloseWrite() error {
	if p.closed {
		return loop.ErrClosed
	}
	p.peer.eof = true
	p.peer.Wake()
	return nil
}

func (p *memPipe) Close() error {
	if !p.closed {
		p.CloseWrite()
		p.closed = true
		p.peer.full = false
		p.peer.Wake()
	}
	return nil
}

func (p *memPipe) Reset() error { return p.fail(io.ErrUnexpectedEOF) }

// fail ends the stream for the peer with an error.
func (p *memPipe) fail(err error) error {
	if !p.closed {
		p.closed = true
		p.peer.err, p.peer.in, p.peer.full = err, nil, false
		p.peer.Wake()
	}
	return nil
}

// upTo is a number from 1 to n, or n if there is no chance.
func (p *memPipe) upTo(n int) int {
	if p.rnd == nil {
		return n
	}
	return 1 + p.rnd.IntN(n)
}
