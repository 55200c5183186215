package filter

import (
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// cors answers preflight requests, and adds the headers of cross-origin sharing to answers, where a route has a policy.
type cors struct{ name }

// corsPolicy is a compiled CorsPolicy.
type corsPolicy struct {
	origins                                []*route.StringMatcher
	methods, headers, expose, maxAge       string
	credentials, private, forwardsMismatch bool
	share                                  *route.Fraction // nil: all
}

func compileCORS(*corsv3.Cors) (Filter, error) { return &cors{}, nil }

func compileCORSPolicy(p *corsv3.CorsPolicy) (any, error) {
	c := &corsPolicy{
		methods: p.GetAllowMethods(), headers: p.GetAllowHeaders(), expose: p.GetExposeHeaders(), maxAge: p.GetMaxAge(),
		credentials: p.GetAllowCredentials().GetValue(), private: p.GetAllowPrivateNetworkAccess().GetValue(),
		forwardsMismatch: p.GetForwardNotMatchingPreflights() == nil || p.GetForwardNotMatchingPreflights().GetValue(),
	}
	for i, o := range p.GetAllowOriginStringMatch() {
		m, err := route.CompileString(o)
		if err != nil {
			return nil, field.Index(err, "allow_origin_string_match", i)
		}
		c.origins = append(c.origins, m)
	}
	var err error
	c.share, err = enabledShare(p.GetFilterEnabled())
	return c, field.At(err, "filter_enabled")
}

// enabledShare is the share that a RuntimeFractionalPercent gives without a runtime; nil: all.
func enabledShare(p *corev3.RuntimeFractionalPercent) (*route.Fraction, error) {
	if p == nil {
		return nil, nil
	}
	f, err := route.CompileFraction(p.GetDefaultValue())
	return f, field.At(err, "default_value")
}

func (c *corsPolicy) allows(origin string) bool {
	for _, m := range c.origins {
		if m.Match(origin) {
			return true
		}
	}
	return false
}

// Request implements Filter.
func (f *cors) Request(x *Exchange) Action {
	v, off := x.settings(f.name.name)
	p, ok := v.(*corsPolicy)
	if !ok || off || p.share != nil && !p.share.Hit(x.Rand.Uint64()) {
		return Continue
	}
	origin := x.Req.Header.Get("origin")
	if origin == "" {
		return Continue
	}
	allowed := p.allows(origin)
	if allowed {
		x.Note(f, p)
	}
	if x.Req.Method != "OPTIONS" || x.Req.Header.Get("access-control-request-method") == "" || !allowed && p.forwardsMismatch {
		return Continue
	}
	x.Answered(200, "", "cors_response", 0)
	x.Reply.Bare = true
	add := func(n, v string) {
		if v != "" {
			x.Reply.Header = append(x.Reply.Header, message.Field{Name: n, Value: v})
		}
	}
	if p.private && x.Req.Header.Get("access-control-request-private-network") == "true" {
		add("access-control-allow-private-network", "true")
	}
	add("access-control-allow-methods", p.methods)
	add("access-control-allow-headers", p.headers)
	add("access-control-max-age", p.maxAge)
	if p.credentials && !allowed { // without an allowed origin it allows nothing
		add("access-control-allow-credentials", "true")
	}
	return Stop
}

// Answer implements Answering.
func (f *cors) Answer(x *Exchange) {
	p, ok := x.Noted(f).(*corsPolicy)
	if !ok {
		return
	}
	h := &x.Resp.Header
	h.Set("access-control-allow-origin", x.Req.Header.Get("origin"))
	if p.credentials {
		h.Set("access-control-allow-credentials", "true")
	}
	if p.expose != "" {
		h.Set("access-control-expose-headers", p.expose)
	}
}
