package handshake

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// outcome is a Peer that keeps what it is told.
type outcome chan any

func (o outcome) Spoke(fd int)   { o <- fd }
func (o outcome) Left(err error) { o <- err }

func TestASilentPeerWaitsUntilItSpeaksOrLeavesOrItsTimeIsOver(t *testing.T) { // B7
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	patient, hasty := NewSilent(l, time.Hour), NewSilent(l, time.Millisecond)
	ended := errors.New("ended")
	add := func(s *Silent) (int, outcome) {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(p[1]) })
		o := make(outcome, 1)
		l.OnLoop(func() { err = s.Add(p[0], o) })
		if err != nil {
			t.Fatal(err)
		}
		return p[1], o
	}
	speaks, spoke := add(patient)
	leaves, left := add(patient)
	_, cut := add(patient)
	_, late := add(hasty)
	var n, young int
	l.OnLoop(func() { n, young = patient.Len(), patient.Younger(time.Hour) })
	if n != 3 || young != 3 {
		t.Errorf("%d wait, %d for less than an hour; want 3", n, young)
	}
	if err, _ := (<-late).(error); !errors.Is(err, ErrSilent) {
		t.Errorf("after its time: %v", err)
	}
	unix.Write(speaks, []byte("x"))
	fd, ok := (<-spoke).(int)
	if !ok {
		t.Fatal("a peer that spoke was given up")
	}
	if k, err := unix.Read(fd, make([]byte, 2)); k != 1 || err != nil {
		t.Errorf("what it said: %d bytes, %v", k, err)
	}
	unix.Close(fd)
	unix.Shutdown(leaves, unix.SHUT_RDWR)
	var gone *GoneError
	if err, _ := (<-left).(error); !errors.As(err, &gone) || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("left: %v", err)
	}
	l.OnLoop(func() { patient.End(ended, func(p Peer) bool { return p == Peer(cut) }) })
	if err := <-cut; err != any(ended) {
		t.Errorf("ended: %v", err)
	}
	l.OnLoop(func() { n = patient.Len() + hasty.Len() })
	if n != 0 {
		t.Errorf("%d are left", n)
	}
}
