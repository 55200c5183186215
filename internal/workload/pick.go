package workload

import (
	"math/rand/v2"
	"net/netip"
	"sort"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Upstream is a chosen destination: a workload, the port to speak to, and who may answer there.
type Upstream struct {
	Workload *Workload
	Service  *Service // nil when the workload was addressed directly
	Port     uint16   // target port in the workload
	// Expect are the identities accepted there: the service's SANs and the workload's own (H4). Never nil.
	Expect *Identities
}

// Pick describes a choice among the endpoints of a service.
type Pick struct {
	Source *Workload // whose locality ranks the endpoints; may be nil
	Port   uint16    // service port
	// Client is the client's address, which matters where the service wants affinity; may be invalid.
	Client netip.Addr
	// Waypoint selects the rules for waypoints: the port need not be declared if the endpoint has an application tunnel (O18).
	Waypoint bool
	// Rand draws; nil uses the runtime's generator. A Rand is not safe for concurrent use, so each loop has its own.
	Rand *rand.Rand
	// Avoid, if not nil, names endpoints to leave out while another one remains (one that just refused).
	Avoid func(*Workload) bool
}

// Pick chooses an endpoint of s by health, preferences and capacity (O17-O21). It reports false when there is none.
// The tables it draws from are built at the first use of a (service, port, locality) and then shared by all connections,
// so a draw is O(log endpoints) and allocates nothing.
func (v *View) Pick(s *Service, p *Pick) (Upstream, bool) {
	e := v.entry(s.Key)
	if e == nil || e.svc == nil {
		return Upstream{}, false
	}
	t := e.table(p)
	if t.total == 0 {
		return Upstream{}, false
	}
	if e.svc.ClientAffinity && p.Client.IsValid() {
		return t.ups[t.stick(p.Client, p.Avoid)], true
	}
	i := t.draw(p.Rand)
	if p.Avoid != nil && p.Avoid(t.ups[i].Workload) {
		for n := 1; n < len(t.ups); n++ {
			if j := (i + n) % len(t.ups); t.weight(j) > 0 && !p.Avoid(t.ups[j].Workload) {
				i = j
				break
			}
		}
	}
	return t.ups[i], true
}

// pickKey is everything that a table depends on besides its entry. Parts that do not matter are left zero, so that one
// table serves all.
type pickKey struct {
	port     uint16
	waypoint bool
	network  string
	node     string
	cluster  string
	locality Locality
}

func (e *entry) key(p *Pick) pickKey {
	k := pickKey{port: p.Port, waypoint: p.Waypoint}
	if p.Source == nil {
		return k
	}
	k.network = p.Source.Network
	if e.svc.ranked() {
		k.node, k.cluster, k.locality = p.Source.Node, p.Source.Cluster, p.Source.Locality
	}
	return k
}

// trim fits a key of an earlier state of the service.
func (e *entry) trim(k pickKey) pickKey {
	if !e.svc.ranked() {
		k.node, k.cluster, k.locality = "", "", Locality{}
	}
	return k
}

// ranked tells whether the source's place matters.
func (s *Service) ranked() bool {
	return (s.Mode == ModeStrict || s.Mode == ModeFailover) && len(s.Preferences) > 0
}

// pickCache holds the tables of one entry. Any goroutine may read and add.
type pickCache struct {
	list atomic.Pointer[[]*pickTable]
}

// maxPickTables bounds the tables of one service; the oldest is forgotten. A node's pods have one locality, and services
// few ports, so this many are enough by far.
const maxPickTables = 64

func (e *entry) table(p *Pick) *pickTable {
	k := e.key(p)
	for {
		old := e.picks.list.Load()
		if old != nil {
			for _, t := range *old {
				if t.key == k {
					if !t.used.Load() {
						t.used.Store(true)
					}
					return t
				}
			}
		}
		if _, declared := e.svc.Port(k.port); !declared && !k.waypoint {
			return noEndpoints // not kept, so that a port scan cannot push out the tables in use
		}
		t := e.build(k)
		t.used.Store(true)
		list := []*pickTable{t}
		if old != nil {
			list = append(list, (*old)[:min(len(*old), maxPickTables-1)]...)
		}
		if e.picks.list.CompareAndSwap(old, &list) {
			return t
		}
	}
}

// noEndpoints is the table of ports that a service does not declare.
var noEndpoints = &pickTable{}

// warm builds the tables that were drawn from before a change, so that the change costs the data path nothing. Called
// before e is published.
func (e *entry) warm(old *entry) {
	list := old.picks.list.Load()
	if list == nil || e.svc == nil {
		return
	}
	var fresh []*pickTable
	for _, t := range *list {
		if t.used.Load() {
			fresh = append(fresh, e.build(e.trim(t.key)))
		}
	}
	if len(fresh) > 0 {
		e.picks.list.Store(&fresh)
	}
}

// pickTable is the survivors of filter and rank, ready to draw from. Immutable but for used.
type pickTable struct {
	used  atomic.Bool // drawn from since it was built
	key   pickKey
	ups   []Upstream
	sums  []uint64 // running sums of capacity; nil when all are equal
	total uint64
}

func (t *pickTable) draw(r *rand.Rand) int {
	n := t.total
	if t.sums == nil {
		n = uint64(len(t.ups))
	}
	var x uint64
	if r != nil {
		x = r.Uint64N(n)
	} else {
		x = rand.Uint64N(n)
	}
	if t.sums == nil {
		return int(x)
	}
	return sort.Search(len(t.sums), func(i int) bool { return t.sums[i] > x })
}

// stick is the endpoint of a client: that of the highest rank for it (rendezvous hashing), so that only the clients of an
// endpoint move when it goes away, on every node and after every restart to the same one.
func (t *pickTable) stick(client netip.Addr, avoid func(*Workload) bool) int {
	best, score, avoided := -1, uint64(0), true
	b := client.As16()
	for i := range t.ups {
		if t.weight(i) == 0 {
			continue
		}
		w := t.ups[i].Workload
		out := avoid != nil && avoid(w)
		if s := clientScore(&b, w.UID); best < 0 || avoided && !out || s > score && out == avoided {
			best, score, avoided = i, s, out
		}
	}
	return best
}

// clientScore is FNV-1a of both, stirred once more: the ends of UIDs and addresses are what differs.
func clientScore(client *[16]byte, uid string) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range client {
		h = (h ^ uint64(c)) * 1099511628211
	}
	for i := range len(uid) {
		h = (h ^ uint64(uid[i])) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func (t *pickTable) weight(i int) uint64 {
	switch {
	case t.sums == nil:
		return 1
	case i == 0:
		return t.sums[0]
	}
	return t.sums[i] - t.sums[i-1]
}

func (e *entry) build(k pickKey) *pickTable {
	t := &pickTable{key: k}
	t.fill(e, func(w *Workload) bool { return usable(e.svc, w) })
	if len(t.ups) == 0 { // as kube-proxy has it: those that end are better than none
		t.fill(e, func(w *Workload) bool { return w.Terminating })
	}
	t.weigh()
	return t
}

// fill takes the best of the members that take part.
func (t *pickTable) fill(e *entry, takes func(*Workload) bool) {
	s, k := e.svc, t.key
	_, declared := s.Port(k.port)
	if !declared && !k.waypoint {
		return
	}
	best := 0
	sets := map[string]*Identities{}
	for _, w := range e.members {
		if !takes(w) || !reachable(w, k.network) {
			continue
		}
		port := targetPort(s, w, k.port)
		if port == 0 || !declared && w.Tunnel == nil {
			continue
		}
		r, ok := rank(s, w, &k)
		if !ok || r < best {
			continue
		}
		if r > best {
			best, t.ups = r, t.ups[:0]
		}
		t.ups = append(t.ups, Upstream{Workload: w, Service: s, Port: port, Expect: union(s, w, sets)})
	}
}

// weigh computes the running sums, or leaves them out when all weights are equal.
func (t *pickTable) weigh() {
	if len(t.ups) == 0 {
		return
	}
	equal := true
	for i := range t.ups {
		t.total += uint64(t.ups[i].Workload.Capacity)
		equal = equal && t.ups[i].Workload.Capacity == t.ups[0].Workload.Capacity
	}
	if equal || t.total == 0 {
		return
	}
	t.sums = make([]uint64, len(t.ups))
	var sum uint64
	for i := range t.ups {
		sum += uint64(t.ups[i].Workload.Capacity)
		t.sums[i] = sum
	}
}

// reachable: an endpoint without address must have a gateway and be on another network (O18).
func reachable(w *Workload, network string) bool {
	return len(w.Addrs) > 0 || w.Hostname != "" || w.NetGateway != nil && w.Network != network
}

// targetPort resolves a service port at an endpoint; 0 means none (O21).
func targetPort(s *Service, w *Workload, port uint16) uint16 {
	if m := w.Member(s.Key); m != nil {
		if p := m.Target(port); p != 0 {
			return p
		}
	}
	if p, _ := s.Port(port); p != 0 {
		return p
	}
	if w.Tunnel != nil && w.Tunnel.Port != 0 {
		return port
	}
	return 0
}

// TargetPort returns the port at which w serves a service port of s (O21), or 0.
func (w *Workload) TargetPort(s *Service, port uint16) uint16 { return targetPort(s, w, port) }

// rank returns how well w matches the preferences, and false when it must not be used at all (O19).
func rank(s *Service, w *Workload, k *pickKey) (int, bool) {
	if !s.ranked() {
		return 0, true
	}
	matches, n, networkFirst := 0, 0, s.Preferences[0] == ScopeNetwork
	leading := true
	for i, p := range s.Preferences {
		ok := matchScope(p, w, k)
		if ok {
			matches++
		}
		switch {
		case i == 0 && networkFirst:
			// A network mismatch does not stop the comparison, and a match outweighs everything after it.
			if ok {
				n += len(s.Preferences)
			}
		case ok && leading:
			n++
		default:
			leading = false
		}
	}
	if s.Mode == ModeStrict {
		return 0, matches == len(s.Preferences)
	}
	return n, true
}

func matchScope(p Scope, w *Workload, k *pickKey) bool {
	switch p {
	case ScopeRegion:
		return w.Locality.Region == k.locality.Region
	case ScopeZone:
		return w.Locality.Zone == k.locality.Zone
	case ScopeSubzone:
		return w.Locality.Subzone == k.locality.Subzone
	case ScopeNode:
		return w.Node == k.node
	case ScopeCluster:
		return w.Cluster == k.cluster
	}
	return w.Network == k.network
}

// union returns the identities of a service's SANs and of a workload, built once per distinct identity.
func union(s *Service, w *Workload, sets map[string]*Identities) *Identities {
	if len(s.Expect.IDs) == 0 {
		return w.Expect
	}
	if set := sets[w.Expect.Key]; set != nil {
		return set
	}
	set := s.Expect
	if !w.ID.IsZero() && !set.Contains(w.ID) {
		ids := make([]spiffe.ID, 0, len(set.IDs)+1)
		set = newIdentities(append(append(ids, set.IDs...), w.ID)...)
	}
	sets[w.Expect.Key] = set
	return set
}

// Select returns the address at which to reach w when the application dialled want (O22): want itself if w owns it, else
// w's first address that the service's families allow, of want's family if there is one. It reports false when w has no
// usable address (resolve w.Hostname, or go through w.NetGateway). s may be nil.
func (w *Workload) Select(s *Service, want netip.Addr) (netip.Addr, bool) {
	if w.Owns(want) {
		return want, true
	}
	var first netip.Addr
	for _, ip := range w.Addrs {
		if s != nil && !s.Families.Allows(ip) {
			continue
		}
		if ip.Is4() == want.Is4() {
			return ip, true
		}
		if !first.IsValid() {
			first = ip
		}
	}
	return first, first.IsValid()
}

// Resolve turns a gateway address into an upstream (O24): the service it names, with the HBONE port as the service's
// port, or the workload it names, at that port. waypoint selects the rules for waypoints. It reports false if there is
// none. ns is the client's namespace.
func (v *View) Resolve(g *Gateway, ns string, p Pick) (Upstream, bool) {
	p.Port = g.Port
	var w *Workload
	if g.Hostname != "" {
		if s := v.Service(g.Namespace, g.Hostname); s != nil {
			return v.Pick(s, &p)
		}
		w = v.WorkloadByHostname(g.Namespace, g.Hostname)
	} else {
		if s := v.ServiceByVIP(g.Network, g.Addr, ns); s != nil {
			return v.Pick(s, &p)
		}
		w = v.Workload(g.Network, g.Addr)
	}
	if w == nil || g.Port == 0 {
		return Upstream{}, false
	}
	return Upstream{Workload: w, Port: g.Port, Expect: w.Expect}, true
}

// DrawWaypoint draws the service's waypoint (O4): by weight, or the primary one; nil if the service has none.
func (s *Service) DrawWaypoint(r *rand.Rand) *Gateway {
	var total uint64
	for _, w := range s.Weighted {
		total += uint64(w.Weight)
	}
	if total == 0 {
		return s.Waypoint
	}
	var x uint64
	if r != nil {
		x = r.Uint64N(total)
	} else {
		x = rand.Uint64N(total)
	}
	for _, w := range s.Weighted {
		if x < uint64(w.Weight) {
			return w.Gateway
		}
		x -= uint64(w.Weight)
	}
	return s.Waypoint
}
