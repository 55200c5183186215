package proxy

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// clumsy panics when its dial succeeds.
type clumsy struct {
	flow
	d    dial
	told chan error
}

func (c *clumsy) dialed(err error) {
	if err == nil {
		panic("a bug of ours")
	}
	c.finish(err, 0, 0)
	c.told <- err
}

func (c *clumsy) cut(error) {}

func TestAPanicOfADialsHandlerEndsItsConnection(t *testing.T) {
	w := idleWorker(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.loop.Run(ctx) }()
	defer func() { stop(); <-ended }()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	c := &clumsy{told: make(chan error, 1)}
	pod := &Pod{UID: "a"}
	pod.refs.Store(10)
	w.loop.OnLoop(func() {
		c.begin(w, pod, c, outboundDir)
		c.d.start(w, pair[0], c)
	})
	select {
	case err = <-c.told:
	case <-time.After(5 * time.Second):
		t.Fatal("the connection was never told")
	}
	if !errors.Is(err, loop.ErrPanic) || w.open.Load() != 0 {
		t.Errorf("told %v, %d connections are left", err, w.open.Load())
	}
}
