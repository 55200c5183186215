package features

import "time"

// resilience is what hides failures, makes them, and bounds them.
func resilience() []group {
	return []group{
		{title: "inject faults", features: faults()},
		{title: "time out", features: timeouts()},
		{title: "retry", features: retries()},
		{title: "leave out what fails", features: outliers()},
		{title: "limit connections and requests", features: pools()},
	}
}

func faults() []feature {
	const delay, abort = "VirtualService.http.fault.delay", "VirtualService.http.fault.abort"
	f := func(how string) string { return virtual("fault: {" + how + "}") }
	return []feature{
		{name: "a delay", field: delay + ".fixedDelay", yaml: f("delay: {fixedDelay: 0.3s, percentage: {value: 100}}"), slow: true, asks: []ask{get("/").want(ok).took(300*time.Millisecond, 0)}},
		{name: "a delay for none", field: delay + ".percentage", yaml: f("delay: {fixedDelay: 5s, percentage: {value: 0}}"), asks: []ask{get("/").want(ok).took(0, 4*time.Second)}},
		{name: "a delay for some", field: delay + ".percentage", yaml: f("delay: {fixedDelay: 0.02s, percentage: {value: 50}}"), slow: true, asks: []ask{get("/").times(40).want(ok).took(100*time.Millisecond, 0)}},
		{name: "an error", field: abort + ".httpStatus", yaml: f("abort: {httpStatus: 507, percentage: {value: 100}}"), asks: []ask{get("/").want("status=507", "!pod=*")}},
		{name: "an error for half", field: abort + ".percentage", yaml: f("abort: {httpStatus: 418, percentage: {value: 50}}"), asks: []ask{get("/").times(100).count("status=418", 25, 75)}},
		{name: "an error for none", field: abort + ".percentage", yaml: f("abort: {httpStatus: 418, percentage: {value: 0}}"), asks: []ask{get("/").times(20).want(ok)}},
		{name: "a delay, then an error", field: "VirtualService.http.fault", yaml: f("delay: {fixedDelay: 0.2s, percentage: {value: 100}}, abort: {httpStatus: 418, percentage: {value: 100}}"), slow: true, asks: []ask{get("/").want("status=418").took(200*time.Millisecond, 0)}},
		{name: "only where a rule matches", field: "VirtualService.http.fault", yaml: virtual("match: [{headers: {x-fault: {}}}], fault: {abort: {httpStatus: 418, percentage: {value: 100}}}"), asks: []ask{get("/", "x-fault: 1").want("status=418"), get("/").want(ok)}},
		{name: "an error of gRPC", field: abort + ".grpcStatus", yaml: f("abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}"), ports: grpcPort, asks: []ask{rpc("/ambit.echo.v1.Echo/Echo").want("answer.grpc-status=14")}},
		{name: "another error of gRPC", field: abort + ".grpcStatus", yaml: f("abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}"), ports: grpcPort, asks: []ask{rpc("/ambit.echo.v1.Echo/Echo").want("answer.grpc-status=8")}},
	}
}

const grpcPort = "{name: grpc, port: 80, targetPort: 8080}"

func timeouts() []feature {
	const field = "VirtualService.http.timeout"
	return []feature{
		{name: "a request that takes long", field: field, yaml: virtual("timeout: 0.2s"), slow: true, asks: []ask{get("/delay/5s").want("status=504").took(200*time.Millisecond, 4*time.Second)}},
		{name: "a request in time", field: field, yaml: virtual("timeout: 5s"), asks: []ask{get("/delay/50ms").want(ok)}},
		{name: "by path", field: field, yaml: virtual("match: [{uri: {prefix: /delay}}], timeout: 0.2s"), slow: true, asks: []ask{get("/delay/5s").want("status=504"), get("/").want(ok)}},
		{name: "nothing without one", field: field, yaml: virtual(toV1), slow: true, asks: []ask{get("/delay/700ms").want(ok)}},
		{name: "over HTTP/2", field: field, yaml: virtual("timeout: 0.2s"), slow: true, asks: []ask{get("/delay/5s").h2().want("status=504")}},
		{name: "each try", field: "VirtualService.http.retries.perTryTimeout", yaml: virtual("retries: {attempts: 1, perTryTimeout: 0.1s, retryOn: 5xx}"), slow: true, asks: []ask{get("/delay/5s").want("status=504").took(200*time.Millisecond, 4*time.Second)}},
		{name: "all tries together", field: field, yaml: virtual("timeout: 0.3s, retries: {attempts: 100, perTryTimeout: 0.1s, retryOn: 5xx}"), slow: true, asks: []ask{get("/delay/5s").want("status=504").took(250*time.Millisecond, 3*time.Second)}},
	}
}

const connectedAlready = "the connection to the other end of its tunnel stands before the endpoint is reached, so what fails there is a reset to it"

func retries() []feature {
	const field = "VirtualService.http.retries"
	mixed := func(policy string) string { return virtual("retries: {" + policy + "}, " + toSelf) }
	all := []ask{get("/").times(30).want(ok)}
	some := []ask{get("/").times(30).count("status=503", 3, 25)}
	return []feature{
		{name: "errors", field: field + ".attempts", yaml: mixed("attempts: 3, retryOn: 5xx"), pods: `mixed: "yes"`, asks: all},
		{name: "not at all", field: field + ".attempts", yaml: mixed("attempts: 0"), pods: `mixed: "yes"`, asks: some},
		{name: "gateway errors", field: field + ".retryOn", yaml: mixed("attempts: 3, retryOn: gateway-error"), pods: `mixed: "yes"`, asks: all},
		{name: "a status", field: field + ".retryOn", yaml: mixed(`attempts: 3, retryOn: "503"`), pods: `mixed: "yes"`, asks: all},
		{name: "several conditions", field: field + ".retryOn", yaml: mixed(`attempts: 3, retryOn: "reset,connect-failure,503"`), pods: `mixed: "yes"`, asks: all},
		{name: "not what is not named", field: field + ".retryOn", yaml: mixed("attempts: 3, retryOn: reset"), pods: `mixed: "yes"`, asks: some},
		{name: "not another status", field: field + ".retryOn", yaml: mixed(`attempts: 3, retryOn: "502"`), pods: `mixed: "yes"`, asks: some},
		{name: "not an error of the application by default", field: field, yaml: mixed("attempts: 2"), pods: `mixed: "yes"`, asks: some},
		{name: "a refused connection", envoy: connectedAlready, field: field + ".retryOn", yaml: mixed("attempts: 3, retryOn: connect-failure"), pods: `half: "yes"`, asks: all},
		{name: "a refused connection by default", envoy: connectedAlready, field: "Service", yaml: "", pods: `half: "yes"`, asks: all},
		{name: "a refused connection by default of a route", envoy: connectedAlready, field: "VirtualService.http", yaml: virtual(toSelf), pods: `half: "yes"`, asks: all},
		{name: "with a pause", field: field + ".backoff", yaml: mixed("attempts: 3, retryOn: 5xx, backoff: 0.01s"), pods: `mixed: "yes"`, asks: all},
		{name: "with a pause that grows", field: field + ".backoff", yaml: mixed("attempts: 3, retryOn: 5xx, backoff: 0.3s"), pods: "version: bad", slow: true, asks: []ask{get("/").want("status=503").took(100*time.Millisecond, 7*time.Second)}},
		{name: "with a budget that allows few at a time", field: "DestinationRule.trafficPolicy.retryBudget", yaml: mixed("attempts: 5, retryOn: 5xx") + destination("retryBudget: {percent: 0, minRetryConcurrency: 1}"), pods: `mixed: "yes"`, slow: true, asks: []ask{get("/delay/300ms").times(30).atOnce().count("status=503", 3, 25)}},
		{name: "with a budget that allows all", field: "DestinationRule.trafficPolicy.retryBudget", yaml: mixed("attempts: 5, retryOn: 5xx") + destination("retryBudget: {percent: 100, minRetryConcurrency: 100}"), pods: `mixed: "yes"`, slow: true, asks: []ask{get("/delay/300ms").times(30).atOnce().want(ok)}},
		{name: "with a limit on how many at a time", field: "DestinationRule.trafficPolicy.connectionPool.http.maxRetries", yaml: mixed("attempts: 5, retryOn: 5xx") + destination("connectionPool: {http: {maxRetries: 1}}"), pods: `mixed: "yes"`, slow: true, asks: []ask{get("/delay/300ms").times(30).atOnce().count("status=503", 3, 25)}},
		{name: "on the same pods too", field: field + ".retryIgnorePreviousHosts", yaml: mixed("attempts: 50, retryOn: 5xx, retryIgnorePreviousHosts: false"), pods: `mixed: "yes"`, asks: all},
		{name: "until nothing is left", field: field + ".attempts", yaml: mixed("attempts: 2, retryOn: 5xx"), pods: "version: bad", asks: []ask{get("/").want("status=503")}},
		{name: "with the body", field: field + ".attempts", yaml: mixed("attempts: 3, retryOn: 5xx"), pods: `mixed: "yes"`, asks: []ask{get("/").method("POST").body("payload").times(20).want(ok, "payload")}},
		{name: "over HTTP/2", field: field + ".attempts", yaml: mixed("attempts: 3, retryOn: 5xx"), pods: `mixed: "yes"`, asks: []ask{get("/").h2().times(20).want(ok)}},
	}
}

// everywhere takes pods of all zones alike: with outlier detection those nearby come first otherwise.
const everywhere = "loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: false}}"

func outliers() []feature {
	const field = "DestinationRule.trafficPolicy.outlierDetection"
	o := func(how string) string {
		return virtual("retries: {attempts: 0}, "+toSelf) + destination(everywhere+", outlierDetection: {interval: 0.1s, baseEjectionTime: 60s, "+how+"}")
	}
	feed := get("/").times(20)
	return []feature{
		{name: "after consecutive errors", field: field + ".consecutive5xxErrors", yaml: o("consecutive5xxErrors: 1, maxEjectionPercent: 100"), pods: `mixed: "yes"`, asks: []ask{feed, get("/").times(30).want(ok)}},
		{name: "after consecutive gateway errors", field: field + ".consecutiveGatewayErrors", yaml: o("consecutiveGatewayErrors: 1, consecutive5xxErrors: 0, maxEjectionPercent: 100"), pods: `mixed: "yes"`, asks: []ask{feed, get("/").times(30).want(ok)}},
		{name: "not where errors are rare", field: field + ".consecutive5xxErrors", yaml: o("consecutive5xxErrors: 1000, maxEjectionPercent: 100"), pods: `mixed: "yes"`, asks: []ask{feed, get("/").times(30).count("status=503", 3, 25)}},
		{name: "a refused connection counts", field: field + ".consecutive5xxErrors", yaml: o("consecutive5xxErrors: 1, maxEjectionPercent: 100"), pods: `half: "yes"`, asks: []ask{feed, get("/").times(30).want(ok)}},
		{name: "and comes back", field: field + ".baseEjectionTime", yaml: virtual("retries: {attempts: 0}, "+toSelf) + destination(everywhere+", outlierDetection: {interval: 0.1s, baseEjectionTime: 0.2s, consecutive5xxErrors: 1, maxEjectionPercent: 100}"), pods: `mixed: "yes"`, slow: true,
			asks: []ask{feed, get("/").times(60).paced(10*time.Millisecond).count("status=503", 1, 40)}},
		{name: "of a port", field: "DestinationRule.trafficPolicy.portLevelSettings.outlierDetection", yaml: virtual("retries: {attempts: 0}, "+toSelf) + destination("portLevelSettings: [{port: {number: 80}, "+everywhere+", outlierDetection: {interval: 0.1s, baseEjectionTime: 60s, consecutive5xxErrors: 1, maxEjectionPercent: 100}}]"), pods: `mixed: "yes"`, asks: []ask{feed, get("/").times(30).want(ok)}},
	}
}

func (a ask) paced(d time.Duration) ask { a.pause = d; return a }

func pools() []feature {
	const field = "DestinationRule.trafficPolicy.connectionPool"
	p := func(how string) string {
		return virtual("retries: {attempts: 0}, "+toSelf) + destination("connectionPool: {"+how+"}")
	}
	crowd := get("/delay/400ms").times(12).atOnce()
	return []feature{
		{name: "requests under way", field: field + ".http.http2MaxRequests", yaml: p("http: {http2MaxRequests: 1}"), slow: true, asks: []ask{crowd.count("status=503", 1, 11)}},
		{name: "requests one after another pass", field: field + ".http.http2MaxRequests", yaml: p("http: {http2MaxRequests: 1}"), asks: []ask{get("/").times(10).want(ok)}},
		{name: "enough for all", field: field + ".http.http2MaxRequests", yaml: p("http: {http2MaxRequests: 100}"), slow: true, asks: []ask{crowd.want(ok)}},
		{name: "that the limit was hit is told", field: field + ".http.http2MaxRequests", yaml: p("http: {http2MaxRequests: 1}"), slow: true, asks: []ask{crowd.count("answer.x-envoy-overloaded=true", 1, 11)}},
		{name: "connections and those that wait for one", field: field + ".http.http1MaxPendingRequests", yaml: p("tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}"), slow: true, asks: []ask{crowd.count("status=503", 1, 11)}},
		{name: "of a port", field: "DestinationRule.trafficPolicy.portLevelSettings.connectionPool", yaml: virtual("retries: {attempts: 0}, "+toSelf) + destination("portLevelSettings: [{port: {number: 80}, connectionPool: {http: {http2MaxRequests: 1}}}]"), slow: true, asks: []ask{crowd.count("status=503", 1, 11)}},
		{name: "of a subset", field: "DestinationRule.subsets.trafficPolicy.connectionPool", yaml: virtual("retries: {attempts: 0}, route: [{destination: {host: $S, subset: v2}}]") + subsets(", trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}"), slow: true, asks: []ask{crowd.count("status=503", 1, 11)}},
		{name: "requests on one connection", field: field + ".http.maxRequestsPerConnection", yaml: p("http: {maxRequestsPerConnection: 1}"), pods: "version: v2", asks: []ask{get("/").times(6).want(ok).peers(6, 6)}},
		{name: "HTTP/2 to the pods", field: field + ".http.h2UpgradePolicy", yaml: p("http: {h2UpgradePolicy: UPGRADE}"), asks: []ask{get("/").want(ok, "proto=HTTP/2.0")}},
		{name: "HTTP/1.1 to the pods", field: field + ".http.h2UpgradePolicy", yaml: p("http: {h2UpgradePolicy: DO_NOT_UPGRADE}"), asks: []ask{get("/").want(ok, "proto=HTTP/1.1")}},
		{name: "the client's protocol to the pods", field: field + ".http.useClientProtocol", yaml: p("http: {useClientProtocol: true}"), asks: []ask{get("/").want(ok, "proto=HTTP/1.1"), get("/").h2().want(ok, "proto=HTTP/2.0")}},
		{name: "requests at once on one connection", field: field + ".http.maxConcurrentStreams", yaml: p("http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 1}"), pods: "version: v2", slow: true, asks: []ask{get("/delay/300ms").times(8).atOnce().want(ok, "proto=HTTP/2.0").peers(4, 8)}},
		{name: "requests at once on one connection, without a limit", field: field + ".http.maxConcurrentStreams", yaml: p("http: {h2UpgradePolicy: UPGRADE}"), pods: "version: v2", slow: true, asks: []ask{get("/delay/300ms").times(8).atOnce().want(ok, "proto=HTTP/2.0").peers(1, 3)}},
		{name: "the age of a connection", field: field + ".tcp.maxConnectionDuration", yaml: p("tcp: {maxConnectionDuration: 0.1s}"), pods: "version: v2", slow: true, asks: []ask{get("/").times(4).paced(400*time.Millisecond).want(ok).peers(4, 4)}},
		{name: "many requests on one connection", field: field + ".http.maxRequestsPerConnection", yaml: "", pods: "version: v2", asks: []ask{get("/").times(6).want(ok).peers(1, 2)}},
		{name: "time of idleness", field: field + ".http.idleTimeout", yaml: p("http: {idleTimeout: 0.05s}"), pods: "version: v2", slow: true, asks: []ask{get("/").times(4).paced(300*time.Millisecond).want(ok).peers(4, 4)}},
	}
}
