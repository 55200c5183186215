package capture

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// Stats counts a Manager's pods.
type Stats struct {
	// Active pods are captured, Pending ones should be and cannot, Draining ones left the mesh with connections open.
	Active, Pending, Draining int
	// Started and Stopped count captures and their ends, Repaired damaged redirections, since the start.
	Started, Stopped, Repaired uint64
}

// Stats returns the counts.
func (m *Manager) Stats() Stats {
	s := Stats{Started: m.started.Load(), Stopped: m.stopped.Load(), Repaired: m.repaired.Load()}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		switch p.state {
		case stateCaptured:
			s.Active++
		case statePending:
			s.Pending++
		case stateDraining:
			s.Draining++
		}
	}
	return s
}

// ServeMetrics answers with the counts in Prometheus' text format, under ztunnel's names.
func (m *Manager) ServeMetrics(w http.ResponseWriter, _ *http.Request) {
	s := m.Stats()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	for _, x := range []struct {
		name, kind, help string
		value            uint64
	}{
		{"workload_manager_active_proxy_count", "gauge", "Pods that are captured.", uint64(s.Active)},
		{"workload_manager_pending_proxy_count", "gauge", "Pods that should be captured and cannot be.", uint64(s.Pending)},
		{"workload_manager_draining_proxy_count", "gauge", "Pods that left the mesh and have connections.", uint64(s.Draining)},
		{"workload_manager_proxies_started_total", "counter", "Pods captured.", s.Started},
		{"workload_manager_proxies_stopped_total", "counter", "Captures ended.", s.Stopped},
		{"workload_manager_repairs_total", "counter", "Damaged redirections repaired.", s.Repaired},
		{"workload_manager_connected_proxies", "gauge", "Proxies connected.", uint64(m.Proxies())},
	} {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %d\n", x.name, x.help, x.name, x.kind, x.name, x.value)
	}
	m.waits.write(w)
	if m.cfg.Late != nil {
		const name = "workload_manager_late_pods_total"
		fmt.Fprintf(w, "# HELP %s Pods that ran before they were captured.\n# TYPE %s counter\n%s %d\n", name, name, name, m.cfg.Late())
	}
	if m.cfg.Probes != nil {
		const name = "workload_manager_probe_recognition"
		fmt.Fprintf(w, "# HELP %s How the kubelet's probes are told from other connections now; none: no kubelet found, they are captured.\n"+
			"# TYPE %s gauge\n%s{by=%q} 1\n", name, name, name, m.cfg.Probes())
	}
}

// waitBounds are the upper bounds of the buckets of waits, in seconds.
var waitBounds = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25}

// waits is a histogram of how long CNI plugins waited until their pods were let in, for pods outside the mesh and in it.
type waits struct {
	mu    sync.Mutex
	count [2][len(waitBounds) + 1]uint64 // guarded by mu
	sum   [2]float64                     // guarded by mu
}

// results are the values of waits' label.
var results = [2]string{podsock.Skipped, podsock.Captured}

func (h *waits) observe(d time.Duration, result string) {
	i := slices.Index(results[:], result)
	s := max(d.Seconds(), 0) // the clock was set meanwhile
	bucket, _ := slices.BinarySearch(waitBounds[:], s)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count[i][bucket]++
	h.sum[i] += s
}

func (h *waits) write(w io.Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	const name = "workload_manager_cni_add_duration_seconds"
	fmt.Fprintf(w, "# HELP %s How long the CNI plugin waited until a pod was let in, from its first attempt.\n# TYPE %s histogram\n", name, name)
	for i, result := range results {
		n := uint64(0)
		for b, bound := range waitBounds {
			n += h.count[i][b]
			fmt.Fprintf(w, "%s_bucket{result=%q,le=\"%g\"} %d\n", name, result, bound, n)
		}
		n += h.count[i][len(waitBounds)]
		fmt.Fprintf(w, "%s_bucket{result=%q,le=\"+Inf\"} %d\n%s_sum{result=%q} %g\n%s_count{result=%q} %d\n", name, result, n, name, result, h.sum[i], name, result, n)
	}
}
