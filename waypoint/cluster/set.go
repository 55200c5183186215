package cluster

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// SetConfig configures a Set.
type SetConfig struct {
	// Now tells the time; nil: time.Now.
	Now func() time.Time
	// Lookup resolves names; nil: the system's resolver.
	Lookup Lookup
	// Forbidden says which addresses the hosts that requests name must not have; nil: those of this machine and of the link.
	Forbidden func(netip.Addr) bool
}

// Set holds the live clusters over updates. It is safe for use by several goroutines; View takes no lock.
type Set struct {
	now    func() time.Time
	lookup Lookup
	forbid func(netip.Addr) bool
	view   atomic.Pointer[View]
	kick   chan struct{} // of 1: there is something new to wait for

	mu          sync.Mutex
	assignments map[string]*Assignment // by service name
}

// View is the clusters at one time. It is immutable, the clusters in it live on.
type View struct{ clusters map[string]*Cluster }

// NewSet makes an empty set.
func NewSet(c SetConfig) *Set {
	s := &Set{now: c.Now, lookup: c.Lookup, forbid: c.Forbidden, kick: make(chan struct{}, 1), assignments: map[string]*Assignment{}}
	if s.now == nil {
		s.now = time.Now
	}
	if s.lookup == nil {
		s.lookup = systemLookup()
	}
	if s.forbid == nil {
		s.forbid = forbidden
	}
	s.view.Store(&View{})
	return s
}

// View is the clusters as they are now.
func (s *Set) View() *View { return s.view.Load() }

// Get is a cluster by name, or nil.
func (v *View) Get(name string) *Cluster { return v.clusters[name] }

// All are the clusters in order of name.
func (v *View) All() []*Cluster {
	out := make([]*Cluster, 0, len(v.clusters))
	for _, n := range slices.Sorted(maps.Keys(v.clusters)) {
		out = append(out, v.clusters[n])
	}
	return out
}

// Services are the names of the EDS resources that the clusters ask for, in order.
func (v *View) Services() []string {
	names := map[string]bool{}
	for _, c := range v.clusters {
		if c.Discovery == EDS {
			names[c.ServiceName] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Update takes over clusters that are new or changed, and drops those that were removed. A cluster whose resource is the
// same stays the same object. A changed one is another object from now on, with the endpoints that are known; the old
// one's hosts are gone.
func (s *Set) Update(up []*Config, removed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.view.Load().clusters
	next := maps.Clone(old)
	if next == nil {
		next = map[string]*Cluster{}
	}
	var gone []*Cluster
	for _, n := range removed {
		if c := next[n]; c != nil {
			gone = append(gone, c)
			delete(next, n)
		}
	}
	for _, cfg := range up {
		c := next[cfg.Name]
		if c != nil && c.Same(cfg) {
			continue
		}
		if c != nil {
			gone = append(gone, c)
		}
		x := newCluster(cfg, s)
		if cfg.Discovery == EDS {
			if a := s.assignments[cfg.ServiceName]; a != nil {
				x.assign(a)
			} else {
				x.table.Store(&table{unknown: true})
			}
		}
		next[cfg.Name] = x
	}
	v := &View{next}
	s.view.Store(v)
	for _, c := range gone {
		c.end()
	}
	s.forget(v)
	s.poke()
}

// forget drops endpoints that no cluster asks for.
func (s *Set) forget(v *View) {
	wanted := map[string]bool{}
	for _, n := range v.Services() {
		wanted[n] = true
	}
	for n := range s.assignments {
		if !wanted[n] {
			delete(s.assignments, n)
		}
	}
}

// UpdateEndpoints takes over endpoints by service name. A service that was removed has no endpoints.
func (s *Set) UpdateEndpoints(up []*Assignment, removed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := map[string]*Assignment{}
	for _, n := range removed {
		changed[n] = &Assignment{Name: n}
		delete(s.assignments, n)
	}
	for _, a := range up {
		changed[a.Name] = a
		s.assignments[a.Name] = a
	}
	for _, c := range s.view.Load().clusters {
		if a := changed[c.ServiceName]; a != nil && c.Discovery == EDS {
			c.assign(a)
		}
	}
	s.poke()
}

func (s *Set) poke() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

const (
	// slowStep is how often the weights of endpoints in their slow start are worked out.
	slowStep = time.Second
	// idle is how long Run sleeps when nothing is due.
	idle = time.Hour
)

// Run resolves names, lets ejected endpoints back in, looks at success rates, raises weights in slow starts and forgets
// unused endpoints, when each is due. It blocks until ctx is done and all that it started has ended.
func (s *Set) Run(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	var lookups sync.WaitGroup
	defer lookups.Wait()
	turns := make(chan struct{}, maxLookups)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
		case <-t.C:
		}
		wait, jobs := s.tick(s.now())
		for _, j := range jobs {
			lookups.Go(func() {
				select {
				case turns <- struct{}{}:
					j.run(ctx)
					<-turns
					s.poke()
				case <-ctx.Done():
				}
			})
		}
		t.Reset(wait)
	}
}

// tick does what is due but for lookups, which it returns, and how long there is nothing to do.
func (s *Set) tick(now time.Time) (wait time.Duration, jobs []job) {
	wait = idle
	for _, c := range s.view.Load().clusters {
		w, js := c.tick(now)
		wait, jobs = min(wait, w), append(jobs, js...)
	}
	return max(wait, time.Millisecond), jobs
}

func (c *Cluster) tick(now time.Time) (wait time.Duration, jobs []job) {
	wait = idle
	if c.outlier == nil && c.balance.slow.window == 0 && (c.Discovery == Static || c.Discovery == EDS) {
		return wait, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.outlier; o != nil {
		if now.Sub(c.swept) >= o.interval {
			c.swept = now
			c.sweep(now)
		}
		wait = min(wait, o.interval-now.Sub(c.swept))
	}
	if c.slow {
		if now.Sub(c.refreshed) >= slowStep {
			c.refreshed = now
			c.rebuild()
		}
		wait = min(wait, slowStep-now.Sub(c.refreshed))
	}
	if c.Discovery == OriginalDst || c.Discovery == Dynamic {
		c.cleanAdHoc(now)
		wait = min(wait, max(c.Cleanup, time.Second))
	}
	if c.Discovery == StrictDNS || c.Discovery == LogicalDNS {
		var w time.Duration
		jobs, w = c.dueNames(now)
		wait = min(wait, w)
	}
	return wait, jobs
}
