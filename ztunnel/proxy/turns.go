package proxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"
)

var (
	errBusy  = errors.New("too many handshakes are waiting")
	errStall = errors.New("handshake: the peer is slow and others wait")
)

// turns bounds the handshakes with peers that are under way: in all and by peer. The others wait in line, without a
// goroutine each. A handshake that has lasted slow and goes on gives way when somebody waits. So peers that connect and
// say nothing cannot keep others out for longer than that. Methods may be called from any goroutine.
type turns struct {
	// immutable
	max, perPeer, maxQueue int
	slow                   time.Duration
	start                  func(func()) bool // runs a function on a goroutine; false when it is too late for that

	mu      sync.Mutex // guards the fields below
	running []*turn    // in order of their start
	byPeer  map[netip.Addr]int
	queue   []*turn
	relief  *time.Timer // calls relieve; nil while nobody waits
}

// turn is one handshake.
type turn struct {
	peer   netip.Addr
	run    func(context.Context)
	drop   func(error)
	ctx    context.Context
	cancel context.CancelCauseFunc
	since  time.Time // of its start
}

// take has run called on a goroutine when it is the handshake's turn, with a context below ctx that ends when it has to
// give way; or else drop, if it never is. Neither is called from here, but for drop when there is no room to wait.
func (t *turns) take(ctx context.Context, peer netip.Addr, run func(context.Context), drop func(error)) {
	x := &turn{peer: peer, run: run, drop: drop, ctx: ctx}
	t.mu.Lock()
	if len(t.queue) >= t.maxQueue {
		t.mu.Unlock()
		drop(errBusy)
		return
	}
	t.queue = append(t.queue, x)
	late := t.admitLocked()
	t.mu.Unlock()
	dropAll(late, errDrained)
}

// admitLocked starts those whose turn it is, and returns those for whom it is too late.
func (t *turns) admitLocked() (late []*turn) {
	for i := 0; i < len(t.queue) && len(t.running) < t.max; {
		x := t.queue[i]
		if t.byPeer[x.peer] >= t.perPeer {
			i++
			continue
		}
		t.queue = slices.Delete(t.queue, i, i+1)
		x.ctx, x.cancel = context.WithCancelCause(x.ctx)
		x.since = time.Now()
		if !t.start(func() { t.do(x) }) {
			x.cancel(nil)
			late = append(late, x)
			continue
		}
		t.running = append(t.running, x)
		t.byPeer[x.peer]++
	}
	t.watchLocked()
	return late
}

// do is the goroutine of a turn.
func (t *turns) do(x *turn) {
	x.run(x.ctx)
	x.cancel(nil)
	t.mu.Lock()
	t.running = slices.DeleteFunc(t.running, func(y *turn) bool { return y == x })
	if t.byPeer[x.peer]--; t.byPeer[x.peer] == 0 {
		delete(t.byPeer, x.peer)
	}
	late := t.admitLocked()
	t.mu.Unlock()
	dropAll(late, errDrained)
}

// watchLocked has relieve called when the oldest handshake is slow, as long as somebody waits.
func (t *turns) watchLocked() {
	if len(t.queue) == 0 || len(t.running) == 0 || t.relief != nil {
		return
	}
	t.relief = time.AfterFunc(max(t.slow-time.Since(t.running[0].since), t.slow/20), t.relieve)
}

// busy tells whether a handshake is under way or waits.
func (t *turns) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.running)+len(t.queue) > 0
}

// relieve ends slow handshakes, one for each that waits, and those that have waited too long.
func (t *turns) relieve() {
	t.mu.Lock()
	t.relief = nil
	waiting := len(t.queue)
	for _, x := range t.running {
		if waiting == 0 || time.Since(x.since) < t.slow {
			break
		}
		if x.ctx.Err() == nil {
			x.cancel(errStall)
			waiting--
		}
	}
	var over []*turn
	t.queue = slices.DeleteFunc(t.queue, func(x *turn) bool {
		if x.ctx.Err() != nil {
			over = append(over, x)
		}
		return x.ctx.Err() != nil
	})
	t.watchLocked()
	t.mu.Unlock()
	dropAll(over, errBusy)
}

func dropAll(list []*turn, err error) {
	for _, x := range list {
		x.drop(err)
	}
}
