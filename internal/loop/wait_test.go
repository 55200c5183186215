package loop

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"
)

// holding is a running loop that may keep its P for hold.
func holding(t *testing.T, hold time.Duration) *Loop {
	t.Helper()
	l, err := New(Config{Hold: hold})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return l
}

// A loop is busy until it has slept for long; with an hour to hold it never gives its P back of its own accord.
func TestALoopThatHoldsItsProcessorIsStoppedByTheCollectorAndWokenByEvents(t *testing.T) {
	l := holding(t, time.Hour)
	for range 20 {
		l.OnLoop(func() {})
		runtime.GC()
	}
	l.OnLoop(func() {
		if w := l.Stats().Waits; w != 0 {
			t.Errorf("%d sleeps without the P, want none", w)
		}
	})
}

func TestALoopWithoutEventsGivesItsProcessorBack(t *testing.T) {
	l := holding(t, time.Millisecond)
	var waits uint64
	for deadline := time.Now().Add(10 * time.Second); waits == 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
		l.OnLoop(func() { waits = l.Stats().Waits })
	}
	if waits == 0 {
		t.Error("it never slept in the ordinary way")
	}
}

func TestTimersEndASleepThatHoldsTheProcessor(t *testing.T) {
	l := holding(t, time.Hour)
	var timer Timer
	fired := make(expiry, 1)
	l.OnLoop(func() { l.Start(&timer, time.Millisecond, fired) })
	<-fired
}

type expiry chan struct{}

func (e expiry) Expired(*Timer) { close(e) }

func TestAProcessorIsAddedForTheTimeThatALoopMayHoldOne(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Run("while it runs", func(t *testing.T) {
		holding(t, time.Millisecond).OnLoop(func() {})
		if n := runtime.GOMAXPROCS(0); n != before+1 {
			t.Errorf("%d, want %d", n, before+1)
		}
	})
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("after its end %d, want %d", n, before)
	}
}
