package hbone_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a client's loop and pool, a server's loop, and an application behind it.
type mesh struct {
	t      testing.TB
	cl, sl *loop.Loop
	pool   *hbone.Pool
	server *hbone.Server
	key    hbone.Key
	app    net.Listener // behind the server
	joined chan hbone.JoinResult
}

type joined chan hbone.JoinResult

func (j joined) Joined(r hbone.JoinResult) { j <- r }

func newMesh(t testing.TB, pc hbone.PoolConfig, sc hbone.ServerConfig) *mesh {
	t.Helper()
	m := &mesh{t: t, cl: hbonetest.Loop(t), sl: hbonetest.Loop(t), joined: make(joined, 4096)}
	ca := hbonetest.NewCA(t)
	var err error
	if m.app, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.app.Close() })
	if sc.Handler == nil {
		sc.Handler = hbonetest.JoinTo(t, m.sl, m.app.Addr().(*net.TCPAddr).AddrPort(), joined(m.joined))
	}
	m.sl.OnLoop(func() { m.server = hbone.NewServer(m.sl, sc) })
	m.key = hbone.Key{Source: "a", Dest: "b", Addr: hbonetest.Listen(t, m.sl, m.server, ca.Config("spiffe://cluster.local/ns/s/sa/server"))}
	if pc.Dial == nil {
		pc.Dial = hbonetest.Dialer(m.cl, ca.Config("spiffe://cluster.local/ns/c/sa/client"))
	}
	m.cl.OnLoop(func() { m.pool = hbone.NewPool(m.cl, pc) })
	return m
}

// opener joins a stream with a local TCP connection.
type opener struct {
	l    *loop.Loop
	fd   int
	done hbone.JoinHandler
	err  chan error
}

func (o *opener) StreamOpened(s *hbone.Stream, _ *hbone.Response) {
	f, err := o.l.Add(o.fd, nil)
	if err == nil {
		s.Join(f, o.done)
	}
	o.err <- err
}

func (o *opener) StreamFailed(err error) {
	unix.Close(o.fd)
	o.err <- err
}

// dial opens a stream joined with one end of a TCP connection, the other end of which it returns.
func (m *mesh) dial() (*net.TCPConn, error) {
	m.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	in, err := ln.Accept()
	if err != nil {
		m.t.Fatal(err)
	}
	fd, err := hbonetest.Descriptor(in)
	if err != nil {
		m.t.Fatal(err)
	}
	o := &opener{l: m.cl, fd: fd, done: joined(m.joined), err: make(chan error, 1)}
	m.cl.Inject(func() { m.pool.Open(m.key, nil, &hbone.Request{Authority: "10.0.0.1:80"}, o) })
	return c.(*net.TCPConn), <-o.err
}

// connect is dial and the application's end of the new tunnel.
func (m *mesh) connect() (client, app *net.TCPConn) {
	m.t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() { c, _ := m.app.Accept(); accepted <- c }()
	client, err := m.dial()
	if err != nil {
		m.t.Fatal(err)
	}
	app = (<-accepted).(*net.TCPConn)
	m.t.Cleanup(func() { app.Close() })
	return client, app
}

func TestJoinDeliversEveryByteBothWaysAndPassesOnHalfClose(t *testing.T) {
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
	a, b := m.connect()
	const size = 64 << 20
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	want := sha256.Sum256(data)
	var wg sync.WaitGroup
	for i, c := range []*net.TCPConn{a, b} {
		wg.Go(func() { c.Write(data); c.CloseWrite() })
		wg.Go(func() {
			h := sha256.New()
			n, err := io.Copy(h, c)
			if n != size || err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("end %d: %d bytes, %v, or wrong ones", i, n, err)
			}
		})
	}
	wg.Wait()
	for range 2 {
		if r := <-m.joined; r.Err != nil || r.Sent != size || r.Received != size {
			t.Errorf("result %+v", r)
		}
	}
}

func TestHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
	for _, first := range []string{"client", "server"} {
		a, b := m.connect()
		if first == "server" {
			a, b = b, a
		}
		a.Write([]byte("last words"))
		a.CloseWrite()
		if got, err := io.ReadAll(b); err != nil || string(got) != "last words" {
			t.Fatalf("%s: %q, %v", first, got, err)
		}
		for range 3 {
			b.Write([]byte("late"))
			buf := make([]byte, 4)
			if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "late" {
				t.Fatalf("%s: after half-close: %q, %v", first, buf, err)
			}
		}
		b.Close()
		if _, err := a.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("%s: end: %v", first, err)
		}
		for range 2 {
			if r := <-m.joined; r.Err != nil {
				t.Errorf("%s: result %+v", first, r)
			}
		}
	}
}

// B9, B35
func TestAResetOnOneSideIsAResetOnTheOther(t *testing.T) {
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
	for _, who := range []string{"client", "server", "client after its FIN", "server after its FIN", "client while the other has sent a FIN"} {
		t.Run(who, func(t *testing.T) {
			a, b := m.connect()
			code := hbone.CodeCancel
			if who[0] == 's' {
				a, b = b, a
				code = hbone.CodeConnect
			}
			switch {
			case who[6:] == " after its FIN":
				a.CloseWrite()
				b.Read(make([]byte, 1))
			case len(who) > 30:
				b.CloseWrite()
				a.Read(make([]byte, 1))
			}
			a.SetLinger(0)
			a.Close()
			if who[6:] != " after its FIN" { // behind a FIN, Linux shows a reset to writers only
				b.SetReadDeadline(time.Now().Add(10 * time.Second))
				if _, err := b.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the other side saw %v, want a reset", err)
				}
			}
			remote := 0
			for range 2 {
				r := <-m.joined
				var se *hbone.StreamError
				if !errors.As(r.Err, &se) || se.Code != code {
					t.Errorf("result %v, want %v", r.Err, code)
				} else if se.Remote {
					remote++
				}
			}
			if remote != 1 {
				t.Errorf("%d ends say that the other has reset", remote)
			}
			if _, err := b.Write([]byte("x")); err == nil {
				t.Error("the other side can still write")
			}
		})
	}
}

func TestANetConnCarriesBytesHalfCloseAndDeadlines(t *testing.T) {
	served := make(chan *hbone.NetConn, 1)
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{Handler: hbonetest.HandlerFunc(func(s *hbone.Stream, r *hbone.Request) {
		s.Accept([]hbone.HeaderField{{Name: "x-echo", Value: r.Authority + r.Get("baggage")}})
		served <- s.NetConn()
	})})
	req := &hbone.Request{Authority: "10.0.0.1:80", Header: []hbone.HeaderField{{Name: "baggage", Value: "k=v"}}}
	c, resp, err := m.pool.OpenConn(context.Background(), m.key, nil, req)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Get("x-echo"); got != "10.0.0.1:80k=v" {
		t.Errorf("the request or response was changed: %q", got)
	}
	s := <-served
	const size = 20 << 20
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{2}).Read(data)
	var wg sync.WaitGroup
	wg.Go(func() { c.Write(data); c.CloseWrite() })
	wg.Go(func() {
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		s.Write(got)
		s.Close()
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("back: %d bytes, %v", len(got), err)
	}
	c.Close()

	c, _, err = m.pool.OpenConn(context.Background(), m.key, nil, req)
	if err != nil {
		t.Fatal(err)
	}
	s = <-served
	c.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, context.DeadlineExceeded) && err.Error() != "i/o timeout" {
		t.Errorf("passed deadline: %v", err)
	}
	c.Write([]byte("unread"))
	io.ReadFull(s, make([]byte, 3))
	s.Close() // with data unread: a reset
	c.SetReadDeadline(time.Time{})
	var se *hbone.StreamError
	if _, err := c.Read(make([]byte, 1)); !errors.As(err, &se) || se.Code != hbone.CodeCancel {
		t.Errorf("closed with data unread: %v", err)
	}
	c.Close()
}

func TestAnAnswerOtherThan200IsAStatusError(t *testing.T) {
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{Handler: hbonetest.HandlerFunc(func(s *hbone.Stream, r *hbone.Request) { s.Reject(401) })})
	for range 3 {
		_, err := m.dial()
		var se *hbone.StatusError
		if !errors.As(err, &se) || se.Status != 401 {
			t.Fatalf("got %v", err)
		}
	}
	m.cl.OnLoop(func() {
		if s := m.pool.Stats(); s.Streams != 0 || s.Conns != 1 || s.Dials != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

// 3.2: a tunnel lives as long as its peer answers, whether streams are busy or not.
func TestATunnelOutlivesItsPingTimeout(t *testing.T) {
	ka := hbone.KeepAlive{Interval: 50 * time.Millisecond, Timeout: time.Second}
	m := newMesh(t, hbone.PoolConfig{KeepAlive: ka}, hbone.ServerConfig{KeepAlive: ka})
	a, b := m.connect()
	end := time.NewTimer(1600 * time.Millisecond)
	defer end.Stop()
	busy := 0
	for on := true; on; busy++ {
		select {
		case <-end.C:
			on = false
		default:
		}
		if busy < 1000 {
			if _, err := a.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
				t.Fatalf("after %d exchanges: %v", busy, err)
			}
		} else {
			time.Sleep(time.Millisecond)
		}
	}
	a.Write([]byte("y"))
	if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
		t.Errorf("after a time without data: %v", err)
	}
}
