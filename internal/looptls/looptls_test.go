package looptls

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

func readFull(r io.Reader, p []byte) (int, error) { return io.ReadFull(r, p) }

const (
	typeAlert     = 21
	typeHandshake = 22
	typeData      = 23
)

var keyUpdateRequest = []byte{24, 0, 0, 1, 1}

func TestRecordsCutAnywhereComeOutWhole(t *testing.T) {
	for _, k := range []int{1, 3, 5, 6, 100, 16384, 16406, 1 << 20} {
		p := shaken(t, true)
		sizes := []int{1, 16384, 9, 0, 300, 16384, 16384, 5}
		if k < 100 {
			sizes = []int{1, 9, 0, 300, 1000}
		}
		var want, wire []byte
		for _, n := range sizes {
			b := make([]byte, n)
			rand.Read(b)
			want = append(want, b...)
			wire = append(wire, p.wr.record(typeData, b)...)
		}
		go func() {
			for b := wire; len(b) > 0; b = b[min(k, len(b)):] {
				p.sock.Write(b[:min(k, len(b))])
			}
		}()
		p.want(want)
	}
}

func TestPaddingIsRemoved(t *testing.T) {
	p := shaken(t, true)
	p.send(p.wr.record(0, append([]byte("padded\x17"), make([]byte, 100)...)))
	p.want([]byte("padded"))
}

// glue holds back all that follows the first write (the ClientHello), to send it at once.
type glue struct {
	net.Conn
	n int
	b []byte
}

func (g *glue) Write(p []byte) (int, error) {
	if g.n++; g.n == 1 {
		return g.Conn.Write(p)
	}
	g.b = append(g.b, p...)
	return len(p), nil
}

func TestDataInTheSegmentOfTheFinishedIsNotLost(t *testing.T) {
	for _, n := range []int{1, 600, 5000, 40000} {
		srv, cli := configs(t)
		p := &peer{t: t, plain: make(chan []byte, 1000), fail: make(chan error, 1)}
		p.sock, p.fd = connection(t)
		want := make([]byte, n)
		rand.Read(want)
		go func() {
			g := &glue{Conn: p.sock}
			c := tls.Client(g, cli)
			if err := c.Handshake(); err != nil {
				t.Error(err)
			}
			c.Write(want)
			g.Conn.Write(g.b)
		}()
		var err error
		if p.c, err = Server(context.Background(), p.fd, srv); err != nil {
			t.Fatal(err)
		}
		p.attach()
		p.want(want)
	}
}

func TestAKeyUpdateIsAnsweredAndBothKeysChange(t *testing.T) {
	for _, fragmented := range []bool{false, true} {
		p := shaken(t, true)
		p.send(p.wr.record(typeData, []byte("before")))
		if fragmented {
			p.send(append(p.wr.record(typeHandshake, keyUpdateRequest[:2]), p.wr.record(typeHandshake, keyUpdateRequest[2:])...))
		} else {
			p.send(p.wr.record(typeHandshake, keyUpdateRequest))
		}
		p.want([]byte("before"))
		if b, typ := p.rd.open(t, p.receive()); typ != typeHandshake || !bytes.Equal(b, []byte{24, 0, 0, 1, 0}) {
			t.Fatalf("answer %x of type %d", b, typ)
		}
		p.wr, p.rd = p.wr.updated(t), p.rd.updated(t)
		p.send(p.wr.record(typeData, []byte("after")))
		p.want([]byte("after"))
		p.l.OnLoop(func() { p.c.Write([]byte("reply")) })
		if b, _ := p.rd.open(t, p.receive()); string(b) != "reply" {
			t.Fatalf("got %q under the new key", b)
		}
	}
}

func TestAFragmentedHandshakeMessageAroundDataIsRefused(t *testing.T) { // RFC 8446 section 5.1
	p := shaken(t, true)
	p.send(append(p.wr.record(typeHandshake, keyUpdateRequest[:2]), p.wr.record(typeData, []byte("x"))...))
	if err := <-p.fail; err == io.EOF {
		t.Error("taken for an end")
	}
}

func TestFloodsOfRecordsThatCarryNothingAreRefused(t *testing.T) {
	for _, what := range []string{"empty data", "key updates"} {
		t.Run(what, func(t *testing.T) {
			p := shaken(t, true)
			for range 40 {
				if what == "empty data" {
					p.sock.Write(p.wr.record(typeData, nil))
				} else {
					p.sock.Write(p.wr.record(typeHandshake, keyUpdateRequest))
					p.wr = p.wr.updated(t)
				}
			}
			if err := <-p.fail; !strings.Contains(err.Error(), "tls") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCloseNotifyIsEOFAndAFINWithoutItIsNot(t *testing.T) {
	p := shaken(t, true)
	p.send(p.wr.record(typeAlert, []byte{1, 0}))
	if err := <-p.fail; err != io.EOF {
		t.Errorf("close_notify: %v", err)
	}
	p = shaken(t, true)
	p.send(p.wr.record(typeData, []byte("last words")))
	p.sock.CloseWrite()
	p.want([]byte("last words"))
	if err := <-p.fail; err != io.ErrUnexpectedEOF {
		t.Errorf("FIN: %v", err)
	}
}

func TestTamperedAndOversizeRecordsAreAnsweredByAnAlertAndEndTheConnection(t *testing.T) {
	tampered := func(p *peer) []byte {
		b := p.wr.record(typeData, []byte("hello"))
		b[7] ^= 1
		return b
	}
	oversize := func(*peer) []byte { return append([]byte{23, 3, 3, 0x41, 0x01}, make([]byte, 300)...) } // 16640 + 1
	for name, f := range map[string]func(*peer) []byte{"tampered": tampered, "oversize": oversize} {
		t.Run(name, func(t *testing.T) {
			p := shaken(t, true)
			p.send(f(p))
			if b, typ := p.rd.open(t, p.receive()); typ != typeAlert || b[0] != 2 {
				t.Errorf("got %x of type %d, want a fatal alert", b, typ)
			}
			if err := <-p.fail; err == nil || err == io.EOF {
				t.Errorf("error %v", err)
			}
			if err := p.c.ReadRecords(1<<18, nil); err == nil {
				t.Error("the error is not permanent")
			}
		})
	}
}

func TestWriteTakesEverythingAndKeepsTheOrder(t *testing.T) {
	p := shaken(t, true)
	data := make([]byte, 12<<20)
	rand.Read(data)
	p.l.OnLoop(func() {
		for b := data; len(b) > 0; b = b[min(len(b), 300_001):] {
			if err := p.c.Write(b[:min(len(b), 300_001)]); err != nil {
				t.Error(err)
				return
			}
		}
		if p.c.Queued() == 0 {
			t.Error("the socket took everything: the test is too small")
		}
		if p.c.BytesSealed() != int64(len(data)) {
			t.Errorf("sealed %d bytes, want %d", p.c.BytesSealed(), len(data))
		}
	})
	var got []byte
	for len(got) < len(data) {
		b, typ := p.rd.open(t, p.receive())
		if typ != typeData {
			t.Fatalf("type %d", typ)
		}
		got = append(got, b...)
	}
	if !bytes.Equal(got, data) {
		t.Error("bytes differ")
	}
	p.l.OnLoop(func() {
		if p.c.Queued() != 0 {
			t.Errorf("%d bytes still queued", p.c.Queued())
		}
	})
}

func TestEachRecordIsFullAndOneWriteIsFewSegments(t *testing.T) {
	p := shaken(t, true)
	p.l.OnLoop(func() { p.c.Write(make([]byte, 100_000)) })
	for _, want := range []int{16384, 16384, 16384, 16384, 16384, 16384, 100_000 - 6*16384} {
		if b, _ := p.rd.open(t, p.receive()); len(b) != want {
			t.Errorf("record of %d bytes, want %d (dynamic record sizing must be off)", len(b), want)
		}
	}
}

func TestAPeerThatMakesUsAnswerAndNeverReadsIsCutOff(t *testing.T) {
	p := shaken(t, true)
	p.l.OnLoop(func() {
		var err error
		for n := 0; err == nil && n < 4*maxQueued; n += 1 << 20 {
			err = p.c.Write(make([]byte, 1<<20))
		}
		if !errors.Is(err, ErrQueueFull) {
			t.Errorf("got %v", err)
		}
	})
}

// The teardown happens after, not inside, the call that met the dead socket: crypto/tls' locks are held there.
func TestADeadSocketWhileAnsweringIsReportedAndDoesNotDeadlock(t *testing.T) {
	p := shaken(t, true)
	stopped := make(chan struct{})
	p.l.OnLoop(func() { // the loop must not see the reset before the KeyUpdate
		defer close(stopped)
		p.send(p.wr.record(typeHandshake, keyUpdateRequest))
		p.sock.CloseWrite()
		unix.Shutdown(p.fd, unix.SHUT_WR) // writing fails from now on
	})
	<-stopped
	if err := <-p.fail; !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v", err)
	}
	p.l.OnLoop(func() {
		if err := p.c.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("write: %v", err)
		}
		p.c.CloseNotify() // must not block or crash
	})
}

func TestCloseNotifyIsSentOnce(t *testing.T) {
	p := shaken(t, true)
	p.l.OnLoop(func() { p.c.CloseNotify(); p.c.CloseNotify(); p.f.Close() })
	if b, typ := p.rd.open(t, p.receive()); typ != typeAlert || !bytes.Equal(b, []byte{1, 0}) {
		t.Errorf("got %x of type %d", b, typ)
	}
	if n, err := p.sock.Read(make([]byte, 100)); n != 0 || err != io.EOF {
		t.Errorf("then %d bytes, %v", n, err)
	}
}

func TestTheHandshakeEndsWithItsContextAndLeavesTheDescriptor(t *testing.T) {
	srv, _ := configs(t)
	_, fd := connection(t)
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := Server(ctx, fd, srv); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		t.Errorf("the descriptor is gone: %v", err)
	}
}

func TestAFailedHandshakeSendsItsAlert(t *testing.T) {
	srv, cli := configs(t)
	srv.NextProtos, cli.NextProtos = []string{"h2"}, []string{"other"}
	sock, fd := connection(t)
	defer unix.Close(fd)
	done := make(chan error, 1)
	go func() { _, err := Server(context.Background(), fd, srv); done <- err }()
	if err := tls.Client(sock, cli).Handshake(); err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("client: %v", err)
	}
	if err := <-done; err == nil {
		t.Error("server: no error")
	}
}

func TestReadingAllocatesAtMostOneSmallObjectPerRecord(t *testing.T) {
	p := shaken(t, false)
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if p.f, err = l.Add(p.fd, nil); err != nil {
		t.Fatal(err)
	}
	p.c.Attach(p.f)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	defer l.Run(ctx) // closes everything
	const records, runs = 15, 50
	var wire []byte
	for range records * (runs + 1) {
		wire = append(wire, p.wr.record(typeData, make([]byte, 16384))...)
	}
	per := len(wire) / (runs + 1)
	buf := make([]byte, per)
	null := func([]byte) error { return nil }
	i := 0
	n := testing.AllocsPerRun(runs, func() {
		copy(buf, wire[i*per:])
		i++
		if rest, err := p.c.records(buf, null); err != nil || len(rest) != 0 {
			t.Fatal(err, len(rest))
		}
	})
	if n > 1.1*records {
		t.Errorf("%v allocations for %d records", n, records)
	}
}

func heap() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestAnIdleConnectionHoldsLittleMemory(t *testing.T) {
	srv, cli := configs(t)
	srv.DynamicRecordSizingDisabled = true
	const n = 60
	conns := make([]*Conn, n)
	before := heap()
	for i := range conns {
		sock, fd := connection(t)
		done := make(chan error, 1)
		go func() { var err error; conns[i], err = Server(context.Background(), fd, srv); done <- err }()
		if err := tls.Client(sock, cli).Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		sock.Close()
		unix.Close(fd)
	}
	per := (int64(heap()) - int64(before)) / n
	t.Logf("%d bytes of heap for each connection (and its test peer)", per)
	if per > 40<<10 {
		t.Errorf("%d bytes for each idle connection", per)
	}
	runtime.KeepAlive(conns)
}
