//go:build !race

package http1

import (
	"runtime"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// pinger makes one request after the other on its connection, with and without a body.
type pinger struct {
	c    *ClientConn
	req  message.Request
	body []byte
	left int
	got  int
	done chan struct{}
}

func (p *pinger) begin() {
	up, err := p.c.Open(&p.req, p.body == nil, p)
	if err != nil {
		panic(err)
	}
	if p.body != nil {
		up.SendData(p.body)
		up.SendEnd(nil)
	}
}

func (p *pinger) Interim(*message.Response)    {}
func (p *pinger) Head(*message.Response, bool) {}
func (p *pinger) Data(b []byte) int            { p.got += len(b); return len(b) }
func (p *pinger) Room()                        {}
func (p *pinger) Failed(err error)             { panic(err) }
func (p *pinger) Closed(error)                 {}
func (p *pinger) End(*message.Header)          {}

func (p *pinger) Changed() {
	if p.left--; p.left == 0 {
		p.done <- struct{}{}
		return
	}
	p.begin()
}

// ponger answers every request at its end.
type ponger struct {
	s    message.ServerStream
	resp message.Response
	body []byte
}

func (p *ponger) ServeRequest(s message.ServerStream) { p.s = s; s.SetTaker(p) }
func (p *ponger) Data(b []byte) int                   { return len(b) }
func (p *ponger) Room()                               {}
func (p *ponger) Failed(error)                        {}

func (p *ponger) End(*message.Header) {
	p.s.SendHead(&p.resp, p.body == nil)
	if p.body != nil {
		p.s.SendData(p.body)
		p.s.SendEnd(nil)
	}
}

// rally is a client and a server on one loop; the function makes n requests, one after the other.
func rally(t testing.TB, l *loop.Loop, up, down []byte) func(n int) {
	a, b := tcpPair(t)
	afd, bfd := steal(t, a), steal(t, b)
	ping := &pinger{body: up, done: make(chan struct{}, 1)}
	ping.req.Reset()
	ping.req.Method, ping.req.Authority, ping.req.Path = "GET", "reviews.default.svc.cluster.local:9080", "/reviews/0?user=jason"
	for _, f := range []message.Field{
		{Name: "user-agent", Value: "Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0"}, {Name: "accept", Value: "*/*"},
		{Name: "accept-encoding", Value: "gzip, deflate, br"}, {Name: "x-request-id", Value: "b5e8b1e1-5c1f-4f6a-9a9b-0d5a2e0f6c11"},
		{Name: "x-forwarded-proto", Value: "http"}, {Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		{Name: "cookie", Value: "session=eyJ1c2VyIjoiamFzb24ifQ=="}, {Name: "te", Value: "trailers"},
	} {
		ping.req.Header.Add(f.Name, f.Value)
	}
	if up != nil {
		ping.req.Method = "POST"
	}
	pong := &ponger{body: down}
	pong.resp.Reset()
	pong.resp.Status = 200
	for _, f := range []message.Field{
		{Name: "content-type", Value: "application/json"}, {Name: "date", Value: "Wed, 25 Nov 2026 13:00:00 GMT"},
		{Name: "x-envoy-upstream-service-time", Value: "1"}, {Name: "server", Value: "istio-envoy"},
	} {
		pong.resp.Header.Add(f.Name, f.Value)
	}
	l.OnLoop(func() {
		NewServer(pipe(t, l, bfd), ServerConfig{}, pong, newFate())
		ping.c = NewClient(pipe(t, l, afd), ClientConfig{}, ping)
	})
	begin := ping.begin
	return func(n int) {
		ping.left = n
		l.Inject(begin)
		<-ping.done
	}
}

// Not under the race detector: sync.Pool drops things at random there.
func TestARequestCostsNoAllocation(t *testing.T) {
	big := make([]byte, 100_000)
	for _, c := range []struct {
		name     string
		up, down []byte
	}{
		{"without bodies", nil, nil},
		{"with bodies", big[:1000], big[:1000]},
		{"with large bodies", big[:30_000], big[:60_000]},
	} {
		t.Run(c.name, func(t *testing.T) {
			run := rally(t, running(t), c.up, c.down)
			run(100)
			const n = 1000
			if got := testing.AllocsPerRun(5, func() { run(n) }); got > 20 { // the garbage collector may empty a pool
				t.Errorf("%v allocations in %d requests", got, n)
			}
		})
	}
}

func BenchmarkExchange(b *testing.B) {
	for _, c := range []struct {
		name     string
		up, down []byte
	}{{"no-bodies", nil, nil}, {"1k", make([]byte, 1000), make([]byte, 1000)}} {
		b.Run(c.name, func(b *testing.B) {
			run := rally(b, running(b), c.up, c.down)
			b.ReportAllocs()
			run(b.N)
		})
	}
}

const benchHead = "GET /reviews/0?user=jason HTTP/1.1\r\nHost: reviews.default.svc.cluster.local:9080\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0\r\nAccept: */*\r\n" +
	"Accept-Encoding: gzip, deflate, br\r\nX-Request-Id: b5e8b1e1-5c1f-4f6a-9a9b-0d5a2e0f6c11\r\nX-Forwarded-Proto: http\r\n" +
	"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nCookie: session=eyJ1c2VyIjoiamFzb24ifQ==\r\n" +
	"Connection: keep-alive\r\n\r\n"

func BenchmarkParseRequest(b *testing.B) {
	var r message.Request
	b.SetBytes(int64(len(benchHead)))
	b.ReportAllocs()
	for b.Loop() {
		r.Reset()
		own := r.Header.Take(len(benchHead))
		copy(own, benchHead)
		var f framing
		if _, err := parseRequest(own, &r, 100, &f); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendRequest(b *testing.B) {
	var r message.Request
	own := []byte(benchHead)
	var f framing
	if _, err := parseRequest(own, &r, 100, &f); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, ok := appendRequest(buf, &r, true); !ok {
			b.Fatal("not ok")
		}
	}
}

func TestAnIdleConnectionIsSmall(t *testing.T) {
	const n = 500
	l := running(t)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var keep []any
	for range n {
		l.OnLoop(func() {
			p, q := memPair(l, nil, 1<<20, 1<<20, 1<<20)
			a := &pinger{left: 2, done: make(chan struct{}, 1)}
			a.req.Reset()
			a.req.Method, a.req.Authority, a.req.Path = "GET", "h", "/"
			a.req.Header.Add("x", strings.Repeat("y", 400))
			s := NewServer(q, ServerConfig{}, &ponger{resp: *response(200, "x", strings.Repeat("y", 200))}, a)
			a.c = NewClient(p, ClientConfig{}, a)
			a.begin()
			keep = append(keep, s, a.c)
		})
	}
	l.OnLoop(func() {})
	used := heap() - before
	t.Logf("a server and a client connection that have carried a request: %d bytes with their pipes", used/n)
	if used/n > 8<<10 {
		t.Errorf("%d bytes for each pair", used/n)
	}
	runtime.KeepAlive(keep)
}
