package workload

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// Config sets up a Store.
type Config struct {
	// Node is the own node's name; of several records of one pod name the one on this node is preferred. May be empty.
	Node string
}

// Change is what one Apply did.
type Change struct {
	Old, New  *View
	Workloads []WorkloadChange // in no order; only what really changed owner or content
	Services  []ServiceChange
}

// WorkloadChange is one workload that came (Old nil), went (New nil) or was replaced.
type WorkloadChange struct{ Old, New *Workload }

// ServiceChange is one service that came (Old nil), went (New nil) or was replaced.
type ServiceChange struct{ Old, New *Service }

// Store holds the current View. All methods are safe from any goroutine. Create it with NewStore.
type Store struct {
	cfg  Config
	hash hasher
	view atomic.Pointer[View]

	mu       sync.Mutex // one writer at a time; guards what follows
	intern   *interner
	watchers []func(*Change)
}

// NewStore returns an empty store.
func NewStore(cfg Config) *Store {
	s := &Store{cfg: cfg, hash: newHasher(), intern: newInterner()}
	s.view.Store(&View{hash: s.hash})
	return s
}

// View returns the current state. It never blocks and never returns nil.
func (s *Store) View() *View { return s.view.Load() }

// Watch has f called after each change, on the goroutine that applies it and in order. f must not block and must not
// call Apply or Watch.
func (s *Store) Watch(f func(*Change)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(s.watchers, f)
}

// Apply makes one new View of the current one: first the removals, by workload uid or else "namespace/hostname" (X15),
// then the upserts; a name that appears in both was removed and came again. It takes ownership of the values. It never
// fails; the error is there for xds.Handler.
func (s *Store) Apply(up []xds.Resource[Address], removed []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.begin()
	for _, name := range removed {
		t.remove(name)
	}
	for _, r := range up {
		switch {
		case r.Value.Workload != nil:
			s.intern.workload(r.Value.Workload)
			t.putWorkload(r.Value.Workload)
		case r.Value.Service != nil:
			s.intern.service(r.Value.Service)
			t.putService(r.Value.Service)
		}
	}
	next := t.commit()
	s.intern.age(t.churn, next.byUID.size+next.count)
	change := &Change{Old: t.old, New: next, Workloads: t.workloadChanges(), Services: t.serviceChanges()}
	s.view.Store(next)
	for _, f := range s.watchers {
		f(change)
	}
	return nil
}

// txn is a change that is being built. Used under the store's mutex.
type txn struct {
	old  *View
	hash hasher

	byUID    *edit[string, *Workload]
	byAddr   *claimsEdit[addrKey]
	byPod    *claimsEdit[podKey]
	byHost   *claimsEdit[nameKey]
	services *edit[string, *entry]
	vips     *edit[addrKey, []*Service]
	hosts    *edit[string, []*Service]
	cidrs    map[string]*bart.Table[[]*Service]
	ownCIDRs bool
	count    int
	churn    int // objects that were replaced or removed

	// members collects endpoint changes per service, applied once in commit (X14): uid to the new record or nil.
	members map[string]map[string]*Workload
	// newSvcs are services put or removed (nil), by key.
	newSvcs map[string]*Service
	touched map[string]*Workload // uid to the record before this change
}

func (s *Store) begin() *txn {
	v := s.view.Load()
	return &txn{
		old: v, hash: s.hash,
		byUID:    editOf(v.byUID),
		byAddr:   editClaims(v.byAddr, weaker),
		byPod:    editClaims(v.byPod, s.lessLocal),
		byHost:   editClaims(v.byHost, weaker),
		services: editOf(v.services),
		vips:     editOf(v.vips),
		hosts:    editOf(v.hosts),
		cidrs:    v.cidrs,
		count:    v.count,
		members:  make(map[string]map[string]*Workload),
		newSvcs:  make(map[string]*Service),
		touched:  make(map[string]*Workload),
	}
}

// weaker orders records that claim one address (O14); between equals a healthy one wins, then the newcomer.
func weaker(a, b *Workload) bool {
	if x, y := a.strength(), b.strength(); x != y {
		return x < y
	}
	return a.Unhealthy && !b.Unhealthy
}

// lessLocal prefers records on the own node: pod names repeat among clusters.
func (s *Store) lessLocal(a, b *Workload) bool {
	if x, y := a.Node == s.cfg.Node, b.Node == s.cfg.Node; x != y {
		return y
	}
	return weaker(a, b)
}

func (t *txn) remove(name string) {
	if w, ok := t.byUID.get(t.hash.str(name), name); ok {
		t.dropWorkload(w)
		return
	}
	t.dropService(name)
}

func (t *txn) putWorkload(w *Workload) {
	h := t.hash.str(w.UID)
	if old, ok := t.byUID.get(h, w.UID); ok {
		t.dropWorkload(old)
	} else {
		t.touch(w.UID, nil)
	}
	t.byUID.put(h, w.UID, w)
	t.eachKey(w, t.byAddr.claim, t.byPod.claim, t.byHost.claim)
	for i := range w.Services {
		t.member(w.Services[i].Service, w.UID, w)
	}
}

func (t *txn) dropWorkload(w *Workload) {
	t.churn++
	t.touch(w.UID, w)
	t.byUID.remove(t.hash.str(w.UID), w.UID)
	t.eachKey(w, t.byAddr.release, t.byPod.release, t.byHost.release)
	for i := range w.Services {
		t.member(w.Services[i].Service, w.UID, nil)
	}
}

// touch remembers the first state of a uid in this change.
func (t *txn) touch(uid string, old *Workload) {
	if _, ok := t.touched[uid]; !ok {
		t.touched[uid] = old
	}
}

func (t *txn) eachKey(w *Workload, addr func(uint64, addrKey, *Workload), pod func(uint64, podKey, *Workload), host func(uint64, nameKey, *Workload)) {
	if !w.HostNet { // O14
		for i, ip := range w.Addrs {
			if slices.Contains(w.Addrs[:i], ip) {
				continue
			}
			k := addrKey{w.Network, ip}
			addr(t.hash.addr(k), k, w)
		}
	}
	if w.Name != "" {
		k := podKey{w.Name, w.Namespace, w.ServiceAccount}
		pod(t.hash.pod(k), k, w)
	}
	if w.Hostname != "" {
		k := nameKey{w.Namespace, w.Hostname}
		host(t.hash.name(k), k, w)
	}
}

func (t *txn) member(service, uid string, w *Workload) {
	m := t.members[service]
	if m == nil {
		m = make(map[string]*Workload)
		t.members[service] = m
	}
	m[uid] = w
}

// current returns the service under key as this change sees it.
func (t *txn) current(key string) *Service {
	if s, ok := t.newSvcs[key]; ok {
		return s
	}
	return t.old.ServiceByKey(key)
}

func (t *txn) putService(s *Service) {
	t.dropService(s.Key)
	t.newSvcs[s.Key] = s
	t.count++
	h := t.hash.str(s.Hostname)
	list, _ := t.hosts.get(h, s.Hostname)
	t.hosts.put(h, s.Hostname, insertService(list, s))
	for i, vip := range s.VIPs {
		if slices.Contains(s.VIPs[:i], vip) {
			continue
		}
		if !vip.Prefix.IsSingleIP() {
			t.editCIDR(vip, func(list []*Service) []*Service { return insertService(list, s) })
			continue
		}
		k := addrKey{vip.Network, vip.Prefix.Addr()}
		h := t.hash.addr(k)
		list, _ := t.vips.get(h, k)
		t.vips.put(h, k, insertService(list, s))
	}
}

func (t *txn) dropService(key string) {
	s := t.current(key)
	if s == nil {
		return
	}
	t.churn++
	t.count--
	t.newSvcs[key] = nil
	h := t.hash.str(s.Hostname)
	list, _ := t.hosts.get(h, s.Hostname)
	if list = removeService(list, s); list == nil {
		t.hosts.remove(h, s.Hostname)
	} else {
		t.hosts.put(h, s.Hostname, list)
	}
	for _, vip := range s.VIPs {
		if !vip.Prefix.IsSingleIP() {
			t.editCIDR(vip, func(list []*Service) []*Service { return removeService(list, s) })
			continue
		}
		k := addrKey{vip.Network, vip.Prefix.Addr()}
		h := t.hash.addr(k)
		list, _ := t.vips.get(h, k)
		if list = removeService(list, s); list == nil {
			t.vips.remove(h, k)
		} else {
			t.vips.put(h, k, list)
		}
	}
}

// editCIDR changes the services of one range. Endpoint changes never come here, so a range cannot keep an old object
// beside a new one (X17).
func (t *txn) editCIDR(vip VIP, f func([]*Service) []*Service) {
	if !t.ownCIDRs {
		t.ownCIDRs = true
		t.cidrs = maps.Clone(t.cidrs)
		if t.cidrs == nil {
			t.cidrs = make(map[string]*bart.Table[[]*Service])
		}
	}
	table := t.cidrs[vip.Network]
	if table == nil {
		table = new(bart.Table[[]*Service])
	}
	list, _ := table.Get(vip.Prefix)
	if list = f(list); list == nil {
		table = table.DeletePersist(vip.Prefix)
	} else {
		table = table.InsertPersist(vip.Prefix, list)
	}
	if table.Size() == 0 {
		delete(t.cidrs, vip.Network)
	} else {
		t.cidrs[vip.Network] = table
	}
}

// commit rebuilds every touched service entry once and returns the new view.
func (t *txn) commit() *View {
	for key, changes := range t.members {
		t.rebuild(key, changes)
	}
	for key := range t.newSvcs {
		if _, done := t.members[key]; !done {
			t.rebuild(key, nil)
		}
	}
	return &View{
		hash: t.hash, generation: t.old.generation + 1,
		byUID: t.byUID.done(), byAddr: t.byAddr.done(), byPod: t.byPod.done(), byHost: t.byHost.done(),
		services: t.services.done(), vips: t.vips.done(), hosts: t.hosts.done(), cidrs: t.cidrs, count: t.count,
	}
}

func (t *txn) rebuild(key string, changes map[string]*Workload) {
	next := &entry{svc: t.current(key)}
	old := t.old.entry(key)
	if old != nil {
		next.members = old.members
	}
	if len(changes) > 0 {
		next.members = mergeMembers(next.members, changes)
	}
	if old != nil {
		next.warm(old)
	}
	h := t.hash.str(key)
	if next.svc == nil && len(next.members) == 0 {
		t.services.remove(h, key)
		return
	}
	t.services.put(h, key, next)
}

// mergeMembers returns list (sorted by uid) with the changes applied; nil removes.
func mergeMembers(list []*Workload, changes map[string]*Workload) []*Workload {
	uids := slices.Sorted(maps.Keys(changes))
	out := make([]*Workload, 0, len(list)+len(changes))
	for _, uid := range uids {
		at, found := slices.BinarySearchFunc(list, uid, compareUID)
		out = append(out, list[:at]...)
		if list = list[at:]; found {
			list = list[1:]
		}
		if w := changes[uid]; w != nil {
			out = append(out, w)
		}
	}
	return append(out, list...)
}

func (t *txn) workloadChanges() []WorkloadChange {
	out := make([]WorkloadChange, 0, len(t.touched))
	for uid, old := range t.touched {
		now, _ := t.byUID.get(t.hash.str(uid), uid)
		if old != nil || now != nil {
			out = append(out, WorkloadChange{Old: old, New: now})
		}
	}
	return out
}

func (t *txn) serviceChanges() []ServiceChange {
	out := make([]ServiceChange, 0, len(t.newSvcs))
	for key, now := range t.newSvcs {
		if old := t.old.ServiceByKey(key); old != nil || now != nil {
			out = append(out, ServiceChange{Old: old, New: now})
		}
	}
	slices.SortFunc(out, func(a, b ServiceChange) int { return strings.Compare(a.key(), b.key()) })
	return out
}

func (c ServiceChange) key() string {
	if c.New != nil {
		return c.New.Key
	}
	return c.Old.Key
}

// MatchAddr reports whether the change touches a record that owns, or owned, ip.
func (c *Change) MatchAddr(ip netip.Addr) bool {
	for _, w := range c.Workloads {
		if w.Old != nil && w.Old.Owns(ip) || w.New != nil && w.New.Owns(ip) {
			return true
		}
	}
	return false
}
