package telemetry

import (
	"bufio"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"weak"
)

// Override changes metrics of the data path, as Istio's Telemetry API says it.
type Override struct {
	// Metric is the name with its prefix and suffix, such as "istio_requests_total"; "" means all.
	Metric string
	// Drop leaves the metric out.
	Drop bool
	// Remove are names of labels that are left out.
	Remove []string
	// Set are labels that are added or replaced: the name, and which of the values of Labels.Extra it has.
	Set map[string]int
}

// View is how the metrics of some label sets are shown: the overrides in order. It is immutable. Equal overrides make the same
// View, since it is part of label sets: a configuration that comes again goes on counting where it was.
type View struct {
	overrides []Override
	reduce    []func(*HTTPLabels)
}

// views are those in use, by what they do.
var views struct {
	mu sync.Mutex
	by map[string]weak.Pointer[View]
}

// NewView returns the view that does this.
func NewView(list []Override) *View {
	key := fmt.Sprintf("%#v", list) // maps are printed in order of their keys
	views.mu.Lock()
	defer views.mu.Unlock()
	if v := views.by[key].Value(); v != nil {
		return v
	}
	v := newView(list)
	if views.by == nil {
		views.by = map[string]weak.Pointer[View]{}
	}
	views.by[key] = weak.Make(v)
	runtime.AddCleanup(v, func(key string) {
		views.mu.Lock()
		defer views.mu.Unlock()
		if views.by[key].Value() == nil { // there may be another one by now
			delete(views.by, key)
		}
	}, key)
	return v
}

func newView(list []Override) *View {
	v := &View{overrides: list}
	gone := func(tag string) bool {
		for i := range list {
			if list[i].Metric == "" && slices.Contains(list[i].Remove, tag) {
				return true
			}
		}
		return false
	}
	for _, f := range labelFields {
		if !slices.ContainsFunc(f.tags, func(t string) bool { return !gone(t) }) {
			v.reduce = append(v.reduce, f.clear)
		}
	}
	return v
}

// Reduce drops from the key what no metric shows, so that it makes no series of its own.
func (v *View) Reduce(l *HTTPLabels) {
	for _, f := range v.reduce {
		f(l)
	}
}

// labelFields are the fields of label sets with the labels that show them.
var labelFields = []struct {
	tags  []string
	clear func(*HTTPLabels)
}{
	{[]string{"source_workload"}, func(l *HTTPLabels) { l.Source.Workload = "" }},
	{[]string{"source_workload_namespace"}, func(l *HTTPLabels) { l.Source.Namespace = "" }},
	{[]string{"source_principal"}, func(l *HTTPLabels) { l.Source.Principal = "" }},
	{[]string{"source_canonical_service", "source_app"}, func(l *HTTPLabels) { l.Source.CanonicalService = "" }},
	{[]string{"source_canonical_revision", "source_version"}, func(l *HTTPLabels) { l.Source.CanonicalRevision = "" }},
	{[]string{"source_cluster"}, func(l *HTTPLabels) { l.Source.Cluster = "" }},
	{[]string{"destination_workload"}, func(l *HTTPLabels) { l.Dest.Workload = "" }},
	{[]string{"destination_workload_namespace"}, func(l *HTTPLabels) { l.Dest.Namespace = "" }},
	{[]string{"destination_principal"}, func(l *HTTPLabels) { l.Dest.Principal = "" }},
	{[]string{"destination_canonical_service", "destination_app"}, func(l *HTTPLabels) { l.Dest.CanonicalService = "" }},
	{[]string{"destination_canonical_revision", "destination_version"}, func(l *HTTPLabels) { l.Dest.CanonicalRevision = "" }},
	{[]string{"destination_cluster"}, func(l *HTTPLabels) { l.Dest.Cluster = "" }},
	{[]string{"response_code"}, func(l *HTTPLabels) { l.Code = 0 }},
	{[]string{"response_flags"}, func(l *HTTPLabels) { l.Flags = "" }},
	{[]string{"grpc_response_status"}, func(l *HTTPLabels) { l.GRPC = "" }},
}

// shape is a View of one family.
type shape struct {
	drop    bool
	removed map[string]bool
	set     map[string]int
}

// shape is what the view makes of the family of this name, without suffix; nil: nothing.
func (v *View) shape(family string) *shape {
	if v == nil {
		return nil
	}
	s := &shape{removed: map[string]bool{}, set: map[string]int{}}
	for i := range v.overrides {
		o := &v.overrides[i]
		if o.Metric != "" && strings.TrimSuffix(o.Metric, "_total") != family {
			continue
		}
		s.drop = s.drop || o.Drop
		for _, t := range o.Remove {
			s.removed[t] = true
			delete(s.set, t)
		}
		for t, n := range o.Set {
			s.set[t] = n
			delete(s.removed, t)
		}
	}
	return s
}

// shapes are the views of one family while it is written.
type shapes struct {
	family string
	known  map[*View]*shape
}

func (s *shapes) of(v *View) *shape {
	if v == nil {
		return nil
	}
	x, ok := s.known[v]
	if !ok {
		if s.known == nil {
			s.known = map[*View]*shape{}
		}
		x = v.shape(s.family)
		s.known[v] = x
	}
	return x
}

// extra is the value of an added label.
func extra(values string, n int) string {
	for range n {
		_, values, _ = strings.Cut(values, "\x00")
	}
	v, _, _ := strings.Cut(values, "\x00")
	return v
}

// merged adds up samples that have the same labels: there are some once labels are left out.
type merged[T any] struct {
	order []string
	by    map[string]*T
}

func (m *merged[T]) at(labels []byte) *T {
	if x := m.by[string(labels)]; x != nil {
		return x
	}
	if m.by == nil {
		m.by = map[string]*T{}
	}
	x := new(T)
	m.order, m.by[string(labels)] = append(m.order, string(labels)), x
	return x
}

// write writes sums of counters.
func (m *merged[T]) write(w *bufio.Writer, name string) {
	for _, labels := range m.order {
		if n, ok := any(m.by[labels]).(*uint64); ok {
			w.WriteString(name + labels + " " + strconv.FormatUint(*n, 10) + "\n")
		}
	}
}

// withLE adds the bound of a bucket to a set of labels.
func withLE(b []byte, labels, le string) []byte {
	if labels == "" {
		b = append(b, '{')
	} else {
		b = append(append(b, labels[:len(labels)-1]...), ',')
	}
	return append(append(append(b, `le="`...), le...), `"}`...)
}
