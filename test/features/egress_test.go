package features

import (
	"fmt"
	"strings"
)

// serviceEntries are services that are not of Kubernetes.
func serviceEntries() []group {
	const field = "ServiceEntry"
	entry := func(address, rest string) string {
		return "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: $S, namespace: shop, labels: {istio.io/use-waypoint: wp}}, spec: {hosts: [$S.example], addresses: [" + address + "], " + rest + "}}\n---\n"
	}
	const http, tcp = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]", "ports: [{number: 81, name: tcp, protocol: TCP, targetPort: 9000}]"
	to := func(address string) ask { return get("/").of(address).host("$S.example") }
	const seen = "header.X-Request-Id=*"
	rule := func(kind, spec string) string {
		return "{apiVersion: networking.istio.io/v1, kind: " + kind + ", metadata: {name: $S, namespace: shop}, spec: {" + spec + "}}\n---\n"
	}
	target := func(kind, group, spec string) string {
		return "{apiVersion: " + group + "/v1, kind: " + kind + ", metadata: {name: $S, namespace: shop}, spec: {targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: $S}], " + spec + "}}\n---\n"
	}
	return []group{{title: "ServiceEntry", features: []feature{
		{name: "addresses of endpoints", field: field + ".resolution STATIC", yaml: entry("240.240.9.1", "resolution: STATIC, endpoints: [{address: $P(alpha)}, {address: $P(beta)}], "+http), asks: []ask{to("240.240.9.1").times(20).want(ok, seen).pods(2, 2)}},
		{name: "an endpoint outside of the mesh", field: field + ".location MESH_EXTERNAL", yaml: entry("240.240.9.2", "location: MESH_EXTERNAL, resolution: STATIC, endpoints: [{address: $P(outsider)}], "+http), asks: []ask{to("240.240.9.2").want(ok, seen, "pod=outsider")}},
		{name: "a port of an endpoint's own", field: field + ".endpoints.ports", yaml: entry("240.240.9.3", "resolution: STATIC, endpoints: [{address: $P(alpha), ports: {http: 8080}}], ports: [{number: 80, name: http, protocol: HTTP}]"), asks: []ask{to("240.240.9.3").want(ok, seen, "pod=alpha")}},
		{name: "weights of endpoints", field: field + ".endpoints.weight", yaml: entry("240.240.9.4", "resolution: STATIC, endpoints: [{address: $P(alpha), weight: 9}, {address: $P(beta), weight: 1}], "+http), asks: []ask{to("240.240.9.4").times(100).want(ok).count("pod=beta", 1, 30)}},
		{name: "labels of endpoints as subsets", field: field + ".endpoints.labels", yaml: entry("240.240.9.5", "resolution: STATIC, endpoints: [{address: $P(alpha), labels: {version: one}}, {address: $P(beta), labels: {version: two}}], "+http) +
			rule("DestinationRule", "host: $S.example, subsets: [{name: two, labels: {version: two}}]") + rule("VirtualService", "hosts: [$S.example], http: [{route: [{destination: {host: $S.example, subset: two}}]}]"),
			asks: []ask{to("240.240.9.5").times(10).want(ok, "pod=beta")}},
		{name: "pods by their labels", field: field + ".workloadSelector", yaml: entry("240.240.9.6", "resolution: STATIC, location: MESH_INTERNAL, workloadSelector: {labels: {app: trio}}, "+http), asks: []ask{to("240.240.9.6").times(40).want(ok, seen).pods(3, 3)}},
		{name: "a WorkloadEntry by its labels", field: "WorkloadEntry", yaml: entry("240.240.9.7", "resolution: STATIC, location: MESH_INTERNAL, workloadSelector: {labels: {entry: $S}}, "+http) + rule("WorkloadEntry", "address: $P(outsider), labels: {entry: $S}"), asks: []ask{to("240.240.9.7").want(ok, seen, "pod=outsider")}},
		{name: "TCP", field: field + ".ports.protocol TCP", yaml: entry("240.240.9.8", "resolution: STATIC, endpoints: [{address: $P(alpha)}], "+tcp), asks: []ask{greeting(81).of("240.240.9.8").want("pod=alpha")}},
		{name: "routes", field: "VirtualService.hosts", yaml: entry("240.240.9.9", "resolution: STATIC, endpoints: [{address: $P(alpha)}], "+http) + rule("VirtualService", "hosts: [$S.example], http: [{match: [{uri: {prefix: /away}}], "+toV2+"}, {route: [{destination: {host: $S.example}}]}]"), asks: []ask{to("240.240.9.9").want(ok, "pod=alpha"), get("/away").of("240.240.9.9").host("$S.example").want(ok, atV2)}},
		{name: "HTTPRoute", field: "HTTPRoute.parentRefs", yaml: entry("240.240.9.10", "resolution: STATIC, endpoints: [{address: $P(alpha)}], "+http) + "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: $S, namespace: shop}, spec: {parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: $S}], rules: [{" + refs("v2") + "}]}}\n---\n", asks: []ask{to("240.240.9.10").want(ok, atV2)}},
		{name: "AuthorizationPolicy", field: "AuthorizationPolicy.targetRefs", yaml: entry("240.240.9.11", "resolution: STATIC, endpoints: [{address: $P(alpha)}], "+http) + target("AuthorizationPolicy", "security.istio.io", "action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]"), asks: refused(to("240.240.9.11"), to("240.240.9.11").method("DELETE"))},
		{name: "RequestAuthentication", field: "RequestAuthentication.targetRefs", yaml: entry("240.240.9.12", "resolution: STATIC, endpoints: [{address: $P(alpha)}], "+http) + target("RequestAuthentication", "security.istio.io", `jwtRules: [{issuer: "https://issuer.example", jwks: '$JWKS'}]`), asks: []ask{to("240.240.9.12").want(ok), to("240.240.9.12").with("authorization: Bearer $T(forged)").want("status=401")}},
		{name: "names of endpoints", field: field + ".resolution DNS", yaml: entry("240.240.9.13", "resolution: DNS, location: MESH_EXTERNAL, endpoints: [{address: plain.outside.svc.cluster.local, ports: {http: 80}}], "+http), asks: []ask{to("240.240.9.13").want(ok, seen, "pod=outsider")}},
		{name: "names of endpoints, one address of each", field: field + ".resolution DNS_ROUND_ROBIN", yaml: entry("240.240.9.14", "resolution: DNS_ROUND_ROBIN, location: MESH_EXTERNAL, endpoints: [{address: plain.outside.svc.cluster.local, ports: {http: 80}}], "+http), asks: []ask{to("240.240.9.14").want(ok, seen, "pod=outsider")}},
		{name: "a name that nobody knows", field: field + ".resolution DNS", yaml: entry("240.240.9.15", "resolution: DNS, location: MESH_EXTERNAL, endpoints: [{address: nobody.invalid}], "+http), asks: []ask{to("240.240.9.15").want("status=503")}},
		{name: "a wildcard host", field: field + ".resolution DYNAMIC_DNS", yaml: wild("240.240.9.16", "*.outside", "http"), asks: []ask{get("/").of("240.240.9.16").host("plain.outside").want(ok, seen, "pod=outsider"), get("/").of("240.240.9.16").host("elsewhere.example").want("!status=200", "!pod=*")}},
		{name: "a wildcard host by the server name of TLS", field: field + ".resolution DYNAMIC_DNS", yaml: wild("240.240.9.19", "*.outside.svc", "tls"), asks: []ask{hello(443, "plain.outside.svc").of("240.240.9.19").want("pod=outsider"), hello(443, "plain.elsewhere").of("240.240.9.19").want("!pod=*")}},
		{name: "whatever address the client dials", field: field + ".resolution NONE", yaml: entry("192.0.2.0/24", "resolution: NONE, location: MESH_EXTERNAL, ports: [{number: 8099, name: http, protocol: HTTP}]"), asks: []ask{get("/").of("192.0.2.77").at(8099).want(ok, seen, "pod=dialled")}},
		{name: "a time to connect", field: "DestinationRule.trafficPolicy.connectionPool.tcp.connectTimeout", slow: true, yaml: entry("240.240.9.18", "resolution: STATIC, location: MESH_EXTERNAL, endpoints: [{address: 198.51.100.1}], "+http) + rule("DestinationRule", "host: $S.example, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 0.2s}}}"), asks: []ask{to("240.240.9.18").want("status=503")}},
	}}}
}

// wild is an entry for a wildcard, of names that the pods' hosts files have, at an address.
func wild(address, host, protocol string) string {
	port := map[string]int{"http": 80, "tls": 443}[protocol]
	return "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: $S, namespace: shop, labels: {istio.io/use-waypoint: wp}}, spec: {hosts: [\"" + host + "\"], addresses: [" + address + "], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [" + fmt.Sprintf("{number: %d, name: %s, protocol: %s}", port, protocol, strings.ToUpper(protocol)) + "]}}\n---\n"
}

// originate is TLS, and the PROXY protocol, that begin at the waypoint.
func originate() []group {
	const field, proxy, policy = "DestinationRule.trafficPolicy.tls", "DestinationRule.trafficPolicy.proxyProtocol", "BackendTLSPolicy.validation"
	const ca = "caCertificates: $D/ca.pem"
	s := func(name, part, how string, wants ...string) feature {
		return feature{name: name, field: field + part, ports: "{name: http, port: 80, targetPort: 9443}", pods: "app: helper", yaml: destination("tls: {" + how + "}"), asks: []ask{get("/").want(wants...)}}
	}
	m := func(name, part, how string, wants ...string) feature {
		f := s(name, part, how, wants...)
		f.ports = "{name: http, port: 80, targetPort: 9444}"
		return f
	}
	p := func(name, part, how string, wants ...string) feature {
		f := s(name, part, "", wants...)
		f.field = policy + part
		f.yaml = "{apiVersion: v1, kind: ConfigMap, metadata: {name: $S-ca, namespace: shop}, data: {ca.crt: $CA}}\n---\n" +
			"{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: $S, namespace: shop}, spec: {targetRefs: [{group: \"\", kind: Service, name: $S}], validation: {" + how + "}}}\n---\n"
		return f
	}
	const refs = "caCertificateRefs: [{group: \"\", kind: ConfigMap, name: $S-ca}]"
	passes := "proxy.client=$P(client):*"
	x := func(name, part, how string, asks ...ask) feature {
		return feature{name: name, field: proxy + part, ports: "{name: http, port: 80, targetPort: 9005}, {name: tcp, port: 81, targetPort: 9005}", pods: "app: helper", yaml: destination("proxyProtocol: {" + how + "}"), asks: asks}
	}
	failing := "status=503"
	return []group{
		{title: "begin TLS", features: []feature{
			s("the certificate has the name", ".subjectAltNames", "mode: SIMPLE, "+ca+", subjectAltNames: [secure.example]", ok, atHelper, "tls.sni=*"),
			s("the certificate has another name", ".subjectAltNames", "mode: SIMPLE, "+ca+", subjectAltNames: [other.example]", failing),
			s("a server name", ".sni", "mode: SIMPLE, "+ca+", sni: secure.example, subjectAltNames: [secure.example]", ok, "tls.sni=secure.example"),
			s("the request's host as server name", ".sni", "mode: SIMPLE, "+ca+", subjectAltNames: [secure.example]", ok, "tls.sni=$S.shop"),
			s("the request's host must be in the certificate", ".sni", "mode: SIMPLE, "+ca, failing),
			s("another authority is not trusted", ".caCertificates", "mode: SIMPLE, caCertificates: $D/other.pem, subjectAltNames: [secure.example]", failing),
			s("an authority that is not there", ".caCertificates", "mode: SIMPLE, caCertificates: $D/nothing.pem, subjectAltNames: [secure.example]", failing),
			s("the system's authorities", ".caCertificates", "mode: SIMPLE, subjectAltNames: [secure.example]", failing),
			s("without checks", ".insecureSkipVerify", "mode: SIMPLE, insecureSkipVerify: true", ok, atHelper),
			s("a secret that no waypoint reads", ".credentialName", "mode: SIMPLE, credentialName: secret", failing),
			s("a list of revoked certificates that is not read", ".caCrl", "mode: SIMPLE, "+ca+", subjectAltNames: [secure.example], caCrl: $D/crl.pem", failing),
			m("a certificate of its own", ".mode MUTUAL", "mode: MUTUAL, "+ca+", subjectAltNames: [secure.example], clientCertificate: $D/client.pem, privateKey: $D/client-key.pem", ok, "tls.client=client.example"),
			m("no certificate where the server wants one", ".mode SIMPLE", "mode: SIMPLE, "+ca+", subjectAltNames: [secure.example]", failing),
			{name: "not at all", field: field + ".mode DISABLE", ports: wirePort, pods: "app: helper", yaml: destination("tls: {mode: DISABLE}"), asks: []ask{get("/").want(ok, "!tls.sni=*")}},
			{name: "the mesh's own is enough", field: field + ".mode ISTIO_MUTUAL", ports: wirePort, pods: "app: helper", yaml: destination("tls: {mode: ISTIO_MUTUAL}"), asks: []ask{get("/").want(ok, "!tls.sni=*")}},
			{name: "for a port", field: "DestinationRule.trafficPolicy.portLevelSettings.tls", ports: "{name: http, port: 80, targetPort: 9443}, {name: http-plain, port: 8000, targetPort: 9003}", pods: "app: helper",
				yaml: destination("portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, " + ca + ", subjectAltNames: [secure.example]}}]"), asks: []ask{get("/").want(ok, "tls.sni=*"), get("/").at(8000).want(ok, "!tls.sni=*")}},
			{name: "for a subset", field: "DestinationRule.subsets.trafficPolicy.tls", ports: "{name: http, port: 80, targetPort: 9443}", pods: "app: helper",
				yaml: virtual("match: [{uri: {prefix: /}}], route: [{destination: {host: $S, subset: s}}]") + "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: $S, namespace: shop}, spec: {host: $S, subsets: [{name: s, labels: {app: helper}, trafficPolicy: {tls: {mode: SIMPLE, " + ca + ", subjectAltNames: [secure.example]}}}]}}\n---\n",
				asks: []ask{get("/").want(ok, "tls.sni=*")}},
			{name: "HTTP/2 in it", field: "DestinationRule.trafficPolicy.connectionPool.http.h2UpgradePolicy", ports: "{name: http, port: 80, targetPort: 9443}", pods: "app: helper", yaml: destination("connectionPool: {http: {h2UpgradePolicy: UPGRADE}}, tls: {mode: SIMPLE, " + ca + ", subjectAltNames: [secure.example]}"), asks: []ask{get("/").want(ok, "proto=HTTP/2.0", "tls.alpn=h2")}},
			{name: "TCP in it", field: field, ports: "{name: tcp, port: 81, targetPort: 9443}", pods: "app: helper", yaml: destination("tls: {mode: SIMPLE, " + ca + ", sni: secure.example, subjectAltNames: [secure.example]}"), asks: []ask{sent("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1).at(81).want(ok, "tls.sni=secure.example")}},
			p("as a policy for a back end", ".hostname", "hostname: secure.example, "+refs, ok, "tls.sni=secure.example"),
			p("as a policy, another name", ".hostname", "hostname: other.example, "+refs, failing),
			p("as a policy, alternative names", ".subjectAltNames", "hostname: server.example, subjectAltNames: [{type: Hostname, hostname: secure.example}], "+refs, ok, "tls.sni=server.example"),
			p("as a policy, an authority that is not there", ".caCertificateRefs", "hostname: secure.example, caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ghost}]", failing),
			p("as a policy, the system's authorities", ".wellKnownCACertificates", "hostname: secure.example, wellKnownCACertificates: System", failing),
		}},
		{title: "tell who the client is", features: []feature{
			x("by text", ".version V1", "version: V1", get("/").want(ok, "proxy.version=1", passes)),
			x("in binary", ".version V2", "version: V2", get("/").want(ok, "proxy.version=2", passes)),
			x("another client", ".version V1", "version: V1", get("/").want(ok, passes), get("/").by("stranger").want(ok, "proxy.client=$P(stranger):*")),
			x("before TCP", ".version V1", "version: V1", sent("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1).at(81).want(ok, "proxy.version=1", passes)),
		}},
	}
}
