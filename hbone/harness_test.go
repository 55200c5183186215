package hbone

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
)

// fake is a transport that keeps what is written.
type fake struct {
	out    bytes.Buffer
	null   bool // drop what is written
	queued int
	sealed int64
	closed bool
}

func (f *fake) ReadRecords(int, func([]byte) error) error { return loop.ErrAgain }
func (f *fake) Flush() error                              { return nil }
func (f *fake) Queued() int                               { return f.queued }
func (f *fake) BytesSealed() int64                        { return f.sealed }
func (f *fake) CloseNotify()                              { f.closed = true }
func (f *fake) Write(p []byte) error {
	if !f.null {
		f.out.Write(p)
	}
	return nil
}

// rig is a connection whose peer is the test, on a loop that does not run: everything happens when the test says so.
type rig struct {
	t    testing.TB
	l    *loop.Loop
	c    *conn
	tr   *fake
	enc  *hpack.Encoder
	ebuf bytes.Buffer
	fr   *http2.Framer // reads c's output
	wr   *http2.Framer // writes into wbuf
	wbuf bytes.Buffer

	srv  *Server
	pool *Pool
	sc   *ServerConn
	cc   *clientConn

	served []*Stream
}

func newLoop(t testing.TB) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, stop := context.WithCancel(context.Background())
		stop()
		l.Run(ctx) // closes what is registered
	})
	return l
}

// socket is one end of a stream socket pair on the loop, and the other end.
func socket(t testing.TB, l *loop.Loop, h loop.Handler) (*loop.FD, int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.Add(p[0], h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[1]) })
	return f, p[1]
}

func (r *rig) setup() {
	r.fr = http2.NewFramer(io.Discard, &r.tr.out)
	r.fr.SetMaxReadFrameSize(1<<24 - 1)
	r.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.wr = http2.NewFramer(&r.wbuf, nil)
	r.wr.AllowIllegalWrites = true
	r.enc = hpack.NewEncoder(&r.ebuf)
}

// serverRig is a server's connection, its start already exchanged.
func serverRig(t testing.TB, cfg ServerConfig) *rig {
	t.Helper()
	r := &rig{t: t, l: newLoop(t), tr: &fake{}}
	if cfg.Handler == nil {
		cfg.Handler = r
	}
	r.srv = NewServer(r.l, cfg)
	r.sc = &ServerConn{srv: r.srv}
	r.c = &r.sc.conn
	f, _ := socket(t, r.l, r.c)
	r.sc.init(r.l, &r.srv.sh, r.sc, false, r.tr)
	r.c.fd = f
	r.srv.conns[r.sc] = struct{}{}
	r.setup()
	r.turn()
	r.recv([]byte(clientPreface))
	r.wr.WriteSettings()
	r.sendFrames()
	r.tr.out.Reset()
	return r
}

// clientRig is a Pool's connection, its start already exchanged.
func clientRig(t testing.TB, cfg PoolConfig) *rig {
	t.Helper()
	r := &rig{t: t, l: newLoop(t), tr: &fake{}}
	if cfg.Dial == nil {
		cfg.Dial = func(Key, any, func(int, *looptls.Conn, error)) {}
	}
	r.pool = NewPool(r.l, cfg)
	e := r.pool.entry(testKey)
	r.cc = &clientConn{pool: r.pool, e: e}
	r.c = &r.cc.conn
	f, _ := socket(t, r.l, r.c)
	r.cc.init(r.l, &r.pool.sh, r.cc, true, r.tr)
	r.c.fd = f
	e.conns = append(e.conns, r.cc)
	r.setup()
	r.turn()
	r.wr.WriteSettings()
	r.sendFrames()
	r.tr.out.Reset()
	return r
}

var testKey = Key{Source: "a", Dest: "b", Addr: netip.MustParseAddrPort("10.0.0.1:15008")}

// ServeConnect implements Handler: it notes the stream.
func (r *rig) ServeConnect(s *Stream, _ *Request) { r.served = append(r.served, s) }

// recv gives bytes to the connection as one burst.
func (r *rig) recv(b []byte) {
	if r.c.dead {
		return
	}
	err := r.c.feed(b)
	r.c.flushDirty()
	if err != nil {
		r.c.readFailed(err)
	}
	r.turn()
}

// turn ends the turn.
func (r *rig) turn() {
	for r.c.inTurn {
		r.c.CommitTurn()
	}
}

// sendFrames delivers what was written to r.wr.
func (r *rig) sendFrames() {
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

// connect writes a CONNECT request.
func (r *rig) connect(id uint32) {
	r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block(":method", "CONNECT", ":authority", "10.0.0.1:80"), EndHeaders: true})
}

// serve opens stream id and returns it, accepted.
func (r *rig) serve(id uint32) *Stream {
	r.t.Helper()
	r.connect(id)
	r.sendFrames()
	if len(r.served) == 0 {
		r.t.Fatal("no request arrived")
	}
	s := r.served[len(r.served)-1]
	s.Accept(nil)
	r.turn()
	r.tr.out.Reset()
	return s
}

// frames are the frames written since the last call, in short form.
func (r *rig) frames() []string {
	r.t.Helper()
	var out []string
	for r.tr.out.Len() > 0 {
		f, err := r.fr.ReadFrame()
		if err != nil {
			r.t.Fatalf("our own frames: %v", err)
		}
		out = append(out, short(f))
	}
	return out
}

func short(f http2.Frame) string {
	id := func(s string) string { return s + "[" + itoa(f.Header().StreamID) + "]" }
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
		return id("DATA") + " " + itoa(f.Header().Length) + end
	case *http2.RSTStreamFrame:
		return id("RST") + " " + ErrCode(f.ErrCode).String()
	case *http2.GoAwayFrame:
		return "GOAWAY " + itoa(f.LastStreamID) + " " + ErrCode(f.ErrCode).String()
	case *http2.WindowUpdateFrame:
		return id("WINDOW") + " " + itoa(f.Increment)
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

func itoa(n uint32) string {
	var b [10]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(b[i:])
		}
	}
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
func (r *rig) wantGoAway(code ErrCode) {
	r.t.Helper()
	got := r.frames()
	if !r.c.dead || len(got) == 0 || !strings.HasPrefix(got[len(got)-1], "GOAWAY ") || !strings.HasSuffix(got[len(got)-1], " "+code.String()) {
		r.t.Errorf("dead: %v, last frames %q; want GOAWAY with %v", r.c.dead, got[max(0, len(got)-3):], code)
	}
}

func rawFrame(typ, flags byte, stream uint32, payload []byte) []byte {
	b := make([]byte, frameHeaderLen, frameHeaderLen+len(payload))
	putFrameHeader(b, len(payload), typ, flags, stream)
	return append(b, payload...)
}

func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
