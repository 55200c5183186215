package features

// actions are what VirtualServices do with requests.
func actions() []group {
	return []group{
		{title: "choose where to", features: chooseDestination()},
		{title: "redirect", features: redirects()},
		{title: "rewrite", features: rewrites()},
		{title: "change headers", features: changeHeaders()},
		{title: "answer directly", features: directAnswers()},
		{title: "CORS", features: cors("VirtualService.http.corsPolicy", virtualCORS)},
		{title: "mirror", features: mirrors()},
	}
}

func weighted(a, b string) string {
	return virtual("route: [{destination: {host: v1}, weight: " + a + "}, {destination: {host: v2}, weight: " + b + "}]")
}

func chooseDestination() []feature {
	const field = "VirtualService.http.route"
	return []feature{
		{name: "by weight, half and half", field: field + ".weight", yaml: weighted("50", "50"), asks: []ask{get("/").times(200).want(ok).count(atV2, 65, 135)}},
		{name: "by weight, one in ten", field: field + ".weight", yaml: weighted("90", "10"), asks: []ask{get("/").times(300).want(ok).count(atV2, 8, 60)}},
		{name: "by weight, none", field: field + ".weight", yaml: weighted("100", "0"), asks: []ask{get("/").times(50).want(ok, atV1)}},
		{name: "by weights that are not percentages", field: field + ".weight", yaml: weighted("1", "3"), asks: []ask{get("/").times(200).want(ok).count(atV2, 115, 185)}},
		{name: "another service", field: field + ".destination.host", yaml: virtual(toV2), asks: []ask{get("/").want(ok, atV2)}},
		{name: "another service by its full name", field: field + ".destination.host", yaml: virtual("route: [{destination: {host: v2.shop.svc.cluster.local}}]"), asks: []ask{get("/").want(ok, atV2)}},
		{name: "the service itself", field: field + ".destination.host", yaml: virtual(toSelf), asks: []ask{get("/").times(60).want(ok).pods(3, 3)}},
		{name: "a port of it", field: field + ".destination.port", yaml: virtual("route: [{destination: {host: v2, port: {number: 80}}}]"), asks: []ask{get("/").want(ok, atV2)}},
		{name: "a subset", field: "DestinationRule.subsets.labels", yaml: virtual("route: [{destination: {host: $S, subset: v2}}]") + subsets(""), asks: []ask{get("/").times(10).want(ok, atV2)}},
		{name: "another subset", field: "DestinationRule.subsets.labels", yaml: virtual("route: [{destination: {host: $S, subset: v1}}]") + subsets(""), asks: []ask{get("/").times(20).want(ok, atV1).pods(2, 2)}},
		{name: "subsets by weight", field: "DestinationRule.subsets", yaml: virtual("route: [{destination: {host: $S, subset: v1}, weight: 50}, {destination: {host: $S, subset: v2}, weight: 50}]") + subsets(""), asks: []ask{get("/").times(200).want(ok).count(atV2, 65, 135)}},
		{name: "a subset by header", field: "DestinationRule.subsets", yaml: virtual("match: [{headers: {x-v: {exact: \"2\"}}}], route: [{destination: {host: $S, subset: v2}}]") + subsets(""), asks: split(get("/", "x-v: 2"), get("/"))},
		{name: "a service that does not exist fails", field: field + ".destination.host", yaml: virtual("route: [{destination: {host: ghost}}]"), asks: []ask{get("/").want("status=503")}},
		{name: "a service without pods fails", field: field + ".destination.host", yaml: virtual("route: [{destination: {host: nobody}}]"), asks: []ask{get("/").want("status=503")}},
		{name: "a subset that does not exist fails", field: field + ".destination.subset", yaml: virtual("route: [{destination: {host: $S, subset: v9}}]") + subsets(""), asks: []ask{get("/").want("status=503")}},
		{name: "no rule matches", field: "VirtualService.http", yaml: "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: $S, namespace: shop}, spec: {hosts: [$S], http: [{match: [{uri: {exact: /a}}], " + toV2 + "}]}}",
			asks: []ask{get("/a").want(ok, atV2), get("/b").want("status=404")}},
		{name: "rules of another VirtualService", field: "VirtualService.http.delegate", yaml: virtual("match: [{uri: {prefix: /d}}], delegate: {name: $S-child}") +
			"{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: $S-child, namespace: shop}, spec: {http: [{match: [{uri: {prefix: /d/two}}], " + toV2 + "}, {" + toV1 + "}]}}",
			asks: split(get("/d/two"), get("/d/one"))},
		{name: "no route at all is the service", field: "Service", yaml: "", asks: []ask{get("/").times(60).want(ok).pods(3, 3)}},
		{name: "the host by wildcard is not only one", field: "VirtualService.hosts", yaml: "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: $S, namespace: shop}, spec: {hosts: [$S, $S.shop.svc.cluster.local], http: [{" + toV2 + "}]}}", asks: []ask{get("/").want(ok, atV2)}},
	}
}

func redirects() []feature {
	const field = "VirtualService.http.redirect"
	r := func(how string) string { return virtual("redirect: {" + how + "}") }
	return []feature{
		{name: "to a path", field: field + ".uri", yaml: r("uri: /new"), asks: []ask{get("/old").want("status=301", "answer.location=http://$S.shop/new")}},
		{name: "to a path, the query stays", field: field + ".uri", yaml: r("uri: /new"), asks: []ask{get("/old?a=1").want("status=301", "answer.location=http://$S.shop/new?a=1")}},
		{name: "to an authority", field: field + ".authority", yaml: r("authority: elsewhere.example"), asks: []ask{get("/old").want("status=301", "answer.location=http://elsewhere.example/old")}},
		{name: "to path and authority", field: field, yaml: r("uri: /new, authority: elsewhere.example"), asks: []ask{get("/old").want("status=301", "answer.location=http://elsewhere.example/new")}},
		{name: "to HTTPS", field: field + ".scheme", yaml: r("scheme: https"), asks: []ask{get("/old").want("status=301", "answer.location=https://$S.shop/old")}},
		{name: "to a port", field: field + ".port", yaml: r("port: 8443"), asks: []ask{get("/old").want("status=301", "answer.location=http://$S.shop:8443/old")}},
		{name: "to HTTPS and a port", field: field + ".port", yaml: r("scheme: https, port: 8443"), asks: []ask{get("/old").want("status=301", "answer.location=https://$S.shop:8443/old")}},
		{name: "to the scheme's port", field: field + ".derivePort", yaml: r("authority: elsewhere.example, derivePort: FROM_PROTOCOL_DEFAULT"), asks: []ask{get("/old").want("status=301", "answer.location=http://elsewhere.example/old")}},
		{name: "to the request's port", field: field + ".derivePort", yaml: r("authority: elsewhere.example, derivePort: FROM_REQUEST_PORT"), asks: []ask{get("/old").want("status=301", "answer.location=http://elsewhere.example/old")}},
		{name: "with status 302", field: field + ".redirectCode", yaml: r("uri: /new, redirectCode: 302"), asks: []ask{get("/").want("status=302")}},
		{name: "with status 303", field: field + ".redirectCode", yaml: r("uri: /new, redirectCode: 303"), asks: []ask{get("/").want("status=303")}},
		{name: "with status 307", field: field + ".redirectCode", yaml: r("uri: /new, redirectCode: 307"), asks: []ask{get("/").method("POST").want("status=307")}},
		{name: "with status 308", field: field + ".redirectCode", yaml: r("uri: /new, redirectCode: 308"), asks: []ask{get("/").method("POST").want("status=308")}},
		{name: "only what matches", field: field, yaml: virtual("match: [{uri: {prefix: /old}}], redirect: {uri: /new}"), asks: []ask{get("/old").want("status=301"), get("/new").want(ok)}},
		{name: "to a path with the query of its own", field: field + ".uri", yaml: r(`uri: "/new?x=1"`), asks: []ask{get("/old").want("status=301", "answer.location=http://$S.shop/new?x=1")}},
		{name: "a prefix", field: field + ".uri", yaml: virtual(`match: [{uri: {prefix: /old}}], redirect: {uri: "%PREFIX()%/new"}`), asks: []ask{get("/old/x").want("status=301")}},
		{name: "with headers on the answer", field: "VirtualService.http.headers.response.set", yaml: virtual("redirect: {uri: /new}, headers: {response: {set: {x-r: \"1\"}}}"), asks: []ask{get("/").want("status=301", "answer.x-r=1")}},
	}
}

func rewrites() []feature {
	const field = "VirtualService.http.rewrite"
	return []feature{
		{name: "a path", field: field + ".uri", yaml: virtual("match: [{uri: {exact: /a}}], rewrite: {uri: /b}"), asks: []ask{get("/a").want(ok, "path=/b")}},
		{name: "a prefix", field: field + ".uri", yaml: virtual("match: [{uri: {prefix: /a}}], rewrite: {uri: /b}"), asks: []ask{get("/a/x").want(ok, "path=/b/x")}},
		{name: "a prefix with slash", field: field + ".uri", yaml: virtual("match: [{uri: {prefix: /a/}}], rewrite: {uri: /}"), asks: []ask{get("/a/x").want(ok, "path=/x")}},
		{name: "a prefix, the query stays", field: field + ".uri", yaml: virtual("match: [{uri: {prefix: /a}}], rewrite: {uri: /b}"), asks: []ask{get("/a/x?q=1").want(ok, "path=/b/x?q=1")}},
		{name: "what a regular expression matched", field: field + ".uri", yaml: virtual(`match: [{uri: {regex: "/item/[0-9]+"}}], rewrite: {uri: /b}`), asks: []ask{get("/item/7").want(ok, "path=/b*")}},
		{name: "any path", field: field + ".uri", yaml: virtual("rewrite: {uri: /b/}"), asks: []ask{get("/x").want(ok, "path=/b/x")}},
		{name: "the authority", field: field + ".authority", yaml: virtual("rewrite: {authority: inner.example}"), asks: []ask{get("/").want(ok, "host=inner.example")}},
		{name: "path and authority", field: field, yaml: virtual("match: [{uri: {exact: /a}}], rewrite: {uri: /b, authority: inner.example}"), asks: []ask{get("/a").want(ok, "path=/b", "host=inner.example")}},
		{name: "by regular expression", field: field + ".uriRegexRewrite", yaml: virtual(`match: [{uri: {prefix: /v}}], rewrite: {uriRegexRewrite: {match: "^/v([0-9]+)/(.*)$", rewrite: "/\\2/of/\\1"}}`), asks: []ask{get("/v7/x").want(ok, "path=/x/of/7")}},
		{name: "by regular expression, the query stays", field: field + ".uriRegexRewrite", yaml: virtual(`rewrite: {uriRegexRewrite: {match: "/a", rewrite: "/b"}}`), asks: []ask{get("/a/a?q=/a").want(ok, "path=/b/b?q=/a")}},
		{name: "by regular expression that matches nothing", field: field + ".uriRegexRewrite", yaml: virtual(`rewrite: {uriRegexRewrite: {match: "^/z", rewrite: "/b"}}`), asks: []ask{get("/a").want(ok, "path=/a")}},
		{name: "the original path is told", field: field + ".uri", yaml: virtual("match: [{uri: {exact: /a}}], rewrite: {uri: /b}"), asks: []ask{get("/a").want(ok, "header.X-Envoy-Original-Path=/a")}},
		{name: "over HTTP/2", field: field + ".uri", yaml: virtual("match: [{uri: {prefix: /a}}], rewrite: {uri: /b, authority: inner.example}"), asks: []ask{get("/a/x").h2().want(ok, "path=/b/x", "host=inner.example")}},
	}
}

func changeHeaders() []feature {
	const request, response = "VirtualService.http.headers.request", "VirtualService.http.headers.response"
	const destination = "VirtualService.http.route.headers"
	h := func(how string) string { return virtual("headers: {" + how + "}") }
	d := func(how string) string { return virtual("route: [{destination: {host: v1}, headers: {" + how + "}}]") }
	return []feature{
		{name: "set one of the request", field: request + ".set", yaml: h(`request: {set: {x-a: new}}`), asks: []ask{get("/", "x-a: old").want(ok, "header.X-A=new", "!header.X-A=old")}},
		{name: "set one that the request has not", field: request + ".set", yaml: h(`request: {set: {x-a: new}}`), asks: []ask{get("/").want(ok, "header.X-A=new")}},
		{name: "add one to the request", field: request + ".add", yaml: h(`request: {add: {x-a: new}}`), asks: []ask{get("/", "x-a: old").want(ok, "header.X-A=new", "header.X-A=old")}},
		{name: "remove one from the request", field: request + ".remove", yaml: h(`request: {remove: [x-a]}`), asks: []ask{get("/", "x-a: old", "x-b: 1").want(ok, "!header.X-A=*", "header.X-B=1")}},
		{name: "set the authority", field: request + ".set", yaml: h(`request: {set: {Host: inner.example}}`), asks: []ask{get("/").want(ok, "host=inner.example")}},
		{name: "several of the request", field: request, yaml: h(`request: {set: {x-a: "1", x-b: "2"}, add: {x-c: "3"}, remove: [x-d, x-e]}`), asks: []ask{get("/", "x-d: 1", "x-e: 1").want(ok, "header.X-A=1", "header.X-B=2", "header.X-C=3", "!header.X-D=*", "!header.X-E=*")}},
		{name: "set one of the answer", field: response + ".set", yaml: h(`response: {set: {content-type: text/x}}`), asks: []ask{get("/").want(ok, "answer.content-type=text/x", "!answer.content-type=text/plain*")}},
		{name: "add one to the answer", field: response + ".add", yaml: h(`response: {add: {x-a: new}}`), asks: []ask{get("/").want(ok, "answer.x-a=new")}},
		{name: "remove one from the answer", field: response + ".remove", yaml: h(`response: {remove: [content-type]}`), asks: []ask{get("/").want(ok, "!answer.content-type=*")}},
		{name: "set one for a destination", field: destination + ".request.set", yaml: d(`request: {set: {x-a: new}}`), asks: []ask{get("/", "x-a: old").want(ok, "header.X-A=new", "!header.X-A=old")}},
		{name: "add one for a destination", field: destination + ".request.add", yaml: d(`request: {add: {x-a: new}}`), asks: []ask{get("/", "x-a: old").want(ok, "header.X-A=new", "header.X-A=old")}},
		{name: "remove one for a destination", field: destination + ".request.remove", yaml: d(`request: {remove: [x-a]}`), asks: []ask{get("/", "x-a: old").want(ok, "!header.X-A=*")}},
		{name: "set one of a destination's answers", field: destination + ".response.set", yaml: d(`response: {set: {x-a: new}}`), asks: []ask{get("/").want(ok, "answer.x-a=new")}},
		{name: "remove one of a destination's answers", field: destination + ".response.remove", yaml: d(`response: {remove: [content-type]}`), asks: []ask{get("/").want(ok, "!answer.content-type=*")}},
		{name: "only for one of two destinations", field: destination, yaml: virtual(`route: [{destination: {host: v1}, weight: 50}, {destination: {host: v2}, weight: 50, headers: {response: {set: {x-from: two}}}}]`), asks: []ask{get("/").times(60).count("answer.x-from=two", 10, 50)}},
		{name: "for rule and destination", field: destination, yaml: virtual(`headers: {request: {set: {x-rule: "1"}}}, route: [{destination: {host: v1}, headers: {request: {set: {x-dest: "1"}}}}]`), asks: []ask{get("/").want("header.X-Rule=1", "header.X-Dest=1")}},
		{name: "with the client's address", field: request + ".set", yaml: h(`request: {set: {x-from: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}`), asks: []ask{get("/").want(ok, "header.X-From=10.*")}},
		{name: "with another header's value", field: request + ".set", yaml: h(`request: {set: {x-copy: "%REQ(x-a)%"}}`), asks: []ask{get("/", "x-a: v").want(ok, "header.X-Copy=v")}},
		{name: "of a direct answer", field: response + ".set", yaml: virtual(`directResponse: {status: 200}, headers: {response: {set: {x-a: "1"}}}`), asks: []ask{get("/").want(ok, "answer.x-a=1")}},
		{name: "a percent sign as it is", field: request + ".set", yaml: h(`request: {set: {x-a: "100%%"}}`), asks: []ask{get("/").want(ok, "header.X-A=100%*")}},
	}
}

func directAnswers() []feature {
	const field = "VirtualService.http.directResponse"
	return []feature{
		{name: "with a status", field: field + ".status", yaml: virtual("directResponse: {status: 418}"), asks: []ask{get("/").want("status=418", "!pod=*")}},
		{name: "with a text", field: field + ".body.string", yaml: virtual(`directResponse: {status: 200, body: {string: "short and stout"}}`), asks: []ask{get("/").want(ok, "short and stout")}},
		{name: "with bytes", field: field + ".body.bytes", yaml: virtual(`directResponse: {status: 200, body: {bytes: aGVsbG8=}}`), asks: []ask{get("/").want(ok, "hello")}},
		{name: "with no content", field: field + ".status", yaml: virtual("directResponse: {status: 204}"), asks: []ask{get("/").want("status=204")}},
		{name: "only where a rule matches", field: field, yaml: virtual("match: [{uri: {prefix: /blocked}}], directResponse: {status: 403}"), asks: []ask{get("/blocked").want("status=403"), get("/").want(ok)}},
		{name: "to HEAD without a body", field: field, yaml: virtual(`directResponse: {status: 200, body: {string: text}}`), asks: []ask{get("/").method("HEAD").want(ok, "answer.content-length=4", "!text")}},
		{name: "to POST with a body", field: field, yaml: virtual(`directResponse: {status: 200, body: {string: text}}`), asks: []ask{get("/").method("POST").body("some").want(ok, "text")}},
		{name: "over HTTP/2", field: field, yaml: virtual(`directResponse: {status: 503, body: {string: closed}}`), asks: []ask{get("/").h2().want("status=503", "closed")}},
	}
}

// virtualCORS has all fields of a policy.
var virtualCORS = virtual(`corsPolicy: {allowOrigins: [{exact: "https://a.example"}, {prefix: "https://pre."}, {regex: "https://.*\\.b\\.example"}], allowMethods: [GET, PUT], allowHeaders: [x-h, x-i], exposeHeaders: [x-e], maxAge: 1h, allowCredentials: true}`)

func preflight(origin string) ask {
	return get("/").method("OPTIONS").with("origin: "+origin, "access-control-request-method: PUT")
}

func (a ask) with(header ...string) ask { a.header = append(header, a.header...); return a }

func cors(field, yaml string) []feature {
	return []feature{
		{name: "a preflight is answered", field: field, yaml: yaml, asks: []ask{preflight("https://a.example").want(ok, "!pod=*", "answer.access-control-allow-origin=https://a.example")}},
		{name: "a preflight tells the methods", field: field + ".allowMethods", yaml: yaml, asks: []ask{preflight("https://a.example").want("answer.access-control-allow-methods=GET,PUT")}},
		{name: "a preflight tells the headers", field: field + ".allowHeaders", yaml: yaml, asks: []ask{preflight("https://a.example").want("answer.access-control-allow-headers=x-h,x-i")}},
		{name: "a preflight tells how long it holds", field: field + ".maxAge", yaml: yaml, asks: []ask{preflight("https://a.example").want("answer.access-control-max-age=3600")}},
		{name: "credentials may be sent", field: field + ".allowCredentials", yaml: yaml, asks: []ask{preflight("https://a.example").want("answer.access-control-allow-credentials=true"), get("/", "origin: https://a.example").want("answer.access-control-allow-credentials=true")}},
		{name: "a simple request is passed on", field: field + ".allowOrigins", yaml: yaml, asks: []ask{get("/", "origin: https://a.example").want(ok, atV1, "answer.access-control-allow-origin=https://a.example")}},
		{name: "an answer tells what scripts may see", field: field + ".exposeHeaders", yaml: yaml, asks: []ask{get("/", "origin: https://a.example").want("answer.access-control-expose-headers=x-e")}},
		{name: "an origin by regular expression or wildcard", field: field + ".allowOrigins", yaml: yaml, asks: []ask{get("/", "origin: https://www.b.example").want("answer.access-control-allow-origin=https://www.b.example")}},
		{name: "another origin's request has no permission", field: field + ".allowOrigins", yaml: yaml, asks: []ask{get("/", "origin: https://evil.example").want("!answer.access-control-allow-origin=*")}},
		{name: "a request without origin is as ever", field: field, yaml: yaml, asks: []ask{get("/").want(ok, atV1, "!answer.access-control-allow-origin=*")}},
	}
}

func mirrors() []feature {
	// the copy goes to a service that records nothing: what is tested is that the answer is the original's
	const field = "VirtualService.http.mirror"
	return []feature{
		{name: "the answer is the original's", field: field, yaml: virtual("mirror: {host: v2}"), asks: []ask{get("/").times(20).want(ok, atV1)}},
		{name: "a mirror that fails is not noticed", field: field, yaml: virtual("mirror: {host: nobody}"), asks: []ask{get("/").times(5).want(ok, atV1)}},
		{name: "a mirror that does not exist is not noticed", field: field, yaml: virtual("mirror: {host: ghost}"), asks: []ask{get("/").times(5).want(ok, atV1)}},
		{name: "the copy arrives", field: field, yaml: virtual("mirror: {host: v2}"), asks: []ask{get("/copy-of-$S").method("POST").body("payload").want(ok, atV1)}, copies: copies{"/copy-of-$S", 1, 1}},
		{name: "a part of the requests", field: "VirtualService.http.mirrorPercentage", yaml: virtual("mirror: {host: v2}, mirrorPercentage: {value: 50}"), asks: []ask{get("/half-of-$S").times(40).want(ok, atV1)}, copies: copies{"/half-of-$S", 5, 35}},
		{name: "none of the requests", field: "VirtualService.http.mirrorPercentage", yaml: virtual("mirror: {host: v2}, mirrorPercentage: {value: 0}"), asks: []ask{get("/none-of-$S").times(10).want(ok, atV1)}, copies: copies{"/none-of-$S", 0, 0}},
		{name: "to several", field: "VirtualService.http.mirrors", yaml: virtual("mirrors: [{destination: {host: v2}}, {destination: {host: v2}}]"), asks: []ask{get("/two-of-$S").want(ok, atV1)}, copies: copies{"/two-of-$S", 2, 2}},
		{name: "several by percentage", field: "VirtualService.http.mirrors.percentage", yaml: virtual("mirrors: [{destination: {host: v2}, percentage: {value: 100}}, {destination: {host: nobody}, percentage: {value: 100}}]"), asks: []ask{get("/pc-of-$S").want(ok, atV1)}, copies: copies{"/pc-of-$S", 1, 1}},
	}
}
