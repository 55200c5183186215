package hbone

import (
	"testing"

	"golang.org/x/sys/unix"
)

// joinedRig is a server's connection with one stream that is joined with a socket, whose other end is app.
func joinedRig(t testing.TB) (r *rig, j *join, app int) {
	r = serverRig(t, ServerConfig{})
	s := r.serve(1)
	f, app := socket(t, r.l, nil)
	s.Join(f, nil)
	r.c.peerFrame = maxFrameSize
	r.tr.null = true
	return r, s.side.(*join), app
}

// refill says that the application's socket is readable and writable again, and visits it.
func refill(t testing.TB, r *rig, j *join) {
	if err := r.l.Register(j.app, j.app.Detach(), j); err != nil {
		t.Fatal(err)
	}
	j.Ready(j.app)
}

func drainSocket(fd int, buf []byte) (n int) {
	for {
		k, err := unix.Read(fd, buf)
		if k <= 0 || err != nil {
			return n
		}
		n += k
	}
}

// Everything below is without TLS: crypto/tls itself allocates 24 bytes for each record received.

func TestPingPongDoesNotAllocate(t *testing.T) {
	r, j, app := joinedRig(t)
	in := rawFrame(frameData, 0, 1, make([]byte, 1024))
	credit := rawFrame(frameWindowUpdate, 0, 1, u32(1024))
	credit0 := rawFrame(frameWindowUpdate, 0, 0, u32(1024))
	buf := make([]byte, 4096)
	trip := func() {
		for _, b := range [][]byte{in, credit, credit0} {
			if err := r.c.feed(b); err != nil {
				t.Fatal(err)
			}
		}
		r.c.flushDirty()
		if n := drainSocket(app, buf); n != 1024 {
			t.Fatalf("%d bytes arrived", n)
		}
		unix.Write(app, buf[:1024])
		refill(t, r, j)
		r.turn()
	}
	for range 100 {
		trip()
	}
	if n := testing.AllocsPerRun(1000, trip); n > 0 {
		t.Errorf("%v allocations for each round trip", n)
	}
	if sent, received := j.s.Counts(); sent != received || sent == 0 {
		t.Errorf("counted %d and %d bytes", sent, received)
	}
}

func TestBulkDoesNotAllocate(t *testing.T) {
	r, j, app := joinedRig(t)
	unix.SetsockoptInt(app, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	unix.SetsockoptInt(j.app.Fd(), unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	const size = 128 << 10
	in := rawFrame(frameData, 0, 1, make([]byte, size))
	credit := rawFrame(frameWindowUpdate, 0, 1, u32(size))
	credit0 := rawFrame(frameWindowUpdate, 0, 0, u32(size))
	buf := make([]byte, 1<<20)
	burst := func() {
		for b := in; len(b) > 0; b = b[min(len(b), 16384):] { // as records bring it
			if err := r.c.feed(b[:min(len(b), 16384)]); err != nil {
				t.Fatal(err)
			}
		}
		r.c.feed(credit)
		r.c.feed(credit0)
		r.c.flushDirty()
		got := drainSocket(app, buf)
		for got < size { // the rest was queued
			refill(t, r, j)
			got += drainSocket(app, buf)
		}
		unix.Write(app, buf[:size])
		refill(t, r, j)
		r.turn()
	}
	for range 50 {
		burst()
	}
	if n := testing.AllocsPerRun(300, burst); n > 0 {
		t.Errorf("%v allocations for each burst", n)
	}
	if sent, received := j.s.Counts(); sent < size*350 || received < size*350 {
		t.Errorf("counted %d and %d bytes", sent, received)
	}
}

func TestAnIdleConnectionHoldsNoBuffers(t *testing.T) {
	r, j, app := joinedRig(t)
	r.upload(1, 1<<20)
	buf := make([]byte, 1<<20)
	for got := 0; got < 1<<20; got += drainSocket(app, buf) {
		refill(t, r, j)
	}
	r.turn()
	if r.c.batch != nil || j.s.queue.Front() != nil || j.s.g != nil || cap(r.c.in.payload) > 1024 || cap(r.c.block.buf) > 1024 || r.c.buffered != 0 {
		t.Errorf("batch %v, queue %d, gather %v, payload %d, block %d, buffered %d", r.c.batch, j.s.queue.Len(), j.s.g, cap(r.c.in.payload), cap(r.c.block.buf), r.c.buffered)
	}
}
