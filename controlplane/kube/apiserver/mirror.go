package apiserver

import (
	"encoding/json"
	"errors"
	"hash/maphash"
	"maps"
	"net/url"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// mirror is what is known of the API server's objects. Safe for any goroutine.
type mirror struct {
	seed  maphash.Seed
	dirty chan struct{} // cap 1: something changed

	mu       sync.Mutex
	items    map[kube.Kind]map[kube.Name]*item // nil for a kind that has not been listed
	problems map[kube.Key][]kube.Problem       // of objects
	troubles map[kube.Kind]kube.Problem        // why a kind may be out of date; "" = what kinds there are
	expected map[kube.Kind]bool                // nil until it is known what kinds there are
	touched  map[kube.Key]bool                 // since the last take
	objects  *kube.Objects
}

// item is one object. Immutable.
type item struct {
	key kube.Key
	// sum is the hash of what the object was made from, so that a change of anything else is seen to be none without
	// keeping or decoding it. The seed is the process's own: nobody can look for two texts with one sum.
	sum uint64
	// object is the last good one, nil when there is none.
	object   kube.Object
	problems []kube.Problem
}

// GetObjectMeta gives the reflector the name of an item, which is all that it asks for.
func (i *item) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: i.key.Namespace, Name: i.key.Name.Name}
}

func newMirror() *mirror {
	return &mirror{
		seed: maphash.MakeSeed(), dirty: make(chan struct{}, 1),
		items: map[kube.Kind]map[kube.Name]*item{}, problems: map[kube.Key][]kube.Problem{},
		troubles: map[kube.Kind]kube.Problem{}, touched: map[kube.Key]bool{}, objects: kube.NewObjects(),
	}
}

// read makes an item of an object as it came from the API server, which it modifies. An object that differs from the
// known one only in what nobody reads gives the known item.
func (m *mirror) read(kind kube.Kind, u *unstructured.Unstructured) *item {
	key := kube.Key{Kind: kind, Name: kube.Name{Namespace: u.GetNamespace(), Name: u.GetName()}}
	m.mu.Lock()
	old := m.items[kind][key.Name]
	m.mu.Unlock()
	trim(kind, u.Object)
	body, err := json.Marshal(u.Object)
	if err != nil {
		return &item{key: key, problems: []kube.Problem{{Object: key, Cause: err.Error()}}}
	}
	it := &item{key: key, sum: maphash.Bytes(m.seed, body)}
	if old != nil && old.sum == it.sum {
		return old
	}
	if it.object, it.problems = kube.DecodeStored(body); it.object == nil && old != nil && old.object != nil {
		it.object = old.object
		for i := range it.problems {
			it.problems[i].Cause += "; the object's last good content stays in force"
		}
	}
	return it
}

// put takes in an item.
func (m *mirror) put(it *item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.putLocked(it)
	m.signal()
}

func (m *mirror) putLocked(it *item) {
	set := m.items[it.key.Kind]
	if set == nil {
		set = map[kube.Name]*item{}
		m.items[it.key.Kind] = set
	}
	if set[it.key.Name] == it {
		return
	}
	set[it.key.Name] = it
	m.touched[it.key] = true
	if len(it.problems) > 0 {
		m.problems[it.key] = it.problems
	} else {
		delete(m.problems, it.key)
	}
}

// drop takes an object away.
func (m *mirror) drop(key kube.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropLocked(key)
	m.signal()
}

func (m *mirror) dropLocked(key kube.Key) {
	delete(m.items[key.Kind], key.Name)
	delete(m.problems, key)
	m.touched[key] = true
}

// replace makes a list the complete content of a kind.
func (m *mirror) replace(kind kube.Kind, list []*item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	listed := make(map[kube.Name]bool, len(list))
	for _, it := range list {
		listed[it.key.Name] = true
		m.putLocked(it)
	}
	for name := range m.items[kind] {
		if !listed[name] {
			m.dropLocked(kube.Key{Kind: kind, Name: name})
		}
	}
	if m.items[kind] == nil {
		m.items[kind] = map[kube.Name]*item{}
	}
	m.signal()
}

// forget takes a kind away that is not served any more.
func (m *mirror) forget(kind kube.Kind) {
	m.replace(kind, nil)
	m.trouble(kind, nil)
}

// expect says which kinds are served: there is no complete state before all of them have been listed.
func (m *mirror) expect(served []kube.Kind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expected = map[kube.Kind]bool{}
	for _, k := range served {
		m.expected[k] = true
	}
	m.signal()
}

// trouble notes why a kind ("" = the list of kinds) cannot be read at the moment, nil = it can.
func (m *mirror) trouble(kind kube.Kind, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		if _, had := m.troubles[kind]; had {
			delete(m.troubles, kind)
			m.signal()
		}
		return
	}
	// The address of a watch has a version, which would make each attempt another problem.
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	p := kube.Problem{Severity: kube.Warning, Object: kube.Key{Kind: kind}, Cause: "API server: " + err.Error() + "; the last state stays in force"}
	if m.troubles[kind] != p {
		m.troubles[kind] = p
		m.signal()
	}
}

// take returns the state, and whether it is complete. For one goroutine.
func (m *mirror) take() (kube.Snapshot, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var put []kube.Object
	var remove []kube.Key
	for key := range m.touched {
		if it := m.items[key.Kind][key.Name]; it == nil || it.object == nil {
			remove = append(remove, key)
		} else if it.object != m.objects.Lookup(key) {
			put = append(put, it.object)
		}
	}
	clear(m.touched)
	if len(put)+len(remove) > 0 {
		m.objects = m.objects.With(put, remove)
	}
	snap := kube.Snapshot{Objects: m.objects}
	for _, p := range m.problems {
		snap.Problems = append(snap.Problems, p...)
	}
	snap.Problems = slices.AppendSeq(snap.Problems, maps.Values(m.troubles))
	kube.SortProblems(snap.Problems)
	snap.Problems = slices.Compact(snap.Problems)
	complete := m.expected != nil
	for kind := range m.expected {
		complete = complete && m.items[kind] != nil
	}
	return snap, complete
}

// signal tells the taker. It never blocks.
func (m *mirror) signal() {
	select {
	case m.dirty <- struct{}{}:
	default:
	}
}

// shelf is the part of a mirror that one reflector fills. It implements cache.TransformingStore.
type shelf struct {
	m    *mirror
	kind kube.Kind
}

func (s shelf) item(obj any) (*item, bool) {
	switch o := obj.(type) {
	case *item:
		return o, true
	case *unstructured.Unstructured:
		return s.m.read(s.kind, o), true
	}
	return nil, false
}

// Transformer implements cache.TransformingStore: while a long list comes in, only items are kept of it.
func (s shelf) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if it, ok := s.item(obj); ok {
			return it, nil
		}
		return obj, nil
	}
}

// Add implements cache.ReflectorStore.
func (s shelf) Add(obj any) error {
	if it, ok := s.item(obj); ok {
		s.m.put(it)
	}
	return nil
}

// Update implements cache.ReflectorStore.
func (s shelf) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s shelf) Delete(obj any) error {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		s.m.drop(kube.Key{Kind: s.kind, Name: kube.Name{Namespace: u.GetNamespace(), Name: u.GetName()}})
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (s shelf) Replace(list []any, _ string) error {
	items := make([]*item, 0, len(list))
	for _, obj := range list {
		if it, ok := s.item(obj); ok {
			items = append(items, it)
		}
	}
	s.m.replace(s.kind, items)
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do again.
func (shelf) Resync() error { return nil }
