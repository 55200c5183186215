package envoy

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// matches makes the matches of a rule; without any the rule takes everything. A match that is for another port, or cannot
// be made, is left out.
func (b *builder) matches(src *ruleSource, r *httpRule, p port) (out []madeMatch) {
	if len(r.Match) == 0 {
		return []madeMatch{{RouteMatch: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}, operation: "/*", name: r.Name}}
	}
	for i, m := range r.Match {
		if m == nil || m.Port != 0 && m.Port != p.number {
			continue
		}
		field := indexed(r.field+".match", i)
		if len(m.Gateways) > 0 && !slices.Contains(m.Gateways, "mesh") {
			continue // for an ingress only
		}
		if err := compilable(m); err != "" {
			b.problem(kube.Ignored, r.object, field, err, "a regular expression of RE2")
			continue
		}
		match, operation := pathMatch(m, src.gateway)
		match.Headers = headerMatches(m)
		claimMatches(match, m)
		if !b.sourceMatch(match, m) {
			continue // no client is like that at the moment
		}
		for _, name := range sortedKeys(m.QueryParams) {
			match.QueryParameters = append(match.QueryParameters, queryMatch(name, m.QueryParams[name]))
		}
		made := madeMatch{RouteMatch: match, operation: operation, name: r.Name, stat: m.StatPrefix}
		if m.Name != "" {
			made.name = r.Name + "." + m.Name
		}
		out = append(out, made)
	}
	return out
}

// madeMatch is a match with the name of its route, the name of its statistics, and the text for its path in traces.
type madeMatch struct {
	*routev3.RouteMatch
	name, stat, operation string
}

// sourceMatch matches the real client: its namespace by its identity, its labels by the addresses of the workloads that
// have them now. False when there is no such workload.
func (b *builder) sourceMatch(match *routev3.RouteMatch, m *networking.HTTPMatchRequest) bool {
	if m.SourceNamespace != "" {
		match.FilterState = append(match.FilterState, &matcherv3.FilterStateMatcher{
			Key: statePeer, Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: regexMatcher(".*/ns/" + regexp.QuoteMeta(m.SourceNamespace) + "/.*")},
		})
	}
	if len(m.SourceLabels) == 0 {
		return true
	}
	addresses := &matcherv3.AddressMatcher{}
	for _, w := range b.all {
		if !selects(m.SourceLabels, b.labelsOf(w)) {
			continue
		}
		for _, a := range w.Addresses {
			if ip, ok := netip.AddrFromSlice(a); ok {
				addresses.Ranges = append(addresses.Ranges, cidr(netip.PrefixFrom(ip, ip.BitLen())))
			}
		}
	}
	if len(addresses.Ranges) == 0 {
		return false
	}
	match.FilterState = append(match.FilterState, &matcherv3.FilterStateMatcher{
		Key: stateRemote, Matcher: &matcherv3.FilterStateMatcher_AddressMatch{AddressMatch: addresses},
	})
	return true
}

// compilable says what is wrong with the expressions of a match, "" when nothing is. Envoy would refuse the whole
// listener for one of them.
func compilable(m *networking.HTTPMatchRequest) string {
	texts := []*networking.StringMatch{m.Uri, m.Scheme, m.Method, m.Authority}
	for _, list := range []map[string]*networking.StringMatch{m.Headers, m.WithoutHeaders, m.QueryParams} {
		for _, v := range list {
			texts = append(texts, v)
		}
	}
	for _, t := range texts {
		if e := t.GetRegex(); e != "" {
			if _, err := regexp.Compile(e); err != nil {
				return err.Error()
			}
		}
	}
	return ""
}

// pathMatch matches the path. A prefix of the Gateway API ends where a segment does.
func pathMatch(m *networking.HTTPMatchRequest, gateway bool) (*routev3.RouteMatch, string) {
	out := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	operation := "/*"
	if m.Uri == nil {
		return out, operation
	}
	out.CaseSensitive = wrapperspb.Bool(!m.IgnoreUriCase)
	switch u := m.Uri.MatchType.(type) {
	case *networking.StringMatch_Exact:
		out.PathSpecifier, operation = &routev3.RouteMatch_Path{Path: u.Exact}, u.Exact
	case *networking.StringMatch_Prefix:
		if trimmed := strings.TrimSuffix(u.Prefix, "/"); gateway && trimmed != "" {
			out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: trimmed}
		} else {
			out.PathSpecifier, operation = &routev3.RouteMatch_Prefix{Prefix: u.Prefix}, u.Prefix+"*"
		}
	case *networking.StringMatch_Regex:
		out.PathSpecifier, operation = &routev3.RouteMatch_SafeRegex{SafeRegex: regex(u.Regex)}, u.Regex
	}
	return out, operation
}

// headerMatches are in order of name; those that must not match stand between the others; then method, authority, scheme.
func headerMatches(m *networking.HTTPMatchRequest) []*routev3.HeaderMatcher {
	all := map[string]*routev3.HeaderMatcher{}
	for name, v := range m.Headers {
		if routeClaim(name) == nil {
			all[name] = headerMatch(name, v)
		}
	}
	for name, v := range m.WithoutHeaders {
		if routeClaim(name) != nil {
			continue
		}
		h := headerMatch(name, v)
		h.InvertMatch = true
		if h.GetStringMatch() != nil {
			h.TreatMissingHeaderAsEmpty = true
		}
		all[name+"\x00"] = h
	}
	var out []*routev3.HeaderMatcher
	for _, name := range sortedKeys(all) {
		out = append(out, all[name])
	}
	for _, p := range []struct {
		name  string
		match *networking.StringMatch
	}{{":method", m.Method}, {":authority", m.Authority}, {":scheme", m.Scheme}} {
		if p.match != nil {
			out = append(out, headerMatch(p.name, p.match))
		}
	}
	return out
}

func headerMatch(name string, v *networking.StringMatch) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: name}
	if s := stringMatch(v); s != nil {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: s}
	} else {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
	}
	return h
}

func queryMatch(name string, v *networking.StringMatch) *routev3.QueryParameterMatcher {
	q := &routev3.QueryParameterMatcher{Name: name}
	if s := stringMatch(v); s != nil {
		q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: s}
	} else {
		q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
	}
	return q
}

// stringMatch is nil for a match that asks for presence only.
func stringMatch(v *networking.StringMatch) *matcherv3.StringMatcher {
	switch t := v.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return exactMatcher(t.Exact)
	case *networking.StringMatch_Prefix:
		return prefixMatcher(t.Prefix)
	case *networking.StringMatch_Regex:
		if t.Regex == "*" {
			return nil
		}
		return regexMatcher(t.Regex)
	}
	return nil
}
