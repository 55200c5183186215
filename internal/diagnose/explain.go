package diagnose

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
)

// Step is one step of a connection.
type Step struct {
	// Where it happens, and what does.
	Where string `json:"where"`
	What  string `json:"what"`
	// Notes say more: policies, routes.
	Notes []string `json:"notes,omitempty"`
}

// Explanation is what happens to a connection.
type Explanation struct {
	Steps []Step `json:"steps"`
	// Reached says whether it gets to an application. A waypoint's rules about requests can still refuse some.
	Reached bool   `json:"reached"`
	Verdict string `json:"verdict"`
}

// Text is the explanation for people.
func (e *Explanation) Text() string {
	var b strings.Builder
	for i, s := range e.Steps {
		fmt.Fprintf(&b, "%2d %s: %s\n", i+1, s.Where, s.What)
		for _, n := range s.Notes {
			fmt.Fprintf(&b, "     %s\n", n)
		}
	}
	fmt.Fprintf(&b, "verdict: %s\n", e.Verdict)
	return b.String()
}

// tracer follows one connection through what node proxies would be told.
type tracer struct {
	*analysis
	Explanation
	view     *workload.View
	policies *rbac.View
}

// Explain says step by step what happens to a connection of a client's pod to a port of a server: what the node proxies
// decide is asked of their own code. A port of 0 is the first one of a Service.
func Explain(w *World, client, server *Subject, port uint16) (*Explanation, error) {
	if len(client.Pods) == 0 {
		return nil, fmt.Errorf("the client has no pod")
	}
	t := &tracer{analysis: analyse(w)}
	if err := t.load(); err != nil {
		return nil, err
	}
	from := client.Pods[0]
	dst, err := t.destination(server, port)
	if err != nil {
		return nil, err
	}
	t.follow(from, dst)
	return &t.Explanation, nil
}

// load makes tables of what the control plane sends, as a node proxy does.
func (t *tracer) load() error {
	var addresses []xds.Resource[workload.Address]
	for _, name := range slices.Sorted(maps.Keys(t.result.Addresses)) {
		a, err := workload.FromProto(name, t.result.Addresses[name].Message.(*workloadpb.Address))
		if err != nil {
			return err
		}
		addresses = append(addresses, xds.Resource[workload.Address]{Name: name, Value: a})
	}
	var policies []xds.Resource[*rbac.Policy]
	for _, name := range slices.Sorted(maps.Keys(t.result.Authorizations)) {
		p, err := rbac.FromProto(t.result.Authorizations[name].Message.(*securitypb.Authorization))
		if err != nil {
			return err
		}
		policies = append(policies, xds.Resource[*rbac.Policy]{Name: name, Value: p})
	}
	ws, ps := workload.NewStore(workload.Config{}), rbac.NewStore()
	if err := ws.Apply(addresses, nil); err != nil {
		return err
	}
	if err := ps.Apply(policies, nil); err != nil {
		return err
	}
	t.view, t.policies = ws.View(), ps.View()
	return nil
}

// destination is the address that the client dials.
func (t *tracer) destination(s *Subject, port uint16) (netip.AddrPort, error) {
	ip := ""
	switch {
	case len(s.Services) > 0:
		svc := s.Services[0]
		if port == 0 && len(svc.Spec.Ports) > 0 {
			port = uint16(svc.Spec.Ports[0].Port)
		}
		if ip = svc.Spec.ClusterIP; ip == corev1.ClusterIPNone || ip == "" {
			ip = ""
			for _, p := range s.Pods {
				ip = p.Status.PodIP
			}
		}
	case len(s.Pods) > 0:
		ip = s.Pods[0].Status.PodIP
		for _, c := range s.Pods[0].Spec.Containers {
			if port == 0 && len(c.Ports) > 0 {
				port = uint16(c.Ports[0].ContainerPort)
			}
		}
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("the server has no address")
	}
	if port == 0 {
		return netip.AddrPort{}, fmt.Errorf("the server's port is not known; name it: SERVER:PORT")
	}
	return netip.AddrPortFrom(addr, port), nil
}

func (t *tracer) step(where, what string, notes ...string) {
	t.Steps = append(t.Steps, Step{where, what, notes})
}

func (t *tracer) end(reached bool, verdict string, args ...any) {
	t.Reached, t.Verdict = reached, fmt.Sprintf(verdict, args...)
}

// follow goes from the client's pod on.
func (t *tracer) follow(from *corev1.Pod, dst netip.AddrPort) {
	addr, _ := netip.ParseAddr(from.Status.PodIP)
	source := t.view.Workload("", addr)
	where := "pod " + from.Namespace + "/" + from.Name
	if !inMesh(from) || source == nil {
		t.step(where, fmt.Sprintf("dials %s; it is not in the mesh, so the connection has no identity and is plaintext", dst))
		t.plain(addr, dst)
		return
	}
	t.step(where, fmt.Sprintf("dials %s; ztunnel of node %s takes the connection, its identity is %s", dst, from.Spec.NodeName, source.ID))
	t.outbound("ztunnel of node "+from.Spec.NodeName, source, addr, dst)
}

// outbound is the decision of the client's ztunnel.
func (t *tracer) outbound(where string, source *workload.Workload, addr netip.Addr, dst netip.AddrPort) {
	d, err := proxy.Route(t.view, proxy.Query{Source: source, Peer: addr, Dst: dst, Network: source.Network, Rand: rand.New(rand.NewPCG(1, 1))})
	if err != nil {
		t.step(where, "refuses the connection: "+err.Error(), t.why(err.Error())...)
		t.end(false, "refused by %s: %v", where, err)
		return
	}
	switch {
	case d.Waypoint:
		t.step(where, fmt.Sprintf("opens an HBONE tunnel to waypoint %s at %s, which must be %s", d.Workload.Name, d.Dial, ids(d.Expect)))
		t.throughWaypoint(d, dst)
	case d.Protocol == proxy.HBONE:
		t.step(where, fmt.Sprintf("opens an HBONE tunnel to pod %s/%s at %s for %s, which must be %s", d.Workload.Namespace, d.Workload.Name, d.Dial, d.Target, ids(d.Expect)), t.sameNode(source, d.Workload)...)
		t.inbound(d.Workload, source.ID, addr, d.Target, true)
	case d.Workload != nil:
		t.step(where, fmt.Sprintf("connects to pod %s/%s at %s in plaintext: that pod is not in the mesh", d.Workload.Namespace, d.Workload.Name, d.Dial))
		t.end(true, "reached, in plaintext: the server is not in the mesh, and no policy of the mesh protects it")
	default:
		t.step(where, fmt.Sprintf("passes the connection through to %s, which the mesh does not know", d.Dial))
		t.end(true, "passed through in plaintext: the destination is outside the mesh")
	}
}

func ids(s *workload.Identities) string {
	if s == nil || len(s.IDs) == 0 {
		return "nobody"
	}
	return s.Key
}

func (t *tracer) sameNode(a, b *workload.Workload) []string {
	if a.Node != "" && a.Node == b.Node {
		return []string{"both pods are on node " + a.Node + ": with --same-node=direct the bytes are handed over there, without a tunnel; policies hold all the same"}
	}
	return nil
}

// why adds what the control plane says about a waypoint that cannot be used.
func (t *tracer) why(text string) (out []string) {
	for _, s := range t.statuses {
		for _, c := range s.Conditions {
			if c.Type == "istio.io/WaypointBound" && c.Status == "False" && strings.Contains(text, "unusable-waypoint") {
				out = append(out, s.Object.String()+": "+c.Message)
			}
		}
	}
	return out
}

// throughWaypoint says what the waypoint looks at, and goes on to an endpoint.
func (t *tracer) throughWaypoint(d proxy.Decision, dst netip.AddrPort) {
	wp := d.Workload
	gateway := wp.Name
	if p := kube.Get[*corev1.Pod](t.objects, wp.Namespace, wp.Name); p != nil {
		gateway = p.Labels[kube.LabelGateway]
	}
	var svc *corev1.Service
	if d.Service != nil {
		svc = kube.Get[*corev1.Service](t.objects, d.Service.Namespace, d.Service.Name)
	}
	where := "waypoint " + wp.Namespace + "/" + gateway
	t.step(where, "ends the tunnel and looks at requests", append(t.requestPolicies(wp.Namespace, gateway, svc), t.requestRoutes(svc)...)...)
	if d.Service == nil {
		if w := t.view.Workload(wp.Network, dst.Addr()); w != nil {
			t.fromWaypoint(where, wp, w, dst)
		}
		return
	}
	for w := range t.view.Endpoints(d.Service) {
		if w.Unhealthy {
			continue
		}
		at, _ := w.Select(d.Service, dst.Addr())
		t.fromWaypoint(where, wp, w, netip.AddrPortFrom(at, w.TargetPort(d.Service, dst.Port())))
		return
	}
	t.step(where, "has no healthy endpoint of "+d.Service.Key)
	t.end(false, "refused by %s: no healthy endpoint of %s", where, d.Service.Key)
}

func (t *tracer) fromWaypoint(where string, wp, w *workload.Workload, target netip.AddrPort) {
	if w.Protocol != workload.HBONE {
		t.step(where, fmt.Sprintf("sends them on to pod %s/%s at %s in plaintext: that pod is not in the mesh", w.Namespace, w.Name, target))
		t.end(true, "reached by %s, in plaintext on the last leg", where)
		return
	}
	t.step(where, fmt.Sprintf("sends them on to a pod by its rules, for example %s/%s, in an HBONE tunnel as %s", w.Namespace, w.Name, wp.ID))
	var addr netip.Addr
	if len(wp.Addrs) > 0 {
		addr = wp.Addrs[0]
	}
	t.inbound(w, wp.ID, addr, target, true)
}

// requestPolicies are those that a waypoint enforces for a Service.
func (t *tracer) requestPolicies(namespace, gateway string, svc *corev1.Service) (out []string) {
	for _, p := range sorted[*securityv1.AuthorizationPolicy](t.objects) {
		for _, r := range targetsOf(p.Spec.TargetRef, p.Spec.TargetRefs) {
			if r.Kind == "Gateway" && p.Namespace == namespace && r.Name == gateway || r.Kind == "GatewayClass" && p.Namespace == t.system() ||
				r.Kind == "Service" && svc != nil && p.Namespace == svc.Namespace && r.Name == svc.Name {
				out = append(out, fmt.Sprintf("%s by AuthorizationPolicy %s/%s (%d rules)", p.Spec.Action, p.Namespace, p.Name, len(p.Spec.Rules)))
				break
			}
		}
	}
	return out
}

// requestRoutes are the routes of a Service.
func (t *tracer) requestRoutes(svc *corev1.Service) (out []string) {
	if svc == nil {
		return nil
	}
	of := func(kind string, name kube.Name, parents []gatewayv1.ParentReference) {
		for _, p := range parents {
			if p.Kind != nil && *p.Kind == "Service" && string(p.Name) == svc.Name && name.Namespace == svc.Namespace {
				out = append(out, kind+" "+name.String())
				return
			}
		}
	}
	for _, r := range sorted[*gatewayv1.HTTPRoute](t.objects) {
		of("HTTPRoute", kube.KeyOf(r).Name, r.Spec.ParentRefs)
	}
	for _, r := range sorted[*gatewayv1.GRPCRoute](t.objects) {
		of("GRPCRoute", kube.KeyOf(r).Name, r.Spec.ParentRefs)
	}
	for _, v := range sorted[*networkingv1.VirtualService](t.objects) {
		for _, h := range v.Spec.Hosts {
			if t.service(h, v.Namespace) == svc {
				out = append(out, "VirtualService "+kube.KeyOf(v).Name.String())
			}
		}
	}
	for _, d := range sorted[*networkingv1.DestinationRule](t.objects) {
		if t.service(d.Spec.Host, d.Namespace) == svc {
			out = append(out, "DestinationRule "+kube.KeyOf(d).Name.String())
		}
	}
	return out
}

// plain is a connection of a client outside the mesh.
func (t *tracer) plain(addr netip.Addr, dst netip.AddrPort) {
	w := t.view.Workload("", dst.Addr())
	if svc := t.view.ServiceByVIP("", dst.Addr(), ""); w == nil && svc != nil {
		for e := range t.view.Endpoints(svc) {
			if !e.Unhealthy {
				w = e
				at, _ := e.Select(svc, dst.Addr())
				dst = netip.AddrPortFrom(at, e.TargetPort(svc, dst.Port()))
				break
			}
		}
		note := "a client outside the mesh goes to no waypoint"
		if svc.Waypoint == nil {
			note = ""
		}
		t.step("kube-proxy", "chooses an endpoint of "+svc.Key, slices.DeleteFunc([]string{note}, func(s string) bool { return s == "" })...)
	}
	switch {
	case w == nil:
		t.end(true, "the mesh has no part in it")
	case w.Protocol != workload.HBONE:
		t.end(true, "reached, in plaintext: neither side is in the mesh")
	default:
		t.inbound(w, spiffe.ID{}, addr, dst, false)
	}
}

// inbound is the decision of the server's ztunnel.
func (t *tracer) inbound(w *workload.Workload, source spiffe.ID, addr netip.Addr, target netip.AddrPort, tunnel bool) {
	where := "ztunnel of node " + w.Node
	set := t.policies.Set(w.Namespace, w.Policies, nil)
	d := set.Check(&rbac.Attributes{Source: source, SourceIP: addr, Dest: target})
	how := "takes the connection in plaintext"
	if tunnel {
		how = "takes the tunnel of " + source.String()
	}
	switch {
	case !d.Allowed:
		t.step(where, how+" and refuses it: "+d.Error(), t.origin(w, &d)...)
		t.end(false, "refused by %s: %s", where, d.Error())
		return
	case d.Reason == rbac.AllowedBy:
		t.step(where, fmt.Sprintf("%s, allowed by %s, and connects to pod %s/%s port %d", how, d.Policy.Key, w.Namespace, w.Name, target.Port()))
	default:
		t.step(where, fmt.Sprintf("%s, no policy forbids it, and connects to pod %s/%s port %d", how, w.Namespace, w.Name, target.Port()))
	}
	if tunnel {
		t.end(true, "reached, with mTLS")
		return
	}
	t.end(true, "reached, in plaintext")
}

// origin says of which object of a user a policy comes.
func (t *tracer) origin(w *workload.Workload, d *rbac.Decision) []string {
	if d.Policy == nil {
		if len(w.Policies) == 0 {
			return nil
		}
		return []string{"policies that select the pod: " + strings.Join(w.Policies, ", ")}
	}
	name := d.Policy.Name
	for prefix, kind := range map[string]string{"converted_peer_authentication_": "PeerAuthentication", "converted_l7_deny_": "AuthorizationPolicy"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return []string{fmt.Sprintf("it comes of %s %s/%s", kind, d.Policy.Namespace, rest)}
		}
	}
	if name == "istio_converted_static_strict" {
		return []string{"it comes of a PeerAuthentication with mode STRICT"}
	}
	return []string{fmt.Sprintf("it comes of AuthorizationPolicy %s", d.Policy.Key)}
}
