package hbone

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
)

const (
	// lossPatience is how long an application that has lost its peer may read nothing of what the peer had sent.
	lossPatience = 15 * time.Second
	// leaveEvery is how often the socket of such an application is looked at: nothing announces that it has sent all.
	leaveEvery = 10 * time.Millisecond
)

// loss is the end of a stream that the peer has reset, or whose connection is gone, from then on until the application
// has what the peer had sent before. A proxy that resets a stream behind its last data (Envoy does when the other end
// closes without waiting for our FIN) must not have that data thrown away: the reset is passed on behind it, as in a
// TCP stream. Loop only.
type loss struct {
	s     *Stream
	err   error
	timer loop.Timer
	left  int           // that the application has not taken, when last looked at
	since time.Duration // that it is as many
	j     *join         // its socket has taken all, and has not sent all
}

// lose ends a stream whose peer, or connection, is gone.
func (s *Stream) lose(err error) {
	if s.err != nil || s.lost != nil {
		return
	}
	if !s.answered || s.refusal != 0 || s.side == nil && s.opener == nil { // nobody to deliver to
		s.end(err)
		return
	}
	s.c.remove(s)
	s.deliver()
	if s.err != nil { // the application is gone too
		return
	}
	s.lost = &loss{s: s, err: err, left: s.queue.Len(), since: s.c.l.Now()}
	if s.queue.Len() == 0 && (!s.recvEnd || s.endTold && s.side != nil) {
		s.end(err)
		return
	}
	s.sentEnd = true
	s.c.l.Start(&s.lost.timer, lossPatience, s.lost)
	s.resume()
}

// complete says that the peer had sent all it wanted to when it was lost.
func (s *Stream) complete() bool { return s.recvEnd && s.lost != nil }

// drained is called when the application may have all that has come: its last bytes, and the end if there is one.
func (s *Stream) drained() {
	if s.lost != nil && s.queue.Len() == 0 {
		s.end(s.lost.err)
	}
}

// leave keeps the socket of a relay open until it has sent what it has taken.
func (x *loss) leave(j *join) {
	x.j, x.left, x.since = j, j.app.Unsent(), x.s.c.l.Now()
	x.s.c.l.Start(&x.timer, leaveEvery, x)
}

// Expired implements loop.TimerHandler.
func (x *loss) Expired(*loop.Timer) {
	now, left, next := x.s.c.l.Now(), x.s.queue.Len(), lossPatience
	if x.j != nil {
		left, next = x.j.app.Unsent(), leaveEvery
	}
	if left < x.left {
		x.left, x.since = left, now
	}
	switch {
	case left > 0 && now-x.since < lossPatience:
		x.s.c.l.Start(&x.timer, next, x)
	case x.j == nil:
		x.s.end(x.err)
	default:
		x.j.close(true)
		x.j.joined()
	}
}
