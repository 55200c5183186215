package translate

import (
	"maps"
	"slices"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// keySet is a set of objects.
type keySet map[kube.Key]struct{}

// multimap is a set of objects per key.
type multimap[K comparable] map[K]keySet

func (m multimap[K]) add(k K, v kube.Key) {
	if m[k] == nil {
		m[k] = keySet{}
	}
	m[k][v] = struct{}{}
}

func (m multimap[K]) remove(k K, v kube.Key) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// nsLabel is a label of objects in a namespace. An empty namespace stands for all of them.
type nsLabel struct {
	namespace, key, value string
}

// labelIndex finds the objects that a selector selects. Each object is listed under each of its labels.
type labelIndex struct {
	byNamespace multimap[string]
	byLabel     multimap[nsLabel]
	labels      map[kube.Key]map[string]string
}

func newLabelIndex() labelIndex {
	return labelIndex{byNamespace: multimap[string]{}, byLabel: multimap[nsLabel]{}, labels: map[kube.Key]map[string]string{}}
}

// put enters an object in place of its former state.
func (x *labelIndex) put(k kube.Key, labels map[string]string) {
	x.remove(k)
	x.labels[k] = labels
	x.byNamespace.add(k.Namespace, k)
	for name, value := range labels {
		x.byLabel.add(nsLabel{k.Namespace, name, value}, k)
	}
}

func (x *labelIndex) remove(k kube.Key) {
	labels, ok := x.labels[k]
	if !ok {
		return
	}
	delete(x.labels, k)
	x.byNamespace.remove(k.Namespace, k)
	for name, value := range labels {
		x.byLabel.remove(nsLabel{k.Namespace, name, value}, k)
	}
}

// selected calls f for the objects of a namespace, or of all when it is empty, that a selector selects. An empty
// selector selects all.
func (x *labelIndex) selected(namespace string, selector map[string]string, f func(kube.Key)) {
	if namespace == "" {
		for ns := range x.byNamespace {
			x.selected(ns, selector, f)
		}
		return
	}
	candidates := x.byNamespace[namespace]
	for name, value := range selector {
		if s := x.byLabel[nsLabel{namespace, name, value}]; len(s) < len(candidates) {
			candidates = s
		}
	}
	for k := range candidates {
		if selects(selector, x.labels[k]) {
			f(k)
		}
	}
}

// selects says whether labels have every pair of a selector.
func selects(selector, labels map[string]string) bool {
	for name, value := range selector {
		if v, ok := labels[name]; !ok || v != value {
			return false
		}
	}
	return true
}

// selectorIndex finds the selectors that select given labels. Each selector is listed under one pair of its own, so that
// a look-up costs the labels asked about and not the selectors there are. Empty selectors are not entered.
type selectorIndex struct {
	byPair    multimap[nsLabel]
	selectors map[kube.Key]scopedSelector
}

// scopedSelector is a selector and the namespace it looks into, all when it is empty.
type scopedSelector struct {
	namespace string
	labels    map[string]string
}

func newSelectorIndex() selectorIndex {
	return selectorIndex{byPair: multimap[nsLabel]{}, selectors: map[kube.Key]scopedSelector{}}
}

// pair is the entry that a selector is listed under: the least, so that it is always the same one.
func (s scopedSelector) pair() nsLabel {
	names := slices.Sorted(maps.Keys(s.labels))
	return nsLabel{s.namespace, names[0], s.labels[names[0]]}
}

// put enters a selector in place of the former one.
func (x *selectorIndex) put(k kube.Key, namespace string, selector map[string]string) {
	x.remove(k)
	if len(selector) == 0 {
		return
	}
	s := scopedSelector{namespace, selector}
	x.selectors[k] = s
	x.byPair.add(s.pair(), k)
}

func (x *selectorIndex) remove(k kube.Key) {
	if s, ok := x.selectors[k]; ok {
		delete(x.selectors, k)
		x.byPair.remove(s.pair(), k)
	}
}

// matching lists the objects whose selector selects something in a namespace with these labels, in order.
func (x *selectorIndex) matching(namespace string, labels map[string]string) []kube.Key {
	var keys []kube.Key
	for name, value := range labels {
		for _, ns := range [2]string{namespace, ""} {
			for k := range x.byPair[nsLabel{ns, name, value}] {
				if selects(x.selectors[k].labels, labels) {
					keys = append(keys, k)
				}
			}
		}
	}
	slices.SortFunc(keys, kube.Key.Compare)
	return keys
}
