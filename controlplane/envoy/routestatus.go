package envoy

import (
	"fmt"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Verdict is what is to be said of one aspect of an object: a reason of the Gateway API, and a text for people.
type Verdict struct {
	OK              bool
	Reason, Message string
}

// RouteParent is what is to be said of a route and one of its parents.
type RouteParent struct {
	Route  kube.Object
	Parent gatewayv1.ParentReference
	// Accepted is about the parent, Refs about the back ends.
	Accepted, Refs Verdict
}

// RouteParents judges all routes with Services and ServiceEntries as their parents, in order of kind, namespace and name.
func (x *Index) RouteParents() []RouteParent {
	var out []RouteParent
	for _, k := range x.objects.Keys() {
		o := x.objects.Lookup(k)
		list := kube.ParentRefs(o)
		if len(list) == 0 {
			continue
		}
		refs := x.judgeRefs(o)
		for _, p := range list {
			if target := parentOf(o.GetNamespace(), p); target.Kind != "" {
				out = append(out, RouteParent{Route: o, Parent: p, Accepted: x.judgeParent(o, target, p), Refs: refs})
			}
		}
	}
	return out
}

// judgeParent says whether a route is accepted for a parent.
func (x *Index) judgeParent(o kube.Object, target kube.Key, p gatewayv1.ParentReference) Verdict {
	no := func(reason gatewayv1.RouteConditionReason, format string, args ...any) Verdict {
		return Verdict{Reason: string(reason), Message: fmt.Sprintf(format, args...)}
	}
	if target.Namespace != o.GetNamespace() {
		return no(gatewayv1.RouteReasonUnsupportedValue, consumerRoute+"; accepted: a parent in namespace %s", o.GetNamespace())
	}
	if x.objects.Lookup(target) == nil {
		return no(gatewayv1.RouteReasonNoMatchingParent, "%s does not exist", target)
	}
	http := kube.KeyOf(o).Kind == kube.KindHTTPRoute || kube.KeyOf(o).Kind == kube.KindGRPCRoute
	want := kindTCP
	if http {
		want = kindHTTP
	}
	bound, known, served := false, false, false
	for _, s := range x.services {
		if s.key != target {
			continue
		}
		bound = bound || s.message.Waypoint != nil
		for _, port := range s.ports {
			if p.Port == nil || uint32(*p.Port) == port.number {
				known = true
				served = served || slices.Contains(kindsOf(port.protocol), want)
			}
		}
	}
	switch {
	case !known && p.Port != nil:
		return no(gatewayv1.RouteReasonNoMatchingParent, "%s has no port %d", target, *p.Port)
	case known && !served:
		return no(gatewayv1.RouteReasonNoMatchingParent, "no port of %s speaks what a %s routes", target, kube.KeyOf(o).Kind)
	case !bound:
		return Verdict{OK: true, Reason: string(gatewayv1.RouteReasonAccepted), Message: target.String() + " is not bound to a waypoint: the route has no effect until it is"}
	}
	return Verdict{OK: true, Reason: string(gatewayv1.RouteReasonAccepted), Message: "Route was valid"}
}

// judgeRefs says whether all back ends of a route are there; the first that is not decides.
func (x *Index) judgeRefs(o kube.Object) Verdict {
	key := kube.KeyOf(o)
	for _, r := range backendRefs(o) {
		d, flaw := x.backendOf(key, r.ref)
		if flaw == nil && d.Port != nil {
			if s := x.service(d.Host, key.Namespace); s != nil {
				if _, ok := s.port(d.Port.Number); !ok {
					flaw = flawf(gatewayv1.RouteReasonBackendNotFound, "%s has no port %d", d.Host, d.Port.Number)
				}
			}
		}
		if flaw != nil {
			return Verdict{Reason: string(flaw.reason), Message: r.field + ": " + flaw.text}
		}
	}
	return Verdict{OK: true, Reason: string(gatewayv1.RouteReasonResolvedRefs), Message: "All references resolved"}
}

// namedRef is a reference to a back end and where it is written.
type namedRef struct {
	field string
	ref   gatewayv1.BackendObjectReference
}

// backendRefs are all back ends that a route names, those of mirrors too.
func backendRefs(o kube.Object) []namedRef {
	var out []namedRef
	add := func(rule int, list []gatewayv1.BackendRef) {
		for i, r := range list {
			out = append(out, namedRef{indexed(indexed("spec.rules", rule)+".backendRefs", i), r.BackendObjectReference})
		}
	}
	mirror := func(rule, filter int, m *gatewayv1.HTTPRequestMirrorFilter) {
		if m != nil {
			out = append(out, namedRef{indexed(indexed("spec.rules", rule)+".filters", filter) + ".requestMirror.backendRef", m.BackendRef})
		}
	}
	switch r := o.(type) {
	case *gatewayv1.HTTPRoute:
		for i, rule := range r.Spec.Rules {
			for j, f := range rule.Filters {
				mirror(i, j, f.RequestMirror)
			}
			var list []gatewayv1.BackendRef
			for _, b := range rule.BackendRefs {
				list = append(list, b.BackendRef)
			}
			add(i, list)
		}
	case *gatewayv1.GRPCRoute:
		for i, rule := range r.Spec.Rules {
			for j, f := range rule.Filters {
				mirror(i, j, f.RequestMirror)
			}
			var list []gatewayv1.BackendRef
			for _, b := range rule.BackendRefs {
				list = append(list, b.BackendRef)
			}
			add(i, list)
		}
	case *gatewayv1.TCPRoute:
		for i, rule := range r.Spec.Rules {
			add(i, rule.BackendRefs)
		}
	case *gatewayv1.TLSRoute:
		for i, rule := range r.Spec.Rules {
			add(i, rule.BackendRefs)
		}
	}
	return out
}
