package envoy

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	originalDst         = "envoy.filters.listener.original_dst"
	httpProtocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	noLimit             = 4294967295
	hbonePort           = 15008
)

func u32(v uint32) *wrapperspb.UInt32Value { return wrapperspb.UInt32(v) }

// unlimited turns the circuit breakers off.
func unlimited() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections: u32(noLimit), MaxPendingRequests: u32(noLimit), MaxRequests: u32(noLimit), MaxRetries: u32(noLimit),
	}}}
}

func rawBuffer(name string) *corev3.TransportSocket {
	return socket(name, &rawv3.RawBuffer{})
}

func socket(name string, m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: name, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: anyOf(m)}}
}

// hostMetadata and clusterMetadata are passed through an internal connection.
func hostMetadata(name string) *internalv3.InternalUpstreamTransport_MetadataValueSource {
	return &internalv3.InternalUpstreamTransport_MetadataValueSource{
		Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Host_{Host: &metadatav3.MetadataKind_Host{}}}, Name: name,
	}
}

func clusterMetadata(name string) *internalv3.InternalUpstreamTransport_MetadataValueSource {
	return &internalv3.InternalUpstreamTransport_MetadataValueSource{
		Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Cluster_{Cluster: &metadatav3.MetadataKind_Cluster{}}}, Name: name,
	}
}

func httpOptions(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{httpProtocolOptions: anyOf(o)}
}

// explicit is a fixed version of HTTP.
func explicit(h2 *corev3.Http2ProtocolOptions) *httpv3.HttpProtocolOptions_ExplicitHttpConfig_ {
	if h2 == nil {
		return &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
		}}
	}
	return &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: h2},
	}}
}

// asDownstream is the client's version of HTTP.
func asDownstream(h2 *corev3.Http2ProtocolOptions) *httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig {
	return &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: h2,
	}}
}

func connectOptions(perConnection uint32) map[string]*anypb.Any {
	common := &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(time.Hour)}
	if perConnection > 0 {
		common.MaxRequestsPerConnection = u32(perConnection)
	}
	return httpOptions(&httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: common, UpstreamProtocolOptions: explicit(&corev3.Http2ProtocolOptions{AllowConnect: true}),
	})
}

func internalAddress(listener, id string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
		AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: listener}, EndpointId: id,
	}}}
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// internalCluster leads to an internal listener.
func internalCluster(name, listener string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, AltStatName: name + ";", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: internalAddress(listener, "")}}}},
		}}},
		CircuitBreakers: unlimited(),
		TypedExtensionProtocolOptions: httpOptions(&httpv3.HttpProtocolOptions{
			CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(5 * time.Minute)},
			UpstreamProtocolOptions:   asDownstream(&corev3.Http2ProtocolOptions{}),
		}),
		TransportSocket: socket("internal_upstream", &internalv3.InternalUpstreamTransport{TransportSocket: rawBuffer("raw_buffer")}),
	}
}

// originateCluster opens HBONE to the address that the connection is for.
func (x *Index) originateCluster(name string, identities []string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, AltStatName: name + ";", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		ConnectTimeout: durationpb.New(10 * time.Second), LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED, CircuitBreakers: unlimited(),
		CleanupInterval: durationpb.New(time.Minute),
		LbConfig: &clusterv3.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &clusterv3.Cluster_OriginalDstLbConfig{
			UpstreamPortOverride: u32(hbonePort),
		}},
		TransportSocket: socket("tls", &tlsv3.UpstreamTlsContext{CommonTlsContext: meshTLS(uriPrefixes(identities...))}),
	}
}

// plumbingClusters are those that every waypoint has (3.6).
func (w *builder) plumbingClusters() []*clusterv3.Cluster {
	prefixes := w.trustPrefixes()
	originate := w.originateCluster(nameConnectOriginate, append(prefixes, "spiffe://"+w.cfg.TrustDomain+"/ns/"+w.gateway.Namespace+"/sa/"))
	originate.TypedExtensionProtocolOptions = connectOptions(0)
	// An endpoint that must be reached through a waypoint names it in its metadata.
	originate.GetOriginalDstLbConfig().MetadataKey = &metadatav3.MetadataKey{
		Key: originalDst, Path: []*metadatav3.MetadataKey_PathSegment{{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: "waypoint"}}},
	}
	outer := w.originateCluster(nameOuterOriginate, prefixes)
	outer.TypedExtensionProtocolOptions = connectOptions(1)
	inner := internalCluster(nameInnerOriginate, nameOuterOriginate)
	inner.TypedExtensionProtocolOptions = connectOptions(1)
	inner.TransportSocket = socket("internal_upstream_with_tls", &internalv3.InternalUpstreamTransport{
		TransportSocket: socket("tls", &tlsv3.UpstreamTlsContext{CommonTlsContext: meshTLS(uriPrefixes(prefixes...))}),
	})
	return []*clusterv3.Cluster{
		originate, internalCluster(nameEncap, nameConnectOriginate), internalCluster(nameMainInternal, nameMainInternal), inner, outer,
	}
}
