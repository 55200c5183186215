package filter

import (
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"

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
	deny      bool // without the service
	exhausted bool
	status    int
	onError   int
	quiet     bool // no x-envoy-ratelimited
	answer    *route.HeaderOps
}

// globalPart is what a route says.
type globalPart struct {
	rules  []descriptorRule
	domain string
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
	return &globalPart{rules: r, domain: p.GetDomain()}, err
}

// Request implements Filter.
func (f *globalLimit) Request(x *Exchange) Action {
	v, off := x.settings(f.name.name)
	if off {
		return Continue
	}
	q := &rlsv3.RateLimitRequest{Domain: f.domain}
	rules := f.rules
	if own, ok := v.(*globalPart); ok {
		if len(own.rules) > 0 {
			rules = own.rules
		}
		q.Domain = orElse(own.domain, f.domain)
	}
	for i := range rules {
		if rules[i].stage != f.stage {
			continue
		}
		if d := rules[i].descriptor(x); d != nil {
			c := &commonv3.RateLimitDescriptor{}
			for _, e := range d {
				c.Entries = append(c.Entries, &commonv3.RateLimitDescriptor_Entry{Key: e.key, Value: validText(e.value)})
			}
			q.Descriptors = append(q.Descriptors, c)
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

// broken decides without the service.
func (f *globalLimit) broken(x *Exchange) Action {
	if !f.deny {
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
	if p.GetOverallCode() == rlsv3.RateLimitResponse_OK {
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
