package handshake

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// handshakes are turns in a bubble, with what came of them.
type handshakes struct {
	*Turns
	wg sync.WaitGroup

	mu      sync.Mutex
	done    map[string]time.Duration // by name: when, since the start
	dropped map[string]error
	gaveWay map[string]error
	began   time.Time
}

func newHandshakes(most, perPeer, queue int) *handshakes {
	h := &handshakes{done: map[string]time.Duration{}, dropped: map[string]error{}, gaveWay: map[string]error{}, began: time.Now()}
	h.Turns = NewTurns(TurnsConfig{Max: most, PerPeer: perPeer, Queue: queue, Slow: time.Second, Start: func(f func()) bool {
		h.wg.Go(f)
		return true
	}})
	return h
}

// shake begins a handshake that lasts.
func (h *handshakes) shake(ctx context.Context, name, peer string, lasts time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	h.Take(ctx, netip.MustParseAddr(peer), func(ctx context.Context) {
		defer cancel()
		timer := time.NewTimer(lasts)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if ctx.Err() != nil {
			h.gaveWay[name] = context.Cause(ctx)
			return
		}
		h.done[name] = time.Since(h.began)
	}, func(err error) {
		defer cancel()
		h.mu.Lock()
		defer h.mu.Unlock()
		h.dropped[name] = err
	})
}

func TestPeersThatStallKeepOthersOutForASecondOnly(t *testing.T) { // B7
	synctest.Test(t, func(t *testing.T) {
		h := newHandshakes(4, 4, 10)
		for _, n := range []string{"s1", "s2", "s3", "s4"} {
			h.shake(t.Context(), n, "10.0.0.66", time.Hour)
		}
		h.shake(t.Context(), "good", "10.0.0.2", 10*time.Millisecond)
		h.wg.Wait()
		if d := h.done["good"]; d < time.Second || d > 1100*time.Millisecond {
			t.Errorf("an honest handshake was done after %v, want about 1 s", d)
		}
		if !errors.Is(h.gaveWay["s1"], ErrStall) || !errors.Is(h.gaveWay["s2"], context.DeadlineExceeded) {
			t.Errorf("the stalled ended with %v, want the oldest to give way and the others to go on", h.gaveWay)
		}
	})
}

func TestOnePeerHasAShareOfTheHandshakesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandshakes(4, 2, 3)
		for _, n := range []string{"s1", "s2", "s3", "s4", "s5", "s6"} {
			h.shake(t.Context(), n, "10.0.0.66", 100*time.Millisecond)
		}
		if h.dropped["s6"] != ErrBusy || len(h.dropped) != 1 {
			t.Errorf("dropped %v, want what does not fit into the line", h.dropped)
		}
		synctest.Wait()
		h.mu.Lock()
		h.cfg.Queue++
		h.mu.Unlock()
		h.shake(t.Context(), "good", "10.0.0.2", 10*time.Millisecond)
		h.wg.Wait()
		if d := h.done["good"]; d != 10*time.Millisecond {
			t.Errorf("another peer waited: done after %v", d)
		}
		if len(h.done) != 6 {
			t.Errorf("done: %v", h.done)
		}
	})
}
