package handshake

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// ErrSilent is for a peer that has said nothing in the time it had.
var ErrSilent = errors.New("handshake: the peer says nothing")

// GoneError is for a peer that has gone without a word. Err is the errno.
type GoneError struct{ Err error }

func (e *GoneError) Error() string { return "the peer is gone: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *GoneError) Unwrap() error { return e.Err }

// Peer is told, once, on the loop, what becomes of a connection that was silent.
type Peer interface {
	// Spoke is called when there is something to read. The descriptor is the callee's.
	Spoke(fd int)
	// Left is called when the connection was given up, and closed: ErrSilent, a GoneError, or what End was given.
	Left(err error)
}

// Silent are accepted connections whose peer has not said anything yet. Each costs a descriptor and no goroutine. Loop only.
type Silent struct {
	l     *loop.Loop
	wait  time.Duration
	peers map[*silent]struct{}
}

// NewSilent has peers wait for so long.
func NewSilent(l *loop.Loop, wait time.Duration) *Silent {
	return &Silent{l: l, wait: wait, peers: map[*silent]struct{}{}}
}

// silent is one of them.
type silent struct {
	s     *Silent
	p     Peer
	fd    loop.FD
	timer loop.Timer
	since time.Duration // of the loop's clock
}

// Add takes over an accepted, non-blocking descriptor, unless there is an error.
func (s *Silent) Add(fd int, p Peer) error {
	h := &silent{s: s, p: p, since: s.l.Now()}
	if err := s.l.Register(&h.fd, fd, h); err != nil {
		return err
	}
	s.peers[h] = struct{}{}
	s.l.Start(&h.timer, s.wait, h)
	h.fd.Wake()
	return nil
}

// Len is their number.
func (s *Silent) Len() int { return len(s.peers) }

// Younger is the number of those that have been silent for less than d.
func (s *Silent) Younger(d time.Duration) (n int) {
	for h := range s.peers {
		if s.l.Now()-h.since < d {
			n++
		}
	}
	return n
}

// End gives up those that match.
func (s *Silent) End(err error, match func(Peer) bool) {
	for h := range s.peers {
		if match(h.p) {
			h.end(err)
		}
	}
}

// Ready implements loop.Handler.
func (h *silent) Ready(*loop.FD) {
	var b [1]byte
	n, _, err := unix.Recvfrom(h.fd.Fd(), b[:], unix.MSG_PEEK)
	switch {
	case err == unix.EAGAIN, err == unix.EINTR:
	case err != nil:
		h.end(&GoneError{err})
	case n == 0:
		h.end(&GoneError{unix.ECONNRESET})
	default:
		h.leave()
		h.p.Spoke(h.fd.Detach())
	}
}

// Expired implements loop.TimerHandler.
func (h *silent) Expired(*loop.Timer) { h.end(ErrSilent) }

// Abort implements loop.Aborter.
func (h *silent) Abort(err error) { h.end(err) }

func (h *silent) leave() {
	h.timer.Stop()
	delete(h.s.peers, h)
}

// end gives the connection up.
func (h *silent) end(err error) {
	if h.fd.Closed() {
		return
	}
	h.leave()
	h.fd.Close()
	h.p.Left(err)
}
