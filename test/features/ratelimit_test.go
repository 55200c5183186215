package features

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
)

// portLimits is where the pod helper has a rate limit service.
const portLimits = 9011

// limiter is a rate limit service that refuses what has a descriptor with the value "over", and tells in a header what it
// was asked.
type limiter struct {
	rlsv3.UnimplementedRateLimitServiceServer
}

// ShouldRateLimit implements the service.
func (limiter) ShouldRateLimit(_ context.Context, q *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	out := &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK}
	var asked []string
	for _, d := range q.Descriptors {
		var entries []string
		for _, e := range d.Entries {
			entries = append(entries, e.Key+"="+e.Value)
			switch e.Value {
			case "over":
				out.OverallCode = rlsv3.RateLimitResponse_OVER_LIMIT
			case "slow":
				time.Sleep(2 * time.Second)
			case "tell":
				out.RequestHeadersToAdd = append(out.RequestHeadersToAdd, &corev3.HeaderValue{Key: "x-told", Value: "by limits"})
			case "word":
				out.OverallCode, out.RawBody = rlsv3.RateLimitResponse_OVER_LIMIT, []byte("come back later")
			}
		}
		asked = append(asked, strings.Join(entries, ","))
		out.Statuses = append(out.Statuses, &rlsv3.RateLimitResponse_DescriptorStatus{
			Code: out.OverallCode, LimitRemaining: 4,
			CurrentLimit: &rlsv3.RateLimitResponse_RateLimit{RequestsPerUnit: 5, Unit: rlsv3.RateLimitResponse_RateLimit_MINUTE},
		})
	}
	out.ResponseHeadersToAdd = []*corev3.HeaderValue{{Key: "x-asked", Value: q.Domain + ": " + strings.Join(asked, "; ")}}
	return out, nil
}

// serveLimits starts the rate limit service in the pod helper.
func (b *bed) serveLimits(t *testing.T) {
	t.Helper()
	s := grpc.NewServer()
	rlsv3.RegisterRateLimitServiceServer(s, limiter{})
	ln := b.listen(t, "helper", portLimits)
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
}

// limits is the Service of the rate limit service: each case has one of its own, with the case's name.
const limitsService = "\n---\n{apiVersion: v1, kind: Service, metadata: {name: $S-limits, namespace: shop, labels: {istio.io/use-waypoint: none}}, spec: {selector: {app: helper}, ports: [{name: grpc, port: 81, targetPort: 9011}]}}\n---\n"

// envoyFilter is the case's EnvoyFilter with these patches.
func envoyFilter(patches ...string) string {
	return "\n---\n{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {name: $S, namespace: shop}, spec: {targetRefs: [{kind: Service, name: $S}], configPatches: [{" +
		strings.Join(patches, "}, {") + "}]}}\n---\n"
}

const (
	beforeRouter = "match: {context: SIDECAR_INBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}}}"
	allOfThem    = "filter_enabled: {default_value: {numerator: 100, denominator: HUNDRED}}, filter_enforced: {default_value: {numerator: 100, denominator: HUNDRED}}"
	localType    = `"@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`
)

// tokens is a bucket of so many tokens, which does not fill while the case runs.
func bucketOf(n int) string {
	return fmt.Sprintf("token_bucket: {max_tokens: %d, tokens_per_fill: %d, fill_interval: 86400s}", n, n)
}

// localLimit inserts the local filter.
func localLimit(config string) string {
	return "applyTo: HTTP_FILTER, " + beforeRouter + ", patch: {operation: INSERT_BEFORE, value: {name: envoy.filters.http.local_ratelimit, typed_config: {" + localType + ", stat_prefix: limit, " + config + "}}}"
}

// globalLimit inserts the filter that asks the service.
func globalLimit(service, config string) string {
	return "applyTo: HTTP_FILTER, " + beforeRouter + `, patch: {operation: INSERT_BEFORE, value: {name: envoy.filters.http.ratelimit, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit, domain: shop, ` +
		config + ` timeout: 1s, rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: "outbound|` + service + `"}}}}}}`
}

func mergeHost(value string) string {
	return `applyTo: VIRTUAL_HOST, match: {context: SIDECAR_INBOUND, routeConfiguration: {vhost: {name: "inbound|http|80"}}}, patch: {operation: MERGE, value: {` + value + "}}"
}

func mergeRoute(name, value string) string {
	return "applyTo: HTTP_ROUTE, match: {context: WAYPOINT, waypoint: {route: {name: " + name + "}}}, patch: {operation: MERGE, value: {" + value + "}}"
}

func descriptor(actions string) string { return "rate_limits: [{actions: [" + actions + "]}]" }

const limitedStatus = "status=429"

// rateLimits are limits said with EnvoyFilter (docs/decisions/0007).
func rateLimits() []group {
	return []group{
		{title: "limit the rate of requests, locally", features: localLimits()},
		{title: "limit the rate of requests, by a service", features: globalLimits()},
		{title: "change headers and timeouts by EnvoyFilter", features: patches()},
	}
}

func localLimits() []feature {
	const field = "EnvoyFilter LocalRateLimit"
	limited := func(n int) []ask { return []ask{get("/").times(n+2).count(ok, n, n).count(limitedStatus, 2, 2)} }
	byUser := descriptor("{request_headers: {header_name: x-user, descriptor_key: user}}")
	users := func(config string) string {
		return envoyFilter(localLimit(bucketOf(100)+", "+allOfThem+", "+config), mergeHost(byUser))
	}
	of := func(user string) ask { return get("/", "x-user: "+user) }
	two := httpRoute("name: few, matches: [{path: {value: /few}}]", "name: many, "+refs("v1"))
	return []feature{
		{name: "a token bucket", field: field + ".token_bucket", yaml: envoyFilter(localLimit(bucketOf(3) + ", " + allOfThem)), asks: limited(3)},
		{name: "as Istio's documentation writes it", field: field + " TypedStruct", asks: limited(3), yaml: envoyFilter("applyTo: HTTP_FILTER, " + beforeRouter +
			`, patch: {operation: INSERT_BEFORE, value: {name: envoy.filters.http.local_ratelimit, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, value: {stat_prefix: x, ` + bucketOf(3) + ", " + allOfThem + "}}}}")},
		{name: "a bucket that is not enforced", field: field + ".filter_enforced", asks: []ask{get("/").times(4).want(ok)},
			yaml: envoyFilter(localLimit(bucketOf(1) + ", filter_enabled: {default_value: {numerator: 100}}"))},
		{name: "another status", field: field + ".status", yaml: envoyFilter(localLimit(bucketOf(1) + ", status: {code: 503}, " + allOfThem)),
			asks: []ask{get("/").times(3).count(ok, 1, 1).count("status=503", 2, 2)}},
		{name: "the limit is told", field: field + ".enable_x_ratelimit_headers", yaml: envoyFilter(localLimit(bucketOf(5) + ", enable_x_ratelimit_headers: DRAFT_VERSION_03, " + allOfThem)),
			asks: []ask{get("/").want(ok, "answer.x-ratelimit-limit=5", "answer.x-ratelimit-remaining=4"), get("/").want(ok, "answer.x-ratelimit-remaining=3")}},
		{name: "a header says that the limit answered", field: field + ".response_headers_to_add", yaml: envoyFilter(localLimit(bucketOf(1) + ", response_headers_to_add: [{header: {key: x-limit, value: local}}], " + allOfThem)),
			asks: []ask{get("/").want(ok), get("/").want(limitedStatus, "answer.x-limit=local")}},
		{name: "gRPC clients are out of a resource", field: field + ".rate_limited_as_resource_exhausted", ports: grpcPort, yaml: envoyFilter(localLimit(bucketOf(1) + ", rate_limited_as_resource_exhausted: true, " + allOfThem)),
			asks: []ask{rpc("/ambit.echo.v1.Echo/Echo").want("answer.grpc-status=0"), rpc("/ambit.echo.v1.Echo/Echo").want("answer.grpc-status=8")}},
		{name: "by a header's value", field: field + ".descriptors", yaml: users("descriptors: [{entries: [{key: user, value: mallory}], " + bucketOf(1) + "}]"),
			asks: []ask{of("mallory").want(ok), of("mallory").want(limitedStatus), of("alice").times(3).want(ok), get("/").times(3).want(ok)}},
		{name: "for each value of a header", field: field + ".descriptors without value", yaml: users("descriptors: [{entries: [{key: user}], " + bucketOf(1) + "}]"),
			asks: []ask{of("a").want(ok), of("b").want(ok), of("a").want(limitedStatus), of("b").want(limitedStatus), of("c").want(ok)}},
		{name: "one route", field: "EnvoyFilter HTTP_ROUTE typed_per_filter_config", asks: []ask{get("/many").times(4).want(ok), get("/few").times(3).count(ok, 1, 1).count(limitedStatus, 2, 2), get("/many").want(ok)},
			yaml: two + envoyFilter("applyTo: HTTP_FILTER, "+beforeRouter+", patch: {operation: INSERT_BEFORE, value: {name: envoy.filters.http.local_ratelimit, typed_config: {"+localType+", stat_prefix: none}}}",
				mergeRoute("few", "typed_per_filter_config: {envoy.filters.http.local_ratelimit: {"+localType+", stat_prefix: few, "+bucketOf(1)+", "+allOfThem+"}}"))},
		{name: "by a descriptor of the route", field: "EnvoyFilter HTTP_ROUTE route.rate_limits", asks: []ask{get("/many").times(3).want(ok), get("/few").want(ok), get("/few").want(limitedStatus)},
			yaml: two + envoyFilter(localLimit(bucketOf(100)+", "+allOfThem+", descriptors: [{entries: [{key: which, value: few}], "+bucketOf(1)+"}]"),
				mergeRoute("few", "route: {"+descriptor("{generic_key: {descriptor_key: which, descriptor_value: few}}")+"}"))},
		{name: "one port", field: "EnvoyFilter match.waypoint.portNumber", ports: "{name: http, port: 80, targetPort: 8080}, {name: http-two, port: 8000, targetPort: 8080}",
			asks: []ask{get("/").at(8000).times(3).count(ok, 1, 1), get("/").times(3).want(ok)},
			yaml: envoyFilter("applyTo: HTTP_FILTER, match: {context: WAYPOINT, waypoint: {portNumber: 8000, filter: {subFilter: {name: envoy.filters.http.cors}}}}, patch: {operation: INSERT_AFTER, value: {name: limit, typed_config: {" + localType + ", stat_prefix: x, " + bucketOf(1) + ", " + allOfThem + "}}}")},
		{name: "a patch that is refused changes nothing", field: "EnvoyFilter refused", asks: []ask{get("/").times(4).want(ok)},
			yaml: envoyFilter(localLimit(bucketOf(1)+", "+allOfThem), "applyTo: LISTENER, patch: {operation: REMOVE}")},
	}
}

func globalLimits() []feature {
	const field = "EnvoyFilter RateLimit"
	service := "81||$S-limits.shop.svc.cluster.local"
	g := func(config, actions string) string {
		return envoyFilter(globalLimit(service, config), mergeHost(descriptor(actions))) + limitsService
	}
	key := "{generic_key: {descriptor_value: %s}}"
	header := "{request_headers: {header_name: x-level, descriptor_key: level}}"
	of := func(level string) ask { return get("/", "x-level: "+level) }
	asked := func(s string) string { return "answer.x-asked=shop: " + s }
	action := func(name, actions, want string, a ask) feature {
		return feature{name: name, field: field + " actions", yaml: g("", actions), asks: []ask{a.want(ok, asked(want))}}
	}
	away := "81||$S-away.shop.svc.cluster.local"
	return []feature{
		{name: "the service is asked", field: field, yaml: g("", fmt.Sprintf(key, "all")), asks: []ask{get("/").want(ok, asked("generic_key=all"))}},
		{name: "the service refuses", field: field, yaml: g("", header), asks: []ask{of("low").want(ok, asked("level=low")), of("over").want(limitedStatus, "answer.x-envoy-ratelimited=true", asked("level=over"))}},
		{name: "without a descriptor it is not asked", field: field, yaml: g("", header), asks: []ask{get("/").want(ok, "!answer.x-asked=*")}},
		{name: "the service's words are the answer", field: field, yaml: g("", header), asks: []ask{of("word").want(limitedStatus, "come back later")}},
		{name: "the service adds headers to the request", field: field, yaml: g("", header), asks: []ask{of("tell").want(ok, "header.X-Told=by limits")}},
		{name: "another status", field: field + ".rate_limited_status", yaml: g("rate_limited_status: {code: 503},", header), asks: []ask{of("over").want("status=503")}},
		{name: "the limit is told", field: field + ".enable_x_ratelimit_headers", yaml: g("enable_x_ratelimit_headers: DRAFT_VERSION_03,", header), asks: []ask{of("low").want(ok, "answer.x-ratelimit-limit=5, 5;w=60", "answer.x-ratelimit-remaining=4")}},
		{name: "gRPC clients are out of a resource", field: field + ".rate_limited_as_resource_exhausted", ports: grpcPort, yaml: g("rate_limited_as_resource_exhausted: true,", header),
			asks: []ask{rpc("/ambit.echo.v1.Echo/Echo", "x-level: over").want("answer.grpc-status=8"), rpc("/ambit.echo.v1.Echo/Echo", "x-level: low").want("answer.grpc-status=0")}},
		{name: "a service that is slow is passed by", field: field + ".timeout", yaml: g("", header), asks: []ask{of("slow").want(ok)}},
		{name: "a service that is slow closes, if told so", field: field + ".failure_mode_deny", yaml: g("failure_mode_deny: true,", header), asks: []ask{of("slow").want("status=500")}},
		{name: "a service that is away is passed by", field: field, yaml: envoyFilter(globalLimit(away, ""), mergeHost(descriptor(header))), asks: []ask{of("low").want(ok)}},
		{name: "a service that is away closes, if told so", field: field + ".failure_mode_deny", yaml: envoyFilter(globalLimit(away, "failure_mode_deny: true,"), mergeHost(descriptor(header))), asks: []ask{of("low").want("status=500"), get("/").want(ok)}},
		{name: "with a status of its own", field: field + ".status_on_error", yaml: envoyFilter(globalLimit(away, "failure_mode_deny: true, status_on_error: {code: 503},"), mergeHost(descriptor(header))), asks: []ask{of("low").want("status=503")}},
		{name: "by stage", field: field + ".stage", yaml: envoyFilter(globalLimit(service, "stage: 1,"), mergeHost("rate_limits: [{actions: [{generic_key: {descriptor_value: zero}}]}, {stage: 1, actions: [{generic_key: {descriptor_value: one}}]}]")) + limitsService,
			asks: []ask{get("/").want(ok, asked("generic_key=one"))}},
		action("by the client's address", "{masked_remote_address: {v4_prefix_mask_len: 8}}", "masked_remote_address=10.0.0.0/8", get("/")),
		action("by a parameter of the query", "{query_parameters: {query_parameter_name: u, descriptor_key: user}}", "user=7", get("/?u=7")),
		action("by a header that must match", `{header_value_match: {descriptor_value: post, headers: [{name: ":method", string_match: {exact: POST}}]}}`, "header_match=post", get("/").method("POST")),
		action("by a parameter that must match", "{query_parameter_value_match: {descriptor_value: big, query_parameters: [{name: n, string_match: {exact: '9'}}]}}", "query_match=big", get("/?n=9")),
		action("by several together", "{generic_key: {descriptor_key: a, descriptor_value: b}}, "+header, "a=b,level=low", of("low")),
	}
}

func patches() []feature {
	return []feature{
		{name: "a header of all answers", field: "EnvoyFilter VIRTUAL_HOST response_headers_to_add", yaml: envoyFilter(mergeHost("response_headers_to_add: [{header: {key: x-host, value: 'yes'}}]")), asks: []ask{get("/").want(ok, "answer.x-host=yes")}},
		{name: "a header of all requests", field: "EnvoyFilter VIRTUAL_HOST request_headers_to_add", yaml: envoyFilter(mergeHost("request_headers_to_add: [{header: {key: x-host, value: 'yes'}}]")), asks: []ask{get("/").want(ok, "header.X-Host=yes")}},
		{name: "header mutation as a filter", field: "EnvoyFilter HTTP_FILTER HeaderMutation", asks: []ask{get("/", "x-secret: 1").want(ok, "header.X-Mutated=yes", "!header.X-Secret=*")},
			yaml: envoyFilter("applyTo: HTTP_FILTER, " + beforeRouter + `, patch: {operation: INSERT_BEFORE, value: {name: mutation, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {request_mutations: [{append: {header: {key: x-mutated, value: 'yes'}}}, {remove: x-secret}]}}}}`)},
		{name: "the timeout of a route", field: "EnvoyFilter HTTP_ROUTE route.timeout", pods: "app: slow", yaml: envoyFilter(mergeRoute("default", "route: {timeout: 0.1s}")), asks: []ask{get("/").want("status=504")}},
	}
}
