package features

import "time"

// protocols are what is carried, and routes below HTTP.
func protocols() []group {
	const (
		afterData = "the rules are looked at when the client has sent something"
		noTimeout = "it waits for the client's first bytes without end"
		echoing   = "{name: tcp, port: 81, targetPort: 8080}"
	)
	const tcp, tls, auto = "{name: tcp, port: 81, targetPort: 9000}", "{name: tls, port: 443, targetPort: 9000}", "{name: whatever, port: 90, targetPort: 8080}"
	vs := func(kind, rules string) string {
		return "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: $S, namespace: shop}, spec: {hosts: [$S], " + kind + ": [" + rules + "]}}\n---\n"
	}
	at := func(host string) string { return "destination: {host: " + host + ", port: {number: 81}}" }
	whole := func(refs string) string { return route("TCPRoute", "backendRefs: ["+refs+"]") }
	return []group{
		{title: "protocols", features: []feature{
			{name: "HTTP/1.1", field: "Service.ports.name http", asks: []ask{get("/").want(ok, "proto=HTTP/1.1", "header.X-Request-Id=*")}},
			{name: "HTTP/1.1 with a body", field: "Service.ports.name http", asks: []ask{get("/").method("POST").body("payload").want(ok, "body=7", "payload")}},
			{name: "HTTP/2", field: "Service.ports.name http2", ports: "{name: http2, port: 80, targetPort: 8080}", asks: []ask{get("/").h2().want(ok, "proto=HTTP/2.0")}},
			{name: "HTTP/2 by appProtocol", field: "Service.ports.appProtocol", ports: "{name: web, appProtocol: kubernetes.io/h2c, port: 80, targetPort: 8080}", asks: []ask{get("/").h2().want(ok, "proto=HTTP/2.0")}},
			{name: "HTTP by appProtocol", field: "Service.ports.appProtocol", ports: "{name: web, appProtocol: http, port: 80, targetPort: 8080}", asks: []ask{get("/").want(ok, "header.X-Request-Id=*")}},
			{name: "HTTP/2 in, HTTP/1.1 out", field: "Service.ports.name http", asks: []ask{get("/").h2().want(ok, "proto=HTTP/1.1")}},
			{name: "HTTP/1.1 in, HTTP/2 out", field: "Service.ports.name http2", ports: "{name: http2, port: 80, targetPort: 8080}", asks: []ask{get("/").want(ok, "proto=HTTP/2.0")}},
			{name: "gRPC", field: "Service.ports.name grpc", ports: grpcPort, asks: []ask{rpc("/ambit.echo.v1.Echo/Echo").want(ok, "answer.grpc-status=0", "proto=HTTP/2.0")}},
			{name: "HTTP is detected", field: "Service.ports.name", ports: auto, asks: []ask{get("/").at(90).want(ok, "header.X-Request-Id=*")}},
			{name: "HTTP/2 is detected", field: "Service.ports.name", ports: auto, asks: []ask{get("/").at(90).h2().want(ok, "header.X-Request-Id=*")}},
			{name: "what is not HTTP is detected", field: "Service.ports.name", ports: auto, asks: []ask{raw(90).want("pod=*")}},
			{name: "a server that speaks first", field: "Service.ports.name tcp", ports: tcp, asks: []ask{greeting(81).want("pod=*")}},
			{name: "a server that speaks first, undeclared", envoy: noTimeout, field: "Service.ports.name", ports: "{name: whatever, port: 90, targetPort: 9000}", asks: []ask{greeting(90).want("pod=*")}},
			{name: "TCP", field: "Service.ports.name tcp", ports: "{name: tcp, port: 81, targetPort: 8080}", asks: []ask{raw(81).want("pod=*")}},
			{name: "HTTP on a port for TCP is not touched", field: "Service.ports.name tcp", ports: "{name: tcp, port: 81, targetPort: 8080}", asks: []ask{get("/").at(81).want(ok, "!header.X-Request-Id=*")}},
			{name: "TLS", field: "Service.ports.name tls", ports: tls, asks: []ask{hello(443, "a.example").want("pod=*")}},
			{name: "a large answer", field: "Service.ports.name http", asks: []ask{get("/bytes/3000000").want(ok, "answer.content-length=3000000")}},
			{name: "HEAD", field: "Service.ports.name http", asks: []ask{get("/").method("HEAD").want(ok, "!pod=*")}},
			{name: "a client that closes after the answer", field: "Service", asks: []ask{get("/", "connection: close").times(20).anew().want(ok, "pod=*")}},
			{name: "an error of the application", field: "Service.ports.name http", asks: []ask{get("/status/404").want("status=404", "pod=*"), get("/status/500").want("status=500", "pod=*")}},
			{name: "a request gets an identifier", field: "Service", asks: []ask{get("/").want("header.X-Request-Id=*")}},
			{name: "a request keeps its identifier", field: "Service", asks: []ask{get("/", "x-request-id: mine").want("header.X-Request-Id=mine")}},
			{name: "the protocol is told", field: "Service", asks: []ask{get("/").want("header.X-Forwarded-Proto=http")}},
		}},
		{title: "TCP", features: []feature{
			{name: "another service", field: "VirtualService.tcp.route.destination", ports: tcp, yaml: vs("tcp", "{route: [{"+at("v2")+"}]}"), asks: []ask{greeting(81).times(5).want(atV2)}},
			{name: "by weight", field: "VirtualService.tcp.route.weight", ports: tcp, yaml: vs("tcp", "{route: [{"+at("v1")+", weight: 50}, {"+at("v2")+", weight: 50}]}"), asks: []ask{greeting(81).times(60).count(atV2, 12, 48)}},
			{name: "none by weight", field: "VirtualService.tcp.route.weight", ports: tcp, yaml: vs("tcp", "{route: [{"+at("v1")+", weight: 100}, {"+at("v2")+", weight: 0}]}"), asks: []ask{greeting(81).times(20).want(atV1)}},
			{name: "by port", field: "VirtualService.tcp.match.port", ports: tcp + ", {name: tcp-two, port: 82, targetPort: 9000}", yaml: vs("tcp", "{match: [{port: 82}], route: [{"+at("v2")+"}]}, {route: [{"+at("v1")+"}]}"), asks: []ask{greeting(82).times(5).want(atV2), greeting(81).times(5).want(atV1)}},
			{name: "a subset", field: "DestinationRule.subsets", ports: tcp, yaml: vs("tcp", "{route: [{destination: {host: $S, subset: v2}}]}") + subsets(""), asks: []ask{greeting(81).times(5).want(atV2)}},
			{name: "a service without pods", field: "VirtualService.tcp.route.destination", ports: tcp, yaml: vs("tcp", "{route: [{destination: {host: nobody}}]}"), asks: []ask{greeting(81).want("!pod=*")}},
			{name: "in turn", field: "DestinationRule.trafficPolicy.loadBalancer.simple", ports: tcp, yaml: destination("loadBalancer: {simple: ROUND_ROBIN}"), asks: []ask{greeting(81).times(30).want("pod=*").pods(3, 3)}},
			{name: "by the client's address", field: "DestinationRule.trafficPolicy.loadBalancer.consistentHash.useSourceIp", ports: tcp, yaml: destination("loadBalancer: {consistentHash: {useSourceIp: true}}"), asks: []ask{greeting(81).times(10).want("pod=*").pods(1, 1)}},
			{name: "allowed by identity", field: "AuthorizationPolicy.rules.from.source.principals", ports: echoing, yaml: allow("from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]"), asks: []ask{raw(81).want("pod=*"), raw(81).by("stranger").want("!pod=*")}},
			{name: "denied by namespace", field: "AuthorizationPolicy.rules.from.source.namespaces", ports: echoing, yaml: deny("from: [{source: {namespaces: [other]}}]"), asks: []ask{raw(81).want("pod=*"), raw(81).by("stranger").want("!pod=*")}},
			{name: "denied by port", field: "AuthorizationPolicy.rules.to.operation.ports", ports: echoing, yaml: deny(`to: [{operation: {ports: ["81"]}}]`), asks: []ask{raw(81).want("!pod=*")}},
			{name: "not allowed by a rule about requests", field: "AuthorizationPolicy.rules.to.operation.methods", ports: echoing, yaml: allow("to: [{operation: {methods: [GET]}}]"), asks: []ask{raw(81).want("!pod=*")}},
			{name: "a server that speaks first says nothing to whom a policy refuses", envoy: afterData, field: "AuthorizationPolicy", ports: tcp, yaml: deny("from: [{source: {namespaces: [other]}}]"), asks: []ask{greeting(81).want("pod=*"), greeting(81).by("stranger").want("!pod=*")}},
			{name: "TCPRoute", field: "TCPRoute.rules.backendRefs", ports: tcp, yaml: whole("{name: v2, port: 81}"), asks: []ask{greeting(81).times(5).want(atV2)}},
			{name: "TCPRoute by weight", field: "TCPRoute.rules.backendRefs.weight", ports: tcp, yaml: whole("{name: v1, port: 81, weight: 50}, {name: v2, port: 81, weight: 50}"), asks: []ask{greeting(81).times(60).count(atV2, 12, 48)}},
			{name: "TCPRoute to what does not exist", field: "TCPRoute.rules.backendRefs", ports: tcp, yaml: whole("{name: ghost, port: 81}"), asks: []ask{greeting(81).want("!pod=*")}},
		}},
		{title: "TLS", features: []feature{
			{name: "by the name of the service", field: "VirtualService.tls.match.sniHosts", ports: tls, yaml: vs("tls", "{match: [{sniHosts: [$S.shop.svc.cluster.local]}], route: [{"+at("v2")+"}]}"), asks: []ask{hello(443, "any.example").want(atV2)}},
			{name: "denied by the name that is asked for", field: "AuthorizationPolicy.rules.when connection.sni", ports: tls, yaml: deny(`when: [{key: connection.sni, values: [evil.example]}]`), asks: []ask{hello(443, "good.example").want("pod=*"), hello(443, "evil.example").want("!pod=*")}},
			{name: "denied by a name that comes late", field: "AuthorizationPolicy.rules.when connection.sni", ports: tls, slow: true, yaml: deny(`when: [{key: connection.sni, values: [evil.example]}]`), asks: []ask{hello(443, "good.example").paced(400 * time.Millisecond).want("pod=*"), hello(443, "evil.example").paced(400 * time.Millisecond).want("!pod=*")}},
			{name: "TLSRoute", field: "TLSRoute.rules.backendRefs", ports: tls, yaml: tlsRoute, asks: []ask{hello(443, "$S.shop.svc.cluster.local").want(atV2)}},
		}},
	}
}

const tlsRoute = "{apiVersion: gateway.networking.k8s.io/v1, kind: TLSRoute, metadata: {name: $S, namespace: shop}, spec: {parentRefs: [{group: \"\", kind: Service, name: $S}], hostnames: [$S.shop.svc.cluster.local], rules: [{backendRefs: [{name: v2, port: 81}]}]}}\n---\n"

func greeting(port int) ask { return ask{verb: "greet", proto: "tcp", port: port} }
