package http1

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// moody takes as much as it likes, and more a little later.
type moody struct {
	l   *loop.Loop
	rnd *rand.Rand
}

func (m moody) take(p []byte, resume func()) int {
	if m.rnd.IntN(3) > 0 {
		return len(p)
	}
	n := m.rnd.IntN(len(p) + 1)
	if n < len(p) {
		m.l.Inject(resume)
	}
	return n
}

// moodyEcho sends back what it receives while it receives it, and the trailer.
type moodyEcho struct {
	moody
	s     message.ServerStream
	queue []byte
	ended bool
	tr    message.Header
}

func (x *moodyEcho) Data(p []byte) int {
	n := 0
	if len(x.queue) < 50_000 {
		n = x.take(p, x.s.Resume)
	}
	x.queue = append(x.queue, p[:n]...)
	x.push()
	return n
}

func (x *moodyEcho) push() {
	if n := x.s.SendData(x.queue); n > 0 {
		x.queue = x.queue[n:]
	}
	if len(x.queue) == 0 && x.ended {
		x.s.SendEnd(&x.tr)
		x.ended = false
		return
	}
	if len(x.queue) < 50_000 {
		x.s.Resume()
	}
}

func (x *moodyEcho) End(tr *message.Header) {
	x.ended = true
	if tr != nil {
		x.tr.Copy(tr)
	}
	x.push()
}

func (x *moodyEcho) Failed(error) {}
func (x *moodyEcho) Room()        { x.push() }

// moodyClient makes requests one after the other and checks the echo.
type moodyClient struct {
	moody
	t      *testing.T
	dial   func(h message.ConnHandler) *ClientConn
	c      *ClientConn
	s      message.ClientStream
	left   int
	most   int // bytes of a body
	body   []byte
	sent   int
	ended  bool
	tunnel bool
	got    bytes.Buffer
	sum    string
	done   chan struct{}
}

func (x *moodyClient) Closed(error) { x.c = nil }
func (x *moodyClient) Changed()     {}

func (x *moodyClient) next() {
	if x.left--; x.left < 0 {
		close(x.done)
		return
	}
	if x.c == nil || x.c.Room() == 0 {
		x.c = x.dial(x)
	}
	size := x.rnd.IntN(100)
	if x.rnd.IntN(4) == 0 {
		size = x.rnd.IntN(x.most)
	}
	x.body = make([]byte, size)
	for i := range x.body {
		x.body[i] = byte(x.rnd.Uint32())
	}
	x.sent, x.ended = 0, false
	x.got.Reset()
	r := request("POST", "/", "x-pad", strings.Repeat("p", x.rnd.IntN(min(6000, x.most))))
	switch x.tunnel = x.rnd.IntN(8) == 0; {
	case x.tunnel:
		r.Method, r.Upgrade = "GET", "echo"
	case x.rnd.IntN(2) == 0:
		r.Header.Add("content-length", fmt.Sprint(size))
		r.Expect100 = x.rnd.IntN(4) == 0
	}
	var err error
	if x.s, err = x.c.Open(r, false, x); err != nil {
		x.t.Errorf("open: %v", err)
		close(x.done)
		return
	}
	x.push()
}

func (x *moodyClient) push() {
	for x.sent < len(x.body) {
		k := min(len(x.body)-x.sent, 1+x.rnd.IntN(100_000))
		n := x.s.SendData(x.body[x.sent : x.sent+k])
		if x.sent += n; n < k {
			return
		}
	}
	if !x.ended {
		x.ended = true
		tr := &message.Header{}
		x.sum = fmt.Sprint(len(x.body))
		tr.Add("x-sum", x.sum)
		x.s.SendEnd(tr)
	}
}

func (x *moodyClient) Interim(*message.Response) {}
func (x *moodyClient) Head(r *message.Response, end bool) {
	if r.Status != 200 && r.Status != 101 {
		x.t.Errorf("status %d", r.Status)
	}
}

func (x *moodyClient) Data(p []byte) int {
	n := x.take(p, x.s.Resume)
	x.got.Write(p[:n])
	return n
}

func (x *moodyClient) Room() { x.push() }

func (x *moodyClient) End(tr *message.Header) {
	if !bytes.Equal(x.got.Bytes(), x.body) {
		x.t.Errorf("got %d bytes of %d, or others", x.got.Len(), len(x.body))
	}
	if tr != nil && tr.Get("x-sum") != x.sum {
		x.t.Errorf("trailer %q, want %q", tr.Get("x-sum"), x.sum)
	}
	x.l.Inject(x.next)
}

func (x *moodyClient) Failed(err error) {
	x.t.Errorf("failed: %v", err)
	x.left = 0
	x.l.Inject(x.next)
}

func TestMessagesSurvivePipesThatGiveAndTakeAsTheyLike(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			l := running(t)
			rnd := rand.New(rand.NewPCG(seed, 1))
			m := moody{l, rnd}
			sizes := []int{1, 7, 100, 5000, 100_000}
			pick := func() int { return sizes[rnd.IntN(len(sizes))] }
			window, most := 1+pick(), 300_000
			readMax, writeMax := pick(), pick()
			if most = min(most, 100*min(window, readMax, writeMax)); most == 100 {
				most = 1000
			}
			backend := serveFunc(func(s message.ServerStream) {
				x := &moodyEcho{moody: m, s: s}
				r := response(200)
				if s.Request().Upgrade != "" {
					r.Status = 101
				}
				begin := func() {
					s.SetTaker(x)
					s.SendHead(r, false)
				}
				if rnd.IntN(2) == 0 {
					begin()
				} else {
					l.Inject(begin)
				}
			})
			dialBackend := func(h message.ConnHandler) *ClientConn {
				a, b := memPair(l, rnd, window, readMax, writeMax)
				NewServer(b, ServerConfig{}, backend, newFate())
				return NewClient(a, ClientConfig{}, h)
			}
			x := &moodyClient{moody: m, t: t, left: 40, most: most, done: make(chan struct{})}
			if x.dial = dialBackend; seed%2 == 0 {
				x.dial = func(h message.ConnHandler) *ClientConn { // with a proxy between
					a, b := memPair(l, rnd, window, readMax, writeMax)
					NewServer(b, ServerConfig{}, &memProxy{dial: dialBackend}, newFate())
					return NewClient(a, ClientConfig{}, h)
				}
			}
			l.Inject(x.next)
			<-x.done
		})
	}
}

// memProxy forwards what it is asked.
type memProxy struct {
	dial func(h message.ConnHandler) *ClientConn
	up   *ClientConn
}

func (p *memProxy) ServeRequest(s message.ServerStream) {
	if p.up == nil || p.up.Room() == 0 {
		p.up = p.dial(newFate())
	}
	forward(s, p.up)
}
