package controlplane

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/status"
)

// statuses are the statuses of all objects as they are to be. Safe for any goroutine.
type statuses struct {
	log *slog.Logger

	mu   sync.Mutex
	want map[kube.Key]status.Status
	// rendered are the statuses with times, of which nothing is known when they were written elsewhere before.
	rendered map[kube.Key][]byte
}

// update takes in the statuses of a set of objects and returns those that are others than before, also those that are to
// be taken back. what is not in the set any more is forgotten.
func (s *statuses) update(objects *kube.Objects, list []status.Status, now time.Time) []status.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var changed []status.Status
	want, rendered := map[kube.Key]status.Status{}, map[kube.Key][]byte{}
	put := func(x status.Status) {
		if body := s.rendered[x.Object]; body != nil && reflect.DeepEqual(x, s.want[x.Object]) {
			want[x.Object], rendered[x.Object] = x, body
			return
		}
		body, differs, err := x.Render(s.rendered[x.Object], now)
		if err != nil {
			s.log.Error("status not made", slog.String("object", x.Object.String()), slog.Any("err", err))
			return
		}
		want[x.Object], rendered[x.Object] = x, body
		if differs {
			changed = append(changed, x)
		}
	}
	for _, x := range list {
		put(x)
	}
	for k := range s.want {
		if _, still := want[k]; !still && objects.Lookup(k) != nil {
			put(status.Status{Object: k})
		}
	}
	s.want, s.rendered = want, rendered
	return changed
}

// ServeHTTP shows them by "Kind namespace/name", of one kind if asked.
func (s *statuses) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := r.URL.Query().Get("kind")
	out := map[string]json.RawMessage{}
	s.mu.Lock()
	for k, body := range s.rendered {
		if kind == "" || string(k.Kind) == kind {
			out[k.String()] = body
		}
	}
	s.mu.Unlock()
	writeJSON(w, out)
}
