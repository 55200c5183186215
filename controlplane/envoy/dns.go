//lint:file-ignore SA1019 what takes the place of istiod fills, and reads, the fields that istiod does

package envoy

import (
	"maps"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dfpclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	dfpcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	dfpfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// resolveByDNS makes the waypoint look up the endpoints of a ServiceEntry (3.6).
func (b *builder) resolveByDNS(c *clusterv3.Cluster, e edsCluster) {
	c.DnsRefreshRate, c.DnsJitter, c.RespectDnsTtl = durationpb.New(time.Minute), durationpb.New(100*time.Millisecond), true
	c.DnsLookupFamily = clusterv3.Cluster_V4_ONLY
	c.TypedDnsResolverConfig = &corev3.TypedExtensionConfig{
		Name: "envoy.network.dns_resolver.cares", TypedConfig: anyOf(&caresv3.CaresDnsResolverConfig{UdpMaxQueries: u32(100)}),
	}
	c.LoadAssignment = b.assignment(e, Place{})
}

// dnsCache is shared by filter and cluster, which must agree on it.
func dnsCache(s *service) *dfpcommonv3.DnsCacheConfig {
	return &dfpcommonv3.DnsCacheConfig{Name: s.host() + "_dfp_dns_cache", DnsLookupFamily: clusterv3.Cluster_V4_ONLY}
}

func forwardProxyCluster(s *service) *dfpclusterv3.ClusterConfig {
	return &dfpclusterv3.ClusterConfig{ClusterImplementationSpecifier: &dfpclusterv3.ClusterConfig_DnsCacheConfig{DnsCacheConfig: dnsCache(s)}}
}

func (b *builder) forwardProxyFilter(s *service) *dfpfilterv3.FilterConfig {
	return &dfpfilterv3.FilterConfig{ImplementationSpecifier: &dfpfilterv3.FilterConfig_DnsCacheConfig{DnsCacheConfig: dnsCache(s)}}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
