//lint:file-ignore SA1019 what takes the place of istiod fills, and reads, the fields that istiod does

package envoy

import (
	"math"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	matchv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// clusterOptions are a cluster while a traffic policy is applied to it.
type clusterOptions struct {
	cluster *clusterv3.Cluster
	service *service
	port    port
	kind    string
	rule    *ruleSet

	http      httpv3.HttpProtocolOptions
	hasHTTP   bool
	h2        *corev3.Http2ProtocolOptions
	useClient bool
	// socket is the transport to the application, nil for plain text.
	socket *corev3.TransportSocket
}

// applyPolicy makes a cluster do what a traffic policy says (3.6).
func (b *builder) applyPolicy(o *clusterOptions, p *networking.TrafficPolicy) {
	if o.kind == kindHTTP && o.port.protocol.http2() {
		o.h2 = &corev3.Http2ProtocolOptions{}
	}
	if o.kind == kindHTTP && o.port.protocol == protoAuto {
		o.useClient = true
	}
	b.connectionPool(o, p.ConnectionPool)
	b.outlierDetection(o, p.OutlierDetection)
	b.loadBalancer(o, p.LoadBalancer)
	b.clientTLS(o, p.Tls)
	b.backendTLS(o)
	b.proxyProtocol(o, p.ProxyProtocol)
	if p.RetryBudget != nil {
		t := o.cluster.CircuitBreakers.Thresholds[0]
		t.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{BudgetPercent: &typev3.Percent{Value: 20}, MinRetryConcurrency: u32(3)}
		if p.RetryBudget.Percent != nil {
			t.RetryBudget.BudgetPercent.Value = p.RetryBudget.Percent.Value
		}
		if p.RetryBudget.MinRetryConcurrency > 0 {
			t.RetryBudget.MinRetryConcurrency = u32(p.RetryBudget.MinRetryConcurrency)
		}
		t.MaxRetries = nil
	}
	if p.Tunnel != nil {
		b.problem(kube.Ignored, kube.KeyOf(o.rule.first), "spec.trafficPolicy.tunnel", "a waypoint opens no tunnel of its own to an application", "connectionPool, loadBalancer, outlierDetection, tls, proxyProtocol")
	}
	switch {
	case o.useClient:
		h2 := o.h2
		if h2 == nil {
			h2 = &corev3.Http2ProtocolOptions{}
		}
		o.http.UpstreamProtocolOptions, o.hasHTTP = asDownstream(h2), true
	case o.h2 != nil:
		o.http.UpstreamProtocolOptions, o.hasHTTP = explicit(o.h2), true
	case o.hasHTTP:
		o.http.UpstreamProtocolOptions = explicit(nil)
	}
	if o.hasHTTP && o.kind == kindHTTP {
		o.cluster.TypedExtensionProtocolOptions = httpOptions(&o.http)
	}
}

func (b *builder) connectionPool(o *clusterOptions, p *networking.ConnectionPoolSettings) {
	if p == nil {
		return
	}
	limit := o.cluster.CircuitBreakers.Thresholds[0]
	set := func(to **wrapperspb.UInt32Value, v int32) {
		if v > 0 {
			*to = u32(uint32(v))
		}
	}
	common := &corev3.HttpProtocolOptions{}
	changed := false
	if tcp := p.Tcp; tcp != nil {
		set(&limit.MaxConnections, tcp.MaxConnections)
		if tcp.ConnectTimeout != nil {
			o.cluster.ConnectTimeout = clone(tcp.ConnectTimeout)
		}
		if tcp.IdleTimeout != nil {
			common.IdleTimeout, changed = clone(tcp.IdleTimeout), true
		}
		if tcp.MaxConnectionDuration != nil {
			common.MaxConnectionDuration, changed = clone(tcp.MaxConnectionDuration), true
		}
		if k := tcp.TcpKeepalive; k != nil {
			keep := &corev3.TcpKeepalive{}
			if k.Probes > 0 {
				keep.KeepaliveProbes = u32(k.Probes)
			}
			if k.Time != nil {
				keep.KeepaliveTime = u32(uint32(k.Time.Seconds))
			}
			if k.Interval != nil {
				keep.KeepaliveInterval = u32(uint32(k.Interval.Seconds))
			}
			o.cluster.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: keep}
		}
	}
	if h := p.Http; h != nil {
		set(&limit.MaxPendingRequests, h.Http1MaxPendingRequests)
		set(&limit.MaxRequests, h.Http2MaxRequests)
		set(&limit.MaxRetries, h.MaxRetries)
		if h.MaxRequestsPerConnection > 0 {
			common.MaxRequestsPerConnection, changed = u32(uint32(h.MaxRequestsPerConnection)), true
		}
		if h.IdleTimeout != nil {
			common.IdleTimeout, changed = clone(h.IdleTimeout), true
		}
		o.upgrade(h)
	}
	if changed {
		o.http.CommonHttpProtocolOptions, o.hasHTTP = common, true
	}
}

// upgrade chooses the version of HTTP towards the application.
func (o *clusterOptions) upgrade(h *networking.ConnectionPoolSettings_HTTPSettings) {
	if h.UseClientProtocol {
		o.useClient = true
	} else if h.H2UpgradePolicy == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE && o.h2 == nil && o.kind == kindHTTP {
		o.h2, o.useClient = &corev3.Http2ProtocolOptions{}, false
	}
	if k := h.Http2KeepAlive; k != nil && o.h2 != nil {
		o.h2.ConnectionKeepalive = &corev3.KeepaliveSettings{}
		if k.Interval != nil {
			o.h2.ConnectionKeepalive.Interval = clone(k.Interval)
		}
		if k.Timeout != nil {
			o.h2.ConnectionKeepalive.Timeout = clone(k.Timeout)
		}
	}
	if h.MaxConcurrentStreams > 0 && o.h2 != nil {
		o.h2.MaxConcurrentStreams = u32(uint32(h.MaxConcurrentStreams))
	}
}

func (b *builder) outlierDetection(o *clusterOptions, p *networking.OutlierDetection) {
	if p == nil {
		return
	}
	out := &clusterv3.OutlierDetection{EnforcingSuccessRate: u32(0)}
	enforce := func(v *wrapperspb.UInt32Value) (count, enforcing *wrapperspb.UInt32Value) {
		if v == nil {
			return nil, nil
		}
		return u32(v.Value), u32(min(v.Value, 1) * 100)
	}
	out.Consecutive_5Xx, out.EnforcingConsecutive_5Xx = enforce(p.Consecutive_5XxErrors)
	out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = enforce(p.ConsecutiveGatewayErrors)
	if p.Interval != nil {
		out.Interval = clone(p.Interval)
	}
	if p.BaseEjectionTime != nil {
		out.BaseEjectionTime = clone(p.BaseEjectionTime)
	}
	if p.MaxEjectionPercent > 0 {
		out.MaxEjectionPercent = u32(uint32(p.MaxEjectionPercent))
	}
	if p.SplitExternalLocalOriginErrors {
		out.SplitExternalLocalOriginErrors = true
		if p.ConsecutiveLocalOriginFailures.GetValue() > 0 {
			out.ConsecutiveLocalOriginFailure, out.EnforcingConsecutiveLocalOriginFailure = enforce(p.ConsecutiveLocalOriginFailures)
		}
		out.EnforcingLocalOriginSuccessRate = u32(0)
	}
	if p.MinHealthPercent > 0 && o.cluster.CommonLbConfig != nil {
		o.cluster.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: float64(p.MinHealthPercent)}
	}
	o.cluster.OutlierDetection = out
	if len(p.OutlierDetectionHttpErrorCodes) > 0 && o.kind == kindHTTP {
		o.http.OutlierDetection, o.hasHTTP = &httpv3.HttpProtocolOptions_OutlierDetection{ErrorMatcher: statusIsOneOf(p.OutlierDetectionHttpErrorCodes)}, true
	}
}

// statusIsOneOf matches responses by their status.
func statusIsOneOf(codes []uint32) *matchv3.MatchPredicate {
	var rules []*matchv3.MatchPredicate
	for _, c := range codes {
		rules = append(rules, &matchv3.MatchPredicate{Rule: &matchv3.MatchPredicate_HttpResponseHeadersMatch{HttpResponseHeadersMatch: &matchv3.HttpHeadersMatch{
			Headers: []*routev3.HeaderMatcher{{Name: ":status", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exactMatcher(portText(c))}}},
		}}})
	}
	if len(rules) == 1 {
		return rules[0] // a set must have two
	}
	return &matchv3.MatchPredicate{Rule: &matchv3.MatchPredicate_OrMatch{OrMatch: &matchv3.MatchPredicate_MatchSet{Rules: rules}}}
}

func (b *builder) loadBalancer(o *clusterOptions, p *networking.LoadBalancerSettings) {
	c := o.cluster
	if p == nil || c.LbPolicy == clusterv3.Cluster_CLUSTER_PROVIDED {
		return
	}
	if l := p.LocalityLbSetting; l != nil && (l.Enabled == nil || l.Enabled.Value) {
		c.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
		}
	}
	if z := p.ZoneAwareLbSetting; z.GetEnabled().GetValue() && c.CommonLbConfig.LocalityConfigSpecifier == nil {
		c.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig_{
			ZoneAwareLbConfig: &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig{},
		}
	}
	if hash := p.GetConsistentHash(); hash != nil {
		consistentHash(c, hash)
		return
	}
	slow := slowStart(p)
	switch p.GetSimple() {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		if slow != nil {
			c.LbConfig = &clusterv3.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &clusterv3.Cluster_RoundRobinLbConfig{SlowStartConfig: slow}}
		}
	case networking.LoadBalancerSettings_RANDOM:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case networking.LoadBalancerSettings_PASSTHROUGH:
		b.problem(kube.Ignored, kube.KeyOf(o.rule.first), "spec.trafficPolicy.loadBalancer.simple", "PASSTHROUGH has no meaning behind the address of a service", "ROUND_ROBIN, LEAST_REQUEST, RANDOM")
	default:
		if slow != nil {
			c.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{SlowStartConfig: slow}}
		}
	}
}

func consistentHash(c *clusterv3.Cluster, hash *networking.LoadBalancerSettings_ConsistentHashLB) {
	if m := hash.GetMaglev(); m != nil {
		c.LbPolicy = clusterv3.Cluster_MAGLEV
		lb := &clusterv3.Cluster_MaglevLbConfig{}
		if m.TableSize > 0 {
			lb.TableSize = wrapperspb.UInt64(m.TableSize)
		}
		c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: lb}
		return
	}
	c.LbPolicy = clusterv3.Cluster_RING_HASH
	size := hash.GetRingHash().GetMinimumRingSize()
	if size == 0 {
		size = hash.GetMinimumRingSize()
	}
	lb := &clusterv3.Cluster_RingHashLbConfig{}
	if size > 0 {
		lb.MinimumRingSize = wrapperspb.UInt64(size)
	}
	c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: lb}
}

func slowStart(p *networking.LoadBalancerSettings) *clusterv3.Cluster_SlowStartConfig {
	window, percent, aggression := p.GetWarmupDurationSecs(), 10.0, 1.0
	if w := p.Warmup; w != nil {
		window = w.Duration
		if w.MinimumPercent != nil {
			percent = w.MinimumPercent.Value
		}
		if w.Aggression != nil {
			aggression = w.Aggression.Value
		}
	}
	if window == nil || window.AsDuration() <= 0 {
		return nil
	}
	return &clusterv3.Cluster_SlowStartConfig{
		SlowStartWindow:  clone(window),
		Aggression:       &corev3.RuntimeDouble{DefaultValue: math.Max(aggression, 1), RuntimeKey: "("}, // a key that nothing sets, as istiod's
		MinWeightPercent: &typev3.Percent{Value: percent},
	}
}

// clientTLS is the waypoint's own TLS to the application, inside of HBONE. What the mesh does anyway needs none.
func (b *builder) clientTLS(o *clusterOptions, p *networking.ClientTLSSettings) {
	if p == nil || p.Mode == networking.ClientTLSSettings_DISABLE || p.Mode == networking.ClientTLSSettings_ISTIO_MUTUAL {
		return
	}
	ctx := &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{TlsParams: tls12()}, Sni: p.Sni}
	common := ctx.CommonTlsContext
	checks := &tlsv3.CertificateValidationContext{MatchSubjectAltNames: subjectNames(p.SubjectAltNames)}
	roots := "file-root:" + p.CaCertificates
	switch {
	case p.CredentialName != "":
		// No agent has such a secret: without it no connection is made, which is better than an unchecked one.
		roots = "kubernetes://" + p.CredentialName + "-cacert"
		b.problem(kube.Warning, kube.KeyOf(o.rule.first), "spec.trafficPolicy.tls.credentialName", "a waypoint reads no Secret: connections fail", "clientCertificate, privateKey and caCertificates")
	case p.CaCertificates == "":
		roots = "file-root:system"
	}
	if p.GetInsecureSkipVerify().GetValue() {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{}}
	} else {
		common.ValidationContextType = combined(checks, sds(roots, false))
	}
	if p.CaCrl != "" {
		b.problem(kube.Warning, kube.KeyOf(o.rule.first), "spec.trafficPolicy.tls.caCrl", "a waypoint has no list of revoked certificates: connections fail", "caCertificates without caCrl")
		common.ValidationContextType = combined(checks, sds("unusable-crl:"+p.CaCrl, false))
	}
	if p.Mode == networking.ClientTLSSettings_MUTUAL {
		cert := "file-cert:" + p.ClientCertificate + "~" + p.PrivateKey
		if p.CredentialName != "" {
			cert = "kubernetes://" + p.CredentialName
		}
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{sds(cert, false)}
	}
	if o.h2 != nil {
		common.AlpnProtocols = []string{"h2"}
	} else if o.useClient {
		common.AlpnProtocols = []string{"h2", "http/1.1"}
	}
	if p.Sni == "" && o.kind == kindHTTP {
		up := &corev3.UpstreamHttpProtocolOptions{AutoSni: true}
		up.AutoSanValidation = len(p.SubjectAltNames) == 0 && !p.GetInsecureSkipVerify().GetValue()
		o.http.UpstreamHttpProtocolOptions, o.hasHTTP = up, true
	}
	o.socket = socket("envoy.transport_sockets.tls", ctx)
}

func (b *builder) proxyProtocol(o *clusterOptions, p *networking.TrafficPolicy_ProxyProtocol) {
	if p == nil {
		return
	}
	inner := o.socket
	if inner == nil {
		inner = rawBuffer("raw_buffer")
	}
	version := corev3.ProxyProtocolConfig_V1
	if p.Version == networking.TrafficPolicy_ProxyProtocol_V2 {
		version = corev3.ProxyProtocolConfig_V2
	}
	o.socket = socket("envoy.transport_sockets.upstream_proxy_protocol", &proxyprotocolv3.ProxyProtocolUpstreamTransport{
		Config: &corev3.ProxyProtocolConfig{Version: version}, TransportSocket: inner,
	})
}
