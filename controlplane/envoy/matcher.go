package envoy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	origdstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspectv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/workloadpb"
)

func portText(n uint32) string { return fmt.Sprint(n) }

// mainInternal is where a tunnel's connection arrives: destination address, then port, lead to a chain (3.3, 3.4).
func (b *builder) mainInternal() *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: nameMainInternal, TrafficDirection: corev3.TrafficDirection_INBOUND,
		ListenerSpecifier: &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}},
	}
	var ranges []*xdsmatcherv3.IPMatcher_IPRangeMatcher
	for _, s := range b.services {
		prefixes := addressesOf(s.message)
		ports := map[string]*xdsmatcherv3.Matcher_OnMatch{}
		for _, p := range s.ports {
			l.FilterChains = append(l.FilterChains, b.portChains(s, p)...)
			ports[portText(p.number)] = portMatch(s, p)
		}
		if len(prefixes) > 0 && len(ports) > 0 {
			ranges = append(ranges, &xdsmatcherv3.IPMatcher_IPRangeMatcher{
				Ranges: prefixes, OnMatch: nested(tree("port", &inputsv3.DestinationPortInput{}, ports)),
			})
		}
	}
	if prefixes := b.workloadRanges(); len(prefixes) > 0 {
		m := tree("application-protocol", &inputsv3.ApplicationProtocolInput{}, sniffed(nameDirectHTTP))
		m.OnNoMatch = action(nameDirectTCP)
		ranges = append(ranges, &xdsmatcherv3.IPMatcher_IPRangeMatcher{Ranges: prefixes, OnMatch: nested(m)})
	}
	if len(ranges) == 0 {
		// A matcher must have a range. Nothing is sent to this address.
		ranges = append(ranges, &xdsmatcherv3.IPMatcher_IPRangeMatcher{Ranges: []*xdscorev3.CidrRange{cidr(netip.PrefixFrom(netip.IPv4Unspecified(), 32))}, OnMatch: action(nameDirectTCP)})
	}
	l.FilterChains = append(l.FilterChains, b.directChains()...)
	l.FilterChainMatcher = &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherTree_{MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
		Input: input("ip", &inputsv3.DestinationIPInput{}),
		TreeType: &xdsmatcherv3.Matcher_MatcherTree_CustomMatch{CustomMatch: &xdscorev3.TypedExtensionConfig{
			Name: "ip", TypedConfig: anyOf(&xdsmatcherv3.IPMatcher{RangeMatchers: ranges}),
		}},
	}}}
	l.ListenerFilters = b.inspectors()
	return l
}

func cidr(p netip.Prefix) *xdscorev3.CidrRange {
	return &xdscorev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: u32(uint32(p.Bits()))}
}

// addressesOf are the VIPs of a service. istiod lists only one of several (3.4); all of them lead here.
func addressesOf(m *workloadpb.Service) []*xdscorev3.CidrRange {
	var out []*xdscorev3.CidrRange
	for _, a := range m.Addresses {
		ip, ok := netip.AddrFromSlice(a.Address)
		if !ok {
			continue
		}
		bits := ip.BitLen()
		if a.Length != nil {
			bits = int(*a.Length)
		}
		out = append(out, cidr(netip.PrefixFrom(ip, bits)))
	}
	return out
}

// workloadRanges are the addresses of the workloads that are served by address.
func (b *builder) workloadRanges() []*xdscorev3.CidrRange {
	var out []*xdscorev3.CidrRange
	for _, w := range b.workloads {
		for _, a := range w.Addresses {
			if ip, ok := netip.AddrFromSlice(a); ok {
				out = append(out, cidr(netip.PrefixFrom(ip, ip.BitLen())))
			}
		}
	}
	return out
}

func input(name string, m proto.Message) *xdscorev3.TypedExtensionConfig {
	return &xdscorev3.TypedExtensionConfig{Name: name, TypedConfig: anyOf(m)}
}

// tree matches a text exactly.
func tree(name string, in proto.Message, cases map[string]*xdsmatcherv3.Matcher_OnMatch) *xdsmatcherv3.Matcher {
	return &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherTree_{MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
		Input:    input(name, in),
		TreeType: &xdsmatcherv3.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &xdsmatcherv3.Matcher_MatcherTree_MatchMap{Map: cases}},
	}}}
}

func nested(m *xdsmatcherv3.Matcher) *xdsmatcherv3.Matcher_OnMatch {
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Matcher{Matcher: m}}
}

// action leads to a chain by name.
func action(chain string) *xdsmatcherv3.Matcher_OnMatch {
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{
		Name: chain, TypedConfig: anyOf(wrapperspb.String(chain)),
	}}}
}

// sniffed leads to a chain when the inspector has seen HTTP.
func sniffed(chain string) map[string]*xdsmatcherv3.Matcher_OnMatch {
	return map[string]*xdsmatcherv3.Matcher_OnMatch{"'h2c'": action(chain), "'http/1.1'": action(chain)}
}

// portMatch leads to the chain of a port, through detection where the protocol is not known.
func portMatch(s *service, p port) *xdsmatcherv3.Matcher_OnMatch {
	kinds := kindsOf(p.protocol)
	if len(kinds) == 1 {
		return action(inboundName(p.number, kinds[0], "", s.host()))
	}
	m := tree("application-protocol", &inputsv3.ApplicationProtocolInput{}, sniffed(inboundName(p.number, kindHTTP, "", s.host())))
	m.OnNoMatch = action(inboundName(p.number, kindTCP, "", s.host()))
	return nested(m)
}

// inspectors are the listener filters: the first finds the destination, the others look at the first bytes, and only on
// ports where that matters.
func (b *builder) inspectors() []*listenerv3.ListenerFilter {
	all, sniff, secure := map[uint32]bool{}, map[uint32]bool{}, map[uint32]bool{}
	for _, s := range b.services {
		for _, p := range s.ports {
			all[p.number] = true
			sniff[p.number] = sniff[p.number] || p.protocol == protoAuto
			secure[p.number] = secure[p.number] || p.protocol == protoTLS
		}
	}
	direct := len(b.workloads) > 0
	http := listenerFilter("envoy.filters.listener.http_inspector", &httpinspectv3.HttpInspector{})
	if !direct {
		http.FilterDisabled = disabledOn(all, sniff)
	}
	out := []*listenerv3.ListenerFilter{listenerFilter(originalDst, &origdstv3.OriginalDst{}), http}
	for _, is := range secure {
		if is {
			tls := listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectv3.TlsInspector{InitialReadBufferSize: u32(512)})
			tls.FilterDisabled = disabledOn(all, secure)
			return append(out, tls)
		}
	}
	return out
}

// disabledOn matches the ports of all that are not wanted.
func disabledOn(all, wanted map[uint32]bool) *listenerv3.ListenerFilterChainMatchPredicate {
	var rules []*listenerv3.ListenerFilterChainMatchPredicate
	for _, n := range slices.SortedFunc(maps.Keys(all), cmp.Compare[uint32]) {
		if !wanted[n] {
			rules = append(rules, &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
				DestinationPortRange: &typev3.Int32Range{Start: int32(n), End: int32(n) + 1},
			}})
		}
	}
	switch len(rules) {
	case 0:
		return nil
	case 1:
		return rules[0] // a set must have two rules
	}
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
	}}
}
