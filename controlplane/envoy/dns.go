//lint:file-ignore SA1019 what takes the place of istiod fills, and reads, the fields that istiod does

package envoy

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	dfpclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	dfpcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	dfpfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	snidfpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
)

// resolveByDNS makes the waypoint look up the endpoints of a ServiceEntry (3.6).
func (b *builder) resolveByDNS(c *clusterv3.Cluster, e edsCluster) {
	c.DnsRefreshRate, c.DnsJitter, c.RespectDnsTtl = durationpb.New(time.Minute), durationpb.New(100*time.Millisecond), true
	c.DnsLookupFamily = b.lookupFamily()
	c.TypedDnsResolverConfig = &corev3.TypedExtensionConfig{
		Name: "envoy.network.dns_resolver.cares", TypedConfig: anyOf(&caresv3.CaresDnsResolverConfig{UdpMaxQueries: u32(100)}),
	}
	c.LoadAssignment = b.assignment(e, Place{})
}

// dnsCache is shared by filter and cluster, which must agree on it.
func (b *builder) dnsCache(s *service) *dfpcommonv3.DnsCacheConfig {
	return &dfpcommonv3.DnsCacheConfig{Name: s.host() + "_dfp_dns_cache", DnsLookupFamily: b.lookupFamily()}
}

// lookupFamily is the family of addresses that the waypoint's instances can reach, as the addresses of its Gateway show. With
// both, names that have an address of version 4 are reached as before, and the others too.
func (b *builder) lookupFamily() clusterv3.Cluster_DnsLookupFamily {
	v4, v6 := false, false
	if b.object != nil {
		for _, a := range b.object.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Value); err == nil {
				v4, v6 = v4 || ip.Unmap().Is4(), v6 || ip.Unmap().Is6()
			}
		}
	}
	switch {
	case v4 && v6:
		return clusterv3.Cluster_V4_PREFERRED
	case v6:
		return clusterv3.Cluster_V6_ONLY
	}
	return clusterv3.Cluster_V4_ONLY
}

func (b *builder) forwardProxyCluster(s *service) *dfpclusterv3.ClusterConfig {
	return &dfpclusterv3.ClusterConfig{ClusterImplementationSpecifier: &dfpclusterv3.ClusterConfig_DnsCacheConfig{DnsCacheConfig: b.dnsCache(s)}}
}

func (b *builder) forwardProxyFilter(s *service) *dfpfilterv3.FilterConfig {
	return &dfpfilterv3.FilterConfig{ImplementationSpecifier: &dfpfilterv3.FilterConfig_DnsCacheConfig{DnsCacheConfig: b.dnsCache(s)}}
}

// byServerName sends the TLS connections of a wildcard host to the name that the client asks for. Only names of the
// wildcard get on: the address alone says nothing about them.
func (b *builder) byServerName(at target) []*listenerv3.Filter {
	s := at.service
	if s == nil || s.resolution() != networking.ServiceEntry_DYNAMIC_DNS || at.port.protocol != protoTLS {
		return nil
	}
	only := &rbacconfigv3.RBAC{Policies: map[string]*rbacconfigv3.Policy{"server-name": {
		Permissions: []*rbacconfigv3.Permission{sniRule(s.host())},
		Principals:  []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_Any{Any: true}}},
	}}}
	return []*listenerv3.Filter{
		networkFilter("envoy.filters.network.rbac", &netrbacv3.RBAC{Rules: only, StatPrefix: "server_name."}),
		networkFilter("envoy.filters.network.sni_dynamic_forward_proxy", &snidfpv3.FilterConfig{
			DnsCacheConfig: b.dnsCache(s), PortSpecifier: &snidfpv3.FilterConfig_PortValue{PortValue: entryPort(s, at.port)},
		}),
	}
}

// entryPort is the port at the endpoint.
func entryPort(s *service, p port) uint32 {
	for _, e := range s.entry().Spec.Ports {
		if e.Number == p.number && e.TargetPort != 0 {
			return e.TargetPort
		}
	}
	return p.number
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
