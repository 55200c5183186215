// Package run holds the long-running parts of a program together: it starts them in order, stops them in the reverse order
// when one fails or the program is told to end, and says which one did not end in time.
package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// Config sets up a Group. The zero value has the documented defaults.
type Config struct {
	// Drain is how long all tasks together may take to end after the stop began. 0 means 5 s.
	Drain time.Duration
	// Grace is how long tasks have that were still waiting for their turn when Drain ran out. 0 means 1 s.
	Grace time.Duration
	// Logger gets one line per task that ends; nil means none.
	Logger *slog.Logger
}

// Group is a set of named tasks. Add them, then call Run once. Not safe for concurrent use.
type Group struct {
	cfg   Config
	tasks []*task
}

// task is one part of the program.
type task struct {
	name   string
	run    func(context.Context) error
	cancel context.CancelFunc
	done   chan struct{} // closed by the task's goroutine
	err    error         // valid after done
}

// New returns an empty group; it starts nothing.
func New(cfg Config) *Group {
	if cfg.Drain == 0 {
		cfg.Drain = 5 * time.Second
	}
	if cfg.Grace == 0 {
		cfg.Grace = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Group{cfg: cfg}
}

// Add adds a task. Its context ends when the task shall drain and return; f must not return before all that it started has
// ended. A task that returns nil by itself is finished and does not stop the others; one that returns an error or panics
// stops the group.
func (g *Group) Add(name string, f func(context.Context) error) {
	g.tasks = append(g.tasks, &task{name: name, run: f, done: make(chan struct{})})
}

// ErrDrain is wrapped by Run's error when tasks did not end in time; their goroutines are left behind, so the program should
// exit.
var ErrDrain = errors.New("tasks did not end in time")

// Run starts the tasks in the order in which they were added and blocks until all have ended, or until the time to drain is
// over. It stops them, last one first, when ctx is done or a task fails. The error joins those of the tasks; a task that
// ends with the error of its cancelled context after being stopped did not fail.
func (g *Group) Run(ctx context.Context) error {
	failed := make(chan struct{}, len(g.tasks))
	var all sync.WaitGroup
	for _, t := range g.tasks {
		// Values of ctx stay visible, its end does not: the order of the stop is ours.
		tctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		t.cancel = cancel
		defer cancel()
		all.Go(func() {
			defer close(t.done)
			if t.err = t.protected(tctx); t.err != nil && tctx.Err() == nil {
				failed <- struct{}{}
			}
			if tctx.Err() != nil && errors.Is(t.err, context.Canceled) {
				t.err = nil
			}
			g.cfg.Logger.Debug("task ended", "task", t.name, "err", t.err)
		})
	}
	finished := make(chan struct{})
	go func() { // ends with the last task; Run waits for it unless the drain failed
		all.Wait()
		close(finished)
	}()
	select {
	case <-ctx.Done():
	case <-failed:
	case <-finished:
	}
	late := g.stop()
	errs := make([]error, 0, len(g.tasks)+1)
	for _, t := range g.tasks {
		select {
		case <-t.done:
			if t.err != nil {
				errs = append(errs, fmt.Errorf("task %q: %w", t.name, t.err))
			}
		default:
		}
	}
	if len(late) > 0 {
		return errors.Join(append(errs, fmt.Errorf("%w: %s", ErrDrain, strings.Join(late, ", ")))...)
	}
	<-finished
	return errors.Join(errs...)
}

// stop ends the tasks one after the other, last one first, and returns the names of those that did not end.
func (g *Group) stop() (late []string) {
	limit := time.NewTimer(g.cfg.Drain)
	defer limit.Stop()
	over := false
	for i := len(g.tasks) - 1; i >= 0 && !over; i-- {
		g.tasks[i].cancel()
		select {
		case <-g.tasks[i].done:
		case <-limit.C:
			over = true
		}
	}
	if !over {
		return nil
	}
	for _, t := range g.tasks {
		t.cancel()
	}
	grace := time.NewTimer(g.cfg.Grace)
	defer grace.Stop()
	expired := false
	for _, t := range g.tasks {
		if !expired {
			select {
			case <-t.done:
				continue
			case <-grace.C:
				expired = true
			}
		}
		select {
		case <-t.done:
		default:
			late = append(late, t.name)
		}
	}
	return late
}

// protected turns a panic into an error, so that the other tasks are still stopped in order.
func (t *task) protected(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return t.run(ctx)
}
