package scale

import (
	"testing"
	"time"
)

// TestSoakOneEndpointChangeCostsOneResource flips the readiness of single pods and follows each change from the file to
// the stores of two nodes.
func TestSoakOneEndpointChangeCostsOneResource(t *testing.T) {
	m := writeManifests(t, manyPods, manyServices)
	c := startControlPlane(t, m)
	a, b := startClient(t, c, "node-1"), startClient(t, c, "node-2")
	for _, cl := range []*client{a, b} {
		if w, s := cl.store.View().Len(); w != manyPods || s != manyServices {
			t.Fatalf("%s has %d workloads and %d services", cl.node, w, s)
		}
	}
	whole := a.total()
	var times []time.Duration
	changes, cpu := amount(50, 500), c.cpu()
	for i := range changes {
		pod := i * 37 % manyPods
		before, atA, atB := a.total(), a.expect(m.uid(pod)), b.expect(m.uid(pod))
		start := time.Now()
		m.setReady(pod, false)
		times = append(times, max(await(t, atA).Sub(start), await(t, atB).Sub(start)))
		if w := b.store.View().ByUID(m.uid(pod)); w == nil || !w.Unhealthy {
			t.Fatalf("%s is not unhealthy at %s: %+v", m.uid(pod), b.node, w)
		}
		if d := a.total().minus(before); d.resources != 1 || d.removed != 0 || d.bytes > 1024 {
			t.Fatalf("one change sent %+v, want 1 resource and at most 1024 bytes", d)
		}
	}
	used := c.cpu() - cpu
	if d := a.total().minus(whole); d.resources != changes || d.streams != 0 {
		t.Errorf("%d changes sent %+v", changes, d)
	}
	d := a.total().minus(whole)
	t.Logf("%d changes, file to both stores: median %v, p95 %v, longest %v; %d bytes each of %d for the whole; control plane %v CPU each",
		changes, quantile(times, 0.5), quantile(times, 0.95), quantile(times, 1), d.bytes/changes, whole.bytes, (used / time.Duration(changes)).Round(100*time.Microsecond))
}

// TestSoakChurn changes 100 pods a second and measures how long each change takes.
func TestSoakChurn(t *testing.T) {
	m := writeManifests(t, manyPods, manyServices)
	c := startControlPlane(t, m)
	a, b := startClient(t, c, "node-1"), startClient(t, c, "node-2")
	type change struct {
		start    time.Time
		atA, atB <-chan time.Time
	}
	var changes []change
	before, cpu, began := a.total(), c.cpu(), time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := range amount(300, 3000) {
		<-tick.C
		pod := i * 37 % manyPods
		x := change{atA: a.expect(m.uid(pod)), atB: b.expect(m.uid(pod)), start: time.Now()}
		m.setReady(pod, false)
		changes = append(changes, x)
	}
	var times []time.Duration
	for _, x := range changes {
		times = append(times, max(await(t, x.atA).Sub(x.start), await(t, x.atB).Sub(x.start)))
	}
	took, used, d := time.Since(began), c.cpu()-cpu, a.total().minus(before)
	if d.resources != len(changes) || d.removed != 0 {
		t.Errorf("%d changes sent %+v", len(changes), d)
	}
	all, _ := c.rss()
	t.Logf("%d changes in %v: median %v, p95 %v, longest %v; %d responses; control plane %v CPU (%.0f %% of a core), %.0f MB",
		len(changes), took.Round(time.Millisecond), quantile(times, 0.5), quantile(times, 0.95), quantile(times, 1), d.responses,
		used, 100*used.Seconds()/took.Seconds(), all)
}
