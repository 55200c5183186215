package kube

import (
	"iter"
	"maps"
	"slices"
	"sync/atomic"
)

// Objects is a frozen set of objects. The zero value and nil are empty sets.
type Objects struct {
	sets map[Kind]map[Name]Object

	// id tells the sets of this process apart; base and changes say which set this one was made from and what differs,
	// so that Diff of neighbours costs what changed.
	id, base uint64
	changes  []Key
}

// lastID numbers the sets.
var lastID atomic.Uint64

// NewObjects makes a set. Of two objects with one key the later stays. Objects must not change afterwards; those of a
// type that is not accepted are left out.
func NewObjects(objects ...Object) *Objects {
	return (*Objects)(nil).With(objects, nil)
}

// With makes a set that has the objects of put in place of those with the same keys and none of remove. The set itself
// stays as it is. Kinds without a change are shared.
func (o *Objects) With(put []Object, remove []Key) *Objects {
	n := &Objects{id: lastID.Add(1), sets: map[Kind]map[Name]Object{}}
	if o != nil {
		n.base = o.id
		maps.Copy(n.sets, o.sets)
	}
	own := map[Kind]bool{}
	changed := map[Key]bool{}
	set := func(k Kind) map[Name]Object {
		if !own[k] {
			own[k] = true
			if n.sets[k] == nil {
				n.sets[k] = map[Name]Object{}
			} else {
				n.sets[k] = maps.Clone(n.sets[k])
			}
		}
		return n.sets[k]
	}
	for _, k := range remove {
		if _, ok := n.sets[k.Kind][k.Name]; ok {
			delete(set(k.Kind), k.Name)
			changed[k] = true
		}
	}
	for _, obj := range put {
		k := KeyOf(obj)
		if k.Kind == "" || n.sets[k.Kind][k.Name] == obj {
			continue
		}
		set(k.Kind)[k.Name] = obj
		changed[k] = true
	}
	n.changes = slices.SortedFunc(maps.Keys(changed), Key.Compare)
	return n
}

// Lookup returns the object with a key, nil when there is none.
func (o *Objects) Lookup(k Key) Object {
	if o == nil {
		return nil
	}
	return o.sets[k.Kind][k.Name]
}

// Len is the number of objects.
func (o *Objects) Len() int {
	n := 0
	if o != nil {
		for _, s := range o.sets {
			n += len(s)
		}
	}
	return n
}

// Keys lists all keys in order.
func (o *Objects) Keys() []Key {
	keys := make([]Key, 0, o.Len())
	if o != nil {
		for kind, s := range o.sets {
			for n := range s {
				keys = append(keys, Key{Kind: kind, Name: n})
			}
		}
	}
	slices.SortFunc(keys, Key.Compare)
	return keys
}

// Diff lists the keys whose object is another one in o than in old, or is in one of the two sets only, in order. It
// costs what changed when o was made from old by one With, and a pass over the kinds that are not shared otherwise.
func (o *Objects) Diff(old *Objects) []Key {
	switch {
	case o == old:
		return nil
	case o != nil && old != nil && o.base == old.id:
		return o.changes
	}
	var keys []Key
	var now, before map[Kind]map[Name]Object
	if o != nil {
		now = o.sets
	}
	if old != nil {
		before = old.sets
	}
	for kind, s := range now {
		for n, obj := range s {
			if before[kind][n] != obj {
				keys = append(keys, Key{Kind: kind, Name: n})
			}
		}
	}
	for kind, s := range before {
		for n := range s {
			if _, ok := now[kind][n]; !ok {
				keys = append(keys, Key{Kind: kind, Name: n})
			}
		}
	}
	slices.SortFunc(keys, Key.Compare)
	return keys
}

// List yields the objects of a type, for example List[*corev1.Pod](o), in no order.
func List[T Object](o *Objects) iter.Seq[T] {
	var zero T
	return func(yield func(T) bool) {
		if o == nil {
			return
		}
		for _, obj := range o.sets[kindOf(zero)] {
			if !yield(obj.(T)) {
				return
			}
		}
	}
}

// Get returns the object of a type with a name, nil when there is none.
func Get[T Object](o *Objects, namespace, name string) T {
	var zero T
	if o == nil {
		return zero
	}
	if obj, ok := o.sets[kindOf(zero)][Name{Namespace: namespace, Name: name}]; ok {
		return obj.(T)
	}
	return zero
}
