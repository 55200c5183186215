package hbone

import (
	"io"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// pipeLinger is how long a Pipe that was closed waits for the peer to end its direction too.
const pipeLinger = 15 * time.Second

// pipe is a stream as a loop.Pipe. Its handler is called at the end of a turn, when the bytes of the turn have been
// parsed; what it writes joins the connection's batch.
type pipe struct {
	s       *Stream
	h       loop.PipeHandler
	full    bool // the last write was cut short
	visited bool // the handler is being called
	eof     bool // io.EOF was returned
	closed  bool
	linger  loop.Timer
}

// Pipe turns the stream into a byte stream on its loop. It is called once, instead of Join or NetConn, and the stream must
// have been accepted, or be accepted soon: nothing can be sent before. The caller has to Close or Reset the result.
func (s *Stream) Pipe() loop.Pipe {
	p := &pipe{s: s}
	s.watch = nil
	s.side = p
	s.c.post(s, evPump)
	return p
}

// Loop implements loop.Pipe.
func (p *pipe) Loop() *loop.Loop { return p.s.c.l }

// SetHandler implements loop.Pipe.
func (p *pipe) SetHandler(h loop.PipeHandler) { p.h = h }

// Readable implements loop.Pipe.
func (p *pipe) Readable() bool {
	s := p.s
	return !p.closed && (s.queue.Len() > 0 || s.recvEnd || s.err != nil)
}

// Writable implements loop.Pipe.
func (p *pipe) Writable() bool { return !p.closed && !p.full }

// Read implements loop.Pipe.
func (p *pipe) Read(b []byte) (int, error) {
	s := p.s
	switch {
	case p.closed:
		return 0, loop.ErrClosed
	case s.queue.Len() > 0:
		n := s.queue.Read(b)
		s.dequeued(n)
		return n, nil
	case s.err != nil && (p.eof || !s.complete()):
		return 0, s.err
	case s.recvEnd && s.g == nil:
		p.eof = true
		s.drained()
		return 0, io.EOF
	}
	return 0, loop.ErrAgain
}

// Write implements loop.Pipe.
func (p *pipe) Write(b []byte) (int, error) {
	s := p.s
	switch {
	case p.closed:
		return 0, loop.ErrClosed
	case s.err != nil:
		return 0, s.err
	case s.lost != nil:
		return 0, s.lost.err
	case s.sentEnd:
		return 0, io.ErrClosedPipe
	}
	done := 0
	for done < len(b) {
		room, connWaits := s.maySend()
		if room == 0 {
			if s.err != nil {
				return done, s.err
			}
			p.full = true
			if connWaits {
				s.c.enlist(s, done > 0)
			}
			return done, nil
		}
		k := min(room, s.c.peerFrame, recordPlain-frameHeaderLen, len(b)-done)
		s.spend(k)
		copy(s.c.frame(k, frameData, 0, s.id), b[done:])
		done += k
	}
	return done, nil
}

// Writev implements loop.Pipe.
func (p *pipe) Writev(bufs [][]byte) (int, error) {
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
	p.s.sendEnd()
	return p.s.err
}

// Close implements loop.Pipe. A peer that goes on sending is told to stop by RST_STREAM.
func (p *pipe) Close() error {
	s := p.s
	if p.closed {
		return nil
	}
	p.closed, p.h = true, nil
	if s.err != nil {
		return nil
	}
	if s.queue.Len() > 0 || s.g != nil || !s.answered {
		s.cut(CodeCancel, loop.ErrClosed)
		return nil
	}
	s.sendEnd()
	if !s.recvEnd {
		s.c.l.Start(&p.linger, pipeLinger, p)
	}
	return nil
}

// Reset implements loop.Pipe.
func (p *pipe) Reset() error {
	if !p.closed {
		p.closed, p.h = true, nil
		p.s.cut(CodeCancel, loop.ErrClosed)
	}
	return nil
}

// Expired implements loop.TimerHandler: the peer has not ended its direction.
func (p *pipe) Expired(*loop.Timer) { p.s.cut(CodeCancel, loop.ErrClosed) }

// Wake implements loop.Pipe. From inside the handler it asks for the next turn, so that others have theirs.
func (p *pipe) Wake() {
	if p.closed {
		return
	}
	c := p.s.c
	if p.visited && !c.dead {
		c.revisit = append(c.revisit, p.s)
		c.fd.Wake()
		return
	}
	c.post(p.s, evPump)
}

// take implements side.
func (p *pipe) take(pieces [][]byte) {
	if p.closed {
		p.s.cut(CodeCancel, loop.ErrClosed)
		return
	}
	p.s.enqueue(pieces, 0)
	p.s.c.post(p.s, evPump)
}

// peerEnded implements side.
func (p *pipe) peerEnded() {
	p.linger.Stop()
	p.s.c.post(p.s, evPump)
}

// resume implements side.
func (p *pipe) resume() {
	p.full = false
	p.s.c.post(p.s, evPump)
}

// pump implements side.
func (p *pipe) pump() {
	if p.h == nil {
		return
	}
	p.visited = true
	p.h.PipeReady()
	p.visited = false
}

// ended implements side.
func (p *pipe) ended() {
	p.linger.Stop()
	p.pump()
}

// joined implements side.
func (p *pipe) joined() {}
