package loop

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
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a loop that a test drives from outside.
func running(t testing.TB) *Loop {
	t.Helper()
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return l
}

// tcpPair is a connected pair over loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan net.Conn, 1)
	go func() { c, _ := ln.Accept(); got <- c }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, b = c.(*net.TCPConn), (<-got).(*net.TCPConn)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// steal turns a connection into a bare descriptor.
func steal(t testing.TB, c *net.TCPConn) int {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	rc.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	return fd
}

type joined chan JoinResult

func (j joined) Joined(r JoinResult) { j <- r }

// relay puts a relay between two fresh connections and returns their outer ends.
func relay(t testing.TB, l *Loop, first []byte) (a, b *net.TCPConn, done joined) {
	t.Helper()
	a, ai := tcpPair(t)
	b, bi := tcpPair(t)
	afd, bfd := steal(t, ai), steal(t, bi)
	done = make(joined, 1)
	l.OnLoop(func() {
		fa, err := l.Add(afd, nil)
		if err != nil {
			t.Error(err)
		}
		fb, err := l.Add(bfd, nil)
		if err != nil {
			t.Error(err)
		}
		NewJoin(fa, fb, first, done)
	})
	return a, b, done
}

func TestJoinDeliversEveryByteInOrderBothWaysAndPassesOnHalfClose(t *testing.T) {
	l := running(t)
	a, b, done := relay(t, l, []byte("head "))
	const size = 32 << 20
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	var wg sync.WaitGroup
	send := func(c *net.TCPConn) { defer wg.Done(); c.Write(data); c.CloseWrite() }
	sums := make([][32]byte, 2)
	recv := func(i int, c *net.TCPConn) {
		defer wg.Done()
		h := sha256.New()
		io.Copy(h, c)
		h.Sum(sums[i][:0])
	}
	wg.Add(4)
	go send(a)
	go send(b)
	go recv(0, a)
	go recv(1, b)
	wg.Wait()
	if sums[0] != sha256.Sum256(data) {
		t.Error("bytes from b to a differ")
	}
	if sums[1] != sha256.Sum256(append([]byte("head "), data...)) {
		t.Error("bytes from a to b differ, or what was read before the join is missing")
	}
	if r := <-done; r.Err != nil || r.AtoB != size+5 || r.BtoA != size {
		t.Errorf("result %+v", r)
	}
}

func TestJoinKeepsTheOtherDirectionOpenAfterAFin(t *testing.T) {
	l := running(t)
	a, b, done := relay(t, l, nil)
	a.CloseWrite()
	if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("FIN arrived as %d, %v", n, err)
	}
	for range 3 {
		b.Write([]byte("late"))
		buf := make([]byte, 4)
		if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "late" {
			t.Fatalf("after half-close: %q, %v", buf, err)
		}
	}
	b.Close()
	if r := <-done; r.Err != nil {
		t.Errorf("result %+v", r)
	}
}

func TestJoinPassesAResetOnAsAReset(t *testing.T) {
	for _, name := range []string{"idle", "after a FIN from the other side"} {
		t.Run(name, func(t *testing.T) {
			l := running(t)
			a, b, done := relay(t, l, nil)
			if name != "idle" {
				a.CloseWrite()
				b.Read(make([]byte, 1))
			}
			b.SetLinger(0)
			b.Close()
			a.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the peer saw %v, want a reset", err)
			}
			if r := <-done; r.Err == nil {
				t.Error("the join reports no error")
			}
		})
	}
}

// What a process leaves open when it dies is closed by the kernel as by close(2).
func TestASocketClosedBeforeItsFINWasSentResetsItsPeer(t *testing.T) {
	for _, c := range []struct {
		name  string
		close func(*FD) error
		want  error
	}{
		{"before CloseWrite", (*FD).Close, unix.ECONNRESET},
		{"after CloseWrite", func(f *FD) error { return errors.Join(f.CloseWrite(), f.Close()) }, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := running(t)
			peer, own := tcpPair(t)
			fd := steal(t, own)
			l.OnLoop(func() {
				f, err := l.Add(fd, nil)
				if err != nil {
					t.Error(err)
					return
				}
				f.ResetOnClose()
				n, err := f.Write([]byte("all but the end"))
				if err := errors.Join(err, c.close(f)); err != nil || n != 15 {
					t.Errorf("wrote %d bytes: %v", n, err)
				}
			})
			peer.SetReadDeadline(time.Now().Add(10 * time.Second))
			got, err := io.ReadAll(peer)
			if err == nil {
				err = io.EOF
			}
			if string(got) != "all but the end" || !errors.Is(err, c.want) {
				t.Errorf("the peer read %q and then %v, want all of it and %v", got, err, c.want)
			}
		})
	}
}

func TestJoinReadsNothingMoreWhileTheReceiverTakesNothing(t *testing.T) {
	l := running(t)
	a, b, _ := relay(t, l, nil)
	a.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, _ := a.Write(make([]byte, 256<<20))
	if n > 64<<20 {
		t.Errorf("%d bytes were swallowed though nobody reads", n)
	}
	got, _ := io.CopyN(io.Discard, b, int64(n))
	if got != int64(n) {
		t.Errorf("then %d of %d bytes arrived", got, n)
	}
}

func TestTimersFireInOrderAndStoppedOnesDoNot(t *testing.T) {
	l := running(t)
	var got []byte
	done := make(chan struct{})
	ts := make([]testTimer, 5)
	l.OnLoop(func() {
		for i, d := range []time.Duration{30, 10, 20, 15, 40} {
			ts[i].f = func() {
				got = append(got, byte('0'+i))
				if i == 4 {
					close(done)
				}
			}
			l.Start(&ts[i].Timer, d*time.Millisecond, &ts[i])
		}
		ts[3].Stop()
		ts[3].Stop()
	})
	<-done
	if !bytes.Equal(got, []byte("1204")) {
		t.Errorf("order %q, want 1204", got)
	}
}

type testTimer struct {
	Timer
	f func()
}

func (t *testTimer) Expired(*Timer) { t.f() }

func TestInjectAfterTheLoopEndedStillRuns(t *testing.T) {
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	l.Run(ctx)
	ran := false
	l.Inject(func() { ran = true })
	if !ran {
		t.Error("a late closure was lost")
	}
}

type handler func(*FD)

func (h handler) Ready(f *FD) { h(f) }

func TestAPanickingHandlerCostsItsConnectionOnly(t *testing.T) {
	l := running(t)
	a, ai := tcpPair(t)
	fd := steal(t, ai)
	l.OnLoop(func() {
		if _, err := l.Add(fd, handler(func(*FD) { panic("bug") })); err != nil {
			t.Error(err)
		}
	})
	a.Write([]byte("x"))
	a.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := a.Read(make([]byte, 1)); err == nil || errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("read: %v, want a closed connection", err)
	}
	var s Stats
	l.OnLoop(func() { s = l.Stats() })
	if s.Panics != 1 || s.FDs != 0 {
		t.Errorf("stats %+v", s)
	}
}

type committer func()

func (c committer) CommitTurn() { c() }

func TestAPanicOutsideOfAVisitDoesNotEndTheProcess(t *testing.T) {
	l := running(t)
	l.OnLoop(func() {
		l.AtTurnEnd(committer(func() { panic("bug in a commit") }))
		tm := &testTimer{f: func() { panic("bug in a timer") }}
		l.Start(&tm.Timer, 0, tm)
	})
	l.Inject(func() { panic("bug in a closure") })
	var s Stats
	for s.Panics < 3 {
		l.OnLoop(func() { s = l.Stats() })
	}
}

func BenchmarkJoinPingPong(b *testing.B) {
	l := running(b)
	x, y, _ := relay(b, l, nil)
	buf := make([]byte, 1024)
	go func() {
		in := make([]byte, 1024)
		for {
			if _, err := io.ReadFull(y, in); err != nil {
				return
			}
			y.Write(in)
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		x.Write(buf)
		io.ReadFull(x, buf)
	}
}
