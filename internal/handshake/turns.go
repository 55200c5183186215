// Package handshake is what a proxy that takes connections from anybody needs before it knows them: peers that say nothing
// cost a descriptor only (Silent), handshakes under way are bounded in all and by peer, and give way when they are slow
// (Turns), the last descriptors are kept for other things (Descriptors), and what a flood has to say is said seldom.
package handshake

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"
)

var (
	// ErrBusy is for a peer that found no room to wait, or waited too long.
	ErrBusy = errors.New("too many handshakes are waiting")
	// ErrStall is the cause of a handshake's end that was slow while others waited.
	ErrStall = errors.New("handshake: the peer is slow and others wait")
	// ErrLate is for a peer whose turn came when Start took nothing more.
	ErrLate = errors.New("handshake: the proxy ends")
)

// TurnsConfig bounds handshakes.
type TurnsConfig struct {
	// Max are under way at once, PerPeer of them with one address, and Queue wait.
	Max, PerPeer, Queue int
	// Slow is how long one may last while others wait.
	Slow time.Duration
	// Start runs a function on a goroutine. It is false when it is too late for that.
	Start func(func()) bool
}

// Turns bounds the handshakes with peers that are under way: in all and by peer. The others wait in line, without a
// goroutine each. A handshake that has lasted Slow and goes on gives way when somebody waits. So peers that connect and
// stall cannot keep others out for longer than that. Methods may be called from any goroutine.
type Turns struct {
	cfg TurnsConfig // immutable

	mu      sync.Mutex // guards the fields below
	running []*turn    // in order of their start
	byPeer  map[netip.Addr]int
	queue   []*turn
	relief  *time.Timer // calls relieve; nil while nobody waits
}

// NewTurns is ready at once; what it starts ends with the functions given to it.
func NewTurns(cfg TurnsConfig) *Turns { return &Turns{cfg: cfg, byPeer: map[netip.Addr]int{}} }

// turn is one handshake.
type turn struct {
	peer   netip.Addr
	run    func(context.Context)
	drop   func(error)
	ctx    context.Context
	cancel context.CancelCauseFunc
	since  time.Time // of its start
}

// Take has run called on a goroutine when it is the handshake's turn, with a context below ctx that ends when it has to
// give way; or else drop, if it never is. Neither is called from here, but for drop when there is no room to wait.
func (t *Turns) Take(ctx context.Context, peer netip.Addr, run func(context.Context), drop func(error)) {
	x := &turn{peer: peer, run: run, drop: drop, ctx: ctx}
	t.mu.Lock()
	if len(t.queue) >= t.cfg.Queue {
		t.mu.Unlock()
		drop(ErrBusy)
		return
	}
	t.queue = append(t.queue, x)
	late := t.admitLocked()
	t.mu.Unlock()
	dropAll(late, ErrLate)
}

// Running is the number of handshakes under way.
func (t *Turns) Running() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.running)
}

// admitLocked starts those whose turn it is, and returns those for whom it is too late.
func (t *Turns) admitLocked() (late []*turn) {
	for i := 0; i < len(t.queue) && len(t.running) < t.cfg.Max; {
		x := t.queue[i]
		if t.byPeer[x.peer] >= t.cfg.PerPeer {
			i++
			continue
		}
		t.queue = slices.Delete(t.queue, i, i+1)
		x.ctx, x.cancel = context.WithCancelCause(x.ctx)
		x.since = time.Now()
		if !t.cfg.Start(func() { t.do(x) }) {
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
func (t *Turns) do(x *turn) {
	x.run(x.ctx)
	x.cancel(nil)
	t.mu.Lock()
	t.running = slices.DeleteFunc(t.running, func(y *turn) bool { return y == x })
	if t.byPeer[x.peer]--; t.byPeer[x.peer] == 0 {
		delete(t.byPeer, x.peer)
	}
	late := t.admitLocked()
	t.mu.Unlock()
	dropAll(late, ErrLate)
}

// watchLocked has relieve called when the oldest handshake is slow, as long as somebody waits.
func (t *Turns) watchLocked() {
	if len(t.queue) == 0 || len(t.running) == 0 || t.relief != nil {
		return
	}
	t.relief = time.AfterFunc(max(t.cfg.Slow-time.Since(t.running[0].since), t.cfg.Slow/20), t.relieve)
}

// Busy tells whether a handshake is under way or waits.
func (t *Turns) Busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.running)+len(t.queue) > 0
}

// relieve ends slow handshakes, one for each that waits, and those that have waited too long.
func (t *Turns) relieve() {
	t.mu.Lock()
	t.relief = nil
	waiting := len(t.queue)
	for _, x := range t.running {
		if waiting == 0 || time.Since(x.since) < t.cfg.Slow {
			break
		}
		if x.ctx.Err() == nil {
			x.cancel(ErrStall)
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
	dropAll(over, ErrBusy)
}

func dropAll(list []*turn, err error) {
	for _, x := range list {
		x.drop(err)
	}
}
