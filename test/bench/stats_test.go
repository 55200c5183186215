package main

import (
	"strings"
	"testing"
	"time"
)

func TestHistogramKeepsValuesWithinThreePercent(t *testing.T) {
	for _, d := range []time.Duration{0, 1, 31, 32, 63, 64, 1000, 123456, time.Second, time.Hour} {
		h := &histogram{}
		h.add(d)
		got := h.quantile(.5)
		if got > d || float64(d-got) > 0.032*float64(d) {
			t.Errorf("quantile of a single %v = %v, want at most 3.2 %% less", d, got)
		}
	}
}

func TestHistogramQuantilesCountMergedValues(t *testing.T) {
	a, b := &histogram{}, &histogram{}
	for i := range 90 {
		a.add(time.Duration(i % 10))
	}
	for range 10 {
		b.add(time.Millisecond)
	}
	a.merge(b)
	if got := a.quantile(.5); got > 10 {
		t.Errorf("p50 = %v, want below 10ns", got)
	}
	if got := a.quantile(.95); got < 900*time.Microsecond {
		t.Errorf("p95 = %v, want about 1ms", got)
	}
}

func TestQuantileInterpolates(t *testing.T) {
	for _, c := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{[]float64{3}, .5, 3},
		{[]float64{4, 1, 3, 2}, .5, 2.5},
		{[]float64{1, 2, 3, 4, 5}, .25, 2},
		{[]float64{1, 2}, 1, 2},
	} {
		if got := quantile(c.values, c.p); got != c.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", c.values, c.p, got, c.want)
		}
	}
}

// fake is a sample of one second with the given CPU in microseconds for each of 1,000 round trips.
func fake(system string, round int, us float64) *sample {
	cpu := time.Duration(us * 1000 * float64(time.Microsecond))
	return &sample{Round: round, System: system, Workload: allWorkloads[4],
		Result: clientResult{Ops: 1000, Wall: time.Second}, CPU: map[role]time.Duration{proxyA: cpu}}
}

func TestRatioPairsRoundsAndIgnoresInvalidSamples(t *testing.T) {
	bad := fake(oursName, 2, 1000)
	bad.Invalid = "one error"
	b := &bencher{samples: []*sample{
		fake(oursName, 0, 10), fake(rustName, 0, 20),
		fake(oursName, 1, 30), fake(rustName, 1, 60),
		bad, fake(rustName, 2, 1),
		fake(oursName, 3, 5), // no partner
	}}
	name := allWorkloads[4].Name
	got := b.ratio(key{oursName, name}, proxyCPU, key{rustName, name}, proxyCPU)
	if got.n != 2 || got.mid != 0.5 {
		t.Errorf("ratio = %v of %d rounds, want 0.5 of 2", got, got.n)
	}
}

func TestGoalsNameWorkloadsThatExist(t *testing.T) {
	for _, g := range goals() {
		if g.id == "T9" || g.id == "T10" {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(g.text, "p99 of "), ",")
		name, _, _ = strings.Cut(name, " ")
		if len(selected(ztunnelSuite, name)) != 1 {
			t.Errorf("goal %s %q: no workload %q", g.id, g.text, name)
		}
	}
}

func TestRoundThatIsFarFromTheOthersIsAstray(t *testing.T) {
	b := &bencher{}
	w := allWorkloads[4]
	for i, us := range []float64{10, 11, 10, 20} {
		s := fake(directName, i, 0)
		s.CPU[clientRole] = time.Duration(us) * time.Millisecond
		b.samples = append(b.samples, s)
		if got, want := b.astray(w), i == 3; got != want {
			t.Errorf("after round %d: astray = %v, want %v", i, got, want)
		}
	}
}
