package envoy

import (
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// attachedRoute is a route of the Gateway API and one of the parents it names.
type attachedRoute struct {
	object kube.Object
	key    kube.Key
	// port of the parent, 0 for all.
	port uint32
}

// attachRoutes lists routes by the Service or ServiceEntry that they are attached to, oldest first.
func (x *Index) attachRoutes() {
	x.routes = map[kube.Key][]*attachedRoute{}
	var all []kube.Object
	for _, r := range oldestFirst(kube.List[*gatewayv1.HTTPRoute](x.objects)) {
		all = append(all, r)
	}
	for _, r := range oldestFirst(kube.List[*gatewayv1.GRPCRoute](x.objects)) {
		all = append(all, r)
	}
	for _, r := range oldestFirst(kube.List[*gatewayv1.TCPRoute](x.objects)) {
		all = append(all, r)
	}
	for _, r := range oldestFirst(kube.List[*gatewayv1.TLSRoute](x.objects)) {
		all = append(all, r)
	}
	for _, o := range all {
		for i, p := range kube.ParentRefs(o) {
			x.attach(o, p, indexed("spec.parentRefs", i))
		}
	}
}

// parentOf is the Service or ServiceEntry that a parent names; its kind is empty for any other parent.
func parentOf(namespace string, p gatewayv1.ParentReference) kube.Key {
	group, kind := gatewayv1.Group("gateway.networking.k8s.io"), gatewayv1.Kind("Gateway")
	if p.Group != nil {
		group = *p.Group
	}
	if p.Kind != nil {
		kind = *p.Kind
	}
	target := kube.Key{Name: kube.Name{Namespace: namespace, Name: string(p.Name)}}
	switch {
	case group == "" && kind == "Service":
		target.Kind = kube.KindService
	case group == "networking.istio.io" && kind == "ServiceEntry":
		target.Kind = kube.KindServiceEntry
	}
	if p.Namespace != nil {
		target.Namespace = string(*p.Namespace)
	}
	return target
}

const consumerRoute = "a route for the clients of one namespace is not served by a waypoint, which is at the service"

func (x *Index) attach(o kube.Object, p gatewayv1.ParentReference, field string) {
	target := parentOf(o.GetNamespace(), p)
	if target.Kind == "" {
		return // a Gateway's, or nobody's
	}
	flaw := func(cause, accepted string) {
		x.routeFlaws = append(x.routeFlaws, kube.Problem{Severity: kube.Ignored, Object: kube.KeyOf(o), Field: field, Cause: cause, Accepted: accepted})
	}
	if target.Namespace != o.GetNamespace() {
		flaw(consumerRoute, "a parent in namespace "+o.GetNamespace())
		return
	}
	if x.objects.Lookup(target) == nil {
		flaw(target.String()+" does not exist", "a Service or ServiceEntry of namespace "+o.GetNamespace())
		return
	}
	r := &attachedRoute{object: o, key: kube.KeyOf(o)}
	if p.Port != nil {
		r.port = uint32(*p.Port)
	}
	x.routes[target] = append(x.routes[target], r)
}

// gatewayRules are the rules of the routes that are attached to a port of a service, in the order of the Gateway API;
// nil when there is none.
func (b *builder) gatewayRules(s *service, p port) *ruleSource {
	for _, f := range b.routeFlaws {
		if f.Object.Namespace == s.namespace() {
			b.problem(f.Severity, f.Object, f.Field, f.Cause, f.Accepted)
		}
	}
	on := "*"
	src := &ruleSource{namespace: s.namespace(), gateway: true}
	kinds := kindsOf(p.protocol)
	used := false
	for _, r := range b.routes[s.key] {
		if r.port != 0 && r.port != p.number {
			continue
		}
		http := r.key.Kind == kube.KindHTTPRoute || r.key.Kind == kube.KindGRPCRoute
		if http && !slices.Contains(kinds, kindHTTP) || !http && !slices.Contains(kinds, kindTCP) {
			if r.port != 0 {
				b.problem(kube.Ignored, r.key, "spec.parentRefs", fmt.Sprintf("port %d of %s does not speak what a %s routes", p.number, s.key, r.key.Kind), "a port whose appProtocol or name says so")
			}
			continue
		}
		if used = true; r.port != 0 {
			on = portText(r.port)
		}
		switch o := r.object.(type) {
		case *gatewayv1.HTTPRoute:
			b.httpRouteRules(src, o)
		case *gatewayv1.GRPCRoute:
			b.grpcRouteRules(src, o)
		case *gatewayv1.TCPRoute:
			for i, rule := range o.Spec.Rules {
				b.streamRule(src, r.key, indexed("spec.rules", i), rule.BackendRefs)
			}
		case *gatewayv1.TLSRoute:
			for i, rule := range o.Spec.Rules {
				b.streamRule(src, r.key, indexed("spec.rules", i), rule.BackendRefs)
			}
		}
	}
	if !used {
		return nil
	}
	src.name = s.namespace() + "~" + on + "~" + s.host()
	slices.SortStableFunc(src.http, compareRules)
	return src
}

// compareRules orders rules as the Gateway API says: exact paths first, then the longest, then those with a method, with
// more headers, with more query parameters.
func compareRules(a, b *httpRule) int {
	ma, mb := a.Match[0], b.Match[0]
	rank := func(m *networking.HTTPMatchRequest) (int, int) {
		switch u := m.GetUri().GetMatchType().(type) {
		case *networking.StringMatch_Exact:
			return 3, len(u.Exact)
		case *networking.StringMatch_Prefix:
			if u.Prefix == "/" {
				return 0, 0 // takes everything: behind the expressions
			}
			return 2, len(u.Prefix)
		case *networking.StringMatch_Regex:
			return 1, len(u.Regex)
		}
		return 0, 0
	}
	method := func(m *networking.HTTPMatchRequest) int {
		if m.Method != nil {
			return 1
		}
		return 0
	}
	ra, la := rank(ma)
	rb, lb := rank(mb)
	for _, d := range []int{rb - ra, lb - la, method(mb) - method(ma), len(mb.Headers) - len(ma.Headers), len(mb.QueryParams) - len(ma.QueryParams)} {
		if d != 0 {
			return d
		}
	}
	return 0
}

// backend is a back end that a route names.
type backend struct {
	destination *networking.Destination
	weight      int32
}

// refFlaw is what is wrong with a reference: the Gateway API's reason, and a text.
type refFlaw struct {
	reason gatewayv1.RouteConditionReason
	text   string
}

func flawf(reason gatewayv1.RouteConditionReason, format string, args ...any) *refFlaw {
	return &refFlaw{reason, fmt.Sprintf(format, args...)}
}

// backendOf resolves a reference; a flaw says what is wrong with it.
func (x *Index) backendOf(route kube.Key, ref gatewayv1.BackendObjectReference) (*networking.Destination, *refFlaw) {
	group, kind, namespace := gatewayv1.Group(""), gatewayv1.Kind("Service"), route.Namespace
	if ref.Group != nil {
		group = *ref.Group
	}
	if ref.Kind != nil {
		kind = *ref.Kind
	}
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	if namespace != route.Namespace && !x.granted(route, group, kind, namespace, string(ref.Name)) {
		return nil, flawf(gatewayv1.RouteReasonRefNotPermitted, "no ReferenceGrant of namespace %s lets a %s of namespace %s refer to %s %s", namespace, route.Kind, route.Namespace, kind, ref.Name)
	}
	d := &networking.Destination{}
	if ref.Port != nil {
		d.Port = &networking.PortSelector{Number: uint32(*ref.Port)}
	}
	switch {
	case group == "" && kind == "Service":
		if kube.Get[*corev1.Service](x.objects, namespace, string(ref.Name)) == nil {
			return nil, flawf(gatewayv1.RouteReasonBackendNotFound, "Service %s/%s does not exist", namespace, ref.Name)
		}
		if ref.Port == nil {
			return nil, flawf(gatewayv1.RouteReasonUnsupportedValue, "a Service as a back end needs a port")
		}
		d.Host = string(ref.Name) + "." + namespace + ".svc." + x.cfg.ClusterDomain
	case group == "networking.istio.io" && kind == "ServiceEntry":
		se := kube.Get[*networkingv1.ServiceEntry](x.objects, namespace, string(ref.Name))
		if se == nil || len(se.Spec.Hosts) == 0 {
			return nil, flawf(gatewayv1.RouteReasonBackendNotFound, "ServiceEntry %s/%s does not exist or has no host", namespace, ref.Name)
		}
		d.Host = se.Spec.Hosts[0]
	case group == "networking.istio.io" && kind == "Hostname":
		d.Host = string(ref.Name)
	default:
		return nil, flawf(gatewayv1.RouteReasonInvalidKind, "%s of group %q cannot be a back end", kind, group)
	}
	return d, nil
}

// granted says whether a ReferenceGrant lets a route refer to an object of another namespace.
func (x *Index) granted(route kube.Key, group gatewayv1.Group, kind gatewayv1.Kind, namespace, name string) bool {
	for g := range kube.List[*gatewayv1.ReferenceGrant](x.objects) {
		if g.Namespace != namespace {
			continue
		}
		from := slices.ContainsFunc(g.Spec.From, func(f gatewayv1.ReferenceGrantFrom) bool {
			return f.Group == "gateway.networking.k8s.io" && string(f.Kind) == string(route.Kind) && string(f.Namespace) == route.Namespace
		})
		to := slices.ContainsFunc(g.Spec.To, func(t gatewayv1.ReferenceGrantTo) bool {
			return t.Group == group && t.Kind == kind && (t.Name == nil || string(*t.Name) == name)
		})
		if from && to {
			return true
		}
	}
	return false
}

const acceptedBackends = "a Service with a port, a ServiceEntry or a Hostname, of this namespace or with a ReferenceGrant"

// backends resolves the references of a rule. What is wrong with one is reported, and its share of the traffic refused.
func (b *builder) backends(route kube.Key, field string, refs []gatewayv1.BackendRef) (good []backend, index []int, refused int32) {
	for i, ref := range refs {
		weight := int32(1)
		if ref.Weight != nil {
			weight = *ref.Weight
		}
		if weight <= 0 {
			continue
		}
		d, flaw := b.backendOf(route, ref.BackendObjectReference)
		if flaw != nil {
			b.problem(kube.Warning, route, indexed(field+".backendRefs", i), flaw.text+": its share of the requests fails", acceptedBackends)
			refused += weight
			continue
		}
		good, index = append(good, backend{destination: d, weight: weight}), append(index, i)
	}
	return good, index, refused
}

// streamRule is a rule of a TCPRoute or TLSRoute.
func (b *builder) streamRule(src *ruleSource, route kube.Key, field string, refs []gatewayv1.BackendRef) {
	good, _, refused := b.backends(route, field, refs)
	r := &tcpRule{object: route, field: field}
	for _, g := range good {
		r.routes = append(r.routes, &networking.RouteDestination{Destination: g.destination, Weight: g.weight})
	}
	if refused > 0 || len(good) == 0 {
		r.routes = append(r.routes, &networking.RouteDestination{Destination: &networking.Destination{Host: unknownHost}, Weight: max(refused, 1)})
	}
	src.tcp = append(src.tcp, r)
}

// unknownHost is a host that no service has.
const unknownHost = "unknown.invalid"

// ruleName is that of the rule, else the route's with the place of the rule.
func ruleName(route kube.Key, i int, name *gatewayv1.SectionName) string {
	if name != nil && *name != "" {
		return string(*name)
	}
	return strings.Join([]string{route.Namespace, route.Name.Name, portText(uint32(i))}, ".")
}
