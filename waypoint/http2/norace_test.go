//go:build !race

// The race detector makes pools forget at random.

package http2

import (
	"runtime"
	"testing"
)

func TestARequestDoesNotAllocate(t *testing.T) {
	a := newAsker(t, chain(t))
	for range 300 {
		a.ask(7)
	}
	runtime.GC() // it empties pools
	for range 50 {
		a.ask(7)
	}
	if n := testing.AllocsPerRun(500, func() { a.ask(7) }); n > 0 {
		t.Errorf("%v allocations for 7 requests through a server and a client", n)
	}
}
