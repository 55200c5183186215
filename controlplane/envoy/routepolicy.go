//lint:file-ignore SA1019 what takes the place of istiod fills, and reads, the fields that istiod does

package envoy

import (
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	prevhostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	prevprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

// Conditions of the default retry policy (3.8). The last one has an effect only together with status codes.
const (
	retryDefaults     = "connect-failure,refused-stream,unavailable,cancelled"
	retriableCodes    = "retriable-status-codes"
	hostAttempts      = 5
	priorityFrequency = 2
)

// defaultRetry is the policy of a route that says nothing. With consistent hashing a retry may go to the same host.
func defaultRetry(hashed bool) *routev3.RetryPolicy {
	p := &routev3.RetryPolicy{RetryOn: retryDefaults + "," + retriableCodes, NumRetries: u32(2), HostSelectionRetryMaxAttempts: hostAttempts}
	if !hashed {
		p.RetryHostPredicate = previousHosts()
	}
	return p
}

func previousHosts() []*routev3.RetryPolicy_RetryHostPredicate {
	return []*routev3.RetryPolicy_RetryHostPredicate{{
		Name:       "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: anyOf(&prevhostsv3.PreviousHostsPredicate{})},
	}}
}

// retryPolicy is nil when retries are turned off.
func retryPolicy(r *networking.HTTPRetry, hashed bool) *routev3.RetryPolicy {
	if r == nil {
		return defaultRetry(hashed)
	}
	if r.Attempts <= 0 {
		return nil
	}
	p := defaultRetry(false)
	p.NumRetries = u32(uint32(r.Attempts))
	if r.RetryOn != "" {
		p.RetryOn, p.RetriableStatusCodes = retryOn(r.RetryOn)
	}
	if r.RetryIgnorePreviousHosts != nil && !r.RetryIgnorePreviousHosts.Value {
		p.RetryHostPredicate = nil
	}
	if r.PerTryTimeout != nil {
		p.PerTryTimeout = clone(r.PerTryTimeout)
	}
	if r.Backoff != nil {
		p.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: clone(r.Backoff)}
	}
	if r.RetryRemoteLocalities.GetValue() {
		p.RetryPriority = &routev3.RetryPolicy_RetryPriority{
			Name:       "envoy.retry_priorities.previous_priorities",
			ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: anyOf(&prevprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: priorityFrequency})},
		}
	}
	return p
}

// retryOn splits conditions and status codes.
func retryOn(text string) (conditions string, codes []uint32) {
	var words []string
	named := false
	for w := range strings.SplitSeq(text, ",") {
		w = strings.TrimSpace(w)
		if n, err := strconv.ParseUint(w, 10, 16); err == nil {
			codes = append(codes, uint32(n))
			continue
		}
		if w != "" {
			words = append(words, w)
			named = named || w == retriableCodes
		}
	}
	if len(codes) > 0 && !named {
		words = append(words, retriableCodes)
	}
	return strings.Join(words, ","), codes
}

// hashPolicies are those of the load balancer of a destination.
func (b *builder) hashPolicies(rule *ruleSet, subset string, number uint32) []*routev3.RouteAction_HashPolicy {
	h := rule.policyFor(subset, number).GetLoadBalancer().GetConsistentHash()
	if h == nil {
		return nil
	}
	p := &routev3.RouteAction_HashPolicy{}
	switch k := h.HashKey.(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: k.HttpHeaderName}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		c := &routev3.RouteAction_HashPolicy_Cookie{Name: k.HttpCookie.Name, Path: k.HttpCookie.Path}
		if k.HttpCookie.Ttl != nil {
			c.Ttl = clone(k.HttpCookie.Ttl)
		}
		for _, a := range k.HttpCookie.Attributes {
			c.Attributes = append(c.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.Name, Value: a.Value})
		}
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: c}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		if !k.UseSourceIp {
			return nil
		}
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: k.HttpQueryParameterName}}
	default:
		return nil
	}
	return []*routev3.RouteAction_HashPolicy{p}
}

func corsPolicy(c *networking.CorsPolicy, gateway bool) *corsv3.CorsPolicy {
	out := &corsv3.CorsPolicy{
		AllowMethods: strings.Join(c.AllowMethods, ","), AllowHeaders: strings.Join(c.AllowHeaders, ","), ExposeHeaders: strings.Join(c.ExposeHeaders, ","),
		FilterEnabled:                &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}},
		ForwardNotMatchingPreflights: wrapperspb.Bool(!gateway),
	}
	switch c.UnmatchedPreflights {
	case networking.CorsPolicy_FORWARD:
		out.ForwardNotMatchingPreflights = wrapperspb.Bool(true)
	case networking.CorsPolicy_IGNORE:
		out.ForwardNotMatchingPreflights = wrapperspb.Bool(false)
	}
	for _, o := range c.AllowOrigins {
		if m := stringMatch(o); m != nil {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
		}
	}
	for _, o := range c.AllowOrigin {
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, exactMatcher(o))
	}
	if c.MaxAge != nil {
		out.MaxAge = strconv.FormatInt(c.MaxAge.Seconds, 10)
	}
	if c.AllowCredentials != nil {
		out.AllowCredentials = wrapperspb.Bool(c.AllowCredentials.Value)
	}
	return out
}

// faultPolicy is nil when nothing is injected.
func faultPolicy(f *networking.HTTPFaultInjection) *faultv3.HTTPFault {
	out := &faultv3.HTTPFault{}
	if d := f.Delay; d.GetFixedDelay() != nil {
		percent := million(0)
		switch {
		case d.Percentage != nil:
			percent = million(d.Percentage.Value)
		case d.Percent > 0:
			percent = million(float64(d.Percent))
		}
		out.Delay = &commonfaultv3.FaultDelay{FaultDelaySecifier: &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: clone(d.GetFixedDelay())}, Percentage: percent}
	}
	if a := f.Abort; a != nil {
		out.Abort = &faultv3.FaultAbort{Percentage: million(a.Percentage.GetValue())}
		switch e := a.ErrorType.(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			out.Abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(e.HttpStatus)}
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			out.Abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: grpcCode(e.GrpcStatus)}
		default:
			out.Abort = nil
		}
	}
	if out.Delay == nil && out.Abort == nil {
		return nil
	}
	return out
}

// grpcCodes are the names of gRPC's status codes in order of their numbers.
var grpcCodes = []string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// grpcCode reads a name or a number; what is neither is UNKNOWN.
func grpcCode(s string) uint32 {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil && n < uint64(len(grpcCodes)) {
		return uint32(n)
	}
	for i, name := range grpcCodes {
		if strings.EqualFold(name, s) {
			return uint32(i)
		}
	}
	return 2
}

func regexRewrite(match, substitution string) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{Pattern: regex(match), Substitution: substitution}
}
