package filter

import (
	"errors"
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// extAuthz asks a service whether a request may go on (Envoy's ext_authz).
type extAuthz struct {
	name
	service   authorizer
	enabled   *route.MetadataMatcher // nil: always
	share     *route.Fraction        // nil: all
	allowed   headerSet              // sent to the service; nil: all, with gRPC
	forbidden headerSet
	failOpen  bool
	tell      bool // failures that are let pass are told to the endpoint
	onError   int
	clear     bool
	body      *bodyRule // nil: the body is not sent
}

// bodyRule says how much of a body the service gets.
type bodyRule struct {
	limit          int
	partial, bytes bool
}

// authorizer is one way to ask.
type authorizer interface {
	// call makes the request to the service.
	call(f *extAuthz, x *Exchange, body []byte, part *authzPart) (*Call, error)
	// verdict reads its answer. An error is not a refusal: it says that there is no verdict.
	verdict(a *CallAnswer) (*authzVerdict, error)
}

// authzVerdict is what a service says.
type authzVerdict struct {
	allowed bool
	// of an allowed request: what is changed in it, and in its answer
	set, add  []message.Field
	remove    []string
	answerAdd []message.Field
	// of a refused one
	status int
	body   string
	header []message.Field
}

// authzPart is what a route says.
type authzPart struct {
	off        bool
	extensions map[string]string
	noBody     bool
}

// headerSet is a set of header names; nil is told apart from the empty set by the caller.
type headerSet []*route.StringMatcher

func compileHeaderSet(name string, p *matcherv3.ListStringMatcher) (headerSet, error) {
	var s headerSet
	for i, m := range p.GetPatterns() {
		c, err := route.CompileString(m)
		if err != nil {
			return nil, field.Index(field.At(err, "patterns"), name, i)
		}
		s = append(s, c)
	}
	return s, nil
}

func (s headerSet) has(name string) bool {
	for _, m := range s {
		if m.Match(name) {
			return true
		}
	}
	return false
}

// authzTimeout is how long a service may take if the configuration does not say.
const authzTimeout = 200 * time.Millisecond

func compileExtAuthz(p *extauthzv3.ExtAuthz) (Filter, error) {
	f := &extAuthz{failOpen: p.GetFailureModeAllow(), tell: p.GetFailureModeAllowHeaderAdd(), onError: 403, clear: p.GetClearRouteCache()}
	if v := p.GetTransportApiVersion(); v != corev3.ApiVersion_V3 {
		return nil, field.Errorf("transport_api_version", "only V3 is supported, not %v", v)
	}
	if p.GetShadowMode() {
		return nil, field.Errorf("shadow_mode", "not supported")
	}
	if s := p.GetStatusOnError().GetCode(); s != 0 {
		if s < 200 || s > 599 {
			return nil, field.Errorf("status_on_error.code", "%d is not between 200 and 599", s)
		}
		f.onError = int(s)
	}
	var err error
	if m := p.GetFilterEnabledMetadata(); m != nil {
		if f.enabled, err = route.CompileMetadata(m); err != nil {
			return nil, field.At(err, "filter_enabled_metadata")
		}
	}
	if f.share, err = enabledShare(p.GetFilterEnabled()); err != nil {
		return nil, field.At(err, "filter_enabled")
	}
	if f.allowed, err = compileHeaderSet("allowed_headers", p.GetAllowedHeaders()); err != nil {
		return nil, err
	}
	if f.forbidden, err = compileHeaderSet("disallowed_headers", p.GetDisallowedHeaders()); err != nil {
		return nil, err
	}
	if b := p.GetWithRequestBody(); b != nil {
		if b.GetMaxRequestBytes() == 0 {
			return nil, field.Errorf("with_request_body.max_request_bytes", "not positive")
		}
		f.body = &bodyRule{limit: int(min(b.GetMaxRequestBytes(), 1<<30)), partial: b.GetAllowPartialMessage(), bytes: b.GetPackAsBytes()}
	}
	switch s := p.GetServices().(type) {
	case *extauthzv3.ExtAuthz_GrpcService:
		f.service, err = compileAuthzGRPC(s.GrpcService)
		err = field.At(err, "grpc_service")
	case *extauthzv3.ExtAuthz_HttpService:
		f.service, err = compileAuthzHTTP(s.HttpService)
		err = field.At(err, "http_service")
	default:
		err = field.Errorf("services", "one of grpc_service and http_service is required")
	}
	return f, err
}

func compileExtAuthzPart(p *extauthzv3.ExtAuthzPerRoute) (any, error) {
	switch o := p.GetOverride().(type) {
	case *extauthzv3.ExtAuthzPerRoute_Disabled:
		return &authzPart{off: o.Disabled}, nil
	case *extauthzv3.ExtAuthzPerRoute_CheckSettings:
		s := o.CheckSettings
		if s.GetServiceOverride() != nil || s.GetWithRequestBody() != nil {
			return nil, field.Errorf("check_settings", "another service or body rule for a route is not supported")
		}
		return &authzPart{extensions: s.GetContextExtensions(), noBody: s.GetDisableRequestBodyBuffering()}, nil
	}
	return nil, field.Errorf("override", "required")
}

// Request implements Filter.
func (f *extAuthz) Request(x *Exchange) Action {
	v, off := x.settings(f.name.name)
	part, _ := v.(*authzPart)
	if off || part != nil && part.off || f.share != nil && !f.share.Hit(x.Rand.Uint64()) || f.enabled != nil && !f.enabled.Match(x) {
		return Continue
	}
	if f.body == nil || part != nil && part.noBody || x.Req.ContentLength == 0 || x.Req.Upgrade != "" {
		f.ask(x, nil, part)
		return Wait
	}
	x.Body(f.body.limit, func(body []byte, whole bool) {
		if !whole && !f.body.partial {
			x.Resume(x.Answered(413, "Payload Too Large", "request_payload_too_large", 0))
			return
		}
		f.ask(x, body, part)
	})
	return Wait
}

func (f *extAuthz) ask(x *Exchange, body []byte, part *authzPart) {
	c, err := f.service.call(f, x, body, part)
	if err != nil {
		x.Resume(f.broken(x, err))
		return
	}
	x.Call(c, func(a *CallAnswer, err error) {
		var v *authzVerdict
		if err == nil {
			v, err = f.service.verdict(a)
		}
		if err != nil {
			x.Resume(f.broken(x, err))
			return
		}
		x.Resume(f.decide(x, v))
	})
}

// broken decides without a verdict.
func (f *extAuthz) broken(x *Exchange, err error) Action {
	if f.failOpen {
		if f.tell {
			x.Req.Header.Set("x-envoy-auth-failure-mode-allowed", "true")
		}
		return Continue
	}
	x.Transport = fmt.Sprint("ext_authz: ", err)
	return x.Answered(f.onError, "", "ext_authz_error", Unauthorized)
}

// decide does what the service said.
func (f *extAuthz) decide(x *Exchange, v *authzVerdict) Action {
	if !v.allowed {
		x.Answered(v.status, v.body, "ext_authz_denied", Unauthorized)
		x.Reply.Header = append(x.Reply.Header, v.header...)
		return Stop
	}
	h := &x.Req.Header
	for _, n := range v.remove {
		h.Del(n)
	}
	for _, m := range v.set {
		h.Set(m.Name, m.Value)
	}
	for _, m := range v.add {
		h.Add(m.Name, m.Value)
	}
	if len(v.answerAdd) > 0 {
		x.Note(f, v.answerAdd)
	}
	if f.clear && len(v.set)+len(v.add)+len(v.remove) > 0 {
		x.ClearRoute()
	}
	return Continue
}

// Answer implements Answering.
func (f *extAuthz) Answer(x *Exchange) {
	list, _ := x.Noted(f).([]message.Field)
	for _, m := range list {
		x.Resp.Header.Add(m.Name, m.Value)
	}
}

// changeable says whether a service may change a header of that name.
func changeable(name, value string) bool {
	return message.LowerToken(name) && message.Value(value) && name != "host" && !message.ConnectionField(name) && name != "content-length"
}

var errNoVerdict = errors.New("the service did not give a verdict")
