package listener

import (
	"strings"
	"testing"
)

func TestABadListenerIsRefusedWithTheFieldAndTheFault(t *testing.T) {
	a := tcpChain("a", "")
	with := func(m string) string { return internal(a, `,"filter_chain_matcher":`+m) }
	hcm := func(fields string) string { return internal(httpChain("h", fields), "") }
	const f0 = `filter_chains[0].filters[0].typed_config`
	for name, c := range map[string]struct{ listener, want string }{
		"no name":          {`{"internal_listener":{}}`, `name: required`},
		"no address":       {`{"name":"l"}`, `address: a socket address, or internal_listener, is required`},
		"UDP":              {`{"name":"l","address":{"socket_address":{"protocol":"UDP","address":"0.0.0.0","port_value":1}}}`, `address.socket_address.protocol: unsupported UDP`},
		"listener filter":  {internal(a, `,"listener_filters":[{"name":"f"}]`), `listener_filters[0].typed_config: unknown type "" of listener filter "f"`},
		"no chain":         {internal("", ""), `filter_chains: required`},
		"no filter":        {internal(`{"name":"a"}`, ""), `filter_chains[0].filters: required`},
		"same name":        {internal(a+","+a, ""), `filter_chains[1].name: "a" is there twice`},
		"two chains":       {internal(a+","+tcpChain("b", ""), ""), `filter_chains: 2 chains and no filter_chain_matcher`},
		"chain match":      {internal(strings.Replace(a, `{"name"`, `{"filter_chain_match":{"destination_port":80},"name"`, 1), ""), `filter_chains[0].filter_chain_match: unsupported, use filter_chain_matcher`},
		"inner TLS":        {internal(strings.Replace(a, `{"name"`, `{"transport_socket":{"name":"t","typed_config":{`+ext+`transport_sockets.tls.v3.DownstreamTlsContext"}},"name"`, 1), ""), `filter_chains[0].transport_socket.typed_config: unsupported: TLS is not ended behind the tunnel`},
		"last filter":      {internal(`{"name":"a","filters":[{"name":"f"}]}`, ""), `filter_chains[0].filters[0].typed_config: the last filter "f" of type "" is neither a connection manager nor a TCP proxy`},
		"network filter":   {internal(strings.Replace(a, `"filters":[`, `"filters":[{"name":"f"},`, 1), ""), `filter_chains[0].filters[0].typed_config: required`},
		"unknown chain":    {with(ips("", ipRange("10.0.0.1/32", action("b"), ""))), `filter_chain_matcher.matcher_tree.custom_match.typed_config.range_matchers[0].on_match.action.typed_config: no filter chain is named "b"`},
		"range":            {with(ips("", `{"ranges":[{"address_prefix":"10.0.0.1","prefix_len":33}],"on_match":`+action("a")+`}`)), `filter_chain_matcher.matcher_tree.custom_match.typed_config.range_matchers[0].ranges[0].prefix_len: 33 is too long for 10.0.0.1`},
		"port":             {with(match("DestinationPortInput", "", entry("x", action("a")))), `filter_chain_matcher.matcher_tree.exact_match_map.map["x"]: "x" is not a port`},
		"protocol":         {with(match("ApplicationProtocolInput", "", entry("http/1.1", action("a")))), `filter_chain_matcher.matcher_tree.exact_match_map.map["http/1.1"]: unknown protocol http/1.1`},
		"input":            {with(match("SourcePortInput", "", entry("1", action("a")))), `filter_chain_matcher.matcher_tree.input.typed_config: unsupported input "i" of type "envoy.extensions.matching.common_inputs.network.v3.SourcePortInput"`},
		"address below":    {with(match("ApplicationProtocolInput", "", entry("'h2c'", nested(match("DestinationPortInput", "", entry("1", action("a"))))))), `filter_chain_matcher.matcher_tree.exact_match_map.map["'h2c'"].matcher.matcher_tree.input.typed_config: unsupported input "i" of type "envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput"`},
		"list of matchers": {with(`{"matcher_list":{}}`), `filter_chain_matcher.matcher_list: unsupported`},
		"on_no_match":      {with(ips(action("b"), ipRange("10.0.0.1/32", action("a"), ""))), `filter_chain_matcher.on_no_match.action.typed_config: no filter chain is named "b"`},
		"domain":           {with(`{"matcher_tree":{"input":{"name":"s","typed_config":{` + inputs + `ServerNameInput"}},"custom_match":{"name":"d","typed_config":{"@type":"type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher","domain_matchers":[{"domains":["a*"],"on_match":` + action("a") + `}]}}}}`), `filter_chain_matcher.matcher_tree.custom_match.typed_config.domain_matchers[0].domains[0]: "a*" is not a domain, or one with *. in front`},
		"route":            {internal(strings.Replace(httpChain("h", ""), `"prefix":"/"`, `"safe_regex":{"regex":"("}`, 1), ""), f0 + ".route_config.virtual_hosts[0].routes[0].match.safe_regex: error parsing regexp: missing closing ): `(`"},
		"no routes":        {internal(strings.Replace(httpChain("h", ""), `"route_config"`, `"scoped_routes":{},"unknown"`, 1), ""), f0 + `.scoped_routes: unsupported`},
		"no router":        {internal(strings.Replace(httpChain("h", ""), router, ``, 1), ""), f0 + `.http_filters: required: at least the router`},
		"router first":     {internal(strings.Replace(httpChain("h", ""), router, router+","+router, 1), ""), f0 + `.http_filters[0].typed_config: the router has to be the last filter, and only that`},
		"local reply":      {hcm(`"local_reply_config":{"mappers":[{}]}`), f0 + `.local_reply_config: unsupported`},
		"HTTP/3":           {hcm(`"codec_type":"HTTP3"`), f0 + `.codec_type: unsupported HTTP3`},
		"timeout":          {hcm(`"request_timeout":"-1s"`), f0 + `.request_timeout: negative duration -1s`},
		"header size":      {hcm(`"max_request_headers_kb":0`), f0 + `.max_request_headers_kb: 0 is not between 1 and 8192`},
		"upgrade":          {hcm(`"upgrade_configs":[{}]`), f0 + `.upgrade_configs[0].upgrade_type: required`},
		"scheme":           {hcm(`"scheme_header_transformation":{"scheme_to_overwrite":"ftp"}`), f0 + `.scheme_header_transformation.scheme_to_overwrite: "ftp" is neither http nor https`},
		"access log":       {hcm(`"access_log":[{"name":"x"}]`), ""},
		"TCP cluster":      {internal(tcpChain("a", `"cluster":""`), ""), f0 + `.cluster: empty name`},
		"TCP weights":      {internal(tcpChain("a", `"weighted_clusters":{"clusters":[{"name":"x"}]}`), ""), f0 + `.weighted_clusters.clusters: the sum of weights is 0`},
		"TCP attempts":     {internal(tcpChain("a", `"cluster":"c","max_connect_attempts":0`), ""), f0 + `.max_connect_attempts: must be more than 0`},
		"TCP tunnel":       {internal(tcpChain("a", `"cluster":"c","tunneling_config":{"hostname":"%X%"}`), ""), f0 + `.tunneling_config.hostname: position 1 of "%X%": unknown operator "X"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := compileJSON(t, c.listener)
			if err == nil || c.want != "" && err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if c.want == "" && !strings.HasPrefix(err.Error(), f0+".access_log[0]") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAnUnknownFilterIsRefusedByItsName(t *testing.T) {
	l := internal(strings.Replace(httpChain("h", ""), router, `{"name":"odd","typed_config":{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"x"}},`+router, 1), "")
	_, err := compileJSON(t, l)
	if err == nil || !strings.HasPrefix(err.Error(), `filter_chains[0].filters[0].typed_config.http_filters[0].typed_config: unknown type "google.protobuf.StringValue" of filter "odd"`) {
		t.Errorf("got %v", err)
	}
}
