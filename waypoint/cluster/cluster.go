// Package cluster holds the destinations of a waypoint: clusters (CDS) with their endpoints (EDS). It compiles the
// resources (Compile, CompileEndpoints), keeps the live clusters over updates (Set), chooses endpoints (Cluster.Pick),
// counts what is under way against the circuit breakers (Cluster.BeginRequest and others), and takes endpoints that fail
// out of the choice for a while (outlier detection: Host.Answered, Host.Failed, Set.Run).
//
// Configurations and endpoints are immutable. Clusters and hosts are used by all loops at a time: choosing and counting
// need atomic operations only, never a lock. A Host is the same object for as long as its endpoint is the same, whatever
// else changes, so connections are kept by it; likewise a Cluster for as long as its resource is the same.
//
// Semantics are Envoy's (v3 API), also where they look odd: they are named where they are coded. Tunnels are not: what
// Envoy does by internal listeners is read from the endpoint into typed fields (controlplane.md 3.2, 3.7).
package cluster

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Cluster is a live cluster. It is safe for use by several goroutines.
type Cluster struct {
	*Config

	now       func() time.Time
	lookup    Lookup
	forbidden func(netip.Addr) bool
	poke      func() // tells Set.Run that something may be due

	table   atomic.Pointer[table]
	breaker breaker
	gone    atomic.Bool
	stats   Stats

	mu         sync.Mutex
	assignment *Assignment             // nil: not known yet
	hosts      []*Host                 // of the assignment, in its order
	adHoc      map[adHocKey]*Host      // nil until there is one
	resolved   map[string][]netip.Addr // by name; none if its lookup failed
	names      map[string]*nameState   // what is resolved
	answers    map[string]answer       // hosts that requests named
	ejected    int
	slow       bool      // an endpoint is in its slow start
	swept      time.Time // when outliers were looked for the last time
	refreshed  time.Time // when weights of slow starts were worked out the last time
}

// Stats are counters of a cluster, for /clusters and metrics.
type Stats struct {
	// Requests, Retries and Overflows were begun, begun as a retry, and refused by a circuit breaker.
	Requests, Retries, Overflows atomic.Uint64
	// Ejections is the number of endpoints that were taken out.
	Ejections atomic.Uint64
}

func newCluster(c *Config, s *Set) *Cluster {
	x := &Cluster{Config: c, now: s.now, lookup: s.lookup, forbidden: s.forbid, poke: s.poke, swept: s.now()}
	x.breaker.max = c.thresholds
	x.table.Store(&table{})
	if c.Discovery == Static {
		x.assign(c.Endpoints)
	} else if c.Endpoints != nil {
		x.assign(x.expand())
	}
	return x
}

// Stats are the cluster's counters.
func (c *Cluster) Stats() *Stats { return &c.stats }

// Gone says that the cluster was removed, or replaced by one of another configuration.
func (c *Cluster) Gone() bool { return c.gone.Load() }

// Known says whether the endpoints are known: those of EDS are not until they have come.
func (c *Cluster) Known() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.assignment != nil || c.Discovery != EDS
}

// Hosts are the endpoints in use, for dumps.
func (c *Cluster) Hosts() []*Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := append([]*Host(nil), c.hosts...)
	for _, h := range c.adHoc {
		out = append(out, h)
	}
	return out
}

// assign takes over endpoints. Hosts of endpoints that stay are kept.
func (c *Cluster) assign(a *Assignment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.assignLocked(a)
}

func (c *Cluster) assignLocked(a *Assignment) {
	old := make(map[string]*Host, len(c.hosts))
	for _, h := range c.hosts {
		old[h.key] = h
	}
	first := c.assignment == nil
	c.assignment = a
	hosts := make([]*Host, 0, len(a.Endpoints))
	seen := make(map[string]bool, len(a.Endpoints))
	now := c.now()
	for _, e := range a.Endpoints {
		if seen[e.key] { // the same address twice counts once, as in Envoy
			continue
		}
		seen[e.key] = true
		t := c.transportFor(e)
		h := old[e.key]
		if h == nil || h.Transport != t || !h.Endpoint().sameWay(e) {
			h = c.newHost(e, t)
			if !first {
				h.since = now
			}
		} else {
			delete(old, e.key)
			if h.Endpoint().Health == Unhealthy && e.Health != Unhealthy {
				h.since = now
			}
			h.endpoint.Store(e)
		}
		hosts = append(hosts, h)
	}
	for _, h := range old {
		c.drop(h)
	}
	c.hosts = hosts
	c.rebuild()
	if c.slow {
		c.poke()
	}
}

func (c *Cluster) drop(h *Host) {
	h.gone.Store(true)
	if h.ejected.Load() {
		c.ejected--
	}
}

// end marks the cluster and all hosts as gone.
func (c *Cluster) end() {
	c.gone.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		h.gone.Store(true)
	}
	for _, h := range c.adHoc {
		h.gone.Store(true)
	}
}

// adHocKey is an endpoint that a request names.
type adHocKey struct {
	addr netip.AddrPort
	name string
}

// At is the endpoint of an OriginalDst or Dynamic cluster at an address. name is the host that addr was resolved from, or
// "". Endpoints that are not used are forgotten after Cleanup. It takes a lock.
func (c *Cluster) At(addr netip.AddrPort, name string) *Host {
	if c.PortOverride != 0 {
		addr = netip.AddrPortFrom(addr.Addr(), c.PortOverride)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := adHocKey{addr, name}
	h := c.adHoc[k]
	if h == nil {
		h = c.newHost(&Endpoint{Addr: addr, Hostname: name, Weight: 1, key: addr.String() + "/" + name, Locality: &Locality{}, Workload: &Workload{}}, c.transport)
		if !c.gone.Load() {
			if c.adHoc == nil {
				c.adHoc = map[adHocKey]*Host{}
			}
			c.adHoc[k] = h
		} else {
			h.gone.Store(true)
		}
	}
	h.used = c.now()
	return h
}

// cleanAdHoc forgets endpoints that are not used.
func (c *Cluster) cleanAdHoc(now time.Time) {
	for k, h := range c.adHoc {
		if h.active.Load() > 0 {
			h.used = now
		} else if now.Sub(h.used) >= c.Cleanup {
			h.gone.Store(true)
			delete(c.adHoc, k)
		}
	}
}

// Names are the names to be resolved, each once, for Resolved. Only StrictDNS and LogicalDNS have any.
func (c *Cluster) Names() []string {
	var out []string
	seen := map[string]bool{}
	if c.Endpoints == nil {
		return nil
	}
	for _, e := range c.Endpoints.Endpoints {
		if e.Name != "" && !seen[e.Name] {
			seen[e.Name] = true
			out = append(out, e.Name)
		}
	}
	return out
}

// Resolved says what addresses a name has now, in the order in which they came.
func (c *Cluster) Resolved(name string, addrs []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resolvedLocked(name, addrs)
}

func (c *Cluster) resolvedLocked(name string, addrs []netip.Addr) {
	if c.resolved == nil {
		c.resolved = map[string][]netip.Addr{}
	}
	c.resolved[name] = addrs
	c.assignLocked(c.expand())
}

// expand puts addresses in place of names.
func (c *Cluster) expand() *Assignment {
	a := *c.Endpoints
	a.Endpoints = make([]*Endpoint, 0, len(c.Endpoints.Endpoints))
	for _, e := range c.Endpoints.Endpoints {
		if e.Name == "" {
			a.Endpoints = append(a.Endpoints, e)
			continue
		}
		for i, ip := range c.resolved[e.Name] {
			if i > 0 && c.Discovery == LogicalDNS {
				break
			}
			x := *e
			x.Addr, x.Name = netip.AddrPortFrom(ip, e.Port), ""
			x.key = x.Addr.String()
			if x.Hostname == "" {
				x.Hostname = e.Name
			}
			a.Endpoints = append(a.Endpoints, &x)
		}
	}
	return &a
}
