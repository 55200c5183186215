package translate

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/workload"
)

const (
	annotationRedirection = "ambient.istio.io/redirection"
	annotationSidecar     = "sidecar.istio.io/status"
	labelTunnel           = "networking.istio.io/tunnel"
	labelMode             = "istio.io/dataplane-mode"
	modeAmbient           = "ambient"
	modeNone              = "none"
)

// locality is where a node is.
type locality struct {
	region, zone, subzone string
}

func localityOf(n *corev1.Node) locality {
	if n == nil {
		return locality{}
	}
	return locality{n.Labels[corev1.LabelTopologyRegion], n.Labels[corev1.LabelTopologyZone], n.Labels["topology.istio.io/subzone"]}
}

// parseLocality reads "region/zone/subzone".
func parseLocality(s string) locality {
	var l locality
	parts := strings.SplitN(s, "/", 3)
	for i, to := range []*string{&l.region, &l.zone, &l.subzone} {
		if i < len(parts) {
			*to = parts[i]
		}
	}
	return l
}

func (l locality) message() *workloadpb.Locality {
	if l == (locality{}) {
		return nil
	}
	return &workloadpb.Locality{Region: l.region, Zone: l.zone, Subzone: l.subzone}
}

// trustDomain is left empty for the default one (controlplane.md 1.3).
func (t *Translator) trustDomain() string {
	if t.cfg.TrustDomain == "cluster.local" {
		return ""
	}
	return t.cfg.TrustDomain
}

// workloadResource makes the resource of a workload.
func (t *Translator) workloadResource(w *workloadpb.Workload) *Resource {
	var aliases []string
	for _, a := range w.Addresses {
		// The address of a host network pod is its node's and names no workload.
		if ip, ok := netip.AddrFromSlice(a); ok && w.NetworkMode != workloadpb.NetworkMode_HOST_NETWORK {
			aliases = append(aliases, w.Network+"/"+ip.String())
		}
	}
	return newResource(w.Uid, &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}}, aliases...)
}

func (t *Translator) pod(p *corev1.Pod, it *item) {
	k := it.key
	if p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded || len(p.Status.PodIPs) == 0 {
		return
	}
	w := &workloadpb.Workload{
		Uid:  t.cfg.ClusterID + "//Pod/" + k.Namespace + "/" + k.Name.Name,
		Name: k.Name.Name, Namespace: k.Namespace, Network: t.network, ClusterId: t.cfg.ClusterID, TrustDomain: t.trustDomain(),
		ServiceAccount: p.Spec.ServiceAccountName, Node: p.Spec.NodeName,
		WorkloadType: workloadpb.WorkloadType_POD, WorkloadName: t.workloadName(p, it),
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			w.Addresses = append(w.Addresses, a.AsSlice())
		}
	}
	switch {
	case !ready(p):
		w.Status = workloadpb.WorkloadStatus_UNHEALTHY
	case p.DeletionTimestamp != nil:
		setTerminating(w)
	}
	if p.Spec.HostNetwork {
		w.NetworkMode = workloadpb.NetworkMode_HOST_NETWORK
	}
	if p.Spec.NodeName != "" {
		it.read(kube.Key{Kind: kube.KindNode, Name: kube.Name{Name: p.Spec.NodeName}})
		w.Locality = localityOf(kube.Get[*corev1.Node](t.objects, "", p.Spec.NodeName)).message()
	}
	setCanonical(w, p.Labels)
	setTunnel(w, p)
	if p.Status.Phase == corev1.PodPending && t.toBeCaptured(p, it) {
		w.TunnelProtocol = workloadpb.TunnelProtocol_HBONE
	}
	b, tunnel := t.bindWorkload(p, it)
	w.Waypoint, w.ApplicationTunnel = b.address(), tunnel
	if b.refusal != nil {
		it.problem(kube.Warning, "metadata.labels["+labelUseWaypoint+"]", b.refusal.Reason+": "+b.refusal.Message, "")
	}
	members := t.members(k, p.Labels)
	w.Services = podServices(p, members)
	w.AuthorizationPolicies = t.workloadPolicies(k.Namespace, p.Labels, t.behindWaypoint(b, members, it))
	it.addresses = append(it.addresses, t.workloadResource(w))
}

// setTerminating says that a workload takes traffic only where nothing else does.
func setTerminating(w *workloadpb.Workload) {
	w.Status = workloadpb.WorkloadStatus_UNHEALTHY
	w.Extensions = append(w.Extensions, &workloadpb.Extension{Name: workload.ExtensionTerminating})
}

// ready says whether a pod can serve, possibly until it ends.
func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// setCanonical fills in the canonical name and revision.
func setCanonical(w *workloadpb.Workload, labels map[string]string) {
	w.CanonicalName, w.CanonicalRevision = w.WorkloadName, "latest"
	first := func(to *string, names ...string) {
		for _, n := range names {
			if v := labels[n]; v != "" {
				*to = v
				return
			}
		}
	}
	first(&w.CanonicalName, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
	first(&w.CanonicalRevision, "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
}

// setTunnel says how the workload is reached: HBONE when the node agent captured it, or when it speaks HBONE itself.
func setTunnel(w *workloadpb.Workload, o metav1.Object) {
	if o.GetAnnotations()[annotationRedirection] == "enabled" {
		w.TunnelProtocol = workloadpb.TunnelProtocol_HBONE
	}
	if o.GetLabels()[labelTunnel] == "http" {
		w.TunnelProtocol, w.NativeTunnel = workloadpb.TunnelProtocol_HBONE, true
	}
}

// toBeCaptured says whether a pod's labels, or its namespace's, put it into the mesh. Until it runs nothing listens in it,
// and when it runs the node agent has captured it: a client that knew it as plaintext would, in the moment between the two,
// send in the clear what the mesh promised to encrypt.
func (t *Translator) toBeCaptured(p *corev1.Pod, it *item) bool {
	if _, sidecar := p.Annotations[annotationSidecar]; sidecar || p.Spec.HostNetwork {
		return false
	}
	switch p.Labels[labelMode] {
	case modeAmbient:
		return true
	case modeNone:
		return false
	}
	ns := t.namespace(p.Namespace, it)
	return ns != nil && ns.Labels[labelMode] == modeAmbient
}

// cronJobSuffix is the scheduled time that a CronJob appends to its Jobs' names.
var cronJobSuffix = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// workloadName is the name of what made the pod: the Deployment behind a ReplicaSet, the CronJob behind a Job, another
// controller, or the pod itself.
func (t *Translator) workloadName(p *corev1.Pod, it *item) string {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil {
		return p.Name
	}
	switch ref.Kind {
	case "ReplicaSet":
		name := kube.Name{Namespace: p.Namespace, Name: ref.Name}
		it.read(kube.Key{Kind: kube.KindReplicaSet, Name: name})
		if rs := kube.Get[*appsv1.ReplicaSet](t.objects, name.Namespace, name.Name); rs != nil {
			if owner := metav1.GetControllerOfNoCopy(rs); owner != nil {
				return owner.Name
			}
			return rs.Name
		}
		if hash := p.Labels["pod-template-hash"]; hash != "" {
			return strings.TrimSuffix(ref.Name, "-"+hash)
		}
	case "Job":
		if m := cronJobSuffix.FindStringSubmatch(ref.Name); m != nil {
			return m[1]
		}
	}
	return ref.Name
}

// member is a service that a workload belongs to.
type member struct {
	object kube.Object
	hosts  []string
}

// members lists the services that a workload belongs to, each with the hosts that the object defines.
func (t *Translator) members(k kube.Key, labels map[string]string) []member {
	keys := t.services.matching(k.Namespace, labels)
	if k.Kind == kube.KindPod {
		keys = append(keys, t.sliceServices(k)...)
	}
	var out []member
	for _, s := range keys {
		o := t.objects.Lookup(s)
		m := member{object: o}
		for _, h := range t.hostsOf(o) {
			if t.owner(s.Namespace, h) == s {
				m.hosts = append(m.hosts, h)
			}
		}
		if len(m.hosts) > 0 {
			out = append(out, m)
		}
	}
	return out
}

// sliceServices lists the Services without selector whose EndpointSlices name a pod.
func (t *Translator) sliceServices(pod kube.Key) []kube.Key {
	var keys []kube.Key
	for s := range t.podSlices[pod.Name] {
		slice := kube.Get[*discoveryv1.EndpointSlice](t.objects, s.Namespace, s.Name.Name)
		name := sliceService(slice)
		svc := kube.Get[*corev1.Service](t.objects, name.Namespace, name.Name)
		k := kube.Key{Kind: kube.KindService, Name: name}
		if svc != nil && len(svc.Spec.Selector) == 0 && !slices.Contains(keys, k) && t.targets(slice, pod) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, kube.Key.Compare)
	return keys
}

// targets says whether a slice names this very pod and not an earlier one of the same name.
func (t *Translator) targets(s *discoveryv1.EndpointSlice, pod kube.Key) bool {
	p := kube.Get[*corev1.Pod](t.objects, pod.Namespace, pod.Name.Name)
	return p != nil && slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool {
		r := e.TargetRef
		return r != nil && r.Kind == "Pod" && r.Name == p.Name && (r.Namespace == "" || r.Namespace == p.Namespace) &&
			(r.UID == "" || p.UID == "" || r.UID == p.UID)
	})
}

// behindWaypoint says whether a waypoint serves the workload: its own, that of a service it belongs to, or itself.
func (t *Translator) behindWaypoint(b binding, members []member, it *item) func() bool {
	return func() bool {
		return b.waypoint != nil || b.instance || slices.ContainsFunc(members, func(m member) bool {
			return t.bindService(m.object, it).waypoint != nil
		})
	}
}

// podServices says on which ports a pod serves its services.
func podServices(p *corev1.Pod, members []member) map[string]*workloadpb.PortList {
	return membership(members, func(name string) uint32 { return containerPort(p, name) }, func(name string) uint32 { return containerPort(p, name) })
}

// containerPort is the TCP port with a name among a pod's containers and sidecars, 0 when there is none.
func containerPort(p *corev1.Pod, name string) uint32 {
	find := func(c *corev1.Container) uint32 {
		for _, port := range c.Ports {
			if port.Name == name && port.Protocol == corev1.ProtocolTCP {
				return uint32(port.ContainerPort)
			}
		}
		return 0
	}
	for i := range p.Spec.Containers {
		if n := find(&p.Spec.Containers[i]); n != 0 {
			return n
		}
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if n := find(c); n != 0 {
			return n
		}
	}
	return 0
}

// membership makes the map of a workload's services. Target finds the port that a Service's named target port means;
// without one the workload does not serve that port. Override finds the workload's own port for a ServiceEntry's port
// name.
func membership(members []member, target, override func(name string) uint32) map[string]*workloadpb.PortList {
	if len(members) == 0 {
		return nil
	}
	services := map[string]*workloadpb.PortList{}
	for _, m := range members {
		list := &workloadpb.PortList{}
		switch o := m.object.(type) {
		case *corev1.Service:
			for i, p := range o.Spec.Ports {
				if shadowed(o.Spec.Ports, i) {
					continue
				}
				port := uint32(p.TargetPort.IntVal)
				if p.TargetPort.StrVal != "" {
					if port = target(p.TargetPort.StrVal); port == 0 {
						continue
					}
				}
				list.Ports = append(list.Ports, &workloadpb.Port{ServicePort: uint32(p.Port), TargetPort: port})
			}
		case *networkingv1.ServiceEntry:
			for _, p := range o.Spec.Ports {
				port := override(p.Name)
				if port == 0 {
					port = entryTarget(p)
				}
				list.Ports = append(list.Ports, &workloadpb.Port{ServicePort: p.Number, TargetPort: port})
			}
		}
		for _, h := range m.hosts {
			services[m.object.GetNamespace()+"/"+h] = list
		}
	}
	return services
}

func (t *Translator) workloadEntry(e *networkingv1.WorkloadEntry, it *item) {
	k := it.key
	labels := workloadLabels(e)
	w := &workloadpb.Workload{
		Uid:  t.cfg.ClusterID + "/networking.istio.io/WorkloadEntry/" + k.Namespace + "/" + k.Name.Name,
		Name: k.Name.Name, Namespace: k.Namespace, Network: t.network, ClusterId: t.cfg.ClusterID, TrustDomain: t.trustDomain(),
		ServiceAccount: e.Spec.ServiceAccount, Locality: parseLocality(e.Spec.Locality).message(),
		WorkloadType: workloadpb.WorkloadType_POD, WorkloadName: k.Name.Name,
	}
	if e.Spec.Network != "" {
		w.Network = e.Spec.Network
	}
	if e.Spec.Weight > 0 {
		w.Capacity = wrapperspb.UInt32(e.Spec.Weight)
	}
	if !setAddress(w, e.Spec.Address) {
		it.problem(kube.Ignored, "spec.address", fmt.Sprintf("address %q cannot be reached through the mesh", e.Spec.Address), "an address or a host name")
		return
	}
	setCanonical(w, labels)
	merged := metav1.ObjectMeta{Name: e.Name, Namespace: e.Namespace, Labels: labels, Annotations: e.Annotations}
	setTunnel(w, &merged)
	b, tunnel := t.bindWorkload(&merged, it)
	w.Waypoint, w.ApplicationTunnel = b.address(), tunnel
	it.status.Conditions = b.condition()
	members := t.members(k, labels)
	port := func(name string) uint32 { return e.Spec.Ports[name] }
	w.Services = membership(members, port, port)
	w.AuthorizationPolicies = t.workloadPolicies(k.Namespace, labels, t.behindWaypoint(b, members, it))
	it.addresses = append(it.addresses, t.workloadResource(w))
}

// setAddress fills in an address or a host name. It returns false for a unix socket and for nothing.
func setAddress(w *workloadpb.Workload, address string) bool {
	if a, err := netip.ParseAddr(address); err == nil {
		w.Addresses = [][]byte{a.AsSlice()}
		return true
	}
	if address == "" || strings.HasPrefix(address, "unix://") {
		return false
	}
	w.Hostname = address
	return true
}
