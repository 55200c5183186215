package http2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

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
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
		if n := l.Stats().Panics; n > 0 {
			t.Errorf("%d panics on the loop", n)
		}
	})
	return l
}

// memPipe is a loop.Pipe whose peer is the test.
type memPipe struct {
	l       *loop.Loop
	h       loop.PipeHandler
	in      []byte
	end     error // behind in
	out     bytes.Buffer
	null    bool // forget what is written
	full    int  // bytes that are still taken, if limited
	limited bool
	woken   bool
	closed  bool
	ended   bool
	reset   bool
}

func (p *memPipe) Read(b []byte) (int, error) {
	switch {
	case p.closed:
		return 0, loop.ErrClosed
	case len(p.in) > 0:
		n := copy(b, p.in)
		p.in = p.in[n:]
		return n, nil
	case p.end != nil:
		return 0, p.end
	}
	return 0, loop.ErrAgain
}

func (p *memPipe) Write(b []byte) (int, error) {
	if p.closed || p.ended {
		return 0, loop.ErrClosed
	}
	n := len(b)
	if p.limited {
		n = min(n, p.full)
		p.full -= n
	}
	if !p.null {
		p.out.Write(b[:n])
	}
	return n, nil
}

func (p *memPipe) Writev([][]byte) (int, error)  { panic("not used") }
func (p *memPipe) Readable() bool                { return !p.closed && (len(p.in) > 0 || p.end != nil) }
func (p *memPipe) Writable() bool                { return !p.closed && (!p.limited || p.full > 0) }
func (p *memPipe) CloseWrite() error             { p.ended = true; return nil }
func (p *memPipe) Close() error                  { p.closed = true; return nil }
func (p *memPipe) Reset() error                  { p.closed, p.reset = true, true; return nil }
func (p *memPipe) SetHandler(h loop.PipeHandler) { p.h = h }
func (p *memPipe) Loop() *loop.Loop              { return p.l }
func (p *memPipe) Wake() {
	if !p.woken && !p.closed {
		p.woken = true
		p.l.Inject(p.ready)
	}
}

func (p *memPipe) ready() {
	p.woken = false
	if !p.closed {
		p.h.PipeReady()
	}
}

// taker notes what it is told, and takes as much as it is allowed to.
type taker struct {
	r       *rig
	s       interface{ Resume() }
	got     bytes.Buffer
	limit   int // bytes that it still takes; -1: all
	ended   bool
	trailer string
	err     error
	rooms   int
	onRoom  func()

	interims []int
	status   int
	head     string
	headEnd  bool
}

func (k *taker) Data(p []byte) int {
	k.check("Data")
	n := len(p)
	if k.limit >= 0 {
		n = min(n, k.limit)
		k.limit -= n
	}
	k.got.Write(p[:n])
	return n
}

func (k *taker) End(h *message.Header) {
	k.check("End")
	k.ended = true
	if h != nil {
		k.trailer = dump(h)
	}
}

func (k *taker) Failed(err error) {
	k.check("Failed")
	k.err = err
}

func (k *taker) Room() {
	k.check("Room")
	k.rooms++
	if k.onRoom != nil {
		k.onRoom()
	}
}

func (k *taker) Interim(r *message.Response) {
	k.check("Interim")
	k.interims = append(k.interims, r.Status)
}

func (k *taker) Head(r *message.Response, end bool) {
	k.check("Head")
	k.status, k.headEnd, k.head = r.Status, end, dump(&r.Header)
	if r.Upgrade != "" {
		k.head += " upgrade:" + r.Upgrade
	}
}

func (k *taker) check(what string) {
	if k.r.inCall {
		k.r.t.Errorf("%s is called from inside of a method", what)
	}
	bodyOver := k.ended && (k.r.cc != nil || what != "Room" && what != "Failed")
	if bodyOver || k.err != nil {
		k.r.t.Errorf("%s behind the end", what)
	}
}

func dump(h *message.Header) string {
	var b []string
	for _, f := range h.Fields() {
		b = append(b, f.Name+"="+f.Value)
	}
	return strings.Join(b, " ")
}

// rig is a connection whose peer is the test.
type rig struct {
	t      testing.TB
	l      *loop.Loop
	p      *memPipe
	c      *conn
	sc     *ServerConn
	cc     *ClientConn
	enc    *hpack.Encoder
	ebuf   bytes.Buffer
	fr     *http2.Framer
	wr     *http2.Framer
	wbuf   bytes.Buffer
	inCall bool

	served   []message.ServerStream
	requests []string
	onServe  func(s message.ServerStream)
	closed   error
	closes   int
	changes  int
}

func (r *rig) ServeRequest(s message.ServerStream) {
	q := s.Request()
	text := fmt.Sprintf("%s %s %s %s [%s] %d", q.Method, q.Scheme, q.Authority, q.Path, dump(&q.Header), q.ContentLength)
	if q.Upgrade != "" {
		text += " upgrade:" + q.Upgrade
	}
	if q.Expect100 {
		text += " expect"
	}
	r.served = append(r.served, s)
	r.requests = append(r.requests, text)
	if r.onServe != nil {
		r.onServe(s)
	}
}

func (r *rig) Closed(err error) { r.closed = err; r.closes++ }
func (r *rig) Changed()         { r.changes++ }

func newRig(t testing.TB, l *loop.Loop) *rig {
	if l == nil {
		l = running(t)
	}
	r := &rig{t: t, l: l, p: &memPipe{l: l}}
	r.fr = http2.NewFramer(io.Discard, &r.p.out)
	r.fr.SetMaxReadFrameSize(1<<24 - 1)
	r.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.wr = http2.NewFramer(&r.wbuf, nil)
	r.wr.AllowIllegalWrites = true
	r.enc = hpack.NewEncoder(&r.ebuf)
	return r
}

// serverRig is a server's connection, its start already exchanged.
func serverRig(t testing.TB, cfg ServerConfig) *rig {
	t.Helper()
	r := newRig(t, nil)
	r.do(func() { r.sc = NewServer(r.p, cfg, r, r); r.c = &r.sc.c })
	r.recv([]byte(preface))
	r.wr.WriteSettings()
	r.send()
	r.p.out.Reset()
	return r
}

// clientRig is a client's connection, its start already exchanged.
func clientRig(t testing.TB, cfg ClientConfig, settings ...http2.Setting) *rig {
	t.Helper()
	r := newRig(t, nil)
	r.do(func() { r.cc = NewClient(r.p, cfg, r); r.c = &r.cc.c })
	r.do(func() {})
	r.p.out.Next(len(preface))
	r.wr.WriteSettings(settings...)
	r.send()
	r.p.out.Reset()
	return r
}

// do runs f on the loop, as a call of the connection's user, and waits for the end of the turn.
func (r *rig) do(f func()) {
	r.l.OnLoop(func() {
		r.inCall = true
		f()
		r.inCall = false
	})
	r.settle()
}

// settle waits until nothing is to be done.
func (r *rig) settle() {
	for again := true; again; {
		r.l.OnLoop(func() { again = r.p.woken })
	}
	r.l.OnLoop(func() {})
}

// recv gives bytes to the connection as one burst.
func (r *rig) recv(b []byte) {
	b = bytes.Clone(b)
	r.l.OnLoop(func() {
		if r.p.closed {
			return
		}
		r.p.in = append(r.p.in, b...)
		r.p.h.PipeReady()
	})
	r.settle()
}

// hangUp ends the peer's direction with err.
func (r *rig) hangUp(err error) {
	r.l.OnLoop(func() {
		r.p.end = err
		if !r.p.closed {
			r.p.h.PipeReady()
		}
	})
	r.settle()
}

// allow has the pipe take n bytes more.
func (r *rig) allow(n int) {
	r.l.OnLoop(func() {
		r.p.full += n
		if !r.p.closed {
			r.p.h.PipeReady()
		}
	})
	r.settle()
}

// send delivers what was written to r.wr.
func (r *rig) send() {
	b := bytes.Clone(r.wbuf.Bytes())
	r.wbuf.Reset()
	r.recv(b)
}

// block encodes fields given as name, value, name, value...
func (r *rig) block(kv ...string) []byte {
	r.ebuf.Reset()
	for i := 0; i < len(kv); i += 2 {
		r.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return bytes.Clone(r.ebuf.Bytes())
}

// headers writes HEADERS.
func (r *rig) headers(id uint32, end bool, kv ...string) {
	r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block(kv...), EndHeaders: true, EndStream: end})
}

// request writes a request with more fields.
func (r *rig) request(id uint32, method string, end bool, kv ...string) {
	r.headers(id, end, append([]string{":method", method, ":scheme", "http", ":authority", "a.example", ":path", "/x"}, kv...)...)
}

// serve opens stream id and returns it with a taker.
func (r *rig) serve(id uint32, method string, end bool, kv ...string) (message.ServerStream, *taker) {
	r.t.Helper()
	n := len(r.served)
	r.request(id, method, end, kv...)
	r.send()
	if len(r.served) != n+1 {
		r.t.Fatalf("no request was served; frames %q", r.frames())
	}
	s := r.served[n]
	k := &taker{r: r, s: s, limit: -1}
	r.do(func() { s.SetTaker(k) })
	return s, k
}

// open opens a request, without its body if end is set.
func (r *rig) open(method string, end bool, kv ...string) (message.ClientStream, *taker) {
	r.t.Helper()
	k := &taker{r: r, limit: -1}
	req := &message.Request{Method: method, Scheme: "http", Authority: "a.example", Path: "/x"}
	for i := 0; i < len(kv); i += 2 {
		switch kv[i] {
		case ":protocol":
			req.Upgrade = kv[i+1]
		default:
			req.Header.Add(kv[i], kv[i+1])
		}
	}
	var s message.ClientStream
	var err error
	r.do(func() { s, err = r.cc.Open(req, end, k) })
	if err != nil {
		k.err = err
		return nil, k
	}
	k.s = s
	return s, k
}

func response(code int, kv ...string) *message.Response {
	p := &message.Response{Status: code, ContentLength: -1}
	for i := 0; i < len(kv); i += 2 {
		p.Header.Add(kv[i], kv[i+1])
	}
	return p
}

// frames are the frames written since the last call, in short form.
func (r *rig) frames() []string {
	r.t.Helper()
	var out []string
	for r.p.out.Len() > 0 {
		f, err := r.fr.ReadFrame()
		if err != nil {
			r.t.Fatalf("our own frames: %v (%q)", err, out)
		}
		out = append(out, short(f))
	}
	return out
}

func short(f http2.Frame) string {
	id := func(s string) string { return fmt.Sprintf("%s[%d]", s, f.Header().StreamID) }
	end := ""
	if f.Header().Flags&flagEndStream != 0 {
		end = " END"
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		s := id("HEADERS")
		for _, x := range f.Fields {
			s += " " + x.Name + "=" + x.Value
		}
		return s + end
	case *http2.DataFrame:
		return fmt.Sprint(id("DATA"), " ", f.Header().Length, end)
	case *http2.RSTStreamFrame:
		return id("RST") + " " + message.ErrCode(f.ErrCode).String()
	case *http2.GoAwayFrame:
		return fmt.Sprint("GOAWAY ", f.LastStreamID, " ", message.ErrCode(f.ErrCode))
	case *http2.WindowUpdateFrame:
		return fmt.Sprint(id("WINDOW"), " ", f.Increment)
	case *http2.PingFrame:
		if f.IsAck() {
			return "PONG"
		}
		return "PING"
	case *http2.SettingsFrame:
		if f.IsAck() {
			return "SETTINGS ACK"
		}
		return "SETTINGS"
	}
	return f.Header().Type.String()
}

// wantFrames checks all frames since the last call.
func (r *rig) wantFrames(want ...string) {
	r.t.Helper()
	got := r.frames()
	if strings.Join(got, "; ") != strings.Join(want, "; ") {
		r.t.Errorf("frames\n got %q\nwant %q", got, want)
	}
}

// wantGoAway checks that the connection has ended with a GOAWAY of this code.
func (r *rig) wantGoAway(code message.ErrCode) {
	r.t.Helper()
	got := r.frames()
	if r.c.state == up || len(got) == 0 || !strings.HasPrefix(got[len(got)-1], "GOAWAY ") || !strings.HasSuffix(got[len(got)-1], " "+code.String()) {
		r.t.Errorf("state %d, last frames %q; want GOAWAY with %v", r.c.state, got[max(0, len(got)-3):], code)
	}
}

func rawFrame(typ, flags byte, stream uint32, payload []byte) []byte {
	b := make([]byte, headLen, headLen+len(payload))
	putFrameHeader(b, len(payload), typ, flags, stream)
	return append(b, payload...)
}

func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
