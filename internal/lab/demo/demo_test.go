package demo

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestAClaimThatFailsIsToldAndCounted(t *testing.T) {
	var out strings.Builder
	d := &demo{cfg: Config{Out: &out}}
	show := func(seen string, err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return seen, err }
	}
	holds, fails := claim{"A", "a", show("1 of 1", nil)}, claim{"B", "b", show("0 of 1", errors.New("expected 1"))}
	d.check(t.Context(), []claim{holds, fails})
	d.beside(t.Context(), claim{"D", "d", show("", errors.New("late"))}, []claim{{"C", "c", show("", nil)}})
	const want = `
1. A
   asked: a
   seen:  1 of 1
   pass

2. B
   asked: b
   seen:  0 of 1
   FAIL:  expected 1

3. C
   asked: c
   pass

4. D
   asked: d
   FAIL:  late
`
	if got := out.String(); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if d.number != 4 || d.failed != 2 {
		t.Errorf("%d claims, %d failed", d.number, d.failed)
	}
}

func TestAnInterruptedDemoShowsNoMoreAndWaitsForWhatIsUnderWay(t *testing.T) {
	var out strings.Builder
	d := &demo{cfg: Config{Out: &out}}
	ctx, cancel := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), false
	long := claim{"long", "", func(ctx context.Context) (string, error) {
		close(started)
		<-ctx.Done()
		ended = true
		return "", ctx.Err()
	}}
	d.beside(ctx, long, []claim{
		{"cut", "", func(context.Context) (string, error) { <-started; cancel(); return "", context.Canceled }},
		{"never", "", func(context.Context) (string, error) { t.Error("it goes on"); return "", nil }},
	})
	if !ended || strings.Count(out.String(), "interrupted") != 2 || d.failed != 0 {
		t.Errorf("ended %t, %q", ended, out.String())
	}
}
