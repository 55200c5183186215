package scale

import (
	"testing"
	"time"
)

// TestSoakARestartedControlPlaneSendsNothingAgain kills the control plane while two nodes know everything. What did not
// change meanwhile must not be sent (X6); what did must be, and nothing else.
func TestSoakARestartedControlPlaneSendsNothingAgain(t *testing.T) {
	m := writeManifests(t, manyPods, manyServices)
	c := startControlPlane(t, m)
	clients := []*client{startClient(t, c, "node-1"), startClient(t, c, "node-2")}
	restart := func(meanwhile func(), resources, removed int) {
		t.Helper()
		before := []traffic{clients[0].total(), clients[1].total()}
		c.kill()
		meanwhile()
		start := time.Now()
		c.start()
		ready := time.Since(start)
		for i, cl := range clients {
			// Both types have been answered.
			waitFor(t, cl.node+" in sync", func() bool { return cl.total().minus(before[i]).responses >= 2 })
			if d := cl.total().minus(before[i]); d.resources != resources || d.removed != removed || d.streams != 1 {
				t.Errorf("%s: after the restart came %+v, want %d resources and %d removals on one stream", cl.node, d, resources, removed)
			} else {
				t.Logf("%s: control plane ready after %v, all in sync after %v; %d resources, %d removals, %d bytes", cl.node,
					ready.Round(time.Millisecond), time.Since(start).Round(time.Millisecond), d.resources, d.removed, d.bytes)
			}
		}
	}
	restart(func() {}, 0, 0)
	restart(func() {
		m.setReady(7, false)
		m.setReady(1234, false)
		m.remove(42)
	}, 2, 1)
	for _, cl := range clients {
		v := cl.store.View()
		if w, s := v.Len(); w != manyPods-1 || s != manyServices {
			t.Errorf("%s has %d workloads and %d services", cl.node, w, s)
		}
		if w := v.ByUID(m.uid(7)); w == nil || !w.Unhealthy {
			t.Errorf("%s: changed pod is %+v", cl.node, w)
		}
		if w := v.ByUID(m.uid(42)); w != nil {
			t.Errorf("%s: removed pod is still %+v", cl.node, w)
		}
	}
}
