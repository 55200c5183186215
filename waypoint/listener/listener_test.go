package listener

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

const (
	ext    = `"@type":"type.googleapis.com/envoy.extensions.`
	router = `{"name":"router","typed_config":{` + ext + `filters.http.router.v3.Router"}}`
	inputs = ext + `matching.common_inputs.network.v3.`
)

// httpChain is a chain that ends in a connection manager; fields are more fields of it.
func httpChain(name, fields string) string {
	if fields != "" {
		fields = "," + fields
	}
	return `{"name":"` + name + `","filters":[{"name":"hcm","typed_config":{` + ext + `filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix":"x;","route_config":{"name":"r","virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/"},"route":{"cluster":"c"}}]}]},
		"http_filters":[` + router + `]` + fields + `}}]}`
}

func tcpChain(name, fields string) string {
	if fields == "" {
		fields = `"cluster":"c"`
	}
	return `{"name":"` + name + `","filters":[{"name":"tcp","typed_config":{` + ext + `filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"x",` + fields + `}}]}`
}

// action chooses a chain by name.
func action(chain string) string {
	return `{"action":{"name":"a","typed_config":{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"` + chain + `"}}}`
}

// nested is an on_match that goes on with a matcher.
func nested(m string) string { return `{"matcher":` + m + `}` }

// match is a matcher with an exact map; none is an on_match or "".
func match(input, none string, entries ...string) string {
	if none != "" {
		none = `,"on_no_match":` + none
	}
	return `{"matcher_tree":{"input":{"name":"i","typed_config":{` + inputs + input + `"}},"exact_match_map":{"map":{` + strings.Join(entries, ",") + `}}}` + none + `}`
}

func entry(key, on string) string { return `"` + key + `":` + on }

// ips is a matcher by address, of entries by ipRange.
func ips(none string, entries ...string) string {
	if none != "" {
		none = `,"on_no_match":` + none
	}
	return `{"matcher_tree":{"input":{"name":"ip","typed_config":{` + inputs + `DestinationIPInput"}},"custom_match":{"name":"ip","typed_config":
		{"@type":"type.googleapis.com/xds.type.matcher.v3.IPMatcher","range_matchers":[` + strings.Join(entries, ",") + `]}}}` + none + `}`
}

func ipRange(cidrs, on, fields string) string {
	var rs []string
	for _, c := range strings.Fields(cidrs) {
		p := netip.MustParsePrefix(c)
		rs = append(rs, fmt.Sprintf(`{"address_prefix":"%v","prefix_len":%d}`, p.Addr(), p.Bits()))
	}
	return `{"ranges":[` + strings.Join(rs, ",") + `],"on_match":` + on + fields + `}`
}

func compileJSON(t testing.TB, s string) (*Listener, error) {
	t.Helper()
	var p listenerv3.Listener
	if err := dumptest.Unmarshal([]byte(s), &p); err != nil {
		t.Fatalf("%v in %s", err, s)
	}
	return Compile(&p)
}

// internal is an internal listener in proto JSON; fields begin with a comma.
func internal(chains, fields string) string {
	return `{"name":"main_internal","internal_listener":{},"filter_chains":[` + chains + `]` + fields + `}`
}

func mustCompile(t testing.TB, chains, matcher string) *Listener {
	t.Helper()
	l, err := compileJSON(t, internal(chains, `,"filter_chain_matcher":`+matcher))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// say describes a target: the chains for HTTP/1, HTTP/2 and the rest.
func say(t *Target) string {
	if t == nil {
		return "refused"
	}
	name := func(h *HTTP) string {
		if h == nil {
			return "-"
		}
		return h.Chain.Name
	}
	tcp := "-"
	if t.TCP != nil {
		tcp = t.TCP.Chain.Name
	}
	return name(t.HTTP) + " " + name(t.H2C) + " " + tcp
}

func TestTheChainIsThatOfAddressAndPort(t *testing.T) {
	ports := match("DestinationPortInput", "", entry("80", action("web")), entry("5432", action("db")))
	l := mustCompile(t, httpChain("web", "")+","+tcpChain("db", "")+","+tcpChain("net", "")+","+tcpChain("six", "")+","+tcpChain("rest", ""), ips("",
		ipRange("10.0.0.0/8", action("net"), ""),
		ipRange("10.96.0.1/32 10.96.0.2/32", nested(ports), ""),
		ipRange("10.97.0.0/16", nested(match("DestinationPortInput", action("rest"), entry("1", action("db")))), ""),
		ipRange("fd00::/8", action("six"), "")))
	for dst, want := range map[string]string{
		"10.96.0.1:80": "web web -", "10.96.0.2:5432": "- - db", "[::ffff:10.96.0.1]:80": "web web -",
		"10.96.0.1:81": "- - net", // the longer range does not match to its end, so the shorter counts, as in Envoy
		"10.1.1.1:9":   "- - net", "10.97.3.4:1": "- - db", "10.97.3.4:2": "- - rest",
		"11.0.0.1:80": "refused", "[fd00::1]:80": "- - six", "[fd00::1%eth0]:80": "- - six", "[fe80::1]:80": "refused",
	} {
		if got := say(l.Lookup(netip.MustParseAddrPort(dst))); got != want {
			t.Errorf("%s: %s, want %s", dst, got, want)
		}
	}
}

func TestAnExclusiveRangeCountsOnlyIfItIsTheLongest(t *testing.T) {
	port := nested(match("DestinationPortInput", "", entry("1", action("a"))))
	l := mustCompile(t, tcpChain("a", "")+","+tcpChain("b", "")+","+tcpChain("c", ""), ips(action("c"),
		ipRange("10.0.0.0/8", action("b"), `,"exclusive":true`), ipRange("10.1.0.0/16", port, "")))
	for dst, want := range map[string]string{"10.1.0.1:1": "- - a", "10.1.0.1:2": "- - c", "10.2.0.1:2": "- - b", "11.0.0.1:1": "- - c"} {
		if got := say(l.Lookup(netip.MustParseAddrPort(dst))); got != want {
			t.Errorf("%s: %s, want %s", dst, got, want)
		}
	}
}

func TestAnUnnamedPortIsDividedByProtocol(t *testing.T) {
	auto := nested(match("ApplicationProtocolInput", action("raw"), entry("'http/1.1'", action("web")), entry("'h2c'", action("web"))))
	l := mustCompile(t, httpChain("web", "")+","+tcpChain("raw", ""), ips("", ipRange("10.0.0.1/32", auto, "")))
	if got := say(l.Lookup(netip.MustParseAddrPort("10.0.0.1:7"))); got != "web web raw" {
		t.Errorf("target %s", got)
	}
}

func TestTLSConnectionsAreDividedByServerName(t *testing.T) {
	names := nested(match("ServerNameInput", action("rest"), entry("a.example.com", action("a"))))
	domains := nested(`{"matcher_tree":{"input":{"name":"sni","typed_config":{` + inputs + `ServerNameInput"}},"custom_match":{"name":"d","typed_config":
		{"@type":"type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher","domain_matchers":[
		{"domains":["*.Example.com"],"on_match":` + action("a") + `},{"domains":["x.example.com","*.b.example.com"],"on_match":` + action("b") + `}]}}}}`)
	tls := nested(match("TransportProtocolInput", action("rest"), entry("tls", domains)))
	l := mustCompile(t, tcpChain("a", "")+","+tcpChain("b", "")+","+tcpChain("rest", ""), ips("", ipRange("10.0.0.1/32", names, ""), ipRange("10.0.0.2/32", tls, "")))
	for _, c := range []struct{ dst, name, want string }{
		{"10.0.0.1:443", "a.example.com", "a"}, {"10.0.0.1:443", "A.Example.COM", "a"}, {"10.0.0.1:443", "b.example.com", "rest"}, {"10.0.0.1:443", "", "rest"},
		{"10.0.0.2:443", "x.example.com", "b"}, {"10.0.0.2:443", "y.example.com", "a"}, {"10.0.0.2:443", "y.b.example.com", "b"},
		{"10.0.0.2:443", "example.com", ""}, {"10.0.0.2:443", "", ""},
	} {
		target := l.Lookup(netip.MustParseAddrPort(c.dst))
		got := ""
		if x := target.Names.Lookup(c.name); x != nil {
			got = x.Chain.Name
		}
		if got != c.want {
			t.Errorf("%s %q: %q, want %q", c.dst, c.name, got, c.want)
		}
		if say(target) != "- - rest" {
			t.Errorf("%s without TLS: %s", c.dst, say(target))
		}
	}
}

func TestAMeshOfSeveralNetworksNamesServicesByHost(t *testing.T) {
	m := `{"matcher_tree":{"input":{"name":"a","typed_config":{` + inputs + `FilterStateInput","key":"io.istio.connect_authority"}},"exact_match_map":{"map":{` +
		entry("a.demo.svc:80", action("web")) + `}}},"on_no_match":` + nested(ips("", ipRange("10.0.0.1/32", action("db"), ""))) + `}`
	l := mustCompile(t, httpChain("web", "")+","+tcpChain("db", ""), m)
	if got := say(l.LookupName("a.demo.svc:80")); got != "web web -" {
		t.Errorf("by name: %s", got)
	}
	if l.LookupName("b:80") != nil {
		t.Error("an unknown name is served")
	}
	if got := say(l.Lookup(netip.MustParseAddrPort("10.0.0.1:1"))); got != "- - db" {
		t.Errorf("by address: %s", got)
	}
}

func TestTheDefaultChainIsForWhatNothingMatched(t *testing.T) {
	l, err := compileJSON(t, internal(tcpChain("a", ""), `,"default_filter_chain":`+tcpChain("d", "")+`,"filter_chain_matcher":`+ips("", ipRange("10.0.0.1/32", action("a"), ""))))
	if err != nil {
		t.Fatal(err)
	}
	for dst, want := range map[string]string{"10.0.0.1:1": "- - a", "10.0.0.2:1": "- - d", "[::1]:1": "- - d"} {
		if got := say(l.Lookup(netip.MustParseAddrPort(dst))); got != want {
			t.Errorf("%s: %s, want %s", dst, got, want)
		}
	}
}

func TestOneChainNeedsNoMatcher(t *testing.T) {
	l, err := compileJSON(t, internal(tcpChain("", `"cluster":"connect_originate","tunneling_config":{"hostname":"%DOWNSTREAM_LOCAL_ADDRESS%","headers_to_add":[{"header":{"key":"x-istio-source","value":"waypoint"}}]}`), ""))
	if err != nil {
		t.Fatal(err)
	}
	x := l.Lookup(netip.MustParseAddrPort("10.0.0.1:1"))
	if x == nil || x.TCP.Tunnel == nil || x.TCP.Tunnel.Host == nil || x.TCP.Tunnel.Header == nil || x.TCP.Cluster(0) != "connect_originate" {
		t.Errorf("target %+v", x)
	}
}

func TestLookingUpDoesNotAllocate(t *testing.T) {
	l := mustCompile(t, httpChain("web", ""), ips("", ipRange("10.0.0.0/8 10.0.0.1/32 fd00::/8", nested(match("DestinationPortInput", "", entry("80", action("web")))), "")))
	dst := netip.MustParseAddrPort("10.0.0.1:80")
	if n := testing.AllocsPerRun(100, func() {
		if l.Lookup(dst) == nil {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestWeightedConnectionsAreShared(t *testing.T) {
	l, err := compileJSON(t, internal(tcpChain("a", `"weighted_clusters":{"clusters":[{"name":"v1","weight":80},{"name":"v2","weight":20}]},"max_connect_attempts":3,"idle_timeout":"60s","hash_policy":[{"source_ip":{}}]`), ""))
	if err != nil {
		t.Fatal(err)
	}
	x := l.Chains[0].TCP
	got := map[string]int{}
	for i := range uint64(1000) {
		got[x.Cluster(i)]++
	}
	if got["v1"] != 800 || got["v2"] != 200 || fmt.Sprint(x.Clusters()) != "[v1 v2]" {
		t.Errorf("shares %v of %v", got, x.Clusters())
	}
	if x.MaxConnectAttempts != 3 || x.IdleTimeout != time.Minute || !x.HashSource {
		t.Errorf("settings %+v", x)
	}
}

func TestAConnectionManagersDefaultsAreEnvoys(t *testing.T) {
	l, err := compileJSON(t, internal(httpChain("a", ""), ""))
	if err != nil {
		t.Fatal(err)
	}
	h := l.Chains[0].HTTP
	if h.IdleTimeout != time.Hour || h.StreamIdleTimeout != 5*time.Minute || h.MaxHeaderBytes != 60<<10 || h.MaxHeaders != 100 || h.ServerName != "envoy" ||
		!h.RequestID || !h.SampleByRequestID || h.Path != (route.PathPolicy{}) || h.StatPrefix != "x" || h.Routes == nil || len(h.Filters) != 0 {
		t.Errorf("settings %+v", h)
	}
}

func TestAConnectionManagersSettingsAreRead(t *testing.T) {
	l, err := compileJSON(t, internal(httpChain("a", `"codec_type":"HTTP2","server_name":"istio-envoy","server_header_transformation":"PASS_THROUGH","stream_idle_timeout":"0s",
		"common_http_protocol_options":{"idle_timeout":"1s","max_connection_duration":"2s","max_stream_duration":"3s","max_headers_count":9,"max_requests_per_connection":8},
		"request_timeout":"4s","request_headers_timeout":"5s","drain_timeout":"6s","max_request_headers_kb":7,
		"http2_protocol_options":{"max_concurrent_streams":100,"allow_connect":true,"connection_keepalive":{"interval":"10s","timeout":"20s"},"initial_stream_window_size":70000},
		"http_protocol_options":{"accept_http_10":true,"default_host_for_http_10":"h"},"proxy_100_continue":true,
		"normalize_path":true,"merge_slashes":true,"path_with_escaped_slashes_action":"UNESCAPE_AND_FORWARD","strip_any_host_port":true,
		"upgrade_configs":[{"upgrade_type":"WebSocket"},{"upgrade_type":"foo","enabled":false}],"scheme_header_transformation":{"scheme_to_overwrite":"https"},
		"use_remote_address":true,"xff_num_trusted_hops":2,"generate_request_id":false,"always_set_request_id_in_response":true,
		"forward_client_cert_details":"APPEND_FORWARD","set_current_client_cert_details":{"subject":true,"dns":true,"uri":true},"via":"v",
		"request_id_extension":{"typed_config":{`+ext+`request_id.uuid.v3.UuidRequestIdConfig","use_request_id_for_trace_sampling":false}}`), ""))
	if err != nil {
		t.Fatal(err)
	}
	h := *l.Chains[0].HTTP
	if fmt.Sprint(h.Upgrades) != "map[foo:false websocket:true]" {
		t.Errorf("upgrades %v", h.Upgrades)
	}
	h.Chain, h.Routes, h.Upgrades = nil, nil, nil
	want := HTTP{
		StatPrefix: "x", Codec: HTTP2, ServerName: "istio-envoy", ServerHeader: PassThrough, IdleTimeout: time.Second, MaxConnectionDuration: 2 * time.Second, MaxStreamDuration: 3 * time.Second,
		MaxHeaders: 9, MaxRequestsPerConnection: 8, RequestTimeout: 4 * time.Second, HeaderTimeout: 5 * time.Second, DrainTimeout: 6 * time.Second, MaxHeaderBytes: 7 << 10,
		MaxStreams: 100, Connect: true, PingInterval: 10 * time.Second, PingTimeout: 20 * time.Second, StreamWindow: 70000, HTTP10: true, HTTP10Host: "h", Proxy100: true,
		Path: route.PathPolicy{Normalize: true, MergeSlashes: true, Escaped: route.UnescapeAndForward}, StripAnyPort: true, Scheme: "https", UseRemoteAddress: true, TrustedHops: 2,
		EchoRequestID: true, ClientCert: AppendForward, CertSubject: true, CertDNS: true, CertURI: true, Via: "v",
	}
	if got, want := fmt.Sprintf("%+v", h), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRoutesMayComeByName(t *testing.T) {
	l, err := compileJSON(t, internal(strings.Replace(httpChain("a", ""), `"route_config":{"name":"r","virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/"},"route":{"cluster":"c"}}]}]}`, `"rds":{"route_config_name":"r","config_source":{"ads":{}}}`, 1), ""))
	if err != nil {
		t.Fatal(err)
	}
	if h := l.Chains[0].HTTP; h.Routes != nil || h.RouteName != "r" {
		t.Errorf("settings %+v", h)
	}
}

func TestTheTunnelsListenerHasItsTLS(t *testing.T) {
	l, err := compileJSON(t, `{"name":"connect_terminate","address":{"socket_address":{"address":"0.0.0.0","port_value":15008}},"filter_chains":[`+
		strings.TrimSuffix(httpChain("a", ""), "}")+`,"transport_socket":{"name":"tls","typed_config":{`+ext+`transport_sockets.tls.v3.DownstreamTlsContext","require_client_certificate":true,
		"common_tls_context":{"alpn_protocols":["h2"],"tls_certificate_sds_secret_configs":[{"name":"default"}],"combined_validation_context":{"default_validation_context":{},"validation_context_sds_secret_config":{"name":"ROOTCA"}}}}}}]}`)
	if err != nil {
		t.Fatal(err)
	}
	x := l.Chains[0].TLS
	if l.Address != netip.MustParseAddrPort("0.0.0.0:15008") || x == nil || !x.ClientCert || x.CAName != "ROOTCA" || fmt.Sprint(x.ALPN, x.CertNames) != "[h2] [default]" {
		t.Errorf("%v %+v", l.Address, x)
	}
}

func TestAChainThatIsTheSameStaysTheSameObject(t *testing.T) {
	compile := func(old *Listener, chains string) *Listener {
		t.Helper()
		var p listenerv3.Listener
		if err := dumptest.Unmarshal([]byte(internal(chains, `,"filter_chain_matcher":`+ips("", ipRange("10.0.0.1/32", action("a"), "")))), &p); err != nil {
			t.Fatal(err)
		}
		l, err := CompileOver(old, &p)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	one := compile(nil, httpChain("a", "")+","+tcpChain("b", ""))
	two := compile(one, tcpChain("b", `"cluster":"other"`)+","+httpChain("a", ""))
	if two.Chains[1] != one.Chains[0] || two.Lookup(netip.MustParseAddrPort("10.0.0.1:1")).HTTP != one.Chains[0].HTTP {
		t.Error("an unchanged chain was made anew")
	}
	if two.Chains[0] == one.Chains[1] || two.Chains[0].TCP.Cluster(0) != "other" {
		t.Error("a changed chain was kept")
	}
}
