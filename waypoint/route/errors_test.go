package route

import (
	"strings"
	"testing"
)

func TestAnErrorNamesTheFieldAndTheFault(t *testing.T) {
	route := func(match, rest string) string {
		if rest == "" {
			rest = toA
		}
		return `"virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{` + match + `},` + rest + `}]}]`
	}
	fwd := func(s string) string { return route(`"prefix":"/"`, `"route":{"cluster":"a",`+s+`}`) }
	for name, c := range map[string]struct{ config, want string }{
		"no match":                 {`"virtual_hosts":[{"name":"v","domains":["*"],"routes":[{` + toA + `}]}]`, `virtual_hosts[0].routes[0].match: required`},
		"no path":                  {route(``, ``), `virtual_hosts[0].routes[0].match.path_specifier: required`},
		"regex":                    {route(`"safe_regex":{"regex":"a("}`, ``), "virtual_hosts[0].routes[0].match.safe_regex: error parsing regexp: missing closing ): `a(`"},
		"regex that breaks out":    {route(`"safe_regex":{"regex":"a)|(b"}`, ``), "virtual_hosts[0].routes[0].match.safe_regex: error parsing regexp: unexpected ): `a)|(b`"},
		"long regex":               {route(`"safe_regex":{"regex":"`+strings.Repeat("a", 16<<10+1)+`"}`, ``), "virtual_hosts[0].routes[0].match.safe_regex: regular expression too long"},
		"separated prefix":         {route(`"path_separated_prefix":"/a/"`, ``), `virtual_hosts[0].routes[0].match.path_separated_prefix: "/a/" is not a path without trailing slash, query and fragment`},
		"header without name":      {route(`"prefix":"/","headers":[{"present_match":true}]`, ``), `virtual_hosts[0].routes[0].match.headers[0].name: empty header name`},
		"header without pattern":   {route(`"prefix":"/","headers":[{"name":"a","string_match":{}}]`, ``), `virtual_hosts[0].routes[0].match.headers[0].string_match: no pattern`},
		"header with empty prefix": {route(`"prefix":"/","headers":[{"name":"a","prefix_match":""}]`, ``), `virtual_hosts[0].routes[0].match.headers[0].prefix_match.prefix: empty pattern`},
		"case of a regex":          {route(`"prefix":"/","headers":[{"name":"a","string_match":{"safe_regex":{"regex":"a"},"ignore_case":true}}]`, ``), `virtual_hosts[0].routes[0].match.headers[0].string_match.ignore_case: has no effect on safe_regex`},
		"parameter without name":   {route(`"prefix":"/","query_parameters":[{"present_match":true}]`, ``), `virtual_hosts[0].routes[0].match.query_parameters[0].name: empty parameter name`},
		"TLS condition":            {route(`"prefix":"/","tls_context":{"presented":true}`, ``), `virtual_hosts[0].routes[0].match.tls_context: unsupported condition`},
		"fraction":                 {route(`"prefix":"/","runtime_fraction":{}`, ``), `virtual_hosts[0].routes[0].match.runtime_fraction.default_value: required`},
		"metadata condition":       {route(`"prefix":"/","dynamic_metadata":[{"filter":"f"}]`, ``), `virtual_hosts[0].routes[0].match.dynamic_metadata[0].path: required`},
		"state condition":          {route(`"prefix":"/","filter_state":[{"key":"f","address_match":{"ranges":[{"address_prefix":"x"}]}}]`, ``), `virtual_hosts[0].routes[0].match.filter_state[0].address_match.ranges[0].address_prefix: "x" is not an address`},
		"template":                 {route(`"path_match_policy":{"typed_config":{"@type":"type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig","path_template":"/a/{**}/{*}"}}`, ``), `virtual_hosts[0].routes[0].match.path_match_policy.typed_config.path_template: wildcard after **`},
		"no action":                {route(`"prefix":"/"`, `"name":"x"`), `virtual_hosts[0].routes[0].action: one of route, redirect and direct_response is required`},
		"no cluster":               {route(`"prefix":"/"`, `"route":{"cluster":""}`), `virtual_hosts[0].routes[0].route.cluster: empty name`},
		"weights of 0":             {route(`"prefix":"/"`, `"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":0}]}}`), `virtual_hosts[0].routes[0].route.weighted_clusters.clusters: the sum of weights is 0`},
		"weights too large":        {route(`"prefix":"/"`, `"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":4294967295},{"name":"b","weight":1}]}}`), `virtual_hosts[0].routes[0].route.weighted_clusters.clusters: the sum of weights 4294967296 is too large`},
		"weight without name":      {route(`"prefix":"/"`, `"route":{"weighted_clusters":{"clusters":[{"weight":1}]}}`), `virtual_hosts[0].routes[0].route.weighted_clusters.clusters[0]: one of name and cluster_header is required`},
		"direct status":            {route(`"prefix":"/"`, `"direct_response":{"status":99}`), `virtual_hosts[0].routes[0].direct_response.status: 99 is not between 200 and 599`},
		"direct body too long":     {route(`"prefix":"/"`, `"direct_response":{"status":200,"body":{"inline_string":"`+strings.Repeat("a", 5000)+`"}}`), `virtual_hosts[0].routes[0].direct_response.body: 5000 bytes, at most 4096`},
		"redirect port":            {route(`"prefix":"/"`, `"redirect":{"port_redirect":70000}`), `virtual_hosts[0].routes[0].redirect.port_redirect: not a port: 70000`},
		"negative timeout":         {fwd(`"timeout":"-1s"`), `virtual_hosts[0].routes[0].route.timeout: negative duration -1s`},
		"two rewrites":             {fwd(`"prefix_rewrite":"/a","regex_rewrite":{"pattern":{"regex":"a"}}`), `virtual_hosts[0].routes[0].route.prefix_rewrite: more than one way to rewrite the path`},
		"rewrite group":            {fwd(`"regex_rewrite":{"pattern":{"regex":"a"},"substitution":"\\1"}`), `virtual_hosts[0].routes[0].route.regex_rewrite.substitution: group 1 of a pattern with 0`},
		"internal redirect":        {fwd(`"internal_redirect_policy":{}`), `virtual_hosts[0].routes[0].route.internal_redirect_policy: unsupported`},
		"subset":                   {fwd(`"metadata_match":{"filter_metadata":{"envoy.lb":{"v":"1"}}}`), `virtual_hosts[0].routes[0].route.metadata_match: unsupported: subsets are clusters of their own`},
		"mirror":                   {fwd(`"request_mirror_policies":[{"cluster":"m"},{}]`), `virtual_hosts[0].routes[0].route.request_mirror_policies[1]: one of cluster and cluster_header is required`},
		"upgrade":                  {fwd(`"upgrade_configs":[{}]`), `virtual_hosts[0].routes[0].route.upgrade_configs[0].upgrade_type: required`},
		"hash":                     {fwd(`"hash_policy":[{"header":{}}]`), `virtual_hosts[0].routes[0].route.hash_policy[0].policy_specifier: empty name`},
		"back-off":                 {fwd(`"retry_policy":{"retry_back_off":{"base_interval":"0.0001s"}}`), `virtual_hosts[0].routes[0].route.retry_policy.retry_back_off.base_interval: at least 1 ms is required`},
		"retry predicate":          {fwd(`"retry_policy":{"retry_host_predicate":[{"name":"x"}]}`), `virtual_hosts[0].routes[0].route.retry_policy.retry_host_predicate[0].typed_config: unsupported predicate "x" of type ""`},
		"pseudo header":            {`"request_headers_to_add":[{"header":{"key":":path","value":"x"}}]`, `request_headers_to_add[0].header.key: pseudo headers and host may not be changed`},
		"host header":              {`"request_headers_to_remove":["Host"]`, `request_headers_to_remove[0]: pseudo headers and host may not be changed`},
		"header name":              {`"response_headers_to_add":[{"header":{"key":"a b","value":"x"}}]`, `response_headers_to_add[0].header.key: malformed header name`},
		"header value":             {`"response_headers_to_add":[{"header":{"key":"a","value":"x\r\ny"}}]`, `response_headers_to_add[0].header.value: character that is not allowed in a header`},
		"operator":                 {`"request_headers_to_add":[{"header":{"key":"a","value":"x%NOPE%"}}]`, `request_headers_to_add[0].header.value: position 2 of "x%NOPE%": unknown operator "NOPE"`},
		"open operator":            {`"request_headers_to_add":[{"header":{"key":"a","value":"%REQ(a"}}]`, `request_headers_to_add[0].header.value: position 1 of "%REQ(a": REQ: no closing parenthesis`},
		"the same domain":          {`"virtual_hosts":[{"name":"v","domains":["a.com"]},{"name":"w","domains":["b.com","A.com"]}]`, `virtual_hosts[1].domains[1]: the domain "a.com" is there twice`},
		"the same name":            {`"virtual_hosts":[{"name":"v","domains":["a.com"]},{"name":"v","domains":["b.com"]}]`, `virtual_hosts[1].name: "v" is there twice`},
		"no domain":                {`"virtual_hosts":[{"name":"v"}]`, `virtual_hosts[0].domains: required`},
		"on-demand hosts":          {`"vhds":{"config_source":{"ads":{}}}`, `vhds: unsupported`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := compileJSON(t, `{`+c.config+`}`)
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}
