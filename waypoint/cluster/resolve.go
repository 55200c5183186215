package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	// lookupTime bounds one lookup.
	lookupTime = 5 * time.Second
	// maxLookups is the number of lookups under way at a time.
	maxLookups = 32
	// minRefresh is the least time between two lookups of a name, whatever its TTL.
	minRefresh = time.Second
)

// Lookup resolves a name. network is "ip", "ip4" or "ip6"; ttl is how long the answer is good, 0 if that is not known.
type Lookup func(ctx context.Context, network, host string) (addrs []netip.Addr, ttl time.Duration, err error)

// nameState is when a name is resolved again.
type nameState struct {
	due     time.Time
	running bool
}

// job is a lookup that is due.
type job struct {
	c    *Cluster
	name string
}

// dueNames marks the names that are due as running, and returns them, and how long there are no others. c.mu is held.
func (c *Cluster) dueNames(now time.Time) (jobs []job, wait time.Duration) {
	wait = idle
	for _, n := range c.Names() {
		s := c.names[n]
		if s == nil {
			if c.names == nil {
				c.names = map[string]*nameState{}
			}
			s = &nameState{due: now}
			c.names[n] = s
		}
		switch {
		case s.running:
		case !now.Before(s.due):
			s.running = true
			jobs = append(jobs, job{c, n})
		default:
			wait = min(wait, s.due.Sub(now))
		}
	}
	return jobs, wait
}

// asking says that the first lookup of a name has not ended yet, so that the endpoints are not known. c.mu is held.
func (c *Cluster) asking() bool {
	if c.Discovery != StrictDNS && c.Discovery != LogicalDNS {
		return false
	}
	return slices.ContainsFunc(c.Names(), func(n string) bool { _, asked := c.resolved[n]; return !asked })
}

// run resolves the name and takes over the answer. Addresses of a name that cannot be resolved any more are kept.
func (j job) run(ctx context.Context) {
	addrs, ttl, err := j.c.find(ctx, j.name)
	if err == nil && !j.c.Gone() {
		j.c.Resolved(j.name, addrs)
	}
	wait := j.c.DNS.Refresh
	if err == nil && ttl > 0 && j.c.DNS.RespectTTL {
		wait = ttl
	}
	if d := j.c.DNS.Jitter; d > 0 {
		wait += rand.N(d)
	}
	j.c.mu.Lock()
	defer j.c.mu.Unlock()
	if _, before := j.c.resolved[j.name]; err != nil && !before && ctx.Err() == nil {
		j.c.resolvedLocked(j.name, nil)
	}
	s := j.c.names[j.name]
	s.running, s.due = false, j.c.now().Add(max(wait, minRefresh))
}

// find resolves a name to addresses of the families that count.
func (c *Cluster) find(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	network := "ip"
	switch c.DNS.Family {
	case OnlyV4:
		network = "ip4"
	case OnlyV6:
		network = "ip6"
	}
	all, ttl, err := c.lookup(ctx, network, name)
	if err != nil {
		return nil, 0, err
	}
	var v4, v6 []netip.Addr
	for _, a := range all {
		if a = a.Unmap(); a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	switch {
	case c.DNS.Family == Both:
		return append(v6, v4...), ttl, nil
	case c.DNS.Family == OnlyV4, c.DNS.Family == PreferV4 && len(v4) > 0, c.DNS.Family == PreferV6 && len(v6) == 0:
		return v4, ttl, nil
	}
	return v6, ttl, nil
}

// answer is what is known of a host that a request named.
type answer struct {
	addr  netip.Addr // not valid if it has never been found out
	err   error      // of the last lookup; nil if addr is its result
	until time.Time
}

// ErrForbidden says that a request named a host whose address is not to be reached that way: this machine, or one on the
// link, such as a cloud's metadata service.
var ErrForbidden = errors.New("the host's address is not allowed")

// Named is the endpoint of a Dynamic cluster for a host whose address is known; nil: Resolve has to find it out.
func (c *Cluster) Named(host string, port uint16) *Host {
	c.mu.Lock()
	a := c.answers[host]
	c.mu.Unlock()
	if !a.addr.IsValid() || !c.now().Before(a.until) {
		return nil
	}
	return c.At(netip.AddrPortFrom(a.addr, port), host)
}

// forbidden says whether an address is this machine's, or on the link. Where the machine's cannot be told all are.
func forbidden(a netip.Addr) bool {
	if a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return true
	}
	own, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(own, func(o net.Addr) bool {
		p, err := netip.ParsePrefix(o.String())
		return err == nil && p.Addr().Unmap() == a
	})
}

// DefaultPort is the port of the hosts of a Dynamic cluster that requests name without one.
func (c *Cluster) DefaultPort() uint16 {
	if c.transport.TLS != nil {
		return 443
	}
	return 80
}

// maxAnswers is the number of hosts whose addresses are kept for a Dynamic cluster.
const maxAnswers = 4096

// Resolve finds out the address of a host for a Dynamic cluster, and returns the endpoint. It blocks for as long as that
// takes. A failure is remembered for a second, and the last address stays in use if there was one. The error is
// ErrForbidden, or the resolver's.
func (c *Cluster) Resolve(ctx context.Context, host string, port uint16) (*Host, error) {
	c.mu.Lock()
	a := c.answers[host]
	c.mu.Unlock()
	if !c.now().Before(a.until) {
		addr, err := c.oneOf(ctx, host)
		switch {
		case err == nil:
			a = answer{addr: addr, until: c.now().Add(max(c.DNS.Refresh, minRefresh))}
		case ctx.Err() != nil: // nobody waits any more: nothing was found out
			return nil, err
		case errors.Is(err, ErrForbidden):
			a = answer{err: err, until: c.now().Add(minRefresh)}
		default:
			a = answer{addr: a.addr, err: err, until: c.now().Add(minRefresh)}
		}
		c.mu.Lock()
		if c.answers == nil || len(c.answers) >= maxAnswers {
			c.answers = map[string]answer{}
		}
		c.answers[host] = a
		c.mu.Unlock()
	}
	if !a.addr.IsValid() {
		return nil, a.err
	}
	return c.At(netip.AddrPortFrom(a.addr, port), host), nil
}

// oneOf looks a host up and chooses an address.
func (c *Cluster) oneOf(ctx context.Context, host string) (netip.Addr, error) {
	var addrs []netip.Addr
	ip, err := netip.ParseAddr(host)
	if err == nil {
		addrs = []netip.Addr{ip.Unmap()}
	} else if addrs, _, err = c.find(ctx, host); err != nil {
		return netip.Addr{}, fmt.Errorf("resolve %q: %w", host, err)
	}
	if len(addrs) == 0 {
		return netip.Addr{}, fmt.Errorf("resolve %q: %w", host, ErrNoHost)
	}
	for _, a := range addrs {
		if c.forbidden(a) {
			return netip.Addr{}, fmt.Errorf("resolve %q: %v: %w", host, a, ErrForbidden)
		}
	}
	return addrs[0], nil
}
