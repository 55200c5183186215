package http1

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// running is a loop that runs until the test ends.
func running(t testing.TB) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Config{Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := l.Stats().Panics; n > 0 {
			t.Errorf("%d panics on the loop", n)
		}
	})
	runLoop(t, l)
	return l
}

func runLoop(t testing.TB, l *loop.Loop) {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
}

// tcpPair is a connected pair over loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan net.Conn, 1)
	go func() { c, _ := ln.Accept(); got <- c }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, b = c.(*net.TCPConn), (<-got).(*net.TCPConn)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// steal turns a connection into a bare descriptor.
func steal(t testing.TB, c *net.TCPConn) int {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	rc.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	return fd
}

// pipe makes a pipe of a connection; on the loop.
func pipe(t testing.TB, l *loop.Loop, fd int) loop.Pipe {
	f, err := l.Add(fd, nil)
	if err != nil {
		t.Error(err)
	}
	return loop.NewPipe(f)
}

// fate records what becomes of a connection.
type fate struct {
	closed  chan error
	changed func()
}

func newFate() *fate { return &fate{closed: make(chan error, 1)} }

func (f *fate) Closed(err error) { f.closed <- err }

func (f *fate) Changed() {
	if f.changed != nil {
		f.changed()
	}
}

// serveFunc is a ServerHandler.
type serveFunc func(s message.ServerStream)

func (f serveFunc) ServeRequest(s message.ServerStream) { f(s) }

// dial serves one connection and returns its outer end.
func dial(t testing.TB, l *loop.Loop, cfg ServerConfig, h message.ServerHandler) (*net.TCPConn, *ServerConn, *fate) {
	t.Helper()
	outer, inner := tcpPair(t)
	fd := steal(t, inner)
	f := newFate()
	var s *ServerConn
	l.OnLoop(func() { s = NewServer(pipe(t, l, fd), cfg, h, f) })
	return outer, s, f
}

// listen serves every connection to the address that it returns.
func listen(t testing.TB, l *loop.Loop, cfg ServerConfig, handler func(*ServerConn) message.ServerHandler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fd := steal(t, c.(*net.TCPConn))
			l.Inject(func() {
				h := &later{}
				h.ServerHandler = handler(NewServer(pipe(t, l, fd), cfg, h, newFate()))
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// later is a handler that is known after the connection.
type later struct{ message.ServerHandler }

// ask makes requests on one client connection.
func ask(t testing.TB, l *loop.Loop, cfg ClientConfig) (*net.TCPConn, *ClientConn, *fate) {
	t.Helper()
	outer, inner := tcpPair(t)
	fd := steal(t, inner)
	f := newFate()
	var c *ClientConn
	l.OnLoop(func() { c = NewClient(pipe(t, l, fd), cfg, f) })
	return outer, c, f
}

// simple answers every request with what it has received.
type simple struct {
	s    message.ServerStream
	got  []byte
	end  bool
	err  error
	body []byte
	sent int
	resp message.Response
}

func (x *simple) Data(p []byte) int { x.got = append(x.got, p...); return len(p) }
func (x *simple) Failed(err error)  { x.err = err }
func (x *simple) Room()             { x.push() }
func (x *simple) End(tr *message.Header) {
	x.end = true
	r := &x.resp
	r.Reset()
	r.Status = 200
	q := x.s.Request()
	r.Header.Add("x-seen", q.Method+" "+q.Authority+" "+q.Path)
	if tr != nil {
		r.Header.Add("x-trailer", tr.Get("x-sum"))
	}
	x.body = x.got
	x.s.SendHead(r, len(x.body) == 0)
	x.push()
}

func (x *simple) push() {
	if len(x.body) == 0 {
		return
	}
	x.sent += x.s.SendData(x.body[x.sent:])
	if x.sent == len(x.body) {
		x.s.SendEnd(nil)
	}
}

// echo is the handler of simple.
func echo(*ServerConn) message.ServerHandler {
	return serveFunc(func(s message.ServerStream) { s.SetTaker(&simple{s: s}) })
}

// proxy forwards a client's requests to one upstream address, streaming both ways.
type proxy struct {
	t    testing.TB
	l    *loop.Loop
	addr string
	up   *ClientConn
	cfg  ClientConfig
}

func (p *proxy) handler(*ServerConn) message.ServerHandler {
	q := *p
	return &q
}

func (p *proxy) ServeRequest(s message.ServerStream) {
	if p.up == nil || p.up.Room() == 0 {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			s.SendHead(&message.Response{Status: 502}, true)
			return
		}
		p.up = NewClient(pipe(p.t, p.l, steal(p.t, c.(*net.TCPConn))), p.cfg, newFate())
	}
	forward(s, p.up)
}

// forward sends a request on.
func forward(s message.ServerStream, to *ClientConn) {
	r := s.Request()
	x := &relayed{down: s}
	end := r.ContentLength == 0 && r.Upgrade == "" && r.Method != "CONNECT"
	up, err := to.Open(r, end, &answer{x})
	if err != nil {
		s.SendHead(&message.Response{Status: 503}, true)
		return
	}
	x.up = up
	s.SetTaker(x)
}

// relayed takes the client's side of a proxied request, answer the server's.
type relayed struct {
	down   message.ServerStream
	up     message.ClientStream
	headed bool
}

func (x *relayed) Data(p []byte) int          { return x.up.SendData(p) }
func (x *relayed) End(tr *message.Header)     { x.up.SendEnd(tr) }
func (x *relayed) Failed(err error)           { x.up.Reset(err) }
func (x *relayed) Room()                      { x.up.Resume() }
func (a *answer) Data(p []byte) int           { return a.x.down.SendData(p) }
func (a *answer) End(tr *message.Header)      { a.x.down.SendEnd(tr) }
func (a *answer) Room()                       { a.x.down.Resume() }
func (a *answer) Interim(r *message.Response) { a.x.down.SendInterim(r) }

type answer struct{ x *relayed }

func (a *answer) Head(r *message.Response, end bool) {
	a.x.headed = true
	a.x.down.SendHead(r, end)
}

func (a *answer) Failed(err error) {
	if a.x.headed {
		a.x.down.Reset(err)
		return
	}
	a.x.down.SendHead(&message.Response{Status: 502}, true)
}

// drainAll reads to the end.
func drainAll(t testing.TB, c io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("reading: %v", err)
	}
	return string(b)
}

// rawServer accepts one connection after the other and hands each to do, closing it afterwards.
func rawServer(t testing.TB, do func(c io.ReadWriteCloser)) (addr string, done chan struct{}) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done = make(chan struct{}, 100)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				do(c)
				c.Close()
				done <- struct{}{}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String(), done
}

func closeWrite(c io.Closer) { c.(interface{ CloseWrite() error }).CloseWrite() }

// readHead reads up to an empty line, byte by byte.
func readHead(t testing.TB, c io.Reader) string {
	t.Helper()
	var b []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(b, []byte("\r\n\r\n")) {
		if _, err := io.ReadFull(c, one); err != nil {
			t.Errorf("reading a head: %v after %q", err, b)
			return string(b)
		}
		b = append(b, one[0])
	}
	return string(b)
}

// post is a POST with the lines in its head, and a body.
func post(body string, lines ...string) string {
	return "POST / HTTP/1.1\r\nHost: h\r\n" + strings.Join(append(lines, "", ""), "\r\n") + body
}

// chunks is a chunked POST.
func chunks(body string) string { return post(body, "Transfer-Encoding: chunked") }

// inner is a request where none belongs.
const inner = "GET /inner HTTP/1.1\r\nHost: h\r\n\r\n"
