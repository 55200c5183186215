package filter

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// globalLimit asks a rate limit service (Envoy's ratelimit filter, rate limit service v3).
type globalLimit struct {
	name
	domain    string
	stage     uint32
	service   *rpcService
	rules     []descriptorRule
	enabled   *route.Fraction // nil: all requests are asked about
	enforced  *route.Fraction // nil: all answers count
	denyShare *route.Fraction // of the requests without the service, if deny
	deny      bool            // without the service
	draft     bool            // x-ratelimit headers
	exhausted bool
	status    int
	onError   int
	quiet     bool // no x-envoy-ratelimited
	answer    *route.HeaderOps
}

// globalPart is what a route says.
type globalPart struct {
	rules      []descriptorRule
	hostLimits int
	domain     string
}

// limitTimeout is Envoy's default time for the service.
const limitTimeout = 20 * time.Millisecond

func compileGlobalLimit(p *limitv3.RateLimit) (Filter, error) {
	f := &globalLimit{
		domain: p.GetDomain(), stage: p.GetStage(), deny: p.GetFailureModeDeny(), exhausted: p.GetRateLimitedAsResourceExhausted(),
		status: 429, onError: 500, quiet: p.GetDisableXEnvoyRatelimitedHeader(),
	}
	if f.domain == "" {
		return nil, field.Errorf("domain", "required")
	}
	if t := p.GetRequestType(); t != "" && t != "both" {
		return nil, field.Errorf("request_type", "%q is not supported; both is", t)
	}
	f.draft = p.GetEnableXRatelimitHeaders() != limitv3.RateLimit_OFF
	for _, s := range []struct {
		to   **route.Fraction
		name string
		p    *corev3.RuntimeFractionalPercent
	}{
		{&f.enabled, "filter_enabled", p.GetFilterEnabled()}, {&f.enforced, "filter_enforced", p.GetFilterEnforced()},
		{&f.denyShare, "failure_mode_deny_percent", p.GetFailureModeDenyPercent()},
	} {
		if s.p == nil {
			continue
		}
		var err error
		if *s.to, err = enabledShare(s.p); err != nil {
			return nil, field.At(err, s.name)
		}
	}
	f.deny = f.deny || f.denyShare != nil
	if s := int(p.GetRateLimitedStatus().GetCode()); s >= 400 && s <= 599 {
		f.status = s
	}
	if s := int(p.GetStatusOnError().GetCode()); s >= 200 && s <= 599 {
		f.onError = s
	}
	timeout, err := field.Duration("timeout", p.GetTimeout(), limitTimeout)
	if err != nil {
		return nil, err
	}
	if f.service, err = compileRPC(p.GetRateLimitService().GetGrpcService(), timeout); err != nil {
		return nil, field.At(err, "rate_limit_service.grpc_service")
	}
	if p.GetTimeout() != nil {
		f.service.timeout = timeout
	}
	if f.rules, err = compileDescriptors(p.GetRateLimits()); err != nil {
		return nil, err
	}
	f.answer, err = route.CompileHeaderOps("response_headers_to_add", p.GetResponseHeadersToAdd(), "", nil)
	return f, err
}

func compileGlobalPart(p *limitv3.RateLimitPerRoute) (any, error) {
	r, err := compileDescriptors(p.GetRateLimits())
	if p.GetOverrideOption() != limitv3.RateLimitPerRoute_DEFAULT {
		return nil, field.Errorf("override_option", "not supported")
	}
	return &globalPart{rules: r, hostLimits: int(p.GetVhRateLimits()), domain: p.GetDomain()}, err
}

// Request implements Filter.
func (f *globalLimit) Request(x *Exchange) Action {
	v, off := x.settings(f.name.name)
	if off || f.enabled != nil && !f.enabled.Hit(x.Rand.Uint64()) {
		return Continue
	}
	q := &rlsv3.RateLimitRequest{Domain: f.domain}
	rules, more, staged := f.rules, []descriptorRule(nil), false
	own, _ := v.(*globalPart)
	if own == nil {
		own = &globalPart{}
	}
	q.Domain = orElse(own.domain, f.domain)
	switch {
	case len(own.rules) > 0:
		rules = own.rules
	case len(rules) == 0:
		rules, more = x.routeLimits(own.hostLimits)
		staged = true
	}
	for _, list := range [][]descriptorRule{rules, more} {
		for i := range list {
			if staged && list[i].stage != f.stage {
				continue
			}
			if d := list[i].descriptor(x); d != nil {
				q.Descriptors = append(q.Descriptors, described(d, list[i].hits))
			}
		}
	}
	if len(q.Descriptors) == 0 {
		return Continue
	}
	c, err := f.service.call("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit", q)
	if err != nil {
		return f.broken(x)
	}
	x.Call(c, func(a *CallAnswer, err error) {
		var p rlsv3.RateLimitResponse
		if err == nil {
			err = f.service.answer(a, &p)
		}
		if err != nil || p.GetOverallCode() == rlsv3.RateLimitResponse_UNKNOWN {
			x.Resume(f.broken(x))
			return
		}
		x.Resume(f.decide(x, &p))
	})
	return Wait
}

// described is a descriptor as the service takes it.
func described(d []entry, hits uint64) *commonv3.RateLimitDescriptor {
	c := &commonv3.RateLimitDescriptor{}
	if hits > 0 {
		c.HitsAddend = wrapperspb.UInt64(hits)
	}
	for _, e := range d {
		c.Entries = append(c.Entries, &commonv3.RateLimitDescriptor_Entry{Key: e.key, Value: validText(e.value)})
	}
	return c
}

// broken decides without the service.
func (f *globalLimit) broken(x *Exchange) Action {
	if !f.deny || f.denyShare != nil && !f.denyShare.Hit(x.Rand.Uint64()) {
		return Continue
	}
	return x.Answered(f.onError, "", "rate_limiter_error", RateLimitError)
}

// limitAnswer is what an answer gets.
type limitAnswer struct {
	add     []message.Field
	limited bool
}

func (f *globalLimit) decide(x *Exchange, p *rlsv3.RateLimitResponse) Action {
	var a limitAnswer
	for _, h := range p.GetResponseHeadersToAdd() {
		if m := (message.Field{Name: lower(h.GetKey()), Value: h.GetValue()}); changeable(m.Name, m.Value) {
			a.add = append(a.add, m)
		}
	}
	if f.draft {
		a.add = append(a.add, draftHeaders(p.GetStatuses())...)
	}
	over := p.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT
	if over && f.enforced != nil {
		over = f.enforced.Hit(x.Rand.Uint64())
	}
	if !over {
		for _, h := range p.GetRequestHeadersToAdd() {
			if n := lower(h.GetKey()); changeable(n, h.GetValue()) {
				x.Req.Header.Add(n, h.GetValue())
			}
		}
		if len(a.add) > 0 {
			x.Note(f, a)
		}
		return Continue
	}
	a.limited = true
	x.Note(f, a)
	x.Answered(f.status, string(p.GetRawBody()), "request_rate_limited", RateLimited)
	if f.exhausted {
		x.Reply.HasGRPC, x.Reply.GRPC = true, 8
	}
	return Stop
}

// draftHeaders say the limit that is nearest, and all of them, as Envoy does (DRAFT_VERSION_03).
func draftHeaders(list []*rlsv3.RateLimitResponse_DescriptorStatus) []message.Field {
	var nearest *rlsv3.RateLimitResponse_DescriptorStatus
	var all strings.Builder
	for _, s := range list {
		if s.GetCurrentLimit() == nil {
			continue
		}
		if nearest == nil || s.GetLimitRemaining() < nearest.GetLimitRemaining() {
			nearest = s
		}
		if w := window(s.GetCurrentLimit().GetUnit()); w > 0 {
			fmt.Fprintf(&all, ", %d;w=%d", s.GetCurrentLimit().GetRequestsPerUnit(), w)
			if n := s.GetCurrentLimit().GetName(); n != "" && message.Value(n) {
				fmt.Fprintf(&all, ";name=%q", n)
			}
		}
	}
	if nearest == nil {
		return nil
	}
	return []message.Field{
		{Name: "x-ratelimit-limit", Value: strconv.FormatUint(uint64(nearest.GetCurrentLimit().GetRequestsPerUnit()), 10) + all.String()},
		{Name: "x-ratelimit-remaining", Value: strconv.FormatUint(uint64(nearest.GetLimitRemaining()), 10)},
		{Name: "x-ratelimit-reset", Value: strconv.FormatInt(nearest.GetDurationUntilReset().GetSeconds(), 10)},
	}
}

// window is the length of a unit in seconds, 0 if it is not known.
func window(u rlsv3.RateLimitResponse_RateLimit_Unit) int {
	switch u {
	case rlsv3.RateLimitResponse_RateLimit_SECOND:
		return 1
	case rlsv3.RateLimitResponse_RateLimit_MINUTE:
		return 60
	case rlsv3.RateLimitResponse_RateLimit_HOUR:
		return 3600
	case rlsv3.RateLimitResponse_RateLimit_DAY:
		return 86400
	case rlsv3.RateLimitResponse_RateLimit_WEEK:
		return 604800
	case rlsv3.RateLimitResponse_RateLimit_MONTH:
		return 2592000
	case rlsv3.RateLimitResponse_RateLimit_YEAR:
		return 31536000
	}
	return 0
}

// Answer implements Answering.
func (f *globalLimit) Answer(x *Exchange) {
	a, _ := x.Noted(f).(limitAnswer)
	h := &x.Resp.Header
	for _, m := range a.add {
		h.Add(m.Name, m.Value)
	}
	if a.limited {
		if !f.quiet {
			h.Set("x-envoy-ratelimited", "true")
		}
		f.answer.Apply(h, x.Context())
	}
}
