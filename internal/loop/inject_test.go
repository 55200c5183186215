package loop

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
)

func TestEveryInjectedFunctionRunsOnceThoughTheLoopEndsMeanwhile(t *testing.T) {
	for range 50 {
		l, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		var running, injecting sync.WaitGroup
		running.Go(func() { l.Run(ctx) })
		const each = 100
		var ran atomic.Int32
		for range 4 {
			injecting.Go(func() {
				for range each {
					l.Inject(func() { ran.Add(1) })
				}
			})
		}
		stop()
		injecting.Wait()
		running.Wait()
		if n := ran.Load(); n != 4*each {
			t.Fatalf("%d ran of %d", n, 4*each)
		}
	}
}
