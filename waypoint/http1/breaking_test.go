package http1

import (
	"io"
	"math/rand/v2"
	"testing"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// ledger counts who was told what.
type ledger struct {
	t      *testing.T
	open   int // connections not closed
	begun  int // exchanges without an end
	failed int
}

// once is a ConnHandler that may be told of the end once.
type once struct {
	b      *ledger
	closed bool
}

func (b *ledger) conn() *once { b.open++; return &once{b: b} }

func (o *once) Closed(error) {
	if o.closed {
		o.b.t.Error("closed twice")
	}
	o.closed = true
	o.b.open--
}

func (o *once) Changed() {
	if o.closed {
		o.b.t.Error("changed after it was closed")
	}
}

// strict takes a message and sees to it that nothing comes behind its end.
type strict struct {
	b      *ledger
	ended  bool // End or Failed
	failed bool
	gone   bool // given up by us, or the answer is complete
	server bool // the answer to a request that has ended may still fail
	next   message.Taker
	do     func(err error) // at the end
}

func (s *strict) check(what string) {
	if s.ended || s.gone {
		s.b.t.Errorf("%s after the end", what)
	}
}

func (s *strict) Data(p []byte) int {
	s.check("data")
	if len(p) == 0 {
		s.b.t.Error("no data")
	}
	return s.next.Data(p)
}

func (s *strict) Room() {
	if s.gone || s.failed {
		s.b.t.Error("room after the end")
	}
	s.next.Room()
}

func (s *strict) End(tr *message.Header) {
	s.check("end")
	s.ended = true
	s.next.End(tr)
	s.do(nil)
}

func (s *strict) Failed(err error) {
	if s.failed || s.gone || s.ended && !s.server {
		s.b.t.Error("failure after the end")
	}
	s.ended, s.failed = true, true
	s.b.failed++
	s.next.Failed(err)
	s.do(err)
}

// client is strict as a ClientHandler.
type strictClient struct{ *strict }

func (s strictClient) Interim(*message.Response)    { s.check("interim answer") }
func (s strictClient) Head(*message.Response, bool) { s.check("head") }

// sends pushes a body and its end.
type sends struct {
	left int
	send func(p []byte) int
	end  func()
}

var zeros [100_000]byte

func (x *sends) Data(p []byte) int   { return len(p) }
func (x *sends) End(*message.Header) {}
func (x *sends) Failed(error)        { x.left = -1 }

func (x *sends) Room() {
	for x.left > 0 {
		k := min(x.left, len(zeros))
		n := x.send(zeros[:k])
		if x.left -= n; n < k {
			return
		}
	}
	if x.left == 0 {
		x.left = -1
		x.end()
	}
}

// answers serves a request with a body of random length, begun at its head or at its end.
func (b *ledger) answers(l *loop.Loop, rnd *rand.Rand) message.ServerHandler {
	return serveFunc(func(s message.ServerStream) {
		x := &sends{left: rnd.IntN(200_000), send: s.SendData, end: func() { s.SendEnd(nil) }}
		k := &strict{b: b, server: true, next: x, do: func(error) {}}
		x.end = func() { k.gone = true; s.SendEnd(nil) }
		s.SetTaker(k)
		l.Inject(func() {
			if k.failed {
				return
			}
			switch rnd.IntN(20) {
			case 0:
				k.gone = true
				s.Reset(nil)
			case 1:
				k.gone = true
				s.SendHead(response(404), true)
			default:
				s.SendHead(response(200), false)
				x.Room()
			}
		})
	})
}

func TestWhateverBreaksEveryoneIsToldOnce(t *testing.T) {
	l := running(t)
	for seed := range uint64(120) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		b := &ledger{t: t}
		done := make(chan struct{})
		left := 10
		var all []interface{ Close(error) }
		var begin func()
		begin = func() {
			if left--; left < 0 {
				close(done)
				return
			}
			p, q := memPair(l, rnd, 1+rnd.IntN(100_000), 1+rnd.IntN(50_000), 1+rnd.IntN(50_000))
			srv := NewServer(q, ServerConfig{DrainIdle: -1}, b.answers(l, rnd), b.conn())
			c := NewClient(p, ClientConfig{}, b.conn())
			all = append(all, srv, c)
			x := &sends{left: rnd.IntN(200_000)}
			k := strictClient{&strict{b: b, next: x}}
			ended := false
			k.do = func(error) {
				if ended {
					t.Error("told twice")
				}
				ended = true
				b.begun--
				l.Inject(begin)
			}
			b.begun++
			s, err := c.Open(request("POST", "/"), false, k)
			if err != nil {
				t.Error(err)
				return
			}
			x.send, x.end = s.SendData, func() { s.SendEnd(nil) }
			x.Room()
			l.Inject(func() { breakSomething(l, rnd, rnd.IntN(60), p, q, srv, c, s, k, begin) })
		}
		l.Inject(begin)
		<-done
		l.OnLoop(func() {
			if b.begun != 0 {
				t.Errorf("seed %d: %d exchanges were not told of their end", seed, b.begun)
			}
			for _, c := range all {
				c.Close(nil)
			}
			if b.open != 0 {
				t.Errorf("seed %d: %d connections were not told of their end", seed, b.open)
			}
		})
	}
}

// breakSomething does so after some turns.
func breakSomething(l *loop.Loop, rnd *rand.Rand, turns int, p, q *memPipe, srv *ServerConn, c *ClientConn, s message.ClientStream, k strictClient, next func()) {
	if turns > 0 {
		l.Inject(func() { breakSomething(l, rnd, turns-1, p, q, srv, c, s, k, next) })
		return
	}
	if k.ended {
		return
	}
	switch rnd.IntN(9) {
	case 0:
		p.fail(io.ErrUnexpectedEOF)
		p.closed = false // the end here has not noticed
		p.err = io.ErrUnexpectedEOF
		p.Wake()
	case 1:
		q.fail(io.ErrUnexpectedEOF)
		q.closed = false
		q.err = io.ErrUnexpectedEOF
		q.Wake()
	case 2:
		p.CloseWrite()
	case 3:
		q.CloseWrite()
	case 4:
		srv.Close(io.EOF)
	case 5:
		c.Close(io.EOF)
	case 6:
		srv.Drain()
	case 7:
		c.Drain()
	case 8:
		k.gone = true
		s.Reset(nil)
		k.b.begun--
		l.Inject(next)
	}
}
