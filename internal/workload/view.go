package workload

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
)

// View is one consistent state of the mesh. It is immutable; all methods are safe from any goroutine and none blocks.
// Methods that find nothing return nil or false.
type View struct {
	hash       hasher
	generation uint64

	byUID  table[string, *Workload]
	byAddr claims[addrKey]
	byPod  claims[podKey]
	byHost claims[nameKey]

	services table[string, *entry]              // by "namespace/hostname"; staged ones included
	vips     table[addrKey, []*Service]         // exact addresses; canonical first, then oldest first
	hosts    table[string, []*Service]          // by hostname; same order
	cidrs    map[string]*bart.Table[[]*Service] // by network; never changed in place
	count    int                                // services that are not staged
}

// entry is what stands behind a service key: the service, or nil while only endpoints are known (X14), and every
// workload that says it belongs, whatever its health.
type entry struct {
	svc     *Service
	members []*Workload // sorted by UID
	picks   pickCache
}

// Generation counts the changes that led to this view.
func (v *View) Generation() uint64 { return v.generation }

// Len returns how many workloads and services the view holds.
func (v *View) Len() (workloads, services int) { return v.byUID.size, v.count }

// ByUID returns the workload with this uid.
func (v *View) ByUID(uid string) *Workload {
	w, _ := v.byUID.get(v.hash.str(uid), uid)
	return w
}

// Workload returns the workload that owns an address of a network. Records of HOST_NETWORK pods are never found; of
// several records that claim the address the strongest is (O14).
func (v *View) Workload(network string, ip netip.Addr) *Workload {
	k := addrKey{network, ip}
	return v.byAddr.get(v.hash.addr(k), k)
}

// Pod returns the record of a pod by what the node knows of it (O2), preferring one on the store's own node. A pod whose
// service account differs from the record's is never found.
func (v *View) Pod(name, ns, sa string) *Workload {
	k := podKey{name, ns, sa}
	return v.byPod.get(v.hash.pod(k), k)
}

// WorkloadByHostname returns a workload with this namespace and hostname (O13).
func (v *View) WorkloadByHostname(ns, hostname string) *Workload {
	k := nameKey{ns, hostname}
	return v.byHost.get(v.hash.name(k), k)
}

// Service returns the service of a namespace and hostname.
func (v *View) Service(ns, hostname string) *Service { return v.ServiceByKey(ns + "/" + hostname) }

// ServiceByKey returns the service "namespace/hostname".
func (v *View) ServiceByKey(key string) *Service {
	if e := v.entry(key); e != nil {
		return e.svc
	}
	return nil
}

func (v *View) entry(key string) *entry {
	e, _ := v.services.get(v.hash.str(key), key)
	return e
}

// ServiceByVIP returns the best service that a client of namespace ns sees at an address: an exact virtual address
// before any range (O11, O12).
func (v *View) ServiceByVIP(network string, ip netip.Addr, ns string) *Service {
	k := addrKey{network, ip}
	if list, ok := v.vips.get(v.hash.addr(k), k); ok {
		if s := bestVisible(list, ns, ""); s != nil {
			return s
		}
	}
	t := v.cidrs[network]
	if t == nil || !ip.IsValid() {
		return nil
	}
	var best *Service
	// Longest prefix first: the first visible one wins unless a shorter one is of the client's namespace.
	for _, list := range t.Supernets(netip.PrefixFrom(ip, ip.BitLen())) {
		s := bestVisible(list, ns, "")
		if s == nil {
			continue
		}
		if s.Namespace == ns {
			return s
		}
		if best == nil {
			best = s
		}
	}
	return best
}

// ServiceByHostname returns the best service of a hostname for a client of namespace ns; services of the namespace
// prefer (may be empty) win over others that are not canonical (O11, D5).
func (v *View) ServiceByHostname(hostname, ns, prefer string) *Service {
	list, _ := v.hosts.get(v.hash.str(hostname), hostname)
	return bestVisible(list, ns, prefer)
}

// bestVisible ranks: client's namespace, canonical, preferred namespace, first inserted. The list has canonical services
// first already.
func bestVisible(list []*Service, ns, prefer string) *Service {
	var best *Service
	for _, s := range list {
		switch {
		case !s.VisibleTo(ns):
		case s.Namespace == ns:
			return s
		case best == nil:
			best = s
		case prefer != "" && !best.Canonical && best.Namespace != prefer && s.Namespace == prefer:
			best = s
		}
	}
	return best
}

// Workloads walks all workloads in no order.
func (v *View) Workloads() iter.Seq[*Workload] {
	return func(yield func(*Workload) bool) {
		for _, w := range v.byUID.all() {
			if !yield(w) {
				return
			}
		}
	}
}

// Services walks all known services in no order.
func (v *View) Services() iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		for _, e := range v.services.all() {
			if e.svc != nil && !yield(e.svc) {
				return
			}
		}
	}
}

// Endpoints walks the usable endpoints of a service, sorted by uid: healthy ones, or all if the service says so (O17).
func (v *View) Endpoints(s *Service) iter.Seq[*Workload] {
	return func(yield func(*Workload) bool) {
		e := v.entry(s.Key)
		if e == nil {
			return
		}
		for _, w := range e.members {
			if usable(s, w) && !yield(w) {
				return
			}
		}
	}
}

func usable(s *Service, w *Workload) bool { return !w.Unhealthy || s.AllowUnhealthy }

// GatewayHas tells whether a gateway address leads to a workload that satisfies match: an endpoint of the service it
// names, whatever its health, or the workload it names (O8, I3). ns is the namespace from which a virtual address is seen.
func (v *View) GatewayHas(g *Gateway, ns string, match func(*Workload) bool) bool {
	var s *Service
	var w *Workload
	if g.Hostname != "" {
		if s = v.Service(g.Namespace, g.Hostname); s == nil {
			w = v.WorkloadByHostname(g.Namespace, g.Hostname)
		}
	} else if s = v.ServiceByVIP(g.Network, g.Addr, ns); s == nil {
		w = v.Workload(g.Network, g.Addr)
	}
	if s == nil {
		return w != nil && match(w)
	}
	if e := v.entry(s.Key); e != nil {
		return slices.ContainsFunc(e.members, match)
	}
	return false
}

// claims is an index in which several workloads may claim one key: the best is found, the others wait in its shadow.
type claims[K comparable] struct {
	winners table[K, *Workload]
	shadow  table[K, []*Workload]
}

func (c *claims[K]) get(h uint64, k K) *Workload {
	w, _ := c.winners.get(h, k)
	return w
}

type claimsEdit[K comparable] struct {
	winners *edit[K, *Workload]
	shadow  *edit[K, []*Workload]
	less    func(a, b *Workload) bool // b is better than a; on a tie the newcomer wins
}

func editClaims[K comparable](c claims[K], less func(a, b *Workload) bool) *claimsEdit[K] {
	return &claimsEdit[K]{winners: editOf(c.winners), shadow: editOf(c.shadow), less: less}
}

func (e *claimsEdit[K]) done() claims[K] {
	return claims[K]{winners: e.winners.done(), shadow: e.shadow.done()}
}

func (e *claimsEdit[K]) claim(h uint64, k K, w *Workload) {
	cur, ok := e.winners.get(h, k)
	if !ok {
		e.winners.put(h, k, w)
		return
	}
	loser := cur
	if e.less(w, cur) {
		loser = w
	} else {
		e.winners.put(h, k, w)
	}
	list, _ := e.shadow.get(h, k)
	e.shadow.put(h, k, append(slices.Clip(list), loser))
}

func (e *claimsEdit[K]) release(h uint64, k K, w *Workload) {
	cur, ok := e.winners.get(h, k)
	if !ok {
		return
	}
	list, _ := e.shadow.get(h, k)
	if cur == w {
		if len(list) == 0 {
			e.winners.remove(h, k)
			return
		}
		w = list[0]
		for _, o := range list[1:] {
			if !e.less(o, w) {
				w = o
			}
		}
		e.winners.put(h, k, w)
	}
	rest := make([]*Workload, 0, len(list))
	for _, o := range list {
		if o != w {
			rest = append(rest, o)
		}
	}
	if len(rest) == 0 {
		e.shadow.remove(h, k)
	} else {
		e.shadow.put(h, k, rest)
	}
}

// insertService returns a new list with s in its place: canonical first, then oldest first.
func insertService(list []*Service, s *Service) []*Service {
	at := len(list)
	if s.Canonical {
		at = slices.IndexFunc(list, func(o *Service) bool { return !o.Canonical })
		if at < 0 {
			at = len(list)
		}
	}
	out := make([]*Service, 0, len(list)+1)
	out = append(out, list[:at]...)
	out = append(out, s)
	return append(out, list[at:]...)
}

// removeService returns a new list without s.
func removeService(list []*Service, s *Service) []*Service {
	var out []*Service
	for _, o := range list {
		if o != s {
			out = append(out, o)
		}
	}
	return out
}

func compareUID(w *Workload, uid string) int { return cmp.Compare(w.UID, uid) }

func byUID(a, b *Workload) int { return strings.Compare(a.UID, b.UID) }

// Staged returns the endpoints of services that are not known yet: "namespace/hostname" to uids, sorted.
func (v *View) Staged() map[string][]string {
	out := map[string][]string{}
	for key, e := range v.services.all() {
		if e.svc != nil {
			continue
		}
		for _, w := range e.members {
			out[key] = append(out[key], w.UID)
		}
	}
	return out
}
