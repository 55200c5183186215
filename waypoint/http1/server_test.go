package http1

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// converse sends in on a new connection to h and returns everything that comes back until the connection ends.
func converse(t *testing.T, h func(*ServerConn) message.ServerHandler, in string) string {
	t.Helper()
	c, _, _ := dial(t, running(t), ServerConfig{}, h(nil))
	go io.WriteString(c, in)
	return drainAll(t, c)
}

// script answers each request at its head by what do does with the stream; nobody takes the body.
func script(do func(s message.ServerStream)) func(*ServerConn) message.ServerHandler {
	return func(*ServerConn) message.ServerHandler { return serveFunc(do) }
}

func response(status int, fields ...string) *message.Response {
	r := &message.Response{}
	r.Reset()
	r.Status = status
	for i := 0; i+1 < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	return r
}

const bye = "GET /bye HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"

func TestConnectionsAreKeptAsTheVersionAndConnectionSay(t *testing.T) {
	ok := script(func(s message.ServerStream) { s.SendHead(response(204), true) })
	for _, c := range []struct{ name, in, want string }{
		{"1.1 until the client says close", "GET / HTTP/1.1\r\nHost: h\r\n\r\n" + bye,
			"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"},
		{"1.0 not at all", "GET / HTTP/1.0\r\n\r\n" + bye, "HTTP/1.0 204 No Content\r\nconnection: close\r\n\r\n"},
		{"1.0 if the client asks", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n" + bye,
			"HTTP/1.0 204 No Content\r\nconnection: keep-alive\r\n\r\nHTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"},
		{"close among other words", "GET / HTTP/1.1\r\nHost: h\r\nConnection: x, CLOSE\r\n\r\n" + bye, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"},
	} {
		if got := converse(t, ok, c.in); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestAnswersAreDelimitedAsTheClientUnderstands(t *testing.T) {
	send := func(r *message.Response, body string, end bool) func(*ServerConn) message.ServerHandler {
		return script(func(s message.ServerStream) {
			s.SendHead(r, end)
			if !end {
				s.SendData([]byte(body))
				tr := &message.Header{}
				tr.Add("x-sum", "1")
				tr.Add("content-length", "7")
				s.SendEnd(tr)
			}
		})
	}
	get := func(method, version string) string {
		return method + " / HTTP/" + version + "\r\nHost: h\r\nConnection: close\r\n\r\n"
	}
	for _, c := range []struct {
		name string
		h    func(*ServerConn) message.ServerHandler
		in   string
		want string
	}{
		{"unknown length in chunks, with a trailer", send(response(200), "hello", false), get("GET", "1.1"),
			"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"},
		{"known length", send(response(200, "content-length", "5"), "hello", false), get("GET", "1.1"),
			"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"},
		{"unknown length to 1.0 by the end", send(response(200), "hello", false), get("GET", "1.0"), "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nhello"},
		{"no body", send(response(200), "", true), get("GET", "1.1"), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"},
		{"HEAD with a length", send(response(200, "content-length", "5"), "", true), get("HEAD", "1.1"),
			"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n"},
		{"HEAD and a body nobody wants", send(response(200), "hello", false), get("HEAD", "1.1"),
			"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"},
		{"204 has none", send(response(204, "content-length", "5"), "hello", false), get("GET", "1.1"), "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"},
		{"304 says the length only", send(response(304, "content-length", "5"), "hello", false), get("GET", "1.1"),
			"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\nconnection: close\r\n\r\n"},
		{"fields of the connection stay here", send(response(200, "keep-alive", "5", "upgrade", "x", "transfer-encoding", "gzip", "x", "y"), "", true), get("GET", "1.1"),
			"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"},
		{"what is no field stays here", send(response(200, "a b", "x", "x", "a\r\nSet-Cookie: evil", "y", "a\nb", "Z", "z", "", "q", "u", "v"), "", true), get("GET", "1.1"),
			"HTTP/1.1 200 OK\r\nu: v\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"},
		{"unknown status", send(response(299), "", true), get("GET", "1.1"), "HTTP/1.1 299 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"},
	} {
		if got := converse(t, c.h, c.in); got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

func TestAnAnswerThatBreaksItsLengthEndsInAReset(t *testing.T) {
	for _, body := range []string{"hell", "hello!"} {
		c, _, f := dial(t, running(t), ServerConfig{}, script(func(s message.ServerStream) {
			s.SendHead(response(200, "content-length", "5"), false)
			s.SendData([]byte(body))
			s.SendEnd(nil)
		})(nil))
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if _, err := io.ReadAll(c); err == nil {
			t.Errorf("body %q: the connection ended in good order", body)
		}
		if err := <-f.closed; !errors.Is(err, errBodyLength) {
			t.Errorf("body %q: closed with %v", body, err)
		}
	}
}

func TestContinueIsSentWhenTheBodyIsWantedAndOnlyThen(t *testing.T) {
	const ask = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n"
	c, _, _ := dial(t, running(t), ServerConfig{}, echo(nil))
	io.WriteString(c, ask)
	if got := readHead(t, c); got != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Fatalf("got %q", got)
	}
	io.WriteString(c, "hello"+bye)
	if got := drainAll(t, c); !strings.Contains(got, "\r\n\r\n5\r\nhello\r\n0\r\n\r\n") || strings.Contains(got, " 100 ") {
		t.Errorf("got %q", got)
	}
	refused := script(func(s message.ServerStream) { s.SendHead(response(403), true) })
	if got := converse(t, refused, ask+bye); got != "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" {
		t.Errorf("refused: got %q", got)
	}
	if got := converse(t, echo, ask+"hello"+bye); strings.Contains(got, " 100 ") || !strings.Contains(got, "hello") {
		t.Errorf("body sent without waiting: got %q", got)
	}
}

func TestInterimAnswersGoToClientsThatKnowThem(t *testing.T) {
	h := script(func(s message.ServerStream) {
		s.SendInterim(response(103, "link", "</a>"))
		s.SendInterim(response(101))
		s.SendHead(response(200), true)
		s.SendInterim(response(103))
	})
	if got, want := converse(t, h, bye), "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := converse(t, h, "GET / HTTP/1.0\r\n\r\n"), "HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestARequestAnsweredEarlyIsReadToItsEndWithinBounds(t *testing.T) {
	early := script(func(s message.ServerStream) { s.SendHead(response(403), true) })
	const no = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
	last := strings.Replace(no, "\r\n\r\n", "\r\nconnection: close\r\n\r\n", 1)
	small := strings.Repeat("x", 100_000)
	if got := converse(t, early, post(small, "Content-Length: 100000")+bye); got != no+last {
		t.Errorf("small body: got %q", got)
	}
	large := strings.Repeat("x", 1<<20)
	if got := converse(t, early, post(large, "Content-Length: 1048576")+bye); got != no {
		t.Errorf("large body: got %q", got)
	}
	if got := converse(t, early, chunks("5\r\nhelloXX")+bye); got != no {
		t.Errorf("malformed body: got %q", got)
	}
}

func TestWhatFollowsARefusedChangeOfProtocolIsNotReadAsARequest(t *testing.T) { // B13
	var served atomic.Int32
	h := script(func(s message.ServerStream) { served.Add(1); s.SendHead(response(404), true) })
	for _, head := range []string{
		"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		served.Store(0)
		got := converse(t, h, head+inner)
		if got != "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" || served.Load() != 1 {
			t.Errorf("%q: %d served, got %q", head, served.Load(), got)
		}
	}
	h = script(func(s message.ServerStream) { s.SendHead(response(101), true) }) // nobody asked for it
	c, _, f := dial(t, running(t), ServerConfig{}, h(nil))
	io.WriteString(c, inner)
	if got, err := io.ReadAll(c); len(got) > 0 || err == nil {
		t.Errorf("101 that was not asked for: %q, %v", got, err)
	}
	<-f.closed
}

func TestAClientThatGoesAwayFailsItsRequest(t *testing.T) {
	for _, in := range []string{"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"} {
		x := &waiter{failed: make(chan error, 1), data: make(chan struct{}, 10)}
		c, _, f := dial(t, running(t), ServerConfig{}, x)
		io.WriteString(c, in)
		<-x.data
		c.Close()
		if err := <-x.failed; !errors.Is(err, message.ErrGone) {
			t.Errorf("failed with %v", err)
		}
		if err := <-f.closed; !errors.Is(err, message.ErrGone) {
			t.Errorf("closed with %v", err)
		}
	}
}

// waiter takes a request and does not answer.
type waiter struct {
	s      message.ServerStream
	failed chan error
	data   chan struct{} // something came, or the end
	deaf   bool          // takes no data
	late   bool          // takes the body when told
}

func (x *waiter) ServeRequest(s message.ServerStream) {
	x.s = s
	if !x.late {
		s.SetTaker(x)
	} else {
		x.tell()
	}
}

// tell does not wait: it is the loop that says so, and who waits for the loop does not listen meanwhile.
func (x *waiter) tell() {
	select {
	case x.data <- struct{}{}:
	default: // enough is said already
	}
}

func (x *waiter) Data(p []byte) int {
	x.tell()
	if x.deaf {
		return 0
	}
	return len(p)
}
func (x *waiter) End(*message.Header) { x.tell() }
func (x *waiter) Failed(err error)    { x.failed <- err }
func (x *waiter) Room()               {}

func TestATakerThatComesLateHearsOfTheFailure(t *testing.T) {
	l := running(t)
	x := &waiter{failed: make(chan error, 1), data: make(chan struct{}, 10), late: true}
	c, _, f := dial(t, l, ServerConfig{}, x)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-x.data
	c.Close()
	<-f.closed
	l.Inject(func() { x.s.SetTaker(x) })
	if err := <-x.failed; !errors.Is(err, message.ErrGone) {
		t.Errorf("failed with %v", err)
	}
}

func TestWhatIsNotTakenIsBoundedAndOfferedAgain(t *testing.T) {
	l := running(t)
	x := &waiter{failed: make(chan error, 1), data: make(chan struct{}, 100), deaf: true}
	c, s, _ := dial(t, l, ServerConfig{}, x)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n")
	go func() {
		b := make([]byte, 1<<20)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	<-x.data
	l.OnLoop(func() {
		if n := s.restLen(); n > readSize {
			t.Errorf("%d bytes are kept", n)
		}
		x.deaf = false
		x.s.Resume()
	})
	<-x.data
	l.OnLoop(func() { s.Close(nil) })
	if err := <-x.failed; err != nil {
		t.Errorf("failed with %v", err)
	}
}

func TestASlowHeadIsAnswered408(t *testing.T) { // B7
	l := running(t)
	c, _, f := dial(t, l, ServerConfig{HeadTimeout: 20 * time.Millisecond}, echo(nil))
	io.WriteString(c, "GET / HT")
	if got, want := drainAll(t, c), "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.Close()
	if err := <-f.closed; !errors.Is(err, message.ErrTimeout) {
		t.Errorf("closed with %v", err)
	}
}

func TestAByteNowAndThenDoesNotExtendAHeadsTime(t *testing.T) { // B7
	l := running(t)
	c, s, f := dial(t, l, ServerConfig{HeadTimeout: time.Minute}, echo(nil))
	io.WriteString(c, "G")
	var first time.Duration
	for first == 0 {
		l.OnLoop(func() { first = s.headFrom })
	}
	io.WriteString(c, "ET ")
	for n := 0; n < 4; {
		l.OnLoop(func() { n = s.restLen() })
	}
	l.OnLoop(func() {
		if s.headFrom != first || s.deadline() != first+time.Minute {
			t.Errorf("head from %v, then %v; deadline %v", first, s.headFrom, s.deadline())
		}
		s.Close(nil)
	})
	<-f.closed
}

func TestIdleAndStalledConnectionsEnd(t *testing.T) { // B7
	l := running(t)
	cfg := ServerConfig{IdleTimeout: 20 * time.Millisecond, StallTimeout: 20 * time.Millisecond}
	c, _, f := dial(t, l, cfg, echo(nil))
	if got := drainAll(t, c); got != "" {
		t.Errorf("idle: got %q", got)
	}
	c.Close()
	if err := <-f.closed; err != nil {
		t.Errorf("idle: closed with %v", err)
	}
	cfg.IdleTimeout = -1
	x := &waiter{failed: make(chan error, 1), data: make(chan struct{}, 10)}
	c, _, f = dial(t, l, cfg, x)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel")
	if err := <-x.failed; !errors.Is(err, message.ErrTimeout) {
		t.Errorf("stalled body: %v", err)
	}
	<-f.closed
	x = &waiter{failed: make(chan error, 1), data: make(chan struct{}, 10)}
	c, _, f = dial(t, l, cfg, &flood{waiter: x})
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if err := <-x.failed; !errors.Is(err, message.ErrTimeout) {
		t.Errorf("reader that does not read: %v", err)
	}
	<-f.closed
}

// flood answers with more than anybody buffers.
type flood struct{ *waiter }

func (x *flood) ServeRequest(s message.ServerStream) {
	x.s = s
	s.SetTaker(x)
	s.SendHead(response(200), false)
	x.Room()
}

func (x *flood) Room() {
	b := make([]byte, 1<<20)
	for x.s.SendData(b) == len(b) {
	}
}

func TestDrainLetsRequestsEndAndSaysClose(t *testing.T) {
	l := running(t)
	// in the middle of a request
	c, s, f := dial(t, l, ServerConfig{}, echo(nil))
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel")
	for busy := false; !busy; {
		l.OnLoop(func() { busy = s.s.open })
	}
	l.OnLoop(s.Drain)
	io.WriteString(c, "lo"+inner)
	got := drainAll(t, c)
	if strings.Count(got, "HTTP/1.1 ") != 1 || !strings.Contains(got, "connection: close\r\n") || !strings.Contains(got, "hello") {
		t.Errorf("got %q", got)
	}
	c.Close()
	if err := <-f.closed; err != message.ErrDrained {
		t.Errorf("closed with %v", err)
	}
	// idle, and a request was under way
	c, s, f = dial(t, l, ServerConfig{DrainIdle: time.Hour}, echo(nil))
	l.OnLoop(s.Drain)
	io.WriteString(c, inner)
	if got := drainAll(t, c); !strings.Contains(got, "connection: close\r\n") {
		t.Errorf("got %q", got)
	}
	c.Close()
	<-f.closed
	// idle
	for _, d := range []time.Duration{-1, time.Millisecond} {
		c, s, f = dial(t, l, ServerConfig{DrainIdle: d}, echo(nil))
		l.OnLoop(s.Drain)
		if got := drainAll(t, c); got != "" {
			t.Errorf("got %q", got)
		}
		c.Close()
		if err := <-f.closed; err != message.ErrDrained {
			t.Errorf("closed with %v", err)
		}
	}
}

func TestMethodsDoNotCallBack(t *testing.T) {
	l := running(t)
	inside := false
	check := func(what string) {
		if inside {
			t.Errorf("%s was called from inside a method", what)
		}
	}
	outer, inner := tcpPair(t)
	fd := steal(t, inner)
	done := make(chan struct{})
	f := &loud{check: check, closed: done}
	l.OnLoop(func() {
		inside = true
		NewServer(pipe(t, l, fd), ServerConfig{}, serveFunc(func(s message.ServerStream) {
			check("ServeRequest")
			inside = true
			k := &loudTaker{check: check}
			s.SetTaker(k)
			s.Resume()
			s.SendHead(response(200), false)
			s.SendData(make([]byte, 10<<20))
			s.Reset(nil)
			s.SendEnd(nil)
			inside = false
		}), f)
		inside = false
	})
	io.WriteString(outer, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
	<-done
}

type loud struct {
	check  func(string)
	closed chan struct{}
}

func (f *loud) Closed(error) { f.check("Closed"); close(f.closed) }
func (f *loud) Changed()     { f.check("Changed") }

type loudTaker struct{ check func(string) }

func (k *loudTaker) Data(p []byte) int   { k.check("Data"); return len(p) }
func (k *loudTaker) End(*message.Header) { k.check("End") }
func (k *loudTaker) Failed(error)        { k.check("Failed") }
func (k *loudTaker) Room()               { k.check("Room") }

func TestAPanicCostsOneConnection(t *testing.T) {
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	runLoop(t, l)
	c, _, f := dial(t, l, ServerConfig{}, serveFunc(func(message.ServerStream) { panic("test") }))
	io.WriteString(c, inner)
	io.ReadAll(c)
	if err := <-f.closed; !errors.Is(err, loop.ErrPanic) {
		t.Errorf("closed with %v", err)
	}
}
