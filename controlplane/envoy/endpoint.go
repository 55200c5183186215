package envoy

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Place is where an instance of a waypoint runs. The zero value is nowhere known.
type Place struct {
	Region, Zone, Subzone, Node, Network string
}

// Endpoints are those of all clusters, as an instance at a place gets them, in order of cluster.
func (r *Resources) Endpoints(at Place) []Resource {
	b := &builder{Index: r.index}
	var out []Resource
	for _, e := range r.eds {
		out = append(out, NewResource(e.name, b.assignment(e, at)))
	}
	slices.SortFunc(out, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// located are endpoints of one locality.
type located struct {
	locality Place // region, zone and subzone only
	list     []*endpointv3.LbEndpoint
	weight   uint32
	network  string
	nodes    map[string]bool
}

// assignment lists the endpoints of a cluster by locality (3.7).
func (b *builder) assignment(e edsCluster, at Place) *endpointv3.ClusterLoadAssignment {
	groups := map[Place]*located{}
	byNode := perNode(e)
	for _, w := range b.serving(e, at) {
		target := targetPort(w, e)
		where := Place{Region: w.GetLocality().GetRegion(), Zone: w.GetLocality().GetZone(), Subzone: w.GetLocality().GetSubzone()}
		k := where
		if byNode {
			k.Node = w.Node
		}
		g := groups[k]
		if g == nil {
			g = &located{locality: where, nodes: map[string]bool{}, network: w.Network}
			groups[k] = g
		}
		g.nodes[w.Node] = true
		for _, end := range b.endpointsOf(w, e, target) {
			g.list = append(g.list, end)
			g.weight += end.LoadBalancingWeight.GetValue()
		}
	}
	a := &endpointv3.ClusterLoadAssignment{ClusterName: e.name}
	var order []*located
	for _, g := range groups {
		if len(g.list) > 0 {
			order = append(order, g)
		}
	}
	slices.SortFunc(order, func(a, b *located) int {
		return cmp.Or(strings.Compare(a.locality.Region, b.locality.Region), strings.Compare(a.locality.Zone, b.locality.Zone),
			strings.Compare(a.locality.Subzone, b.locality.Subzone), strings.Compare(firstNode(a), firstNode(b)))
	})
	for _, g := range order {
		a.Endpoints = append(a.Endpoints, &endpointv3.LocalityLbEndpoints{
			Locality:    &corev3.Locality{Region: g.locality.Region, Zone: g.locality.Zone, SubZone: g.locality.Subzone},
			LbEndpoints: g.list, LoadBalancingWeight: u32(g.weight),
		})
	}
	b.prioritise(a, order, e, at)
	return a
}

// serving are the workloads that requests go to. If none is left but those that are about to end, they serve until then, as with
// kube-proxy.
func (b *builder) serving(e edsCluster, at Place) (list []*workloadpb.Workload) {
	var last []*workloadpb.Workload
	for _, w := range e.service.workloads {
		if targetPort(w, e) == 0 || !selects(e.labels, b.labelsFor(w, e)) || !local(w, e, at) {
			continue
		}
		if healthy(w, e) {
			list = append(list, w)
		} else if workload.Extended(w.Extensions, workload.ExtensionTerminating) {
			last = append(last, w)
		}
	}
	if len(list) == 0 {
		return last
	}
	return list
}

func firstNode(g *located) string {
	if keys := sortedKeys(g.nodes); len(keys) > 0 {
		return keys[0]
	}
	return ""
}

// targetPort is the port of a workload behind a service's port, 0 when it does not serve it.
func targetPort(w *workloadpb.Workload, e edsCluster) uint32 {
	for _, p := range w.Services[e.service.namespace()+"/"+e.service.host()].GetPorts() {
		if p.ServicePort == e.port.number {
			return p.TargetPort
		}
	}
	return 0
}

func healthy(w *workloadpb.Workload, e edsCluster) bool {
	return w.Status == workloadpb.WorkloadStatus_HEALTHY || e.service.message.GetLoadBalancing().GetHealthPolicy() == workloadpb.LoadBalancing_ALLOW_ALL
}

// local holds to internalTrafficPolicy Local.
func local(w *workloadpb.Workload, e edsCluster, at Place) bool {
	lb := e.service.message.GetLoadBalancing()
	if lb.GetMode() != workloadpb.LoadBalancing_STRICT || at == (Place{}) {
		return true
	}
	for _, scope := range lb.RoutingPreference {
		if !near(scope, w, at) {
			return false
		}
	}
	return true
}

func near(scope workloadpb.LoadBalancing_Scope, w *workloadpb.Workload, at Place) bool {
	switch scope {
	case workloadpb.LoadBalancing_NETWORK:
		return w.Network == at.Network
	case workloadpb.LoadBalancing_REGION:
		return w.GetLocality().GetRegion() == at.Region
	case workloadpb.LoadBalancing_ZONE:
		return w.GetLocality().GetZone() == at.Zone
	case workloadpb.LoadBalancing_SUBZONE:
		return w.GetLocality().GetSubzone() == at.Subzone
	case workloadpb.LoadBalancing_NODE:
		return w.Node == at.Node
	}
	return true
}

// selects says whether labels have every pair of a selector.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func (b *builder) labelsFor(w *workloadpb.Workload, e edsCluster) map[string]string {
	if len(e.labels) == 0 {
		return nil
	}
	return b.labelsOf(w)
}

// endpointsOf are the endpoints of a workload: one, with its first address, or its host name.
func (b *builder) endpointsOf(w *workloadpb.Workload, e edsCluster, target uint32) []*endpointv3.LbEndpoint {
	host := w.Hostname
	if len(w.Addresses) > 0 {
		ip, ok := netip.AddrFromSlice(w.Addresses[0])
		if !ok {
			return nil
		}
		host = ip.String()
	}
	if host == "" {
		return nil
	}
	end := &endpointv3.LbEndpoint{
		HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(host, target)}},
		Metadata:       &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": structOf(map[string]any{"workload": b.identity(w)})}},
	}
	end.LoadBalancingWeight = u32(1)
	if w.Capacity.GetValue() > 0 {
		end.LoadBalancingWeight = u32(w.Capacity.GetValue())
	}
	if e.service.entry() == nil {
		end.HealthStatus = corev3.HealthStatus_HEALTHY
	}
	if w.TunnelProtocol == workloadpb.TunnelProtocol_HBONE && len(w.Addresses) > 0 {
		at := net.JoinHostPort(host, portText(target))
		end.GetEndpoint().Address = internalAddress(nameConnectOriginate, at)
		end.Metadata.FilterMetadata[originalDst] = structOf(map[string]any{"local": at})
		if e.outbound {
			end.Metadata.FilterMetadata["envoy.transport_socket_match"] = structOf(map[string]any{"tunnel": "http"})
		}
	}
	return []*endpointv3.LbEndpoint{end}
}

// identity is what the waypoint tells of an endpoint: workload, namespace, canonical name and revision, cluster. What
// istiod knows of a bare address of an EndpointSlice is the cluster only.
func (b *builder) identity(w *workloadpb.Workload) string {
	if strings.Contains(w.Uid, "/discovery.k8s.io/EndpointSlice/") {
		return ";;;;" + w.ClusterId
	}
	labels := b.labelsOf(w)
	revision := ""
	for _, l := range []string{"service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"} {
		if v := labels[l]; v != "" {
			revision = v
			break
		}
	}
	name, canonical := w.WorkloadName, w.CanonicalName
	if i := b.inlineIndex(w); i >= 0 {
		// Endpoints that are written in a ServiceEntry are numbered.
		name = fmt.Sprintf("%s-%d", w.WorkloadName, i)
		canonical = name
	}
	return strings.Join([]string{name, w.Namespace, canonical, revision, w.ClusterId}, ";")
}

// inlineIndex is the place of a workload among the endpoints of its ServiceEntry, -1 when it is none of them.
func (b *builder) inlineIndex(w *workloadpb.Workload) int {
	parts := strings.SplitN(w.Uid, "/", 6)
	if len(parts) != 6 || parts[2] != "ServiceEntry" {
		return -1
	}
	e := kube.Get[*networkingv1.ServiceEntry](b.objects, parts[3], parts[4])
	if e == nil {
		return -1
	}
	for i, end := range e.Spec.Endpoints {
		if end.Address == parts[5] {
			return i
		}
	}
	return -1
}
