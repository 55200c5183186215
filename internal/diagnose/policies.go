package diagnose

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// waypoints is whether waypoints and those that ask for them fit.
func (a *analysis) waypoints() {
	users := map[kube.Name]bool{}
	ask := func(o kube.Object) {
		name, namespace := waypointOf(o.GetLabels(), o.GetNamespace())
		if ns, ok := o.(*corev1.Namespace); ok {
			name, namespace = waypointOf(ns.Labels, ns.Name)
		}
		if name == "" {
			return
		}
		users[kube.Name{Namespace: namespace, Name: name}] = true
		g := kube.Get[*gatewayv1.Gateway](a.objects, namespace, name)
		if g != nil && g.Spec.GatewayClassName != kube.WaypointClass && a.bound[kube.KeyOf(o)] {
			a.add("AMB0403", kube.KeyOf(o).String(), "Gateway %s/%s is of class %s", namespace, name, g.Spec.GatewayClassName)
		}
	}
	for _, k := range a.objects.Keys() {
		switch k.Kind {
		case kube.KindService, kube.KindServiceEntry, kube.KindPod, kube.KindWorkloadEntry:
			ask(a.objects.Lookup(k))
		case kube.KindNamespace:
			ns := a.objects.Lookup(k).(*corev1.Namespace)
			ask(ns)
			if name, _ := waypointOf(ns.Labels, ns.Name); name != "" && !a.wanted(ns) {
				a.add("AMB0406", "Namespace "+ns.Name, "it asks for waypoint %s and nothing in it is in the mesh", name)
			}
		}
	}
	for _, g := range sorted[*gatewayv1.Gateway](a.objects) {
		if k := kube.KeyOf(g); g.Spec.GatewayClassName == kube.WaypointClass && !users[k.Name] && !a.canary(k.Name) {
			a.add("AMB0408", k.String(), "no Namespace, Service or pod asks for it")
		}
	}
}

// canary says whether a Gateway is a canary of something.
func (a *analysis) canary(name kube.Name) bool {
	for _, k := range a.objects.Keys() {
		if o := a.objects.Lookup(k); o.GetLabels()["istio.io/use-waypoint-canary"] == name.Name {
			return true
		}
	}
	return false
}

// wanted says whether a namespace, or a pod in it, asks for the mesh.
func (a *analysis) wanted(ns *corev1.Namespace) bool {
	return ns.Labels[labelMode] == modeAmbient || slices.ContainsFunc(a.pods[ns.Name], func(p *corev1.Pod) bool { return a.mode(p) == modeAmbient })
}

// rule is what policies of all kinds have.
type rule struct {
	object   kube.Object
	selector map[string]string
	targets  []*typev1beta1.PolicyTargetReference
}

// policies is whether policies have an effect.
func (a *analysis) policies() {
	for _, p := range sorted[*securityv1.AuthorizationPolicy](a.objects) {
		r := rule{p, p.Spec.GetSelector().GetMatchLabels(), targetsOf(p.Spec.TargetRef, p.Spec.TargetRefs)}
		a.reach(r)
		a.unenforced(r)
		a.trustDomains(p)
	}
	for _, p := range sorted[*securityv1.RequestAuthentication](a.objects) {
		r := rule{p, p.Spec.GetSelector().GetMatchLabels(), targetsOf(p.Spec.TargetRef, p.Spec.TargetRefs)}
		a.reach(r)
		if len(r.targets) == 0 {
			a.add("AMB0502", kube.KeyOf(p).String(), "it has no targetRefs: tokens are checked by waypoints, and none takes it")
		}
		a.issuers(p)
	}
	for _, p := range sorted[*telemetryv1.Telemetry](a.objects) {
		a.reach(rule{p, p.Spec.GetSelector().GetMatchLabels(), targetsOf(p.Spec.TargetRef, p.Spec.TargetRefs)})
	}
	for _, p := range sorted[*securityv1.PeerAuthentication](a.objects) {
		a.reach(rule{p, p.Spec.GetSelector().GetMatchLabels(), nil})
		if p.Spec.GetMtls().GetMode() == security.PeerAuthentication_MutualTLS_STRICT {
			a.strict(p)
		}
	}
}

func targetsOf(one *typev1beta1.PolicyTargetReference, list []*typev1beta1.PolicyTargetReference) []*typev1beta1.PolicyTargetReference {
	if one != nil {
		list = append([]*typev1beta1.PolicyTargetReference{one}, list...)
	}
	return list
}

// matched are the pods that labels of a policy in a namespace select.
func (a *analysis) matched(namespace string, selector map[string]string) (out []*corev1.Pod) {
	for _, p := range a.pods[namespace] {
		if len(selector) == 0 || selects(selector, p.Labels) {
			out = append(out, p)
		}
	}
	return out
}

// reach says when a policy's selector or target is not in its namespace.
func (a *analysis) reach(r rule) {
	k := kube.KeyOf(r.object)
	for _, t := range r.targets {
		if t.Kind != "Service" || kube.Get[*corev1.Service](a.objects, k.Namespace, t.Name) != nil {
			continue
		}
		for _, s := range sorted[*corev1.Service](a.objects) {
			if s.Name == t.Name {
				a.add("AMB0505", k.String(), "its target, Service %s, is in namespace %s", t.Name, s.Namespace)
				break
			}
		}
	}
	if len(r.selector) == 0 || k.Namespace == a.system() || !a.workloadsKnown(k.Namespace) || len(a.matched(k.Namespace, r.selector)) > 0 || a.entry(k.Namespace, r.selector) {
		return
	}
	for _, p := range a.sortedPods() {
		if selects(r.selector, p.Labels) && a.mode(p) == modeAmbient {
			a.add("AMB0505", k.String(), "its selector matches nothing there, and pod %s in namespace %s", p.Name, p.Namespace)
			return
		}
	}
	a.add("AMB0501", k.String(), "its selector matches no pod of namespace %s", k.Namespace)
}

func (a *analysis) entry(namespace string, selector map[string]string) bool {
	return slices.ContainsFunc(sorted[*networkingv1.WorkloadEntry](a.objects), func(w *networkingv1.WorkloadEntry) bool {
		return w.Namespace == namespace && (selects(selector, w.Labels) || selects(selector, w.Spec.Labels))
	})
}

// unenforced says when a node's proxy should enforce a policy for pods that it does not see.
func (a *analysis) unenforced(r rule) {
	k := kube.KeyOf(r.object)
	if len(r.targets) > 0 || k.Namespace == a.system() || !a.namespaceKnown(k.Namespace) {
		return
	}
	var names []string
	for _, p := range a.matched(k.Namespace, r.selector) {
		if inMesh(p) {
			return
		}
		names = append(names, p.Name)
	}
	if len(names) > 0 {
		a.add("AMB0511", k.String(), "it is for pods that are not in the mesh: %s", some(names))
	}
}

// some are the first of a list of names.
func some(names []string) string {
	if len(names) > 3 {
		names = append(slices.Clone(names[:3]), "...")
	}
	return strings.Join(names, ", ")
}

// strict looks at pods that STRICT is meant for, and at clients that it refuses.
func (a *analysis) strict(p *securityv1.PeerAuthentication) {
	k := kube.KeyOf(p)
	selector := p.Spec.GetSelector().GetMatchLabels()
	protects, all := false, k.Namespace == a.system() && len(selector) == 0
	var bare, clients []string
	for _, pod := range a.sortedPods() {
		if a.outside(pod) || pod.Status.Phase != corev1.PodRunning || !all && pod.Namespace != k.Namespace {
			continue
		}
		name := pod.Namespace + "/" + pod.Name
		selected := len(selector) == 0 || selects(selector, pod.Labels)
		switch {
		case inMesh(pod):
			protects = protects || selected
		case selected && (!all || a.mode(pod) == modeAmbient) && a.namespaceKnown(pod.Namespace):
			bare = append(bare, name)
			fallthrough
		default:
			clients = append(clients, name)
		}
	}
	if len(bare) > 0 {
		a.add("AMB0507", k.String(), "these pods take plaintext all the same: %s", some(bare))
	}
	if protects && len(clients) > 0 {
		a.add("AMB0506", k.String(), "these pods are not in the mesh, and refused as clients: %s", some(clients))
	}
}

// trustDomain is the mesh's, as far as a proxy says.
func (a *analysis) trustDomain() string {
	for i := range a.Proxies {
		if d := a.Proxies[i].Dump; d != nil && d.Config.TrustDomain != "" {
			return d.Config.TrustDomain
		}
	}
	return "cluster.local"
}

func (a *analysis) trustDomains(p *securityv1.AuthorizationPolicy) {
	for _, r := range p.Spec.Rules {
		for _, f := range r.From {
			for _, name := range slices.Concat(f.GetSource().GetPrincipals(), f.GetSource().GetNotPrincipals()) {
				domain, _, ok := strings.Cut(name, "/ns/")
				if ok && domain != a.trustDomain() && domain != "cluster.local" && !strings.Contains(domain, "*") {
					a.add("AMB0206", kube.KeyOf(p).String(), "principal %q is of trust domain %s; the mesh's is %s", name, domain, a.trustDomain())
				}
			}
		}
	}
}

// issuers is whether the keys' hosts in the cluster exist.
func (a *analysis) issuers(p *securityv1.RequestAuthentication) {
	for _, r := range p.Spec.JwtRules {
		u, err := url.Parse(r.JwksUri)
		if err != nil || r.JwksUri == "" {
			continue
		}
		host := u.Hostname()
		inside := !strings.Contains(host, ".") || strings.HasSuffix(host, ".svc") || strings.HasSuffix(host, ".svc.cluster.local")
		if inside && !a.known(host, p.Namespace) {
			a.add("AMB0509", kube.KeyOf(p).String(), "jwksUri of issuer %s: there is no Service %s", r.Issuer, host)
		}
	}
}

// services is whether Services have what they promise.
func (a *analysis) services() {
	for _, s := range sorted[*corev1.Service](a.objects) {
		object := kube.KeyOf(s).String()
		for _, p := range s.Spec.Ports {
			a.portProtocol(object, p)
		}
		if len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName || a.Manifests && len(a.pods[s.Namespace]) == 0 {
			continue
		}
		pods, ready := a.matched(s.Namespace, s.Spec.Selector), false
		have := map[string]bool{}
		for _, p := range pods {
			ready = ready || podReady(p)
			for _, name := range ports(p) {
				have[name] = true
			}
		}
		switch {
		case len(pods) == 0:
			a.add("AMB0601", object, "its selector matches no pod of namespace %s", s.Namespace)
			continue
		case !ready:
			a.add("AMB0602", object, "none of its %d pods is ready", len(pods))
		}
		for _, p := range s.Spec.Ports {
			if name := p.TargetPort.StrVal; name != "" && !have[name] {
				a.add("AMB0610", object, "port %d goes to port %q, which no container of its pods has", p.Port, name)
			}
		}
	}
}

// families are protocols that a proxy treats alike, by the first part of a port's name and by appProtocol.
var families = map[string]string{
	"http": "http", "kubernetes.io/ws": "http", "http2": "http2", "grpc": "http2", "grpc-web": "http2", "kubernetes.io/h2c": "http2",
	"https": "tls", "tls": "tls", "kubernetes.io/wss": "tls", "tcp": "tcp", "mongo": "tcp", "mysql": "tcp", "redis": "tcp", "udp": "udp",
}

func (a *analysis) portProtocol(object string, p corev1.ServicePort) {
	word, _, _ := strings.Cut(p.Name, "-")
	named := families[word]
	if named == "" {
		return
	}
	switch said := ""; {
	case p.AppProtocol != nil:
		if said = families[*p.AppProtocol]; said != "" && said != named {
			a.add("AMB0603", object, "port %d: its name %q says %s, its appProtocol %s", p.Port, p.Name, word, *p.AppProtocol)
		}
	case p.Protocol == corev1.ProtocolUDP && named != "udp", p.Protocol == corev1.ProtocolTCP && named == "udp":
		a.add("AMB0603", object, "port %d: its name %q says %s, its protocol %s", p.Port, p.Name, word, p.Protocol)
	}
}

// routes is whether what routes name exists.
func (a *analysis) routes() {
	for _, v := range sorted[*networkingv1.VirtualService](a.objects) {
		object := kube.KeyOf(v).String()
		if !slices.Contains(v.Spec.Gateways, "mesh") && len(v.Spec.Gateways) > 0 {
			continue // of an ingress
		}
		for _, h := range v.Spec.Hosts {
			a.host(object, v.Namespace, "spec.hosts", h, true)
		}
		for _, h := range destinations(&v.Spec) {
			a.host(object, v.Namespace, "spec.*.route", h, false)
		}
	}
	for _, d := range sorted[*networkingv1.DestinationRule](a.objects) {
		object := kube.KeyOf(d).String()
		a.host(object, d.Namespace, "spec.host", d.Spec.Host, true)
		s := a.service(d.Spec.Host, d.Namespace)
		if s == nil || a.Manifests && len(a.pods[s.Namespace]) == 0 {
			continue
		}
		for _, set := range d.Spec.Subsets {
			has := func(p *corev1.Pod) bool { return len(set.Labels) == 0 || selects(set.Labels, p.Labels) }
			if len(s.Spec.Selector) > 0 && !slices.ContainsFunc(a.matched(s.Namespace, s.Spec.Selector), has) {
				a.add("AMB0604", object, "subset %s: no pod of Service %s has its labels", set.Name, kube.KeyOf(s).Name)
			}
		}
	}
	for _, k := range a.objects.Keys() {
		for _, p := range kube.ParentRefs(a.objects.Lookup(k)) {
			namespace := k.Namespace
			if p.Namespace != nil {
				namespace = string(*p.Namespace)
			}
			if (p.Kind == nil || *p.Kind == "Gateway") && kube.Get[*gatewayv1.Gateway](a.objects, namespace, string(p.Name)) == nil {
				a.add("AMB0606", k.String(), "Gateway %s/%s does not exist", namespace, p.Name)
			}
		}
	}
}

// addresses finds those that several Services or ServiceEntries have.
func (a *analysis) addresses() {
	owners := map[netip.Prefix][]string{}
	own := func(text string, k kube.Key) {
		if p, err := kube.ParseCIDR(text); err == nil && !slices.Contains(owners[p], k.String()) {
			owners[p] = append(owners[p], k.String())
		}
	}
	for _, s := range sorted[*corev1.Service](a.objects) {
		for _, ip := range s.Spec.ClusterIPs {
			own(ip, kube.KeyOf(s))
		}
	}
	for _, e := range sorted[*networkingv1.ServiceEntry](a.objects) {
		for _, ip := range e.Spec.Addresses {
			own(ip, kube.KeyOf(e))
		}
	}
	for p, list := range owners {
		text := p.String()
		if p.IsSingleIP() {
			text = p.Addr().String()
		}
		for _, o := range list[1:] {
			a.add("AMB0612", o, "%s is also an address of %s", text, list[0])
		}
	}
}

func destinations(v *networking.VirtualService) (out []string) {
	for _, h := range v.Http {
		for _, r := range h.Route {
			out = append(out, r.GetDestination().GetHost())
		}
		for _, m := range h.Mirrors {
			out = append(out, m.GetDestination().GetHost())
		}
	}
	for _, t := range v.Tcp {
		for _, r := range t.Route {
			out = append(out, r.GetDestination().GetHost())
		}
	}
	return out
}

// host says when a host does not exist, or when an object for it has no effect since no waypoint is there to read it.
func (a *analysis) host(object, namespace, field, host string, bound bool) {
	if host == "" || strings.Contains(host, "*") {
		return
	}
	if !a.known(host, namespace) {
		a.add("AMB0605", object, "%s: there is no Service and no ServiceEntry with host %q", field, host)
		return
	}
	if s := a.service(host, namespace); bound && s != nil && !a.bound[kube.KeyOf(s)] {
		a.add("AMB0611", object, "%s: Service %s has no waypoint", field, kube.KeyOf(s).Name)
	}
}

// service is the Service that a host in an object of a namespace stands for, nil for none.
func (a *analysis) service(host, namespace string) *corev1.Service {
	parts := strings.Split(strings.TrimSuffix(strings.TrimSuffix(host, ".cluster.local"), ".svc"), ".")
	switch len(parts) {
	case 1:
		return kube.Get[*corev1.Service](a.objects, namespace, parts[0])
	case 2:
		return kube.Get[*corev1.Service](a.objects, parts[1], parts[0])
	}
	return nil
}

// known says whether a host exists.
func (a *analysis) known(host, namespace string) bool {
	if a.service(host, namespace) != nil {
		return true
	}
	for _, e := range sorted[*networkingv1.ServiceEntry](a.objects) {
		for _, h := range e.Spec.Hosts {
			if h == host || strings.HasPrefix(h, "*.") && strings.HasSuffix(host, h[1:]) {
				return true
			}
		}
	}
	return false
}
