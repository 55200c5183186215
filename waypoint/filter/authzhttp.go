package filter

//lint:file-ignore SA1019 fields that Envoy calls deprecated are still sent

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// authzHTTP asks by a request of the same method and path.
type authzHTTP struct {
	cluster, authority string
	timeout            time.Duration
	prefix             string
	allowed            headerSet // besides the filter's
	add                []message.Field

	upstream, upstreamAppend, client, clientOnSuccess headerSet
	anyClient                                         bool
}

func compileAuthzHTTP(p *extauthzv3.HttpService) (authorizer, error) {
	s := &authzHTTP{cluster: p.GetServerUri().GetCluster(), prefix: p.GetPathPrefix()}
	if s.cluster == "" {
		return nil, field.Errorf("server_uri.cluster", "required")
	}
	if s.prefix != "" && !message.PathAndQuery(s.prefix) {
		return nil, field.Errorf("path_prefix", "%q does not begin with a slash", s.prefix)
	}
	if p.GetPathOverride() != "" {
		return nil, field.Errorf("path_override", "not supported")
	}
	var err error
	if s.authority, _, err = splitURI(p.GetServerUri().GetUri()); err != nil {
		return nil, field.At(err, "server_uri.uri")
	}
	if s.timeout, err = field.Duration("server_uri.timeout", p.GetServerUri().GetTimeout(), authzTimeout); err != nil {
		return nil, err
	}
	for i, h := range p.GetAuthorizationRequest().GetHeadersToAdd() {
		m := message.Field{Name: lower(h.GetKey()), Value: h.GetValue()}
		if !message.LowerToken(m.Name) || !message.Value(m.Value) {
			return nil, field.Index(fmt.Errorf("malformed header %q", h.GetKey()), "authorization_request.headers_to_add", i)
		}
		s.add = append(s.add, m)
	}
	r := p.GetAuthorizationResponse()
	s.anyClient = len(r.GetAllowedClientHeaders().GetPatterns()) == 0
	if s.allowed, err = compileHeaderSet("authorization_request.allowed_headers", p.GetAuthorizationRequest().GetAllowedHeaders()); err != nil {
		return nil, err
	}
	if s.upstream, err = compileHeaderSet("authorization_response.allowed_upstream_headers", r.GetAllowedUpstreamHeaders()); err != nil {
		return nil, err
	}
	if s.upstreamAppend, err = compileHeaderSet("authorization_response.allowed_upstream_headers_to_append", r.GetAllowedUpstreamHeadersToAppend()); err != nil {
		return nil, err
	}
	if s.client, err = compileHeaderSet("authorization_response.allowed_client_headers", r.GetAllowedClientHeaders()); err != nil {
		return nil, err
	}
	s.clientOnSuccess, err = compileHeaderSet("authorization_response.allowed_client_headers_on_success", r.GetAllowedClientHeadersOnSuccess())
	return s, err
}

func (s *authzHTTP) call(f *extAuthz, x *Exchange, body []byte, _ *authzPart) (*Call, error) {
	c := &Call{Cluster: s.cluster, Body: body, Timeout: s.timeout}
	r := x.Req
	c.Req = message.Request{
		Method: r.Method, Scheme: "http", Authority: r.Authority, Path: strings.TrimSuffix(s.prefix, "/") + r.Path, Proto: message.HTTP11,
		ContentLength: int64(len(body)),
	}
	if r.Method == "CONNECT" {
		return nil, errNoVerdict
	}
	h := &c.Req.Header
	for _, m := range r.Header.Fields() {
		if m.Name == "authorization" || (f.allowed.has(m.Name) || s.allowed.has(m.Name)) && !f.forbidden.has(m.Name) {
			if m.Name != "content-length" {
				h.Add(m.Name, m.Value)
			}
		}
	}
	h.Set("content-length", strconv.Itoa(len(body)))
	if body != nil {
		h.Set("x-envoy-auth-partial-body", strconv.FormatBool(int64(len(body)) < r.ContentLength))
	}
	if x.Client.Addr.IsValid() && !h.Has("x-forwarded-for") {
		h.Set("x-forwarded-for", x.Client.Addr.Addr().String())
	}
	for _, m := range s.add {
		h.Set(m.Name, m.Value)
	}
	return c, nil
}

func (s *authzHTTP) verdict(a *CallAnswer) (*authzVerdict, error) {
	if a.Status >= 500 {
		return nil, fmt.Errorf("status %d", a.Status)
	}
	v := &authzVerdict{allowed: a.Status == 200, status: a.Status}
	for _, m := range a.Header.Fields() {
		m = message.Field{Name: strings.Clone(m.Name), Value: strings.Clone(m.Value)}
		ok := changeable(m.Name, m.Value)
		if !v.allowed {
			if ok && (s.anyClient || s.client.has(m.Name)) && m.Name != "date" && m.Name != "server" && m.Name != "content-type" {
				v.header = append(v.header, m)
			}
			continue
		}
		if ok && s.upstreamAppend.has(m.Name) {
			v.add = append(v.add, m)
		} else if ok && s.upstream.has(m.Name) {
			v.set = append(v.set, m)
		}
		if ok && s.clientOnSuccess.has(m.Name) {
			v.answerAdd = append(v.answerAdd, m)
		}
	}
	if !v.allowed {
		v.body = string(a.Body)
		return v, nil
	}
	if list, ok := a.Header.Lookup("x-envoy-auth-headers-to-remove"); ok {
		for n := range strings.SplitSeq(list, ",") {
			if n = lower(strings.TrimSpace(n)); changeable(n, "") {
				v.remove = append(v.remove, strings.Clone(n))
			}
		}
	}
	return v, nil
}
