package admin

import (
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Ready tells whether a program can do its work: it is ready when no task is pending. The zero value is ready. Safe from
// any goroutine.
type Ready struct {
	mu      sync.Mutex
	pending []string // guarded by mu; sorted
}

// Pending marks a task as not done; a program marks all its tasks before it serves. A task may become pending again.
func (r *Ready) Pending(task string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, found := slices.BinarySearch(r.pending, task); !found {
		r.pending = slices.Insert(r.pending, i, task)
	}
}

// Done marks a task as done.
func (r *Ready) Done(task string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, found := slices.BinarySearch(r.pending, task); found {
		r.pending = slices.Delete(r.pending, i, i+1)
	}
}

// Set is Done or Pending.
func (r *Ready) Set(task string, done bool) {
	if done {
		r.Done(task)
	} else {
		r.Pending(task)
	}
}

// Waiting returns the pending tasks, sorted.
func (r *Ready) Waiting() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pending)
}

// Handler serves /healthz/ready: 200 "ready", or 500 with the pending tasks.
func (r *Ready) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/healthz/ready" {
			http.NotFound(w, req)
			return
		}
		if req.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			text(w, http.StatusMethodNotAllowed, "usage: GET /healthz/ready")
			return
		}
		if pending := r.Waiting(); len(pending) > 0 {
			text(w, http.StatusInternalServerError, "not ready, pending: %s", strings.Join(pending, ", "))
			return
		}
		text(w, http.StatusOK, "ready")
	})
}

// MetricsHandler serves h under /metrics and /stats/prometheus.
func MetricsHandler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/metrics" && req.URL.Path != "/stats/prometheus" {
			http.NotFound(w, req)
			return
		}
		h.ServeHTTP(w, req)
	})
}
