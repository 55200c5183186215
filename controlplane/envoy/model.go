package envoy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// protocol is what a service's port speaks.
type protocol int

const (
	protoAuto protocol = iota // found out per connection
	protoTCP
	protoTLS
	protoHTTP
	protoHTTP2
	protoGRPC
	protoGRPCWeb
	protoUDP
)

func (p protocol) http() bool  { return p >= protoHTTP && p <= protoGRPCWeb }
func (p protocol) http2() bool { return p == protoHTTP2 || p == protoGRPC }

// port is a port of a service.
type port struct {
	name     string
	number   uint32
	protocol protocol
}

// service is a host that a Service or ServiceEntry defines.
type service struct {
	message *workloadpb.Service
	object  kube.Object
	key     kube.Key
	ports   []port
	// workloads are its endpoints, in order of uid.
	workloads []*workloadpb.Workload
}

func (s *service) host() string      { return s.message.Hostname }
func (s *service) namespace() string { return s.message.Namespace }

// entry is the ServiceEntry behind it, nil for a Service.
func (s *service) entry() *networkingv1.ServiceEntry {
	e, _ := s.object.(*networkingv1.ServiceEntry)
	return e
}

// shortName is how metadata name the service: a Service by its name, a ServiceEntry by its host.
func (s *service) shortName() string {
	if s.entry() != nil {
		return s.host()
	}
	return s.message.Name
}

func (s *service) resolution() networking.ServiceEntry_Resolution {
	if e := s.entry(); e != nil {
		return e.Spec.Resolution
	}
	return networking.ServiceEntry_STATIC
}

func (s *service) port(number uint32) (port, bool) {
	for _, p := range s.ports {
		if p.number == number {
			return p, true
		}
	}
	return port{}, false
}

// Index is one set of objects made ready. It is immutable; its methods may be called from any goroutine.
type Index struct {
	cfg     Config
	objects *kube.Objects
	mesh    meshSettings

	services        []*service            // in order of namespace and host
	byHost          map[string][]*service // the preferred one first
	byAddress       map[string][]*service // by the address of their waypoints
	workloads       map[string][]*workloadpb.Workload
	all             []*workloadpb.Workload          // in order of uid
	rules           []*networkingv1.DestinationRule // oldest first
	virtuals        []*networkingv1.VirtualService  // oldest first
	policies        []*securityv1.AuthorizationPolicy
	requests        []*securityv1.RequestAuthentication
	telemetry       []*telemetryv1.Telemetry
	backendPolicies []*gatewayv1.BackendTLSPolicy
	routes          map[kube.Key][]*attachedRoute // Gateway API routes by the Service or ServiceEntry they attach to
	routeFlaws      []kube.Problem
	filters         []*patchSet // EnvoyFilters, in the order in which they apply
}

// NewIndex makes an index of a set of objects and of the addresses that translate made of it.
func NewIndex(cfg Config, objects *kube.Objects, addresses []*workloadpb.Address) *Index {
	x := &Index{
		cfg: cfg.withDefaults(), objects: objects, byHost: map[string][]*service{}, byAddress: map[string][]*service{},
		workloads: map[string][]*workloadpb.Workload{},
	}
	x.mesh = x.readMesh()
	members := map[string][]*workloadpb.Workload{}
	for _, a := range addresses {
		if w := a.GetWorkload(); w != nil {
			x.all = append(x.all, w)
			for name := range w.Services {
				members[name] = append(members[name], w)
			}
			if at := addressKey(w.Waypoint); at != "" {
				x.workloads[at] = append(x.workloads[at], w)
			}
		} else if m := a.GetService(); m != nil {
			x.addService(m)
		}
	}
	byUID := func(a, b *workloadpb.Workload) int { return strings.Compare(a.Uid, b.Uid) }
	slices.SortFunc(x.all, byUID)
	for _, list := range x.workloads {
		slices.SortFunc(list, byUID)
	}
	slices.SortFunc(x.services, func(a, b *service) int {
		return cmp.Or(strings.Compare(a.namespace(), b.namespace()), strings.Compare(a.host(), b.host()))
	})
	for _, s := range x.services {
		s.workloads = members[s.namespace()+"/"+s.host()]
		slices.SortFunc(s.workloads, byUID)
		x.byHost[s.host()] = append(x.byHost[s.host()], s)
		waypoints := []*workloadpb.GatewayAddress{s.message.Waypoint}
		for _, w := range s.message.WeightedWaypoints {
			waypoints = append(waypoints, w.Destination)
		}
		for _, at := range slices.Compact(slices.Sorted(keysOf(waypoints))) {
			if at != "" {
				x.byAddress[at] = append(x.byAddress[at], s)
			}
		}
	}
	for _, list := range x.byHost {
		slices.SortStableFunc(list, func(a, b *service) int {
			if a.message.Canonical != b.message.Canonical {
				if a.message.Canonical {
					return -1
				}
				return 1
			}
			return 0
		})
	}
	x.rules = oldestFirst(kube.List[*networkingv1.DestinationRule](objects))
	x.virtuals = oldestFirst(kube.List[*networkingv1.VirtualService](objects))
	x.policies = oldestFirst(kube.List[*securityv1.AuthorizationPolicy](objects))
	x.requests = oldestFirst(kube.List[*securityv1.RequestAuthentication](objects))
	x.telemetry = oldestFirst(kube.List[*telemetryv1.Telemetry](objects))
	x.backendPolicies = oldestFirst(kube.List[*gatewayv1.BackendTLSPolicy](objects))
	x.attachRoutes()
	x.readFilters()
	return x
}

func keysOf(list []*workloadpb.GatewayAddress) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, a := range list {
			if !yield(addressKey(a)) {
				return
			}
		}
	}
}

// oldestFirst lists objects by creation time, then namespace and name: the oldest wins a conflict.
func oldestFirst[T kube.Object](list func(func(T) bool)) []T {
	var out []T
	for o := range list {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b T) int { return compareAge(a, b) })
	return out
}

func compareAge(a, b metav1.Object) int {
	ta, tb := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	return cmp.Or(ta.Compare(tb.Time), cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}

// addressKey is a text for an address of a waypoint, empty for none.
func addressKey(a *workloadpb.GatewayAddress) string {
	if h := a.GetHostname(); h != nil {
		return h.Namespace + "/" + h.Hostname
	}
	if n := a.GetAddress(); n != nil {
		if ip, ok := netip.AddrFromSlice(n.Address); ok {
			return ip.String()
		}
	}
	return ""
}

func (x *Index) addService(m *workloadpb.Service) {
	s := &service{message: m}
	if svc := kube.Get[*corev1.Service](x.objects, m.Namespace, m.Name); svc != nil && m.Hostname == m.Name+"."+m.Namespace+".svc."+x.cfg.ClusterDomain {
		s.object = svc
		for _, p := range svc.Spec.Ports {
			if proto := servicePortProtocol(p); proto != protoUDP {
				s.ports = append(s.ports, port{name: p.Name, number: uint32(p.Port), protocol: proto})
			}
		}
	} else if se := kube.Get[*networkingv1.ServiceEntry](x.objects, m.Namespace, m.Name); se != nil {
		s.object = se
		for _, p := range se.Spec.Ports {
			if proto := parseProtocol(p.Protocol); proto != protoUDP {
				s.ports = append(s.ports, port{name: p.Name, number: p.Number, protocol: proto})
			}
		}
	} else {
		return
	}
	s.key = kube.KeyOf(s.object)
	slices.SortFunc(s.ports, func(a, b port) int { return cmp.Compare(a.number, b.number) })
	x.services = append(x.services, s)
}

// servicePortProtocol is what appProtocol or, without it, the port's name says.
func servicePortProtocol(p corev1.ServicePort) protocol {
	if p.Protocol == corev1.ProtocolUDP || p.Protocol == corev1.ProtocolSCTP {
		return protoUDP
	}
	if p.AppProtocol != nil {
		return parseProtocol(*p.AppProtocol)
	}
	name := strings.ToLower(p.Name)
	if name == "grpc-web" || strings.HasPrefix(name, "grpc-web-") {
		return protoGRPCWeb
	}
	name, _, _ = strings.Cut(name, "-")
	return parseProtocol(name)
}

func parseProtocol(s string) protocol {
	switch strings.ToLower(s) {
	case "http", "kubernetes.io/ws":
		return protoHTTP
	case "http2", "kubernetes.io/h2c":
		return protoHTTP2
	case "grpc":
		return protoGRPC
	case "grpc-web":
		return protoGRPCWeb
	case "tcp", "mongo", "redis", "mysql":
		return protoTCP
	case "tls", "https", "kubernetes.io/wss":
		return protoTLS
	case "udp":
		return protoUDP
	}
	return protoAuto
}

// Waypoints lists the Gateways that are served, in order: those of class istio-waypoint and all with an HBONE listener.
func (x *Index) Waypoints() []kube.Name {
	var out []kube.Name
	for g := range kube.List[*gatewayv1.Gateway](x.objects) {
		hbone := slices.ContainsFunc(g.Spec.Listeners, func(l gatewayv1.Listener) bool { return l.Protocol == "HBONE" })
		if g.Spec.GatewayClassName == kube.WaypointClass || hbone {
			out = append(out, kube.Name{Namespace: g.Namespace, Name: g.Name})
		}
	}
	slices.SortFunc(out, func(a, b kube.Name) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out
}

// bound lists the services and workloads that use a waypoint.
func (x *Index) bound(gateway kube.Name) (services []*service, workloads []*workloadpb.Workload) {
	g := kube.Get[*gatewayv1.Gateway](x.objects, gateway.Namespace, gateway.Name)
	if g == nil {
		return nil, nil
	}
	seen := map[*service]bool{}
	for _, a := range g.Status.Addresses {
		at := a.Value
		if a.Type != nil && *a.Type == gatewayv1.HostnameAddressType {
			at = g.Namespace + "/" + a.Value
		} else if ip, err := netip.ParseAddr(a.Value); err == nil {
			at = ip.String()
		}
		for _, s := range x.byAddress[at] {
			if !seen[s] {
				seen[s] = true
				services = append(services, s)
			}
		}
		workloads = append(workloads, x.workloads[at]...)
	}
	slices.SortFunc(services, func(a, b *service) int {
		return cmp.Or(strings.Compare(a.namespace(), b.namespace()), strings.Compare(a.host(), b.host()))
	})
	return services, workloads
}

// resolveHost makes a full name of a host that is written in an object of a namespace: a name without dots is that of a
// Service of the namespace.
func (x *Index) resolveHost(host, namespace string) string {
	if strings.Contains(host, ".") || strings.HasPrefix(host, "*") || host == "" {
		return host
	}
	return host + "." + namespace + ".svc." + x.cfg.ClusterDomain
}

// service finds the service of a host, as seen from a namespace: its own before others.
func (x *Index) service(host, namespace string) *service {
	list := x.byHost[host]
	for _, s := range list {
		if s.namespace() == namespace {
			return s
		}
	}
	if len(list) > 0 {
		return list[0]
	}
	return nil
}

// labelsOf are the labels by which a workload is in a subset.
func (x *Index) labelsOf(w *workloadpb.Workload) map[string]string {
	parts := strings.Split(w.Uid, "/")
	switch {
	case len(parts) == 5 && parts[2] == "Pod":
		if p := kube.Get[*corev1.Pod](x.objects, parts[3], parts[4]); p != nil {
			return p.Labels
		}
	case len(parts) == 5 && parts[2] == "WorkloadEntry":
		if e := kube.Get[*networkingv1.WorkloadEntry](x.objects, parts[3], parts[4]); e != nil {
			labels := map[string]string{}
			for k, v := range e.Spec.Labels {
				labels[k] = v
			}
			for k, v := range e.Labels {
				labels[k] = v
			}
			return labels
		}
	case len(parts) >= 6 && parts[2] == "ServiceEntry":
		e := kube.Get[*networkingv1.ServiceEntry](x.objects, parts[3], parts[4])
		address := strings.Join(parts[5:], "/")
		if e == nil {
			return nil
		}
		for _, end := range e.Spec.Endpoints {
			if end.Address == address {
				return end.Labels
			}
		}
	}
	return nil
}

// hostMatches says whether a pattern such as *.example.com, or a name, covers a host.
func hostMatches(pattern, host string) bool {
	if pattern == "*" || pattern == host {
		return true
	}
	suffix, ok := strings.CutPrefix(pattern, "*")
	return ok && strings.HasSuffix(host, suffix) && len(host) > len(suffix)
}

// visible says whether an object's exportTo lets a namespace see it.
func visible(exportTo []string, own, namespace string) bool {
	if len(exportTo) == 0 {
		return true
	}
	for _, e := range exportTo {
		if e == "*" || e == namespace || e == "." && own == namespace {
			return true
		}
	}
	return false
}
