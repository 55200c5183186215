package rbac

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// View is one consistent state of all policies. Safe from any goroutine.
type View struct {
	generation uint64
	byName     map[string]*Policy   // by resource name
	byKey      map[string]*Policy   // by "namespace/name"
	byNS       map[string][]*Policy // NAMESPACE scope; sorted by key
	global     []*Policy            // sorted by key

	mu     sync.Mutex // guards the fields below
	groups map[string]*group
}

// Generation counts the changes that led to this view.
func (v *View) Generation() uint64 { return v.generation }

// Len returns the number of policies.
func (v *View) Len() int { return len(v.byName) }

// Policy returns the policy "namespace/name", or nil.
func (v *View) Policy(key string) *Policy { return v.byKey[key] }

// Policies walks all policies in no order.
func (v *View) Policies() iter.Seq[*Policy] { return maps.Values(v.byName) }

// Set gathers the policies of a workload: those of its namespace, the global ones, and those it lists by "namespace/name"
// (I10). The result does not follow later changes of the store; ask again for each generation and each change of the
// workload. It takes a lock shared by callers of Set, so call it per workload, not per connection.
//
// A name that the store lacks is Missing, and its Set lets nobody in: what the policy forbids is not known. Unless before,
// the Set that the workload had until now (nil if there was none), knew the policy: then the policy was removed, the
// workload's own update is still on its way, and the name is skipped.
func (v *View) Set(ns string, names []string, before *Set) *Set {
	s := &Set{base: v.group(ns), names: names}
	if len(names) == 0 {
		return s
	}
	named := make([]*Policy, 0, len(names))
	for _, n := range names {
		p := v.byKey[n]
		switch {
		case p == nil:
			if !before.knew(n) {
				s.Missing = append(s.Missing, n)
			}
		case p.Scope == Global || p.Scope == Namespace && p.Namespace == ns:
			// already there
		case !slices.Contains(named, p):
			named = append(named, p)
		}
	}
	if len(named) > 0 {
		s.named = newGroup(named)
	}
	return s
}

// group returns the policies that apply to a whole namespace, compiled once per view.
func (v *View) group(ns string) *group {
	v.mu.Lock()
	defer v.mu.Unlock()
	g := v.groups[ns]
	if g == nil {
		g = newGroup(append(slices.Clone(v.byNS[ns]), v.global...))
		v.groups[ns] = g
	}
	return g
}

// group is some policies by what they do. Immutable.
type group struct{ deny, allow, dryDeny, dryAllow *matcher }

func newGroup(list []*Policy) *group {
	var lists [2][2][]*Policy
	for _, p := range list {
		dry := 0
		if p.DryRun {
			dry = 1
		}
		lists[p.Action][dry] = append(lists[p.Action][dry], p)
	}
	return &group{
		deny: newMatcher(lists[Deny][0]), dryDeny: newMatcher(lists[Deny][1]),
		allow: newMatcher(lists[Allow][0]), dryAllow: newMatcher(lists[Allow][1]),
	}
}

// Set is the policies that apply to one workload. Immutable.
type Set struct {
	base, named *group
	names       []string // as listed by the workload
	// Missing are the names that the workload lists and that were never delivered. Until they are, or the workload lists
	// them no more, nobody is allowed. (Other implementations skip them, I10, and so enforce less than is meant.)
	Missing []string
}

// knew tells whether the workload listed a policy that was there, or had been removed.
func (s *Set) knew(name string) bool {
	return s != nil && slices.Contains(s.names, name) && !slices.Contains(s.Missing, name)
}

// Empty tells whether no policy applies, so that every check allows.
func (s *Set) Empty() bool {
	return s.base.empty() && (s.named == nil || s.named.empty()) && len(s.Missing) == 0
}

func (g *group) empty() bool {
	return len(g.deny.policies)+len(g.allow.policies)+len(g.dryDeny.policies)+len(g.dryAllow.policies) == 0
}

// Check decides (I11): dry-run DENY is noted; an enforced DENY that matches denies; so does a policy that is Missing;
// dry-run ALLOW is noted; without enforced ALLOW the connection is allowed, else one of them must match. It allocates
// nothing. Safe from any goroutine.
func (s *Set) Check(a *Attributes) Decision {
	d := Decision{DryRunDeny: s.first(a, func(g *group) *matcher { return g.dryDeny })}
	if p := s.first(a, func(g *group) *matcher { return g.deny }); p != nil {
		d.Reason, d.Policy = DeniedBy, p
		return d
	}
	if len(s.Missing) > 0 {
		d.Reason, d.Missing = UnknownPolicy, s.Missing[0]
		return d
	}
	allows, dryAllows := len(s.base.allow.policies), len(s.base.dryAllow.policies)
	if s.named != nil {
		allows += len(s.named.allow.policies)
		dryAllows += len(s.named.dryAllow.policies)
	}
	d.DryRunAllow = s.first(a, func(g *group) *matcher { return g.dryAllow })
	if allows == 0 {
		d.Allowed = true
		d.DryRunNoMatch = dryAllows > 0 && d.DryRunAllow == nil
		return d
	}
	if p := s.first(a, func(g *group) *matcher { return g.allow }); p != nil {
		d.Allowed, d.Reason, d.Policy = true, AllowedBy, p
		return d
	}
	d.Reason = NotInAllowList
	return d
}

func (s *Set) first(a *Attributes, which func(*group) *matcher) *Policy {
	if p := which(s.base).first(a); p != nil || s.named == nil {
		return p
	}
	return which(s.named).first(a)
}

// Change is what one Apply did.
type Change struct {
	Old, New   *View
	global     bool
	namespaces map[string]bool
	keys       map[string]bool
}

// Affects tells whether the set of a workload may differ between Old and New.
func (c *Change) Affects(ns string, names []string) bool {
	return c.global || c.namespaces[ns] || slices.ContainsFunc(names, func(n string) bool { return c.keys[n] })
}

// Store holds the current View. All methods are safe from any goroutine. Create it with NewStore.
type Store struct {
	view atomic.Pointer[View]

	mu       sync.Mutex // one writer at a time; guards watchers
	watchers []func(*Change)
}

// NewStore returns an empty store.
func NewStore() *Store {
	s := &Store{}
	s.view.Store(&View{groups: map[string]*group{}})
	return s
}

// View returns the current state. It never blocks and never returns nil.
func (s *Store) View() *View { return s.view.Load() }

// Watch has f called after each change, on the goroutine that applies it and in order. f must not block and must not call
// Apply or Watch.
func (s *Store) Watch(f func(*Change)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(s.watchers, f)
}

// Apply makes a new view: first the removals by resource name, then the upserts. It never fails; the error is there for
// xds.Handler.
func (s *Store) Apply(up []xds.Resource[*Policy], removed []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.view.Load()
	c := &Change{Old: old, namespaces: map[string]bool{}, keys: map[string]bool{}}
	byName := maps.Clone(old.byName)
	if byName == nil {
		byName = make(map[string]*Policy, len(up))
	}
	for _, name := range removed {
		if p := byName[name]; p != nil {
			c.touch(p)
			delete(byName, name)
		}
	}
	for _, r := range up {
		if r.Value == nil {
			continue
		}
		name := r.Name
		if name == "" {
			name = r.Value.Key
		}
		if p := byName[name]; p != nil {
			c.touch(p)
		}
		c.touch(r.Value)
		byName[name] = r.Value
	}
	c.New = rebuild(old, byName, c)
	s.view.Store(c.New)
	for _, f := range s.watchers {
		f(c)
	}
	return nil
}

func (c *Change) touch(p *Policy) {
	c.keys[p.Key] = true
	switch p.Scope {
	case Global:
		c.global = true
	case Namespace:
		c.namespaces[p.Namespace] = true
	}
}

// rebuild indexes byName. Groups that the change does not concern are taken over compiled.
func rebuild(old *View, byName map[string]*Policy, c *Change) *View {
	v := &View{
		generation: old.generation + 1, byName: byName, byKey: make(map[string]*Policy, len(byName)),
		byNS: make(map[string][]*Policy), groups: map[string]*group{},
	}
	for _, p := range byName {
		v.byKey[p.Key] = p
		switch p.Scope {
		case Global:
			v.global = append(v.global, p)
		case Namespace:
			v.byNS[p.Namespace] = append(v.byNS[p.Namespace], p)
		}
	}
	byKey := func(a, b *Policy) int { return strings.Compare(a.Key, b.Key) }
	slices.SortFunc(v.global, byKey)
	for _, list := range v.byNS {
		slices.SortFunc(list, byKey)
	}
	if c.global {
		return v
	}
	old.mu.Lock()
	defer old.mu.Unlock()
	for ns, g := range old.groups {
		if !c.namespaces[ns] {
			v.groups[ns] = g
		}
	}
	return v
}
