package envoy

import (
	"net/netip"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// fixtures are what translate makes of Services, ServiceEntries and Pods, as far as the cases need it: every object of
// namespace demo is bound to the waypoint unless its label says none.
func fixtures(set *kube.Objects, waypoint *workloadpb.GatewayAddress) []*workloadpb.Address {
	var out []*workloadpb.Address
	bound := func(namespace string, labels map[string]string) *workloadpb.GatewayAddress {
		if namespace != "demo" || labels["istio.io/use-waypoint"] == "none" {
			return nil
		}
		return waypoint
	}
	add := func(m *workloadpb.Service) {
		out = append(out, &workloadpb.Address{Type: &workloadpb.Address_Service{Service: m}})
	}
	for s := range kube.List[*corev1.Service](set) {
		m := &workloadpb.Service{Name: s.Name, Namespace: s.Namespace, Hostname: s.Name + "." + s.Namespace + ".svc.cluster.local", Waypoint: bound(s.Namespace, s.Labels), Canonical: true}
		for _, ip := range s.Spec.ClusterIPs {
			m.Addresses = append(m.Addresses, &workloadpb.NetworkAddress{Address: netip.MustParseAddr(ip).AsSlice()})
		}
		if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
			m.Extensions = append(m.Extensions, &workloadpb.Extension{Name: workload.ExtensionClientAffinity})
		}
		if s.Spec.TrafficDistribution != nil {
			m.LoadBalancing = &workloadpb.LoadBalancing{Mode: workloadpb.LoadBalancing_FAILOVER, RoutingPreference: []workloadpb.LoadBalancing_Scope{
				workloadpb.LoadBalancing_NETWORK, workloadpb.LoadBalancing_REGION, workloadpb.LoadBalancing_ZONE,
			}}
		}
		add(m)
	}
	for e := range kube.List[*networkingv1.ServiceEntry](set) {
		for _, h := range e.Spec.Hosts {
			m := &workloadpb.Service{Name: e.Name, Namespace: e.Namespace, Hostname: h, Waypoint: bound(e.Namespace, e.Labels), Canonical: true}
			for _, a := range e.Spec.Addresses {
				m.Addresses = append(m.Addresses, &workloadpb.NetworkAddress{Address: netip.MustParseAddr(a).AsSlice()})
			}
			add(m)
		}
	}
	for p := range kube.List[*corev1.Pod](set) {
		w := &workloadpb.Workload{
			Uid: "Kubernetes//Pod/" + p.Namespace + "/" + p.Name, Name: p.Name, Namespace: p.Namespace, WorkloadName: p.Name, ClusterId: "Kubernetes",
			CanonicalName: p.Labels["app"], Node: p.Spec.NodeName, ServiceAccount: p.Spec.ServiceAccountName,
			Addresses: [][]byte{netip.MustParseAddr(p.Status.PodIP).AsSlice()}, TunnelProtocol: workloadpb.TunnelProtocol_HBONE,
			Services: map[string]*workloadpb.PortList{},
			Locality: &workloadpb.Locality{Region: p.Annotations["region"], Zone: p.Annotations["zone"]},
		}
		if p.DeletionTimestamp != nil {
			w.Status = workloadpb.WorkloadStatus_UNHEALTHY
			w.Extensions = append(w.Extensions, &workloadpb.Extension{Name: workload.ExtensionTerminating})
		}
		for s := range kube.List[*corev1.Service](set) {
			if s.Namespace != p.Namespace || len(s.Spec.Selector) == 0 || !selects(s.Spec.Selector, p.Labels) {
				continue
			}
			list := &workloadpb.PortList{}
			for _, port := range s.Spec.Ports {
				list.Ports = append(list.Ports, &workloadpb.Port{ServicePort: uint32(port.Port), TargetPort: uint32(port.TargetPort.IntVal)})
			}
			w.Services[s.Namespace+"/"+s.Name+".demo.svc.cluster.local"] = list
		}
		out = append(out, &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}})
	}
	return out
}
