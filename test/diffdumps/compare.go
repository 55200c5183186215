package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ambit-mesh/ambit/test/recorded"
)

// difference is one place where a resource of ours is not istiod's.
type difference struct {
	kind, resource, path string
	istiod, ours         any
	reason               string
}

func (d difference) String() string {
	s := fmt.Sprintf("%s %s %s: istiod %s, ours %s", d.kind, d.resource, d.path, short(d.istiod), short(d.ours))
	if d.reason != "" {
		s += " (" + d.reason + ")"
	}
	return s
}

func short(v any) string {
	if v == nil {
		return "nothing"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	if len(b) > 700 {
		return string(b[:700]) + "..."
	}
	return string(b)
}

// result is the comparison of a scenario.
type result struct {
	theirs, ours, equal int
	explained, open     []difference
	problems            []string
}

// recording is a file of the dumps.
type recording struct {
	Resources map[string][]struct {
		Name     string         `json:"name"`
		Resource map[string]any `json:"resource"`
	} `json:"resources"`
}

func compareScenario(dir, name string) (result, error) {
	var r result
	data, err := os.ReadFile(filepath.Join(dir, name+".json"))
	if err != nil {
		return r, err
	}
	var rec recording
	if err := json.Unmarshal(data, &rec); err != nil {
		return r, fmt.Errorf("read %s: %w", name, err)
	}
	ours, problems, err := produce(dir, name)
	if err != nil {
		return r, err
	}
	r.problems = problems
	for _, kind := range []string{"CDS", "EDS", "LDS"} {
		theirs := map[string]map[string]any{}
		for _, x := range rec.Resources[kind] {
			theirs[x.Name] = x.Resource
		}
		r.theirs += len(theirs)
		r.ours += len(ours[kind])
		for _, n := range slices.Sorted(maps.Keys(merged(theirs, ours[kind]))) {
			var found []difference
			diff(&found, difference{kind: kind, resource: n}, "", nilable(theirs[n]), nilable(ours[kind][n]))
			if len(found) == 0 {
				r.equal++
			}
			for _, d := range found {
				if d.reason = reasonFor(name, d); d.reason != "" {
					r.explained = append(r.explained, d)
				} else {
					r.open = append(r.open, d)
				}
			}
		}
	}
	return r, nil
}

func nilable(m map[string]any) any {
	if m == nil {
		return nil
	}
	return m
}

func merged(a, b map[string]map[string]any) map[string]bool {
	out := map[string]bool{}
	for k := range a {
		out[k] = true
	}
	for k := range b {
		out[k] = true
	}
	return out
}

// produce is what we make of the inputs of a scenario, as JSON by type and name.
func produce(dir, name string) (map[string]map[string]map[string]any, []string, error) {
	resources, problems, err := recorded.Resources(dir, name)
	if err != nil {
		return nil, nil, err
	}
	out := map[string]map[string]map[string]any{}
	for kind, list := range resources {
		out[kind] = map[string]map[string]any{}
		for _, r := range list {
			text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r.Message)
			if err != nil {
				return nil, nil, fmt.Errorf("write %s: %w", r.Name, err)
			}
			var m map[string]any
			if err := json.Unmarshal(text, &m); err != nil {
				return nil, nil, err
			}
			out[kind][r.Name] = m
		}
	}
	return out, problems, nil
}

// diff walks two values and notes where they differ. Lists whose order means nothing are compared as sets.
func diff(out *[]difference, at difference, path string, a, b any) {
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			keys := map[string]bool{}
			for k := range x {
				keys[k] = true
			}
			for k := range y {
				keys[k] = true
			}
			for _, k := range slices.Sorted(maps.Keys(keys)) {
				if k != "@type" || path != "" {
					diff(out, at, path+"."+k, x[k], y[k])
				}
			}
			return
		}
	case []any:
		if y, ok := b.([]any); ok {
			diffLists(out, at, path, x, y)
			return
		}
	}
	if short(a) != short(b) {
		at.path, at.istiod, at.ours = strings.TrimPrefix(path, "."), a, b
		*out = append(*out, at)
	}
}

// unordered are fields whose order means nothing.
var unordered = []string{"range_matchers", "filter_chains", "endpoints", "lb_endpoints", "ranges"}

func diffLists(out *[]difference, at difference, path string, x, y []any) {
	field := path[strings.LastIndexByte(path, '.')+1:]
	if slices.Contains(unordered, field) {
		x, y = sortedBy(field, x), sortedBy(field, y)
		pairs := map[string][2]any{}
		for i, v := range x {
			k := keyed(field, v, i)
			p := pairs[k]
			p[0] = v
			pairs[k] = p
		}
		for i, v := range y {
			k := keyed(field, v, i)
			p := pairs[k]
			p[1] = v
			pairs[k] = p
		}
		for _, k := range slices.Sorted(maps.Keys(pairs)) {
			diff(out, at, path+"["+k+"]", pairs[k][0], pairs[k][1])
		}
		return
	}
	for i := range max(len(x), len(y)) {
		var a, b any
		if i < len(x) {
			a = x[i]
		}
		if i < len(y) {
			b = y[i]
		}
		diff(out, at, fmt.Sprintf("%s[%d]", path, i), a, b)
	}
}

func sortedBy(field string, list []any) []any {
	out := slices.Clone(list)
	slices.SortFunc(out, func(a, b any) int { return strings.Compare(keyed(field, a, 0)+full(a), keyed(field, b, 0)+full(b)) })
	return out
}

func full(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// keyed tells elements of an unordered list apart.
func keyed(field string, v any, i int) string {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Sprint(i)
	}
	switch field {
	case "filter_chains":
		if n, ok := m["name"].(string); ok {
			return n
		}
		return "-"
	case "range_matchers":
		ranges, _ := m["ranges"].([]any)
		list := sortedBy("ranges", ranges)
		if len(list) > 0 {
			return full(list[0])
		}
	case "endpoints":
		return full(m["locality"])
	case "lb_endpoints":
		return full(m["endpoint"])
	case "ranges":
		return full(v)
	}
	return fmt.Sprint(i)
}
