package cluster

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
)

const types = `"@type":"type.googleapis.com/envoy.extensions.`

func mustConfig(t *testing.T, fields string) *Config {
	t.Helper()
	c, err := compileJSON(t, edsJSON(fields))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaultsAreEnvoys(t *testing.T) {
	c := mustConfig(t, "")
	if c.ConnectTimeout != 5*time.Second || c.Policy() != RoundRobin || c.balance.panic != 50 || c.IdleTimeout != 0 || c.outlier != nil ||
		c.thresholds != defaultThresholds || c.HTTP2(true) || c.Discovery != EDS || c.ServiceName != "s" || c.StatName != "c" {
		t.Errorf("config %+v", c)
	}
}

func TestTheProtocolOfEndpointsIsAsConfigured(t *testing.T) {
	options := func(s string) string {
		return `"typed_extension_protocol_options":{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{` + types + `upstreams.http.v3.HttpProtocolOptions",` + s + `}}`
	}
	for name, c := range map[string]struct {
		fields string
		want   [2]bool // HTTP/2 for a client with HTTP/1, with HTTP/2
	}{
		"nothing said":          {"", [2]bool{}},
		"HTTP/1":                {options(`"explicit_http_config":{"http_protocol_options":{}}`), [2]bool{}},
		"HTTP/2":                {options(`"explicit_http_config":{"http2_protocol_options":{}}`), [2]bool{true, true}},
		"as the client":         {options(`"use_downstream_protocol_config":{"http2_protocol_options":{}}`), [2]bool{false, true}},
		"as the client, so far": {`"protocol_selection":"USE_DOWNSTREAM_PROTOCOL"`, [2]bool{false, true}},
		"HTTP/2, so far":        {`"http2_protocol_options":{}`, [2]bool{true, true}},
	} {
		x := mustConfig(t, c.fields)
		if got := [2]bool{x.HTTP2(false), x.HTTP2(true)}; got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	x := mustConfig(t, options(`"common_http_protocol_options":{"idle_timeout":"0s","max_connection_duration":"60s","max_requests_per_connection":7,"max_stream_duration":"2s"},
		"explicit_http_config":{"http2_protocol_options":{"max_concurrent_streams":10,"initial_stream_window_size":65536,"connection_keepalive":{"interval":"10s","timeout":"5s"}}},
		"upstream_http_protocol_options":{"auto_sni":true,"auto_san_validation":true}`))
	want := HTTP{
		Protocol: HTTP2, IdleTimeout: -1, MaxConnectionDuration: time.Minute, MaxStreamDuration: 2 * time.Second, MaxRequestsPerConnection: 7, MaxStreams: 10,
		StreamWindow: 65536, PingInterval: 10 * time.Second, PingTimeout: 5 * time.Second, AutoSNI: true, AutoSAN: true,
	}
	if x.HTTP != want {
		t.Errorf("got  %+v\nwant %+v", x.HTTP, want)
	}
}

const tlsSocket = `{"name":"tls","typed_config":{` + types + `transport_sockets.tls.v3.UpstreamTlsContext","sni":"a.example.com","common_tls_context":{
	"alpn_protocols":["h2"],"tls_params":{"tls_minimum_protocol_version":"TLSv1_2","tls_maximum_protocol_version":"TLSv1_3"},
	"tls_certificate_sds_secret_configs":[{"name":"file-cert:a~b"}],
	"combined_validation_context":{"default_validation_context":{"match_subject_alt_names":[{"exact":"b"}],
		"match_typed_subject_alt_names":[{"san_type":"URI","matcher":{"prefix":"spiffe://td/"}}]},
		"validation_context_sds_secret_config":{"name":"file-root:c"}}}}}`

func TestTheTransportIsReadThroughItsWrappings(t *testing.T) {
	c := mustConfig(t, `"transport_socket":{"name":"i","typed_config":{`+types+`transport_sockets.internal_upstream.v3.InternalUpstreamTransport","transport_socket":
		{"name":"p","typed_config":{`+types+`transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport","config":{"version":"V2"},"transport_socket":`+tlsSocket+`}}}}`)
	x := c.transportFor(&Endpoint{})
	if !x.Tunnel || x.Proxy != 2 || x.TLS == nil {
		t.Fatalf("transport %+v", x)
	}
	s := x.TLS
	if s.SNI != "a.example.com" || fmt.Sprintln(s.ALPN, s.CertNames, s.CAName) != "[h2] [file-cert:a~b] file-root:c\n" || s.Min != tls.VersionTLS12 || s.Max != tls.VersionTLS13 || !s.Verify() {
		t.Errorf("TLS %+v", s)
	}
	if len(s.SANs) != 2 || s.SANs[0].Type != AnySAN || !s.SANs[0].Match.Match("b") || s.SANs[1].Type != URISAN || !s.SANs[1].Match.Match("spiffe://td/x") {
		t.Errorf("names %+v", s.SANs)
	}
	plain := mustConfig(t, "").transportFor(&Endpoint{})
	if plain.Tunnel || plain.TLS != nil || plain.Proxy != 0 {
		t.Errorf("transport %+v", plain)
	}
}

func TestTLSWithoutAuthorityVerifiesNothing(t *testing.T) {
	c := mustConfig(t, `"transport_socket":{"name":"tls","typed_config":{`+types+`transport_sockets.tls.v3.UpstreamTlsContext","common_tls_context":{}}}`)
	if c.transport.TLS.Verify() {
		t.Error("verifies")
	}
	c = mustConfig(t, `"transport_socket":{"name":"tls","typed_config":{`+types+`transport_sockets.tls.v3.UpstreamTlsContext","common_tls_context":{"validation_context":{"trusted_ca":{"filename":"/etc/ca.pem"}}}}}`)
	if !c.transport.TLS.Verify() || c.transport.TLS.CA.File != "/etc/ca.pem" {
		t.Errorf("TLS %+v", c.transport.TLS)
	}
}

func TestAnEndpointsMetadataChoosesItsTransport(t *testing.T) {
	b := newBed(t, `"transport_socket_matches":[{"name":"hbone","match":{"tunnel":"http"},"transport_socket":{"name":"i","typed_config":{`+types+`transport_sockets.internal_upstream.v3.InternalUpstreamTransport","transport_socket":{"name":"r","typed_config":{`+types+`transport_sockets.raw_buffer.v3.RawBuffer"}}}}},
		{"name":"tls","match":{"tlsMode":"istio"},"transport_socket":`+tlsSocket+`},{"name":"raw","match":{},"transport_socket":{"name":"envoy.transport_sockets.raw_buffer"}}]`)
	md := func(k, v string) string {
		return `"metadata":{"filter_metadata":{"envoy.transport_socket_match":{"` + k + `":"` + v + `"}}}`
	}
	b.endpoints(locality("", endpoint(1, md("tunnel", "http")), endpoint(2, md("tlsMode", "istio")), endpoint(3, md("tunnel", "x")), endpoint(4, "")))
	for n, want := range map[int]string{1: "hbone", 2: "tls", 3: "raw", 4: "raw"} {
		if got := b.host(n).Transport.Name; got != want {
			t.Errorf("endpoint %d: %s, want %s", n, got, want)
		}
	}
	if b.host(2).Transport.TLS == nil || !b.host(1).Transport.Tunnel {
		t.Error("transports")
	}
}

func assignment(t *testing.T, endpoints string) (*Assignment, error) {
	t.Helper()
	var p endpointv3.ClusterLoadAssignment
	if err := dumptest.Unmarshal([]byte(`{"cluster_name":"s",`+endpoints+`}`), &p); err != nil {
		t.Fatal(err)
	}
	return CompileEndpoints(&p)
}

func internal(listener, metadata string) string {
	return `"endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"envoy_internal_address":{"server_listener_name":"` + listener + `","endpoint_id":"10.0.0.1:80"}}},"metadata":{"filter_metadata":{` + metadata + `}}}]}]`
}

func TestAnEndpointSaysHowItIsReached(t *testing.T) {
	addr := netip.MustParseAddrPort("10.0.0.1:80")
	for name, c := range map[string]struct {
		endpoints string
		want      Endpoint
	}{
		"straight": {`"endpoints":[` + locality("", plain(1)...) + `]`, Endpoint{Addr: addr}},
		"by HBONE": {internal("connect_originate", `"envoy.filters.listener.original_dst":{"local":"10.0.0.1:80"}`), Endpoint{Addr: addr, Via: HBONE, Tunnel: addr, Listener: "connect_originate"}},
		"by HBONE over a waypoint": {internal("connect_originate", `"envoy.filters.listener.original_dst":{"local":"10.0.0.1:80","waypoint":"10.0.0.9:15008"}`),
			Endpoint{Addr: addr, Via: HBONE, Tunnel: addr, Waypoint: netip.MustParseAddrPort("10.0.0.9:15008"), Listener: "connect_originate"}},
		"by HBONE to where the client wanted": {internal("connect_originate", ``), Endpoint{Via: HBONE, Listener: "connect_originate"}},
		"by another network's gateway": {internal("inner_connect_originate", `"envoy.filters.listener.original_dst":{"local":"10.0.0.1:80"},"istio":{"double_hbone":{"hbone_target_address":"a.b:80"}}`),
			Endpoint{Addr: addr, Via: DoubleHBONE, Target: "a.b:80", Listener: "inner_connect_originate"}},
		"by a listener of Envoy's": {internal("main_internal", ``), Endpoint{Via: Internal, Listener: "main_internal"}},
	} {
		a, err := assignment(t, c.endpoints)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := *a.Endpoints[0]
		got.Locality, got.Workload, got.key, got.Weight = nil, nil, "", 0
		if got != c.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, c.want)
		}
	}
}

func TestAnEndpointSaysWhoItIs(t *testing.T) {
	a, err := assignment(t, internal("connect_originate", `"envoy.filters.listener.original_dst":{"local":"10.0.0.1:80"},"istio":{"workload":"reviews-v1;demo;reviews;v1;Kubernetes"}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := *a.Endpoints[0].Workload, (Workload{"reviews-v1", "demo", "reviews", "v1", "Kubernetes"}); got != want {
		t.Errorf("workload %+v", got)
	}
}

func TestClusterMetadataIsRead(t *testing.T) {
	c := mustConfig(t, `"alt_stat_name":"x;","metadata":{"filter_metadata":{"istio":{"services":[{"host":"a.b","name":"a","namespace":"b"}],"subset":"http/v1","config":"/apis/x","external":true}}}`)
	if c.StatName != "x" || len(c.Services) != 1 || c.Services[0] != (Service{"a.b", "a", "b"}) || c.Subset != "http/v1" || c.Rule != "/apis/x" || !c.External {
		t.Errorf("config %+v", c)
	}
}

func TestABadClusterIsRefusedWithTheFieldAndTheFault(t *testing.T) {
	socket := func(s string) string { return `"transport_socket":{"name":"x","typed_config":{` + types + s + `}}` }
	for name, c := range map[string]struct{ fields, want string }{
		"connect timeout":     {`"connect_timeout":"0s"`, `connect_timeout: must be more than 0`},
		"negative time":       {`"cleanup_interval":"-1s"`, `cleanup_interval: negative duration -1s`},
		"health checks":       {`"health_checks":[{}]`, `health_checks: unsupported: endpoints' health comes by EDS and outlier detection`},
		"subsets":             {`"lb_subset_config":{"subset_selectors":[{}]}`, `lb_subset_config: unsupported: subsets are clusters of their own`},
		"filter":              {`"filters":[{"name":"f"}]`, `filters[0].typed_config: unknown network filter "f" of type ""`},
		"policy":              {`"lb_policy":"CLUSTER_PROVIDED"`, `lb_policy: CLUSTER_PROVIDED fits only clusters that find their endpoint by the request`},
		"new kind of policy":  {`"load_balancing_policy":{}`, `load_balancing_policy: unsupported, use lb_policy`},
		"panic threshold":     {`"common_lb_config":{"healthy_panic_threshold":{"value":101}}`, `common_lb_config.healthy_panic_threshold: 101 is not between 0 and 100`},
		"choices":             {`"lb_policy":"LEAST_REQUEST","least_request_lb_config":{"choice_count":1}`, `least_request_lb_config.choice_count: 1 is less than 2`},
		"ring":                {`"lb_policy":"RING_HASH","ring_hash_lb_config":{"minimum_ring_size":9,"maximum_ring_size":8}`, `ring_hash_lb_config.minimum_ring_size: 9 is more than the maximum 8`},
		"large ring":          {`"lb_policy":"RING_HASH","ring_hash_lb_config":{"maximum_ring_size":8388609}`, `ring_hash_lb_config.maximum_ring_size: 8388609 is more than 8388608`},
		"hash function":       {`"lb_policy":"RING_HASH","ring_hash_lb_config":{"hash_function":"MURMUR_HASH_2"}`, `ring_hash_lb_config.hash_function: unsupported MURMUR_HASH_2`},
		"Maglev's table":      {`"lb_policy":"MAGLEV","maglev_lb_config":{"table_size":8}`, `maglev_lb_config.table_size: 8 is not a prime of at most 5000011`},
		"slow start":          {`"round_robin_lb_config":{"slow_start_config":{"slow_start_window":"1s","aggression":{"default_value":0}}}`, `round_robin_lb_config.slow_start_config.aggression: 0 is not more than 0`},
		"ejection percent":    {`"outlier_detection":{"max_ejection_percent":101}`, `outlier_detection.max_ejection_percent: 101 is more than 100`},
		"interval":            {`"outlier_detection":{"interval":"0s"}`, `outlier_detection.interval: at least 1 ms is required`},
		"priority":            {`"circuit_breakers":{"thresholds":[{"priority":5}]}`, `circuit_breakers.thresholds[0].priority: unknown value 5`},
		"budget":              {`"circuit_breakers":{"thresholds":[{"retry_budget":{"budget_percent":{"value":-1}}}]}`, `circuit_breakers.thresholds[0].retry_budget.budget_percent: -1 is not between 0 and 100`},
		"transport":           {`"transport_socket":{"name":"x"}`, `transport_socket.typed_config.type_url: unknown transport socket "x" of type ""`},
		"inner transport":     {socket(`transport_sockets.internal_upstream.v3.InternalUpstreamTransport"`), `transport_socket.typed_config.transport_socket: required`},
		"match's transport":   {`"transport_socket_matches":[{"name":"m","transport_socket":{"name":"x"}}]`, `transport_socket_matches[0].transport_socket.typed_config.type_url: unknown transport socket "x" of type ""`},
		"pinned certificate":  {socket(`transport_sockets.tls.v3.UpstreamTlsContext","common_tls_context":{"validation_context":{"verify_certificate_hash":["a"]}}`), `transport_socket.typed_config.common_tls_context.validation_context.verify_certificate_hash: unsupported`},
		"name of certificate": {socket(`transport_sockets.tls.v3.UpstreamTlsContext","common_tls_context":{"tls_certificate_sds_secret_configs":[{}]}`), `transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs[0].name: required`},
		"SAN":                 {socket(`transport_sockets.tls.v3.UpstreamTlsContext","common_tls_context":{"validation_context":{"match_typed_subject_alt_names":[{"san_type":"URI","matcher":{"safe_regex":{"regex":"("}}}]}}`), "transport_socket.typed_config.common_tls_context.validation_context.match_typed_subject_alt_names[0].matcher.safe_regex: error parsing regexp: missing closing ): `(`"},
		"upstream filter":     {`"typed_extension_protocol_options":{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{` + types + `upstreams.http.v3.HttpProtocolOptions","http_filters":[{"name":"f"}]}}`, `typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].http_filters[0].typed_config: unsupported upstream filter "f"`},
		"HTTP/3":              {`"typed_extension_protocol_options":{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{` + types + `upstreams.http.v3.HttpProtocolOptions","explicit_http_config":{"http3_protocol_options":{}}}}`, `typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].explicit_http_config.http3_protocol_options: unsupported`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := compileJSON(t, edsJSON(c.fields))
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
	for s, want := range map[string]string{
		`{"type":"STATIC"}`:                 `name: required`,
		`{"name":"c","type":"EDS"}`:         `eds_cluster_config: required by type EDS`,
		`{"name":"c","type":9}`:             `type: unknown value 9`,
		`{"name":"c","cluster_type":{}}`:    `cluster_type.typed_config: unknown kind of cluster "" of type ""`,
		`{"name":"c","type":"LOGICAL_DNS"}`: `load_assignment: 0 endpoints, and LOGICAL_DNS demands 1`,
		`{"name":"c","load_assignment":{"endpoints":[{"lb_endpoints":[{}]}]}}`:                                                                                `load_assignment.endpoints[0].lb_endpoints[0].endpoint: required`,
		`{"name":"c","load_assignment":{"endpoints":[` + locality("", `{"endpoint":{"address":{"socket_address":{"address":"a.b","port_value":1}}}}`) + `]}}`: `load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: "a.b" is not an address`,
	} {
		if _, err := compileJSON(t, s); err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", s, err, want)
		}
	}
}

func TestBadEndpointsAreRefusedWithTheFieldAndTheFault(t *testing.T) {
	one := func(s string) string { return `"endpoints":[{"lb_endpoints":[` + s + `]}]` }
	for name, c := range map[string]struct{ endpoints, want string }{
		"no address":       {one(`{"endpoint":{}}`), `endpoints[0].lb_endpoints[0].endpoint.address: required`},
		"port":             {one(`{"endpoint":{"address":{"socket_address":{"address":"10.0.0.1","port_value":70000}}}}`), `endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: not a port: 70000`},
		"UDP":              {one(`{"endpoint":{"address":{"socket_address":{"protocol":"UDP","address":"10.0.0.1","port_value":7}}}}`), `endpoints[0].lb_endpoints[0].endpoint.address.socket_address.protocol: unsupported UDP`},
		"pipe":             {one(`{"endpoint":{"address":{"pipe":{"path":"/x"}}}}`), `endpoints[0].lb_endpoints[0].endpoint.address.pipe: unsupported`},
		"weight":           {one(endpoint(1, `"load_balancing_weight":0`)), `endpoints[0].lb_endpoints[0].load_balancing_weight: must be more than 0`},
		"health":           {one(endpoint(1, `"health_status":77`)), `endpoints[0].lb_endpoints[0].health_status: unknown value 77`},
		"tunnel":           {internal("connect_originate", `"envoy.filters.listener.original_dst":{"local":"x"}`), `endpoints[0].lb_endpoints[0].endpoint.address.envoy_internal_address: metadata envoy.filters.listener.original_dst: local: "x" is not an address with port`},
		"waypoint":         {internal("connect_originate", `"envoy.filters.listener.original_dst":{"local":"10.0.0.1:1","waypoint":"y"}`), `endpoints[0].lb_endpoints[0].endpoint.address.envoy_internal_address: metadata envoy.filters.listener.original_dst: waypoint: "y" is not an address with port`},
		"gap":              {`"endpoints":[` + locality("", plain(1)...) + `,` + locality(`"priority":2`, endpoint(2, "")) + `]`, `endpoints: priority 1 is empty and there is a lower one`},
		"priority":         {`"endpoints":[{"priority":129}]`, `endpoints[0].priority: 129 is more than 128`},
		"overprovisioning": {`"policy":{"overprovisioning_factor":0}`, `policy.overprovisioning_factor: must be more than 0`},
		"named endpoints":  {`"named_endpoints":{"a":{}}`, `named_endpoints: unsupported`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := assignment(t, c.endpoints)
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}
