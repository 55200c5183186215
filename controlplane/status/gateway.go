package status

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

const (
	meshPort     = 15008
	meshProtocol = "HBONE"
)

// class accepts the class of waypoints.
func (c *computer) class(g *gatewayv1.GatewayClass) {
	if g.Spec.ControllerName != kube.MeshController {
		return
	}
	s := c.of(kube.KeyOf(g))
	s.Conditions = append(s.Conditions, condition(typeAccepted, envoy.Verdict{OK: true, Reason: string(gatewayv1.GatewayClassReasonAccepted), Message: "Handled by the control plane"}, g.Generation))
}

// gateway is the status of a Gateway of a waypoint: its addresses are those of its Service, and it is programmed when an
// instance is ready (5.3).
func (c *computer) gateway(g *gatewayv1.Gateway) {
	mesh := func(l gatewayv1.Listener) bool { return l.Port == meshPort && string(l.Protocol) == meshProtocol }
	if g.Spec.GatewayClassName != kube.WaypointClass {
		return // somebody else's
	}
	s := c.of(kube.KeyOf(g))
	accepted := envoy.Verdict{OK: true, Reason: string(gatewayv1.GatewayReasonAccepted), Message: "Resource accepted"}
	if !slices.ContainsFunc(g.Spec.Listeners, mesh) {
		accepted = envoy.Verdict{Reason: string(gatewayv1.GatewayReasonListenersNotValid), Message: fmt.Sprintf("no listener has port %d and protocol %s: nothing will use this waypoint", meshPort, meshProtocol)}
	}
	for _, p := range c.problems[kube.KeyOf(g)] {
		if p.Severity != kube.Rejected {
			continue
		}
		accepted = envoy.Verdict{Reason: string(gatewayv1.GatewayReasonInvalid)}
		if strings.HasPrefix(p.Field, "spec.infrastructure.parametersRef") {
			accepted.Reason = string(gatewayv1.GatewayReasonInvalidParameters)
		}
		p.Object = kube.Key{}
		accepted.Message = p.Error()
		break
	}
	programmed := c.programmed(g, s)
	s.Conditions = append(s.Conditions, condition(typeAccepted, accepted, g.Generation), condition(typeProgrammed, programmed, g.Generation))
	for _, l := range g.Spec.Listeners {
		ok := envoy.Verdict{OK: true, Reason: string(gatewayv1.ListenerReasonAccepted), Message: "No errors found"}
		if !mesh(l) {
			ok = envoy.Verdict{Reason: string(gatewayv1.ListenerReasonUnsupportedProtocol), Message: fmt.Sprintf("a waypoint listens on port %d with protocol %s", meshPort, meshProtocol)}
		}
		own := programmed
		if own.OK {
			own.Reason, own.Message = string(gatewayv1.ListenerReasonProgrammed), "No errors found"
		} else {
			own.Reason = string(gatewayv1.ListenerReasonPending)
		}
		s.Listeners = append(s.Listeners, gatewayv1.ListenerStatus{Name: l.Name, SupportedKinds: []gatewayv1.RouteGroupKind{}, Conditions: []metav1.Condition{
			condition(typeAccepted, ok, g.Generation),
			{Type: "Conflicted", Status: metav1.ConditionFalse, Reason: string(gatewayv1.ListenerReasonNoConflicts), Message: "No errors found", ObservedGeneration: g.Generation},
			condition(typeProgrammed, own, g.Generation),
			condition(typeResolvedRefs, envoy.Verdict{OK: true, Reason: string(gatewayv1.ListenerReasonResolvedRefs), Message: "No errors found"}, g.Generation),
		}})
	}
}

// programmed finds the addresses, and says whether somebody answers there.
func (c *computer) programmed(g *gatewayv1.Gateway, s *Status) envoy.Verdict {
	add := func(kind gatewayv1.AddressType, value string) {
		s.Addresses = append(s.Addresses, gatewayv1.GatewayStatusAddress{Type: &kind, Value: value})
	}
	name := g.Name
	if len(g.Spec.Addresses) > 0 { // a proxy that somebody else runs, behind a Service of its own
		for _, a := range g.Spec.Addresses {
			kind := gatewayv1.HostnameAddressType
			if a.Type != nil {
				kind = *a.Type
			}
			add(kind, a.Value)
		}
		name, _, _ = strings.Cut(g.Spec.Addresses[0].Value, ".")
	}
	svc := kube.Get[*corev1.Service](c.Objects, g.Namespace, name)
	notYet := func(format string, args ...any) envoy.Verdict {
		return envoy.Verdict{Reason: string(gatewayv1.GatewayReasonAddressNotAssigned), Message: fmt.Sprintf(format, args...)}
	}
	if svc == nil {
		return notYet("Service %s/%s of the waypoint does not exist", g.Namespace, name)
	}
	if len(g.Spec.Addresses) == 0 {
		if svc.Labels[kube.LabelManaged] != kube.ManagedByMesh {
			return notYet("Service %s/%s is not the waypoint's", g.Namespace, name) // nor may traffic go there
		}
		for _, ip := range svc.Spec.ClusterIPs {
			if ip != corev1.ClusterIPNone {
				add(gatewayv1.IPAddressType, ip)
			}
		}
		add(gatewayv1.HostnameAddressType, svc.Name+"."+svc.Namespace+".svc."+c.ClusterDomain)
	}
	answers := c.hasInstance(kube.KeyOf(g).Name)
	if len(g.Spec.Addresses) > 0 {
		answers = c.selected(svc)
	}
	if !answers {
		return notYet("no instance of the waypoint is ready")
	}
	return envoy.Verdict{OK: true, Reason: string(gatewayv1.GatewayReasonProgrammed), Message: "Resource programmed"}
}

// hasInstance says whether a pod that was made for a Gateway is ready. All pods are looked at once, for all Gateways.
func (c *computer) hasInstance(gateway kube.Name) bool {
	if c.instances == nil {
		c.instances = map[kube.Name]bool{}
		for p := range kube.List[*corev1.Pod](c.Objects) {
			if name := p.Labels[kube.LabelGateway]; name != "" && ready(p) {
				c.instances[kube.Name{Namespace: p.Namespace, Name: name}] = true
			}
		}
	}
	return c.instances[gateway]
}

// selected says whether a pod of a Service is ready.
func (c *computer) selected(s *corev1.Service) bool {
	for p := range kube.List[*corev1.Pod](c.Objects) {
		if p.Namespace == s.Namespace && selects(s, p) && ready(p) {
			return true
		}
	}
	return false
}

func selects(s *corev1.Service, p *corev1.Pod) bool {
	for k, v := range s.Spec.Selector {
		if p.Labels[k] != v {
			return false
		}
	}
	return len(s.Spec.Selector) > 0
}

func ready(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
