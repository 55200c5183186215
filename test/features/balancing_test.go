package features

// balancing is which pod gets a request.
func balancing() []group {
	const field = "DestinationRule.trafficPolicy.loadBalancer"
	lb := func(how string) string { return destination("loadBalancer: {" + how + "}") }
	hash := func(how string) string { return lb("consistentHash: {" + how + "}") }
	all := []ask{get("/").times(60).want(ok).pods(3, 3)}
	many := get("/", "x-user: u$N").times(40).want(ok).pods(2, 3)
	one := get("/", "x-user: alice").times(20).want(ok).pods(1, 1)
	return []group{{title: "balance", features: []feature{
		{name: "in turn", field: field + ".simple", yaml: lb("simple: ROUND_ROBIN"), asks: all},
		{name: "in turn, evenly", field: field + ".simple", yaml: lb("simple: ROUND_ROBIN"), asks: []ask{get("/").times(90).want(ok).count(atV2, 20, 42)}},
		{name: "to the least busy", field: field + ".simple", yaml: lb("simple: LEAST_REQUEST"), asks: all},
		{name: "by the old name of the least busy", field: field + ".simple", yaml: lb("simple: LEAST_CONN"), asks: all},
		{name: "at random", field: field + ".simple", yaml: lb("simple: RANDOM"), asks: all},
		{name: "without saying how", field: field, yaml: "", asks: all},
		{name: "by a header", field: field + ".consistentHash.httpHeaderName", yaml: hash("httpHeaderName: x-user"), asks: []ask{one, many}},
		{name: "by a header on new connections", field: field + ".consistentHash.httpHeaderName", yaml: hash("httpHeaderName: x-user"), asks: []ask{get("/", "x-user: alice", "connection: close").times(20).anew().want(ok).pods(1, 1)}},
		{name: "by a cookie of the client", field: field + ".consistentHash.httpCookie", yaml: hash("httpCookie: {name: session, ttl: 60s}"), asks: []ask{
			get("/", "cookie: session=alice").times(20).want(ok, "!answer.set-cookie=*").pods(1, 1), get("/", "cookie: session=u$N").times(40).want(ok).pods(2, 3)}},
		{name: "by a cookie that is given", field: field + ".consistentHash.httpCookie.ttl", yaml: hash("httpCookie: {name: session, ttl: 60s}"), asks: []ask{get("/").want(ok, "answer.set-cookie=session=*")}},
		{name: "by a cookie with a path", field: field + ".consistentHash.httpCookie.path", yaml: hash("httpCookie: {name: session, path: /p, ttl: 60s}"), asks: []ask{get("/").want(ok, "answer.set-cookie=session=*")}},
		{name: "by the client's address", field: field + ".consistentHash.useSourceIp", yaml: hash("useSourceIp: true"), asks: []ask{get("/").times(20).want(ok).pods(1, 1), get("/", "connection: close").times(10).anew().want(ok).pods(1, 1)}},
		{name: "by the query", field: field + ".consistentHash.httpQueryParameterName", yaml: hash("httpQueryParameterName: user"), asks: []ask{get("/?user=alice").times(20).want(ok).pods(1, 1), get("/?user=u$N").times(40).want(ok).pods(2, 3)}},
		{name: "by a ring", field: field + ".consistentHash.ringHash.minimumRingSize", yaml: hash("httpHeaderName: x-user, ringHash: {minimumRingSize: 2048}"), asks: []ask{one, many}},
		{name: "by Maglev's table", field: field + ".consistentHash.maglev.tableSize", yaml: hash("httpHeaderName: x-user, maglev: {tableSize: 65537}"), asks: []ask{one, many}},
		{name: "by a hash, from a route", field: field + ".consistentHash.httpHeaderName", yaml: virtual(toSelf) + hash("httpHeaderName: x-user"), asks: []ask{one, many}},
		{name: "by a hash within a subset", field: "DestinationRule.subsets.trafficPolicy.loadBalancer", yaml: virtual("route: [{destination: {host: $S, subset: v1}}]") +
			"{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: $S, namespace: shop}, spec: {host: $S, subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}]}}\n---\n",
			asks: []ask{get("/", "x-user: alice").times(20).want(ok, atV1).pods(1, 1), get("/", "x-user: u$N").times(40).want(ok, atV1).pods(2, 2)}},
		{name: "for a port", field: "DestinationRule.trafficPolicy.portLevelSettings.loadBalancer", yaml: destination("portLevelSettings: [{port: {number: 80}, loadBalancer: {consistentHash: {httpHeaderName: x-user}}}]"), asks: []ask{one}},
		{name: "in turn within a subset", field: "DestinationRule.subsets.trafficPolicy.loadBalancer", yaml: virtual("route: [{destination: {host: $S, subset: v1}}]") +
			"{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: $S, namespace: shop}, spec: {host: $S, subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]}}\n---\n",
			asks: []ask{get("/").times(20).want(ok, atV1).pods(2, 2)}},
		{name: "with a warm-up", field: field + ".warmup.duration", yaml: lb("simple: ROUND_ROBIN, warmup: {duration: 1s}"), asks: []ask{get("/").times(60).want(ok).pods(3, 3)}},
		{name: "with failover between zones", field: field + ".localityLbSetting.failoverPriority", yaml: destination(`loadBalancer: {localityLbSetting: {enabled: true, failoverPriority: ["topology.kubernetes.io/zone"]}}, outlierDetection: {consecutive5xxErrors: 5}`), asks: []ask{get("/").times(30).want(ok).pods(1, 2)}},
	}}}
}
