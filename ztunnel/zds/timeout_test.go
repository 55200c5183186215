package zds

import (
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// chanConn is a conn without a kernel, for tests with false time.
type chanConn struct {
	in, out chan []byte
	closed  chan struct{}
	once    sync.Once

	mu       sync.Mutex
	deadline time.Time
}

func newChanConn() *chanConn {
	return &chanConn{in: make(chan []byte), out: make(chan []byte, 10), closed: make(chan struct{})}
}

func (c *chanConn) read() ([]byte, []*File, error) {
	c.mu.Lock()
	d := c.deadline
	c.mu.Unlock()
	var timeout <-chan time.Time
	if !d.IsZero() {
		t := time.NewTimer(time.Until(d))
		defer t.Stop()
		timeout = t.C
	}
	select {
	case b := <-c.in:
		return b, nil, nil
	case <-c.closed:
		return nil, nil, io.EOF
	case <-timeout:
		return nil, nil, os.ErrDeadlineExceeded
	}
}

func (c *chanConn) write(b []byte, _ []*File) error { c.out <- b; return nil }

func (c *chanConn) setReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

func (c *chanConn) close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func TestAProxyThatDoesNotSpeakIsDroppedAfter5Seconds(t *testing.T) {
	for _, c := range []struct {
		name  string
		speak func(*chanConn) // then it is silent
	}{
		{"no hello", func(*chanConn) {}},
		{"no answer to the first request", func(c *chanConn) {
			b, err := encodeHello(hello{listeners: true})
			if err != nil {
				panic(err)
			}
			c.in <- b
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := newChanConn()
				s := NewServer(ServerConfig{Source: newFakeSource(), Setup: Setup{Exempt: NewFile(-1)}})
				begin := time.Now()
				done := make(chan struct{})
				go func() { defer close(done); s.connection(t.Context(), conn) }()
				c.speak(conn)
				<-done
				if d := time.Since(begin); d != DefaultTimeout {
					t.Errorf("dropped after %v, want %v (Z10)", d, DefaultTimeout)
				}
			})
		})
	}
}

func TestASilentProxyCostsAnAddNoMoreThanItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := newChanConn()
		src := newFakeSource()
		s := NewServer(ServerConfig{Source: src, Setup: Setup{Exempt: NewFile(-1)}})
		done := make(chan struct{})
		go func() { defer close(done); s.connection(t.Context(), conn) }()
		hi, _ := encodeHello(hello{listeners: true})
		ok, _ := encodeAck(nil)
		conn.in <- hi
		<-conn.out // node setup
		conn.in <- ok
		<-conn.out // snapshot sent
		conn.in <- ok
		synctest.Wait()
		src.set("a", Files{NetNS: NewFile(-1), Outbound: NewFile(-1), Plaintext: NewFile(-1), HBONE: NewFile(-1)})
		begin := time.Now()
		if err := s.Del(t.Context(), "a", false); err != nil {
			t.Errorf("got %v: a proxy that connects again is not told of the pod", err)
		}
		if d := time.Since(begin); d != DefaultTimeout {
			t.Errorf("took %v", d)
		}
		<-done
		if err := s.Add(t.Context(), "a"); err != ErrNoProxy {
			t.Errorf("got %v, want ErrNoProxy", err)
		}
	})
}
