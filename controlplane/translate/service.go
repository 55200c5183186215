package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/workload"
)

const annotationDistribution = "networking.istio.io/traffic-distribution"

// serviceHost is the host name of a Service.
func (t *Translator) serviceHost(s *corev1.Service) string {
	return s.Name + "." + s.Namespace + ".svc." + t.cfg.ClusterDomain
}

// owner is the object that defines a host in a namespace: the Service, else the oldest ServiceEntry (controlplane.md 1.5).
func (t *Translator) owner(namespace, host string) kube.Key {
	var best kube.Key
	for k := range t.hosts[host][namespace] {
		if best.Kind == "" || t.prefer(k, best) {
			best = k
		}
	}
	return best
}

// prefer says whether an object comes before another that defines the same host.
func (t *Translator) prefer(a, b kube.Key) bool {
	if a.Kind != b.Kind {
		return a.Kind == kube.KindService
	}
	return older(t.objects.Lookup(a), t.objects.Lookup(b))
}

// older orders objects by creation time, then namespace and name.
func older(a, b metav1.Object) bool {
	ta, tb := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	return cmp.Or(ta.Compare(tb.Time), cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName())) < 0
}

// canonical says whether an object is the preferred one of all namespaces that define a host.
func (t *Translator) canonical(k kube.Key, host string) bool {
	for ns := range t.hosts[host] {
		if o := t.owner(ns, host); o != k && t.prefer(o, k) {
			return false
		}
	}
	return true
}

func (t *Translator) service(s *corev1.Service, it *item) {
	k := it.key
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	host := t.serviceHost(s)
	b := t.bindService(s, it)
	m := &workloadpb.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: host,
		Ports:              servicePorts(s),
		Waypoint:           b.address(),
		WeightedWaypoints:  b.weighted,
		IngressUseWaypoint: b.ingress,
		LoadBalancing:      t.serviceBalancing(s, it),
		IpFamilies:         families(s.Spec.IPFamilies),
		Canonical:          t.canonical(k, host),
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		m.Extensions = append(m.Extensions, &workloadpb.Extension{Name: workload.ExtensionClientAffinity})
	}
	for _, ip := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			m.Addresses = append(m.Addresses, &workloadpb.NetworkAddress{Network: t.network, Address: a.AsSlice()})
		}
	}
	if len(s.Spec.ClusterIPs) == 0 {
		it.problem(kube.Warning, "spec.clusterIP", "no cluster IP: the service is treated as headless; an API server would have allocated an address", "an address, or None")
	}
	it.status.Conditions = b.condition()
	it.addresses = append(it.addresses, t.serviceResource(m))
}

// serviceResource makes the resource of a service.
func (t *Translator) serviceResource(m *workloadpb.Service) *Resource {
	var aliases []string
	for _, a := range m.Addresses {
		ip, _ := netip.AddrFromSlice(a.Address)
		alias := a.Network + "/" + ip.String()
		if a.Length != nil {
			alias += "/" + strconv.FormatUint(uint64(*a.Length), 10)
		}
		aliases = append(aliases, alias)
	}
	return newResource(m.Namespace+"/"+m.Hostname, &workloadpb.Address{Type: &workloadpb.Address_Service{Service: m}}, aliases...)
}

// servicePorts lists the ports of a Service. A named target port is 0: each workload says the number. Of a port number
// used with several protocols the TCP port is listed, which is the only one that the mesh carries.
func servicePorts(s *corev1.Service) []*workloadpb.Port {
	var ports []*workloadpb.Port
	for i, p := range s.Spec.Ports {
		if shadowed(s.Spec.Ports, i) {
			continue
		}
		ports = append(ports, &workloadpb.Port{ServicePort: uint32(p.Port), TargetPort: uint32(p.TargetPort.IntVal), AppProtocol: servicePortProtocol(p)})
	}
	return ports
}

// shadowed says whether a port that is not TCP shares its number with one that is listed.
func shadowed(ports []corev1.ServicePort, i int) bool {
	return ports[i].Protocol != corev1.ProtocolTCP && slices.ContainsFunc(ports, func(p corev1.ServicePort) bool {
		return p.Port == ports[i].Port && (p.Protocol == corev1.ProtocolTCP || p.Protocol < ports[i].Protocol)
	})
}

// servicePortProtocol is what appProtocol or, without it, the first part of the port's name says.
func servicePortProtocol(p corev1.ServicePort) workloadpb.AppProtocol {
	if p.Protocol != corev1.ProtocolTCP {
		return workloadpb.AppProtocol_UNKNOWN
	}
	if p.AppProtocol != nil {
		return appProtocol(*p.AppProtocol)
	}
	name := strings.ToLower(p.Name)
	if name == "grpc-web" || strings.HasPrefix(name, "grpc-web-") {
		return workloadpb.AppProtocol_UNKNOWN
	}
	name, _, _ = strings.Cut(name, "-")
	return appProtocol(name)
}

func appProtocol(s string) workloadpb.AppProtocol {
	switch strings.ToLower(s) {
	case "http", "kubernetes.io/ws":
		return workloadpb.AppProtocol_HTTP11
	case "http2", "kubernetes.io/h2c":
		return workloadpb.AppProtocol_HTTP2
	case "grpc":
		return workloadpb.AppProtocol_GRPC
	case "tcp":
		return workloadpb.AppProtocol_TCP
	case "tls", "https", "kubernetes.io/wss":
		return workloadpb.AppProtocol_TLS
	}
	return workloadpb.AppProtocol_UNKNOWN
}

func families(f []corev1.IPFamily) workloadpb.IPFamilies {
	switch {
	case len(f) == 0:
		return workloadpb.IPFamilies_AUTOMATIC
	case len(f) > 1:
		return workloadpb.IPFamilies_DUAL
	case f[0] == corev1.IPv6Protocol:
		return workloadpb.IPFamilies_IPV6_ONLY
	}
	return workloadpb.IPFamilies_IPV4_ONLY
}

// serviceBalancing is nil for a service that any healthy endpoint may serve.
func (t *Translator) serviceBalancing(s *corev1.Service, it *item) *workloadpb.LoadBalancing {
	var lb *workloadpb.LoadBalancing
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		lb = &workloadpb.LoadBalancing{
			RoutingPreference: []workloadpb.LoadBalancing_Scope{workloadpb.LoadBalancing_NODE},
			Mode:              workloadpb.LoadBalancing_STRICT,
		}
	} else {
		want := ""
		if s.Spec.TrafficDistribution != nil {
			want = *s.Spec.TrafficDistribution
		}
		lb = t.distribution(s, want, it)
	}
	if s.Spec.PublishNotReadyAddresses {
		if lb == nil {
			lb = &workloadpb.LoadBalancing{}
		}
		lb.HealthPolicy = workloadpb.LoadBalancing_ALLOW_ALL
	}
	return lb
}

// distribution is the preference for near endpoints: the field, else the annotation of the object, else that of its
// namespace.
func (t *Translator) distribution(o metav1.Object, want string, it *item) *workloadpb.LoadBalancing {
	if want == "" {
		want = o.GetAnnotations()[annotationDistribution]
	}
	if want == "" {
		if ns := t.namespace(o.GetNamespace(), it); ns != nil {
			want = ns.Annotations[annotationDistribution]
		}
	}
	scopes := []workloadpb.LoadBalancing_Scope{workloadpb.LoadBalancing_NETWORK, workloadpb.LoadBalancing_REGION, workloadpb.LoadBalancing_ZONE}
	switch want {
	case "", "Any":
		return nil
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
	case corev1.ServiceTrafficDistributionPreferSameNode:
		scopes = append(scopes, workloadpb.LoadBalancing_SUBZONE, workloadpb.LoadBalancing_NODE)
	default:
		it.problem(kube.Warning, "metadata.annotations["+annotationDistribution+"]", fmt.Sprintf("unknown value %q has no effect", want), "PreferClose, PreferSameZone, PreferSameNode")
		return nil
	}
	return &workloadpb.LoadBalancing{RoutingPreference: scopes, Mode: workloadpb.LoadBalancing_FAILOVER}
}

// rival reports a ServiceEntry's host that another object of the namespace defines.
func rival(host string, owner kube.Key, it *item) {
	it.problem(kube.Ignored, "spec.hosts", fmt.Sprintf("host %q is defined by %s, which is used", host, owner), "")
}

// entryBalancing is serviceBalancing for a ServiceEntry.
func (t *Translator) entryBalancing(e *networkingv1.ServiceEntry, it *item) *workloadpb.LoadBalancing {
	if passthrough(e) {
		return &workloadpb.LoadBalancing{Mode: workloadpb.LoadBalancing_PASSTHROUGH, HealthPolicy: workloadpb.LoadBalancing_ALLOW_ALL}
	}
	return t.distribution(e, "", it)
}
