package features

import "time"

// gatewayRoutes are the routes of the Gateway API.
func gatewayRoutes() []group {
	return []group{
		{title: "HTTPRoute matches", features: routeMatches()},
		{title: "HTTPRoute filters", features: routeFilters()},
		{title: "HTTPRoute redirects", features: routeRedirects()},
		{title: "HTTPRoute CORS", features: cors("HTTPRoute.rules.filters.cors", routeCORS)},
		{title: "HTTPRoute back ends", features: routeBackends()},
		{title: "GRPCRoute", features: grpcRoutes()},
	}
}

func routeMatches() []feature {
	const field = "HTTPRoute.rules.matches"
	path := func(typ, value string) string { return httpOnly(`{path: {type: ` + typ + `, value: "` + value + `"}}`) }
	return []feature{
		{name: "a path exactly", field: field + ".path.Exact", yaml: path("Exact", "/a"), asks: split(get("/a"), get("/a/b"))},
		{name: "a path exactly, minding the slash at the end", field: field + ".path.Exact", yaml: path("Exact", "/a"), asks: split(get("/a"), get("/a/"))},
		{name: "a path by prefix", field: field + ".path.PathPrefix", yaml: path("PathPrefix", "/a"), asks: split(get("/a/b"), get("/b"))},
		{name: "a prefix ends with a segment", field: field + ".path.PathPrefix", yaml: path("PathPrefix", "/a"), asks: split(get("/a"), get("/ab"))},
		{name: "a prefix with a slash at the end is one without", field: field + ".path.PathPrefix", yaml: path("PathPrefix", "/a/"), asks: split(get("/a"), get("/ab"))},
		{name: "a path by regular expression", field: field + ".path.RegularExpression", yaml: path("RegularExpression", "/v[0-9]/.*"), asks: split(get("/v2/x"), get("/vx/x"))},
		{name: "a header", field: field + ".headers.Exact", yaml: httpOnly("{headers: [{name: x-v, value: two}]}"), asks: split(get("/", "x-v: two"), get("/", "x-v: twos"))},
		{name: "a header by regular expression", field: field + ".headers.RegularExpression", yaml: httpOnly(`{headers: [{name: x-v, type: RegularExpression, value: "t.*o"}]}`), asks: split(get("/", "x-v: two"), get("/", "x-v: one"))},
		{name: "headers, all of them", field: field + ".headers", yaml: httpOnly(`{headers: [{name: x-a, value: "1"}, {name: x-b, value: "2"}]}`), asks: split(get("/", "x-a: 1", "x-b: 2"), get("/", "x-b: 2"))},
		{name: "a header whatever its name's case", field: field + ".headers", yaml: httpOnly("{headers: [{name: X-V, value: two}]}"), asks: split(get("/", "x-v: two"), get("/"))},
		{name: "a query parameter", field: field + ".queryParams.Exact", yaml: httpOnly(`{queryParams: [{name: v, value: "2"}]}`), asks: split(get("/?v=2"), get("/?v=1"))},
		{name: "a query parameter by regular expression", field: field + ".queryParams.RegularExpression", yaml: httpOnly(`{queryParams: [{name: v, type: RegularExpression, value: "[0-9]+"}]}`), asks: split(get("/?v=12"), get("/?v=x"))},
		{name: "query parameters, all of them", field: field + ".queryParams", yaml: httpOnly(`{queryParams: [{name: a, value: "1"}, {name: b, value: "2"}]}`), asks: split(get("/?a=1&b=2"), get("/?a=1"))},
		{name: "a method", field: field + ".method", yaml: httpOnly("{method: POST}"), asks: split(get("/").method("POST"), get("/"))},
		{name: "one of several", field: field, yaml: httpOnly(`{path: {type: Exact, value: /a}}, {headers: [{name: x-v, value: two}]}`), asks: append(split(get("/a"), get("/b")), get("/b", "x-v: two").want(atV2))},
		{name: "all of a match", field: field, yaml: httpOnly(`{path: {type: PathPrefix, value: /a}, method: POST, headers: [{name: x-v, value: two}]}`), asks: split(get("/a", "x-v: two").method("POST"), get("/a", "x-v: two"))},
		{name: "exact before prefix", field: field + ".path", yaml: httpRoute("matches: [{path: {type: PathPrefix, value: /a}}], "+refs("v1"), "matches: [{path: {type: Exact, value: /a/b}}], "+refs("v2")), asks: split(get("/a/b"), get("/a/c"))},
		{name: "longer prefix first", field: field + ".path", yaml: httpRoute("matches: [{path: {type: PathPrefix, value: /a}}], "+refs("v1"), "matches: [{path: {type: PathPrefix, value: /a/b}}], "+refs("v2")), asks: split(get("/a/b/c"), get("/a/c"))},
		{name: "more headers first", field: field + ".headers", yaml: httpRoute("matches: [{headers: [{name: x-a, value: \"1\"}]}], "+refs("v1"), "matches: [{headers: [{name: x-a, value: \"1\"}, {name: x-b, value: \"2\"}]}], "+refs("v2")), asks: split(get("/", "x-a: 1", "x-b: 2"), get("/", "x-a: 1"))},
		{name: "a method before none", field: field + ".method", yaml: httpRoute("matches: [{path: {type: PathPrefix, value: /a}}], "+refs("v1"), "matches: [{path: {type: PathPrefix, value: /a}, method: POST}], "+refs("v2")), asks: split(get("/a").method("POST"), get("/a"))},
		{name: "nothing is not found", field: field, yaml: route("GRPCRoute", "matches: [{method: {service: a.B}}]") + "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: $S-only, namespace: shop}, spec: {parentRefs: [{group: \"\", kind: Service, name: $S}], rules: [{matches: [{path: {type: Exact, value: /a}}], " + refs("v2") + "}]}}",
			asks: []ask{get("/a").want(ok, atV2), get("/b").want("status=404")}},
	}
}

func filtered(filters string) string { return httpRoute("filters: [" + filters + "]") }

func routeFilters() []feature {
	const request, response, rewrite = "HTTPRoute.rules.filters.requestHeaderModifier", "HTTPRoute.rules.filters.responseHeaderModifier", "HTTPRoute.rules.filters.urlRewrite"
	req := func(how string) string {
		return filtered("{type: RequestHeaderModifier, requestHeaderModifier: {" + how + "}}")
	}
	resp := func(how string) string {
		return filtered("{type: ResponseHeaderModifier, responseHeaderModifier: {" + how + "}}")
	}
	rw := func(match, how string) string {
		return httpRoute("matches: [" + match + "], filters: [{type: URLRewrite, urlRewrite: {" + how + "}}]")
	}
	mirror := func(how string) string {
		return filtered("{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}" + how + "}}")
	}
	prefix := "{path: {type: PathPrefix, value: /a}}"
	return []feature{
		{name: "set a header of the request", field: request + ".set", yaml: req("set: [{name: x-a, value: new}]"), asks: []ask{get("/", "x-a: old").want("header.X-A=new", "!header.X-A=old")}},
		{name: "add a header to the request", field: request + ".add", yaml: req("add: [{name: x-a, value: new}]"), asks: []ask{get("/", "x-a: old").want("header.X-A=new", "header.X-A=old")}},
		{name: "remove a header from the request", field: request + ".remove", yaml: req("remove: [x-a]"), asks: []ask{get("/", "x-a: old").want(ok, "!header.X-A=*")}},
		{name: "all three on the request", field: request, yaml: req(`set: [{name: x-a, value: "1"}], add: [{name: x-b, value: "2"}], remove: [x-c]`), asks: []ask{get("/", "x-c: 1").want("header.X-A=1", "header.X-B=2", "!header.X-C=*")}},
		{name: "set a header of the answer", field: response + ".set", yaml: resp("set: [{name: content-type, value: text/x}]"), asks: []ask{get("/").want("answer.content-type=text/x", "!answer.content-type=text/plain*")}},
		{name: "add a header to the answer", field: response + ".add", yaml: resp("add: [{name: x-a, value: new}]"), asks: []ask{get("/").want("answer.x-a=new")}},
		{name: "remove a header from the answer", field: response + ".remove", yaml: resp("remove: [content-type]"), asks: []ask{get("/").want(ok, "!answer.content-type=*")}},
		{name: "rewrite the host", field: rewrite + ".hostname", yaml: rw(prefix, "hostname: inner.example"), asks: []ask{get("/a").want("host=inner.example")}},
		{name: "rewrite a prefix", field: rewrite + ".path.replacePrefixMatch", yaml: rw(prefix, "path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}"), asks: []ask{get("/a/x?q=1").want("path=/b/x?q=1"), get("/a").want("path=/b")}},
		{name: "rewrite a prefix away", field: rewrite + ".path.replacePrefixMatch", yaml: rw(prefix, "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}"), asks: []ask{get("/a/x").want("path=/x"), get("/a").want("path=/")}},
		{name: "rewrite the whole path", field: rewrite + ".path.replaceFullPath", yaml: rw(prefix, "path: {type: ReplaceFullPath, replaceFullPath: /b}"), asks: []ask{get("/a/x/y").want("path=/b")}},
		{name: "rewrite host and path", field: rewrite, yaml: rw(prefix, "hostname: inner.example, path: {type: ReplaceFullPath, replaceFullPath: /b}"), asks: []ask{get("/a/x").want("path=/b", "host=inner.example")}},
		{name: "rewrite and set a header", field: "HTTPRoute.rules.filters", yaml: httpRoute("matches: [" + prefix + "], filters: [{type: URLRewrite, urlRewrite: {hostname: inner.example}}, {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: \"1\"}]}}]"), asks: []ask{get("/a").want("host=inner.example", "header.X-A=1")}},
		{name: "mirror", field: "HTTPRoute.rules.filters.requestMirror", yaml: mirror(""), asks: []ask{get("/r-copy-$S").want(ok, atV1)}, copies: copies{"/r-copy-$S", 1, 1}},
		{name: "mirror a percentage", field: "HTTPRoute.rules.filters.requestMirror.percent", yaml: mirror(", percent: 50"), asks: []ask{get("/r-half-$S").times(40).want(ok, atV1)}, copies: copies{"/r-half-$S", 5, 35}},
		{name: "mirror nothing", field: "HTTPRoute.rules.filters.requestMirror.percent", yaml: mirror(", percent: 0"), asks: []ask{get("/r-none-$S").times(10).want(ok, atV1)}, copies: copies{"/r-none-$S", 0, 0}},
		{name: "mirror a fraction", field: "HTTPRoute.rules.filters.requestMirror.fraction", yaml: mirror(", fraction: {numerator: 1, denominator: 2}"), asks: []ask{get("/r-frac-$S").times(40).want(ok, atV1)}, copies: copies{"/r-frac-$S", 5, 35}},
	}
}

func routeRedirects() []feature {
	const field = "HTTPRoute.rules.filters.requestRedirect"
	r := func(how string) string {
		return httpRoute("matches: [{path: {type: PathPrefix, value: /old}}], filters: [{type: RequestRedirect, requestRedirect: {" + how + "}}]")
	}
	var out []feature
	for _, c := range []struct{ name, part, how, status, location string }{
		{"to a host", ".hostname", "hostname: elsewhere.example", "302", "http://elsewhere.example/old/x"},
		{"to HTTPS", ".scheme", "scheme: https", "302", "https://$S.shop/old/x"},
		{"to a port", ".port", "port: 8443", "302", "http://$S.shop:8443/old/x"},
		{"to a host and port", ".port", "hostname: elsewhere.example, port: 8443", "302", "http://elsewhere.example:8443/old/x"},
		{"to a path", ".path.replaceFullPath", "path: {type: ReplaceFullPath, replaceFullPath: /new}", "302", "http://$S.shop/new"},
		{"to another prefix", ".path.replacePrefixMatch", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}", "302", "http://$S.shop/new/x"},
		{"without the prefix", ".path.replacePrefixMatch", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}", "302", "http://$S.shop/x"},
		{"with status 301", ".statusCode", "hostname: elsewhere.example, statusCode: 301", "301", "http://elsewhere.example/old/x"},
		{"with status 303", ".statusCode", "hostname: elsewhere.example, statusCode: 303", "303", "http://elsewhere.example/old/x"},
		{"with status 307", ".statusCode", "hostname: elsewhere.example, statusCode: 307", "307", "http://elsewhere.example/old/x"},
		{"with status 308", ".statusCode", "hostname: elsewhere.example, statusCode: 308", "308", "http://elsewhere.example/old/x"},
		{"with everything", "", "scheme: https, hostname: elsewhere.example, port: 8443, path: {type: ReplaceFullPath, replaceFullPath: /new}, statusCode: 301", "301", "https://elsewhere.example:8443/new"},
	} {
		out = append(out, feature{name: c.name, field: field + c.part, yaml: r(c.how), asks: []ask{get("/old/x").want("status="+c.status, "answer.location="+c.location)}})
	}
	return out
}

var routeCORS = filtered(`{type: CORS, cors: {allowOrigins: ["https://a.example", "https://*.b.example"], allowMethods: [GET, PUT], allowHeaders: [x-h, x-i], exposeHeaders: [x-e], maxAge: 3600, allowCredentials: true}}`)

func routeBackends() []feature {
	const field = "HTTPRoute.rules.backendRefs"
	return []feature{
		{name: "by weight", field: field + ".weight", yaml: httpRoute(refs("v1=50", "v2=50")), asks: []ask{get("/").times(200).want(ok).count(atV2, 65, 135)}},
		{name: "by weights that are not percentages", field: field + ".weight", yaml: httpRoute(refs("v1=1", "v2=3")), asks: []ask{get("/").times(200).want(ok).count(atV2, 115, 185)}},
		{name: "none of it", field: field + ".weight", yaml: httpRoute(refs("v1=1", "v2=0")), asks: []ask{get("/").times(50).want(ok, atV1)}},
		{name: "all weights zero", field: field + ".weight", yaml: httpRoute(refs("v1=0", "v2=0")), asks: []ask{get("/").want("status=500")}},
		{name: "one that does not exist", field: field + ".name", yaml: httpRoute(refs("ghost")), asks: []ask{get("/").want("status=500")}},
		{name: "half of it does not exist", field: field + ".name", yaml: httpRoute(refs("v2=50", "ghost=50")), asks: []ask{get("/").times(60).count("status=500", 10, 50)}},
		{name: "one without pods", field: field + ".name", yaml: httpRoute(refs("nobody")), asks: []ask{get("/").want("status=503")}},
		{name: "the service itself", field: field + ".name", yaml: httpRoute(refs("$S")), asks: []ask{get("/").times(60).want(ok).pods(3, 3)}},
		{name: "filters of one of them", field: field + ".filters", yaml: httpRoute(`backendRefs: [{name: v2, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: "1"}]}}]}]`), asks: []ask{get("/").want(ok, atV2, "header.X-A=1")}},
		{name: "headers of one's answers", field: field + ".filters", yaml: httpRoute(`backendRefs: [{name: v2, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-a, value: "1"}]}}]}]`), asks: []ask{get("/").want(ok, atV2, "answer.x-a=1")}},
		{name: "a timeout of the request", field: "HTTPRoute.rules.timeouts.request", yaml: httpRoute("timeouts: {request: 200ms}"), slow: true, asks: []ask{get("/delay/5s").want("status=504").took(0, 4*time.Second)}},
		{name: "a timeout of each try", field: "HTTPRoute.rules.timeouts.backendRequest", yaml: httpRoute("timeouts: {request: 2s, backendRequest: 200ms}"), slow: true, asks: []ask{get("/delay/5s").want("status=504").took(0, 4*time.Second)}},
		{name: "no timeout", field: "HTTPRoute.rules.timeouts.request", yaml: httpRoute("timeouts: {request: 0s}"), slow: true, asks: []ask{get("/delay/500ms").want(ok)}},
		{name: "retries", field: "HTTPRoute.rules.retry.codes", yaml: httpRoute("retry: {codes: [503], attempts: 3}, " + refs("$S")), pods: `mixed: "yes"`, asks: []ask{get("/").times(30).want(ok)}},
		{name: "no retries of other errors", field: "HTTPRoute.rules.retry.codes", yaml: httpRoute("retry: {codes: [500], attempts: 3}, " + refs("$S")), pods: `mixed: "yes"`, asks: []ask{get("/").times(30).count("status=503", 3, 25)}},
		{name: "retries with a pause", field: "HTTPRoute.rules.retry.backoff", yaml: httpRoute("retry: {codes: [503], attempts: 3, backoff: 10ms}, " + refs("$S")), pods: `mixed: "yes"`, asks: []ask{get("/").times(30).want(ok)}},
		{name: "a route for one port", field: "HTTPRoute.parentRefs.port", ports: "{name: http, port: 80, targetPort: 8080}, {name: http-two, port: 8000, targetPort: 8080}",
			yaml: "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: $S, namespace: shop}, spec: {parentRefs: [{group: \"\", kind: Service, name: $S, port: 8000}], rules: [{" + refs("v2") + "}]}}",
			asks: []ask{get("/").at(8000).times(20).want(ok, atV2), get("/").times(60).want(ok).pods(3, 3)}},
	}
}

func grpcRoutes() []feature {
	const field = "GRPCRoute.rules"
	only := func(match string) string { return route("GRPCRoute", "matches: ["+match+"], "+refs("g2"), refs("g1")) }
	g := func(name, part, yaml string, asks ...ask) feature {
		return feature{name: name, field: field + part, yaml: yaml, asks: asks, ports: grpcPort}
	}
	echo := rpc("/ambit.echo.v1.Echo/Echo").want("answer.grpc-status=0")
	return []feature{
		g("all calls", "", route("GRPCRoute", refs("g2")), echo.want(atV2)),
		g("a service", ".matches.method.service", only("{method: {service: ambit.echo.v1.Echo}}"), split(echo, rpc("/a.B/C"))...),
		g("a method of a service", ".matches.method.method", only("{method: {service: ambit.echo.v1.Echo, method: Echo}}"), split(echo, rpc("/ambit.echo.v1.Echo/Other"))...),
		g("a method of any service", ".matches.method.method", only("{method: {method: Echo}}"), split(rpc("/x.Y/Echo"), rpc("/x.Y/Other"))...),
		g("a service by regular expression", ".matches.method.RegularExpression", only(`{method: {type: RegularExpression, service: "ambit\\..*"}}`), split(echo, rpc("/other.v1/Echo"))...),
		g("a header", ".matches.headers", only("{headers: [{name: x-v, value: two}]}"), split(rpc("/a.B/C", "x-v: two"), rpc("/a.B/C"))...),
		g("a header by regular expression", ".matches.headers.RegularExpression", only(`{headers: [{name: x-v, type: RegularExpression, value: "t.*"}]}`), split(rpc("/a.B/C", "x-v: two"), rpc("/a.B/C", "x-v: one"))...),
		g("a method and a header", ".matches", only("{method: {service: a.B}, headers: [{name: x-v, value: two}]}"), split(rpc("/a.B/C", "x-v: two"), rpc("/x.Y/C", "x-v: two"))...),
		g("by weight", ".backendRefs.weight", route("GRPCRoute", refs("g1=50", "g2=50")), echo.times(100).count(atV2, 25, 75)),
		g("set a header", ".filters.requestHeaderModifier", route("GRPCRoute", "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: \"1\"}]}}], "+refs("g1")), echo.want("header.X-A=1")),
		g("set a header of the answer", ".filters.responseHeaderModifier", route("GRPCRoute", "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-a, value: \"1\"}]}}], "+refs("g1")), echo.want("answer.x-a=1")),
		g("mirror", ".filters.requestMirror", route("GRPCRoute", "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: g2, port: 80}}}], "+refs("g1")), echo.times(3).want(atV1)),
		g("no rule is unimplemented", ".matches", "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: $S, namespace: shop}, spec: {parentRefs: [{group: \"\", kind: Service, name: $S}], rules: [{matches: [{method: {service: a.B}}], "+refs("g2")+"}]}}", rpc("/x.Y/Z").want("answer.grpc-status=12")),
		g("a back end without pods is unavailable", ".backendRefs", route("GRPCRoute", refs("nobody")), rpc("/x.Y/Z").want("answer.grpc-status=14")),
	}
}
