package filter

//lint:file-ignore SA1019 fields that Envoy calls deprecated are still sent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// rpcService is a gRPC service in one of the clusters.
type rpcService struct {
	cluster, authority string
	timeout            time.Duration
}

func compileRPC(p *corev3.GrpcService, timeout time.Duration) (*rpcService, error) {
	e := p.GetEnvoyGrpc()
	if e == nil {
		return nil, field.Errorf("envoy_grpc", "required; other kinds of clients are not supported")
	}
	s := &rpcService{cluster: e.GetClusterName(), authority: e.GetAuthority()}
	if s.cluster == "" {
		return nil, field.Errorf("envoy_grpc.cluster_name", "required")
	}
	if s.authority == "" {
		s.authority = s.cluster
	}
	var err error
	s.timeout, err = field.Duration("timeout", p.GetTimeout(), timeout)
	return s, err
}

// call is a unary call of method (gRPC over HTTP/2, PROTOCOL-HTTP2.md).
func (s *rpcService) call(method string, m proto.Message) (*Call, error) {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 5, 512), m)
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
	c := &Call{Cluster: s.cluster, Body: b, Timeout: s.timeout}
	c.Req = message.Request{Method: "POST", Scheme: "http", Authority: s.authority, Path: method, Proto: message.HTTP2, ContentLength: -1}
	h := &c.Req.Header
	h.Add("content-type", "application/grpc")
	h.Add("te", "trailers")
	h.Add("user-agent", "ambit-waypoint")
	if s.timeout > 0 {
		h.Add("grpc-timeout", strconv.FormatInt(s.timeout.Milliseconds(), 10)+"m")
	}
	return c, nil
}

// answer reads the one message of a unary call's answer.
func (s *rpcService) answer(a *CallAnswer, m proto.Message) error {
	if a.Status != 200 {
		return fmt.Errorf("status %d", a.Status)
	}
	status, ok := a.Trailer.Lookup("grpc-status")
	if !ok {
		status = a.Header.Get("grpc-status")
	}
	if status != "0" {
		text := a.Trailer.Get("grpc-message")
		if text == "" {
			text = a.Header.Get("grpc-message")
		}
		return fmt.Errorf("gRPC status %q %s", status, text)
	}
	if len(a.Body) < 5 || a.Body[0] != 0 || int(binary.BigEndian.Uint32(a.Body[1:])) != len(a.Body)-5 {
		return errors.New("malformed gRPC message")
	}
	return proto.Unmarshal(a.Body[5:], m)
}

// authzGRPC asks by envoy.service.auth.v3.Authorization.
type authzGRPC struct{ rpcService }

func compileAuthzGRPC(p *corev3.GrpcService) (authorizer, error) {
	s, err := compileRPC(p, authzTimeout)
	if err != nil {
		return nil, err
	}
	return &authzGRPC{*s}, nil
}

func (g *authzGRPC) call(f *extAuthz, x *Exchange, body []byte, part *authzPart) (*Call, error) {
	r := x.Req
	h := &authv3.AttributeContext_HttpRequest{
		Id: validText(r.Header.Get("x-request-id")), Method: r.Method, Path: r.Path, Host: r.Authority, Scheme: r.Scheme,
		Protocol: r.Proto.String(), Size: r.ContentLength, Headers: map[string]string{},
	}
	add := func(n, v string) {
		if f.allowed != nil && !f.allowed.has(n) || f.forbidden.has(n) {
			return
		}
		v = validText(v)
		if old, ok := h.Headers[n]; ok {
			v = old + "," + v
		}
		h.Headers[n] = v
	}
	add(":method", r.Method)
	add(":path", r.Path)
	add(":authority", r.Authority)
	add(":scheme", r.Scheme)
	for _, m := range r.Header.Fields() {
		add(m.Name, m.Value)
	}
	if body != nil {
		if f.body.bytes {
			h.RawBody = body
		} else {
			h.Body = validText(string(body))
		}
		add("x-envoy-auth-partial-body", strconv.FormatBool(int64(len(body)) < r.ContentLength))
	}
	attr := &authv3.AttributeContext{
		Source:      &authv3.AttributeContext_Peer{Address: address(x.Client.Addr), Principal: x.Client.Principal},
		Destination: &authv3.AttributeContext_Peer{Address: address(x.Dest), Principal: x.Local},
		Request:     &authv3.AttributeContext_Request{Time: timestamppb.New(x.Now), Http: h},
	}
	if part != nil {
		attr.ContextExtensions = part.extensions
	}
	return g.rpcService.call("/envoy.service.auth.v3.Authorization/Check", &authv3.CheckRequest{Attributes: attr})
}

// validText is s as a string of protobuf may have it, as Envoy does it: with another the message could not be sent, and a
// client would choose that the service is not asked.
func validText(s string) string { return strings.ToValidUTF8(s, "!") }

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

func (g *authzGRPC) verdict(a *CallAnswer) (*authzVerdict, error) {
	var p authv3.CheckResponse
	if err := g.answer(a, &p); err != nil {
		return nil, err
	}
	v := &authzVerdict{}
	if p.GetStatus().GetCode() == 0 {
		v.allowed = true
		ok := p.GetOkResponse()
		for _, n := range ok.GetHeadersToRemove() {
			if n = lower(n); changeable(n, "") {
				v.remove = append(v.remove, n)
			}
		}
		v.set, v.add = options(ok.GetHeaders())
		set, add := options(ok.GetResponseHeadersToAdd())
		v.answerAdd = append(set, add...)
		return v, nil
	}
	if p.GetErrorResponse() != nil {
		return nil, errNoVerdict
	}
	d := p.GetDeniedResponse()
	v.status, v.body = int(d.GetStatus().GetCode()), d.GetBody()
	if v.status < 200 || v.status > 599 {
		v.status = 403
	}
	set, add := options(d.GetHeaders())
	v.header = append(set, add...)
	return v, nil
}

// options sorts headers into those that replace and those that are added; what may not be changed is left out.
func options(list []*corev3.HeaderValueOption) (set, add []message.Field) {
	for _, o := range list {
		m := message.Field{Name: lower(o.GetHeader().GetKey()), Value: o.GetHeader().GetValue()}
		if raw := o.GetHeader().GetRawValue(); len(raw) > 0 {
			m.Value = string(raw)
		}
		if !changeable(m.Name, m.Value) {
			continue
		}
		if o.GetAppend().GetValue() || o.GetAppend() == nil && o.GetAppendAction() == corev3.HeaderValueOption_ADD_IF_ABSENT {
			add = append(add, m)
			continue
		}
		set = append(set, m)
	}
	return set, add
}
