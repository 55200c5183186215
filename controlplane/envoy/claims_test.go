package envoy

import (
	"testing"

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
