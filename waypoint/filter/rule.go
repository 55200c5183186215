package filter

//lint:file-ignore SA1019 fields that Envoy calls deprecated are still sent

import (
	"net/netip"
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	configv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	templatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// rule is a compiled permission or principal: a question about a request.
type rule interface{ match(x *Exchange) bool }

type (
	every  []rule
	some   []rule
	not    struct{ rule }
	always bool
)

func (r every) match(x *Exchange) bool {
	for _, e := range r {
		if !e.match(x) {
			return false
		}
	}
	return true
}

func (r some) match(x *Exchange) bool {
	for _, e := range r {
		if e.match(x) {
			return true
		}
	}
	return false
}

func (r not) match(x *Exchange) bool { return !r.rule.match(x) }

func (r always) match(*Exchange) bool { return bool(r) }

// maxDepth is how deep rules may be nested.
const maxDepth = 64

// compileSet compiles a list: all of it is meant, or one of it.
func compileSet[T any](name string, list []T, all bool, depth int, compile func(T, int) (rule, error)) (rule, error) {
	if depth > maxDepth {
		return nil, field.Errorf(name, "rules are nested deeper than %d", maxDepth)
	}
	out := make([]rule, len(list))
	for i, e := range list {
		r, err := compile(e, depth+1)
		if err != nil {
			return nil, field.Index(err, name, i)
		}
		out[i] = r
	}
	switch {
	case len(out) == 1:
		return out[0], nil
	case all:
		return every(out), nil
	}
	return some(out), nil
}

func compilePermission(p *configv3.Permission, depth int) (rule, error) {
	switch r := p.GetRule().(type) {
	case *configv3.Permission_AndRules:
		if len(r.AndRules.GetRules()) == 0 {
			return nil, field.Errorf("and_rules.rules", "at least one is required")
		}
		out, err := compileSet("rules", r.AndRules.GetRules(), true, depth, compilePermission)
		return out, field.At(err, "and_rules")
	case *configv3.Permission_OrRules:
		if len(r.OrRules.GetRules()) == 0 {
			return nil, field.Errorf("or_rules.rules", "at least one is required")
		}
		out, err := compileSet("rules", r.OrRules.GetRules(), false, depth, compilePermission)
		return out, field.At(err, "or_rules")
	case *configv3.Permission_NotRule:
		if depth > maxDepth {
			return nil, field.Errorf("not_rule", "rules are nested deeper than %d", maxDepth)
		}
		out, err := compilePermission(r.NotRule, depth+1)
		return not{out}, field.At(err, "not_rule")
	case *configv3.Permission_Any:
		if !r.Any {
			return nil, field.Errorf("any", "must be true")
		}
		return always(true), nil
	case *configv3.Permission_Header:
		return compileHeaderRule(r.Header)
	case *configv3.Permission_UrlPath:
		return compilePathRule(r.UrlPath)
	case *configv3.Permission_UriTemplate:
		return compileTemplateRule(r.UriTemplate)
	case *configv3.Permission_DestinationIp:
		return compileRange("destination_ip", r.DestinationIp, destination)
	case *configv3.Permission_DestinationPort:
		return portRule{r.DestinationPort, r.DestinationPort + 1}, nil
	case *configv3.Permission_DestinationPortRange:
		s, e := r.DestinationPortRange.GetStart(), r.DestinationPortRange.GetEnd()
		if s < 0 || s >= e || e > 1<<16 {
			return nil, field.Errorf("destination_port_range", "[%d, %d) is not a range of ports", s, e)
		}
		return portRule{uint32(s), uint32(e)}, nil
	case *configv3.Permission_Metadata:
		return compileMetadataRule(r.Metadata)
	case *configv3.Permission_RequestedServerName:
		m, err := route.CompileString(r.RequestedServerName)
		return serverName{m}, field.At(err, "requested_server_name")
	}
	return nil, field.Errorf("rule", "unsupported permission %T", p.GetRule())
}

func compilePrincipal(p *configv3.Principal, depth int) (rule, error) {
	switch r := p.GetIdentifier().(type) {
	case *configv3.Principal_AndIds:
		if len(r.AndIds.GetIds()) == 0 {
			return nil, field.Errorf("and_ids.ids", "at least one is required")
		}
		out, err := compileSet("ids", r.AndIds.GetIds(), true, depth, compilePrincipal)
		return out, field.At(err, "and_ids")
	case *configv3.Principal_OrIds:
		if len(r.OrIds.GetIds()) == 0 {
			return nil, field.Errorf("or_ids.ids", "at least one is required")
		}
		out, err := compileSet("ids", r.OrIds.GetIds(), false, depth, compilePrincipal)
		return out, field.At(err, "or_ids")
	case *configv3.Principal_NotId:
		if depth > maxDepth {
			return nil, field.Errorf("not_id", "rules are nested deeper than %d", maxDepth)
		}
		out, err := compilePrincipal(r.NotId, depth+1)
		return not{out}, field.At(err, "not_id")
	case *configv3.Principal_Any:
		if !r.Any {
			return nil, field.Errorf("any", "must be true")
		}
		return always(true), nil
	case *configv3.Principal_Authenticated_:
		if r.Authenticated.GetPrincipalName() == nil {
			return authenticated{}, nil
		}
		m, err := route.CompileString(r.Authenticated.GetPrincipalName())
		return authenticated{m}, field.At(err, "authenticated.principal_name")
	case *configv3.Principal_SourceIp:
		return compileRange("source_ip", r.SourceIp, source)
	case *configv3.Principal_DirectRemoteIp:
		return compileRange("direct_remote_ip", r.DirectRemoteIp, source)
	case *configv3.Principal_RemoteIp:
		return compileRange("remote_ip", r.RemoteIp, remote)
	case *configv3.Principal_Header:
		return compileHeaderRule(r.Header)
	case *configv3.Principal_UrlPath:
		return compilePathRule(r.UrlPath)
	case *configv3.Principal_Metadata:
		return compileMetadataRule(r.Metadata)
	case *configv3.Principal_FilterState:
		m, err := route.CompileState(r.FilterState)
		return stateRule{m}, field.At(err, "filter_state")
	}
	return nil, field.Errorf("identifier", "unsupported principal %T", p.GetIdentifier())
}

type headerRule struct{ m *route.HeaderMatcher }

func compileHeaderRule(h *routev3.HeaderMatcher) (rule, error) {
	m, err := route.CompileHeader(h)
	return headerRule{m}, field.At(err, "header")
}

func (r headerRule) match(x *Exchange) bool { return r.m.Match(x.Req) }

// pathRule is about the path without its query.
type pathRule struct {
	m *route.StringMatcher
	parameterized
}

func compilePathRule(p *matcherv3.PathMatcher) (rule, error) {
	m, err := route.CompileString(p.GetPath())
	s := p.GetPath()
	return pathRule{m, naming(s.GetExact() + s.GetPrefix() + s.GetSuffix() + s.GetContains() + s.GetSafeRegex().GetRegex())}, field.At(err, "url_path.path")
}

func (r pathRule) match(x *Exchange) bool { return r.m.Match(r.path(x)) }

// parameterized says that a rule names parameters of a path itself, and so is always about the path as it was written.
type parameterized bool

func naming(pattern string) parameterized { return parameterized(strings.Contains(pattern, ";")) }

func (p parameterized) path(x *Exchange) string {
	if p && x.written != "" {
		return barePath(x.written)
	}
	return barePath(x.Req.Path)
}

// barePath is a path without query and fragment.
func barePath(p string) string {
	if i := strings.IndexAny(p, "?#"); i >= 0 {
		return p[:i]
	}
	return p
}

type templateRule struct {
	re *regexp.Regexp
	parameterized
}

func compileTemplateRule(p *corev3.TypedExtensionConfig) (rule, error) {
	var t templatev3.UriTemplateMatchConfig
	if err := p.GetTypedConfig().UnmarshalTo(&t); err != nil {
		return nil, field.At(err, "uri_template.typed_config")
	}
	re, err := route.URITemplate(t.GetPathTemplate())
	return templateRule{re, naming(t.GetPathTemplate())}, field.At(err, "uri_template.typed_config.path_template")
}

func (r templateRule) match(x *Exchange) bool { return r.re.MatchString(r.path(x)) }

// portRule is a range of destination ports, its end excluded.
type portRule struct{ from, to uint32 }

func (r portRule) match(x *Exchange) bool {
	p := uint32(x.Dest.Port())
	return r.from <= p && p < r.to
}

// rangeRule is a range of addresses.
type rangeRule struct {
	prefix netip.Prefix
	addr   func(*Exchange) netip.Addr
}

func destination(x *Exchange) netip.Addr { return x.Dest.Addr() }
func source(x *Exchange) netip.Addr      { return x.Client.Addr.Addr() }
func remote(x *Exchange) netip.Addr      { return x.RemoteIP() }

func compileRange(name string, c *corev3.CidrRange, addr func(*Exchange) netip.Addr) (rule, error) {
	p, err := field.CIDR(c)
	if err != nil {
		return nil, field.At(err, name)
	}
	return rangeRule{p, addr}, nil
}

func (r rangeRule) match(x *Exchange) bool { return r.prefix.Contains(r.addr(x)) }

type serverName struct{ m *route.StringMatcher }

func (r serverName) match(x *Exchange) bool { return r.m.Match(x.ServerName) }

// authenticated asks for the peer's identity by the tunnel's certificate. m may be nil: any.
type authenticated struct{ m *route.StringMatcher }

func (r authenticated) match(x *Exchange) bool {
	if x.Client.Principal == "" {
		return false
	}
	return r.m == nil || r.m.Match(x.Client.Principal)
}

type stateRule struct{ m *route.StateMatcher }

func (r stateRule) match(x *Exchange) bool { return r.m.Match(x) }

type metadataRule struct{ m *route.MetadataMatcher }

func (r metadataRule) match(x *Exchange) bool { return r.m.Match(x) }

func compileMetadataRule(p *matcherv3.MetadataMatcher) (rule, error) {
	m, err := route.CompileMetadata(p)
	return metadataRule{m}, field.At(err, "metadata")
}
