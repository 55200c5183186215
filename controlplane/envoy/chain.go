package envoy

import (
	"fmt"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	grpcstatsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	grpcwebv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	netstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// typedStruct is a message whose type we have no code for.
func typedStruct(name string, value map[string]any) *udpav1.TypedStruct {
	return &udpav1.TypedStruct{TypeUrl: "type.googleapis.com/" + name, Value: structOf(value)}
}

func metadataExchange() *listenerv3.Filter {
	return networkFilter("istio.metadata_exchange", exchangeConfig())
}

func exchangeConfig() *udpav1.TypedStruct {
	return typedStruct("envoy.tcp.metadataexchange.config.MetadataExchange", map[string]any{"enable_discovery": true, "protocol": "istio-peer-exchange"})
}

// target is what a chain belongs to, for policies and telemetry: a service, or the waypoint itself.
type target struct {
	service *service // nil for connections to workloads
	port    port
}

// portChains are the chains of a port: HTTP, TCP, or both where the protocol is found out per connection.
func (b *builder) portChains(s *service, p port) []*listenerv3.FilterChain {
	var out []*listenerv3.FilterChain
	at := target{service: s, port: p}
	for _, kind := range kindsOf(p.protocol) {
		name := inboundName(p.number, kind, "", s.host())
		chain := &listenerv3.FilterChain{Name: name}
		if kind == kindHTTP {
			routes := b.serviceRoutes(s, p)
			b.patchRoutes(at, routes)
			chain.Filters = []*listenerv3.Filter{b.httpManager(at, p.number, routes)}
		} else {
			chain.Filters = b.tcpFilters(at, b.tcpProxy(s, p, name))
		}
		out = append(out, b.checkChain(chain, s))
	}
	return out
}

// checkChain keeps the last good chain in place of one with something that a client would refuse. Without one, what is
// wrong with a rule has been taken out of it already, and a chain that is wrong otherwise has no filters: it closes
// connections.
func (b *builder) checkChain(chain *listenerv3.FilterChain, s *service) *listenerv3.FilterChain {
	err := flaw(chain)
	if err != nil {
		b.problem(kube.Rejected, s.key, "", err.Error()+": the last good settings of "+chain.Name+" stay in force; without any, its connections are closed", "policies and telemetry that Envoy accepts")
	}
	if err == nil && !b.bad[chain.Name] {
		return chain
	}
	if last := b.last.chain(chain.Name); last != nil {
		return last
	}
	if err != nil {
		return &listenerv3.FilterChain{Name: chain.Name, Filters: []*listenerv3.Filter{
			networkFilter("envoy.filters.network.rbac", &netrbacv3.RBAC{Rules: &rbacconfigv3.RBAC{}, StatPrefix: "closed."}),
			networkFilter("envoy.filters.network.tcp_proxy", &tcpv3.TcpProxy{StatPrefix: chain.Name, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: nameUnknownService}}),
		}}
	}
	return chain
}

// directChains serve connections to the address of a workload: they go on to the same address.
func (b *builder) directChains() []*listenerv3.FilterChain {
	keep := networkFilter("connect_authority", &netstatev3.Config{OnNewConnection: []*statev3.FilterStateValue{
		state(stateLocal, "", "%FILTER_STATE("+stateLocal+":PLAIN)%", statev3.FilterStateValue_ONCE),
	}})
	proxy := &tcpv3.TcpProxy{StatPrefix: nameEncap, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: nameEncap}}
	routes := routeConfig(nameEncap, 0, "*", []*routev3.Route{defaultRoute(nameEncap, "", 0, nil)})
	routes.MaxDirectResponseBodySizeBytes = u32(1 << 20)
	return []*listenerv3.FilterChain{
		{Name: nameDirectTCP, Filters: append([]*listenerv3.Filter{keep}, b.tcpFilters(target{}, proxy)...)},
		{Name: nameDirectHTTP, Filters: []*listenerv3.Filter{keep, b.httpManager(target{}, 0, routes)}},
	}
}

// tcpFilters are the network filters of a chain that does not look into the connection (3.8).
func (b *builder) tcpFilters(at target, proxy *tcpv3.TcpProxy) []*listenerv3.Filter {
	out := []*listenerv3.Filter{metadataExchange()}
	out = append(out, b.networkAuthorization(at)...)
	out = append(out, networkFilter("istio.stats", b.statsConfig(at)))
	proxy.AccessLog = b.accessLogs(at)
	out = append(out, b.byServerName(at)...)
	return append(out, networkFilter("envoy.filters.network.tcp_proxy", proxy))
}

// httpManager is the filter that serves HTTP (3.8).
func (b *builder) httpManager(at target, number uint32, routes *routev3.RouteConfiguration) *listenerv3.Filter {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix:         fmt.Sprintf("inbound_0.0.0.0_%d;", number),
		RouteSpecifier:     &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes},
		HttpFilters:        b.httpFilters(at),
		Tracing:            b.tracing(at),
		AccessLog:          b.accessLogs(at),
		ServerName:         "istio-envoy",
		StreamIdleTimeout:  durationpb.New(0),
		UseRemoteAddress:   wrapperspb.Bool(false),
		Proxy_100Continue:  true,
		UpgradeConfigs:     []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		RequestIdExtension: &hcmv3.RequestIDExtension{TypedConfig: anyOf(&uuidv3.UuidRequestIdConfig{UseRequestIdForTraceSampling: wrapperspb.Bool(b.sampledByID(at))})},
	}
	b.canonicalPaths(m)
	if at.port.protocol.http2() {
		m.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	}
	return networkFilter("envoy.filters.network.http_connection_manager", m)
}

// canonicalPaths says how paths are made canonical before rules look at them, by pathNormalization of MeshConfig.
func (b *builder) canonicalPaths(m *hcmv3.HttpConnectionManager) {
	m.NormalizePath = wrapperspb.Bool(true)
	m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_KEEP_UNCHANGED
	switch b.mesh.config.GetPathNormalization().GetNormalization() {
	case meshconfig.MeshConfig_ProxyPathNormalization_NONE:
		m.NormalizePath = wrapperspb.Bool(false)
	case meshconfig.MeshConfig_ProxyPathNormalization_MERGE_SLASHES:
		m.MergeSlashes = true
	case meshconfig.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES:
		m.MergeSlashes = true
		m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
}

// httpFilters are in the order that istiod gives them (3.8).
func (b *builder) httpFilters(at target) []*hcmv3.HttpFilter {
	out := b.httpAuthentication(at)
	if at.port.protocol == protoGRPCWeb {
		out = append(out, httpFilter("envoy.filters.http.grpc_web", &grpcwebv3.GrpcWeb{}))
	}
	out = append(out,
		httpFilter("envoy.filters.http.grpc_stats", &grpcstatsv3.FilterConfig{
			EmitFilterState: true, PerMethodStatSpecifier: &grpcstatsv3.FilterConfig_StatsForAllMethods{StatsForAllMethods: wrapperspb.Bool(false)},
		}),
		httpFilter("envoy.filters.http.fault", &faultv3.HTTPFault{}),
		httpFilter("envoy.filters.http.cors", &corsv3.Cors{}))
	if s := at.service; s != nil && s.resolution() == networking.ServiceEntry_DYNAMIC_DNS {
		out = append(out, httpFilter("envoy.filters.http.dynamic_forward_proxy", b.forwardProxyFilter(s)))
	}
	out = append(out,
		httpFilter("waypoint_upstream_peer_metadata", typedStruct("io.istio.http.peer_metadata.Config", map[string]any{
			"upstream_discovery": []any{map[string]any{"workload_discovery": map[string]any{}}},
		})),
		httpFilter("istio.stats", b.statsConfig(at)),
		httpFilter(nameRouter, &routerv3.Router{}))
	return b.insertFilters(at, out)
}
