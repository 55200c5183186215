package waypoint

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
)

// statsHandler serves /stats: of Envoy's statistics those about the server and its clusters, by its names. Everything else is
// in /stats/prometheus. The parameters are Envoy's format, filter and usedonly.
func (w *waypoint) statsHandler(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	wanted, err := regexp.Compile(q.Get("filter"))
	if err != nil {
		http.Error(rw, fmt.Sprintf("filter: %v", err), http.StatusBadRequest)
		return
	}
	var list []number
	for _, n := range w.stats() {
		if wanted.MatchString(n.name) && (n.value != 0 || !q.Has("usedonly")) {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b number) int { return strings.Compare(a.name, b.name) })
	if q.Get("format") == "json" {
		out := []object{}
		for _, n := range list {
			out = append(out, object{"name": n.name, "value": n.value})
		}
		writeJSON(rw, object{"stats": out})
		return
	}
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, n := range list {
		fmt.Fprintf(rw, "%s: %d\n", n.name, n.value)
	}
}

func (w *waypoint) stats() []number {
	live, state := uint64(1), uint64(0) // LIVE
	if len(w.ready.Waiting()) > 0 {
		live, state = 0, 3 // INITIALIZING
	}
	clusters := w.config.clusters.View().All()
	out := []number{
		{"server.live", live}, {"server.state", state}, {"server.uptime", uint64(time.Since(w.started).Seconds())},
		{"server.concurrency", uint64(w.workers())}, {"listener_manager.total_listeners_active", uint64(len(w.config.rawListeners.sorted()))},
		{"cluster_manager.active_clusters", uint64(len(clusters))},
	}
	for _, c := range clusters {
		out = append(out, clusterStats(c)...)
	}
	return out
}

func clusterStats(c *cluster.Cluster) []number {
	u, s, hosts := c.Usage(), c.Stats(), c.Hosts()
	healthy, ejected := 0, 0
	for _, h := range hosts {
		if h.Available() {
			healthy++
		}
		if h.Ejected() {
			ejected++
		}
	}
	out := []number{
		{"membership_total", uint64(len(hosts))}, {"membership_healthy", uint64(healthy)}, {"outlier_detection.ejections_active", uint64(ejected)},
		{"outlier_detection.ejections_total", s.Ejections.Load()}, {"upstream_cx_active", uint64(max(u.Connections, 0))},
		{"upstream_rq_active", uint64(max(u.Requests, 0))}, {"upstream_rq_pending_active", uint64(max(u.Pending, 0))},
		{"upstream_rq_total", s.Requests.Load()}, {"upstream_rq_retry", s.Retries.Load()}, {"upstream_rq_pending_overflow", s.Overflows.Load()},
	}
	for i := range out {
		out[i].name = "cluster." + c.StatName + "." + out[i].name
	}
	return out
}
