package hbone_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/loop"
)

// ending is what a peer does behind its answer of 200.
type ending struct {
	name  string
	end   bool // END_STREAM behind the data
	reset hbone.ErrCode
	close bool // the connection, instead of a reset
	want  error
}

var endings = []ending{
	{name: "a reset, as Envoy does when the other end closes", reset: hbone.CodeConnect, want: unix.ECONNRESET},
	{name: "a cancellation", reset: hbone.CodeCancel, want: unix.ECONNRESET},
	{name: "the end and a reset", end: true, reset: hbone.CodeConnect},
	{name: "the end and a cancellation", end: true, reset: hbone.CodeCancel},
	{name: "the end and a request to stop", end: true, reset: hbone.CodeNo},
	{name: "the end of the connection", close: true, want: unix.ECONNRESET},
	{name: "the end and that of the connection", end: true, close: true},
}

// barePeer answers one request, all in one write if it fits a record.
func barePeer(t *testing.T, e ending, data []byte) (netip.AddrPort, *tls.Config) {
	t.Helper()
	ca := hbonetest.NewCA(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", ca.Config("spiffe://cluster.local/ns/s/sa/server"))
	if err != nil {
		t.Fatal(err)
	}
	conns, done := make(chan net.Conn, 1), make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		conns <- c
		if err == nil {
			err = answer(c.(*tls.Conn), e, data)
		}
		done <- err
	}()
	t.Cleanup(func() {
		ln.Close()
		if c := <-conns; c != nil {
			c.Close()
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().(*net.TCPAddr).AddrPort(), ca.Config("spiffe://cluster.local/ns/c/sa/client")
}

func answer(c *tls.Conn, e ending, data []byte) error {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return err
	}
	var out bytes.Buffer
	fr := http2.NewFramer(&out, c)
	fr.WriteSettings()
	if _, err := out.WriteTo(c); err != nil {
		return err
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err
		}
		if _, ok := f.(*http2.HeadersFrame); ok {
			break
		}
	}
	var block bytes.Buffer
	hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	for len(data) > 0 {
		n := min(len(data), 16384)
		fr.WriteData(1, e.end && n == len(data), data[:n])
		data = data[n:]
	}
	if !e.close {
		fr.WriteRSTStream(1, http2.ErrCode(e.reset))
	}
	if _, err := out.WriteTo(c); err != nil {
		return err
	}
	if e.close {
		if err := c.CloseWrite(); err != nil {
			return err
		}
	}
	for {
		if _, err := fr.ReadFrame(); err != nil {
			return nil // the test's end, or the client's
		}
	}
}

// RFC 9113 section 8.1 and 8.5: what came before a reset was sent before it.
func TestWhatCameBeforeAResetIsDeliveredBeforeIt(t *testing.T) {
	large := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{3}).Read(large)
	for _, e := range endings {
		for size, data := range map[string][]byte{"a little": []byte("answer"), "more than an application that does not read takes": large} {
			t.Run(e.name+", "+size, func(t *testing.T) {
				m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
				addr, cfg := barePeer(t, e, data)
				m.cl.OnLoop(func() { m.pool = hbone.NewPool(m.cl, hbone.PoolConfig{Dial: hbonetest.Dialer(m.cl, cfg)}) })
				m.key.Addr = addr
				c, err := m.dial()
				if err != nil {
					t.Fatal(err)
				}
				m.untilOver()
				c.SetReadDeadline(time.Now().Add(10 * time.Second))
				got, err := io.ReadAll(c)
				if !bytes.Equal(got, data) || !errors.Is(err, e.want) {
					t.Errorf("%d of %d bytes, %v; want %v", len(got), len(data), err, e.want)
				}
				c.Close()
				r := <-m.joined
				if ok := e.end && !e.close && e.reset == hbone.CodeNo; ok != (r.Err == nil) {
					t.Errorf("result %+v", r)
				}
				if r.Received != int64(len(data)) {
					t.Errorf("%d bytes received, want %d", r.Received, len(data))
				}
			})
		}
	}
}

// untilOver waits until the peer has ended all streams.
func (m *mesh) untilOver() {
	m.t.Helper()
	for end := time.Now().Add(10 * time.Second); m.stats().Streams > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatal("the stream is still open")
		}
	}
}

func TestConnectionsForGoroutinesAndPipesReadWhatCameBeforeAReset(t *testing.T) {
	data := bytes.Repeat([]byte("answer"), 10000)
	for _, e := range endings {
		t.Run(e.name, func(t *testing.T) {
			for kind, read := range map[string]func(*testing.T, *mesh) ([]byte, error){"net.Conn": readConn, "pipe": readPipe} {
				m := newMesh(t, hbone.PoolConfig{}, hbone.ServerConfig{})
				addr, cfg := barePeer(t, e, data)
				m.cl.OnLoop(func() { m.pool = hbone.NewPool(m.cl, hbone.PoolConfig{Dial: hbonetest.Dialer(m.cl, cfg)}) })
				m.key.Addr = addr
				got, err := read(t, m)
				if !bytes.Equal(got, data) || (err == nil) != (e.want == nil) {
					t.Errorf("%s: %d of %d bytes, %v", kind, len(got), len(data), err)
				}
			}
		})
	}
}

func readConn(t *testing.T, m *mesh) ([]byte, error) {
	c, _, err := m.pool.OpenConn(context.Background(), m.key, nil, &hbone.Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m.untilOver()
	return io.ReadAll(c)
}

func readPipe(t *testing.T, m *mesh) ([]byte, error) {
	r := &pipeReader{done: make(chan error, 1)}
	m.cl.Inject(func() { m.pool.Open(m.key, nil, &hbone.Request{Authority: "10.0.0.1:80"}, r) })
	err := <-r.done
	return r.got, err
}

// pipeReader reads a stream to its end.
type pipeReader struct {
	p    loop.Pipe
	got  []byte
	done chan error
}

func (r *pipeReader) StreamFailed(err error) { r.done <- err }

func (r *pipeReader) StreamOpened(s *hbone.Stream, _ *hbone.Response) {
	r.p = s.Pipe()
	r.p.SetHandler(r)
}

func (r *pipeReader) PipeReady() {
	buf := make([]byte, 4096)
	for {
		n, err := r.p.Read(buf)
		r.got = append(r.got, buf[:n]...)
		switch err {
		case nil:
			continue
		case loop.ErrAgain:
			return
		case io.EOF:
			err = nil
		}
		r.p.Close()
		r.done <- err
		return
	}
}
