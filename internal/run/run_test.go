package run

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal collects what happened.
type journal struct {
	mu  sync.Mutex
	got []string
}

func (j *journal) add(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.got = append(j.got, s)
}

// seen returns a copy.
func (j *journal) seen() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.got)
}

// task runs until it is stopped and takes d to end.
func (j *journal) task(name string, d time.Duration) (string, func(context.Context) error) {
	return name, func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(d)
		j.add(name)
		return ctx.Err()
	}
}

func TestTasksStopInReverseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := New(Config{})
		g.Add(j.task("first", 0))
		g.Add(j.task("second", time.Second))
		g.Add(j.task("third", time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if want := []string{"third", "second", "first"}; !slices.Equal(j.seen(), want) {
			t.Errorf("stopped %v, want %v", j.got, want)
		}
	})
}

func TestAFailureStopsTheGroupAndIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		broken := errors.New("broken")
		g := New(Config{})
		g.Add(j.task("first", 0))
		g.Add("bad", func(context.Context) error { time.Sleep(time.Minute); return broken })
		err := g.Run(t.Context())
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), `task "bad"`) || !slices.Equal(j.seen(), []string{"first"}) {
			t.Errorf("Run = %v after %v", err, j.got)
		}
	})
}

func TestAPanicIsAnErrorOfItsTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := New(Config{})
		g.Add(j.task("first", 0))
		g.Add("bad", func(context.Context) error { panic("oops") })
		err := g.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "panic: oops") || !strings.Contains(err.Error(), "run_test.go") || len(j.got) != 1 {
			t.Errorf("Run = %v after %v", err, j.got)
		}
	})
}

func TestATaskThatIsDoneDoesNotStopTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{})
		g.Add("done", func(context.Context) error { return nil })
		g.Add("longer", func(context.Context) error { time.Sleep(time.Hour); return nil })
		start := time.Now()
		if err := g.Run(t.Context()); err != nil || time.Since(start) != time.Hour {
			t.Errorf("Run = %v after %v", err, time.Since(start))
		}
	})
}

func TestAnErrorWhileStoppingIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		g := New(Config{})
		g.Add("bad", func(ctx context.Context) error { <-ctx.Done(); return broken })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Run(ctx); !errors.Is(err, broken) {
			t.Errorf("Run = %v, want %v", err, broken)
		}
	})
}

func TestTheDrainHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := New(Config{Drain: 10 * time.Second, Grace: time.Second})
		g.Add(j.task("quick", 0))
		g.Add(j.task("stuck", 20*time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start := time.Now()
		err := g.Run(ctx)
		if !errors.Is(err, ErrDrain) || !strings.HasSuffix(err.Error(), ": stuck") || time.Since(start) != 11*time.Second {
			t.Errorf("Run = %v after %v", err, time.Since(start))
		}
		if !slices.Equal(j.seen(), []string{"quick"}) {
			t.Errorf("ended: %v, want quick, which had its turn when time was over", j.seen())
		}
		time.Sleep(time.Minute) // lets the stuck one end
	})
}

func TestAnEmptyGroupEnds(t *testing.T) {
	if err := New(Config{}).Run(t.Context()); err != nil {
		t.Error(err)
	}
}
