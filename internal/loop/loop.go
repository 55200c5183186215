// Package loop is an event loop: one goroutine, one epoll instance, and everything that they own.
//
// # Ownership
//
// A Loop and all that is registered with it (FD, Timer, Committer) belong to the loop's goroutine. Handlers run there, one
// after the other, and never block. Unless a comment says "any goroutine", a function of this package may only be called
// from a handler. Other goroutines hand in work by Inject. Loops share nothing; a program that wants more cores runs
// more loops.
//
// # One turn
//
// A turn waits for events (not at all while handlers have asked to be visited again), notes what became readable and
// writable, fires timers, runs what was injected, visits each handler that is due once, and last calls the committers:
// small writes of a turn are gathered and go out together (group commit).
//
// # Edge-triggered bookkeeping
//
// Every descriptor is registered once, for input and output, edge-triggered. FD remembers what the kernel announced
// until a call shows that it no longer holds: a read that returns less than asked for means "drained", and saves the
// call that would say EAGAIN, but only as long as no FIN or error was announced (then reading goes on to the end).
//
// Nothing here allocates per event, byte or descriptor visit.
package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// BufferSize is the length of Loop.Buffer in bytes.
const BufferSize = 256 << 10

// maxEvents is the number of descriptors reported by one wait.
const maxEvents = 256

// Config configures a Loop. The zero value is usable.
type Config struct {
	// Name appears in log lines. Default "loop".
	Name string
	// Logger receives the report of a handler that panicked. Default: discarded.
	Logger *slog.Logger
	// Hold is how long a busy loop may sleep without giving the Go scheduler its P back (see wait.go); while such a loop runs,
	// GOMAXPROCS is one more. DefaultHold is right for a proxy. Default 0: never.
	Hold time.Duration
}

// Handler is told that its descriptor may be worth a visit: it became readable or writable, or Wake was called. It
// should bound what it does in one visit and call Wake if more is left.
type Handler interface {
	Ready(f *FD)
}

// Committer is called once at the end of the turn in which it was passed to AtTurnEnd.
type Committer interface {
	CommitTurn()
}

// Aborter is what a Handler or Committer may implement besides: after it panicked it is told to give up what it owns.
type Aborter interface {
	Abort(err error)
}

// ErrPanic is the error of an Abort.
var ErrPanic = errors.New("internal error")

// Stats are counters of a loop since it was made.
type Stats struct {
	// Turns is the number of times round the loop; Waits those that gave the P back to sleep.
	Turns, Waits uint64
	// Visits is the number of calls of Handler.Ready.
	Visits uint64
	// FDs is the number of registered descriptors.
	FDs int
	// Panics is the number of handlers that panicked.
	Panics uint64
}

// Loop is one event loop. Make it with New, drive it with Run.
type Loop struct {
	// immutable
	name string
	log  *slog.Logger
	ep   int
	wake int // eventfd
	hold time.Duration

	// loop only
	fds      []*FD // by descriptor number
	due      []*FD // to be visited in this turn or the next
	visiting []*FD
	commits  []Committer
	events   [maxEvents]unix.EpollEvent
	iov      [maxIov]unix.Iovec
	buf      []byte
	timers   timerHeap
	now      time.Duration
	pause    time.Duration // the mean of the latest sleeps
	stats    Stats
	stopping bool
	spareFns []func()
	pipes    []*pipe

	// guarded by mu
	mu       sync.Mutex
	injected []func()
	ended    bool

	waking sync.WaitGroup // writes to wake under way
}

// start is the zero of Loop.Now.
var start = time.Now()

// New makes a loop. It holds two descriptors until Run has returned.
func New(cfg Config) (*Loop, error) {
	if cfg.Name == "" {
		cfg.Name = "loop"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	l := &Loop{name: cfg.Name, log: cfg.Logger, ep: ep, wake: wake, hold: cfg.Hold, buf: make([]byte, BufferSize), now: time.Since(start)}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)} // level-triggered: a missed wake-up would hang the loop
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		unix.Close(ep)
		unix.Close(wake)
		return nil, fmt.Errorf("watch eventfd: %w", err)
	}
	return l, nil
}

// Run drives the loop on the calling goroutine until ctx is done. It then closes every descriptor that is still registered
// and returns nil. Call it once. The goroutine is not locked to its thread: the runtime has it stop some fifty times a
// second, and a locked one can only go on when another thread has handed it back.
func (l *Loop) Run(ctx context.Context) error {
	if l.hold > 0 {
		addProcs(1)
		defer addProcs(-1)
	}
	stop := context.AfterFunc(ctx, func() { l.Inject(func() { l.stopping = true }) })
	defer stop()
	for !l.stopping {
		l.turn()
	}
	l.shut()
	return nil
}

// shut releases what the loop owns. Functions injected too late are run, so that nobody waits for ever.
func (l *Loop) shut() {
	l.mu.Lock()
	l.ended = true
	late := l.injected
	l.injected = nil
	l.mu.Unlock()
	for _, f := range late {
		f()
	}
	for _, f := range l.fds {
		if f != nil {
			f.Close()
		}
	}
	for _, p := range l.pipes {
		p.close()
	}
	unix.Close(l.ep)
	l.waking.Wait() // no new ones begin
	unix.Close(l.wake)
}

// turn is one time round.
func (l *Loop) turn() {
	l.stats.Turns++
	n := l.wait()
	l.now = time.Since(start)
	woken := false
	for i := range n {
		ev := &l.events[i]
		if int(ev.Fd) == l.wake {
			woken = true
			continue
		}
		if f := l.fds[ev.Fd]; f != nil {
			f.note(ev.Events)
		}
	}
	l.call(l.fireTimers)
	if woken {
		l.runInjected()
	}
	l.due, l.visiting = l.visiting[:0], l.due
	for i, f := range l.visiting {
		l.visiting[i] = nil
		f.queued = false
		if f.fd >= 0 {
			l.visit(f)
		}
	}
	for i := 0; i < len(l.commits); i++ { // a commit may ask for another
		c := l.commits[i]
		l.commits[i] = nil
		l.commit(c)
	}
	l.commits = l.commits[:0]
}

func (l *Loop) fireTimers() { l.timers.fire(l.now) }

// visit calls the handler. A handler that panics has met a bug of ours: it costs its connection, not the process.
func (l *Loop) visit(f *FD) {
	defer func() {
		if v := recover(); v != nil {
			h := f.h
			l.panicked(v, h)
			f.Close()
		}
	}()
	l.stats.Visits++
	f.h.Ready(f)
}

// commit calls a committer, in the same way.
func (l *Loop) commit(c Committer) {
	defer func() {
		if v := recover(); v != nil {
			l.panicked(v, c)
		}
	}()
	c.CommitTurn()
}

// call runs what has no owner: a timer's handler, an injected function.
func (l *Loop) call(f func()) {
	defer func() {
		if v := recover(); v != nil {
			l.panicked(v, nil)
		}
	}()
	f()
}

// panicked reports a panic and has its cause give up.
func (l *Loop) panicked(v, owner any) {
	l.stats.Panics++
	l.log.Error("panic on the loop, the connection is given up", "loop", l.name, "panic", v, "stack", string(debug.Stack()))
	if a, ok := owner.(Aborter); ok {
		l.call(func() { a.Abort(ErrPanic) })
	}
}

func (l *Loop) runInjected() {
	var b [8]byte
	unix.Read(l.wake, b[:]) // before taking the list: a later Inject writes again
	l.mu.Lock()
	fns := l.injected
	l.injected = l.spareFns
	l.mu.Unlock()
	for i, f := range fns {
		fns[i] = nil
		l.call(f)
	}
	l.spareFns = fns[:0]
}

// Inject makes the loop run f in one of its next turns, in the order of the calls. Any goroutine; does not block. After
// the loop has ended f runs on the calling goroutine instead, so that it can release what it holds.
func (l *Loop) Inject(f func()) {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		f()
		return
	}
	l.injected = append(l.injected, f)
	first := len(l.injected) == 1
	if first {
		l.waking.Add(1)
	}
	l.mu.Unlock()
	if first { // without the lock: the loop, awake at once, would run into it
		one := [8]byte{1}
		unix.Write(l.wake, one[:])
		l.waking.Done()
	}
}

// OnLoop runs f on the loop and waits until it has returned. Any goroutine but the loop's own. For tests and dumps.
func (l *Loop) OnLoop(f func()) {
	done := make(chan struct{})
	l.Inject(func() {
		defer close(done)
		f()
	})
	<-done
}

// Now is the monotonic time since the process started, as of the beginning of this turn.
func (l *Loop) Now() time.Duration { return l.now }

// Buffer is the loop's scratch space, BufferSize bytes. What is in it is valid until the handler returns or calls
// something that uses it too.
func (l *Loop) Buffer() []byte { return l.buf }

// Stats returns the loop's counters.
func (l *Loop) Stats() Stats { return l.stats }

// AtTurnEnd calls c.CommitTurn at the end of this turn. The caller sees to it that c is not passed twice in one turn.
func (l *Loop) AtTurnEnd(c Committer) { l.commits = append(l.commits, c) }
