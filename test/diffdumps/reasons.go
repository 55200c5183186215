package main

import (
	"regexp"
	"strings"
)

// reason explains differences whose "SCENARIO KIND RESOURCE PATH" matches.
type reason struct {
	where *regexp.Regexp
	text  string
}

func because(where, text string) reason { return reason{regexp.MustCompile(where), text} }

// reasons are all known differences.
var reasons = []reason{
	because(`^02-\S+ LDS main_internal .*\|9090\|http\|ratings.*hash_policy`,
		"a port's own settings replace those of the host (their documentation says so): the port is balanced at random, and a hash would have no effect"),
	because(`^09-canary EDS inbound-vip\|80\|http\|canaried`,
		"the recording's API server has no controller that would make an EndpointSlice of the selector; we go by the selector"),
	because(`^06-egress LDS main_internal filter_chain_matcher.*240\.240\.1\.0`,
		"all addresses of a ServiceEntry lead to it, not only the first"),
	because(`^06-egress (CDS inbound-vip|LDS main_internal .*)\|443\|tcp\|\*\.wildcard|^06-egress LDS main_internal filter_chain_matcher.*240\.240\.0\.4.*\.443`,
		"TLS to a wildcard host is served, for the names of the wildcard only; istiod needs ENABLE_WILDCARD_HOST_SERVICE_ENTRIES_FOR_TLS"),
	because(`^06-egress CDS outbound\|(80|443)\|\|httpbin.org`,
		"no resource refers to these clusters: the host is served by the waypoint itself"),
	because(`^06-egress EDS inbound-vip\|8080\|http\|static.internal .*(lb_endpoints|load_balancing_weight)`,
		"each endpoint once: istiod repeats them for each address of the ServiceEntry"),
}

func reasonFor(scenario string, d difference) string {
	at := strings.Join([]string{scenario, d.kind, d.resource, d.path}, " ")
	for _, r := range reasons {
		if r.where.MatchString(at) {
			return r.text
		}
	}
	return ""
}
