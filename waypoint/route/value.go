package route

import (
	"net/netip"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

// Attributes answer what a condition asks beyond the request's head: about its connection, and what filters found out.
type Attributes interface {
	// FilterState is the text of an object of the filter state, and whether it is there.
	FilterState(key string) (string, bool)
	// Metadata is the dynamic metadata under a filter's name, or nil.
	Metadata(filter string) *structpb.Struct
}

// StateMatcher is a compiled envoy.type.matcher.v3.FilterStateMatcher. It is immutable.
type StateMatcher struct {
	// Key is the object's name.
	Key string

	str    *StringMatcher
	ranges []netip.Prefix
	invert bool
}

// CompileState compiles a FilterStateMatcher.
func CompileState(p *matcherv3.FilterStateMatcher) (*StateMatcher, error) {
	m := &StateMatcher{Key: p.GetKey()}
	if m.Key == "" {
		return nil, field.Errorf("key", "required")
	}
	switch x := p.GetMatcher().(type) {
	case *matcherv3.FilterStateMatcher_StringMatch:
		s, err := CompileString(x.StringMatch)
		if err != nil {
			return nil, field.At(err, "string_match")
		}
		m.str = s
	case *matcherv3.FilterStateMatcher_AddressMatch:
		m.invert = x.AddressMatch.GetInvertMatch()
		for i, r := range x.AddressMatch.GetRanges() {
			p, err := field.CIDR(r)
			if err != nil {
				return nil, field.At(field.Index(err, "ranges", i), "address_match")
			}
			m.ranges = append(m.ranges, p)
		}
		if len(m.ranges) == 0 {
			return nil, field.Errorf("address_match.ranges", "required")
		}
	default:
		return nil, field.Unsupported(p, "matcher")
	}
	return m, nil
}

// Match says whether the state is one of those meant. An object that is not there, or is no address where one is asked
// for, is not.
func (m *StateMatcher) Match(a Attributes) bool {
	if a == nil {
		return false
	}
	v, ok := a.FilterState(m.Key)
	if !ok {
		return false
	}
	if m.str != nil {
		return m.str.Match(v)
	}
	ip, err := netip.ParseAddr(v)
	if err != nil {
		ap, err := netip.ParseAddrPort(v)
		if err != nil {
			return false
		}
		ip = ap.Addr()
	}
	ip = ip.Unmap()
	for _, p := range m.ranges {
		if p.Contains(ip) {
			return !m.invert
		}
	}
	return m.invert
}

// MetadataMatcher is a compiled envoy.type.matcher.v3.MetadataMatcher. It is immutable.
type MetadataMatcher struct {
	filter string
	path   []string
	value  *ValueMatcher
	invert bool
}

// CompileMetadata compiles a MetadataMatcher.
func CompileMetadata(p *matcherv3.MetadataMatcher) (*MetadataMatcher, error) {
	m := &MetadataMatcher{filter: p.GetFilter(), invert: p.GetInvert()}
	if m.filter == "" {
		return nil, field.Errorf("filter", "required")
	}
	if len(p.GetPath()) == 0 {
		return nil, field.Errorf("path", "required")
	}
	for i, s := range p.GetPath() {
		if s.GetKey() == "" {
			return nil, field.Index(field.Errorf("key", "required"), "path", i)
		}
		m.path = append(m.path, s.GetKey())
	}
	var err error
	if m.value, err = CompileValue(p.GetValue()); err != nil {
		return nil, field.At(err, "value")
	}
	return m, nil
}

// Match applies the matcher to metadata. What is not there is matched by present_match: false alone, as in Envoy.
func (m *MetadataMatcher) Match(a Attributes) bool {
	var v *structpb.Value
	if a != nil {
		v = lookup(a.Metadata(m.filter), m.path)
	}
	return m.value.Match(v) != m.invert
}

// lookup walks down maps; nil if there is nothing at the end of the path.
func lookup(s *structpb.Struct, path []string) *structpb.Value {
	for i, k := range path {
		v := s.GetFields()[k]
		if v == nil || i == len(path)-1 {
			return v
		}
		s = v.GetStructValue()
	}
	return nil
}

// ValueMatcher is a compiled envoy.type.matcher.v3.ValueMatcher. It is immutable.
type ValueMatcher struct {
	match func(v *structpb.Value) bool
}

// Match says whether a value is one of those meant. nil stands for one that is not there.
func (m *ValueMatcher) Match(v *structpb.Value) bool { return m.match(v) }

// CompileValue compiles a ValueMatcher.
func CompileValue(p *matcherv3.ValueMatcher) (*ValueMatcher, error) {
	switch x := p.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_NullMatch_:
		return &ValueMatcher{func(v *structpb.Value) bool { _, ok := v.GetKind().(*structpb.Value_NullValue); return ok }}, nil
	case *matcherv3.ValueMatcher_DoubleMatch:
		return compileDouble(x.DoubleMatch)
	case *matcherv3.ValueMatcher_StringMatch:
		s, err := CompileString(x.StringMatch)
		if err != nil {
			return nil, field.At(err, "string_match")
		}
		return &ValueMatcher{func(v *structpb.Value) bool {
			t, ok := v.GetKind().(*structpb.Value_StringValue)
			return ok && s.Match(t.StringValue)
		}}, nil
	case *matcherv3.ValueMatcher_BoolMatch:
		return &ValueMatcher{func(v *structpb.Value) bool {
			b, ok := v.GetKind().(*structpb.Value_BoolValue)
			return ok && b.BoolValue == x.BoolMatch
		}}, nil
	case *matcherv3.ValueMatcher_PresentMatch:
		return &ValueMatcher{func(v *structpb.Value) bool { return (v.GetKind() != nil) == x.PresentMatch }}, nil
	case *matcherv3.ValueMatcher_ListMatch:
		one, err := CompileValue(x.ListMatch.GetOneOf())
		if err != nil {
			return nil, field.At(err, "list_match.one_of")
		}
		return &ValueMatcher{func(v *structpb.Value) bool { return anyOf(v, one) }}, nil
	case *matcherv3.ValueMatcher_OrMatch:
		return compileOr(x.OrMatch)
	default:
		return nil, field.Unsupported(p, "match_pattern")
	}
}

func anyOf(v *structpb.Value, one *ValueMatcher) bool {
	for _, e := range v.GetListValue().GetValues() {
		if one.Match(e) {
			return true
		}
	}
	return false
}

func compileDouble(p *matcherv3.DoubleMatcher) (*ValueMatcher, error) {
	in := func(n float64) bool { return n == p.GetExact() }
	switch x := p.GetMatchPattern().(type) {
	case *matcherv3.DoubleMatcher_Exact:
	case *matcherv3.DoubleMatcher_Range:
		in = func(n float64) bool { return x.Range.GetStart() <= n && n < x.Range.GetEnd() }
	default:
		return nil, field.Errorf("double_match", "required")
	}
	return &ValueMatcher{func(v *structpb.Value) bool {
		n, ok := v.GetKind().(*structpb.Value_NumberValue)
		return ok && in(n.NumberValue)
	}}, nil
}

func compileOr(p *matcherv3.OrMatcher) (*ValueMatcher, error) {
	var all []*ValueMatcher
	for i, x := range p.GetValueMatchers() {
		m, err := CompileValue(x)
		if err != nil {
			return nil, field.At(field.Index(err, "value_matchers", i), "or_match")
		}
		all = append(all, m)
	}
	return &ValueMatcher{func(v *structpb.Value) bool {
		for _, m := range all {
			if m.Match(v) {
				return true
			}
		}
		return false
	}}, nil
}
