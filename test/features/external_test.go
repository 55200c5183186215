package features

import (
	"strings"
	"time"
)

// externalAuthorization are CUSTOM policies, whose providers ask the servers of servers_test.go.
func externalAuthorization() []group {
	return []group{
		{title: "ask an authorizer by gRPC", features: askByGRPC()},
		{title: "ask an authorizer by HTTP", features: askByHTTP()},
		{title: "authorize, leaving a trace", features: traces()},
	}
}

// custom has the provider asked about requests of paths that begin with /ask.
func custom(provider string) string {
	return "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: $S-custom, namespace: shop}, spec: {targetRefs: [{group: \"\", kind: Service, name: $S}], action: CUSTOM, provider: {name: " + provider + "}, rules: [{to: [{operation: {paths: [\"/ask*\"]}}]}]}}\n---\n"
}

func asked(answer string) ask { return get("/ask", "x-ask: "+answer) }

func askByGRPC() []feature {
	const field, provider = "AuthorizationPolicy.action CUSTOM", "MeshConfig.extensionProviders.envoyExtAuthzGrpc"
	c := func(name, field, provider string, asks ...ask) feature {
		return feature{name: name, field: field, yaml: custom(provider), asks: asks}
	}
	return []feature{
		c("it allows", field, "authz-grpc", asked("allow").want(ok, atWeb)),
		c("it denies", field, "authz-grpc", asked("deny").want("status=418", "!pod=*")),
		c("what the policy does not select is not asked about", field, "authz-grpc", get("/other", "x-ask: deny").want(ok)),
		c("a denial has a body", field, "authz-grpc", asked("deny").want("status=418", "not you")),
		c("a denial has headers", field, "authz-grpc", asked("deny").want("answer.x-why=because")),
		c("it adds headers to the request", field, "authz-grpc", asked("allow").want("header.X-Allowed-As=grpc")),
		c("it removes headers from the request", field, "authz-grpc", asked("allow").want(ok, "!header.X-Ask=*")),
		c("it replaces headers that the client forged", field, "authz-grpc", get("/ask", "x-ask: allow", "x-allowed-as: root").want("header.X-Allowed-As=grpc", "!header.X-Allowed-As=root")),
		c("it adds headers to the answer", field, "authz-grpc", asked("allow").want("answer.x-session=begun")),
		c("it is told of the request", field, "authz-grpc", get("/ask/x?q=1", "x-ask: allow").method("PUT").want("header.X-Asked=PUT $S.shop/ask/x?q=1")),
		c("it is told the body", provider+".includeRequestBodyInCheck", "authz-grpc-body", asked("body").method("POST").body("secret").want(ok, "secret"), asked("body").method("POST").body("wrong").want("status=418")),
		c("it is not told the body otherwise", provider+".includeRequestBodyInCheck", "authz-grpc", asked("body").method("POST").body("secret").want("status=418")),
		c("when it is away, requests are denied", provider+".failOpen", "authz-grpc-away", asked("allow").want("status=403", "!pod=*"), get("/other").want(ok)),
		c("when it is away, requests are let through if that was asked for", provider+".failOpen", "authz-grpc-away-open", asked("allow").want(ok, atWeb)),
		c("when it is away, the status is as configured", provider+".statusOnError", "authz-grpc-away-status", asked("allow").want("status=503", "!pod=*")),
		c("when it takes too long, requests are denied", provider+".timeout", "authz-grpc-slow", asked("slow").want("status=403", "!pod=*").took(200*time.Millisecond, 2900*time.Millisecond)),
		{name: "before other policies", field: field, yaml: custom("authz-grpc") + deny("to: [{operation: {methods: [DELETE]}}]"), asks: []ask{asked("allow").want(ok), asked("allow").method("DELETE").want("status=403"), asked("deny").method("DELETE").want("status=418")}},
		{name: "and other policies", field: field, yaml: custom("authz-grpc") + allow("from: [{source: {namespaces: [shop]}}]"), asks: []ask{asked("allow").want(ok), asked("allow").by("stranger").want("status=403"), asked("deny").by("stranger").want("status=418")}},
		c("over HTTP/2", field, "authz-grpc", asked("allow").h2().want(ok, "header.X-Allowed-As=grpc"), asked("deny").h2().want("status=418")),
		{name: "about gRPC calls", field: field, ports: grpcPort, yaml: custom("authz-grpc"), asks: []ask{rpc("/ask.v1.Echo/Echo", "x-ask: allow").want("answer.grpc-status=0"), rpc("/ask.v1.Echo/Echo", "x-ask: deny").want("!answer.grpc-status=0")}},
		{name: "connections that are not HTTP are denied", field: field, ports: "{name: tcp, port: 81, targetPort: 8080}", yaml: "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: $S, namespace: shop}, spec: {targetRefs: [{group: \"\", kind: Service, name: $S}], action: CUSTOM, provider: {name: authz-grpc}, rules: [{}]}}\n---\n", asks: []ask{raw(81).want("!pod=*")}},
	}
}

const atWeb = "pod=v*"

func askByHTTP() []feature {
	const field, provider = "AuthorizationPolicy.action CUSTOM", "MeshConfig.extensionProviders.envoyExtAuthzHttp"
	c := func(name, field, provider string, asks ...ask) feature {
		return feature{name: name, field: field, yaml: custom(provider), asks: asks}
	}
	return []feature{
		c("it allows", field, "authz-http", asked("allow").want(ok, atWeb)),
		c("it denies", field, "authz-http", asked("deny").want("status=418", "!pod=*")),
		c("what the policy does not select is not asked about", field, "authz-http", get("/other", "x-ask: deny").want(ok)),
		c("a denial has a body", field, "authz-http", asked("deny").want("status=418", "not you")),
		c("a denial has headers that are named", provider+".headersToDownstreamOnDeny", "authz-http", asked("deny").want("answer.x-why=because", "!answer.x-kept-back=*")),
		c("it adds headers that are named to the request", provider+".headersToUpstreamOnAllow", "authz-http", asked("allow").want("header.X-Allowed-As=*", "!header.X-Kept-Back=*")),
		c("it adds headers that are named to the answer", provider+".headersToDownstreamOnAllow", "authz-http", asked("allow").want("answer.x-session=begun", "!answer.x-kept-back=*")),
		c("it gets headers that are named", provider+".includeRequestHeadersInCheck", "authz-http", get("/ask").want("status=418"), asked("allow").want(ok)),
		c("it gets additional headers", provider+".includeAdditionalHeadersInCheck", "authz-http", asked("allow").want("header.X-Allowed-As=GET $S.shop/check/ask by waypoint")),
		c("it is asked below a path", provider+".pathPrefix", "authz-http", asked("allow").method("PUT").want("header.X-Allowed-As=PUT $S.shop/check/ask by waypoint")),
		c("it is told the body", provider+".includeRequestBodyInCheck", "authz-http-body", asked("body").method("POST").body("secret").want(ok, "secret"), asked("body").method("POST").body("wrong").want("status=418")),
		c("a body that is too long is refused", provider+".includeRequestBodyInCheck.maxRequestBytes", "authz-http-body", asked("allow").method("POST").body(strings.Repeat("x", 5000)).want("status=413")),
		c("when it is away, requests are denied", provider+".failOpen", "authz-http-away", asked("allow").want("status=403", "!pod=*"), get("/other").want(ok)),
		c("when it is away, requests are let through if that was asked for", provider+".failOpen", "authz-http-away-open", asked("allow").want(ok, atWeb)),
		{name: "and other policies", field: field, yaml: custom("authz-http") + allow("from: [{source: {namespaces: [shop]}}]"), asks: []ask{asked("allow").want(ok), asked("allow").by("stranger").want("status=403")}},
		c("over HTTP/2", field, "authz-http", asked("allow").h2().want(ok, "header.X-Allowed-As=*"), asked("deny").h2().want("status=418")),
	}
}

// trail logs what policies leave behind.
const trail = "{apiVersion: telemetry.istio.io/v1, kind: Telemetry, metadata: {name: $S, namespace: shop}, spec: {targetRefs: [{group: \"\", kind: Service, name: $S}], accessLogging: [{providers: [{name: trail}]}]}}\n---\n"

func traces() []feature {
	const audit, dry = "AuthorizationPolicy.action AUDIT", "AuthorizationPolicy istio.io/dry-run"
	return []feature{
		{name: "audit marks what it is about", field: audit, yaml: trail + authorize("", "AUDIT", "to: [{operation: {paths: [/a]}}]"), asks: []ask{get("/a").want(ok)}, logged: []string{"trail $S.shop /a code=200", " hint=true "}},
		{name: "audit does not mark anything else", field: audit, yaml: trail + authorize("", "AUDIT", "to: [{operation: {paths: [/a]}}]"), asks: []ask{get("/b").want(ok)}, logged: []string{"trail $S.shop /b code=200", " hint=false "}},
		{name: "a dry run tells what it would deny", field: dry, yaml: trail + dryRun("DENY", "to: [{operation: {paths: [/a]}}]"), asks: []ask{get("/a").want(ok)}, logged: []string{"trail $S.shop /a code=200", " deny=denied ", "deny-policy=ns[shop]-policy[$S]-rule[0] "}},
		{name: "a dry run tells what it would not deny", field: dry, yaml: trail + dryRun("DENY", "to: [{operation: {paths: [/a]}}]"), asks: []ask{get("/b").want(ok)}, logged: []string{"trail $S.shop /b code=200", " deny=allowed ", " deny-policy=- "}},
		{name: "a dry run tells what it would allow", field: dry, yaml: trail + dryRun("ALLOW", "to: [{operation: {paths: [/a]}}]"), asks: []ask{get("/a").want(ok)}, logged: []string{"trail $S.shop /a code=200", " allow=allowed ", "allow-policy=ns[shop]-policy[$S]-rule[0]"}},
		{name: "a dry run tells what it would not allow", field: dry, yaml: trail + dryRun("ALLOW", "to: [{operation: {paths: [/a]}}]"), asks: []ask{get("/b").want(ok)}, logged: []string{"trail $S.shop /b code=200", " allow=denied ", " allow-policy=-"}},
		{name: "a dry run beside a policy in force", field: dry, yaml: trail + dryRun("DENY", "to: [{operation: {paths: [/a]}}]") + deny("to: [{operation: {methods: [DELETE]}}]"), asks: refused(get("/a"), get("/a").method("DELETE")), logged: []string{"trail $S.shop /a code=200", " deny=denied "}},
		{name: "a denial names its policy", field: "AuthorizationPolicy", yaml: trail + deny("to: [{operation: {paths: [/a]}}]"), asks: []ask{get("/a").want("status=403")}, logged: []string{"trail $S.shop /a code=403", "details=rbac_access_denied_matched_policy[ns[shop]-policy[$S-deny]-rule[0]]"}},
		{name: "a denial for want of permission says so", field: "AuthorizationPolicy", yaml: trail + allow("to: [{operation: {paths: [/a]}}]"), asks: []ask{get("/b").want("status=403")}, logged: []string{"trail $S.shop /b code=403", "details=rbac_access_denied_matched_policy[none]"}},
		{name: "an authorizer's denial is told", field: "AuthorizationPolicy.action CUSTOM", yaml: trail + custom("authz-grpc"), asks: []ask{asked("deny").want("status=418")}, logged: []string{"trail $S.shop /ask code=418", "details=ext_authz_denied"}},
		{name: "an authorizer's absence is told", field: "AuthorizationPolicy.action CUSTOM", yaml: trail + custom("authz-grpc-away"), asks: []ask{asked("allow").want("status=403")}, logged: []string{"trail $S.shop /ask code=403", "details=ext_authz_error"}},
	}
}

// tracing is what requests leave at a collector, and what endpoints are told of it.
func tracing() []group {
	const field = "Telemetry.tracing."
	traced := func(more string) string {
		return "{apiVersion: telemetry.istio.io/v1, kind: Telemetry, metadata: {name: $S, namespace: shop}, spec: {targetRefs: [{group: \"\", kind: Service, name: $S}], tracing: [{providers: [{name: spans}], randomSamplingPercentage: 100" + more + "}]}}\n---\n"
	}
	const above = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	told, untold := "header.Traceparent=00-*", "!header.Traceparent=*"
	span := []string{"msg=span", "http://$S.shop/"}
	return []group{{title: "trace", features: []feature{
		{name: "a request", field: field + "providers", yaml: traced(""), asks: []ask{get("/").want(ok, told)}, logged: span},
		{name: "a request of a trace", field: field + "providers", yaml: traced(""), asks: []ask{get("/", above).want(ok, "header.Traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-*", "!header."+"Traceparent=*-00f067aa0ba902b7-*")}, logged: append(span, "parent=00f067aa0ba902b7")},
		{name: "and do not tell endpoints", field: field + "disableContextPropagation", yaml: traced(", disableContextPropagation: true"), asks: []ask{get("/").want(ok, untold)}, logged: span},
		{name: "and do not tell endpoints of the caller's trace", envoy: "it leaves what the caller has sent", field: field + "disableContextPropagation", yaml: traced(", disableContextPropagation: true"), asks: []ask{get("/", above).want(ok, untold)}, logged: append(span, "parent=00f067aa0ba902b7")},
	}}}
}
