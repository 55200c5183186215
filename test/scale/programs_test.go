package scale

import (
	"testing"
	"time"
)

// TestSoakRealProxiesSurviveARestartedControlPlane is the restart with nothing but real programs: what the control plane
// sent to each proxy is read from its own counters.
func TestSoakRealProxiesSurviveARestartedControlPlane(t *testing.T) {
	m := writeManifests(t, manyPods, manyServices)
	c := startControlPlane(t, m)
	for _, node := range []string{"node-1", "node-2"} {
		startProxy(t, c, node)
	}
	waitFor(t, "both proxies in sync", func() bool { return inSync(c) == 2 })
	sent := func() []int {
		var out []int
		for _, cl := range c.clients() {
			n := 0
			for _, ty := range cl.Types {
				n += ty.Resources
			}
			out = append(out, n)
		}
		return out
	}
	for _, n := range sent() {
		if n != manyPods+manyServices {
			t.Errorf("%d resources were sent at first, want %d", n, manyPods+manyServices)
		}
	}
	for _, meanwhile := range []func() int{
		func() int { return 0 },
		func() int { m.setReady(3, false); m.remove(4); return 2 },
	} {
		c.kill()
		want := meanwhile()
		start := time.Now()
		c.start()
		waitFor(t, "both proxies in sync again", func() bool { return inSync(c) == 2 })
		got := sent()
		for _, n := range got {
			if n != want {
				t.Errorf("%d resources were sent after the restart, want %d", n, want)
			}
		}
		t.Logf("restart with %d changes: in sync after %v, resources sent and removed %v", want, time.Since(start).Round(time.Millisecond), got)
	}
}
