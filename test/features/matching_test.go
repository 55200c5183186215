package features

// matching are the matches of VirtualServices.
func matching() []group {
	return []group{
		{title: "match the path", features: matchPath()},
		{title: "match headers", features: matchHeaders()},
		{title: "match the query", features: matchQuery()},
		{title: "match method, authority, scheme and port", features: matchOthers()},
		{title: "match the client", features: matchClient()},
	}
}

func matchPath() []feature {
	const field = "VirtualService.http.match.uri"
	return []feature{
		{name: "exactly", field: field + ".exact", yaml: only("{uri: {exact: /a}}"), asks: split(get("/a"), get("/a/"))},
		{name: "exactly, not a longer one", field: field + ".exact", yaml: only("{uri: {exact: /a}}"), asks: split(get("/a"), get("/ab"))},
		{name: "exactly, whatever the query", field: field + ".exact", yaml: only("{uri: {exact: /a}}"), asks: split(get("/a?x=1"), get("/b?x=/a"))},
		{name: "exactly, minding case", field: field + ".exact", yaml: only("{uri: {exact: /Api}}"), asks: split(get("/Api"), get("/api"))},
		{name: "by prefix", field: field + ".prefix", yaml: only("{uri: {prefix: /api}}"), asks: split(get("/api/x"), get("/ap"))},
		{name: "by prefix within a segment", field: field + ".prefix", yaml: only("{uri: {prefix: /api}}"), asks: split(get("/apis"), get("/x/api"))},
		{name: "by prefix with a slash", field: field + ".prefix", yaml: only("{uri: {prefix: /api/}}"), asks: split(get("/api/"), get("/api"))},
		{name: "by regular expression", field: field + ".regex", yaml: only(`{uri: {regex: "/item/[0-9]+"}}`), asks: split(get("/item/42"), get("/item/x"))},
		{name: "by regular expression of the whole", field: field + ".regex", yaml: only(`{uri: {regex: "/item/[0-9]+"}}`), asks: split(get("/item/42"), get("/item/42/x"))},
		{name: "by regular expression without the query", field: field + ".regex", yaml: only(`{uri: {regex: "/a|/b"}}`), asks: split(get("/b?q=1"), get("/c?q=/a"))},
		{name: "by alternatives of a regular expression", field: field + ".regex", yaml: only(`{uri: {regex: "/(red|blue)/.*"}}`), asks: split(get("/blue/1"), get("/green/1"))},
		{name: "exactly, in any case", field: "VirtualService.http.match.ignoreUriCase", yaml: only("{uri: {exact: /Api}, ignoreUriCase: true}"), asks: split(get("/aPI"), get("/aPIs"))},
		{name: "by prefix in any case", field: "VirtualService.http.match.ignoreUriCase", yaml: only("{uri: {prefix: /Api}, ignoreUriCase: true}"), asks: split(get("/API/x"), get("/AP"))},
		{name: "one of several matches", field: "VirtualService.http.match[]", yaml: only("{uri: {exact: /a}}, {uri: {exact: /b}}"), asks: split(get("/b"), get("/c"))},
		{name: "all conditions of one match", field: "VirtualService.http.match", yaml: only("{uri: {exact: /a}, headers: {x-a: {exact: \"1\"}}}"), asks: split(get("/a", "x-a: 1"), get("/a", "x-a: 2"))},
		{name: "the first rule wins", field: "VirtualService.http[]", yaml: virtual("match: [{uri: {prefix: /a}}], "+toV2, "match: [{uri: {exact: /ab}}], "+toV1), asks: split(get("/ab"), get("/b"))},
		{name: "dot segments are resolved before", field: field + ".prefix", yaml: only("{uri: {prefix: /secret}}"), asks: split(get("/open/../secret"), get("/secret/../open"))},
		{name: "repeated slashes are not one", field: field + ".exact", yaml: only("{uri: {exact: /a/b}}"), asks: split(get("/a/b"), get("/a//b"))},
		{name: "escaped letters are letters", field: field + ".exact", yaml: only("{uri: {exact: /abc}}"), asks: split(get("/a%62c"), get("/a%63c"))},
		{name: "a trailing slash is part of it", field: field + ".exact", yaml: only("{uri: {exact: /a/}}"), asks: split(get("/a/"), get("/a"))},
	}
}

func matchHeaders() []feature {
	const field = "VirtualService.http.match.headers"
	const without = "VirtualService.http.match.withoutHeaders"
	h := func(m string) string { return only("{headers: {" + m + "}}") }
	w := func(m string) string { return only("{withoutHeaders: {" + m + "}}") }
	return []feature{
		{name: "exactly", field: field + ".exact", yaml: h("x-v: {exact: two}"), asks: split(get("/", "x-v: two"), get("/", "x-v: twos"))},
		{name: "exactly, absent", field: field + ".exact", yaml: h("x-v: {exact: two}"), asks: split(get("/", "x-v: two"), get("/"))},
		{name: "exactly, minding the value's case", field: field + ".exact", yaml: h("x-v: {exact: two}"), asks: split(get("/", "x-v: two"), get("/", "x-v: TWO"))},
		{name: "whatever the name's case", field: field, yaml: h("x-v: {exact: two}"), asks: split(get("/", "X-V: two"), get("/", "x-w: two"))},
		{name: "by prefix", field: field + ".prefix", yaml: h("x-v: {prefix: tw}"), asks: split(get("/", "x-v: two"), get("/", "x-v: atw"))},
		{name: "by regular expression", field: field + ".regex", yaml: h(`x-v: {regex: "t.*o"}`), asks: split(get("/", "x-v: tango"), get("/", "x-v: tangos"))},
		{name: "by presence", field: field, yaml: h("x-v: {}"), asks: split(get("/", "x-v: any"), get("/"))},
		{name: "several, all of them", field: field, yaml: h("x-a: {exact: \"1\"}, x-b: {exact: \"2\"}"), asks: split(get("/", "x-a: 1", "x-b: 2"), get("/", "x-a: 1"))},
		{name: "the user agent", field: field + ".prefix", yaml: h("user-agent: {prefix: Mozilla}"), asks: split(get("/", "user-agent: Mozilla/5"), get("/"))},
		{name: "a cookie", field: field + ".regex", yaml: h(`cookie: {regex: "^(.*?;)?(user=jason)(;.*)?$"}`), asks: split(get("/", "cookie: a=1;user=jason"), get("/", "cookie: user=james"))},
		{name: "a list in one header", field: field + ".exact", yaml: h(`x-v: {exact: "a,b"}`), asks: split(get("/", "x-v: a,b"), get("/", "x-v: a"))},
		{name: "an absent header", field: without, yaml: w("x-v: {}"), asks: split(get("/"), get("/", "x-v: any"))},
		{name: "another value, exactly", field: without + ".exact", yaml: w("x-v: {exact: two}"), asks: split(get("/", "x-v: one"), get("/", "x-v: two"))},
		{name: "another value or none", field: without + ".exact", yaml: w("x-v: {exact: two}"), asks: split(get("/"), get("/", "x-v: two"))},
		{name: "without a prefix", field: without + ".prefix", yaml: w("x-v: {prefix: tw}"), asks: split(get("/", "x-v: one"), get("/", "x-v: two"))},
		{name: "without a regular expression", field: without + ".regex", yaml: w(`x-v: {regex: "t.*"}`), asks: split(get("/", "x-v: one"), get("/", "x-v: two"))},
		{name: "one header present, another absent", field: without, yaml: only("{headers: {x-a: {}}, withoutHeaders: {x-b: {}}}"), asks: split(get("/", "x-a: 1"), get("/", "x-a: 1", "x-b: 1"))},
	}
}

func matchQuery() []feature {
	const field = "VirtualService.http.match.queryParams"
	q := func(m string) string { return only("{queryParams: {" + m + "}}") }
	return []feature{
		{name: "exactly", field: field + ".exact", yaml: q(`v: {exact: "2"}`), asks: split(get("/?v=2"), get("/?v=22"))},
		{name: "exactly, among others", field: field + ".exact", yaml: q(`v: {exact: "2"}`), asks: split(get("/?a=1&v=2&b=3"), get("/?a=2&b=2"))},
		{name: "by prefix", field: field + ".prefix", yaml: q(`v: {prefix: tw}`), asks: split(get("/?v=two"), get("/?v=atwo"))},
		{name: "by regular expression", field: field + ".regex", yaml: q(`v: {regex: "[0-9]+"}`), asks: split(get("/?v=12"), get("/?v=a1"))},
		{name: "by presence", field: field, yaml: q(`v: {}`), asks: split(get("/?v=1"), get("/?w=1"))},
		{name: "by presence without a value", field: field, yaml: q(`v: {}`), asks: split(get("/?v="), get("/"))},
		{name: "minding the name's case", field: field, yaml: q(`v: {exact: "2"}`), asks: split(get("/?v=2"), get("/?V=2"))},
		{name: "several, all of them", field: field, yaml: q(`a: {exact: "1"}, b: {exact: "2"}`), asks: split(get("/?b=2&a=1"), get("/?a=1"))},
	}
}

func matchOthers() []feature {
	const method, authority = "VirtualService.http.match.method", "VirtualService.http.match.authority"
	two := "{name: http, port: 80, targetPort: 8080}, {name: http-two, port: 8000, targetPort: 8080}"
	return []feature{
		{name: "a method", field: method + ".exact", yaml: only("{method: {exact: POST}}"), asks: split(get("/").method("POST"), get("/"))},
		{name: "a method by prefix", field: method + ".prefix", yaml: only("{method: {prefix: P}}"), asks: split(get("/").method("PUT"), get("/"))},
		{name: "methods by regular expression", field: method + ".regex", yaml: only(`{method: {regex: "PUT|DELETE"}}`), asks: split(get("/").method("DELETE"), get("/").method("PATCH"))},
		{name: "a method of one's own", field: method + ".exact", yaml: only("{method: {exact: PURGE}}"), ports: "", asks: []ask{get("/").method("OPTIONS").want(ok, atV1)}},
		{name: "an authority", field: authority + ".exact", yaml: only("{authority: {exact: $S.shop}}"), asks: split(get("/"), get("/").host("$S"))},
		{name: "an authority by prefix", field: authority + ".prefix", yaml: only("{authority: {prefix: $S.shop}}"), asks: split(get("/").host("$S.shop.svc"), get("/").host("$S"))},
		{name: "an authority by regular expression", field: authority + ".regex", yaml: only(`{authority: {regex: ".*\\.svc"}}`), asks: split(get("/").host("$S.shop.svc"), get("/").host("$S.shop"))},
		{name: "the scheme http", field: "VirtualService.http.match.scheme.exact", yaml: only("{scheme: {exact: http}}"), asks: []ask{get("/").want(ok, atV2)}},
		{name: "the scheme https, which is not there", field: "VirtualService.http.match.scheme.exact", yaml: only("{scheme: {exact: https}}"), asks: []ask{get("/").want(ok, atV1)}},
		{name: "a port", field: "VirtualService.http.match.port", yaml: portOnly("{port: 8000}"), ports: two, asks: split(get("/").at(8000), get("/"))},
		{name: "a port and a path", field: "VirtualService.http.match.port", yaml: portOnly("{port: 8000, uri: {exact: /a}}"), ports: two, asks: split(get("/a").at(8000), get("/a"))},
		{name: "the mesh", field: "VirtualService.http.match.gateways", yaml: only("{gateways: [mesh]}"), asks: []ask{get("/").want(ok, atV2)}},
		{name: "an ingress gateway, which a waypoint is not", field: "VirtualService.http.match.gateways", yaml: only("{gateways: [ingress]}"), asks: []ask{get("/").want(ok, atV1)}},
		{name: "over HTTP/2", field: "VirtualService.http.match.uri.exact", yaml: only("{uri: {exact: /a}}"), asks: split(get("/a").h2(), get("/b").h2())},
		{name: "an authority over HTTP/2", field: authority + ".exact", yaml: only("{authority: {exact: $S.shop}}"), asks: split(get("/").h2(), get("/").host("$S").h2())},
		{name: "any authority, for a service has many names", field: "VirtualService.hosts", yaml: only("{uri: {exact: /a}}"), asks: []ask{
			get("/a").host("$S").want(atV2), get("/a").host("$S.shop.svc").want(atV2), get("/a").host("$S.shop.svc.cluster.local").want(atV2), get("/a").host("$S.shop.svc.cluster.local:80").want(atV2)}},
	}
}

// portOnly is only, with the port of the destination: without one it is the port of the request.
func portOnly(match string) string {
	return virtual("match: ["+match+"], route: [{destination: {host: v2, port: {number: 80}}}]", "route: [{destination: {host: v1, port: {number: 80}}}]")
}

func matchClient() []feature {
	return []feature{
		{name: "its labels", field: "VirtualService.http.match.sourceLabels", yaml: only("{sourceLabels: {tier: front}}"), asks: split(get("/"), get("/").by("stranger"))},
		{name: "several of its labels", field: "VirtualService.http.match.sourceLabels", yaml: only("{sourceLabels: {app: client, tier: front}}"), asks: split(get("/"), get("/").by("stranger"))},
		{name: "labels that nobody has", field: "VirtualService.http.match.sourceLabels", yaml: only("{sourceLabels: {app: ghost}}"), asks: []ask{get("/").want(ok, atV1)}},
		{name: "its namespace", field: "VirtualService.http.match.sourceNamespace", yaml: only("{sourceNamespace: other}"), asks: split(get("/").by("stranger"), get("/"))},
		{name: "its own namespace", field: "VirtualService.http.match.sourceNamespace", yaml: only("{sourceNamespace: shop}"), asks: split(get("/"), get("/").by("stranger"))},
		{name: "its namespace and a path", field: "VirtualService.http.match.sourceNamespace", yaml: only("{sourceNamespace: shop, uri: {exact: /a}}"), asks: split(get("/a"), get("/b"))},
		{name: "labels and a header", field: "VirtualService.http.match.sourceLabels", yaml: only("{sourceLabels: {app: client}, headers: {x-a: {}}}"), asks: split(get("/", "x-a: 1"), get("/"))},
		{name: "a claim of its token", field: "VirtualService.http.match.headers.@request.auth.claims", yaml: only(`{headers: {"@request.auth.claims.role": {exact: admin}}}`) + jwt(""), asks: split(get("/", "authorization: Bearer $T(admin)"), get("/", "authorization: Bearer $T(guest)"))},
		{name: "a nested claim", field: "VirtualService.http.match.headers.@request.auth.claims", yaml: only(`{headers: {"@request.auth.claims.org.unit": {exact: red}}}`) + jwt(""), asks: split(get("/", "authorization: Bearer $T(admin)"), get("/", "authorization: Bearer $T(guest)"))},
		{name: "a claim that is a list", field: "VirtualService.http.match.headers.@request.auth.claims", yaml: only(`{headers: {"@request.auth.claims.groups": {exact: admin}}}`) + jwt(""), asks: split(get("/", "authorization: Bearer $T(admin)"), get("/", "authorization: Bearer $T(guest)"))},
		{name: "a claim without a token", field: "VirtualService.http.match.headers.@request.auth.claims", yaml: only(`{headers: {"@request.auth.claims.role": {exact: admin}}}`) + jwt(""), asks: split(get("/", "authorization: Bearer $T(admin)"), get("/"))},
		{name: "no such claim", field: "VirtualService.http.match.withoutHeaders.@request.auth.claims", yaml: only(`{withoutHeaders: {"@request.auth.claims.role": {exact: guest}}}`) + jwt(""), asks: split(get("/", "authorization: Bearer $T(admin)"), get("/", "authorization: Bearer $T(guest)"))},
	}
}
