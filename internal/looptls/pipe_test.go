package looptls

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// piped is a Pipe on a running loop whose peer is crypto/tls over sock.
type piped struct {
	loop.Pipe
	l    *loop.Loop
	sock *net.TCPConn
	peer *tls.Conn
}

// handlerFunc is a PipeHandler.
type handlerFunc func()

func (f handlerFunc) PipeReady() { f() }

// pipeTo makes a Pipe over TLS of a version; ready is called as its handler.
func pipeTo(t testing.TB, version uint16, ready func(p loop.Pipe)) *piped {
	t.Helper()
	srv, cli := configs(t)
	srv.MinVersion, cli.MinVersion, cli.MaxVersion = version, version, version
	sock, fd := connection(t)
	p := &piped{sock: sock, l: running(t), peer: tls.Server(sock, srv)}
	sock.SetDeadline(time.Now().Add(30 * time.Second))
	done := make(chan error, 1)
	go func() { done <- p.peer.Handshake() }()
	c, err := Client(context.Background(), fd, cli)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.l.OnLoop(func() {
		if p.Pipe, err = NewPipe(p.l, fd, c); err != nil {
			t.Error(err)
			return
		}
		p.SetHandler(handlerFunc(func() { ready(p.Pipe) }))
		p.Wake()
	})
	return p
}

// echo sends back what comes, as a relay does: what is not taken is held, and nothing is read meanwhile.
type echo struct {
	held  []byte // the rest of space
	space []byte
	moved int
	most  int // was queued
	err   error
	over  chan struct{}
}

func (e *echo) ready(p loop.Pipe) {
	for e.err == nil {
		n, err := p.Write(e.held)
		e.held = e.held[n:]
		e.most = max(e.most, p.(*pipe).c.Queued())
		if err != nil {
			e.end(err)
			return
		}
		if len(e.held) > 0 {
			return
		}
		buf := p.Loop().Buffer()[:10_000]
		n, err = p.Read(buf)
		switch {
		case err == loop.ErrAgain:
			return
		case err != nil:
			if err == io.EOF {
				p.CloseWrite()
			}
			e.end(err)
			return
		}
		e.moved += n
		e.space = append(e.space[:0], buf[:n]...)
		e.held = e.space
	}
}

func (e *echo) end(err error) {
	e.err = err
	close(e.over)
}

func TestAPipeCarriesBytesBothWaysAndHoldsLittleForASlowPeer(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		e := &echo{over: make(chan struct{})}
		p := pipeTo(t, version, e.ready)
		data := make([]byte, 20<<20)
		rand.Read(data)
		sent := make(chan error, 1)
		go func() {
			_, err := p.peer.Write(data)
			if err == nil {
				err = p.peer.CloseWrite()
			}
			sent <- err
		}()
		// The peer reads nothing until the pipe reads nothing either.
		for last := -1; ; {
			now := 0
			p.l.OnLoop(func() { now = e.moved })
			if now == last {
				break
			}
			last = now
			time.Sleep(50 * time.Millisecond) // a wrong guess costs nothing but this test's sharpness
		}
		got, err := io.ReadAll(p.peer)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes came back, %v", tls.VersionName(version), len(got), err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		<-e.over
		if e.err != io.EOF {
			t.Errorf("ended by %v", e.err)
		}
		if e.most == 0 || e.most > pipeQueue+pipeWrite+64*100 {
			t.Errorf("%s: up to %d bytes were queued", tls.VersionName(version), e.most)
		}
	}
}

func TestHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	got := make(chan string, 1)
	var all []byte
	p := pipeTo(t, tls.VersionTLS13, func(p loop.Pipe) {
		buf := make([]byte, 3)
		for {
			n, err := p.Read(buf)
			all = append(all, buf[:n]...)
			if err == io.EOF {
				p.Close()
				got <- string(all)
				return
			}
			if err != nil {
				return
			}
		}
	})
	big := make([]byte, 32<<20)
	p.l.OnLoop(func() { // the notice comes behind what is still queued
		n, err := p.Write(big)
		if n == len(big) || n == 0 || err != nil {
			t.Errorf("wrote %d, %v: the test is too small", n, err)
		}
		big = big[:n]
		if err := p.CloseWrite(); err != nil {
			t.Error(err)
		}
		if _, err := p.Write([]byte("x")); err != io.ErrClosedPipe {
			t.Errorf("write after the end: %v", err)
		}
	})
	if b, err := io.ReadAll(p.peer); err != nil || len(b) != len(big) {
		t.Errorf("%d bytes of %d, %v", len(b), len(big), err)
	}
	if _, err := p.peer.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	p.peer.CloseWrite()
	if s := <-got; s != "still here" {
		t.Errorf("got %q", s)
	}
	if _, err := p.sock.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the socket is not closed: %v", err)
	}
}

func TestHowAPeerEndsIsToldApart(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(p *piped)
		want error
	}{
		"close_notify": {func(p *piped) { p.peer.CloseWrite() }, io.EOF},
		"FIN":          {func(p *piped) { p.sock.CloseWrite() }, io.ErrUnexpectedEOF},
		"RST":          {func(p *piped) { p.sock.SetLinger(0); p.sock.Close() }, unix.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			var got []byte
			p := pipeTo(t, tls.VersionTLS13, func(p loop.Pipe) {
				for {
					n, err := p.Read(p.Loop().Buffer())
					got = append(got, p.Loop().Buffer()[:n]...)
					if err == loop.ErrAgain {
						return
					}
					if err != nil {
						if !p.Readable() {
							t.Error("the end is not seen again")
						}
						p.Reset()
						ended <- err
						return
					}
				}
			})
			p.peer.Write([]byte("last words"))
			for n := 0; n < 10; { // a reset may destroy what was not read
				p.l.OnLoop(func() { n = len(got) })
			}
			c.end(p)
			if err := <-ended; !errors.Is(err, c.want) || string(got) != "last words" {
				t.Errorf("%q, then %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestCloseSendsWhatIsQueuedAndResetDoesNot(t *testing.T) {
	for _, reset := range []bool{false, true} {
		p := pipeTo(t, tls.VersionTLS13, func(loop.Pipe) {})
		wrote := 0
		p.l.OnLoop(func() {
			wrote, _ = p.Write(make([]byte, 32<<20))
			if reset {
				p.Reset()
			} else {
				p.Close()
			}
			p.Close()
			if _, err := p.Write([]byte("x")); err != loop.ErrClosed {
				t.Errorf("write: %v", err)
			}
			if _, err := p.Read(make([]byte, 1)); err != loop.ErrClosed {
				t.Errorf("read: %v", err)
			}
		})
		n, err := io.Copy(io.Discard, p.peer)
		if reset != (err != nil) || !reset && n != int64(wrote) {
			t.Errorf("reset %v: %d bytes of %d, %v", reset, n, wrote, err)
		}
	}
}

func TestAPeerThatTakesNothingIsCutOffAfterAWhile(t *testing.T) {
	p := pipeTo(t, tls.VersionTLS13, func(loop.Pipe) {})
	p.l.OnLoop(func() {
		p.Write(make([]byte, 32<<20))
		p.Close()
		x := p.Pipe.(*pipe)
		if !x.linger.Running() {
			t.Error("nothing bounds the wait")
		}
		x.linger.Stop()
		x.Expired(&x.linger)
		if !x.f.Closed() || x.c.Queued() != 0 {
			t.Error("not given back")
		}
	})
	if _, err := io.Copy(io.Discard, p.peer); err == nil {
		t.Error("the peer took it for a good end")
	}
}

func TestShortPiecesShareARecord(t *testing.T) {
	p := pipeTo(t, tls.VersionTLS13, func(loop.Pipe) {})
	p.l.OnLoop(func() {
		if n, err := p.Writev([][]byte{[]byte("head "), nil, []byte("body")}); n != 9 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if n, err := p.Writev([][]byte{make([]byte, 20_000), make([]byte, 20_000)}); n != 40_000 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	})
	b := make([]byte, 100)
	if n, err := p.peer.Read(b); string(b[:n]) != "head body" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if n, err := io.ReadFull(p.peer, make([]byte, 40_000)); err != nil {
		t.Error(n, err)
	}
}

// BenchmarkPipe carries 64 KiB to the pipe, which sends them back.
func BenchmarkPipe(b *testing.B) {
	const size = 64 << 10
	e := &echo{over: make(chan struct{})}
	p := pipeTo(b, tls.VersionTLS13, e.ready)
	out, in := make([]byte, size), make([]byte, size)
	b.SetBytes(2 * size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.peer.Write(out); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(p.peer, in); err != nil {
			b.Fatal(err)
		}
	}
}
