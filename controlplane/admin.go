package controlplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"runtime"
	"slices"

	"github.com/ambit-mesh/ambit/controlplane/ca"
)

// admin serves readiness and metrics to everybody, and what proxies have to callers on this host.
func (s *server) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if !s.feed.synced.Load() {
			http.Error(w, "no configuration has been published yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]string{"version": s.cfg.Version, "goVersion": runtime.Version()})
	})
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.Handle("/debug/", fromThisHost(s.debug()))
	return mux
}

func (s *server) debug() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/syncz", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.discovery.Clients()) })
	mux.HandleFunc("GET /debug/problems", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.problems.Load()) })
	mux.Handle("GET /debug/status", s.statuses)
	mux.HandleFunc("GET /debug/ca", func(w http.ResponseWriter, _ *http.Request) {
		phase, since := s.authority.Phase()
		writeJSON(w, map[string]any{"phase": phase, "since": since, "roots": string(s.authority.RootPEM())})
	})
	mux.HandleFunc("POST /debug/ca/rotate", s.rotate)
	return mux
}

// fromThisHost refuses others: metrics must be readable from elsewhere on the same port, but who may ask for more is the
// API server's matter, by way of a forwarded port.
func fromThisHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "only from this host: kubectl port-forward, or the ambit command", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client went away
}

// rotate begins a rotation of the root.
func (s *server) rotate(w http.ResponseWriter, r *http.Request) {
	switch err := s.authority.Rotate(r.Context()); {
	case errors.Is(err, ca.ErrRotating) || errors.Is(err, ca.ErrPlugged):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		fmt.Fprintln(w, "prepared")
	}
}

// metrics writes the few numbers that tell whether proxies are up to date, in Prometheus' text format.
func (s *server) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	st := s.discovery.Stats()
	ready := 0
	if s.feed.synced.Load() {
		ready = 1
	}
	metric := func(kind, name, help string, v any) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", name, help, name, kind, name, v)
	}
	metric("gauge", "ambit_controlplane_ready", "1 when a configuration has been published.", ready)
	metric("gauge", "ambit_xds_clients", "Open xDS streams.", st.Streams)
	metric("counter", "ambit_xds_responses_total", "xDS responses sent.", st.Responses)
	metric("counter", "ambit_xds_resources_sent_total", "xDS resources sent or removed, over all clients.", st.Resources)
	metric("counter", "ambit_xds_rejects_total", "NACKs received.", st.NACKs)
	issued, refused := s.certificates.Counts()
	metric("counter", "ambit_ca_certificates_issued_total", "Certificates signed.", issued)
	fmt.Fprintf(w, "# HELP ambit_ca_requests_refused_total Requests for certificates that were refused, by reason.\n# TYPE ambit_ca_requests_refused_total counter\n")
	for _, reason := range slices.Sorted(maps.Keys(refused)) {
		fmt.Fprintf(w, "ambit_ca_requests_refused_total{reason=%q} %d\n", reason, refused[reason])
	}
	fmt.Fprintf(w, "# HELP ambit_xds_resources Resources served by type.\n# TYPE ambit_xds_resources gauge\n")
	for set, n := range st.Sets {
		fmt.Fprintf(w, "ambit_xds_resources{type=%q,scope=%q} %d\n", set.TypeURL, set.Scope, n)
	}
}
