package trace

import (
	"net/url"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// callTime is how long a collector may take if the configuration does not say.
const callTime = 5 * time.Second

// otlp sends spans by OpenTelemetry's protocol, over gRPC or HTTP.
type otlp struct {
	rpc     *filter.RPC // nil: over HTTP
	post    *post
	service string
}

func compileOTLP(p *tracev3.OpenTelemetryConfig) (Sink, error) {
	s := &otlp{service: p.GetServiceName()}
	if s.service == "" {
		s.service = "unknown_service:envoy" // Envoy's
	}
	var err error
	switch {
	case p.GetSampler() != nil && p.GetSampler().GetTypedConfig().MessageName() != "envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig":
		return nil, field.Errorf("sampler", "unsupported; requests are sampled by random_sampling")
	case p.GetGrpcService() != nil && p.GetHttpService() != nil:
		return nil, field.Errorf("http_service", "grpc_service is set too")
	case p.GetGrpcService() != nil:
		s.rpc, err = filter.CompileRPC(p.GetGrpcService(), callTime)
		return s, field.At(err, "grpc_service")
	case p.GetHttpService() != nil:
		s.post, err = compilePost(p.GetHttpService(), "application/x-protobuf")
		return s, field.At(err, "http_service")
	}
	return nil, field.Errorf("grpc_service", "it or http_service is required")
}

// Call implements Sink.
func (s *otlp) Call(spans []*Span) (*filter.Call, error) {
	scope := &tracepb.ScopeSpans{Spans: make([]*tracepb.Span, len(spans))}
	for i, p := range spans {
		scope.Spans[i] = p.otlp()
	}
	// The same bytes as an ExportTraceServiceRequest, whose only field is the same one.
	m := &tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{attribute("service.name", s.service)}},
		ScopeSpans: []*tracepb.ScopeSpans{scope},
	}}}
	if s.rpc != nil {
		return s.rpc.Call("/opentelemetry.proto.collector.trace.v1.TraceService/Export", m)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return s.post.call(b), nil
}

// Check implements Sink.
func (s *otlp) Check(a *filter.CallAnswer) error {
	if s.rpc == nil {
		return s.post.check(a)
	}
	return s.rpc.Answer(a, &emptypb.Empty{}) // what was refused in part is not sent again
}

func attribute(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: strings.ToValidUTF8(value, "?")}}}
}

// stateOf is a tracestate that may be told; "" of one that is malformed (W3C Trace Context 3.3.1: printable ASCII).
func stateOf(s string) string {
	for i := range len(s) {
		if s[i] < 0x20 && s[i] != '\t' || s[i] > 0x7e {
			return ""
		}
	}
	return s
}

func (s *Span) otlp() *tracepb.Span {
	p := &tracepb.Span{
		TraceId: s.Trace[:], SpanId: s.Span[:], TraceState: stateOf(s.State), Name: strings.ToValidUTF8(s.Name, "?"), Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: uint64(s.Start.UnixNano()), EndTimeUnixNano: uint64(s.End.UnixNano()), Attributes: make([]*commonpb.KeyValue, len(s.Tags)),
	}
	if s.Parent != [8]byte{} {
		p.ParentSpanId = s.Parent[:]
	}
	for i, t := range s.Tags {
		p.Attributes[i] = attribute(t.Key, t.Value)
	}
	if s.Failed {
		p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}
	}
	return p
}

// post is an HTTP service that takes spans.
type post struct {
	cluster, host, path, scheme, content string
	header                               []message.Field
	timeout                              time.Duration
}

func compilePost(p *corev3.HttpService, content string) (*post, error) {
	u, err := url.Parse(p.GetHttpUri().GetUri())
	switch {
	case err != nil:
		return nil, field.At(err, "http_uri.uri")
	case u.Host == "":
		return nil, field.Errorf("http_uri.uri", "%q has no host", p.GetHttpUri().GetUri())
	case p.GetHttpUri().GetCluster() == "":
		return nil, field.Errorf("http_uri.cluster", "required")
	}
	s := &post{cluster: p.GetHttpUri().GetCluster(), host: u.Host, path: u.RequestURI(), scheme: "http", content: content}
	if s.timeout, err = field.Duration("http_uri.timeout", p.GetHttpUri().GetTimeout(), callTime); err != nil {
		return nil, err
	}
	for _, o := range p.GetRequestHeadersToAdd() {
		f := message.Field{Name: strings.ToLower(o.GetHeader().GetKey()), Value: o.GetHeader().GetValue()}
		if !message.LowerToken(f.Name) || !message.Value(f.Value) {
			return nil, field.Errorf("request_headers_to_add", "malformed header %q", f.Name)
		}
		s.header = append(s.header, f)
	}
	return s, nil
}

func (s *post) call(body []byte) *filter.Call {
	c := &filter.Call{Cluster: s.cluster, Body: body, Timeout: s.timeout}
	c.Req = message.Request{Method: "POST", Scheme: s.scheme, Authority: s.host, Path: s.path, Proto: message.HTTP11, ContentLength: int64(len(body))}
	c.Req.Header.Add("content-type", s.content)
	for _, f := range s.header {
		c.Req.Header.Add(f.Name, f.Value)
	}
	return c
}

func (s *post) check(a *filter.CallAnswer) error {
	if a.Status/100 != 2 {
		return field.Errorf("status", "%d", a.Status)
	}
	return nil
}
