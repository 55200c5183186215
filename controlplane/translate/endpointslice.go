package translate

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// sliceService is the Service that a slice belongs to; its name is empty when there is none.
func sliceService(s *discoveryv1.EndpointSlice) kube.Name {
	return kube.Name{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
}

// slicePods lists the pods that a slice names.
func slicePods(s *discoveryv1.EndpointSlice) []kube.Name {
	var pods []kube.Name
	for _, e := range s.Endpoints {
		if r := e.TargetRef; r != nil && r.Kind == "Pod" && (r.Namespace == "" || r.Namespace == s.Namespace) {
			pods = append(pods, kube.Name{Namespace: s.Namespace, Name: r.Name})
		}
	}
	return pods
}

// endpointSlice makes the workloads of endpoints that are no pods: addresses that somebody wrote by hand, or the API
// server's. Pods are translated from their own objects.
func (t *Translator) endpointSlice(it *item) {
	k := it.key
	s := kube.Get[*discoveryv1.EndpointSlice](t.objects, k.Namespace, k.Name.Name)
	if s == nil || s.AddressType == discoveryv1.AddressTypeFQDN {
		return
	}
	name := sliceService(s)
	svc := kube.Get[*corev1.Service](t.objects, name.Namespace, name.Name)
	if svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	ports := slicePorts(s, svc)
	seen := map[string]bool{}
	for _, e := range s.Endpoints {
		if (e.TargetRef != nil && e.TargetRef.Kind == "Pod") || len(e.Addresses) == 0 || seen[e.Addresses[0]] {
			continue
		}
		seen[e.Addresses[0]] = true
		w := &workloadpb.Workload{
			Uid:  t.cfg.ClusterID + "/discovery.k8s.io/EndpointSlice/" + k.Namespace + "/" + k.Name.Name + "/" + e.Addresses[0],
			Name: k.Name.Name, Namespace: k.Namespace, Network: t.network, ClusterId: t.cfg.ClusterID, TrustDomain: t.trustDomain(),
			NetworkMode: workloadpb.NetworkMode_HOST_NETWORK,
			Services:    map[string]*workloadpb.PortList{k.Namespace + "/" + t.serviceHost(svc): ports},
		}
		for _, a := range e.Addresses {
			if ip, err := netip.ParseAddr(a); err == nil {
				w.Addresses = append(w.Addresses, ip.AsSlice())
			}
		}
		if c := e.Conditions; c.Ready != nil && !*c.Ready {
			w.Status = workloadpb.WorkloadStatus_UNHEALTHY
			if c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating {
				setTerminating(w)
			}
		}
		it.addresses = append(it.addresses, t.workloadResource(w))
	}
}

// slicePorts joins the TCP ports of a slice to those of its Service by name.
func slicePorts(s *discoveryv1.EndpointSlice, svc *corev1.Service) *workloadpb.PortList {
	list := &workloadpb.PortList{}
	for _, p := range s.Ports {
		if p.Port == nil || (p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP) {
			continue
		}
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		for _, sp := range svc.Spec.Ports {
			if sp.Name == name && sp.Protocol == corev1.ProtocolTCP {
				list.Ports = append(list.Ports, &workloadpb.Port{ServicePort: uint32(sp.Port), TargetPort: uint32(*p.Port)})
			}
		}
	}
	return list
}
