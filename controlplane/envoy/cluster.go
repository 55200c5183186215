//lint:file-ignore SA1019 what takes the place of istiod fills, and reads, the fields that istiod does

package envoy

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/api/workloadpb"
)

// edsCluster is a cluster whose endpoints are told apart from it.
type edsCluster struct {
	name     string
	service  *service
	port     port
	labels   map[string]string
	outbound bool
	policy   *networking.TrafficPolicy
}

// inboundClusters are those of a service that the waypoint serves: per port and kind of traffic, and per subset.
func (b *builder) inboundClusters(s *service) {
	rule := b.ruleFor(s)
	for _, p := range s.ports {
		for _, kind := range kindsOf(p.protocol) {
			b.inboundCluster(s, p, kind, nil, rule)
			if rule == nil {
				continue
			}
			for _, sub := range rule.subsets {
				b.inboundCluster(s, p, kind, sub, rule)
			}
		}
	}
}

func (b *builder) inboundCluster(s *service, p port, kind string, sub *networking.Subset, rule *ruleSet) {
	name := inboundName(p.number, kind, sub.GetName(), s.host())
	c := b.baseCluster(name, s, p, sub, rule, false)
	label := kind
	if sub != nil {
		label += "/" + sub.Name
	}
	c.Metadata = istioMetadata(s, rule, map[string]any{"subset": label})
	o := clusterOptions{cluster: c, service: s, port: p, kind: kind, rule: rule}
	b.applyPolicy(&o, rule.policyFor(sub.GetName(), p.number))
	inner := o.socket
	if inner == nil {
		inner = rawBuffer("raw_buffer")
	}
	c.TransportSocket = socket("internal_upstream", &internalv3.InternalUpstreamTransport{
		PassthroughMetadata: []*internalv3.InternalUpstreamTransport_MetadataValueSource{hostMetadata(originalDst), hostMetadata("istio")},
		TransportSocket:     inner,
	})
	b.clusters[name] = c
}

// outboundClusters are those of a service that the waypoint does not serve itself.
func (b *builder) outboundClusters(s *service) {
	rule := b.ruleFor(s)
	for _, p := range s.ports {
		b.outboundCluster(s, p, nil, rule)
		if rule == nil {
			continue
		}
		for _, sub := range rule.subsets {
			b.outboundCluster(s, p, sub, rule)
		}
	}
}

func (b *builder) outboundCluster(s *service, p port, sub *networking.Subset, rule *ruleSet) {
	name := outboundName(p.number, sub.GetName(), s.host())
	c := b.baseCluster(name, s, p, sub, rule, true)
	more := map[string]any{}
	accounts := map[string]bool{}
	for _, w := range s.workloads {
		if w.TunnelProtocol == workloadpb.TunnelProtocol_HBONE {
			more["disable_mx"] = true
		}
		if w.ServiceAccount != "" {
			accounts["spiffe://"+b.cfg.TrustDomain+"/ns/"+w.Namespace+"/sa/"+w.ServiceAccount] = true
		}
	}
	if sub != nil {
		more["subset"] = sub.Name
	}
	c.Metadata = istioMetadata(s, rule, more)
	kind := kindsOf(p.protocol)[0]
	o := clusterOptions{cluster: c, service: s, port: p, kind: kind, rule: rule}
	b.applyPolicy(&o, rule.policyFor(sub.GetName(), p.number))
	plain := o.socket
	if plain == nil {
		plain = rawBuffer("envoy.transport_sockets.raw_buffer")
	}
	c.TransportSocketMatches = outboundSockets(s, p, accounts, plain)
	c.Filters = []*clusterv3.Filter{{Name: "istio.metadata_exchange", TypedConfig: anyOf(exchangeConfig())}}
	b.clusters[name] = c
}

// outboundSockets choose by the endpoint: HBONE, a sidecar's mutual TLS, or neither (3.6).
func outboundSockets(s *service, p port, accounts map[string]bool, plain *corev3.TransportSocket) []*clusterv3.Cluster_TransportSocketMatch {
	match := func(key, value string) *structpb.Struct { return structOf(map[string]any{key: value}) }
	alpn := []string{"istio-peer-exchange", "istio"}
	if p.protocol.http2() {
		alpn = append(alpn, "h2")
	}
	checks := &tlsv3.CertificateValidationContext{}
	for _, id := range sortedKeys(accounts) {
		checks.MatchSubjectAltNames = append(checks.MatchSubjectAltNames, exactMatcher(id))
	}
	sidecar := &tlsv3.UpstreamTlsContext{
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams:                      tls12(),
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sds("default", true)},
			ValidationContextType:          combined(checks, sds("ROOTCA", true)), AlpnProtocols: alpn,
		},
		Sni: "outbound_." + portText(p.number) + "_._." + s.host(),
	}
	return []*clusterv3.Cluster_TransportSocketMatch{
		{Name: "hbone", Match: match("tunnel", "http"), TransportSocket: socket("envoy.transport_sockets.internal_upstream", &internalv3.InternalUpstreamTransport{
			PassthroughMetadata: []*internalv3.InternalUpstreamTransport_MetadataValueSource{hostMetadata(originalDst), clusterMetadata("istio"), hostMetadata("istio")},
			TransportSocket:     plain,
		})},
		{Name: "tlsMode-istio", Match: match("tlsMode", "istio"), TransportSocket: socket("envoy.transport_sockets.tls", sidecar)},
		{Name: "tlsMode-disabled", Match: &structpb.Struct{}, TransportSocket: plain},
	}
}

func tls12() *tlsv3.TlsParameters {
	return &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3}
}

func istioMetadata(s *service, rule *ruleSet, more map[string]any) *corev3.Metadata {
	fields := map[string]any{"services": []any{map[string]any{"host": s.host(), "name": s.shortName(), "namespace": s.namespace()}}}
	if rule != nil && rule.first != nil {
		fields["config"] = configPath("destination-rule", rule.first)
	}
	for k, v := range more {
		fields[k] = v
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": structOf(fields)}}
}

// baseCluster is a cluster with its way to find endpoints, before any policy.
func (b *builder) baseCluster(name string, s *service, p port, sub *networking.Subset, rule *ruleSet, outbound bool) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name: name, AltStatName: name + ";", ConnectTimeout: durationpb.New(10 * time.Second), LbPolicy: clusterv3.Cluster_LEAST_REQUEST,
		CircuitBreakers: unlimited(), CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}},
	}
	eds := edsCluster{
		name: name, service: s, port: p, labels: sub.GetLabels(), outbound: outbound, policy: rule.policyFor(sub.GetName(), p.number),
	}
	switch s.resolution() {
	case networking.ServiceEntry_NONE:
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		kind := clusterv3.Cluster_STRICT_DNS
		if s.resolution() == networking.ServiceEntry_DNS_ROUND_ROBIN {
			kind = clusterv3.Cluster_LOGICAL_DNS
		}
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: kind}
		b.resolveByDNS(c, eds)
	case networking.ServiceEntry_DYNAMIC_DNS:
		c.CommonLbConfig = nil
		c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
		c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: "envoy.clusters.dynamic_forward_proxy", TypedConfig: anyOf(b.forwardProxyCluster(s)),
		}}
	default:
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
		c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{
			EdsConfig: &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
				InitialFetchTimeout:   durationpb.New(0), ResourceApiVersion: corev3.ApiVersion_V3,
			},
			ServiceName: name,
		}
		b.eds = append(b.eds, eds)
	}
	return c
}

// subjectNames are matchers for exactly these names.
func subjectNames(names []string) []*matcherv3.StringMatcher {
	var out []*matcherv3.StringMatcher
	for _, n := range names {
		out = append(out, exactMatcher(n))
	}
	return out
}
