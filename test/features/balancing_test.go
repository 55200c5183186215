package features

import (
	"context"
	"fmt"
	"maps"
	"strings"
)

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
		{name: "in turn, evenly", field: field + ".simple", yaml: lb("simple: ROUND_ROBIN"), asks: []ask{get("/").times(90).want(ok).count(atV2, 29, 31)}},
		{name: "in turn, evenly, over connections at once", field: field + ".simple", yaml: lb("simple: ROUND_ROBIN"), asks: []ask{get("/").times(180).workers(6).want(ok).count(atV2, 40, 80)}},
		{name: "to the least busy", field: field + ".simple", yaml: lb("simple: LEAST_REQUEST"), asks: all},
		{name: "to the least busy, so that a slow pod gets little", field: field + ".simple", yaml: lb("simple: LEAST_REQUEST"), pods: `pace: "yes"`, slow: true, asks: []ask{get("/").times(150).workers(6).want(ok).count("pod=slow", 0, 36)}},
		{name: "in turn, a slow pod gets its share", field: field + ".simple", yaml: lb("simple: ROUND_ROBIN"), pods: `pace: "yes"`, slow: true, asks: []ask{get("/").times(45).workers(6).want(ok).count("pod=slow", 10, 20)}},
		{name: "by the old name of the least busy", field: field + ".simple", yaml: lb("simple: LEAST_CONN"), asks: all},
		{name: "at random", field: field + ".simple", yaml: lb("simple: RANDOM"), asks: all},
		{name: "at random, not in turn", field: field + ".simple", yaml: lb("simple: RANDOM"), asks: []ask{get("/").times(300).want(ok).count(atV2, 60, 145)}},
		{name: "to where the client wants, which is the service", field: field + ".simple PASSTHROUGH", yaml: lb("simple: PASSTHROUGH"), asks: all},
		{name: "without saying how", field: field, yaml: "", asks: all},
		{name: "a client stays with a pod if the service wants it", field: "Service.spec.sessionAffinity", spec: "sessionAffinity: ClientIP,", asks: []ask{get("/").times(20).want(ok).pods(1, 1), get("/", "connection: close").times(10).anew().want(ok).pods(1, 1)}},
		{name: "a client stays with a pod unless a rule says how", field: "Service.spec.sessionAffinity", spec: "sessionAffinity: ClientIP,", yaml: lb("simple: ROUND_ROBIN"), asks: all},
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
		{name: "a new pod warms up", field: field + ".warmup", yaml: trio("240.240.10.1", "$P(alpha)", "$P(beta)") + ruleOf("loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 300s, minimumPercent: 1, aggression: 1}}"), asks: []ask{
			get("/").of("240.240.10.1").times(60).want(ok).pods(2, 2).count("pod=alpha", 20, 40),
			get("/").of("240.240.10.1").after(trio("240.240.10.1", "$P(alpha)", "$P(beta)", "$P(gamma)")).times(120).want(ok).count("pod=gamma", 1, 25)}},
		{name: "a new pod without a warm-up", field: field + ".warmup", yaml: trio("240.240.10.2", "$P(alpha)", "$P(beta)") + ruleOf("loadBalancer: {simple: ROUND_ROBIN}"), asks: []ask{
			get("/").of("240.240.10.2").after(trio("240.240.10.2", "$P(alpha)", "$P(beta)", "$P(gamma)")).times(120).want(ok).count("pod=gamma", 35, 45)}},
		{name: "by a hash, most stay when a pod goes", field: field + ".consistentHash.ringHash", yaml: trio("240.240.10.3", "$P(alpha)", "$P(beta)", "$P(gamma)") + ruleOf("loadBalancer: {consistentHash: {httpHeaderName: x-user}}"), asks: stays("240.240.10.3")},
		{name: "by Maglev's table, most stay when a pod goes", field: field + ".consistentHash.maglev", yaml: trio("240.240.10.4", "$P(alpha)", "$P(beta)", "$P(gamma)") + ruleOf("loadBalancer: {consistentHash: {httpHeaderName: x-user, maglev: {}}}"), asks: stays("240.240.10.4")},
	}}, {title: "prefer places", features: localities()}}
}

// trio is the case's ServiceEntry with these endpoints; an address may be followed by a locality.
func trio(address string, endpoints ...string) string {
	var list []string
	for _, e := range endpoints {
		at, locality, found := strings.Cut(e, "@")
		if found {
			locality = ", locality: " + locality
		}
		list = append(list, "{address: "+at+locality+"}")
	}
	return "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: $S, namespace: shop, labels: {istio.io/use-waypoint: wp}}, spec: {hosts: [$S.example], addresses: [" + address + "], resolution: STATIC, endpoints: [" +
		strings.Join(list, ", ") + "], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]}}\n---\n"
}

// ruleOf is the DestinationRule of trio.
func ruleOf(policy string) string {
	return "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: $S, namespace: shop}, spec: {host: $S.example, trafficPolicy: {" + policy + "}}}\n---\n"
}

// stays asks for many users' pods, takes a pod away, and asks again: who was not at that pod must be where he was. Some of
// the others' may have moved too, but few: a modulus would move half of them.
func stays(address string) []ask {
	before := map[string]string{}
	const users = 120
	look := func(ctx context.Context, d dialer, address string) (map[string]string, error) {
		a := get("/", "x-user: u$N").times(users)
		s := &session{a: a, d: d, address: address}
		defer s.close()
		out := map[string]string{}
		for i := range users {
			for line := range strings.Lines(s.once(ctx, i)) {
				if pod, ok := strings.CutPrefix(line, "pod="); ok {
					out[fmt.Sprint(i)] = strings.TrimSpace(pod)
				}
			}
		}
		if len(out) < users {
			return nil, fmt.Errorf("%d answers", len(out))
		}
		return out, nil
	}
	first := ask{to: address, call: func(ctx context.Context, d dialer, address string) (string, error) {
		now, err := look(ctx, d, address)
		maps.Copy(before, now)
		return fmt.Sprintf("pods=%d", len(podsOf(now))), err
	}}
	second := ask{to: address, call: func(ctx context.Context, d dialer, address string) (string, error) {
		now, err := look(ctx, d, address)
		moved := 0
		for user, pod := range before {
			if pod != "gamma" && now[user] != pod {
				moved++
			}
		}
		return fmt.Sprintf("pods=%d\nfew moved=%v", len(podsOf(now)), moved <= users/4), err
	}}
	return []ask{first.want("pods=3"), second.after(trio(address, "$P(alpha)", "$P(beta)")).want("pods=2", "few moved=true")}
}

func podsOf(users map[string]string) map[string]bool {
	out := map[string]bool{}
	for _, pod := range users {
		out[pod] = true
	}
	return out
}

// localities are which place is preferred. The waypoint is in region-1.
func localities() []feature {
	const field = "DestinationRule.trafficPolicy.loadBalancer.localityLbSetting"
	const out = "outlierDetection: {consecutive5xxErrors: 1, interval: 0.1s, baseEjectionTime: 60s, maxEjectionPercent: 100}"
	place := func(name, part, address, policy string, asks ...ask) feature {
		for i := range asks {
			asks[i].to = address
		}
		return feature{name: name, field: field + part, asks: asks, yaml: trio(address, "$P(alpha)@region-1/zone-1", "$P(beta)@region-2/zone-1", "$P(gamma)@region-3/zone-1") + ruleOf(policy)}
	}
	failing := place("another region when the own fails", ".failover", "240.240.11.2", "loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {failover: [{from: region-1, to: region-3}]}}, "+out, get("/").times(20), get("/").times(20).want(ok, "pod=gamma"))
	failing.yaml = trio("240.240.11.2", "$P(always-fails)@region-1/zone-1", "$P(beta)@region-2/zone-1", "$P(gamma)@region-3/zone-1") + ruleOf("loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {failover: [{from: region-1, to: region-3}]}}, "+out)
	return []feature{
		place("the own region first", ".failover", "240.240.11.1", "loadBalancer: {simple: ROUND_ROBIN}, "+out, get("/").times(20).want(ok, "pod=alpha")),
		failing,
		place("not without outlier detection", "", "240.240.11.3", "loadBalancer: {simple: ROUND_ROBIN}", get("/").times(30).want(ok).pods(3, 3)),
		place("not when it is turned off", ".enabled", "240.240.11.4", "loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: false}}, "+out, get("/").times(30).want(ok).pods(3, 3)),
		place("by shares", ".distribute", "240.240.11.5", `loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {distribute: [{from: "region-1/*", to: {"region-2/*": 80, "region-3/*": 20}}]}}`, get("/").times(200).want(ok, "!pod=alpha").count("pod=gamma", 18, 68)),
		place("in the order of labels", ".failoverPriority", "240.240.11.6", `loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {failoverPriority: ["topology.kubernetes.io/region=region-2"]}}, `+out, get("/").times(20).want(ok, "pod=beta")),
		{name: "the service's word", field: "Service.spec.trafficDistribution", annotations: "networking.istio.io/traffic-distribution: PreferSameZone", pods: "app: trio", asks: []ask{get("/").times(30).want(ok).pods(1, 2)}},
	}
}
