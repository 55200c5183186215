package http1

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// heard records the answer to a request.
type heard struct {
	log  strings.Builder
	err  error
	done chan struct{}
	deaf bool
	do   func(event string)
}

func newHeard() *heard { return &heard{done: make(chan struct{})} }

func (h *heard) event(s string) {
	if h.do != nil {
		h.do(s)
	}
}

func (h *heard) Interim(r *message.Response) { fmt.Fprintf(&h.log, "%d|", r.Status) }

func (h *heard) Head(r *message.Response, end bool) {
	fmt.Fprintf(&h.log, "%v %d %d", r.Proto, r.Status, r.ContentLength)
	for _, f := range r.Header.Fields() {
		fmt.Fprintf(&h.log, " %s=%s", f.Name, f.Value)
	}
	if r.Upgrade != "" {
		h.log.WriteString(" to " + r.Upgrade)
	}
	if end {
		h.log.WriteString(" end")
	}
	h.log.WriteString("|")
	h.event("head")
}

func (h *heard) Data(p []byte) int {
	if h.deaf {
		return 0
	}
	h.log.Write(p)
	h.event("data")
	return len(p)
}

func (h *heard) End(tr *message.Header) {
	h.log.WriteString("|end")
	if tr != nil {
		for _, f := range tr.Fields() {
			fmt.Fprintf(&h.log, " %s=%s", f.Name, f.Value)
		}
	}
	h.event("end")
	close(h.done)
}

func (h *heard) Failed(err error) {
	h.err = err
	h.log.WriteString("|failed")
	h.event("failed")
	close(h.done)
}

func (h *heard) Room() { h.event("room") }

// request is a request to h.
func request(method, path string, fields ...string) *message.Request {
	r := &message.Request{}
	r.Reset()
	r.Method, r.Authority, r.Path = method, "h", path
	for i := 0; i+1 < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	return r
}

// exchangeWith sends a request, lets the server answer with raw bytes, and returns what was heard. The server ends its
// direction afterwards if fin.
func exchangeWith(t *testing.T, l *loop.Loop, c *ClientConn, server net.Conn, r *message.Request, raw string, fin bool) *heard {
	t.Helper()
	h := newHeard()
	l.OnLoop(func() {
		if _, err := c.Open(r, true, h); err != nil {
			t.Errorf("open: %v", err)
			close(h.done)
		}
	})
	readHead(t, server)
	io.WriteString(server, raw)
	if fin {
		closeWrite(server)
	}
	<-h.done
	return h
}

func TestAnswersAreReadAsTheirHeadSays(t *testing.T) {
	ask1 := request("GET", "/")
	head := request("HEAD", "/")
	for _, c := range []struct {
		name, raw string
		req       *message.Request
		fin       bool
		want      string
		reuse     bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ask1, false, "HTTP/1.1 200 5 content-length=5|hello|end", true},
		{"length 0", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ask1, false, "HTTP/1.1 200 0 content-length=0 end||end", true},
		{"chunks and a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x\r\n!\r\n0\r\nX-Sum: 6\r\n\r\n", ask1, false,
			"HTTP/1.1 200 -1|hello!|end x-sum=6", true},
		{"to the end", "HTTP/1.1 200 OK\r\n\r\nhello", ask1, true, "HTTP/1.1 200 -1|hello|end", false},
		{"1.0 to the end", "HTTP/1.0 200 OK\r\n\r\nhello", ask1, true, "HTTP/1.0 200 -1|hello|end", false},
		{"1.0 with a length", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", ask1, false, "HTTP/1.0 200 5 content-length=5|hello|end", false},
		{"1.0 kept", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", ask1, false, "HTTP/1.0 200 5 content-length=5|hello|end", true},
		{"close", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", ask1, false, "HTTP/1.1 200 5 content-length=5|hello|end", false},
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", head, false, "HTTP/1.1 200 5 content-length=5 end||end", true},
		{"HEAD of chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", head, false, "HTTP/1.1 200 -1 end||end", true},
		{"204 with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", ask1, false, "HTTP/1.1 204 0 end||end", true},
		{"304 with a length", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", ask1, false, "HTTP/1.1 304 5 content-length=5 end||end", true},
		{"interim", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", ask1, false,
			"100|103|HTTP/1.1 204 0 end||end", true},
		{"no reason", "HTTP/1.1 204\r\n\r\n", ask1, false, "HTTP/1.1 204 0 end||end", true},
		{"fields of the connection", "HTTP/1.1 204 X\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX: y\r\n\r\n", ask1, false,
			"HTTP/1.1 204 0 x=y end||end", true},
		{"more than the answer", "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n", ask1, false, "HTTP/1.1 204 0 end||end", false},
		{"more than the body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!", ask1, false, "HTTP/1.1 200 5 content-length=5|hello|end", false},
	} {
		l := running(t)
		server, k, _ := ask(t, l, ClientConfig{})
		h := exchangeWith(t, l, k, server, c.req, c.raw, c.fin)
		l.OnLoop(func() {
			if got := h.log.String(); got != c.want || h.err != nil {
				t.Errorf("%s: heard %q, %v, want %q", c.name, got, h.err, c.want)
			}
			if got := k.Room() == 1; got != c.reuse {
				t.Errorf("%s: reusable: %v", c.name, got)
			}
		})
	}
}

func TestMalformedAnswersFailAndEndTheConnection(t *testing.T) { // B34
	for _, raw := range []string{
		"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "HTTP/2.0 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
		"HTTP/1.1 99 X\r\n\r\n", "HTTP/1.1 2000 X\r\n\r\n", "HTTP/1.1 600 X\r\n\r\n", "HTTP/1.1 2 0 X\r\n\r\n", "HTTP/1.1  200 OK\r\n\r\n", "http/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200OK\r\n\r\n\r\n", "HTTP/1.1 200 O\x00K\r\n\r\n", "HTTP/1.1 200 OK\r\nX : y\r\n\r\n", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", "\r\nHTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "SSH-2.0-OpenSSH_9.2p1\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 40),
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 200) + "\r\n",
	} {
		l := running(t)
		server, k, f := ask(t, l, ClientConfig{})
		h := exchangeWith(t, l, k, server, request("GET", "/"), raw, false)
		if !errors.Is(h.err, message.ErrMalformed) && !errors.Is(h.err, message.ErrTooLarge) {
			t.Errorf("%.80q: %v, %q", raw, h.err, h.log.String())
		}
		var e *message.StreamError
		if errors.As(h.err, &e) && e.Retryable {
			t.Errorf("%.80q: may be sent again", raw)
		}
		<-f.closed
	}
}

func TestOnlyAReusedConnectionThatSaidNothingMakesARequestRetryable(t *testing.T) {
	const ok = "HTTP/1.1 204 No Content\r\n\r\n"
	for _, c := range []struct {
		name  string
		first bool
		raw   string
		retry bool
	}{
		{"fresh, no answer", false, "", false},
		{"reused, no answer", true, "", true},
		{"reused, a byte", true, "H", false},
		{"reused, a head", true, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", false},
		{"reused, an interim answer", true, "HTTP/1.1 100 Continue\r\n\r\n", false},
	} {
		l := running(t)
		server, k, f := ask(t, l, ClientConfig{})
		if c.first {
			exchangeWith(t, l, k, server, request("GET", "/"), ok, false)
		}
		h := exchangeWith(t, l, k, server, request("GET", "/"), c.raw, true)
		var e *message.StreamError
		if !errors.As(h.err, &e) || !e.Remote || e.Retryable != c.retry || e.Reused != c.retry || !errors.Is(h.err, message.ErrGone) {
			t.Errorf("%s: %#v", c.name, h.err)
		}
		<-f.closed
	}
}

func TestAConnectionThatEndedWhileIdleIsNotUsedAgain(t *testing.T) {
	for _, raw := range []string{"", "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"} {
		l := running(t)
		server, k, f := ask(t, l, ClientConfig{})
		exchangeWith(t, l, k, server, request("GET", "/"), "HTTP/1.1 204 No Content\r\n\r\n", false)
		io.WriteString(server, raw)
		closeWrite(server)
		<-f.closed
		l.OnLoop(func() {
			_, err := k.Open(request("GET", "/"), true, newHeard())
			var e *message.StreamError
			if !errors.As(err, &e) || !e.Retryable || !errors.Is(err, message.ErrNoRoom) {
				t.Errorf("opened on a dead connection: %v", err)
			}
		})
	}
}

func TestAnEarlyAnswerGivesUpTheRestOfTheRequest(t *testing.T) {
	l := running(t)
	server, k, f := ask(t, l, ClientConfig{})
	h := newHeard()
	var s message.ClientStream
	l.OnLoop(func() {
		s, _ = k.Open(request("POST", "/"), false, h)
		s.SendData([]byte("hello"))
	})
	head := readHead(t, server)
	if !strings.Contains(head, "\r\ntransfer-encoding: chunked\r\n") {
		t.Errorf("head %q", head)
	}
	io.WriteString(server, "HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n")
	<-h.done
	if got := h.log.String(); got != "HTTP/1.1 413 0 content-length=0 end||end" {
		t.Errorf("heard %q", got)
	}
	l.OnLoop(func() {
		if n := s.SendData([]byte("more")); n != 4 || k.Room() != 0 {
			t.Errorf("took %d, room %d", n, k.Room())
		}
		s.SendEnd(nil)
	})
	<-f.closed
}

func TestAnAnswerIsHeardAlthoughTheServerReadsNoMore(t *testing.T) {
	l := running(t)
	up, _ := rawServer(t, func(c io.ReadWriteCloser) {
		readHead(t, c)
		io.WriteString(c, "HTTP/1.1 413 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		closeWrite(c)
		io.CopyN(io.Discard, c, 1<<20)
	})
	p := &proxy{t: t, l: l, addr: up}
	c, _, _ := dial(t, l, ServerConfig{}, p)
	go func() {
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n")
		b := make([]byte, 1<<20)
		for range 95 {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	if got := readHead(t, c); !strings.HasPrefix(got, "HTTP/1.1 413 ") {
		t.Errorf("got %q", got)
	}
}

func TestRequestsAreWrittenInOneForm(t *testing.T) {
	with := func(r *message.Request, f func(r *message.Request)) *message.Request { f(r); return r }
	for _, c := range []struct {
		name string
		req  *message.Request
		end  bool
		want string // "" = refused
	}{
		{"GET", request("GET", "/a?b", "x", "y"), true, "GET /a?b HTTP/1.1\r\nhost: h\r\nx: y\r\n\r\n"},
		{"empty POST", request("POST", "/"), true, "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"},
		{"known length", request("POST", "/", "content-length", "5"), false, "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\n"},
		{"unknown length", request("POST", "/"), false, "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"},
		{"expect", with(request("PUT", "/"), func(r *message.Request) { r.Expect100 = true }), false,
			"PUT / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"},
		{"expect nothing", with(request("PUT", "/"), func(r *message.Request) { r.Expect100 = true }), true, "PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"},
		{"te", request("GET", "/", "te", "trailers"), true, "GET / HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: te\r\n\r\n"},
		{"upgrade", with(request("GET", "/"), func(r *message.Request) { r.Upgrade = "websocket" }), false,
			"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"},
		{"CONNECT", request("CONNECT", ""), false, "CONNECT h HTTP/1.1\r\nhost: h\r\n\r\n"},
		{"asterisk", request("OPTIONS", "*"), true, "OPTIONS * HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"},
		{"fields of the connection", request("GET", "/", "connection", "x", "transfer-encoding", "gzip", "keep-alive", "1", "host", "evil", "expect", "x"), true,
			"GET / HTTP/1.1\r\nhost: h\r\n\r\n"},
		{"injection in a value", request("GET", "/", "x", "y\r\nz: w"), true, "GET / HTTP/1.1\r\nhost: h\r\n\r\n"},
		{"injection in the path", request("GET", "/ HTTP/1.1\r\nx: y"), true, ""},
		{"injection in the method", request("GET / HTTP/1.1\r\n", "/"), true, ""},
		{"injection in the authority", with(request("GET", "/"), func(r *message.Request) { r.Authority = "h\r\nx: y" }), true, ""},
		{"injection in the upgrade", with(request("GET", "/"), func(r *message.Request) { r.Upgrade = "a\r\nx: y" }), true, ""},
		{"path without slash", request("GET", "a"), true, ""},
		{"lengths that differ", request("POST", "/", "content-length", "5", "content-length", "6"), false, ""},
		{"no length", request("POST", "/", "content-length", "x"), false, ""},
	} {
		l := running(t)
		server, k, _ := ask(t, l, ClientConfig{})
		l.OnLoop(func() {
			_, err := k.Open(c.req, c.end, newHeard())
			if (err == nil) != (c.want != "") {
				t.Errorf("%s: %v", c.name, err)
			}
			if err != nil && k.Room() != 1 {
				t.Errorf("%s: no room after a refusal", c.name)
			}
		})
		if c.want != "" {
			if got := readHead(t, server); got != c.want {
				t.Errorf("%s: got %q, want %q", c.name, got, c.want)
			}
		}
	}
}

func TestDrainedClientsEndBehindTheirRequest(t *testing.T) {
	l := running(t)
	_, k, f := ask(t, l, ClientConfig{})
	l.OnLoop(func() { k.Drain(); k.Drain() })
	if err := <-f.closed; err != message.ErrDrained {
		t.Errorf("idle: closed with %v", err)
	}
	server, k, f := ask(t, l, ClientConfig{})
	h := newHeard()
	l.OnLoop(func() {
		k.Open(request("GET", "/"), true, h)
		k.Drain()
		if k.Room() != 0 {
			t.Error("room while draining")
		}
	})
	readHead(t, server)
	io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
	<-h.done
	if h.err != nil {
		t.Errorf("failed with %v", h.err)
	}
	server.Close()
	if err := <-f.closed; err != message.ErrDrained {
		t.Errorf("closed with %v", err)
	}
}

func TestIdleClientsEnd(t *testing.T) {
	l := running(t)
	server, k, f := ask(t, l, ClientConfig{IdleTimeout: 20 * time.Millisecond})
	exchangeWith(t, l, k, server, request("GET", "/"), "HTTP/1.1 204 No Content\r\n\r\n", false)
	if got := drainAll(t, server); got != "" {
		t.Errorf("got %q", got)
	}
	server.Close()
	if err := <-f.closed; err != nil {
		t.Errorf("closed with %v", err)
	}
}

func TestTheRoomOfAClientIsAnnouncedAndUsableAtOnce(t *testing.T) {
	l := running(t)
	server, k, f := ask(t, l, ClientConfig{})
	next := newHeard()
	f.changed = func() {
		if k.Room() == 1 {
			k.Open(request("GET", "/2"), true, next)
			f.changed = nil
		}
	}
	exchangeWith(t, l, k, server, request("GET", "/1"), "HTTP/1.1 204 No Content\r\n\r\n", false)
	if got := readHead(t, server); !strings.HasPrefix(got, "GET /2 ") {
		t.Errorf("got %q", got)
	}
	io.WriteString(server, "HTTP/1.1 204 No Content\r\n\r\n")
	<-next.done
}

func TestBytesForATunnelWaitForTheAnswer(t *testing.T) {
	for _, c := range []struct{ name, raw, want string }{
		{"agreed", "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: Echo\r\n\r\nhi", "HTTP/1.1 101 -1 to echo|hi|end"},
		{"refused", "HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 404 0 content-length=0 end||end"},
	} {
		l := running(t)
		server, k, _ := ask(t, l, ClientConfig{})
		h := newHeard()
		var s message.ClientStream
		rooms := 0
		l.OnLoop(func() {
			r := request("GET", "/")
			r.Upgrade = "echo"
			s, _ = k.Open(r, false, h)
			r.Upgrade = "xxxx" // not kept
			if n := s.SendData([]byte("early")); n != 0 {
				t.Errorf("%s: took %d", c.name, n)
			}
			h.do = func(e string) {
				if e == "room" {
					rooms++
					s.SendData([]byte("early"))
					s.SendEnd(nil)
				}
			}
		})
		readHead(t, server)
		io.WriteString(server, c.raw)
		if c.name == "agreed" {
			if got := drainAll(t, server); got != "early" {
				t.Errorf("%s: server got %q", c.name, got)
			}
			server.Close()
		}
		<-h.done
		l.OnLoop(func() {
			if got := h.log.String(); got != c.want {
				t.Errorf("%s: heard %q, want %q", c.name, got, c.want)
			}
		})
	}
}

func TestOpenNoticesWhatTheIdleConnectionHasNotSaidYet(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(p *memPipe)
		want error
	}{
		{"an answer that nobody asked for", func(p *memPipe) { p.in = []byte("HTTP/1.1 200 OK\r\n\r\n") }, message.ErrMalformed},
		{"the end", func(p *memPipe) { p.eof = true }, nil},
		{"a reset", func(p *memPipe) { p.err = io.ErrUnexpectedEOF }, message.ErrGone},
	} {
		l := running(t)
		p, q := memPair(l, rand.New(rand.NewPCG(0, 0)), 1<<20, 1<<20, 1<<20)
		f, h := newFate(), newHeard()
		var k *ClientConn
		l.OnLoop(func() {
			k = NewClient(p, ClientConfig{}, f)
			k.Open(request("GET", "/"), true, h)
			q.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
		})
		<-h.done
		l.OnLoop(func() {
			c.do(p)
			if k.Room() != 0 {
				t.Errorf("%s: there is room", c.name)
			}
			_, err := k.Open(request("GET", "/"), true, newHeard())
			var e *message.StreamError
			if !errors.As(err, &e) || !e.Retryable {
				t.Errorf("%s: opened: %v", c.name, err)
			}
		})
		if err := <-f.closed; !errors.Is(err, c.want) {
			t.Errorf("%s: closed with %v", c.name, err)
		}
	}
}

func TestASilentWriteFailureFailsTheRequestAfterAWhile(t *testing.T) {
	l := running(t)
	p, _ := memPair(l, rand.New(rand.NewPCG(0, 0)), 1<<20, 1<<20, 1<<20)
	f, h := newFate(), newHeard()
	l.OnLoop(func() {
		k := NewClient(&mute{p}, ClientConfig{}, f)
		k.Open(request("GET", "/"), true, h)
	})
	<-h.done
	var e *message.StreamError
	if !errors.As(h.err, &e) || e.Retryable || !errors.Is(h.err, message.ErrGone) {
		t.Errorf("failed with %v", h.err)
	}
	<-f.closed
}

// mute is a pipe that cannot be written, and does not say so when it is read.
type mute struct{ *memPipe }

func (m *mute) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
