package kube

import (
	"strings"
	"testing"
)

// TestFieldsAreValidated has a manifest in flow style per case and a part of the one problem that it must have.
func TestFieldsAreValidated(t *testing.T) {
	const (
		pod   = "{apiVersion: v1, kind: Pod, metadata: {name: x}, "
		svc   = "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {"
		slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: x}, "
		se    = "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: x}, spec: {"
		we    = "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: x}, spec: {"
		pa    = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: x}, spec: {"
		ap    = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x}, spec: {"
		gw    = "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: x}, "
	)
	for _, c := range []struct{ name, manifest, want string }{
		{"label value", "{apiVersion: v1, kind: Pod, metadata: {name: x, labels: {a: 'b c'}}}", `metadata.labels[a]: invalid value "b c"`},
		{"label key", "{apiVersion: v1, kind: Pod, metadata: {name: x, labels: {'a b': c}}}", `metadata.labels: invalid key "a b"`},
		{"generated name", "{apiVersion: v1, kind: Pod, metadata: {generateName: x-}}", "generateName alone gives no name: this source does not make names"},
		{"pod phase", pod + "status: {phase: Runing}}", `status.phase: unknown value "Runing" (accepted: Pending, Running, Succeeded, Failed, Unknown)`},
		{"container port", pod + "spec: {containers: [{name: a, ports: [{containerPort: 0}]}]}}", "spec.containers[0].ports[0].containerPort: invalid port 0 (accepted: 1..65535)"},
		{"condition status", pod + "status: {conditions: [{type: Ready, status: 'true'}]}}", `unknown value "true" (accepted: True, False, Unknown)`},
		{"podIP that is not the first", pod + "status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.2}]}}", `status.podIP: "10.0.0.1" is not the first of podIPs (accepted: 10.0.0.2)`},
		{"cluster IP", svc + "clusterIP: 10.0.0, ports: [{port: 1}]}}", `spec.clusterIPs[0]: invalid address "10.0.0" (accepted: an IPv4 or IPv6 address)`},
		{"service type", svc + "type: clusterIP}}", "(accepted: ClusterIP, NodePort, LoadBalancer, ExternalName)"},
		{"protocol", svc + "ports: [{port: 1, protocol: tcp}]}}", `spec.ports[0].protocol: unknown value "tcp" (accepted: TCP, UDP, SCTP)`},
		{"unnamed ports", svc + "ports: [{port: 1, name: a}, {port: 2}]}}", "spec.ports[1].name: required value is missing (accepted: a name for each port when there are several)"},
		{"same port twice", svc + "ports: [{port: 1, name: a}, {port: 1, name: b}]}}", "spec.ports[1].port: port 1/TCP appears twice (accepted: a port of its own)"},
		{"traffic distribution", svc + "trafficDistribution: Near}}", "(accepted: PreferClose, PreferSameZone, PreferSameNode)"},
		{"internal traffic policy", svc + "internalTrafficPolicy: local}}", "(accepted: Cluster, Local)"},
		{"slice address of the other family", slice + "addressType: IPv6, endpoints: [{addresses: [10.0.0.1]}]}", `endpoints[0].addresses[0]: invalid address "10.0.0.1" (accepted: an address of type IPv6)`},
		{"slice without type", slice + "endpoints: []}", `addressType: unknown value "" (accepted: IPv4, IPv6, FQDN)`},
		{"entry without address", we + "weight: 1}}", "spec.address: required value is missing (accepted: an address or a host name)"},
		{"entry port", we + "address: 1.2.3.4, ports: {a: 0}}}", "spec.ports.a: invalid port 0 (accepted: 1..65535)"},
		{"no hosts", se + "resolution: NONE}}", "spec.hosts: required value is missing (accepted: at least one host name)"},
		{"host name", se + "hosts: [a_b.com]}}", `spec.hosts[0]: invalid host name "a_b.com" (accepted: a DNS name, perhaps with a leading "*.")`},
		{"wildcard that cannot be resolved", se + "hosts: ['*.b.com'], resolution: DNS}}", "(accepted: a host without wildcard, or resolution NONE, STATIC or DYNAMIC_DNS)"},
		{"service entry protocol", se + "hosts: [a.b], ports: [{number: 1, name: a, protocol: HTP}]}}", "(accepted: HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, MYSQL, REDIS, TCP, TLS, UDP, HTTP_PROXY)"},
		{"service entry address", se + "hosts: [a.b], addresses: [10.0.0.0/40]}}", `spec.addresses[0]: invalid CIDR "10.0.0.0/40" (accepted: an address or a CIDR, for example 10.0.0.0/8)`},
		{"static endpoint by name", se + "hosts: [a.b], resolution: STATIC, endpoints: [{address: c.d}]}}", `spec.endpoints[0].address: invalid address "c.d" (accepted: an IPv4 or IPv6 address with resolution STATIC)`},
		{"port settings without selector", pa + "portLevelMtls: {80: {mode: STRICT}}}}", "spec.portLevelMtls: port settings need a selector (accepted: together with spec.selector)"},
		{"port key", pa + "selector: {matchLabels: {a: b}}, portLevelMtls: {99999: {mode: STRICT}}}}", "spec.portLevelMtls.99999: invalid port 99999 (accepted: 1..65535)"},
		{"policy port", ap + "rules: [{to: [{operation: {ports: [http]}}]}]}}", `spec.rules[0].to[0].operation.ports[0]: invalid port "http" (accepted: 1..65535)`},
		{"policy key", ap + "rules: [{when: [{key: source.ips, values: [a]}]}]}}", "destination.port, connection.sni, experimental.envoy.filters.)"},
		{"condition without values", ap + "rules: [{when: [{key: source.namespace}]}]}}", "spec.rules[0].when[0]: nothing is set (accepted: at least one field with values)"},
		{"empty value", ap + "rules: [{from: [{source: {namespaces: ['']}}]}]}}", "spec.rules[0].from[0].source.namespaces[0]: empty value (accepted: a value; * matches any)"},
		{"service account with wildcard", ap + "rules: [{from: [{source: {serviceAccounts: ['a/*']}}]}]}}", "(accepted: namespace/name or name, without wildcards)"},
		{"selector and target", ap + "selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}}", "spec.selector: both selector and targetRefs are set (accepted: selector or targetRefs)"},
		{"custom without provider", ap + "action: CUSTOM, rules: [{}]}}", "spec.provider.name: action CUSTOM needs a provider (accepted: the name of an extension provider)"},
		{"dry run", "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x, annotations: {istio.io/dry-run: maybe}}}", `metadata.annotations: invalid value "maybe" of istio.io/dry-run (accepted: true, false)`},
		{"gateway class", gw + "spec: {}}", "spec.gatewayClassName: required value is missing (accepted: the name of a GatewayClass)"},
		{"gateway address", gw + "spec: {gatewayClassName: a}, status: {addresses: [{value: b}]}}", `status.addresses[0].value: invalid address "b" (accepted: an IPv4 or IPv6 address)`},
		{"allowed routes", gw + "spec: {gatewayClassName: a, listeners: [{name: m, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Any}}}]}}", "(accepted: All, Same, Selector, None)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := Decode("f.yaml", []byte(c.manifest))
			if len(problems) != 1 || problems[0].Severity != Rejected || problems[0].Line != 1 || !strings.Contains(problems[0].Error(), c.want) {
				t.Fatalf("got %v, want %s", problems, c.want)
			}
		})
	}
}
