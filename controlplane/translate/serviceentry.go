package translate

import (
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// passthrough says whether connections go on to the address that the client dialled.
func passthrough(e *networkingv1.ServiceEntry) bool {
	return e.Spec.Resolution == networking.ServiceEntry_NONE
}

// wildcard says whether a host is a pattern.
func wildcard(host string) bool { return strings.HasPrefix(host, "*") }

// entryTarget is the port at the endpoint.
func entryTarget(p *networking.ServicePort) uint32 {
	if p.TargetPort != 0 {
		return p.TargetPort
	}
	return p.Number
}

func (t *Translator) serviceEntry(e *networkingv1.ServiceEntry, it *item) {
	k := it.key
	b := t.bindService(e, it)
	it.status.Conditions = b.condition()
	lb := t.entryBalancing(e, it)
	var own []string
	for _, h := range e.Spec.Hosts {
		if owner := t.owner(k.Namespace, h); owner != k {
			rival(h, owner, it)
			continue
		}
		own = append(own, h)
		m := &workloadpb.Service{
			Name: e.Name, Namespace: e.Namespace, Hostname: h,
			Addresses:          t.entryAddresses(e, h, it),
			SubjectAltNames:    e.Spec.SubjectAltNames,
			Waypoint:           b.address(),
			WeightedWaypoints:  b.weighted,
			IngressUseWaypoint: b.ingress,
			LoadBalancing:      lb,
			Canonical:          t.canonical(k, h),
		}
		for _, p := range e.Spec.Ports {
			m.Ports = append(m.Ports, &workloadpb.Port{ServicePort: p.Number, TargetPort: entryTarget(p), AppProtocol: entryProtocol(p.Protocol)})
		}
		it.addresses = append(it.addresses, t.serviceResource(m))
		if wildcard(h) && e.Spec.Resolution == networking.ServiceEntry_DYNAMIC_DNS && b.waypoint == nil && len(it.status.Conditions) < 2 {
			it.status.Conditions = append(it.status.Conditions, Condition{
				Type: "istio.io/WaypointMissing", Status: "True", Reason: "NoWaypointForWildcardService",
				Message: fmt.Sprintf("wildcard host %q with resolution DYNAMIC_DNS needs a waypoint: no connection can be made without one", h),
			})
		}
	}
	t.entryEndpoints(e, own, it)
}

func entryProtocol(s string) workloadpb.AppProtocol {
	switch strings.ToUpper(s) {
	case "HTTP":
		return workloadpb.AppProtocol_HTTP11
	case "HTTP2":
		return workloadpb.AppProtocol_HTTP2
	case "GRPC":
		return workloadpb.AppProtocol_GRPC
	case "TCP":
		return workloadpb.AppProtocol_TCP
	case "TLS", "HTTPS":
		return workloadpb.AppProtocol_TLS
	}
	return workloadpb.AppProtocol_UNKNOWN
}

// entryAddresses are the addresses of a host: those of the spec, else those of the status, else automatic ones.
func (t *Translator) entryAddresses(e *networkingv1.ServiceEntry, host string, it *item) []*workloadpb.NetworkAddress {
	var out []*workloadpb.NetworkAddress
	for _, s := range e.Spec.Addresses {
		if p, err := kube.ParseCIDR(s); err == nil {
			out = append(out, t.networkAddress(p))
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, v := range t.vips[it.key][host] {
		out = append(out, t.networkAddress(v.prefix))
		if v.allocated {
			it.status.Addresses = append(it.status.Addresses, HostAddress{Host: host, Address: v.prefix.Addr().String()})
		}
	}
	if len(out) == 0 && wantsVIP(e, host) {
		it.problem(kube.Warning, "spec.hosts", fmt.Sprintf("no automatic address is left for host %q", host), "spec.addresses")
	}
	return out
}

func (t *Translator) networkAddress(p netip.Prefix) *workloadpb.NetworkAddress {
	a := &workloadpb.NetworkAddress{Network: t.network, Address: p.Addr().AsSlice()}
	if !p.IsSingleIP() {
		length := uint32(p.Bits())
		a.Length = &length
	}
	return a
}

// entryEndpoints makes the workloads of inline endpoints, or of the hosts themselves when they are to be resolved. Those
// that a selector finds have objects of their own.
func (t *Translator) entryEndpoints(e *networkingv1.ServiceEntry, hosts []string, it *item) {
	switch {
	case len(e.Spec.GetWorkloadSelector().GetLabels()) > 0 || len(hosts) == 0:
	case len(e.Spec.Endpoints) > 0:
		seen := map[string]bool{}
		for i, w := range e.Spec.Endpoints {
			at := fmt.Sprintf("spec.endpoints[%d].address", i)
			if seen[w.Address] {
				it.problem(kube.Ignored, at, fmt.Sprintf("address %q appears twice", w.Address), "each address once")
				continue
			}
			seen[w.Address] = true
			if !t.entryEndpoint(e, w, hosts, it) {
				it.problem(kube.Ignored, at, fmt.Sprintf("address %q cannot be reached through the mesh", w.Address), "an address or a host name")
			}
		}
	case e.Spec.Resolution == networking.ServiceEntry_DNS, e.Spec.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN,
		e.Spec.Resolution == networking.ServiceEntry_DYNAMIC_DNS:
		for _, h := range hosts {
			t.entryEndpoint(e, &networking.WorkloadEntry{Address: h}, []string{h}, it)
		}
	}
}

// entryEndpoint makes the workload of one endpoint. Policies and canonical name go by the labels of the entry, not by
// those of the endpoint (controlplane.md 1.4). It returns false for an address that is of no use.
func (t *Translator) entryEndpoint(e *networkingv1.ServiceEntry, end *networking.WorkloadEntry, hosts []string, it *item) bool {
	k := it.key
	w := &workloadpb.Workload{
		Uid:  t.cfg.ClusterID + "/networking.istio.io/ServiceEntry/" + k.Namespace + "/" + k.Name.Name + "/" + end.Address,
		Name: k.Name.Name, Namespace: k.Namespace, Network: t.network, ClusterId: t.cfg.ClusterID, TrustDomain: t.trustDomain(),
		ServiceAccount: end.ServiceAccount, Locality: parseLocality(end.Locality).message(),
		WorkloadType: workloadpb.WorkloadType_POD, WorkloadName: k.Name.Name,
	}
	if end.Network != "" {
		w.Network = end.Network
	}
	if end.Weight > 0 {
		w.Capacity = wrapperspb.UInt32(end.Weight)
	}
	if !setAddress(w, end.Address) {
		return false
	}
	setCanonical(w, e.Labels)
	setTunnel(w, e)
	b, _ := t.bindWorkload(e, it)
	w.Waypoint = b.address()
	members := []member{{object: e, hosts: hosts}}
	w.Services = membership(members, nil, func(name string) uint32 { return end.Ports[name] })
	w.AuthorizationPolicies = t.workloadPolicies(k.Namespace, e.Labels, t.behindWaypoint(b, members, it))
	it.addresses = append(it.addresses, t.workloadResource(w))
	return true
}
