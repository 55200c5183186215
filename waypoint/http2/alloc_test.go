package http2

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// steady is a proxy's middle: a server whose requests are sent on by a client, and answered with its answers. It is made
// once and allocates nothing itself.
type steady struct {
	echo
	cc    *ClientConn
	pairs []*pair
}

type pair struct {
	up   message.ClientStream
	down message.ServerStream
	st   *steady
}

func (st *steady) ServeRequest(s message.ServerStream) {
	p := st.pairs[len(st.pairs)-1]
	st.pairs = st.pairs[:len(st.pairs)-1]
	p.down = s
	r := s.Request()
	r.Header.Add("x-forwarded-proto", "http")
	var err error
	if p.up, err = st.cc.Open(r, r.ContentLength == 0, (*answer)(p)); err != nil {
		panic(err)
	}
	s.SetTaker((*body)(p))
}

type body pair

func (b *body) Data(p []byte) int     { return b.up.SendData(p) }
func (b *body) End(h *message.Header) { b.up.SendEnd(h) }
func (b *body) Failed(err error)      { b.up.Reset(err) }
func (b *body) Room()                 { b.up.Resume() }

type answer pair

func (a *answer) Interim(*message.Response)        {}
func (a *answer) Head(r *message.Response, _ bool) { a.down.SendHead(r, false) }
func (a *answer) Data(p []byte) int                { return a.down.SendData(p) }
func (a *answer) End(h *message.Header) {
	a.down.SendEnd(h)
	a.st.pairs = append(a.st.pairs, (*pair)(a))
}
func (a *answer) Failed(err error) { a.down.Reset(err) }
func (a *answer) Room()            { a.down.Resume() }

// reply answers every request with a head, 1 KiB and a trailer.
type reply struct {
	echo
	head    message.Response
	trailer message.Header
	page    []byte
}

func (y *reply) ServeRequest(s message.ServerStream) {
	s.SendHead(&y.head, false)
	s.SendData(y.page)
	s.SendEnd(&y.trailer)
}

// socketPair is a stream socket on the loop, and its other end, which blocks.
func socketPair(t testing.TB, l *loop.Loop) (*loop.FD, int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(p[0], true)
	f, err := l.Add(p[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[1]) })
	return f, p[1]
}

// chain is a client (the test, by a socket), a server that is a client, and a server, all on one loop.
func chain(t testing.TB) (fd int) {
	l := running(t)
	l.OnLoop(func() {
		var f *loop.FD
		f, fd = socketPair(t, l)
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Add(p[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Add(p[1], nil)
		if err != nil {
			t.Fatal(err)
		}
		y := &reply{page: make([]byte, 1024)}
		y.head.Status = 200
		y.head.Header.Add("content-type", "application/grpc")
		y.head.Header.Add("server", "test")
		y.trailer.Add("grpc-status", "0")
		NewServer(loop.NewPipe(b), ServerConfig{}, y, y)
		st := &steady{cc: NewClient(loop.NewPipe(a), ClientConfig{}, &echo{})}
		for range 256 {
			st.pairs = append(st.pairs, &pair{st: st})
		}
		NewServer(loop.NewPipe(f), ServerConfig{}, st, st)
	})
	return fd
}

// asker speaks HTTP/2 as a client, badly but without allocations.
type asker struct {
	t    testing.TB
	fd   int
	enc  encoder
	out  []byte
	in   []byte
	n    int
	next uint32
	got  int // bytes received since the last credit
	done int
}

func newAsker(t testing.TB, fd int) *asker {
	a := &asker{t: t, fd: fd, in: make([]byte, 1<<20), next: 1}
	a.enc.init()
	a.out = append(a.out, preface...)
	a.out = append(a.out, rawFrame(frameSettings, 0, 0, nil)...)
	a.out = append(a.out, rawFrame(frameWindowUpdate, 0, 0, u32(1<<20))...)
	return a
}

func (a *asker) frame(typ, flags byte, id uint32, payload []byte) {
	at := len(a.out)
	a.out = append(a.out, "123456789"...)
	putFrameHeader(a.out[at:], len(payload), typ, flags, id)
	a.out = append(a.out, payload...)
}

// ask sends n requests with 100 bytes each and waits for their answers.
func (a *asker) ask(n int) {
	var block [512]byte
	for range n {
		b := append(block[:0], 0x80|staticPost, 0x80|staticHTTP)
		b = a.enc.indexed(b, ":authority", "greeter.example:8080", true)
		b = appendLiteral(b, without, staticPath, ":path", "/helloworld.Greeter/SayHello")
		b = a.enc.field(b, "content-type", "application/grpc")
		b = a.enc.field(b, "te", "trailers")
		b = a.enc.field(b, "user-agent", "grpc-go/1.84.0")
		b = a.enc.field(b, "x-request-id", "b7e6f3a0-7a4e-4d6e-9c55-5e2f1d0c9a11")
		a.frame(frameHeaders, flagEndHeaders, a.next, b)
		a.frame(frameData, flagEndStream, a.next, zeros[:100])
		a.next += 2
	}
	if a.got > 32<<10 {
		var w [4]byte
		w[1], w[2], w[3] = byte(a.got>>16), byte(a.got>>8), byte(a.got)
		a.frame(frameWindowUpdate, 0, 0, w[:])
		a.got = 0
	}
	if _, err := unix.Write(a.fd, a.out); err != nil {
		a.t.Fatal(err)
	}
	a.out = a.out[:0]
	for a.done = 0; a.done < n; {
		k, err := unix.Read(a.fd, a.in[a.n:])
		if err != nil || k == 0 {
			a.t.Fatalf("read: %d, %v", k, err)
		}
		a.n += k
		a.parse()
	}
}

func (a *asker) parse() {
	b := a.in[:a.n]
	for len(b) >= headLen {
		size := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
		if len(b) < headLen+size {
			break
		}
		switch typ, flags := b[3], b[4]; {
		case typ == frameData:
			a.got += size
		case typ == frameHeaders && flags&flagEndStream != 0:
			a.done++
		case typ == frameRST || typ == frameGoAway:
			a.t.Fatalf("frame of type %d: %q", typ, b[headLen:headLen+size])
		}
		b = b[headLen+size:]
	}
	a.n = copy(a.in, b)
}

func BenchmarkProxiedRequest(b *testing.B) {
	for _, streams := range []int{1, 10, 100} {
		b.Run(map[int]string{1: "1", 10: "10", 100: "100"}[streams], func(b *testing.B) {
			a := newAsker(b, chain(b))
			a.ask(streams)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += streams {
				a.ask(streams)
			}
		})
	}
}
