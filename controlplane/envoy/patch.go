package envoy

import (
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// chooseFilters finds the EnvoyFilters that concern the waypoint. One with something that is refused has its last good
// state, if there is one.
func (b *builder) chooseFilters() {
	ats := []target{{}}
	for _, s := range b.services {
		ats = append(ats, target{service: s})
	}
	for _, set := range b.Index.filters {
		refs := set.object.Spec.TargetRefs
		mine := len(refs) == 0 && (set.key.Namespace == b.gateway.Namespace || set.key.Namespace == b.cfg.RootNamespace)
		if !mine && !slices.ContainsFunc(ats, func(at target) bool { return b.targets(set.key.Namespace, nil, refs, at) }) {
			continue
		}
		if len(set.flaws) > 0 {
			before := b.last.filter(set.key)
			for _, f := range set.flaws {
				if before != nil {
					f.Cause += ": the last good patches stay in force"
				}
				b.problem(f.Severity, f.Object, f.Field, f.Cause, f.Accepted)
			}
			if set = before; set == nil {
				continue
			}
		}
		b.good[set.key] = set
		b.filters = append(b.filters, set)
		for _, p := range set.patches {
			for _, name := range p.services {
				b.calledService(set.key, p, name)
			}
		}
	}
}

// filter is an EnvoyFilter as it was last in force, nil when it was not.
func (r *Resources) filter(key kube.Key) *patchSet {
	if r == nil {
		return nil
	}
	return r.filters[key]
}

// calledService makes the cluster that a filter calls. One of a service that is not there has no endpoint: the filter does
// what it is to do without the service.
func (b *builder) calledService(key kube.Key, p *patch, name string) {
	parts := strings.Split(name, "|")
	number, _ := strconv.ParseUint(parts[1], 10, 16)
	host := parts[3]
	s := b.service(host, key.Namespace)
	field := p.field + ".patch.value.typed_config.rate_limit_service.grpc_service.envoy_grpc.cluster_name"
	why := ""
	if s == nil {
		why = "no Service or ServiceEntry has the host " + host
	} else if port, ok := s.port(uint32(number)); !ok {
		why = host + " has no port " + parts[1]
	} else if b.others[s] = true; !port.protocol.http2() {
		b.problem(kube.Warning, key, field, "port "+parts[1]+" of "+host+" does not say that it speaks gRPC: calls fail", "a port whose name or appProtocol is grpc")
	}
	if why == "" {
		return
	}
	b.problem(kube.Warning, key, field, why+": requests are treated as failure_mode_deny says", "outbound|PORT||HOST of a service")
	b.clusters[name] = &clusterv3.Cluster{
		Name: name, AltStatName: name + ";", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		TypedExtensionProtocolOptions: httpOptions(&httpv3.HttpProtocolOptions{UpstreamProtocolOptions: explicit(&corev3.Http2ProtocolOptions{})}),
	}
}

// patchesFor lists the patches of one kind of object for a chain or a cluster's service.
func (b *builder) patchesFor(at target, kind networking.EnvoyFilter_ApplyTo) []*patch {
	var out []*patch
	for _, set := range b.filters {
		if !b.targets(set.key.Namespace, nil, set.object.Spec.TargetRefs, at) {
			continue
		}
		for _, p := range set.patches {
			if p.applyTo == kind && (p.match.port == 0 || p.match.port == at.port.number) {
				out = append(out, p)
			}
		}
	}
	return out
}

// chainName is that of the HTTP chain of a target.
func chainName(at target) string {
	if at.service == nil {
		return nameDirectHTTP
	}
	return inboundName(at.port.number, kindHTTP, "", at.service.host())
}

// insertFilters puts the filters of patches into a chain.
func (b *builder) insertFilters(at target, list []*hcmv3.HttpFilter) []*hcmv3.HttpFilter {
	for _, p := range b.patchesFor(at, networking.EnvoyFilter_HTTP_FILTER) {
		if p.match.chain != "" && p.match.chain != chainName(at) {
			continue
		}
		where := slices.IndexFunc(list, func(f *hcmv3.HttpFilter) bool { return f.Name == p.match.anchor })
		if p.match.anchor != "" && where < 0 {
			continue
		}
		switch p.operation {
		case networking.EnvoyFilter_Patch_INSERT_FIRST:
			where = 0
		case networking.EnvoyFilter_Patch_INSERT_BEFORE:
			where = max(where, 0)
		case networking.EnvoyFilter_Patch_INSERT_AFTER:
			if where++; p.match.anchor == "" {
				where = len(list) - 1 // before the router, which ends every chain
			}
		default:
			where = len(list) - 1
		}
		b.applied[p] = true
		list = slices.Insert(list, where, p.filter)
	}
	return list
}

// patchRoutes changes the virtual hosts and routes of a chain.
func (b *builder) patchRoutes(at target, c *routev3.RouteConfiguration) {
	hosts := b.patchesFor(at, networking.EnvoyFilter_VIRTUAL_HOST)
	routes := b.patchesFor(at, networking.EnvoyFilter_HTTP_ROUTE)
	matches := func(p *patch, v *routev3.VirtualHost) bool {
		m := p.match
		domain := m.domain == "" || slices.Contains(v.Domains, m.domain) || m.domain == at.service.host() || m.domain == at.service.host()+":"+portText(at.port.number)
		return (m.config == "" || m.config == c.Name) && (m.host == "" || m.host == v.Name) && domain
	}
	for _, v := range c.VirtualHosts {
		for _, p := range hosts {
			if matches(p, v) {
				b.applied[p] = true
				merge(v.ProtoReflect(), clone(p.host).ProtoReflect())
			}
		}
		for _, p := range routes {
			for _, r := range v.Routes {
				if matches(p, v) && (p.match.route == "" || p.match.route == r.Name) && hasAction(r, p.match.action) && (p.route.GetRoute() == nil || r.GetRoute() != nil) {
					b.applied[p] = true
					merge(r.ProtoReflect(), clone(p.route).ProtoReflect())
				}
			}
		}
	}
}

func hasAction(r *routev3.Route, want networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_Action) bool {
	switch want {
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_ROUTE:
		return r.GetRoute() != nil
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_REDIRECT:
		return r.GetRedirect() != nil
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_DIRECT_RESPONSE:
		return r.GetDirectResponse() != nil
	}
	return true
}

// patchClusters changes the clusters of services.
func (b *builder) patchClusters() {
	for _, name := range sortedKeys(b.clusters) {
		parts := strings.Split(name, "|")
		if len(parts) != 4 {
			continue
		}
		s := b.service(parts[3], b.gateway.Namespace)
		number, err := strconv.ParseUint(parts[1], 10, 16)
		if s == nil || err != nil {
			continue
		}
		_, subset, _ := strings.Cut(parts[2], "/")
		if parts[0] == "outbound" {
			subset = parts[2]
		}
		for _, p := range b.patchesFor(target{service: s, port: port{number: uint32(number)}}, networking.EnvoyFilter_CLUSTER) {
			if m := p.match; (m.cluster == "" || m.cluster == name) && (m.service == "" || m.service == s.host()) && (m.subset == "" || m.subset == subset) {
				b.applied[p] = true
				merge(b.clusters[name].ProtoReflect(), clone(p.cluster).ProtoReflect())
			}
		}
	}
}

// idlePatches reports patches that found nothing to change.
func (b *builder) idlePatches() {
	for _, set := range b.filters {
		for _, p := range set.patches {
			if !b.applied[p] {
				b.problem(kube.Warning, set.key, p.field+".match", "nothing of waypoint "+b.gateway.String()+" matches: the patch has no effect there", "a port, a filter, a route or a cluster that the waypoint has")
			}
		}
	}
}

// merge puts the fields of a patch, which is used up by it, into a message: lists grow, maps and messages merge, and what is a value, durations and
// such too, takes the place of what was there.
func merge(to, from protoreflect.Message) {
	from.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList():
			list := to.Mutable(f).List()
			for i := range v.List().Len() {
				list.Append(v.List().Get(i))
			}
		case f.IsMap():
			m := to.Mutable(f).Map()
			v.Map().Range(func(k protoreflect.MapKey, x protoreflect.Value) bool {
				m.Set(k, x)
				return true
			})
		case f.Message() != nil && to.Has(f) && f.Message().ParentFile().Package() != "google.protobuf":
			merge(to.Mutable(f).Message(), v.Message())
		default:
			to.Set(f, v)
		}
		return true
	})
}
