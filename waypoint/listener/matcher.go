package listener

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

// maxDepth is how deep matchers may be nested.
const maxDepth = 16

// authorityKey is the filter state under which Envoy keeps what the tunnel asked for (controlplane.md 3.4).
const authorityKey = "io.istio.connect_authority"

// node decides by the address: exactly one of target, prefixes and ports is set.
type node struct {
	target   *Target
	prefixes []*prefixes // the longest first
	ports    map[uint16]*node
	none     *node // if nothing matched; nil: refused
}

// prefixes are the ranges of one length.
type prefixes struct {
	bits int
	v6   bool
	to   map[netip.Prefix][]rangeMatch
}

type rangeMatch struct {
	n         *node
	exclusive bool // counts only as the longest range that matches
}

// lookup walks down the tree.
func (n *node) lookup(dst netip.AddrPort) *Target {
	switch {
	case n == nil:
		return nil
	case n.target != nil:
		return n.target
	case n.ports != nil:
		if t := n.ports[dst.Port()].lookup(dst); t != nil {
			return t
		}
		return n.none.lookup(dst)
	}
	first := true
	for _, p := range n.prefixes {
		if p.v6 == dst.Addr().Is4() {
			continue
		}
		k, err := dst.Addr().WithZone("").Prefix(p.bits)
		if err != nil {
			continue
		}
		for _, m := range p.to[k] {
			if !first && m.exclusive {
				continue
			}
			if t := m.n.lookup(dst); t != nil {
				return t
			}
			first = false
		}
	}
	return n.none.lookup(dst)
}

// choice is what is left of a tree when the address is known: it decides by what is found out from the first bytes.
type choice struct {
	http1, h2c, other, tls *choice // by protocol; set if leaf is nil
	names                  *names  // of a tls choice
	leaf                   *Chain
}

// names are chains by server name, while they are compiled.
type names struct {
	exact    map[string]*choice
	suffixes map[string]*choice // without the leading "*"
	none     *choice
}

// leaf is the choice of one chain.
func (c *compiler) leaf(x *Chain) *choice { return &choice{leaf: x} }

// matcher compiles the listener's matcher.
func (c *compiler) matcher(p *listenerv3.Listener, fallback *node) error {
	m := p.GetFilterChainMatcher()
	if m == nil {
		return c.single(p, fallback)
	}
	if outer := m.GetMatcherTree(); outer != nil && outer.GetInput().GetTypedConfig().MessageIs((*networkv3.FilterStateInput)(nil)) {
		var err error
		if m, err = c.authorities(m); err != nil {
			return field.At(err, "filter_chain_matcher")
		}
	}
	root, err := c.node(m, 0)
	if err != nil {
		return field.At(err, "filter_chain_matcher")
	}
	if fallback != nil {
		root = &node{prefixes: []*prefixes{
			{to: map[netip.Prefix][]rangeMatch{netip.MustParsePrefix("0.0.0.0/0"): {{n: root}}}},
			{v6: true, to: map[netip.Prefix][]rangeMatch{netip.MustParsePrefix("::/0"): {{n: root}}}},
		}, none: fallback}
	}
	c.l.root = root
	return nil
}

// single is for listeners without a matcher: they have one chain.
func (c *compiler) single(p *listenerv3.Listener, fallback *node) error {
	fs := p.GetFilterChains()
	for i, f := range fs {
		if m := f.GetFilterChainMatch(); m != nil && !empty(m) {
			return field.Index(field.Errorf("filter_chain_match", "unsupported, use filter_chain_matcher"), "filter_chains", i)
		}
	}
	switch {
	case len(fs) > 1:
		return field.Errorf("filter_chains", "%d chains and no filter_chain_matcher", len(fs))
	case len(fs) == 1:
		c.l.root = &node{target: c.leaf(c.l.Chains[0]).target()}
	case fallback != nil:
		c.l.root = fallback
	default:
		return field.Errorf("filter_chains", "required")
	}
	return nil
}

func empty(m *listenerv3.FilterChainMatch) bool {
	return m.GetDestinationPort() == nil && len(m.GetPrefixRanges()) == 0 && len(m.GetSourcePrefixRanges()) == 0 && len(m.GetDirectSourcePrefixRanges()) == 0 &&
		len(m.GetSourcePorts()) == 0 && len(m.GetServerNames()) == 0 && len(m.GetApplicationProtocols()) == 0 && m.GetTransportProtocol() == "" &&
		m.GetSourceType() == listenerv3.FilterChainMatch_ANY
}

// authorities compiles the outermost matcher of a mesh of several networks, and returns what is for addresses.
func (c *compiler) authorities(m *matcherv3.Matcher) (*matcherv3.Matcher, error) {
	t := m.GetMatcherTree()
	var in networkv3.FilterStateInput
	if err := t.GetInput().GetTypedConfig().UnmarshalTo(&in); err != nil {
		return nil, field.At(err, "matcher_tree.input.typed_config")
	}
	if in.GetKey() != authorityKey {
		return nil, field.Errorf("matcher_tree.input.typed_config.key", "unsupported filter state %q", in.GetKey())
	}
	if t.GetExactMatchMap() == nil {
		return nil, field.Errorf("matcher_tree", "exact_match_map is required")
	}
	c.l.byAuthority = map[string]*Target{}
	for k, on := range t.GetExactMatchMap().GetMap() {
		x, err := c.choice(on, 1)
		if err != nil {
			return nil, field.Key(err, "matcher_tree.exact_match_map.map", k)
		}
		c.l.byAuthority[k] = x.target()
	}
	inner := m.GetOnNoMatch().GetMatcher()
	if inner == nil {
		return nil, field.Errorf("on_no_match.matcher", "required")
	}
	return inner, nil
}

// node compiles a matcher that may decide by the address.
func (c *compiler) node(m *matcherv3.Matcher, depth int) (*node, error) {
	t := m.GetMatcherTree()
	switch {
	case depth > maxDepth:
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	case t == nil:
		return nil, field.Unsupported(m, "matcher_type")
	}
	in := t.GetInput().GetTypedConfig()
	n := &node{}
	var err error
	switch {
	case in.MessageIs((*networkv3.DestinationIPInput)(nil)):
		err = field.At(c.ranges(n, t, depth), "matcher_tree.custom_match")
	case in.MessageIs((*networkv3.DestinationPortInput)(nil)):
		err = field.At(c.ports(n, t, depth), "matcher_tree.exact_match_map")
	default: // the rest does not depend on the address
		x, err := c.tree(m, depth)
		if err != nil {
			return nil, err
		}
		return &node{target: x.target()}, nil
	}
	if err != nil {
		return nil, err
	}
	if on := m.GetOnNoMatch(); on != nil {
		n.none, err = c.on(on, depth)
	}
	return n, field.At(err, "on_no_match")
}

// on compiles what follows a match.
func (c *compiler) on(on *matcherv3.Matcher_OnMatch, depth int) (*node, error) {
	if m := on.GetMatcher(); m != nil {
		n, err := c.node(m, depth+1)
		return n, field.At(err, "matcher")
	}
	x, err := c.action(on)
	if err != nil {
		return nil, err
	}
	return &node{target: x.target()}, nil
}

// action is the chain that is named.
func (c *compiler) action(on *matcherv3.Matcher_OnMatch) (*choice, error) {
	if on.GetKeepMatching() {
		return nil, field.Errorf("keep_matching", "unsupported")
	}
	a := on.GetAction()
	if a == nil {
		return nil, field.Errorf("on_match", "matcher or action is required")
	}
	var name wrapperspb.StringValue
	if err := a.GetTypedConfig().UnmarshalTo(&name); err != nil {
		return nil, field.At(err, "action.typed_config")
	}
	x := c.chains[name.GetValue()]
	if x == nil {
		return nil, field.Errorf("action.typed_config", "no filter chain is named %q", name.GetValue())
	}
	return c.leaf(x), nil
}

func (c *compiler) ranges(n *node, t *matcherv3.Matcher_MatcherTree, depth int) error {
	var ip matcherv3.IPMatcher
	if err := t.GetCustomMatch().GetTypedConfig().UnmarshalTo(&ip); err != nil {
		return field.At(err, "typed_config")
	}
	for i, r := range ip.GetRangeMatchers() {
		x, err := c.on(r.GetOnMatch(), depth)
		if err != nil {
			return field.At(field.Index(field.At(err, "on_match"), "range_matchers", i), "typed_config")
		}
		for j, cidr := range r.GetRanges() {
			p, err := field.CIDR(cidr)
			if err != nil {
				return field.At(field.Index(field.Index(err, "ranges", j), "range_matchers", i), "typed_config")
			}
			n.add(p, rangeMatch{x, r.GetExclusive()})
		}
	}
	if n.prefixes == nil {
		n.prefixes = []*prefixes{}
	}
	slices.SortFunc(n.prefixes, func(a, b *prefixes) int { return b.bits - a.bits })
	return nil
}

func (n *node) add(p netip.Prefix, m rangeMatch) {
	v6 := p.Addr().Is6()
	i := slices.IndexFunc(n.prefixes, func(x *prefixes) bool { return x.bits == p.Bits() && x.v6 == v6 })
	if i < 0 {
		i = len(n.prefixes)
		n.prefixes = append(n.prefixes, &prefixes{p.Bits(), v6, map[netip.Prefix][]rangeMatch{}})
	}
	to := n.prefixes[i].to
	to[p] = append(to[p], m)
}

func (c *compiler) ports(n *node, t *matcherv3.Matcher_MatcherTree, depth int) error {
	if t.GetExactMatchMap() == nil {
		return errors.New("required: ports are matched exactly")
	}
	n.ports = map[uint16]*node{}
	for k, on := range t.GetExactMatchMap().GetMap() {
		port, err := strconv.ParseUint(k, 10, 16)
		if err != nil {
			return field.Key(fmt.Errorf("%q is not a port", k), "map", k)
		}
		x, err := c.on(on, depth)
		if err != nil {
			return field.Key(err, "map", k)
		}
		n.ports[uint16(port)] = x
	}
	return nil
}

// choice compiles what follows a match where the address must not matter any more.
func (c *compiler) choice(on *matcherv3.Matcher_OnMatch, depth int) (*choice, error) {
	if m := on.GetMatcher(); m != nil {
		x, err := c.tree(m, depth+1)
		return x, field.At(err, "matcher")
	}
	return c.action(on)
}

// tree compiles a matcher that decides by protocol or server name.
func (c *compiler) tree(m *matcherv3.Matcher, depth int) (*choice, error) {
	t := m.GetMatcherTree()
	switch {
	case depth > maxDepth:
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	case t == nil:
		return nil, field.Unsupported(m, "matcher_type")
	}
	var none *choice
	if on := m.GetOnNoMatch(); on != nil {
		var err error
		if none, err = c.choice(on, depth); err != nil {
			return nil, field.At(err, "on_no_match")
		}
	}
	in := t.GetInput().GetTypedConfig()
	var x *choice
	var err error
	switch {
	case in.MessageIs((*networkv3.ApplicationProtocolInput)(nil)):
		x, err = c.protocols(t, none, depth)
	case in.MessageIs((*networkv3.TransportProtocolInput)(nil)):
		x, err = c.transports(t, none, depth)
	case in.MessageIs((*networkv3.ServerNameInput)(nil)):
		x, err = c.serverNames(t, none, depth)
	default:
		err = field.Errorf("input.typed_config", "unsupported input %q of type %q", t.GetInput().GetName(), in.MessageName())
	}
	return x, field.At(err, "matcher_tree")
}

// protocols compiles a choice by what the HTTP inspector finds: its keys are names in single quotes.
func (c *compiler) protocols(t *matcherv3.Matcher_MatcherTree, none *choice, depth int) (*choice, error) {
	if t.GetExactMatchMap() == nil {
		return nil, field.Errorf("exact_match_map", "required")
	}
	x := &choice{http1: none, h2c: none, other: none, tls: none}
	for k, on := range t.GetExactMatchMap().GetMap() {
		y, err := c.choice(on, depth)
		if err != nil {
			return nil, field.Key(err, "exact_match_map.map", k)
		}
		switch k {
		case "'http/1.1'":
			x.http1 = y
		case "'http/1.0'": // goes where HTTP/1.1 goes
		case "'h2c'":
			x.h2c = y
		default:
			return nil, field.Key(fmt.Errorf("unknown protocol %s", k), "exact_match_map.map", k)
		}
	}
	return x, nil
}

// transports compiles a choice by whether TLS is spoken.
func (c *compiler) transports(t *matcherv3.Matcher_MatcherTree, none *choice, depth int) (*choice, error) {
	if t.GetExactMatchMap() == nil {
		return nil, field.Errorf("exact_match_map", "required")
	}
	x := &choice{http1: none, h2c: none, other: none, tls: none}
	for k, on := range t.GetExactMatchMap().GetMap() {
		y, err := c.choice(on, depth)
		if err != nil {
			return nil, field.Key(err, "exact_match_map.map", k)
		}
		switch k {
		case "tls":
			x.tls = y
		case "raw_buffer":
			x.http1, x.h2c, x.other = y, y, y
		default:
			return nil, field.Key(fmt.Errorf("unknown protocol %q", k), "exact_match_map.map", k)
		}
	}
	return x, nil
}

// serverNames compiles a choice by SNI: exactly, or by domains of which some begin with "*".
func (c *compiler) serverNames(t *matcherv3.Matcher_MatcherTree, none *choice, depth int) (*choice, error) {
	ns := &names{exact: map[string]*choice{}, suffixes: map[string]*choice{}, none: none}
	if t.GetCustomMatch() == nil {
		if t.GetExactMatchMap() == nil {
			return nil, field.Errorf("exact_match_map", "required")
		}
		for k, on := range t.GetExactMatchMap().GetMap() {
			y, err := c.choice(on, depth)
			if err != nil {
				return nil, field.Key(err, "exact_match_map.map", k)
			}
			ns.exact[strings.ToLower(k)] = y
		}
	} else {
		var m matcherv3.ServerNameMatcher
		if err := t.GetCustomMatch().GetTypedConfig().UnmarshalTo(&m); err != nil {
			return nil, field.At(err, "custom_match.typed_config")
		}
		for i, d := range m.GetDomainMatchers() {
			y, err := c.choice(d.GetOnMatch(), depth)
			if err == nil {
				err = ns.add(d.GetDomains(), y)
			}
			if err != nil {
				return nil, field.At(field.Index(err, "domain_matchers", i), "custom_match.typed_config")
			}
		}
	}
	return &choice{http1: none, h2c: none, other: none, tls: &choice{names: ns}}, nil
}

func (ns *names) add(domains []string, y *choice) error {
	for i, d := range domains {
		d = strings.ToLower(d)
		rest, wild := strings.CutPrefix(d, "*")
		list := ns.exact
		switch {
		case d == "*":
			if ns.none == nil {
				ns.none = y
			}
			continue
		case wild && !strings.HasPrefix(rest, "."), strings.Contains(rest, "*"), rest == "":
			return field.Index(fmt.Errorf("%q is not a domain, or one with *. in front", d), "domains", i)
		case wild:
			list, d = ns.suffixes, rest
		}
		if list[d] != nil {
			return field.Index(fmt.Errorf("%q is there twice", domains[i]), "domains", i)
		}
		list[d] = y
	}
	return nil
}
