package hbone_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/looptls"
)

// echoes answers each stream with a NetConn that sends back what it gets.
func echoes(wg *sync.WaitGroup) hbone.Handler {
	return hbonetest.HandlerFunc(func(s *hbone.Stream, _ *hbone.Request) {
		s.Accept(nil)
		c := s.NetConn()
		wg.Go(func() {
			io.Copy(c, c)
			c.Close()
		})
	})
}

func (m *mesh) stats() (s hbone.PoolStats) {
	m.cl.OnLoop(func() { s = m.pool.Stats() })
	return s
}

// B8, H21: one dial for all who wait, and then as many connections as the streams need
func TestManyCallersShareOneDialAndStreamsSpreadOverConnections(t *testing.T) {
	var wg sync.WaitGroup
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{Handler: echoes(&wg)})
	const n = 250
	conns := make([]*hbone.NetConn, n)
	var openers sync.WaitGroup
	for i := range conns {
		openers.Go(func() {
			var err error
			if conns[i], _, err = m.pool.OpenConn(t.Context(), m.key, nil, &hbone.Request{Authority: "10.0.0.1:80"}); err != nil {
				t.Error(err)
			}
		})
	}
	openers.Wait()
	if t.Failed() {
		return
	}
	s := m.stats()
	if s.Streams != n || s.Conns < 3 || s.Conns > 5 || s.Dials > 5 {
		t.Errorf("stats %+v", s)
	}
	for i, c := range conns {
		c.Write([]byte{byte(i)})
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil || b[0] != byte(i) {
			t.Fatalf("stream %d: %v, %v", i, b, err)
		}
		c.CloseWrite()
		if _, err := c.Read(b); err != io.EOF {
			t.Fatalf("stream %d: %v", i, err)
		}
		c.Close()
	}
	wg.Wait()
	if s := m.stats(); s.Streams != 0 || s.Buffered != 0 {
		t.Errorf("in the end %+v", s)
	}
	m.cl.OnLoop(m.pool.Drain)
	m.sl.OnLoop(func() {}) // the GOAWAY is on its way
	if s := m.stats(); s.Conns != 0 {
		t.Errorf("after the drain %+v", s)
	}
	if _, _, err := m.pool.OpenConn(t.Context(), m.key, nil, &hbone.Request{Authority: "x:1"}); !errors.Is(err, hbone.ErrDraining) {
		t.Errorf("after the drain: %v", err)
	}
}

// H22 is how ztunnel does it: each waiter dials again in turn
func TestAFailedDialIsToldToAllWhoWaitAtOnce(t *testing.T) {
	var dials atomic.Int32
	release := make(chan struct{})
	refused := errors.New("connection refused")
	m := newMesh(t, hbone.PoolConfig{Dial: func(_ hbone.Key, _ any, done func(int, *looptls.Conn, error)) {
		dials.Add(1)
		go func() { <-release; done(-1, nil, refused) }()
	}}, hbone.ServerConfig{})
	errs := make(chan error, 100)
	m.cl.OnLoop(func() {
		for range 100 {
			m.pool.Open(m.key, nil, &hbone.Request{Authority: "x:1"}, failed(errs))
		}
	})
	close(release)
	for range 100 {
		err := <-errs
		var de *hbone.DialError
		if !errors.As(err, &de) || !errors.Is(err, refused) || de.Key != m.key {
			t.Fatalf("got %v", err)
		}
	}
	if s := m.stats(); dials.Load() != 1 || s.Dials != 1 || s.DialErrors != 1 || s.Waiting != 0 {
		t.Errorf("%d dials, stats %+v", dials.Load(), s)
	}
}

type failed chan error

func (f failed) StreamOpened(s *hbone.Stream, _ *hbone.Response) { f <- nil }
func (f failed) StreamFailed(err error)                          { f <- err }

func TestACanceledOpenIsNotToldAndLeavesNothing(t *testing.T) {
	release := make(chan struct{})
	m := newMesh(t, hbone.PoolConfig{Dial: func(_ hbone.Key, _ any, done func(int, *looptls.Conn, error)) {
		go func() { <-release; done(-1, nil, errors.New("late")) }()
	}}, hbone.ServerConfig{})
	told := make(chan error, 2)
	m.cl.OnLoop(func() {
		o := m.pool.Open(m.key, nil, &hbone.Request{Authority: "x:1"}, failed(told))
		m.pool.Open(m.key, nil, &hbone.Request{Authority: "x:1"}, failed(told))
		o.Cancel()
		o.Cancel()
	})
	close(release)
	<-told
	if s := m.stats(); s.Waiting != 0 || len(told) != 0 {
		t.Errorf("stats %+v, %d more answers", s, len(told))
	}
}

func TestACanceledRequestResetsItsStream(t *testing.T) {
	reset := make(chan error, 1)
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{Handler: hbonetest.HandlerFunc(func(s *hbone.Stream, _ *hbone.Request) {
		s.OnReset(func(err error) { reset <- err })
		asked <- s
	})})
	var o *hbone.Opening
	m.cl.OnLoop(func() {
		o = m.pool.Open(m.key, nil, &hbone.Request{Authority: "x:1"}, failed(make(chan error, 1)))
	})
	s := <-asked
	m.cl.OnLoop(func() { o.Cancel() })
	var se *hbone.StreamError
	if err := <-reset; !errors.As(err, &se) || se.Code != hbone.CodeCancel || !se.Remote {
		t.Errorf("the server saw %v", err)
	}
	m.sl.OnLoop(func() {
		s.Accept(nil) // too late, and harmless
		s.Reject(503)
		s.Reset(hbone.CodeCancel)
	})
}

var asked = make(chan *hbone.Stream, 1)

func TestANetConnWhoseLoopHasEndedDoesNotDeadlock(t *testing.T) {
	var wg sync.WaitGroup
	var c *hbone.NetConn
	t.Run("while it runs", func(t *testing.T) {
		m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{Handler: echoes(&wg)})
		var err error
		if c, _, err = m.pool.OpenConn(t.Context(), m.key, nil, &hbone.Request{Authority: "x:1"}); err != nil {
			t.Fatal(err)
		}
		m.cl.OnLoop(m.pool.Close)
		m.sl.OnLoop(m.server.Close)
	})
	wg.Wait() // the server's side has heard of it
	if _, err := c.Write([]byte("x")); !errors.Is(err, hbone.ErrDraining) {
		t.Errorf("write: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, hbone.ErrDraining) {
		t.Errorf("read: %v", err)
	}
	c.CloseWrite()
	c.Close()
}

func TestRetiredConnectionsCarryTheirStreamsToTheEndAndNewOnesGoElsewhere(t *testing.T) {
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
	a, b := m.connect()
	m.cl.OnLoop(func() {
		m.pool.Retire(func(k hbone.Key, _ any) bool { return k.Source == "other" })
		m.pool.Retire(func(_ hbone.Key, tag any) bool { return tag == "other" })
		if s := m.pool.Stats(); s.Draining != 0 {
			t.Errorf("another key's connection was retired: %+v", s)
		}
		m.pool.Retire(func(k hbone.Key, _ any) bool { return k == m.key })
	})
	c, d := m.connect()
	if s := m.stats(); s.Conns != 2 || s.Draining != 1 || s.Dials != 2 {
		t.Errorf("stats %+v", s)
	}
	for _, p := range [][2]net.Conn{{a, b}, {c, d}} {
		p[0].Write([]byte("x"))
		if _, err := io.ReadFull(p[1], make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		p[0].Close()
		p[1].Close()
	}
	for range 4 {
		<-m.joined
	}
	if s := m.stats(); s.Conns != 1 || s.Draining != 0 {
		t.Errorf("after the streams' end %+v", s)
	}
}

func TestCutEndsStreamsAtOnceWithTheGivenError(t *testing.T) { // H5
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
	m.connect()
	revoked := errors.New("certificate revoked")
	m.sl.OnLoop(func() {
		m.server.Each(func(c *hbone.ServerConn) {
			if len(c.TLS().PeerCertificates) != 1 || !c.RemoteAddr().IsValid() || c.LocalAddr() != m.key.Addr {
				t.Errorf("connection of %v to %v", c.RemoteAddr(), c.LocalAddr())
			}
			c.Cut(revoked)
		})
	})
	got := 0
	for range 2 {
		if r := <-m.joined; errors.Is(r.Err, revoked) {
			got++
		} else if r.Err == nil {
			t.Error("an end that saw no error")
		}
	}
	if got != 1 {
		t.Errorf("%d ends got the reason", got)
	}
}

func TestServerDrainMovesNewStreamsToANewConnectionWithoutLoss(t *testing.T) { // H9
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
	a, b := m.connect()
	errs := make(chan error, 50)
	m.sl.OnLoop(func() { m.server.Each((*hbone.ServerConn).Drain) })
	for range 50 { // while the GOAWAYs are on their way
		go func() {
			c, err := m.dial()
			errs <- err
			c.Close()
		}()
	}
	go func() {
		for range 50 {
			c, err := m.app.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for range 50 {
		if err := <-errs; err != nil {
			t.Errorf("a stream was lost: %v", err)
		}
	}
	a.Write([]byte("x"))
	if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
		t.Errorf("the old stream: %v", err)
	}
}

// T13, H7, istio#59887
func TestStalledReadersDoNotStopTheOthers(t *testing.T) {
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
	stalled := make([]net.Conn, 6) // 6 x 4 MiB of stream windows through one of 16 MiB
	for i := range stalled {
		a, b := m.connect()
		stalled[i] = b
		a.SetWriteDeadline(time.Now().Add(time.Minute))
		go a.Write(make([]byte, 64<<20))
	}
	for full := 0; full < len(stalled); { // until each has received its window
		full = 0
		m.sl.OnLoop(func() { full = m.server.Stats().Buffered / (3 << 20) })
	}
	a, b := m.connect()
	go io.Copy(b, b)
	buf := make([]byte, 1024)
	a.SetDeadline(time.Now().Add(30 * time.Second))
	for i := range 200 {
		a.Write(buf)
		if _, err := io.ReadFull(a, buf); err != nil {
			t.Fatalf("round trip %d: %v", i, err)
		}
	}
	if s := m.stats(); s.Conns != 1 {
		t.Errorf("stats %+v: the test wants one connection", s)
	}
	for _, c := range stalled { // and they go on when they are read
		if n, err := io.CopyN(io.Discard, c, 32<<20); err != nil {
			t.Fatalf("a stalled stream stopped at %d: %v", n, err)
		}
	}
}

func TestDataAndFinInOneGoArriveWhole(t *testing.T) { // prototype fault: a short read is not the end
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
	for i := range 200 {
		a, b := m.connect()
		want := 1 + i*3001
		a.Write(make([]byte, want))
		a.Close()
		if got, err := io.Copy(io.Discard, b); got != int64(want) || err != nil {
			t.Fatalf("%d of %d bytes, %v", got, want, err)
		}
		b.Close()
	}
}

func TestADrainLosesNothingThatIsStillInTheKernel(t *testing.T) {
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
	a, b := m.connect()
	b.Write(make([]byte, 900<<10)) // the next WINDOW_UPDATE is not far
	io.CopyN(io.Discard, a, 900<<10)
	m.sl.OnLoop(func() { m.server.Drain() })
	for range 2 { // the drain waits for the answers to its PINGs: here they are, each before a byte
		b.Write(make([]byte, 1))
		io.ReadFull(a, make([]byte, 1))
		a.Write(make([]byte, 1))
		io.ReadFull(b, make([]byte, 1))
	}
	a.CloseWrite()
	io.Copy(io.Discard, b)
	stop, stopped := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(stop) })
	defer release()
	m.cl.Inject(func() { close(stopped); <-stop }) // the client reads nothing for now
	<-stopped
	const size = 300 << 10 // fits into the socket buffers
	b.Write(make([]byte, size))
	b.Close()
	<-m.joined // the server's side has ended, and with it the connection
	m.sl.OnLoop(func() {
		if s := m.server.Stats(); s.Conns != 0 {
			t.Errorf("stats %+v", s)
		}
	})
	release() // the client now also sends
	if n, err := io.Copy(io.Discard, a); n != size || err != nil {
		t.Errorf("%d of %d bytes arrived, %v", n, size, err)
	}
	if r := <-m.joined; r.Err != nil {
		t.Errorf("result %+v", r)
	}
}
