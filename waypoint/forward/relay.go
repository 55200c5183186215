package forward

import (
	"errors"
	"io"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
)

const (
	// relayChunk is what one read of a relay takes, in bytes.
	relayChunk = 64 << 10
	// relayReads is how often a side is read in one visit.
	relayReads = 4
)

// relay copies bytes between two pipes of one loop until both directions have ended. A half-close is passed on and leaves
// the other direction open; a failure on one side resets the other. Of a side that takes nothing at most one chunk is
// held, and its source is not read meanwhile.
type relay struct {
	a, b  half
	idle  time.Duration // after which it ends if nothing moves; 0: never
	quiet loop.Timer
	last  time.Duration // of the last byte
	done  func(aToB, bToA int64, err error)
	over  bool
}

// half is one side: what it reads goes to the other one.
type half struct {
	r     *relay
	pipe  loop.Pipe
	peer  *half
	held  loop.Queue // read from here, not yet taken by the peer
	moved int64      // taken by the peer
	eof   bool       // nothing more comes from here
	fin   bool       // ... and the peer has been told
}

// newRelay starts a relay; first is what was already read from a, and copied. It takes over both pipes. done is called
// once, not from here.
func newRelay(a, b loop.Pipe, first []byte, idle time.Duration, done func(aToB, bToA int64, err error)) *relay {
	r := &relay{done: done, idle: idle, last: a.Loop().Now()}
	if idle > 0 {
		a.Loop().Start(&r.quiet, idle, r)
	}
	r.a = half{r: r, pipe: a, peer: &r.b}
	r.b = half{r: r, pipe: b, peer: &r.a}
	r.a.held.Append(first)
	a.SetHandler(&r.a)
	b.SetHandler(&r.b)
	a.Wake()
	b.Wake()
	return r
}

// PipeReady implements loop.PipeHandler: the side may have bytes, and may have room for those of the other.
func (h *half) PipeReady() {
	if h.r.over {
		return
	}
	h.r.last = h.pipe.Loop().Now()
	if err := h.peer.move(); err != nil {
		h.r.end(err)
		return
	}
	if err := h.move(); err != nil {
		h.r.end(err)
		return
	}
	if h.fin && h.peer.fin {
		h.r.end(nil)
	}
}

// move passes on what has come from h.
func (h *half) move() error {
	for range relayReads {
		for h.held.Len() > 0 {
			p := h.held.Front()
			n, err := h.peer.pipe.Write(p)
			h.held.Discard(n)
			h.moved += int64(n)
			if err != nil {
				return err
			}
			if n < len(p) {
				return nil
			}
		}
		if h.eof {
			if !h.fin {
				h.fin = true
				return h.peer.pipe.CloseWrite()
			}
			return nil
		}
		buf := h.pipe.Loop().Buffer()[:relayChunk]
		n, err := h.pipe.Read(buf)
		switch {
		case errors.Is(err, loop.ErrAgain):
			return nil
		case errors.Is(err, io.EOF):
			h.eof = true
			continue
		case err != nil:
			return err
		}
		k, err := h.peer.pipe.Write(buf[:n])
		h.moved += int64(k)
		h.held.Append(buf[k:n])
		if err != nil || k < n {
			return err
		}
	}
	h.pipe.Wake()
	return nil
}

// end closes both sides, in good order only if both directions have ended so.
func (r *relay) end(err error) {
	if r.over {
		return
	}
	r.over = true
	r.quiet.Stop()
	for _, h := range []*half{&r.a, &r.b} {
		h.held.Clear()
		if err == nil {
			h.pipe.Close()
		} else {
			h.pipe.Reset()
		}
	}
	if r.done != nil {
		r.done(r.a.moved, r.b.moved, err)
	}
}

// errIdle ends relays in which nothing has moved for too long.
var errIdle = errors.New("idle for too long")

// Expired implements loop.TimerHandler. The timer is not set anew for each byte: what is due is found out here.
func (r *relay) Expired(*loop.Timer) {
	l := r.a.pipe.Loop()
	if rest := r.last + r.idle - l.Now(); rest > 0 {
		l.Start(&r.quiet, rest, r)
		return
	}
	r.end(errIdle)
}

// Abort implements loop.Aborter.
func (h *half) Abort(err error) { h.r.end(err) }
