package discovery

import (
	"maps"
	"slices"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// set is the resources of one Set, indexed, with a log of changed names. Guarded by Server.mu.
type set struct {
	key       Set
	logSize   int
	published bool
	entries   map[string]*entry
	aliases   map[string]string          // alias -> name
	byNode    map[string]map[string]bool // node -> names
	members   map[string]map[string]bool // group -> names

	// log holds names in the order in which they changed; log[i] has position base+i.
	log  []string
	base uint64
}

// entry is one resource. It is immutable.
type entry struct {
	version string
	aliases []string
	traits  Traits
	plain   *discoverypb.Resource // without aliases, for wildcard clients
}

func newSet(key Set, logSize int) *set {
	return &set{
		key: key, logSize: logSize,
		entries: map[string]*entry{}, aliases: map[string]string{},
		byNode: map[string]map[string]bool{}, members: map[string]map[string]bool{},
	}
}

func (st *set) put(r Resource) {
	st.unindex(r.Name)
	st.entries[r.Name] = &entry{
		version: r.Version, aliases: r.Aliases, traits: r.Traits,
		plain: &discoverypb.Resource{Name: r.Name, Version: r.Version, Resource: &anypb.Any{TypeUrl: st.key.TypeURL, Value: r.Body}},
	}
	for _, a := range r.Aliases {
		st.aliases[a] = r.Name
	}
	if r.Traits.Node != "" {
		add(st.byNode, r.Traits.Node, r.Name)
	}
	for _, g := range r.Traits.Groups {
		add(st.members, g, r.Name)
	}
	st.log = append(st.log, r.Name)
}

func (st *set) remove(name string) bool {
	if st.entries[name] == nil {
		return false
	}
	st.unindex(name)
	delete(st.entries, name)
	st.log = append(st.log, name)
	return true
}

func (st *set) unindex(name string) {
	e := st.entries[name]
	if e == nil {
		return
	}
	for _, a := range e.aliases {
		if st.aliases[a] == name { // an address may have gone to another workload meanwhile
			delete(st.aliases, a)
		}
	}
	drop(st.byNode, e.traits.Node, name)
	for _, g := range e.traits.Groups {
		drop(st.members, g, name)
	}
}

func add(m map[string]map[string]bool, key, name string) {
	if m[key] == nil {
		m[key] = map[string]bool{}
	}
	m[key][name] = true
}

func drop(m map[string]map[string]bool, key, name string) {
	if delete(m[key], name); len(m[key]) == 0 {
		delete(m, key)
	}
}

// end is the position behind the last change.
func (st *set) end() uint64 { return st.base + uint64(len(st.log)) }

// since lists the names that changed at or after pos, each once; false when the log no longer goes back so far.
func (st *set) since(pos uint64) ([]string, bool) {
	if pos < st.base {
		return nil, false
	}
	changes := st.log[pos-st.base:]
	if len(changes) < 2 {
		return changes, true
	}
	names := slices.Clone(changes)
	slices.Sort(names)
	return slices.Compact(names), true
}

// trim forgets the older half of the log when it has grown too long.
func (st *set) trim() {
	limit := st.logSize
	if limit <= 0 {
		limit = max(65536, 2*len(st.entries))
	}
	if len(st.log) <= limit {
		return
	}
	cut := len(st.log) - limit/2
	st.log = slices.Clone(st.log[cut:])
	st.base += uint64(cut)
}

// resolve finds a resource by name or alias.
func (st *set) resolve(key string) (string, *entry) {
	if e := st.entries[key]; e != nil {
		return key, e
	}
	if name, ok := st.aliases[key]; ok {
		return name, st.entries[name]
	}
	return "", nil
}

// localFirst lists all names, those of node before the others, each part in order.
func (st *set) localFirst(node string) []string {
	local := st.byNode[node]
	names := slices.AppendSeq(make([]string, 0, len(st.entries)), maps.Keys(st.entries))
	slices.SortFunc(names, func(a, b string) int {
		if local[a] != local[b] {
			if local[a] {
				return -1
			}
			return 1
		}
		if a < b {
			return -1
		}
		return 1
	})
	return names
}

// aliased is the resource as on-demand clients get it (1.11).
func (e *entry) aliased() *discoverypb.Resource {
	if len(e.aliases) == 0 {
		return e.plain
	}
	return &discoverypb.Resource{Name: e.plain.Name, Version: e.version, Aliases: e.aliases, Resource: e.plain.Resource}
}
