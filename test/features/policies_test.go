package features

import "fmt"

// policies are AuthorizationPolicies about requests.
func policies() []group {
	return []group{
		{title: "authorize the client", features: authorizeClient()},
		{title: "authorize the operation", features: authorizeOperation()},
		{title: "authorize by conditions", features: authorizeWhen()},
		{title: "authorize, combined", features: authorizeCombined()},
	}
}

const noDirectAddress = "the direct peer of the inner listener is the outer one, which has no address"

func authorizeClient() []feature {
	const field = "AuthorizationPolicy.rules.from.source"
	from := func(source string) string { return allow("from: [{source: {" + source + "}}]") }
	us, them := get("/"), get("/").by("stranger")
	return []feature{
		{name: "by identity", field: field + ".principals", yaml: from("principals: [cluster.local/ns/shop/sa/client]"), asks: refused(us, them)},
		{name: "by the beginning of its identity", field: field + ".principals", yaml: from(`principals: ["cluster.local/ns/shop/*"]`), asks: refused(us, them)},
		{name: "by the end of its identity", field: field + ".principals", yaml: from(`principals: ["*/sa/client"]`), asks: refused(us, them)},
		{name: "any identity", field: field + ".principals", yaml: from(`principals: ["*"]`), asks: []ask{us.want(ok), them.want(ok)}},
		{name: "but for an identity", field: field + ".notPrincipals", yaml: from("notPrincipals: [cluster.local/ns/other/sa/stranger]"), asks: refused(us, them)},
		{name: "by namespace", field: field + ".namespaces", yaml: from("namespaces: [shop]"), asks: refused(us, them)},
		{name: "by the beginning of its namespace", field: field + ".namespaces", yaml: from(`namespaces: ["sh*"]`), asks: refused(us, them)},
		{name: "but for a namespace", field: field + ".notNamespaces", yaml: from("notNamespaces: [other]"), asks: refused(us, them)},
		{name: "by service account", field: field + ".serviceAccounts", yaml: from("serviceAccounts: [shop/client]"), asks: refused(us, them)},
		{name: "by service account of the policy's namespace", field: field + ".serviceAccounts", yaml: from("serviceAccounts: [client]"), asks: refused(us, them)},
		{name: "but for a service account", field: field + ".notServiceAccounts", yaml: from("notServiceAccounts: [other/stranger]"), asks: refused(us, them)},
		{name: "by trust domain", field: field + ".trustDomains", yaml: from("trustDomains: [cluster.local]"), asks: []ask{us.want(ok)}},
		{name: "by another trust domain", field: field + ".trustDomains", yaml: from("trustDomains: [other.example]"), asks: []ask{us.want("status=403")}},
		{name: "by address", envoy: noDirectAddress, field: field + ".ipBlocks", yaml: from(`ipBlocks: ["0.0.0.0/0"]`), asks: []ask{us.want(ok)}},
		{name: "by an address that it has not", field: field + ".ipBlocks", yaml: from(`ipBlocks: ["192.0.2.0/24"]`), asks: []ask{us.want("status=403")}},
		{name: "but for addresses", field: field + ".notIpBlocks", yaml: from(`notIpBlocks: ["192.0.2.0/24"]`), asks: []ask{us.want(ok)}},
		{name: "by the original address", field: field + ".remoteIpBlocks", yaml: from(`remoteIpBlocks: ["10.0.0.0/8"]`), asks: []ask{us.want(ok)}},
		{name: "but for original addresses", field: field + ".notRemoteIpBlocks", yaml: from(`notRemoteIpBlocks: ["0.0.0.0/0"]`), asks: []ask{us.want("status=403")}},
		{name: "one of several", field: "AuthorizationPolicy.rules.from[]", yaml: allow("from: [{source: {namespaces: [ghost]}}, {source: {namespaces: [shop]}}]"), asks: refused(us, them)},
		{name: "all of one", field: field, yaml: from("namespaces: [shop], notPrincipals: [cluster.local/ns/shop/sa/client]"), asks: []ask{us.want("status=403"), them.want("status=403")}},
		{name: "denied by identity", field: field + ".principals", yaml: deny("from: [{source: {principals: [cluster.local/ns/other/sa/stranger]}}]"), asks: refused(us, them)},
		{name: "denied by namespace", field: field + ".namespaces", yaml: deny("from: [{source: {namespaces: [other]}}]"), asks: refused(us, them)},
	}
}

func authorizeOperation() []feature {
	const field = "AuthorizationPolicy.rules.to.operation"
	to := func(operation string) string { return allow("to: [{operation: {" + operation + "}}]") }
	two := "{name: http, port: 80, targetPort: 8080}, {name: http-two, port: 8000, targetPort: 8080}"
	return []feature{
		{name: "by method", field: field + ".methods", yaml: to("methods: [GET]"), asks: refused(get("/"), get("/").method("POST"))},
		{name: "by several methods", field: field + ".methods", yaml: to("methods: [GET, PUT]"), asks: refused(get("/").method("PUT"), get("/").method("POST"))},
		{name: "by a method's beginning", field: field + ".methods", yaml: to(`methods: ["P*"]`), asks: refused(get("/").method("PUT"), get("/"))},
		{name: "but for a method", field: field + ".notMethods", yaml: to("notMethods: [DELETE]"), asks: refused(get("/"), get("/").method("DELETE"))},
		{name: "by path", field: field + ".paths", yaml: to("paths: [/a]"), asks: refused(get("/a"), get("/a/b"))},
		{name: "by path, whatever the query", field: field + ".paths", yaml: to("paths: [/a]"), asks: refused(get("/a?x=1"), get("/b?x=/a"))},
		{name: "by path, minding case", field: field + ".paths", yaml: to("paths: [/a]"), asks: refused(get("/a"), get("/A"))},
		{name: "by a path's beginning", field: field + ".paths", yaml: to(`paths: ["/a/*"]`), asks: refused(get("/a/b/c"), get("/b"))},
		{name: "by a path's end", field: field + ".paths", yaml: to(`paths: ["*.html"]`), asks: refused(get("/x/y.html"), get("/x/y.htm"))},
		{name: "any path", field: field + ".paths", yaml: to(`paths: ["*"]`), asks: []ask{get("/x").want(ok)}},
		{name: "by template of one segment", field: field + ".paths {*}", yaml: to(`paths: ["/u/{*}"]`), asks: refused(get("/u/7"), get("/u/7/x"))},
		{name: "by template of a segment within", field: field + ".paths {*}", yaml: to(`paths: ["/u/{*}/photo"]`), asks: refused(get("/u/7/photo"), get("/u/7/8/photo"))},
		{name: "by template of two segments", field: field + ".paths {*}", yaml: to(`paths: ["/u/{*}/o/{*}"]`), asks: refused(get("/u/7/o/8"), get("/u/7/o"))},
		{name: "by template of the rest", field: field + ".paths {**}", yaml: to(`paths: ["/u/{**}"]`), asks: refused(get("/u/7/x/y"), get("/v/7"))},
		{name: "by template of both kinds", field: field + ".paths {*} {**}", yaml: to(`paths: ["/u/{*}/x/{**}"]`), asks: refused(get("/u/7/x/y/z"), get("/u/7/y/z"))},
		{name: "by template of the rest and an end", field: field + ".paths {**}", yaml: to(`paths: ["/u/{**}/end"]`), asks: refused(get("/u/7/x/end"), get("/u/7/x/ends"))},
		{name: "but for a path", field: field + ".notPaths", yaml: to("notPaths: [/secret]"), asks: refused(get("/open"), get("/secret"))},
		{name: "but for a path's beginning", field: field + ".notPaths", yaml: to(`notPaths: ["/secret*"]`), asks: refused(get("/open"), get("/secret/x"))},
		{name: "but for a template", field: field + ".notPaths {*}", yaml: to(`notPaths: ["/u/{*}/keys"]`), asks: refused(get("/u/7/photo"), get("/u/7/keys"))},
		{name: "by host", field: field + ".hosts", yaml: to("hosts: [$S.shop]"), asks: refused(get("/"), get("/").host("evil.example"))},
		{name: "by host in any case", field: field + ".hosts", yaml: to("hosts: [Shop.Example]"), asks: refused(get("/").host("sHOP.example"), get("/").host("shop.test"))},
		{name: "by a host's end", field: field + ".hosts", yaml: to(`hosts: ["*.example"]`), asks: refused(get("/").host("a.example"), get("/").host("a.test"))},
		{name: "but for a host", field: field + ".notHosts", yaml: to("notHosts: [evil.example]"), asks: refused(get("/"), get("/").host("evil.example"))},
		{name: "by port", field: field + ".ports", ports: two, yaml: to(`ports: ["80"]`), asks: refused(get("/"), get("/").at(8000))},
		{name: "but for a port", field: field + ".notPorts", ports: two, yaml: to(`notPorts: ["8000"]`), asks: refused(get("/"), get("/").at(8000))},
		{name: "by method and path", field: field, yaml: to("methods: [GET], paths: [/a]"), asks: append(refused(get("/a"), get("/a").method("POST")), get("/b").want("status=403"))},
		{name: "one of several operations", field: "AuthorizationPolicy.rules.to[]", yaml: allow("to: [{operation: {paths: [/a]}}, {operation: {methods: [POST]}}]"), asks: append(refused(get("/a"), get("/b")), get("/b").method("POST").want(ok))},
		{name: "denied by method", field: field + ".methods", yaml: deny("to: [{operation: {methods: [DELETE]}}]"), asks: refused(get("/"), get("/").method("DELETE"))},
		{name: "denied by path", field: field + ".paths", yaml: deny(`to: [{operation: {paths: ["/secret*"]}}]`), asks: refused(get("/"), get("/secret/1"))},
		{name: "denied by path, whatever its spelling", field: field + ".paths", yaml: deny(`to: [{operation: {paths: ["/secret*"]}}]`), asks: []ask{
			get("/x/../secret").want("status=403"), get("/%73ecret").want("status=403"), get("/./secret").want("status=403")}},
		{name: "denied but for a method", field: field + ".notMethods", yaml: deny("to: [{operation: {notMethods: [GET]}}]"), asks: refused(get("/"), get("/").method("POST"))},
		{name: "denied by template", field: field + ".paths {*}", yaml: deny(`to: [{operation: {paths: ["/u/{*}/keys"]}}]`), asks: refused(get("/u/7"), get("/u/7/keys"))},
		{name: "gRPC by its path", field: field + ".paths", ports: grpcPort, yaml: to("paths: [/ambit.echo.v1.Echo/Echo]"), asks: []ask{rpc("/ambit.echo.v1.Echo/Echo").want("answer.grpc-status=0"), rpc("/a.B/C").want("answer.grpc-status=7")}},
		{name: "over HTTP/2", field: field + ".methods", yaml: to("methods: [GET]"), asks: refused(get("/").h2(), get("/").method("POST").h2())},
	}
}

func authorizeWhen() []feature {
	const field = "AuthorizationPolicy.rules.when"
	when := func(key, values string) string { return allow(`when: [{key: "` + key + `", ` + values + `}]`) }
	w := func(name, key, values string, asks ...ask) feature {
		return feature{name: name, field: field + " " + key, yaml: when(key, values), asks: asks}
	}
	withClaims := func(name, key, values string, yes, no ask) feature {
		return feature{name: name, field: field + " " + key, yaml: jwt("") + when(key, values), asks: refused(yes, no)}
	}
	us, them := get("/"), get("/").by("stranger")
	admin, guest := get("/", "authorization: Bearer $T(admin)"), get("/", "authorization: Bearer $T(guest)")
	return []feature{
		w("by a header", "request.headers[x-v]", "values: [two]", refused(get("/", "x-v: two"), get("/", "x-v: twos"))...),
		w("by a header's beginning", "request.headers[x-v]", `values: ["tw*"]`, refused(get("/", "x-v: two"), get("/", "x-v: atw"))...),
		w("by a header's end", "request.headers[x-v]", `values: ["*wo"]`, refused(get("/", "x-v: two"), get("/", "x-v: won"))...),
		w("by a header's presence", "request.headers[x-v]", `values: ["*"]`, refused(get("/", "x-v: two"), get("/"))...),
		w("but for a header's value", "request.headers[x-v]", "notValues: [bad]", refused(get("/", "x-v: good"), get("/", "x-v: bad"))...),
		w("by the user agent", "request.headers[User-Agent]", `values: ["Mozilla*"]`, refused(get("/", "user-agent: Mozilla/5"), get("/"))...),
		{name: "by address", envoy: noDirectAddress, field: field + " source.ip", yaml: when("source.ip", `values: ["0.0.0.0/0"]`), asks: []ask{us.want(ok)}},
		{name: "but for an address", envoy: noDirectAddress, field: field + " source.ip", yaml: when("source.ip", `notValues: ["0.0.0.0/0"]`), asks: []ask{us.want("status=403")}},
		w("by original address", "remote.ip", `values: ["10.0.0.0/8"]`, us.want(ok)),
		w("by another original address", "remote.ip", `values: ["192.0.2.1"]`, us.want("status=403")),
		w("by namespace", "source.namespace", "values: [shop]", refused(us, them)...),
		w("but for a namespace", "source.namespace", "notValues: [other]", refused(us, them)...),
		w("by identity", "source.principal", "values: [cluster.local/ns/shop/sa/client]", refused(us, them)...),
		w("by service account", "source.serviceAccount", "values: [shop/client]", refused(us, them)...),
		w("by destination port", "destination.port", `values: ["80"]`, us.want(ok)),
		w("by another destination port", "destination.port", `values: ["81"]`, us.want("status=403")),
		w("but for a destination address", "destination.ip", `notValues: ["192.0.2.0/24"]`, us.want(ok)),
		withClaims("by a claim", "request.auth.claims[role]", "values: [admin]", admin, guest),
		withClaims("by a claim's beginning", "request.auth.claims[role]", `values: ["adm*"]`, admin, guest),
		withClaims("by one of a claim's list", "request.auth.claims[groups]", "values: [admin]", admin, guest),
		withClaims("by a nested claim", "request.auth.claims[org][unit]", "values: [red]", admin, guest),
		withClaims("but for a claim's value", "request.auth.claims[role]", "notValues: [guest]", admin, guest),
		withClaims("by a scope", "request.auth.claims[scope]", "values: [write]", admin, guest),
		withClaims("by the presenter", "request.auth.presenter", "values: [app]", admin, guest),
		withClaims("by the audience", "request.auth.audiences", "values: [shop]", get("/", "authorization: Bearer $T(shop)"), get("/", "authorization: Bearer $T(bank)")),
		withClaims("by one of the audiences", "request.auth.audiences", "values: [shop]", get("/", "authorization: Bearer $T(list)"), get("/")),
		withClaims("by the request's principal", "request.auth.principal", `values: ["https://issuer.example/alice"]`, get("/", "authorization: Bearer $T(good)"), get("/", "authorization: Bearer $T(bob)")),
		{name: "all of several", field: field, yaml: allow(`when: [{key: "request.headers[x-a]", values: ["1"]}, {key: "request.headers[x-b]", values: ["2"]}]`), asks: refused(get("/", "x-a: 1", "x-b: 2"), get("/", "x-a: 1"))},
		{name: "denied by a header", field: field, yaml: deny(`when: [{key: "request.headers[x-v]", values: [bad]}]`), asks: refused(get("/", "x-v: good"), get("/", "x-v: bad"))},
	}
}

func authorizeCombined() []feature {
	const field = "AuthorizationPolicy"
	raw := func(spec string) string {
		return "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: $S, namespace: shop}, spec: {targetRefs: [{group: \"\", kind: Service, name: $S}]" + spec + "}}\n---\n"
	}
	return []feature{
		{name: "nothing is allowed by a policy without rules", field: field + ".spec", yaml: raw(""), asks: []ask{get("/").want("status=403")}},
		{name: "all is allowed by an empty rule", field: field + ".rules", yaml: raw(", rules: [{}]"), asks: []ask{get("/").want(ok)}},
		{name: "all is denied by an empty rule", field: field + ".action DENY", yaml: raw(", action: DENY, rules: [{}]"), asks: []ask{get("/").want("status=403")}},
		{name: "nothing is denied without rules", field: field + ".action DENY", yaml: raw(", action: DENY"), asks: []ask{get("/").want(ok)}},
		{name: "denial wins", field: field + ".action", yaml: allow("to: [{operation: {methods: [GET]}}]") + deny(`to: [{operation: {paths: ["/secret*"]}}]`), asks: append(refused(get("/"), get("/secret")), get("/").method("POST").want("status=403"))},
		{name: "one of several policies allows", field: field, yaml: allow("to: [{operation: {paths: [/a]}}]") + authorize("-more", "ALLOW", "to: [{operation: {paths: [/b]}}]"), asks: append(refused(get("/a"), get("/c")), get("/b").want(ok))},
		{name: "one of several rules allows", field: field + ".rules[]", yaml: raw(", rules: [{to: [{operation: {paths: [/a]}}]}, {from: [{source: {namespaces: [other]}}]}]"), asks: append(refused(get("/a"), get("/b")), get("/b").by("stranger").want(ok))},
		{name: "who may do what", field: field + ".rules", yaml: allow("from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}]"), asks: append(refused(get("/"), get("/").method("POST")), get("/").by("stranger").want("status=403"))},
		{name: "audit changes nothing", field: field + ".action AUDIT", yaml: authorize("", "AUDIT", `to: [{operation: {paths: ["/*"]}}]`), asks: []ask{get("/").want(ok)}},
		{name: "a dry run denies nothing", field: field + " istio.io/dry-run", yaml: dryRun("DENY", `to: [{operation: {paths: ["/*"]}}]`), asks: []ask{get("/x").want(ok)}},
		{name: "a dry run allows nothing less", field: field + " istio.io/dry-run", yaml: dryRun("ALLOW", `to: [{operation: {paths: [/a]}}]`), asks: []ask{get("/b").want(ok)}},
		{name: "before a redirect", field: field, yaml: virtual("redirect: {uri: /new}") + deny("to: [{operation: {paths: [/old]}}]"), asks: []ask{get("/old").want("status=403"), get("/x").want("status=301")}},
		{name: "before a rewrite", field: field, yaml: virtual("match: [{uri: {prefix: /a}}], rewrite: {uri: /secret}") + deny(`to: [{operation: {paths: ["/secret*"]}}]`), asks: []ask{get("/a").want(ok, "path=/secret"), get("/secret").want("status=403")}},
		{name: "an external authorizer that is not there denies", field: field + ".action CUSTOM", yaml: raw(", action: CUSTOM, provider: {name: ghost}, rules: [{to: [{operation: {paths: [/admin]}}]}]"), asks: refused(get("/open"), get("/admin"))},
		{name: "a denial is an answer", field: field, yaml: deny("to: [{operation: {paths: [/a]}}]"), asks: []ask{get("/a").want("status=403", "RBAC: access denied")}},
	}
}

func dryRun(action, rule string) string {
	return "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: $S, namespace: shop, annotations: {istio.io/dry-run: \"true\"}}, spec: {targetRefs: [{group: \"\", kind: Service, name: $S}], action: " + action + ", rules: [{" + rule + "}]}}\n---\n"
}

// tokens are RequestAuthentications.
func tokens() []group {
	const field = "RequestAuthentication.jwtRules"
	bearer := func(name string) ask { return get("/", "authorization: Bearer $T("+name+")") }
	must := allow(`from: [{source: {requestPrincipals: ["https://issuer.example/*"]}}]`)
	payload := "header.X-Payload=eyJ*"
	bad := func(name, token string) feature {
		return feature{name: name, field: field + ".jwks", yaml: jwt(""), asks: []ask{bearer(token).want("status=401")}}
	}
	return []group{{title: "tokens", features: []feature{
		{name: "a good one", field: field + ".jwks", yaml: jwt(""), asks: []ask{bearer("good").want(ok)}},
		{name: "none passes without identity", field: field, yaml: jwt(""), asks: []ask{get("/").want(ok)}},
		{name: "none is refused where a policy wants one", field: "AuthorizationPolicy.rules.from.source.requestPrincipals", yaml: jwt("") + must, asks: refused(bearer("good"), get("/"))},
		{name: "of one subject", field: "AuthorizationPolicy.rules.from.source.requestPrincipals", yaml: jwt("") + allow(`from: [{source: {requestPrincipals: ["https://issuer.example/alice"]}}]`), asks: refused(bearer("good"), bearer("bob"))},
		{name: "but for a subject", field: "AuthorizationPolicy.rules.from.source.notRequestPrincipals", yaml: jwt("") + deny(`from: [{source: {notRequestPrincipals: ["*"]}}]`), asks: refused(bearer("good"), get("/"))},
		bad("an expired one", "expired"), bad("one that is not valid yet", "early"), bad("one signed by another", "forged"), bad("one of another issuer", "foreign"), bad("one that is not signed", "none"),
		{name: "one that is no token", field: field, yaml: jwt(""), asks: []ask{get("/", "authorization: Bearer nonsense").want("status=401")}},
		{name: "another kind of authorization is none", field: field, yaml: jwt(""), asks: []ask{get("/", "authorization: Basic YTpi").want(ok)}},
		{name: "a refusal says how", field: field, yaml: jwt(""), asks: []ask{bearer("expired").want("status=401", "answer.www-authenticate=Bearer *")}},
		{name: "for an audience", field: field + ".audiences", yaml: jwt("audiences: [shop]"), asks: []ask{bearer("shop").want(ok), bearer("bank").want("status=403")}},
		{name: "for one of its audiences", field: field + ".audiences", yaml: jwt("audiences: [shop, other]"), asks: []ask{bearer("list").want(ok)}},
		{name: "without an audience", field: field + ".audiences", yaml: jwt("audiences: [shop]"), asks: []ask{bearer("good").want("status=403")}},
		{name: "in another header", field: field + ".fromHeaders", yaml: jwt(`fromHeaders: [{name: x-jwt}]`) + must, asks: refused(get("/", "x-jwt: $T(good)"), get("/"))},
		{name: "behind a prefix", field: field + ".fromHeaders.prefix", yaml: jwt(`fromHeaders: [{name: x-jwt, prefix: "Token "}]`) + must, asks: refused(get("/", "x-jwt: Token $T(good)"), get("/"))},
		{name: "in the query", field: field + ".fromParams", yaml: jwt("fromParams: [token]") + must, asks: refused(get("/?token=$T(good)"), get("/"))},
		{name: "in the query, a bad one", field: field + ".fromParams", yaml: jwt("fromParams: [token]"), asks: []ask{get("/?token=$T(forged)").want("status=401")}},
		{name: "in a cookie", field: field + ".fromCookies", yaml: jwt("fromCookies: [session]") + must, asks: refused(get("/", "cookie: a=1; session=$T(good)"), get("/"))},
		{name: "not in the usual place where another is named", field: field + ".fromCookies", yaml: jwt("fromCookies: [session]") + must, asks: []ask{bearer("good").want("status=403")}},
		{name: "in the usual query parameter", field: field, yaml: jwt("") + must, asks: refused(get("/?access_token=$T(good)"), get("/"))},
		{name: "is not passed on", field: field + ".forwardOriginalToken", yaml: jwt(""), asks: []ask{bearer("good").want(ok, "!header.Authorization=*")}},
		{name: "is passed on", field: field + ".forwardOriginalToken", yaml: jwt("forwardOriginalToken: true"), asks: []ask{bearer("good").want(ok, "header.Authorization=Bearer *")}},
		{name: "its payload in a header", field: field + ".outputPayloadToHeader", yaml: jwt("outputPayloadToHeader: x-payload"), asks: []ask{bearer("good").want(ok, payload)}},
		{name: "a claim in a header", field: field + ".outputClaimToHeaders", yaml: jwt("outputClaimToHeaders: [{header: x-sub, claim: sub}]"), asks: []ask{bearer("good").want(ok, "header.X-Sub=alice")}},
		{name: "a nested claim in a header", field: field + ".outputClaimToHeaders", yaml: jwt("outputClaimToHeaders: [{header: x-unit, claim: org.unit}]"), asks: []ask{bearer("admin").want(ok, "header.X-Unit=red")}},
		{name: "a number in a header", field: field + ".outputClaimToHeaders", yaml: jwt("outputClaimToHeaders: [{header: x-level, claim: level}]"), asks: []ask{bearer("admin").want(ok, "header.X-Level=3")}},
		{name: "a claim in a header that the client cannot forge", field: field + ".outputClaimToHeaders", yaml: jwt("outputClaimToHeaders: [{header: x-sub, claim: sub}]"), asks: []ask{get("/", "authorization: Bearer $T(good)", "x-sub: root").want(ok, "!header.X-Sub=root")}},
		{name: "a list in one text", field: field + ".spaceDelimitedClaims", yaml: jwt("spaceDelimitedClaims: [role]") + allow(`when: [{key: "request.auth.claims[role]", values: [admin]}]`), asks: refused(bearer("admin"), bearer("guest"))},
		{name: "keys that are fetched", field: field + ".jwksUri", yaml: fetched("/keys"), asks: []ask{bearer("good").want(ok), bearer("forged").want("status=401"), bearer("expired").want("status=401"), get("/").want(ok)}},
		{name: "keys that are not where they should be", field: field + ".jwksUri", yaml: fetched("/nothing"), asks: []ask{bearer("good").want("status=401"), get("/").want(ok)}},
		{name: "keys that are fetched, and claims", field: field + ".jwksUri", yaml: fetched("/keys") + allow(`when: [{key: "request.auth.claims[role]", values: [admin]}]`), asks: refused(bearer("admin"), bearer("guest"))},
		{name: "keys that are rotated", envoy: "it fetches keys again after five minutes only", field: field + ".jwksUri", yaml: fetched("/rotating"), asks: []ask{
			bearer("good").want(ok), bearer("next").want("status=401"),
			ask{verb: "GET", path: "/", header: bearer("next").header, act: func(b *bed) { b.keys.rotate() }}.want(ok), bearer("good").want("status=401")}},
		{name: "of two issuers", field: "RequestAuthentication.jwtRules[]", yaml: twoIssuers, asks: []ask{bearer("good").want(ok), bearer("foreign").want(ok), bearer("forged").want("status=401")}},
		{name: "and an identity together", field: "AuthorizationPolicy.rules.from.source", yaml: jwt("") + allow(`from: [{source: {namespaces: [shop], requestPrincipals: ["*"]}}]`), asks: append(refused(bearer("good"), get("/")), bearer("good").by("stranger").want("status=403"))},
		{name: "a preflight needs none", field: field, yaml: virtualCORS + jwt(""), asks: []ask{preflight("https://a.example").want(ok)}},
	}}}
}

// fetched is a RequestAuthentication whose keys the pod helper publishes.
func fetched(path string) string {
	return fmt.Sprintf(security, "RequestAuthentication", "", `jwtRules: [{issuer: "https://issuer.example", jwksUri: "http://keys.shop.svc.cluster.local:9004`+path+`"}]`)
}

const twoIssuers = "{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: $S, namespace: shop}, spec: {targetRefs: [{group: \"\", kind: Service, name: $S}], jwtRules: [{issuer: \"https://issuer.example\", jwks: '$JWKS'}, {issuer: \"https://other.example\", jwks: '$JWKS'}]}}\n---\n"
