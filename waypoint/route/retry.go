package route

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	omitcanaryv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/omit_canary_hosts/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// RetryOn is a set of conditions for a retry.
type RetryOn uint32

// The conditions, by Envoy's names.
const (
	On5xx RetryOn = 1 << iota
	OnGatewayError
	OnReset
	OnResetBeforeRequest
	OnConnectFailure
	OnEnvoyRateLimited
	OnRetriable4xx
	OnRefusedStream
	OnRetriableStatusCodes
	OnRetriableHeaders
	OnCancelled
	OnDeadlineExceeded
	OnInternal
	OnResourceExhausted
	OnUnavailable
)

var retryNames = map[string]RetryOn{
	"5xx": On5xx, "gateway-error": OnGatewayError, "reset": OnReset, "reset-before-request": OnResetBeforeRequest,
	"connect-failure": OnConnectFailure, "envoy-ratelimited": OnEnvoyRateLimited, "retriable-4xx": OnRetriable4xx,
	"refused-stream": OnRefusedStream, "retriable-status-codes": OnRetriableStatusCodes, "retriable-headers": OnRetriableHeaders,
	"cancelled": OnCancelled, "deadline-exceeded": OnDeadlineExceeded, "internal": OnInternal,
	"resource-exhausted": OnResourceExhausted, "unavailable": OnUnavailable,
}

// grpcConditions are those that a gRPC status fulfils.
var grpcConditions = [...]struct {
	status int
	on     RetryOn
}{{1, OnCancelled}, {4, OnDeadlineExceeded}, {8, OnResourceExhausted}, {13, OnInternal}, {14, OnUnavailable}}

// ParseRetryOn reads a comma-separated list. Names that are not known are left out, as in Envoy.
func ParseRetryOn(s string) RetryOn {
	var on RetryOn
	for s != "" {
		var name string
		name, s, _ = strings.Cut(s, ",")
		on |= retryNames[strings.TrimSpace(name)]
	}
	return on
}

// Failure is how an attempt ended without an answer.
type Failure uint8

// The failures.
const (
	// ConnectFailed: there was no connection: refused, unreachable, timed out, TLS.
	ConnectFailed Failure = iota
	// Refused: the endpoint said that it did not process the request (REFUSED_STREAM, GOAWAY).
	Refused
	// ResetByPeer: the stream or connection was reset.
	ResetByPeer
	// TryTimeout: per_try_timeout ended.
	TryTimeout
	// Overflow: a circuit breaker was open.
	Overflow
)

const (
	// defaultBackOff is Envoy's base interval of back-off.
	defaultBackOff = 25 * time.Millisecond
	// backOffFactor is how many times the base interval the longest one is.
	backOffFactor = 10
	// maxRateLimitedBackOff is Envoy's default of rate_limited_retry_back_off.max_interval.
	maxRateLimitedBackOff = 300 * time.Second
)

// Retry is a compiled retry policy. It is immutable.
type Retry struct {
	On RetryOn
	// Max is the number of retries, the first attempt not counted.
	Max int
	// PerTry bounds an attempt, PerTryIdle the time in which nothing comes of it. 0: no bound.
	PerTry, PerTryIdle time.Duration
	// HostAttempts is how often another endpoint is chosen if one is refused by SkipPrevious, at least 1.
	HostAttempts int
	// SkipPrevious keeps retries from endpoints that were tried.
	SkipPrevious bool
	// PriorityUpdate is after how many attempts priorities that were tried count as failed (previous_priorities); 0: never.
	PriorityUpdate int

	base, max      time.Duration
	codes          []uint32
	headers        []*HeaderMatcher
	requestHeaders []*HeaderMatcher
	resets         []resetHeader
	resetMax       time.Duration
}

// resetHeader is a header of an answer that says when to come again.
type resetHeader struct {
	name string
	unix bool // a time, not a number of seconds
}

func compileRetry(p *routev3.RetryPolicy) (*Retry, error) {
	if p == nil {
		return nil, nil
	}
	r := &Retry{On: ParseRetryOn(p.GetRetryOn()), Max: 1, HostAttempts: 1, base: defaultBackOff}
	if n := p.GetNumRetries(); n != nil {
		r.Max = int(n.GetValue())
	}
	if n := p.GetHostSelectionRetryMaxAttempts(); n < 0 {
		return nil, field.Errorf("host_selection_retry_max_attempts", "negative value %d", n)
	} else if n > 0 {
		r.HostAttempts = int(min(n, 1<<16))
	}
	var err error
	if r.PerTry, err = field.Duration("per_try_timeout", p.GetPerTryTimeout(), 0); err != nil {
		return nil, err
	}
	if r.PerTryIdle, err = field.Duration("per_try_idle_timeout", p.GetPerTryIdleTimeout(), 0); err != nil {
		return nil, err
	}
	r.codes = slices.Clone(p.GetRetriableStatusCodes())
	if r.headers, err = compileHeaders("retriable_headers", p.GetRetriableHeaders()); err != nil {
		return nil, err
	}
	if r.requestHeaders, err = compileHeaders("retriable_request_headers", p.GetRetriableRequestHeaders()); err != nil {
		return nil, err
	}
	if err := r.compileBackOff(p); err != nil {
		return nil, err
	}
	return r, r.compileExtensions(p)
}

func (r *Retry) compileBackOff(p *routev3.RetryPolicy) (err error) {
	if b := p.GetRetryBackOff(); b != nil {
		if r.base, err = field.Duration("retry_back_off.base_interval", b.GetBaseInterval(), 0); err != nil {
			return err
		}
		if r.base < time.Millisecond {
			return field.Errorf("retry_back_off.base_interval", "at least 1 ms is required")
		}
		if r.max, err = field.Duration("retry_back_off.max_interval", b.GetMaxInterval(), 0); err != nil {
			return err
		}
		if b.GetMaxInterval() != nil && r.max < r.base {
			return field.Errorf("retry_back_off.max_interval", "less than base_interval")
		}
	}
	if r.max == 0 {
		r.max = backOffFactor * r.base
	}
	l := p.GetRateLimitedRetryBackOff()
	if l == nil {
		return nil
	}
	if r.resetMax, err = field.Duration("rate_limited_retry_back_off.max_interval", l.GetMaxInterval(), maxRateLimitedBackOff); err != nil {
		return err
	}
	for i, h := range l.GetResetHeaders() {
		if h.GetName() == "" {
			return field.Index(errors.New("no name"), "rate_limited_retry_back_off.reset_headers", i)
		}
		r.resets = append(r.resets, resetHeader{lower(h.GetName()), h.GetFormat() == routev3.RetryPolicy_UNIX_TIMESTAMP})
	}
	return nil
}

func (r *Retry) compileExtensions(p *routev3.RetryPolicy) error {
	if x := p.GetRetryPriority(); x != nil {
		var c previousprioritiesv3.PreviousPrioritiesConfig
		if err := x.GetTypedConfig().UnmarshalTo(&c); err != nil {
			return field.At(err, "retry_priority.typed_config")
		}
		if c.GetUpdateFrequency() <= 0 {
			return field.Errorf("retry_priority.typed_config.update_frequency", "not positive")
		}
		r.PriorityUpdate = int(c.GetUpdateFrequency())
	}
	for i, x := range p.GetRetryHostPredicate() {
		switch c := x.GetTypedConfig(); {
		case c.MessageIs((*previoushostsv3.PreviousHostsPredicate)(nil)),
			c == nil && x.GetName() == "envoy.retry_host_predicates.previous_hosts":
			r.SkipPrevious = true
		case c.MessageIs((*omitcanaryv3.OmitCanaryHostsPredicate)(nil)): // there are no canary hosts
		default:
			return field.Index(field.Errorf("typed_config", "unsupported predicate %q of type %q", x.GetName(), c.GetTypeUrl()), "retry_host_predicate", i)
		}
	}
	if x := p.GetRetryOptionsPredicates(); len(x) > 0 {
		return field.Index(field.Errorf("typed_config", "unsupported predicate %q", x[0].GetName()), "retry_options_predicates", 0)
	}
	return nil
}

// For says whether the policy applies to the request at all (retriable_request_headers).
func (r *Retry) For(req *message.Request) bool {
	if r == nil || r.On == 0 || r.Max == 0 {
		return false
	}
	for _, h := range r.requestHeaders {
		if h.Match(req) {
			return true
		}
	}
	return len(r.requestHeaders) == 0
}

// OnResponse says whether an answer with this head is a reason for a retry.
func (r *Retry) OnResponse(resp *message.Response) bool {
	s := resp.Status
	if resp.Header.Has("x-envoy-ratelimited") {
		return r.On&OnEnvoyRateLimited != 0
	}
	switch {
	case r.On&On5xx != 0 && s >= 500 && s <= 599,
		r.On&OnGatewayError != 0 && s >= 502 && s <= 504,
		r.On&OnRetriable4xx != 0 && s == 409,
		r.On&OnRetriableStatusCodes != 0 && slices.Contains(r.codes, uint32(s)):
		return true
	}
	if r.On&OnRetriableHeaders != 0 {
		for _, h := range r.headers {
			if h.MatchResponse(resp) {
				return true
			}
		}
	}
	const grpc = OnCancelled | OnDeadlineExceeded | OnResourceExhausted | OnInternal | OnUnavailable
	if r.On&grpc == 0 {
		return false
	}
	v, ok := resp.Header.Lookup("grpc-status")
	if !ok {
		return false
	}
	status, err := strconv.Atoi(v)
	for _, c := range grpcConditions {
		if err == nil && c.status == status {
			return r.On&c.on != 0
		}
	}
	return false
}

// OnFailure says whether a failure is a reason for a retry. begun says that a part of the request was sent.
func (r *Retry) OnFailure(f Failure, begun bool) bool {
	switch {
	case f == Overflow:
		return false
	case r.On&(OnReset|On5xx|OnGatewayError) != 0,
		r.On&OnResetBeforeRequest != 0 && !begun,
		r.On&OnRefusedStream != 0 && f == Refused,
		r.On&OnConnectFailure != 0 && f == ConnectFailed:
		return true
	}
	return false
}

// BackOff is how long to wait before retry n, counted from 1: a random part of an interval that doubles each time.
func (r *Retry) BackOff(n int, rand uint64) time.Duration {
	d := r.max
	if n = max(n, 1); n < 32 && r.base < r.max>>(n-1) {
		d = r.base<<n - r.base
	}
	d = min(d, r.max)
	return time.Duration(rand % uint64(d))
}

// ResetAfter is how long to wait because an answer says so, and whether one does.
func (r *Retry) ResetAfter(resp *message.Response, now time.Time) (time.Duration, bool) {
	for _, h := range r.resets {
		n, err := strconv.ParseInt(resp.Header.Get(h.name), 10, 64)
		if err != nil || n < 0 {
			continue
		}
		d := r.resetMax + 1
		if h.unix {
			d = time.Unix(min(n, 1<<40), 0).Sub(now)
		} else if n <= int64(r.resetMax/time.Second) {
			d = time.Duration(n) * time.Second
		}
		if d >= 0 && d <= r.resetMax {
			return d, true
		}
	}
	return 0, false
}
