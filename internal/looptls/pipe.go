package looptls

import (
	"io"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
)

const (
	// pipeBuffer is the ciphertext that a Pipe reads at once, in bytes. What a reader leaves of its plaintext is held.
	pipeBuffer = 64 << 10
	// pipeReads is how often a Pipe reads from its socket without finding application data before others have their turn.
	pipeReads = 4
	// pipeQueue is the ciphertext that a Pipe holds for a peer that does not take it, in bytes; then it is full. One more
	// burst of a write may come on top.
	pipeQueue = 64 << 10
	// pipeWrite is the plaintext that is encrypted before the queue is looked at again, in bytes.
	pipeWrite = 64 << 10
	// pipeGather is the length up to which the pieces of a Writev become one record, in bytes.
	pipeGather = recordPlain
	// pipeLinger is how long a Pipe that was closed goes on trying to send what it holds.
	pipeLinger = 15 * time.Second
)

// scratch are buffers for the ciphertext of one read. The loop's own buffer may be the reader's.
var scratch = sync.Pool{New: func() any { return new([pipeBuffer]byte) }}

// pipe is a Conn as a loop.Pipe. Loop only.
type pipe struct {
	c *Conn
	f loop.FD
	h loop.PipeHandler

	in     loop.Queue // plaintext that the reader had no room for
	full   bool       // the last write was cut short
	fin    bool       // CloseWrite was called
	closed bool
	linger loop.Timer
}

// NewPipe makes a loop.Pipe of a connection whose handshake is done, and registers fd, its socket, with the loop. On error
// fd stays the caller's. The peer's close_notify is io.EOF; a FIN without one is io.ErrUnexpectedEOF, for the end may have
// been cut off. CloseWrite sends close_notify and a FIN behind what was written. Loop only.
func NewPipe(l *loop.Loop, fd int, c *Conn) (loop.Pipe, error) {
	p := &pipe{c: c}
	if err := l.Register(&p.f, fd, p); err != nil {
		return nil, err
	}
	c.Attach(&p.f)
	return p, nil
}

// Loop implements loop.Pipe.
func (p *pipe) Loop() *loop.Loop { return p.f.Loop() }

// SetHandler implements loop.Pipe.
func (p *pipe) SetHandler(h loop.PipeHandler) { p.h = h }

// Wake implements loop.Pipe.
func (p *pipe) Wake() {
	if !p.closed {
		p.f.Wake()
	}
}

// Readable implements loop.Pipe.
func (p *pipe) Readable() bool {
	return !p.closed && (p.in.Len() > 0 || p.f.Readable() || p.c.readErr != nil || p.c.w.err != nil)
}

// Writable implements loop.Pipe.
func (p *pipe) Writable() bool { return !p.closed && !p.full }

// Read implements loop.Pipe.
func (p *pipe) Read(b []byte) (int, error) {
	switch {
	case p.closed:
		return 0, loop.ErrClosed
	case p.in.Len() > 0:
		return p.in.Read(b), nil
	case len(b) == 0:
		return 0, nil
	}
	done := 0
	take := func(plain []byte) error {
		n := copy(b[done:], plain)
		done += n
		p.in.Append(plain[n:])
		return nil
	}
	buf := scratch.Get().(*[pipeBuffer]byte)
	defer scratch.Put(buf)
	for range pipeReads {
		err := p.c.readInto(buf[:], pipeBuffer, take)
		switch {
		case done > 0: // an error is permanent, and comes again
			return done, nil
		case err == nil:
		case err == loop.ErrAgain && p.c.w.err != nil: // nothing has come, and nothing can be sent
			return 0, p.c.w.err
		default:
			return 0, err
		}
	}
	p.f.Wake()
	return 0, loop.ErrAgain
}

// Write implements loop.Pipe.
func (p *pipe) Write(b []byte) (int, error) {
	switch {
	case p.closed:
		return 0, loop.ErrClosed
	case p.fin:
		return 0, io.ErrClosedPipe
	}
	done := 0
	for done < len(b) {
		if p.c.Queued() >= pipeQueue {
			p.full = true
			return done, nil
		}
		n := min(len(b)-done, pipeWrite)
		if err := p.c.Write(b[done : done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Writev implements loop.Pipe. Short pieces share a record.
func (p *pipe) Writev(bufs [][]byte) (int, error) {
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	if len(bufs) > 1 && total <= pipeGather {
		buf := scratch.Get().(*[pipeBuffer]byte)
		defer scratch.Put(buf)
		all := buf[:0]
		for _, b := range bufs {
			all = append(all, b...)
		}
		return p.Write(all)
	}
	done := 0
	for _, b := range bufs {
		n, err := p.Write(b)
		done += n
		if err != nil || n < len(b) {
			return done, err
		}
	}
	return done, nil
}

// CloseWrite implements loop.Pipe.
func (p *pipe) CloseWrite() error {
	if p.closed {
		return loop.ErrClosed
	}
	p.fin = true
	return p.finish()
}

// finish ends our direction once all that was written is sent.
func (p *pipe) finish() error {
	if p.c.w.err != nil {
		return p.c.w.err
	}
	if p.c.Queued() > 0 || p.c.w.fin {
		return nil
	}
	p.c.CloseNotify()
	if p.c.w.err != nil {
		return p.c.w.err
	}
	if p.c.Queued() > 0 { // the notice itself
		return nil
	}
	p.c.w.fin = true
	return p.f.CloseWrite()
}

// Close implements loop.Pipe. What is queued is sent for a while yet.
func (p *pipe) Close() error {
	if p.closed {
		return nil
	}
	p.closed, p.fin, p.h = true, true, nil
	p.in.Clear()
	if p.finish() == nil && !p.c.w.fin {
		p.f.Loop().Start(&p.linger, pipeLinger, p)
		return nil
	}
	return p.end(false)
}

// Reset implements loop.Pipe.
func (p *pipe) Reset() error {
	p.closed, p.h = true, nil
	return p.end(true)
}

// end gives everything back.
func (p *pipe) end(reset bool) error {
	p.linger.Stop()
	p.in.Clear()
	p.c.w.out.Clear()
	p.c.fail(loop.ErrClosed)
	if reset {
		return p.f.Reset()
	}
	return p.f.Close()
}

// Expired implements loop.TimerHandler: the peer has not taken what was left in its time.
func (p *pipe) Expired(*loop.Timer) { p.end(true) }

// Ready implements loop.Handler.
func (p *pipe) Ready(f *loop.FD) {
	if p.c.Queued() > 0 && f.Writable() {
		p.c.Flush() // its error is that of the next call
	}
	if p.fin && !p.c.w.fin {
		p.finish()
	}
	if p.closed {
		if p.c.w.fin || p.c.w.err != nil {
			p.end(p.c.w.err != nil)
		}
		return
	}
	if p.c.Queued() < pipeQueue || p.c.w.err != nil {
		p.full = false
	}
	if p.h != nil {
		p.h.PipeReady()
	}
}

// Abort implements loop.Aborter: after a panic the handler is told to give up, if it can be.
func (p *pipe) Abort(err error) {
	if a, ok := p.h.(loop.Aborter); ok {
		a.Abort(err)
	}
}
