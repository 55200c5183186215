package waypoint

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// paths are the field masks of a query, each a path of names; nil: everything.
func paths(masks []string) (out [][]string) {
	for p := range strings.SplitSeq(strings.Join(masks, ","), ",") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, strings.Split(p, "."))
		}
	}
	return out
}

// allConfigs are the configs that have what the mask names.
func allConfigs(configs []dumpConfig, mask [][]string) (iter.Seq[any], int, error) {
	var chosen []dumpConfig
	for _, c := range configs {
		if masks(c.of.ProtoReflect().Descriptor(), mask) {
			chosen = append(chosen, c)
		}
	}
	if len(chosen) == 0 {
		return nil, http.StatusBadRequest, fmt.Errorf("mask %q does not fit any config", join(mask))
	}
	return func(yield func(any) bool) {
		for _, c := range chosen {
			out := map[string]any{}
			for k, v := range c.whole {
				out[k] = v
			}
			for _, l := range c.lists {
				if mask != nil && below(mask, l.field) == nil {
					continue // not even made
				}
				list := []any{}
				for x := range l.each {
					list = append(list, x)
				}
				if len(list) > 0 {
					out[l.field] = list
				}
			}
			if mask != nil {
				out = trim(out, mask).(map[string]any)
			}
			out["@type"] = typeURL(c.of)
			if !yield(out) {
				return
			}
		}
	}, 0, nil
}

// oneResource are the elements of a list, each by itself.
func oneResource(configs []dumpConfig, field string, mask [][]string) (iter.Seq[any], int, error) {
	for _, c := range configs {
		f := c.of.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field))
		switch {
		case f == nil:
			continue
		case !f.IsList():
			return nil, http.StatusBadRequest, fmt.Errorf("%s is not a repeated field. Use ?mask=%s to get only this field", field, field)
		case !masks(f.Message(), mask):
			return nil, http.StatusBadRequest, fmt.Errorf("mask %q does not fit %s", join(mask), f.Message().FullName())
		}
		return func(yield func(any) bool) {
			for _, l := range c.lists {
				if l.field != field {
					continue
				}
				for x := range l.each {
					if mask != nil {
						x = trim(x, mask).(map[string]any)
					}
					x["@type"] = anyType + string(f.Message().FullName())
					if !yield(x) {
						return
					}
				}
			}
		}, 0, nil
	}
	return nil, http.StatusNotFound, fmt.Errorf("%s not found in config dump", field)
}

// masks says whether each path of a mask begins with a field of the message.
func masks(m protoreflect.MessageDescriptor, mask [][]string) bool {
	for _, p := range mask {
		if m.Fields().ByName(protoreflect.Name(p[0])) == nil {
			return false
		}
	}
	return true
}

func join(mask [][]string) string {
	var parts []string
	for _, p := range mask {
		parts = append(parts, strings.Join(p, "."))
	}
	return strings.Join(parts, ",")
}

// below is what a mask says of a field: the rests of its paths, with an empty one for the whole; nil: nothing.
func below(mask [][]string, field string) (out [][]string) {
	for _, p := range mask {
		if p[0] == field {
			out = append(out, p[1:])
		}
	}
	return out
}

// trim leaves of a value what the mask names, and the types of objects.
func trim(v any, mask [][]string) any {
	for _, p := range mask {
		if len(p) == 0 {
			return v
		}
	}
	switch x := v.(type) {
	case json.RawMessage:
		var inner any
		if json.Unmarshal(x, &inner) != nil {
			return nil
		}
		return trim(inner, mask)
	case map[string]any:
		out := map[string]any{}
		for k, inner := range x {
			if k == "@type" {
				out[k] = inner
			} else if rest := below(mask, k); rest != nil {
				out[k] = trim(inner, rest)
			}
		}
		return out
	case []any:
		for i := range x {
			x[i] = trim(x[i], mask)
		}
		return x
	}
	return v
}
