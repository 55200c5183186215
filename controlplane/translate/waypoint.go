package translate

import (
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

const hbonePort = 15008

// Labels and annotations of waypoints (controlplane.md 1.6).
const (
	labelUseWaypoint       = "istio.io/use-waypoint"
	labelUseWaypointNS     = "istio.io/use-waypoint-namespace"
	labelCanary            = "istio.io/use-waypoint-canary"
	labelCanaryNS          = "istio.io/use-waypoint-canary-namespace"
	annotationCanaryWeight = "istio.io/use-waypoint-canary-weight"
	labelIngress           = "istio.io/ingress-use-waypoint"
	labelWaypointFor       = "istio.io/waypoint-for"
	annotationInbound      = "ambient.istio.io/waypoint-inbound-binding"
)

// What a waypoint takes traffic for.
const (
	forService  = "service"
	forWorkload = "workload"
	forAll      = "all"
	forNone     = "none"
)

const conditionWaypointBound = "istio.io/WaypointBound"

// waypoint is what a Gateway is to those that ask for it. It never changes.
type waypoint struct {
	name kube.Name
	// address is nil while the Gateway's status has none: it cannot be used yet.
	address *workloadpb.GatewayAddress
	// traffic is what it takes: service, workload, all or none.
	traffic string
	// tunnel is how its own instances want their traffic, nil when they speak HBONE.
	tunnel *workloadpb.ApplicationTunnel
	// from and selector say the objects of which namespaces may use it.
	from     gatewayv1.FromNamespaces
	selector *metav1.LabelSelector
}

func (w *waypoint) equal(o *waypoint) bool {
	if w == nil || o == nil {
		return w == o
	}
	return w.name == o.name && w.traffic == o.traffic && w.from == o.from && proto.Equal(w.address, o.address) &&
		proto.Equal(w.tunnel, o.tunnel) && reflect.DeepEqual(w.selector, o.selector)
}

// takes says whether the waypoint takes traffic of a kind.
func (w *waypoint) takes(kind string) bool { return w.traffic == kind || w.traffic == forAll }

// makeWaypoint makes a waypoint of a Gateway, nil of none.
func (t *Translator) makeWaypoint(g *gatewayv1.Gateway) *waypoint {
	if g == nil {
		return nil
	}
	w := &waypoint{name: kube.Name{Namespace: g.Namespace, Name: g.Name}, address: t.gatewayAddress(g), from: gatewayv1.NamespacesFromSame}
	var inbound string
	w.traffic, inbound = t.gatewaySettings(g)
	w.tunnel, _ = parseInbound(inbound)
	for _, l := range g.Spec.Listeners {
		if l.Port != hbonePort || l.Protocol != "HBONE" {
			continue
		}
		if l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil && l.AllowedRoutes.Namespaces.From != nil {
			w.from, w.selector = *l.AllowedRoutes.Namespaces.From, l.AllowedRoutes.Namespaces.Selector
		}
		break
	}
	return w
}

// gatewaySettings are what a Gateway takes traffic for and how its instances want it: its own word, else its class's.
func (t *Translator) gatewaySettings(g *gatewayv1.Gateway) (traffic, inbound string) {
	traffic = forService
	if class := kube.Get[*gatewayv1.GatewayClass](t.objects, "", string(g.Spec.GatewayClassName)); class != nil {
		if v, ok := class.Labels[labelWaypointFor]; ok {
			traffic = v
		}
		inbound = class.Annotations[annotationInbound]
	}
	if v, ok := g.Labels[labelWaypointFor]; ok {
		traffic = v
	}
	if v, ok := g.Annotations[annotationInbound]; ok {
		inbound = v
	}
	return traffic, inbound
}

// gatewayAddress is the address in a Gateway's status: a host name if there is one, else an IP address.
func (t *Translator) gatewayAddress(g *gatewayv1.Gateway) *workloadpb.GatewayAddress {
	var found *workloadpb.GatewayAddress
	for _, a := range g.Status.Addresses {
		if a.Type != nil && *a.Type == gatewayv1.HostnameAddressType {
			return &workloadpb.GatewayAddress{
				Destination:   &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: g.Namespace, Hostname: a.Value}},
				HboneMtlsPort: hbonePort,
			}
		}
		ip, err := netip.ParseAddr(a.Value)
		if found == nil && err == nil && (a.Type == nil || *a.Type == gatewayv1.IPAddressType) {
			found = &workloadpb.GatewayAddress{
				Destination:   &workloadpb.GatewayAddress_Address{Address: &workloadpb.NetworkAddress{Network: t.network, Address: ip.AsSlice()}},
				HboneMtlsPort: hbonePort,
			}
		}
	}
	return found
}

// parseInbound reads "NONE", "PROXY" or "PROXY/<port>".
func parseInbound(s string) (*workloadpb.ApplicationTunnel, error) {
	protocol, port, hasPort := strings.Cut(s, "/")
	var number uint64
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("invalid port %q", port)
		}
		number = n
	}
	switch protocol {
	case "", "NONE":
		return nil, nil
	case "PROXY":
		return &workloadpb.ApplicationTunnel{Protocol: workloadpb.ApplicationTunnel_PROXY, Port: uint32(number)}, nil
	}
	return nil, fmt.Errorf("unknown protocol %q", protocol)
}

// gateway reports what is wrong with a Gateway that is to be a waypoint. Its resources are those of its pods and Service.
func (t *Translator) gateway(g *gatewayv1.Gateway, it *item) {
	if v, ok := g.Labels[labelWaypointFor]; ok && v != forService && v != forWorkload && v != forAll && v != forNone {
		it.problem(kube.Warning, "metadata.labels["+labelWaypointFor+"]", fmt.Sprintf("unknown value %q: nothing will use this waypoint", v), "service, workload, all, none")
	}
	if v, ok := g.Annotations[annotationInbound]; ok {
		if _, err := parseInbound(v); err != nil {
			it.problem(kube.Warning, "metadata.annotations["+annotationInbound+"]", err.Error(), "NONE, PROXY, PROXY/<port>")
		}
	}
}

// binding is what an object's waypoint labels come to.
type binding struct {
	waypoint *waypoint
	weighted []*workloadpb.WeightedWaypoint
	ingress  bool
	// inherited says that the namespace asked and not the object.
	inherited bool
	// instance says that the object is an instance of a waypoint itself.
	instance bool
	// refusal says why there is no waypoint, or no canary; nil when nothing is wrong.
	refusal *Condition
	// closed is the address of a waypoint that was asked for and cannot be used: nothing answers there, so that
	// connections are refused rather than going around the waypoint and its policies.
	closed *workloadpb.GatewayAddress
}

// address is nil when the object is not bound.
func (b binding) address() *workloadpb.GatewayAddress {
	if b.waypoint == nil {
		return b.closed
	}
	return b.waypoint.address
}

// closedAddress is an address that no proxy can resolve. Its text stands in the proxy's error and log.
func closedAddress(name kube.Name) *workloadpb.GatewayAddress {
	return &workloadpb.GatewayAddress{
		Destination: &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{
			Namespace: name.Namespace, Hostname: name.Name + "." + name.Namespace + ".unusable-waypoint.invalid",
		}},
		HboneMtlsPort: hbonePort,
	}
}

// condition is the WaypointBound condition, none when no waypoint was asked for.
func (b binding) condition() []Condition {
	switch {
	case b.refusal != nil:
		return []Condition{*b.refusal}
	case b.waypoint == nil:
		return nil
	}
	message := "Successfully attached to waypoint " + b.waypoint.name.String()
	if len(b.weighted) > 0 {
		message += fmt.Sprintf(", %d%% of connections to its canary", b.weighted[1].Weight)
	}
	if b.ingress {
		message += ". Ingress traffic will traverse the waypoint"
	}
	return []Condition{{Type: conditionWaypointBound, Status: "True", Reason: "WaypointAccepted", Message: message}}
}

func refuse(reason, format string, args ...any) *Condition {
	return &Condition{Type: conditionWaypointBound, Status: "False", Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// reference reads a waypoint's name from labels. Asked is false when there is none; a name "none" opts out.
func reference(labels map[string]string, nameLabel, namespaceLabel, namespace string) (name kube.Name, asked bool) {
	v, asked := labels[nameLabel]
	if ns := labels[namespaceLabel]; ns != "" {
		namespace = ns
	}
	return kube.Name{Namespace: namespace, Name: v}, asked
}

// managed says whether an object was made for a waypoint or a gateway between networks: those have no waypoint themselves.
func managed(o metav1.Object) bool {
	switch o.GetLabels()[kube.LabelManaged] {
	case kube.ManagedByMesh, "istio.io-eastwest-controller":
		return true
	}
	return false
}

// bindService binds a Service or ServiceEntry. A dependency is written down in it.
func (t *Translator) bindService(o metav1.Object, it *item) binding {
	if managed(o) {
		return binding{}
	}
	b := t.bind(o, forService, it)
	if b.waypoint == nil {
		return b
	}
	ns := t.namespace(o.GetNamespace(), it)
	if v, ok := o.GetLabels()[labelIngress]; ok {
		b.ingress = v == "true"
	} else if ns != nil {
		b.ingress = ns.Labels[labelIngress] == "true"
	}
	t.bindCanary(&b, o, ns, it)
	return b
}

// bindWorkload binds a pod, a WorkloadEntry or the endpoints of a ServiceEntry. Instances of a waypoint have none; the
// second result is how they want their traffic.
func (t *Translator) bindWorkload(o metav1.Object, it *item) (binding, *workloadpb.ApplicationTunnel) {
	if name := o.GetLabels()[kube.LabelGateway]; name != "" {
		gateway := kube.Name{Namespace: o.GetNamespace(), Name: name}
		it.read(kube.Key{Kind: kube.KindGateway, Name: gateway})
		if w := t.waypoints[gateway]; w != nil {
			return binding{instance: true}, w.tunnel
		}
	}
	if managed(o) {
		return binding{}, nil
	}
	b := t.bind(o, forWorkload, it)
	if b.refusal != nil && b.refusal.Reason == "UnsupportedTrafficType" && b.inherited {
		// The namespace's waypoint is for services: nothing is wrong.
		b.refusal = nil
	}
	return b, nil
}

// bind finds the waypoint that an object asks for, or its namespace when the object asks for none.
func (t *Translator) bind(o metav1.Object, kind string, it *item) binding {
	var b binding
	name, asked := reference(o.GetLabels(), labelUseWaypoint, labelUseWaypointNS, o.GetNamespace())
	if !asked {
		b.inherited = true
		if ns := t.namespace(o.GetNamespace(), it); ns != nil {
			name, asked = reference(ns.Labels, labelUseWaypoint, labelUseWaypointNS, o.GetNamespace())
		}
	}
	if !asked || name.Name == "none" || name.Name == "" {
		return b
	}
	b.waypoint, b.refusal = t.admit(name, o.GetNamespace(), kind, it)
	if b.refusal != nil && b.refusal.Reason != "UnsupportedTrafficType" && (!b.inherited || t.trafficOf(name, kind)) {
		b.closed = closedAddress(name)
		b.refusal.Message += "; until it can be used, connections are refused"
	}
	return b
}

// trafficOf says whether a waypoint that cannot be used takes, or by default would take, traffic of a kind.
func (t *Translator) trafficOf(name kube.Name, kind string) bool {
	w := t.waypoints[name]
	if w == nil {
		w = &waypoint{traffic: forService}
	}
	return w.takes(kind)
}

// admit looks a waypoint up and checks that it is there, lets objects of the namespace in and takes the kind of traffic.
func (t *Translator) admit(name kube.Name, namespace, kind string, it *item) (*waypoint, *Condition) {
	it.read(kube.Key{Kind: kube.KindGateway, Name: name})
	w := t.waypoints[name]
	switch {
	case w == nil:
		return nil, refuse("WaypointIsNotReady", "waypoint %q does not exist", name)
	case w.address == nil:
		return nil, refuse("WaypointIsNotReady", "waypoint %q is not ready: its status has no address", name)
	case !t.lets(w, namespace, it):
		return nil, refuse("AttachmentDenied", "we are not permitted to attach to waypoint %q (missing allowedRoutes?)", name)
	case !w.takes(kind):
		return nil, refuse("UnsupportedTrafficType", "attempting to bind to traffic type %q which the waypoint %q does not support", kind, name)
	}
	return w, nil
}

// lets says whether objects of a namespace may use a waypoint.
func (t *Translator) lets(w *waypoint, namespace string, it *item) bool {
	switch w.from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return w.name.Namespace == namespace
	case gatewayv1.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(w.selector)
		ns := t.namespace(namespace, it)
		return err == nil && ns != nil && s.Matches(labels.Set(ns.Labels))
	}
	return false
}

// bindCanary adds the canary. It comes from the level that the waypoint itself came from, the object's or the
// namespace's; what is wrong with it leaves the waypoint in force.
func (t *Translator) bindCanary(b *binding, o metav1.Object, ns *corev1.Namespace, it *item) {
	name, asked := reference(o.GetLabels(), labelCanary, labelCanaryNS, o.GetNamespace())
	weight, weighted := o.GetAnnotations()[annotationCanaryWeight]
	if b.inherited && ns != nil {
		if !asked {
			name, asked = reference(ns.Labels, labelCanary, labelCanaryNS, o.GetNamespace())
		}
		if !weighted {
			weight, weighted = ns.Annotations[annotationCanaryWeight]
		}
	}
	if !asked || name.Name == "" || name.Name == "none" {
		return
	}
	if name == b.waypoint.name {
		b.refusal = refuse("CanarySameAsPrimary", "canary waypoint %q is the waypoint itself", name)
		return
	}
	percent := uint64(0)
	if weighted {
		n, err := strconv.ParseUint(weight, 10, 32)
		if err != nil || n > 100 {
			b.refusal = refuse("CanaryInvalidWeight", "canary waypoint %q has weight %q, accepted: 0..100", name, weight)
			return
		}
		percent = n
	}
	canary, refusal := t.admit(name, o.GetNamespace(), forService, it)
	if refusal != nil {
		b.refusal = refusal
		return
	}
	b.weighted = []*workloadpb.WeightedWaypoint{
		{Destination: b.waypoint.address, Weight: uint32(100 - percent)},
		{Destination: canary.address, Weight: uint32(percent)},
	}
}

// namespace looks a namespace up, nil when there is no such object.
func (t *Translator) namespace(name string, it *item) *corev1.Namespace {
	it.read(kube.Key{Kind: kube.KindNamespace, Name: kube.Name{Name: name}})
	return kube.Get[*corev1.Namespace](t.objects, "", name)
}
