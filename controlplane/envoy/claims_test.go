package envoy

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
)

const dbService = "{apiVersion: v1, kind: Service, metadata: {name: db, namespace: demo}, spec: {clusterIPs: [10.96.0.3], ports: [{name: tls, port: 443}, {name: tcp, port: 5432}]}}\n---\n"

const dbTLS, dbTCP = "inbound-vip|443|tcp|db.demo.svc.cluster.local", "inbound-vip|5432|tcp|db.demo.svc.cluster.local"

// filterOf reads the first filter of the message's type; it fails the test without one.
func filterOf[M proto.Message](t *testing.T, chain *listenerv3.FilterChain, m M) M {
	t.Helper()
	for _, f := range chain.GetFilters() {
		if f.GetTypedConfig().MessageIs(m) {
			if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			return m
		}
	}
	t.Fatalf("chain %q has no filter %s", chain.GetName(), m.ProtoReflect().Descriptor().FullName())
	return m
}

func TestARuleAboutTheServerNameStandsOnATLSPort(t *testing.T) {
	r := buildYAML(t, dbService+`{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: names, namespace: demo}, spec: {targetRefs: [{group: "", kind: Service, name: db}], action: DENY, rules: [{when: [{key: connection.sni, values: [evil.example, "*.bad.example"]}]}]}}`, nil)
	rules := filterOf(t, r.chain(dbTLS), &netrbacv3.RBAC{}).GetRules()
	policy := rules.GetPolicies()["ns[demo]-policy[names]-rule[0]"]
	names := policy.GetPermissions()[0].GetAndRules().GetRules()[0].GetOrRules().GetRules()
	if len(names) != 2 || names[0].GetRequestedServerName().GetExact() != "evil.example" || names[1].GetRequestedServerName().GetSuffix() != ".bad.example" {
		t.Errorf("the policy became %v", policy)
	}
}

// TestAServiceThatWantsItKeepsAClientAddressAtOneEndpoint: sessionAffinity holds behind a waypoint as it does without one, and a
// DestinationRule that says how to balance comes before it.
func TestAServiceThatWantsItKeepsAClientAddressAtOneEndpoint(t *testing.T) {
	const service = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: demo}, spec: {clusterIPs: [10.96.0.1], AFFINITYports: [{name: http, port: 80}, {name: tcp, port: 81}]}}\n---\n"
	const inHTTP, inTCP = "inbound-vip|80|http|web.demo.svc.cluster.local", "inbound-vip|81|tcp|web.demo.svc.cluster.local"
	for _, c := range []struct {
		name, affinity, rule string
		http, tcp            clusterv3.Cluster_LbPolicy
		address              bool // by the client's
	}{
		{"not by default", "", "", clusterv3.Cluster_LEAST_REQUEST, clusterv3.Cluster_LEAST_REQUEST, false},
		{"ClientIP", "sessionAffinity: ClientIP, ", "", clusterv3.Cluster_RING_HASH, clusterv3.Cluster_RING_HASH, true},
		{"None", "sessionAffinity: None, ", "", clusterv3.Cluster_LEAST_REQUEST, clusterv3.Cluster_LEAST_REQUEST, false},
		{"a rule about something else", "sessionAffinity: ClientIP, ", "outlierDetection: {consecutive5xxErrors: 3}", clusterv3.Cluster_RING_HASH, clusterv3.Cluster_RING_HASH, true},
		{"a rule about localities", "sessionAffinity: ClientIP, ", "loadBalancer: {localityLbSetting: {enabled: true}}", clusterv3.Cluster_RING_HASH, clusterv3.Cluster_RING_HASH, true},
		{"a rule about balancing", "sessionAffinity: ClientIP, ", "loadBalancer: {simple: RANDOM}", clusterv3.Cluster_RANDOM, clusterv3.Cluster_RANDOM, false},
		{"a rule about a port", "sessionAffinity: ClientIP, ", "portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: ROUND_ROBIN}}]", clusterv3.Cluster_RING_HASH, clusterv3.Cluster_ROUND_ROBIN, true},
	} {
		text := strings.Replace(service, "AFFINITY", c.affinity, 1)
		if c.rule != "" {
			text += "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: web, namespace: demo}, spec: {host: web, trafficPolicy: {" + c.rule + "}}}\n---\n"
		}
		r := buildYAML(t, text, nil)
		for _, k := range r.Clusters {
			m := k.Message.(*clusterv3.Cluster)
			if want, ok := map[string]clusterv3.Cluster_LbPolicy{inHTTP: c.http, inTCP: c.tcp}[k.Name]; ok && m.LbPolicy != want {
				t.Errorf("%s: %s: %v, want %v", c.name, k.Name, m.LbPolicy, want)
			}
		}
		routes := filterOf(t, r.chain(inHTTP), &hcmv3.HttpConnectionManager{}).GetRouteConfig().GetVirtualHosts()[0].GetRoutes()
		hash := routes[0].GetRoute().GetHashPolicy()
		if got := len(hash) == 1 && hash[0].GetConnectionProperties().GetSourceIp(); got != c.address {
			t.Errorf("%s: requests by the client's address: %v", c.name, got)
		}
		tcp := filterOf(t, r.chain(inTCP), &tcpv3.TcpProxy{}).GetHashPolicy()
		if got := len(tcp) == 1 && tcp[0].GetSourceIp() != nil; got != (c.tcp == clusterv3.Cluster_RING_HASH) {
			t.Errorf("%s: connections by the client's address: %v", c.name, got)
		}
	}
}

func TestTCPGoesByTheClientsAddressWhereTheRuleSaysSo(t *testing.T) {
	for name, c := range map[string]struct {
		rule, route string
		tls, tcp    bool
	}{
		"everywhere":              {"trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}", "", true, true},
		"a port":                  {"trafficPolicy: {portLevelSettings: [{port: {number: 5432}, loadBalancer: {consistentHash: {useSourceIp: true}}}]}", "", false, true},
		"not by default":          {"trafficPolicy: {loadBalancer: {simple: RANDOM}}", "", false, false},
		"not by headers":          {"trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x}}}", "", false, false},
		"a route's destination":   {"trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}", "{destination: {host: db}}", true, true},
		"a subset of a route's":   {"subsets: [{name: s, labels: {a: b}, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}]", "{destination: {host: db, subset: s}}", false, true},
		"not a subset of another": {"subsets: [{name: s, labels: {a: b}, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}, {name: o, labels: {a: c}}]", "{destination: {host: db, subset: o}}", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			text := dbService + "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: db, namespace: demo}, spec: {host: db, " + c.rule + "}}\n---\n"
			if c.route != "" {
				text += "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: db, namespace: demo}, spec: {hosts: [db], tcp: [{match: [{port: 5432}], route: [" + c.route + "]}]}}\n---\n"
			}
			r := buildYAML(t, text, nil)
			for chain, want := range map[string]bool{dbTLS: c.tls, dbTCP: c.tcp} {
				p := filterOf(t, r.chain(chain), &tcpv3.TcpProxy{}).GetHashPolicy()
				if got := len(p) == 1 && p[0].GetSourceIp() != nil; got != want {
					t.Errorf("%s: hash policy %v, by the client's address: want %v", chain, p, want)
				}
			}
		})
	}
}

func TestARedirectHasOnlyPortsThatHaveToBeSaid(t *testing.T) {
	virtual := func(how string) string {
		return "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web, namespace: demo}, spec: {hosts: [web], http: [{redirect: {" + how + "}}]}}"
	}
	route := func(how string) string {
		return "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: web, namespace: demo}, spec: {parentRefs: [{group: \"\", kind: Service, name: web}], rules: [{filters: [{type: RequestRedirect, requestRedirect: {" + how + "}}]}]}}"
	}
	for name, c := range map[string]struct {
		yaml string
		port uint32
	}{
		"HTTPS":                                {virtual("scheme: https"), 0},
		"a host":                               {virtual("authority: elsewhere.example"), 0},
		"a host and the scheme's port":         {virtual("authority: elsewhere.example, derivePort: FROM_PROTOCOL_DEFAULT"), 0},
		"a host and the request's port":        {virtual("authority: elsewhere.example, derivePort: FROM_REQUEST_PORT"), 0},
		"a port":                               {virtual("port: 8443"), 8443},
		"HTTPS and a port":                     {virtual("scheme: https, port: 8443"), 8443},
		"HTTPS by an HTTPRoute":                {route("scheme: https"), 0},
		"a host by an HTTPRoute":               {route("hostname: elsewhere.example"), 0},
		"HTTPS and its own port, by HTTPRoute": {route("scheme: https, port: 443"), 443},
		"a port by an HTTPRoute":               {route("port: 8443"), 8443},
	} {
		t.Run(name, func(t *testing.T) {
			m := filterOf(t, buildYAML(t, c.yaml, nil).chain(webChain), &hcmv3.HttpConnectionManager{})
			var found *routev3.RedirectAction
			for _, v := range m.GetRouteConfig().GetVirtualHosts() {
				for _, r := range v.GetRoutes() {
					if r.GetRedirect() != nil {
						found = r.GetRedirect()
					}
				}
			}
			if found == nil || found.GetPortRedirect() != c.port {
				t.Errorf("redirect %v, want port %d", found, c.port)
			}
		})
	}
}
