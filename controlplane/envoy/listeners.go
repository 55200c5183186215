package envoy

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	origdstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Keys of filter state (3.3).
const (
	stateLocal     = "envoy.filters.listener.original_dst.local_ip"
	stateRemote    = "envoy.filters.listener.original_dst.remote_ip"
	stateAuthority = "io.istio.connect_authority"
	statePeer      = "io.istio.peer_principal"
	stateOwn       = "io.istio.local_principal"
	stateTarget    = "istio.double_hbone.hbone_target_address"
)

// hashable is a factory of Istio's build; see Plain.
const hashable = "istio.hashable_string"

func state(key, factory, format string, shared statev3.FilterStateValue_SharedWithUpstream) *statev3.FilterStateValue {
	v := &statev3.FilterStateValue{
		Key: &statev3.FilterStateValue_ObjectKey{ObjectKey: key}, FactoryKey: factory, SharedWithUpstream: shared,
		Value: &statev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: format},
			}},
		}},
	}
	return v
}

func networkFilter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(m)}}
}

func httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(m)}}
}

func listenerFilter(name string, m proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: anyOf(m)}}
}

// connectTerminate is the socket: mutual TLS, HTTP/2, CONNECT to main_internal (3.3).
func (b *builder) connectTerminate() *listenerv3.Listener {
	once := statev3.FilterStateValue_ONCE
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: nameConnectTerminate,
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: "default",
			VirtualHosts: []*routev3.VirtualHost{{Name: "default", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: nameMainInternal},
					UpgradeConfigs:   []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "CONNECT", ConnectConfig: &routev3.RouteAction_UpgradeConfig_ConnectConfig{}}},
				}},
			}}}},
		}},
		HttpFilters: []*hcmv3.HttpFilter{
			httpFilter("waypoint_downstream_peer_metadata", typedStruct("io.istio.http.peer_metadata.Config", map[string]any{
				"downstream_discovery": []any{map[string]any{"workload_discovery": map[string]any{}}}, "shared_with_upstream": true,
			})),
			httpFilter("connect_authority", &httpstatev3.Config{OnRequestHeaders: []*statev3.FilterStateValue{
				state(stateLocal, "", "%REQ(:AUTHORITY)%", once),
				state(stateAuthority, hashable, "%REQ(:AUTHORITY)%", once),
				state(stateRemote, "", "%DOWNSTREAM_REMOTE_ADDRESS%", once),
				state(statePeer, hashable, "%DOWNSTREAM_PEER_URI_SAN%", once),
				state(stateOwn, hashable, "%DOWNSTREAM_LOCAL_URI_SAN%", once),
			}}),
			httpFilter("envoy.filters.http.router", &routerv3.Router{}),
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams: u32(100), AllowConnect: true,
			ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: durationpb.New(10 * time.Second), Timeout: durationpb.New(20 * time.Second)},
		},
		ServerName: "istio-envoy", StreamIdleTimeout: durationpb.New(0), UseRemoteAddress: wrapperspb.Bool(false),
		ForwardClientCertDetails: hcmv3.HttpConnectionManager_APPEND_FORWARD,
		SetCurrentClientCertDetails: &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: wrapperspb.Bool(true), Dns: true, Uri: true,
		},
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "CONNECT"}},
	}
	return &listenerv3.Listener{
		Name: nameConnectTerminate, Address: socketAddress("0.0.0.0", hbonePort),
		FilterChains: []*listenerv3.FilterChain{{
			Name: "default", Filters: []*listenerv3.Filter{networkFilter("envoy.filters.network.http_connection_manager", manager)},
			TransportSocket: socket("tls", &tlsv3.DownstreamTlsContext{
				CommonTlsContext: meshTLS(uriPrefixes(b.trustPrefixes()...)), RequireClientCertificate: wrapperspb.Bool(true),
			}),
		}},
		ConnectionBalanceConfig: &listenerv3.Listener_ConnectionBalanceConfig{
			BalanceType: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance_{ExactBalance: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance{}},
		},
	}
}

// internalListener has one chain of filters.
func internalListener(name string, fromDst bool, filters ...*listenerv3.Filter) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: name, FilterChains: []*listenerv3.FilterChain{{Filters: filters}}, UseOriginalDst: wrapperspb.Bool(false),
		ListenerSpecifier: &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}},
	}
	if fromDst {
		l.ListenerFilters = []*listenerv3.ListenerFilter{listenerFilter(originalDst, &origdstv3.OriginalDst{})}
	}
	return l
}

// tunnel opens CONNECT through a cluster.
func tunnel(name, hostname string, headers ...*corev3.HeaderValueOption) *listenerv3.Filter {
	return networkFilter("envoy.filters.network.tcp_proxy", &tcpv3.TcpProxy{
		StatPrefix: name, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: name},
		TunnelingConfig: &tcpv3.TcpProxy_TunnelingConfig{Hostname: hostname, HeadersToAdd: headers},
	})
}

func connectOriginate() *listenerv3.Listener {
	return internalListener(nameConnectOriginate, true, tunnel(nameConnectOriginate, "%DOWNSTREAM_LOCAL_ADDRESS%"))
}

// innerOriginate and outerOriginate are HBONE within HBONE, for endpoints of other networks.
func innerOriginate() *listenerv3.Listener {
	transitive := statev3.FilterStateValue_TRANSITIVE
	return internalListener(nameInnerOriginate, false,
		networkFilter("propagate_endpoint_metadata", &netstatev3.Config{OnNewConnection: []*statev3.FilterStateValue{
			state(stateLocal, "", "%DYNAMIC_METADATA(envoy.filters.listener.original_dst:local)%", transitive),
			state(stateTarget, hashable, "%DYNAMIC_METADATA(istio:double_hbone:hbone_target_address)%", transitive),
		}}),
		tunnel(nameInnerOriginate, "%FILTER_STATE("+stateTarget+":PLAIN)%", overwrite("x-forwarded-network", "")))
}

func outerOriginate() *listenerv3.Listener {
	return internalListener(nameOuterOriginate, true, tunnel(nameOuterOriginate, "%FILTER_STATE("+stateTarget+":PLAIN)%", overwrite("x-istio-source", "waypoint")))
}

// overwrite sets a header whatever was there.
func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
