package translate

import (
	"fmt"
	"strings"

	typev1beta1 "istio.io/api/type/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

const (
	conditionWaypointAccepted = "WaypointAccepted"
)

// targetCondition is WaypointAccepted of a policy with target references (1.10), nil for another policy. A policy that no
// waypoint enforces is as good as none, and its author must know.
func (t *Translator) targetCondition(one *typev1beta1.PolicyTargetReference, refs []*typev1beta1.PolicyTargetReference, it *item) *Condition {
	if one != nil {
		refs = append([]*typev1beta1.PolicyTargetReference{one}, refs...)
	}
	if len(refs) == 0 {
		return nil
	}
	var reason string
	var flaws []string
	for _, r := range refs {
		why, text := t.targetFlaw(it.key.Namespace, r, it)
		if why != "" {
			reason, flaws = why, append(flaws, text)
		}
	}
	c := &Condition{Type: conditionWaypointAccepted, Status: conditionStatusTrue, Reason: reasonAccepted, Message: "bound to the waypoint of each target"}
	if len(flaws) > 0 {
		c.Status, c.Reason, c.Message = conditionStatusFalse, reason, strings.Join(flaws, "; ")
		if len(refs) > 1 {
			c.Reason = "PartiallyInvalid"
			if len(flaws) == len(refs) {
				c.Reason = "Invalid"
			}
		}
	}
	return c
}

// targeted is the item of an object that is for waypoints only.
func (t *Translator) targeted(one *typev1beta1.PolicyTargetReference, refs []*typev1beta1.PolicyTargetReference, it *item) {
	c := t.targetCondition(one, refs, it)
	if c == nil {
		return
	}
	it.status.Conditions = append(it.status.Conditions, *c)
	if c.Status == conditionStatusFalse {
		it.problem(kube.Warning, "spec.targetRefs", c.Reason+": "+c.Message, "")
	}
}

// targetFlaw says why no waypoint enforces a policy for one of its targets; the reason is empty when one does.
func (t *Translator) targetFlaw(namespace string, r *typev1beta1.PolicyTargetReference, it *item) (reason, text string) {
	target := kube.Key{Name: kube.Name{Namespace: namespace, Name: r.Name}}
	switch r.Group + "/" + r.Kind {
	case "/Service", "core/Service":
		target.Kind = kube.KindService
	case "networking.istio.io/ServiceEntry":
		target.Kind = kube.KindServiceEntry
	case "gateway.networking.k8s.io/Gateway":
		target.Kind = kube.KindGateway
	case "gateway.networking.k8s.io/GatewayClass":
		if namespace != t.cfg.RootNamespace || r.Name != kube.WaypointClass {
			return "Invalid", fmt.Sprintf("GatewayClass %s is no target here: accepted is %s, by policies of namespace %s", r.Name, kube.WaypointClass, t.cfg.RootNamespace)
		}
		return "", ""
	default:
		return "Invalid", fmt.Sprintf("%s of group %q is no target; accepted: Service, ServiceEntry, Gateway, GatewayClass", r.Kind, r.Group)
	}
	it.read(target)
	o := t.objects.Lookup(target)
	if o == nil {
		return "TargetNotFound", target.String() + " does not exist"
	}
	if _, ok := o.(*gatewayv1.Gateway); ok {
		return "", ""
	}
	if b := t.bindService(o.(metav1.Object), it); b.waypoint == nil {
		return "AncestorNotBound", target.String() + " is not bound to a waypoint: nothing enforces the policy for it"
	}
	return "", ""
}
