package envoy

import (
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// tcpProxy forwards the connections of a port: as the first rule for it says, else to its own cluster.
func (b *builder) tcpProxy(s *service, p port, name string) *tcpv3.TcpProxy {
	proxy := &tcpv3.TcpProxy{StatPrefix: name, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: name}}
	if pool := b.ruleFor(s).policyFor("", p.number).GetConnectionPool().GetTcp(); pool.GetIdleTimeout() != nil {
		proxy.IdleTimeout = clone(pool.IdleTimeout)
	}
	src := b.rulesFor(s, p)
	if src == nil || len(src.tcp) == 0 {
		proxy.HashPolicy = tcpHash(b.ruleFor(s), "", p.number)
		return proxy
	}
	r := src.tcp[0] // the others match the same connections
	weighted := &tcpv3.TcpProxy_WeightedCluster{}
	for i, w := range r.routes {
		if w.Weight == 0 && len(r.routes) > 1 {
			continue
		}
		d, why := b.destinationOf(w.Destination, src.namespace, kindTCP, p)
		if why != "" && w.Destination.GetHost() != unknownHost { // that one was reported as what it stands for
			b.problem(kube.Warning, r.object, indexed(r.field+".route", i), why+": connections for it fail", "a host, port and subset that exist")
		}
		if d.service != nil && proxy.HashPolicy == nil {
			proxy.HashPolicy = tcpHash(d.rule, d.subset, d.port.number)
		}
		if len(r.routes) == 1 {
			proxy.ClusterSpecifier = &tcpv3.TcpProxy_Cluster{Cluster: d.cluster}
			return proxy
		}
		weighted.Clusters = append(weighted.Clusters, &tcpv3.TcpProxy_WeightedCluster_ClusterWeight{Name: d.cluster, Weight: uint32(w.Weight)})
	}
	if len(weighted.Clusters) == 0 {
		proxy.ClusterSpecifier = &tcpv3.TcpProxy_Cluster{Cluster: nameUnknownService}
		return proxy
	}
	proxy.ClusterSpecifier = &tcpv3.TcpProxy_WeightedClusters{WeightedClusters: weighted}
	return proxy
}

// tcpHash is what a load balancer that hashes takes of a connection: the client's address, or nothing.
func tcpHash(rule *ruleSet, subset string, number uint32) []*typev3.HashPolicy {
	if !rule.policyFor(subset, number).GetLoadBalancer().GetConsistentHash().GetUseSourceIp() {
		return nil
	}
	return []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}}
}
