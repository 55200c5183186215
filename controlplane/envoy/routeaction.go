//lint:file-ignore SA1019 what takes the place of istiod fills, and reads, the fields that istiod does

package envoy

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// httpRoutes are the routes of a rule: one for each of its matches.
func (b *builder) httpRoutes(src *ruleSource, r *httpRule, s *service, p port) []*routev3.Route {
	var out []*routev3.Route
	for _, m := range b.matches(src, r, p) {
		route := &routev3.Route{Name: m.name, StatPrefix: m.stat, Match: m.RouteMatch, Metadata: routeMetadata(src)}
		who := src.name
		switch {
		case r.Redirect != nil:
			route.Action = redirect(r.Redirect, route.Match)
		case r.DirectResponse != nil:
			route.Action = directResponse(r.DirectResponse)
		default:
			if name := b.routeAction(route, src, r, s, p); name != "" {
				who = name
			}
		}
		headers(route, r.Headers)
		route.Decorator = &routev3.Decorator{Operation: who + ":" + portText(p.number) + m.operation}
		if d := b.single(src, r, p); d != nil && r.Redirect == nil && r.DirectResponse == nil {
			route.Decorator.Operation = who + ":" + portText(d.port.number) + m.operation
		}
		b.perFilter(route, src, r)
		out = append(out, b.checked(route, r, s, p))
	}
	return out
}

// checked is a route that a client takes: one that it would refuse, and the whole listener with it, answers with 500. The
// last good routes of the port stay in force, if there are any.
func (b *builder) checked(route *routev3.Route, r *httpRule, s *service, p port) *routev3.Route {
	why := ""
	if e := r.Rewrite.GetUriRegexRewrite(); e != nil {
		why = rewriteFlaw(e.Match, e.Rewrite)
	}
	for _, o := range r.CorsPolicy.GetAllowOrigins() {
		if _, err := regexp.Compile(o.GetRegex()); err != nil {
			why = err.Error()
		}
	}
	if err := flaw(route); err != nil && why == "" {
		why = err.Error()
	}
	if why == "" {
		return route
	}
	b.bad[inboundName(p.number, kindHTTP, "", s.host())] = true
	b.problem(kube.Rejected, r.object, r.field, why+": the last good routes of the service stay in force; without any, the rule answers with 500", "values that Envoy's routes accept")
	out := &routev3.Route{Name: route.Name, Match: route.Match, Action: directResponse(&networking.HTTPDirectResponse{Status: 500})}
	if flaw(out) != nil {
		out.Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	}
	return out
}

// single is the destination of a rule that has one, nil otherwise.
func (b *builder) single(src *ruleSource, r *httpRule, p port) *destination {
	if len(r.Route) != 1 {
		return nil
	}
	d, why := b.destinationOf(r.Route[0].Destination, src.namespace, kindHTTP, p)
	if why != "" {
		return nil
	}
	return &d
}

func (b *builder) destinationOf(d *networking.Destination, namespace, kind string, p port) (destination, string) {
	return b.destination(d.GetHost(), d.GetSubset(), d.GetPort().GetNumber(), namespace, kind, p.number)
}

// routeAction sends a route on. It returns the host that names the route in traces, "" for the name of the rule.
func (b *builder) routeAction(route *routev3.Route, src *ruleSource, r *httpRule, s *service, p port) string {
	a := &routev3.RouteAction{Timeout: durationpb.New(0)}
	route.Action = &routev3.Route_Route{Route: a}
	if r.Timeout != nil {
		a.Timeout = clone(r.Timeout)
	}
	a.MaxGrpcTimeout = clone(a.Timeout)
	if src.gateway {
		a.ClusterNotFoundResponseCode = routev3.RouteAction_INTERNAL_SERVER_ERROR
	}
	host, hash := b.forward(route, a, src, r, p)
	a.HashPolicy = hash
	a.RetryPolicy = retryPolicy(r.Retries, len(hash) > 0)
	rewrite(a, r.Rewrite)
	if h := authority(r.Headers.GetRequest()); h != "" && r.Rewrite.GetAuthority() == "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: h}
	}
	b.mirrors(a, src, r, p)
	return host
}

// forward sets where a route leads.
func (b *builder) forward(route *routev3.Route, a *routev3.RouteAction, src *ruleSource, r *httpRule, p port) (string, []*routev3.RouteAction_HashPolicy) {
	var hash []*routev3.RouteAction_HashPolicy
	if len(r.Route) == 1 && r.refused == 0 {
		w := r.Route[0]
		d, why := b.destinationOf(w.Destination, src.namespace, kindHTTP, p)
		b.missing(r, 0, why)
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: d.cluster}
		headers(route, nil, w.Headers)
		if h := authority(w.Headers.GetRequest()); h != "" {
			a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: h}
		}
		if d.service == nil {
			return b.resolveHost(w.Destination.GetHost(), src.namespace), nil
		}
		return d.service.host(), b.hashPolicies(d.rule, d.subset, d.port.number)
	}
	weighted := &routev3.WeightedCluster{}
	for i, w := range r.Route {
		if w.Weight == 0 {
			continue
		}
		d, why := b.destinationOf(w.Destination, src.namespace, kindHTTP, p)
		b.missing(r, i, why)
		c := &routev3.WeightedCluster_ClusterWeight{Name: d.cluster, Weight: u32(uint32(w.Weight))}
		ops := headerOps(w.Headers)
		c.RequestHeadersToAdd, c.RequestHeadersToRemove = ops.requestAdd, ops.requestRemove
		c.ResponseHeadersToAdd, c.ResponseHeadersToRemove = ops.responseAdd, ops.responseRemove
		if h := authority(w.Headers.GetRequest()); h != "" {
			c.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: h}
		}
		weighted.Clusters = append(weighted.Clusters, c)
		if d.service != nil && len(hash) == 0 {
			hash = b.hashPolicies(d.rule, d.subset, d.port.number)
		}
	}
	if r.refused > 0 {
		weighted.Clusters = append(weighted.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: nameUnknownService, Weight: u32(uint32(r.refused))})
	}
	if len(weighted.Clusters) == 0 {
		// Nothing may take a request: as Envoy cannot say that, a cluster that is not there does.
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: nameUnknownService}
		return "", nil
	}
	a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	return "", hash
}

// missing reports a destination that is not there: requests for it fail, the others are served.
func (b *builder) missing(r *httpRule, i int, why string) {
	if why != "" {
		field := indexed(r.field+".route", i) + ".destination"
		if r.object.Kind != kube.KindVirtualService {
			field = indexed(r.field+".backendRefs", i)
		}
		b.problem(kube.Warning, r.object, field, why+": requests for it fail", "a host, port and subset that exist")
	}
}

// headerChanges are the changes of a Headers message.
type headerChanges struct {
	requestAdd, responseAdd       []*corev3.HeaderValueOption
	requestRemove, responseRemove []string
}

func headerOps(h *networking.Headers) headerChanges {
	var c headerChanges
	c.requestAdd, c.requestRemove = operations(h.GetRequest())
	c.responseAdd, c.responseRemove = operations(h.GetResponse())
	return c
}

// operations are what is set, in order of name, then what is added, then what is removed. The authority is none of them.
func operations(o *networking.Headers_HeaderOperations) (add []*corev3.HeaderValueOption, remove []string) {
	for _, k := range sortedKeys(o.GetSet()) {
		if !isAuthority(k) {
			add = append(add, overwrite(k, headerValue(o.Set[k])))
		}
	}
	for _, k := range sortedKeys(o.GetAdd()) {
		if !isAuthority(k) {
			add = append(add, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, Value: headerValue(o.Add[k])}})
		}
	}
	return add, o.GetRemove()
}

func isAuthority(name string) bool {
	return strings.EqualFold(name, "host") || strings.EqualFold(name, ":authority")
}

// authority is the new one that header operations ask for.
func authority(o *networking.Headers_HeaderOperations) string {
	for _, m := range []map[string]string{o.GetSet(), o.GetAdd()} {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if isAuthority(k) {
				return m[k]
			}
		}
	}
	return ""
}

// headers applies header operations to a route. Those of the rule come before those of its one destination.
func headers(route *routev3.Route, list ...*networking.Headers) {
	for i, h := range list {
		c := headerOps(h)
		if i == 0 {
			route.RequestHeadersToAdd = append(c.requestAdd, route.RequestHeadersToAdd...)
			route.ResponseHeadersToAdd = append(c.responseAdd, route.ResponseHeadersToAdd...)
			route.RequestHeadersToRemove = append(slices.Clone(c.requestRemove), route.RequestHeadersToRemove...)
			route.ResponseHeadersToRemove = append(slices.Clone(c.responseRemove), route.ResponseHeadersToRemove...)
			continue
		}
		route.RequestHeadersToAdd = append(route.RequestHeadersToAdd, c.requestAdd...)
		route.ResponseHeadersToAdd = append(route.ResponseHeadersToAdd, c.responseAdd...)
		route.RequestHeadersToRemove = append(route.RequestHeadersToRemove, c.requestRemove...)
		route.ResponseHeadersToRemove = append(route.ResponseHeadersToRemove, c.responseRemove...)
	}
}

// Prefixes of a path that mean something else; the Gateway API's rules use them.
const replacePrefix = "%PREFIX()%"

func rewrite(a *routev3.RouteAction, w *networking.HTTPRewrite) {
	if w == nil {
		return
	}
	if e := w.UriRegexRewrite; e != nil {
		a.RegexRewrite = regexRewrite(e.Match, e.Rewrite)
	} else if w.Uri != "" {
		a.PrefixRewrite = w.Uri
	}
	if w.Authority != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: w.Authority}
	}
}

var redirectCodes = map[uint32]routev3.RedirectAction_RedirectResponseCode{
	0: routev3.RedirectAction_MOVED_PERMANENTLY, 301: routev3.RedirectAction_MOVED_PERMANENTLY, 302: routev3.RedirectAction_FOUND,
	303: routev3.RedirectAction_SEE_OTHER, 307: routev3.RedirectAction_TEMPORARY_REDIRECT, 308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

func redirect(r *networking.HTTPRedirect, match *routev3.RouteMatch) *routev3.Route_Redirect {
	out := &routev3.RedirectAction{HostRedirect: r.Authority, ResponseCode: redirectCodes[r.RedirectCode]}
	if p, ok := strings.CutPrefix(r.Uri, replacePrefix); ok && p == "/" && match.GetPathSeparatedPrefix() != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: regexRewrite(withoutPrefix(match.GetPathSeparatedPrefix()))}
	} else if ok {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: p}
	} else if r.Uri != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: r.Uri}
	}
	if r.Scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	// Without a port the location has none, or with the scheme or host as they are, that of the request: what a scheme's own
	// port is needs no saying.
	if t, ok := r.RedirectPort.(*networking.HTTPRedirect_Port); ok {
		out.PortRedirect = t.Port
	}
	return &routev3.Route_Redirect{Redirect: out}
}

func directResponse(r *networking.HTTPDirectResponse) *routev3.Route_DirectResponse {
	out := &routev3.DirectResponseAction{Status: r.Status}
	switch t := r.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: t.String_}}
	case *networking.HTTPBody_Bytes:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: t.Bytes}}
	}
	return &routev3.Route_DirectResponse{DirectResponse: out}
}

// mirrors copies requests to other services.
func (b *builder) mirrors(a *routev3.RouteAction, src *ruleSource, r *httpRule, p port) {
	add := func(d *networking.Destination, percent *networking.Percent, fallback float64, field string) {
		to, why := b.destinationOf(d, src.namespace, kindHTTP, p)
		if why != "" {
			b.problem(kube.Warning, r.object, field, why+": nothing is mirrored", "a host and port that exist")
			return
		}
		value := fallback
		if percent != nil {
			value = percent.Value
		}
		if value <= 0 {
			return
		}
		a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{
			Cluster: to.cluster, RuntimeFraction: &corev3.RuntimeFractionalPercent{DefaultValue: million(value)},
			TraceSampled: wrapperspb.Bool(false), DisableShadowHostSuffixAppend: true,
		})
	}
	if r.Mirror != nil {
		fallback := 100.0
		if v := r.MirrorPercent; v != nil {
			fallback = float64(v.Value)
		}
		add(r.Mirror, r.MirrorPercentage, fallback, r.field+".mirror")
	}
	for i, m := range r.Mirrors {
		add(m.Destination, m.Percentage, 100, indexed(r.field+".mirrors", i))
	}
}

// million is a percentage in parts of a million.
func million(percent float64) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: uint32(percent*10000 + 0.5), Denominator: typev3.FractionalPercent_MILLION}
}

// perFilter are the settings of filters for one route.
func (b *builder) perFilter(route *routev3.Route, src *ruleSource, r *httpRule) {
	set := func(name string, m *anypb.Any) {
		if route.TypedPerFilterConfig == nil {
			route.TypedPerFilterConfig = map[string]*anypb.Any{}
		}
		route.TypedPerFilterConfig[name] = m
	}
	if r.CorsPolicy != nil {
		set("envoy.filters.http.cors", anyOf(corsPolicy(r.CorsPolicy, src.gateway)))
	}
	if r.Fault != nil {
		if f := faultPolicy(r.Fault); f != nil {
			set("envoy.filters.http.fault", anyOf(f))
		}
	}
}
