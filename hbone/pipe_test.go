package hbone_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/loop"
)

// echoPipe sends back what it reads, one piece at a visit, and holds no more than that.
type echoPipe struct {
	p    loop.Pipe
	held []byte
	end  bool
	done chan error
}

func (e *echoPipe) PipeReady() {
	for e.p.Writable() {
		n, err := e.p.Write(e.held)
		e.held = e.held[n:]
		if err != nil {
			e.finish(err)
			return
		}
		if len(e.held) > 0 {
			return
		}
		if e.end {
			e.p.CloseWrite()
			e.finish(nil)
			return
		}
		buf := e.p.Loop().Buffer()[:40<<10]
		switch n, err = e.p.Read(buf); {
		case err == loop.ErrAgain:
			return
		case err == io.EOF:
			e.end = true
		case err != nil:
			e.finish(err)
			return
		default:
			e.held = append(e.held[:0], buf[:n]...)
			e.p.Wake()
			return
		}
	}
}

func (e *echoPipe) finish(err error) {
	e.p.Close()
	e.done <- err
}

// serveEcho accepts a stream and echoes on it; done is told how that ended.
func serveEcho(s *hbone.Stream, done chan error) *echoPipe {
	s.Accept(nil)
	e := &echoPipe{p: s.Pipe(), done: done}
	e.p.SetHandler(e)
	return e
}

func TestAPipeCarriesBytesBothWaysWithBackPressureAndHalfClose(t *testing.T) {
	done := make(chan error, 1)
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{Handler: hbonetest.HandlerFunc(func(s *hbone.Stream, r *hbone.Request) {
		serveEcho(s, done)
	})})
	c, _, err := m.pool.OpenConn(context.Background(), m.key, nil, &hbone.Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{3}).Read(data)
	var wg sync.WaitGroup
	wg.Go(func() { c.Write(data); c.CloseWrite() })
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("echoed %d bytes of %d, %v", len(got), len(data), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAPipeSeesTheResetOfItsPeerAndPassesOnItsOwn(t *testing.T) {
	done := make(chan error, 1)
	m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{Handler: hbonetest.HandlerFunc(func(s *hbone.Stream, r *hbone.Request) {
		e := serveEcho(s, done)
		if r.Authority == "10.0.0.1:81" {
			e.p.Reset()
		}
	})})
	var se *hbone.StreamError
	c, _, err := m.pool.OpenConn(context.Background(), m.key, nil, &hbone.Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c.Write(make([]byte, 9<<20)) // more than the windows hold: some of it comes back and is not read
		c.CloseWrite()
	}()
	io.ReadFull(c, make([]byte, 10))
	c.Close()
	if err := <-done; !errors.As(err, &se) || !se.Remote {
		t.Errorf("after the peer's reset: %v", err)
	}
	c, _, err = m.pool.OpenConn(context.Background(), m.key, nil, &hbone.Request{Authority: "10.0.0.1:81"})
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.As(err, &se) || se.Code != hbone.CodeCancel {
		t.Errorf("after our reset: %v", err)
	}
}
