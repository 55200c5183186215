//lint:file-ignore SA1019 what takes the place of istiod fills, and reads, the fields that istiod does

package envoy

import (
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// ruleSource is the object that route rules come from: a VirtualService, or routes of the Gateway API as one.
type ruleSource struct {
	// name and namespace are those of the VirtualService, or of the one that stands for the routes (3.8).
	name, namespace string
	// gateway says that the rules have the meaning of the Gateway API.
	gateway bool
	http    []*httpRule
	tcp     []*tcpRule
}

// httpRule is one rule for HTTP.
type httpRule struct {
	*networking.HTTPRoute
	// object and field say where it is written.
	object kube.Key
	field  string
	// flaws are what is wrong with its back ends: the share of the requests that would go there is answered with 500.
	refused int32
}

// tcpRule is one rule for TCP or TLS.
type tcpRule struct {
	routes []*networking.RouteDestination
	port   uint32
	// subnets, if any, are destinations that it is for.
	object kube.Key
	field  string
}

// serviceRoutes are the routes of an HTTP port: those of the rules for it, else one that takes all.
func (b *builder) serviceRoutes(s *service, p port) *routev3.RouteConfiguration {
	cluster := inboundName(p.number, kindHTTP, "", s.host())
	domain := "*"
	if strings.HasPrefix(s.host(), "*") {
		domain = s.host()
	}
	src := b.rulesFor(s, p)
	var routes []*routev3.Route
	said := false // some rule is for this port, if only for clients or paths that there are not
	if src != nil {
		for _, r := range src.http {
			said = said || forPort(r, p)
			routes = append(routes, b.httpRoutes(src, r, s, p)...)
			if catchesAll(routes) {
				break // what follows is never reached
			}
		}
	}
	if !said {
		routes = []*routev3.Route{defaultRoute(cluster, s.host(), p.number, b.hashPolicies(b.ruleFor(s), "", p.number))}
		rc := routeConfig(cluster, p.number, domain, routes)
		rc.MaxDirectResponseBodySizeBytes = u32(1 << 20)
		return rc
	}
	return routeConfig(cluster, p.number, domain, routes)
}

// forPort says whether a rule is for a port and for the mesh.
func forPort(r *httpRule, p port) bool {
	return len(r.Match) == 0 || slices.ContainsFunc(r.Match, func(m *networking.HTTPMatchRequest) bool {
		return m != nil && (m.Port == 0 || m.Port == p.number) && (len(m.Gateways) == 0 || slices.Contains(m.Gateways, "mesh"))
	})
}

func routeConfig(name string, number uint32, domain string, routes []*routev3.Route) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:             name,
		VirtualHosts:     []*routev3.VirtualHost{{Name: "inbound|http|" + portText(number), Domains: []string{domain}, Routes: routes}},
		ValidateClusters: wrapperspb.Bool(false),
	}
}

// catchesAll says whether the last route leaves nothing over.
func catchesAll(routes []*routev3.Route) bool {
	if len(routes) == 0 {
		return false
	}
	m := routes[len(routes)-1].Match
	return m.GetPrefix() == "/" && len(m.Headers)+len(m.QueryParameters)+len(m.FilterState)+len(m.DynamicMetadata) == 0
}

// defaultRoute takes everything to one cluster.
func defaultRoute(cluster, host string, number uint32, hash []*routev3.RouteAction_HashPolicy) *routev3.Route {
	return &routev3.Route{
		Name:  "default",
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
			Timeout:          durationpb.New(0), MaxGrpcTimeout: durationpb.New(0),
			RetryPolicy: defaultRetry(false), HashPolicy: hash,
		}},
		Decorator: &routev3.Decorator{Operation: host + ":" + portText(number) + "/*"},
	}
}

// rulesFor finds what says how a service is routed: routes of the Gateway API that are attached to it, else the first
// VirtualService of its namespace or of the waypoint's that has its host.
func (b *builder) rulesFor(s *service, p port) *ruleSource {
	if src := b.gatewayRules(s, p); src != nil {
		if vs := b.virtualService(s); vs != nil {
			b.problem(kube.Ignored, kube.KeyOf(vs), "spec.hosts", "routes of the Gateway API are attached to "+s.host()+" and are used", "one of the two kinds of routes for each service")
		}
		return src
	}
	vs := b.virtualService(s)
	if vs == nil {
		return nil
	}
	return b.virtualRules(vs, s, p)
}

// virtualService is the one for a service: of the exact host before one of a pattern, the longer before the shorter, the
// older before the younger. The others are reported.
func (b *builder) virtualService(s *service) *networkingv1.VirtualService {
	v, known := b.virtualOf[s]
	if !known {
		v = b.findVirtual(s)
		b.virtualOf[s] = v
	}
	return v
}

func (b *builder) findVirtual(s *service) *networkingv1.VirtualService {
	var best *networkingv1.VirtualService
	var host string
	for _, v := range b.virtuals {
		if len(v.Spec.Hosts) == 0 || v.Namespace != s.namespace() && v.Namespace != b.gateway.Namespace || !visible(v.Spec.ExportTo, v.Namespace, b.gateway.Namespace) {
			continue
		}
		if len(v.Spec.Gateways) > 0 && !slices.Contains(v.Spec.Gateways, "mesh") {
			continue
		}
		for _, h := range v.Spec.Hosts {
			full := b.resolveHost(h, v.Namespace)
			if !hostMatches(full, s.host()) {
				continue
			}
			better := best == nil || host != s.host() && (full == s.host() || len(full) > len(host))
			if !better && full == host && v != best {
				b.problem(kube.Ignored, kube.KeyOf(v), "spec.hosts", "VirtualService "+best.Namespace+"/"+best.Name+" is older and has host "+full, "one VirtualService for each host")
			}
			if better {
				best, host = v, full
			}
		}
	}
	return best
}

// virtualRules are the rules of a VirtualService that are for a port. What cannot be matched on a waypoint is reported:
// the rule then matches nothing, rather than more than is written.
func (b *builder) virtualRules(v *networkingv1.VirtualService, s *service, p port) *ruleSource {
	src := &ruleSource{name: v.Name, namespace: v.Namespace}
	key := kube.KeyOf(v)
	for i, r := range v.Spec.Http {
		if r == nil {
			continue
		}
		field := indexed("spec.http", i)
		if r.Delegate != nil {
			src.http = append(src.http, b.delegated(v, r, field)...)
			continue
		}
		src.http = append(src.http, &httpRule{HTTPRoute: r, object: key, field: field})
	}
	// TLS rules come before TCP rules (3.8).
	for i, r := range v.Spec.Tls {
		field := indexed("spec.tls", i)
		for j, m := range r.Match {
			at := indexed(field+".match", j)
			if len(m.SniHosts) != 1 || b.resolveHost(m.SniHosts[0], v.Namespace) != s.host() {
				b.problem(kube.Ignored, key, at+".sniHosts", "a waypoint routes by the service's address, and the only name there is the service's own", "exactly the host "+s.host())
				continue
			}
			if m.Port == 0 || m.Port == p.number {
				src.tcp = append(src.tcp, &tcpRule{routes: r.Route, port: m.Port, object: key, field: field})
			}
		}
	}
	for i, r := range v.Spec.Tcp {
		field := indexed("spec.tcp", i)
		if len(r.Match) == 0 {
			src.tcp = append(src.tcp, &tcpRule{routes: r.Route, object: key, field: field})
		}
		for j, m := range r.Match {
			if len(m.SourceLabels) > 0 || m.SourceNamespace != "" || m.SourceSubnet != "" || len(m.DestinationSubnets) > 0 {
				b.problem(kube.Ignored, key, indexed(field+".match", j), "sourceLabels, sourceNamespace, sourceSubnet and destinationSubnets of TCP are not matched by a waypoint", "port, gateways")
				continue
			}
			if m.Port == 0 || m.Port == p.number {
				src.tcp = append(src.tcp, &tcpRule{routes: r.Route, port: m.Port, object: key, field: field})
			}
		}
	}
	return src
}

// delegated are the rules of the VirtualService that a rule delegates to; those of the rule itself that are left empty
// there are its own.
func (b *builder) delegated(v *networkingv1.VirtualService, r *networking.HTTPRoute, field string) []*httpRule {
	ns := r.Delegate.Namespace
	if ns == "" {
		ns = v.Namespace
	}
	d := kube.Get[*networkingv1.VirtualService](b.objects, ns, r.Delegate.Name)
	if d == nil {
		b.problem(kube.Ignored, kube.KeyOf(v), field+".delegate", "VirtualService "+ns+"/"+r.Delegate.Name+" does not exist", "a VirtualService without hosts")
		return nil
	}
	var out []*httpRule
	for i, sub := range d.Spec.Http {
		merged := clone(sub)
		match, ok := mergeMatches(r.Match, sub.Match)
		if !ok {
			b.problem(kube.Ignored, kube.KeyOf(d), indexed("spec.http", i)+".match", "it contradicts the match of the rule that delegates", "a match within "+field)
			continue
		}
		merged.Match = match
		inherit(merged, r)
		out = append(out, &httpRule{HTTPRoute: merged, object: kube.KeyOf(d), field: indexed("spec.http", i)})
	}
	return out
}

func inherit(r, from *networking.HTTPRoute) {
	if r.Timeout == nil {
		r.Timeout = from.Timeout
	}
	if r.Retries == nil {
		r.Retries = from.Retries
	}
	if r.Fault == nil {
		r.Fault = from.Fault
	}
	if r.CorsPolicy == nil {
		r.CorsPolicy = from.CorsPolicy
	}
	if r.Headers == nil {
		r.Headers = from.Headers
	}
	if r.Rewrite == nil {
		r.Rewrite = from.Rewrite
	}
}

// mergeMatches makes the matches that fulfil one of each list. False when none can.
func mergeMatches(outer, inner []*networking.HTTPMatchRequest) ([]*networking.HTTPMatchRequest, bool) {
	if len(outer) == 0 {
		return inner, true
	}
	if len(inner) == 0 {
		return outer, true
	}
	var out []*networking.HTTPMatchRequest
	for _, o := range outer {
		for _, i := range inner {
			m := clone(i)
			if !mergeText(&m.Uri, o.Uri) || !mergeText(&m.Scheme, o.Scheme) || !mergeText(&m.Method, o.Method) || !mergeText(&m.Authority, o.Authority) {
				continue
			}
			mergeMap(&m.Headers, o.Headers)
			mergeMap(&m.WithoutHeaders, o.WithoutHeaders)
			mergeMap(&m.QueryParams, o.QueryParams)
			if m.Port == 0 {
				m.Port = o.Port
			}
			m.IgnoreUriCase = m.IgnoreUriCase || o.IgnoreUriCase
			out = append(out, m)
		}
	}
	return out, len(out) > 0
}

// mergeText takes the outer match where there is no inner one, and else wants the inner one to lie within a prefix.
func mergeText(inner **networking.StringMatch, outer *networking.StringMatch) bool {
	switch {
	case outer == nil:
		return true
	case *inner == nil:
		*inner = outer
		return true
	case outer.GetPrefix() != "":
		return strings.HasPrefix((*inner).GetPrefix(), outer.GetPrefix()) || strings.HasPrefix((*inner).GetExact(), outer.GetPrefix())
	}
	return outer.GetExact() != "" && outer.GetExact() == (*inner).GetExact()
}

func mergeMap(inner *map[string]*networking.StringMatch, outer map[string]*networking.StringMatch) {
	for k, v := range outer {
		if *inner == nil {
			*inner = map[string]*networking.StringMatch{}
		}
		if _, ok := (*inner)[k]; !ok {
			(*inner)[k] = v
		}
	}
}

func indexed(field string, i int) string { return field + "[" + portText(uint32(i)) + "]" }

// routeMetadata names the object that a route comes from.
func routeMetadata(src *ruleSource) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"istio": structOf(map[string]any{"config": configPathOf("virtual-service", src.namespace, src.name)}),
	}}
}
