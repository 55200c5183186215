package waypoint

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/forward"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// store takes in listeners, clusters and endpoints, and makes the snapshot that the data path goes by.
type store struct {
	log      *slog.Logger
	current  atomic.Pointer[forward.Snapshot]
	clusters *cluster.Set

	mu        sync.Mutex
	listeners map[string]*listener.Listener
	leaving   map[string]time.Time // clusters that were removed, and until when they stay

	endpoints *xds.Subscription
	// ready is closed when there is a snapshot.
	ready chan struct{}
	// dump is what the admin interface shows.
	dump atomic.Pointer[map[string]*listener.Listener]
	// The resources as they came.
	rawClusters, rawEndpoints, rawListeners rawSet
}

func newStore(log *slog.Logger) *store {
	return &store{log: log, clusters: cluster.NewSet(cluster.SetConfig{}), listeners: map[string]*listener.Listener{}, leaving: map[string]time.Time{}, ready: make(chan struct{})}
}

// subscribe adds the types in the order in which istiod expects to be asked: clusters, endpoints, listeners (controlplane.md
// 3.1).
func (s *store) subscribe(c *xds.Client) {
	xds.Subscribe(c, keepingType(xds.Type[*cluster.Config]{URL: xds.ClusterType, Decode: cluster.Decode}), keeping[*cluster.Config]{&s.rawClusters, clusterHandler{s}}, xds.Options{})
	s.endpoints = xds.Subscribe(c, keepingType(xds.Type[*cluster.Assignment]{URL: xds.EndpointType, Decode: cluster.DecodeEndpoints}), keeping[*cluster.Assignment]{&s.rawEndpoints, endpointHandler{s}}, xds.Options{Named: true})
	over := func(name string, body []byte) (*listener.Listener, error) {
		return listener.DecodeOver(s.listeners[name], body)
	}
	xds.Subscribe(c, keepingType(xds.Type[*listener.Listener]{URL: xds.ListenerType, Decode: over}), keeping[*listener.Listener]{&s.rawListeners, listenerHandler{s}}, xds.Options{})
}

// Run keeps the clusters' clocks until ctx is done.
func (s *store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.tidy(ctx) })
	return s.clusters.Run(ctx)
}

type clusterHandler struct{ *store }

// Apply implements xds.Handler.
func (h clusterHandler) Apply(up []xds.Resource[*cluster.Config], removed []string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*cluster.Config, len(up))
	for i, r := range up {
		list[i] = r.Value
		delete(h.leaving, r.Name)
	}
	for _, n := range removed {
		h.leaving[n] = time.Now().Add(leaveTime)
	}
	h.clusters.Update(list, nil)
	h.endpoints.Keep(h.clusters.View().Services())
	h.publish()
	return nil
}

// leaveTime is how long a cluster that was removed stays if no listeners follow.
const leaveTime = 5 * time.Second

// leave drops the clusters that were removed, if there is no route left that could lead to them or their time is over. Clusters
// are told of before the listeners that do without them: dropped at once, they would fail the requests in between.
func (s *store) leave(all bool) {
	var names []string
	for n, at := range s.leaving {
		if all || time.Now().After(at) {
			names = append(names, n)
			delete(s.leaving, n)
		}
	}
	if len(names) > 0 {
		s.clusters.Update(nil, names)
		s.endpoints.Keep(s.clusters.View().Services())
	}
}

// tidy drops clusters whose time is over.
func (s *store) tidy(ctx context.Context) error {
	t := time.NewTicker(leaveTime / 2)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			s.mu.Lock()
			s.leave(false)
			s.publish()
			s.mu.Unlock()
		}
	}
}

type endpointHandler struct{ *store }

// Apply implements xds.Handler.
func (h endpointHandler) Apply(up []xds.Resource[*cluster.Assignment], removed []string) error {
	list := make([]*cluster.Assignment, len(up))
	for i, r := range up {
		list[i] = r.Value
	}
	h.clusters.UpdateEndpoints(list, removed)
	return nil
}

type listenerHandler struct{ *store }

// Apply implements xds.Handler.
func (h listenerHandler) Apply(up []xds.Resource[*listener.Listener], removed []string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := make(map[string]*listener.Listener, len(h.listeners)+len(up))
	for n, l := range h.listeners {
		next[n] = l
	}
	for _, n := range removed {
		delete(next, n)
	}
	for _, r := range up {
		next[r.Name] = r.Value
	}
	h.listeners = next
	h.publish()
	h.leave(true)
	h.publish()
	return nil
}

// publish makes the next snapshot, if anything has changed. Before the first listener that decides about services there is
// none. s.mu is held.
func (s *store) publish() {
	if c := s.current.Load(); c != nil && c.Clusters == s.clusters.View() && c.Listener == forward.Finder(s.listeners[listener.Main]) {
		return
	}
	s.dump.Store(&s.listeners)
	main := s.listeners[listener.Main]
	if main == nil {
		if s.current.Load() != nil {
			s.current.Store(&forward.Snapshot{Listener: &listener.Listener{}, Clusters: s.clusters.View()})
		}
		return
	}
	s.current.Store(&forward.Snapshot{Listener: main, Clusters: s.clusters.View()})
	select {
	case <-s.ready:
	default:
		close(s.ready)
		s.log.Info("configuration is there", "listeners", len(s.listeners), "clusters", len(s.clusters.View().All()))
	}
}
