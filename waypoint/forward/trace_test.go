package forward

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/trace"
)

// collector is an OpenTelemetry collector of grpc-go's, of traces or logs, which M is a message of. kind is trace or logs.
func collector[M any](t *testing.T, kind string) (addr string, got chan *M) {
	t.Helper()
	got = make(chan *M, 16)
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "opentelemetry.proto.collector." + kind + ".v1." + strings.ToUpper(kind[:1]) + kind[1:] + "Service", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			m := new(M)
			if err := dec(m); err != nil {
				return nil, err
			}
			got <- m
			return &emptypb.Empty{}, nil
		}}},
	}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String(), got
}

// traced makes the service HTTP with this tracing, to the cluster reviews.
func (r *rig) traced(tracing string) {
	r.t.Helper()
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "reviews"}, "decorator": {"operation": "reviews.demo.svc.cluster.local:9080/*"}}]`)
	target := r.snap.Load().Listener.(targets)[vip]
	h := *target.HTTP
	c, err := trace.Compile(parse(r.t, &hcmv3.HttpConnectionManager_Tracing{}, tracing))
	if err != nil {
		r.t.Fatal(err)
	}
	h.Tracing, h.SampleByRequestID = c, true
	r.target(&listener.Target{HTTP: &h, H2C: &h})
}

const otlpTracing = `{"random_sampling": {"value": 0}, "custom_tags": [{"tag": "istio.mesh_id", "literal": {"value": "m1"}}, {"tag": "color", "request_header": {"name": "X-Color", "default_value": "none"}}],
 "provider": {"name": "otel", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig", "service_name": "waypoint.demo",
 "grpc_service": {"envoy_grpc": {"cluster_name": "otel", "authority": "otel.demo"}}}}}`

func TestOneTraceHasEveryHop(t *testing.T) {
	r := newRig(t)
	addr, got := collector[tracepb.TracesData](t, "trace")
	r.cluster("otel", h2, addr)
	seen := make(chan http.Header, 1)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) { seen <- q.Header.Clone() }))
	r.traced(otlpTracing)

	const trace, client = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	req, _ := http.NewRequest("GET", "http://reviews:9080/a?b=c", nil)
	req.Header.Set("traceparent", "00-"+trace+"-"+client+"-01")
	req.Header.Set("tracestate", "vendor=1")
	req.Header.Set("x-color", "red")
	resp, err := r.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	h := <-seen
	m := <-got
	rs := m.GetResourceSpans()[0]
	if a := rs.GetResource().GetAttributes(); len(a) != 1 || a[0].GetKey() != "service.name" || a[0].GetValue().GetStringValue() != "waypoint.demo" {
		t.Errorf("resource: %v", a)
	}
	spans := rs.GetScopeSpans()[0].GetSpans()
	if len(spans) != 1 {
		t.Fatalf("%d spans, want 1", len(spans))
	}
	s := spans[0]
	if x := hex.EncodeToString(s.GetTraceId()); x != trace {
		t.Errorf("trace %s", x)
	}
	if x := hex.EncodeToString(s.GetParentSpanId()); x != client {
		t.Errorf("the waypoint's span is below %s, not the client's", x)
	}
	if s.GetName() != "reviews.demo.svc.cluster.local:9080/*" || s.GetKind() != tracepb.Span_SPAN_KIND_SERVER || s.GetTraceState() != "vendor=1" || s.GetEndTimeUnixNano() < s.GetStartTimeUnixNano() {
		t.Errorf("span: %v", s)
	}
	if want := "00-" + trace + "-" + hex.EncodeToString(s.GetSpanId()) + "-01"; h.Get("traceparent") != want || h.Get("tracestate") != "vendor=1" {
		t.Errorf("the endpoint was told %q %q, want %q", h.Get("traceparent"), h.Get("tracestate"), want)
	}
	tags := map[string]string{}
	for _, a := range s.GetAttributes() {
		tags[a.GetKey()] = a.GetValue().GetStringValue()
	}
	for k, v := range map[string]string{
		"component": "proxy", "http.method": "GET", "http.url": "http://reviews:9080/a?b=c", "http.protocol": "HTTP/1.1", "http.status_code": "200",
		"upstream_cluster": "reviews", "response_flags": "-", "guid:x-request-id": h.Get("x-request-id"), "istio.mesh_id": "m1", "color": "red", "peer.address": "127.0.0.1",
	} {
		if tags[k] != v {
			t.Errorf("tag %s is %q, want %q", k, tags[k], v)
		}
	}
}

// TestAnEndpointThatIsNotToBeToldHearsOfNoTrace: a span is recorded as ever, below the caller's.
func TestAnEndpointThatIsNotToBeToldHearsOfNoTrace(t *testing.T) {
	r := newRig(t)
	addr, got := collector[tracepb.TracesData](t, "trace")
	r.cluster("otel", h2, addr)
	seen := make(chan http.Header, 1)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) { seen <- q.Header.Clone() }))
	for _, tracing := range []string{strings.Replace(otlpTracing, "{", `{"no_context_propagation": true, `, 1), `{"no_context_propagation": true}`} {
		r.traced(tracing)
		req, _ := http.NewRequest("GET", "http://reviews:9080/", nil)
		for n, v := range map[string]string{
			"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "vendor=1", "b3": "a3ce929d0e0e4736-00f067aa0ba902b7-1",
			"x-b3-traceid": "a3ce929d0e0e4736", "x-b3-spanid": "00f067aa0ba902b7", "x-b3-sampled": "1",
		} {
			req.Header.Set(n, v)
		}
		resp, err := r.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		for n, v := range <-seen {
			if n = strings.ToLower(n); strings.HasPrefix(n, "trace") || strings.Contains(n, "b3") {
				t.Errorf("the endpoint was told %s: %s", n, v)
			}
		}
	}
	s := (<-got).GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()
	if len(s) != 1 || hex.EncodeToString(s[0].GetParentSpanId()) != "00f067aa0ba902b7" || s[0].GetTraceState() != "vendor=1" {
		t.Errorf("spans: %v", s)
	}
}

func TestTheCallersDecisionNotToRecordIsObeyed(t *testing.T) {
	r := newRig(t)
	addr, got := collector[tracepb.TracesData](t, "trace")
	r.cluster("otel", h2, addr)
	seen := make(chan string, 1)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) { seen <- q.Header.Get("traceparent") }))
	r.traced(strings.Replace(otlpTracing, `"value": 0`, `"value": 100`, 1))
	for _, parent := range []string{"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", ""} {
		req, _ := http.NewRequest("GET", "http://reviews:9080/", nil)
		if parent != "" {
			req.Header.Set("traceparent", parent)
		}
		resp, err := r.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if v := <-seen; v == parent || len(v) != 55 || parent != "" && (v[:35] != parent[:35] || v[53:] != "00") || parent == "" && v[53:] != "01" {
			t.Errorf("%q: the endpoint was told %q", parent, v)
		}
	}
	if s := (<-got).GetResourceSpans()[0].GetScopeSpans()[0].GetSpans(); len(s) != 1 || len(s[0].GetParentSpanId()) != 0 {
		t.Errorf("spans: %v", s) // only that of the second request
	}
}

func TestZipkinGetsJSONAndEndpointsGetB3(t *testing.T) {
	r := newRig(t)
	got := make(chan []map[string]any, 4)
	r.cluster("zipkin", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		var list []map[string]any
		if err := json.NewDecoder(q.Body).Decode(&list); err != nil || q.URL.Path != "/api/v2/spans" || q.Host != "zipkin.demo" || q.Header.Get("content-type") != "application/json" {
			t.Errorf("%v %v %v", err, q.URL, q.Host)
		}
		got <- list
		w.WriteHeader(202)
	}))
	seen := make(chan http.Header, 1)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) { seen <- q.Header.Clone(); w.WriteHeader(503) }))
	r.traced(`{"provider": {"name": "zipkin", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig", "collector_cluster": "zipkin",
	 "collector_endpoint": "/api/v2/spans", "collector_hostname": "zipkin.demo", "collector_endpoint_version": "HTTP_JSON", "trace_id_128bit": true, "shared_span_context": false}}}`)
	req, _ := http.NewRequest("GET", "http://reviews:9080/", nil)
	req.Header.Set("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-1")
	resp, err := r.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	h, list := <-seen, <-got
	if len(list) != 1 {
		t.Fatal(list)
	}
	s := list[0]
	tags := s["tags"].(map[string]any)
	if s["traceId"] != "a3ce929d0e0e4736" || s["parentId"] != "00f067aa0ba902b7" || s["kind"] != "SERVER" || tags["http.status_code"] != "503" || tags["error"] != "true" {
		t.Errorf("span: %v", s)
	}
	if h.Get("x-b3-traceid") != s["traceId"] || h.Get("x-b3-spanid") != s["id"] || h.Get("x-b3-parentspanid") != s["parentId"] || h.Get("x-b3-sampled") != "1" ||
		h.Get("b3") != fmt.Sprintf("%v-%v-1", s["traceId"], s["id"]) {
		t.Errorf("the endpoint was told %v; span %v", h, s)
	}
}

func TestACollectorThatDoesNotAnswerHoldsNothingUp(t *testing.T) {
	r := newRig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r.cluster("otel", h2, l.Addr().String())
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, "ok") }))
	r.traced(strings.Replace(otlpTracing, `"value": 0`, `"value": 100`, 1))
	w, c := r.proxy.workers[0], r.client()
	for range 20 {
		resp, err := c.Get("http://reviews:9080/")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	w.loop.OnLoop(func() {
		for _, b := range w.outboxes {
			o := b.(*outbox[*trace.Span])
			o.busy = true
			for len(o.items) < outboxMax {
				o.add(&trace.Span{}, 1)
			}
			o.busy = false
			o.send()
			for o.room() {
				o.add(&trace.Span{}, 1)
			}
			if !o.busy || len(o.items) != outboxMax {
				t.Errorf("busy %v, %d spans", o.busy, len(o.items))
			}
		}
	})
	var text strings.Builder
	if err := r.metrics.Expose(&text); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), `ambit_trace_spans_total{result="dropped"} 1`) {
		t.Error("no span was counted as dropped")
	}
}

func TestSpansOfGreatSizeGoInSeveralCallsAndAreBounded(t *testing.T) {
	o := &outbox[*trace.Span]{kind: &exports{counts: telemetry.NewRegistry(telemetry.Config{}).Counters("x_total", "", "result")}, busy: true}
	s := &trace.Span{Tags: []trace.Tag{{Key: "user_agent", Value: strings.Repeat("x", 60<<10)}}} // as long as a header may be
	n := 0
	for o.room() {
		o.add(s, s.Size())
		n++
	}
	if o.bytes > outboxBytes+s.Size() || n > 150 {
		t.Errorf("%d spans of %d bytes are held", n, o.bytes)
	}
	for len(o.items) > 0 {
		size := 0
		for _, x := range o.batch() {
			size += x.Size()
		}
		if size == 0 || size > batchBytes {
			t.Fatalf("a call carries %d bytes", size)
		}
	}
	if o.bytes != 0 || len(o.sizes) != 0 {
		t.Errorf("%d bytes of nothing", o.bytes)
	}
	o.add(&trace.Span{}, 2*batchBytes)
	if len(o.batch()) != 1 {
		t.Error("a span that is larger than a call never goes")
	}
}
