package scale

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// TestSoakMemory measures the real programs with 0, 1,000 and 10,000 workloads, and the Rust ztunnel that ZTUNNEL_BIN
// names, if any, under the same control plane.
func TestSoakMemory(t *testing.T) {
	for _, size := range []struct{ pods, services int }{{0, 0}, {1000, 100}, {manyPods, manyServices}} {
		t.Run(fmt.Sprint(size.pods), func(t *testing.T) {
			m := writeManifests(t, size.pods, size.services)
			start := time.Now()
			c := startControlPlane(t, m)
			ready, loaded := time.Since(start), c.cpu()
			var proxies []*program
			var admins []string
			for i := range 2 {
				p, admin := startProxy(t, c, fmt.Sprintf("node-%d", i))
				proxies, admins = append(proxies, p), append(admins, admin)
			}
			waitFor(t, "both proxies in sync", func() bool { return inSync(c) == 2 })
			cpu := proxies[0].cpu()
			// What is garbage after the loading is given back within seconds, or is not.
			settle(t, 3*time.Second, 20*time.Second)
			all, anon := c.rss()
			t.Logf("control plane: %.1f MB (%.1f without files), ready after %v, %v CPU", all, anon, ready.Round(time.Millisecond), loaded)
			all, anon = proxies[0].rss()
			t.Logf("ztunnel proxy: %.1f MB (%.1f without files), %v CPU", all, anon, cpu)
			if rust := rustProxy(t, c, "node-5"); rust != nil {
				waitFor(t, "the Rust ztunnel in sync", func() bool { return inSync(c) == 3 })
				cpu := rust.cpu()
				settle(t, 3*time.Second, 20*time.Second)
				all, anon := rust.rss()
				t.Logf("Rust ztunnel: %.1f MB (%.1f without files), %v CPU", all, anon, cpu)
			}
			if dump := httpGet("http://" + admins[0] + "/config_dump"); bytes.Count(dump, []byte("//Pod/")) < size.pods {
				t.Errorf("the proxy does not hold %d pods", size.pods)
			}
			if anon > 40 {
				t.Errorf("ztunnel proxy has %.1f MB without files", anon)
			}
		})
	}
}

// settle waits, since memory and steady state can only be looked at after a while.
func settle(t *testing.T, short, long time.Duration) {
	d := short
	if soak() {
		d = long
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

// inSync counts the clients that have ACKed all that they asked for.
func inSync(c *controlPlane) int {
	n := 0
	for _, cl := range c.clients() {
		synced := len(cl.Types) == 2
		for _, ty := range cl.Types {
			synced = synced && ty.State == "SYNCED"
		}
		if synced {
			n++
		}
	}
	return n
}
