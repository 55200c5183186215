package http2

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// echo is a server that sends back the body that it is sent, with a trailer, or as many bytes as the path says.
type echo struct{ closed chan error }

func (e *echo) Closed(err error) {
	if e.closed != nil {
		e.closed <- err
	}
}
func (e *echo) Changed() {}

func (e *echo) ServeRequest(s message.ServerStream) {
	r := s.Request()
	p := &message.Response{Status: 200}
	p.Header.Add("x-method", r.Method)
	p.Header.Add("x-path", p.Header.Hold(r.Path))
	s.SendHead(p, r.Method == "HEAD")
	if r.Method == "HEAD" {
		return
	}
	x := &echoStream{s: s}
	if n, ok := strings.CutPrefix(r.Path, "/bytes/"); ok {
		x.zeros, _ = strconv.Atoi(n)
		x.fixed = true
	}
	s.SetTaker(x)
	if x.fixed {
		x.Room()
	}
}

type echoStream struct {
	s     message.ServerStream
	zeros int
	fixed bool
	owed  bool
}

var zeros = make([]byte, 64<<10)

func (x *echoStream) Data(p []byte) int {
	if x.fixed {
		return len(p)
	}
	n := x.s.SendData(p)
	x.owed = n < len(p)
	return n
}

func (x *echoStream) End(h *message.Header) {
	if x.fixed {
		return
	}
	t := &message.Header{}
	t.Add("x-trailer", "yes")
	if h != nil {
		t.Add("x-echo", strings.Clone(h.Get("x-sent")))
	}
	x.s.SendEnd(t)
}

func (x *echoStream) Failed(error) {}

func (x *echoStream) Room() {
	if !x.fixed {
		x.s.Resume()
		return
	}
	for x.zeros > 0 {
		p := zeros[:min(len(zeros), x.zeros)]
		n := x.s.SendData(p)
		x.zeros -= n
		if n < len(p) {
			return
		}
	}
	x.s.SendEnd(nil)
}

// listen serves HTTP/2 on a loop, until the test ends.
func listen(t testing.TB, l *loop.Loop, cfg ServerConfig, h message.ServerHandler, n message.ConnHandler) string {
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
			fd := steal(t, c)
			l.Inject(func() {
				f, err := l.Add(fd, nil)
				if err != nil {
					t.Error(err)
					return
				}
				NewServer(loop.NewPipe(f), cfg, h, n)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// steal takes the descriptor out of a connection.
func steal(t testing.TB, c net.Conn) int {
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return fd
}

// goClient is net/http's HTTP/2, which is x/net's.
func goClient() *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: &p}}
}

func TestGosClientIsServed(t *testing.T) {
	l := running(t)
	addr := listen(t, l, ServerConfig{}, &echo{}, &echo{})
	c := goClient()
	defer c.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for _, size := range []int{0, 1, 1000, 100_000, 3_000_000} {
				body := bytes.Repeat([]byte{byte(i), byte(size), 7}, size/3+1)[:size]
				req, _ := http.NewRequest("POST", fmt.Sprintf("http://%s/a/%d?b", addr, i), io.MultiReader(bytes.NewReader(body)))
				req.Trailer = http.Header{"X-Sent": {"t"}}
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, body) || resp.Header.Get("x-path") != fmt.Sprintf("/a/%d?b", i) ||
					resp.Trailer.Get("x-trailer") != "yes" || resp.Trailer.Get("x-echo") != "t" {
					t.Errorf("%d of %d bytes, %v, %v, trailer %v", len(got), size, err, resp.Header, resp.Trailer)
				}
			}
		})
	}
	wg.Wait()
}

func TestCurlIsServed(t *testing.T) {
	bin, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("there is no curl")
	}
	if out, _ := exec.Command(bin, "--version").Output(); !bytes.Contains(out, []byte("HTTP2")) {
		t.Skip("curl does not speak HTTP/2")
	}
	l := running(t)
	addr := listen(t, l, ServerConfig{}, &echo{}, &echo{})
	body := strings.Repeat("0123456789", 50_000)
	cmd := exec.Command(bin, "--http2-prior-knowledge", "-sS", "-D", "-", "--data-binary", "@-", "http://"+addr+"/curl")
	cmd.Stdin = strings.NewReader(body)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out[:min(len(out), 1000)])
	}
	head, got, _ := strings.Cut(string(out), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/2 200") || !strings.Contains(head, "x-method: POST") || !strings.HasPrefix(got, body) {
		t.Errorf("got %d bytes, head %q", len(got), head)
	}
	out, err = exec.Command(bin, "--http2-prior-knowledge", "-sS", "http://"+addr+"/bytes/5000000").Output()
	if err != nil || len(out) != 5_000_000 {
		t.Errorf("got %d bytes, %v", len(out), err)
	}
}

// page is a server that answers each request with a few bytes, a little later: h2spec wants to see requests refused that are
// too many, so they have to take some time.
type page struct{ l *loop.Loop }

func (p *page) ServeRequest(s message.ServerStream) {
	x := &pageStream{s: s}
	s.SetTaker(x)
	p.l.Start(&x.timer, 50*time.Millisecond, x)
}

type pageStream struct {
	s     message.ServerStream
	timer loop.Timer
	done  bool
	rest  []byte
}

func (x *pageStream) Data(p []byte) int { return len(p) }
func (x *pageStream) Failed(error)      { x.timer.Stop() }

func (x *pageStream) End(*message.Header) {
	x.done = true
	if !x.timer.Running() {
		x.Expired(nil)
	}
}

func (x *pageStream) Expired(*loop.Timer) {
	if x.done {
		x.s.SendHead(&message.Response{Status: 200}, false)
		x.rest = []byte("answer")
		x.Room()
	}
}

func (x *pageStream) Room() {
	x.rest = x.rest[x.s.SendData(x.rest):]
	if len(x.rest) == 0 {
		x.s.SendEnd(nil)
	}
}

// h2specExceptions are the cases of h2spec that need not pass, each with the reason.
var h2specExceptions = map[string]string{}

// TestH2SpecFindsNothingButTheKnownExceptions runs https://github.com/summerwind/h2spec, named by H2SPEC_BIN.
func TestH2SpecFindsNothingButTheKnownExceptions(t *testing.T) {
	bin := os.Getenv("H2SPEC_BIN")
	if bin == "" {
		t.Skip("H2SPEC_BIN does not name h2spec")
	}
	l := running(t)
	addr := listen(t, l, ServerConfig{MaxStreams: 100}, &page{l: l}, &echo{})
	_, port, _ := net.SplitHostPort(addr)
	runH2Spec(t, bin, port, h2specExceptions)
}

// goServer serves HTTP/2 with net/http.
func goServer(t testing.TB, h http.Handler) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: &p}
	done := make(chan error)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return ln.Addr().String()
}

// connect opens a client's connection on the loop.
func connect(t testing.TB, l *loop.Loop, addr string, cfg ClientConfig, n message.ConnHandler) *ClientConn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	fd := steal(t, c)
	var cc *ClientConn
	l.OnLoop(func() {
		f, err := l.Add(fd, nil)
		if err != nil {
			t.Error(err)
			return
		}
		cc = NewClient(loop.NewPipe(f), cfg, n)
	})
	if cc == nil {
		t.FailNow()
	}
	return cc
}

// fetch is a request whose body is sent and whose answer is gathered.
type fetch struct {
	s       message.ClientStream
	send    []byte
	sent    bool
	got     bytes.Buffer
	status  int
	head    string
	trailer string
	done    chan error
}

func (f *fetch) Interim(*message.Response) {}
func (f *fetch) Head(r *message.Response, _ bool) {
	f.status, f.head = r.Status, dump(&r.Header)
}
func (f *fetch) Data(p []byte) int { f.got.Write(p); return len(p) }
func (f *fetch) End(h *message.Header) {
	if h != nil {
		f.trailer = dump(h)
	}
	f.done <- nil
}
func (f *fetch) Failed(err error) { f.done <- err }
func (f *fetch) Room() {
	if f.sent {
		return
	}
	f.send = f.send[f.s.SendData(f.send):]
	if len(f.send) == 0 {
		f.sent = true
		f.s.SendEnd(nil)
	}
}

// start opens a request. On the loop.
func (f *fetch) start(cc *ClientConn, r *message.Request) {
	end := len(f.send) == 0
	f.sent = end
	f.done = make(chan error, 1)
	s, err := cc.Open(r, end, f)
	if err != nil {
		f.done <- err
		return
	}
	f.s = s
	if !end {
		f.Room()
	}
}

func TestGosServerIsAsked(t *testing.T) {
	addr := goServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Path", r.URL.String())
		w.WriteHeader(201)
		n, _ := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", strconv.FormatInt(n, 10))
	}))
	l := running(t)
	n := &echo{closed: make(chan error, 1)}
	cc := connect(t, l, addr, ClientConfig{}, n)
	for range 5 {
		var all []*fetch
		l.OnLoop(func() {
			for i := range 40 {
				f := &fetch{send: bytes.Repeat([]byte{byte(i)}, i*i*1000)}
				all = append(all, f)
				f.start(cc, &message.Request{Method: "POST", Scheme: "http", Authority: addr, Path: "/p/" + strconv.Itoa(i)})
			}
		})
		for i, f := range all {
			if err := <-f.done; err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte{byte(i)}, i*i*1000)
			if f.status != 201 || !bytes.Equal(f.got.Bytes(), want) || f.trailer != "x-sum="+strconv.Itoa(len(want)) ||
				!strings.Contains(f.head, "x-path=/p/"+strconv.Itoa(i)) {
				t.Errorf("%d: status %d, %d of %d bytes, head %q, trailer %q", i, f.status, f.got.Len(), len(want), f.head, f.trailer)
			}
		}
	}
	l.OnLoop(cc.Drain)
	select {
	case <-n.closed:
	case <-time.After(10 * time.Second): // only if it hangs
		t.Error("a drained connection without streams stays open")
	}
}

func TestOurClientIsServedByOurServer(t *testing.T) {
	l := running(t)
	addr := listen(t, l, ServerConfig{}, &echo{}, &echo{})
	cc := connect(t, l, addr, ClientConfig{}, &echo{closed: make(chan error, 1)})
	var all []*fetch
	l.OnLoop(func() {
		for i := range 50 {
			f := &fetch{send: bytes.Repeat([]byte{byte(i)}, 100_000)}
			all = append(all, f)
			f.start(cc, &message.Request{Method: "POST", Scheme: "http", Authority: addr, Path: "/" + strconv.Itoa(i)})
		}
	})
	for i, f := range all {
		if err := <-f.done; err != nil {
			t.Fatal(err)
		}
		if f.status != 200 || !bytes.Equal(f.got.Bytes(), bytes.Repeat([]byte{byte(i)}, 100_000)) || f.trailer != "x-trailer=yes" {
			t.Errorf("%d: status %d, %d bytes, trailer %q", i, f.status, f.got.Len(), f.trailer)
		}
	}
}
