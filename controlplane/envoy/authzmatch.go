//lint:file-ignore SA1019 what takes the place of istiod fills the fields that istiod does

package envoy

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	templatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// What of the rules' matchers can be made: principals are about the client, permissions about what it does (3.8).
// A text is exact, prefix*, *suffix, or * for any that is there.

func andIDs(ids []*rbacconfigv3.Principal) *rbacconfigv3.Principal {
	return &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_AndIds{AndIds: &rbacconfigv3.Principal_Set{Ids: ids}}}
}

func andRules(rules []*rbacconfigv3.Permission) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_AndRules{AndRules: &rbacconfigv3.Permission_Set{Rules: rules}}}
}

// never matches nothing.
func never() *rbacconfigv3.Principal {
	return &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_NotId{NotId: &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_Any{Any: true}}}}
}

func neverRule() *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_NotRule{NotRule: &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Any{Any: true}}}}
}

// orIDs matches one of several values.
func orIDs(one func(string) []*rbacconfigv3.Principal) func([]string) *rbacconfigv3.Principal {
	return func(values []string) *rbacconfigv3.Principal {
		var ids []*rbacconfigv3.Principal
		for _, v := range values {
			ids = append(ids, one(v)...)
		}
		return &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_OrIds{OrIds: &rbacconfigv3.Principal_Set{Ids: ids}}}
	}
}

// oneOrIDs is orIDs without the set around a single value.
func oneOrIDs(one func(string) []*rbacconfigv3.Principal) func([]string) *rbacconfigv3.Principal {
	return func(values []string) *rbacconfigv3.Principal {
		p := orIDs(one)(values)
		if ids := p.GetOrIds().Ids; len(ids) == 1 {
			return ids[0]
		}
		return p
	}
}

func orRules(one func(string) *rbacconfigv3.Permission) func([]string) *rbacconfigv3.Permission {
	return func(values []string) *rbacconfigv3.Permission {
		var rules []*rbacconfigv3.Permission
		for _, v := range values {
			rules = append(rules, one(v))
		}
		return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_OrRules{OrRules: &rbacconfigv3.Permission_Set{Rules: rules}}}
	}
}

// textMatcher reads a text; front is put before what is matched from the beginning.
func textMatcher(v, front string) *matcherv3.StringMatcher {
	switch {
	case v == "*":
		return regexMatcher(".+")
	case strings.HasPrefix(v, "*"):
		return suffixMatcher(v[1:])
	case strings.HasSuffix(v, "*"):
		return prefixMatcher(front + v[:len(v)-1])
	}
	return exactMatcher(front + v)
}

// peer matches the identity that the client proved to the waypoint: the source's, which its ztunnel speaks for.
func peer(m *matcherv3.StringMatcher) *rbacconfigv3.Principal {
	return &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
		Key: statePeer, Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: m},
	}}}
}

// principalID accepts a principal in the mesh's trust domain in all of its aliases too.
func (b *builder) principalID(v string) []*rbacconfigv3.Principal {
	var out []*rbacconfigv3.Principal
	for _, text := range kube.Principals(b.trustDomains(), v) {
		out = append(out, peer(textMatcher(text, "spiffe://")))
	}
	return out
}

// trustDomains are the mesh's, and its aliases.
func (b *builder) trustDomains() []string {
	return append([]string{b.cfg.TrustDomain}, b.cfg.TrustDomainAliases...)
}

// wild makes an expression of a text in which * stands for anything.
func wild(v string) string { return strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, ".*") }

func namespaceID(v string) []*rbacconfigv3.Principal {
	return []*rbacconfigv3.Principal{peer(regexMatcher(".*/ns/" + wild(v) + "/.*"))}
}

func (b *builder) trustDomainID(v string) []*rbacconfigv3.Principal {
	var out []*rbacconfigv3.Principal
	for _, d := range kube.TrustDomains(b.trustDomains(), v) {
		out = append(out, peer(regexMatcher("spiffe://"+wild(d)+"/.*")))
	}
	return out
}

func serviceAccountID(namespace string) func(string) []*rbacconfigv3.Principal {
	return func(v string) []*rbacconfigv3.Principal {
		ns, name, ok := strings.Cut(v, "/")
		if !ok {
			ns, name = namespace, v
		}
		return []*rbacconfigv3.Principal{peer(regexMatcher("spiffe://.+/ns/" + regexp.QuoteMeta(ns) + "/(.+/|)sa/" + regexp.QuoteMeta(name) + "(/.+)?"))}
	}
}

// parseBlock reads an address or a range; false for what is neither, which matches nothing.
func parseBlock(v string) (*corev3.CidrRange, bool) {
	p, err := netip.ParsePrefix(v)
	if err != nil {
		ip, err := netip.ParseAddr(v)
		if err != nil {
			return nil, false
		}
		p = netip.PrefixFrom(ip, ip.BitLen())
	}
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: u32(uint32(p.Bits()))}, true
}

func directIP(v string) []*rbacconfigv3.Principal {
	r, ok := parseBlock(v)
	if !ok {
		return []*rbacconfigv3.Principal{never()}
	}
	return []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_DirectRemoteIp{DirectRemoteIp: r}}}
}

func remoteIP(v string) []*rbacconfigv3.Principal {
	r, ok := parseBlock(v)
	if !ok {
		return []*rbacconfigv3.Principal{never()}
	}
	return []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_RemoteIp{RemoteIp: r}}}
}

// payload matches a claim of the verified token.
func payload(value *matcherv3.ValueMatcher, claims ...string) *rbacconfigv3.Principal {
	m := &matcherv3.MetadataMatcher{Filter: "envoy.filters.http.jwt_authn", Value: value}
	for _, k := range append([]string{"payload"}, claims...) {
		m.Path = append(m.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: k}})
	}
	return &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_Metadata{Metadata: m}}
}

func textValue(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}}
}

// requestPrincipalID is ISSUER/SUBJECT, either of them with *. The last slash divides them, but for those of "https://".
func requestPrincipalID(v string) []*rbacconfigv3.Principal {
	issuer, subject := "*", "*"
	if scheme, rest, ok := strings.Cut(v, "://"); ok && strings.HasSuffix(v, "*") && !strings.Contains(scheme+rest, "/") {
		issuer = v // the beginning of an issuer's URL
	} else if i := strings.LastIndexByte(v, '/'); i >= 0 {
		issuer, subject = v[:i], v[i+1:]
	} else if strings.HasPrefix(v, "*") {
		subject = v
	} else {
		issuer = v
		if !strings.HasSuffix(v, "*") {
			return []*rbacconfigv3.Principal{never()} // every principal has a slash
		}
	}
	return []*rbacconfigv3.Principal{andIDs([]*rbacconfigv3.Principal{
		payload(textValue(textMatcher(issuer, "")), "iss"), payload(textValue(textMatcher(subject, "")), "sub"),
	})}
}

// claimID matches a claim that is one of several values, or a list with one of them.
func claimID(path ...string) func([]string) *rbacconfigv3.Principal {
	return func(values []string) *rbacconfigv3.Principal {
		var list []*matcherv3.ValueMatcher
		for _, v := range values {
			list = append(list, textValue(textMatcher(v, "")))
		}
		one := list[0]
		if len(list) > 1 {
			one = orValues(list)
		}
		inList := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
			MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: one},
		}}}
		return payload(orValues([]*matcherv3.ValueMatcher{inList, clone(one)}), path...)
	}
}

func orValues(list []*matcherv3.ValueMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: &matcherv3.OrMatcher{ValueMatchers: list}}}
}

// header matches a header as a text; * asks for its presence.
func header(name, v string, ignoreCase bool) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: name}
	if v == "*" {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		return h
	}
	m := textMatcher(v, "")
	m.IgnoreCase = ignoreCase
	h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: m}
	return h
}

func headerID(name string) func(string) []*rbacconfigv3.Principal {
	return func(v string) []*rbacconfigv3.Principal {
		return []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_Header{Header: header(name, v, false)}}}
	}
}

func hostRule(v string) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Header{Header: header(":authority", v, true)}}
}

func methodRule(v string) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Header{Header: header(":method", v, false)}}
}

// pathRule matches the path without the query. {*} stands for a segment and {**} for any number of them.
func pathRule(v string) *rbacconfigv3.Permission {
	if strings.Contains(v, "{*}") || strings.Contains(v, "{**}") {
		template := strings.NewReplacer("{**}", "**", "{*}", "*").Replace(v)
		return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_UriTemplate{UriTemplate: &corev3.TypedExtensionConfig{
			Name: "uri-template", TypedConfig: anyOf(&templatev3.UriTemplateMatchConfig{PathTemplate: template}),
		}}}
	}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{
		Rule: &matcherv3.PathMatcher_Path{Path: textMatcher(v, "")},
	}}}
}

func portRule(v string) *rbacconfigv3.Permission {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return neverRule()
	}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_DestinationPort{DestinationPort: uint32(n)}}
}

func destinationIP(v string) *rbacconfigv3.Permission {
	r, ok := parseBlock(v)
	if !ok {
		return neverRule()
	}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_DestinationIp{DestinationIp: r}}
}

func sniRule(v string) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_RequestedServerName{RequestedServerName: textMatcher(v, "")}}
}
