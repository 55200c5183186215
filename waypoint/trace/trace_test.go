package trace

import (
	"encoding/hex"
	"strings"
	"testing"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

const (
	id  = "4bf92f3577b34da6a3ce929d0e0e4736"
	sub = "00f067aa0ba902b7"
)

func header(kv ...string) *message.Header {
	h := &message.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

func TestContextsAreReadFromEveryForm(t *testing.T) {
	for name, x := range map[string]struct {
		h                *message.Header
		forms            Forms
		trace            string
		sampled, decided bool
	}{
		"W3C":                        {header("traceparent", "00-"+id+"-"+sub+"-01"), W3C, id, true, true},
		"W3C not sampled":            {header("traceparent", "00-"+id+"-"+sub+"-00"), W3C, id, false, true},
		"W3C of a later version":     {header("traceparent", "01-"+id+"-"+sub+"-01-more"), W3C, id, true, true},
		"W3C that is too long":       {header("traceparent", "00-"+id+"-"+sub+"-01-more"), 0, "", false, false},
		"W3C in capitals":            {header("traceparent", "00-"+strings.ToUpper(id)+"-"+sub+"-01"), 0, "", false, false},
		"W3C of version ff":          {header("traceparent", "ff-"+id+"-"+sub+"-01"), 0, "", false, false},
		"W3C without a trace":        {header("traceparent", "00-"+strings.Repeat("0", 32)+"-"+sub+"-01"), 0, "", false, false},
		"W3C without a span":         {header("traceparent", "00-"+id+"-0000000000000000-01"), 0, "", false, false},
		"B3":                         {header("x-b3-traceid", id, "x-b3-spanid", sub, "x-b3-sampled", "1"), B3Multi, id, true, true},
		"B3 of 64 bits":              {header("x-b3-traceid", id[16:], "x-b3-spanid", sub), B3Multi, strings.Repeat("0", 16) + id[16:], false, false},
		"B3 for debugging":           {header("x-b3-traceid", id, "x-b3-spanid", sub, "x-b3-flags", "1"), B3Multi, id, true, true},
		"B3 with nothing but a no":   {header("x-b3-sampled", "0"), B3Multi, "", false, true},
		"B3 in one header":           {header("b3", id+"-"+sub+"-1-"+sub), B3Single, id, true, true},
		"B3 in one, undecided":       {header("b3", id+"-"+sub), B3Single, id, false, false},
		"B3 in one, a no":            {header("b3", "0"), B3Single, "", false, true},
		"B3 in one, malformed":       {header("b3", id+"-"+sub+"-2"), 0, "", false, false},
		"nothing":                    {header("traceparent", ""), 0, "", false, false},
		"W3C first where both stand": {header("b3", id[16:]+"-"+sub+"-0", "traceparent", "00-"+id+"-"+sub+"-01"), W3C | B3Single, id, true, true},
	} {
		c, forms := Extract(x.h, W3C)
		got := ""
		if c.Valid() {
			got = hex.EncodeToString(c.Trace[:])
		}
		if forms != x.forms || got != x.trace || c.Sampled != x.sampled || c.Decided != x.decided {
			t.Errorf("%s: %+v %b", name, c, forms)
		}
	}
}

func compile(t *testing.T, json string) (*Config, error) {
	t.Helper()
	var p hcmv3.HttpConnectionManager_Tracing
	if err := protojson.Unmarshal([]byte(json), &p); err != nil {
		t.Fatal(err)
	}
	return Compile(&p)
}

// TestTheRequestIDDecidesAsInEnvoy: the first eight digits are drawn from, the digit of the version tells what was decided.
func TestTheRequestIDDecidesAsInEnvoy(t *testing.T) {
	one, _ := compile(t, `{"random_sampling": {"value": 1}}`)
	none, _ := compile(t, `{"overall_sampling": {"value": 0}}`)
	for _, x := range []struct {
		c       *Config
		id      string
		wanted  bool
		want    bool
		becomes string
	}{
		{one, "00000063-0000-4000-8000-000000000000", false, true, "00000063-0000-9000-8000-000000000000"},  // 99
		{one, "00000064-0000-4000-8000-000000000000", false, false, "00000064-0000-4000-8000-000000000000"}, // 100
		{one, "00000064-0000-4000-8000-000000000000", true, true, "00000064-0000-b000-8000-000000000000"},
		{one, "00000064-0000-9000-8000-000000000000", false, true, "00000064-0000-9000-8000-000000000000"},
		{one, "00000064-0000-a000-8000-000000000000", false, true, "00000064-0000-a000-8000-000000000000"},
		{one, "mine", true, false, "mine"},
		{none, "00000000-0000-9000-8000-000000000000", false, false, "00000000-0000-9000-8000-000000000000"},
		{none, "00000000-0000-4000-8000-000000000000", true, false, "00000000-0000-4000-8000-000000000000"},
	} {
		h := header("x-request-id", x.id)
		if got := x.c.Decide(h, true, x.wanted, 0); got != x.want || h.Get("x-request-id") != x.becomes {
			t.Errorf("%s wanted %v: %v, %s", x.id, x.wanted, got, h.Get("x-request-id"))
		}
	}
	if !one.Decide(header(), false, false, 99) || one.Decide(header(), false, false, 100) {
		t.Error("without request IDs the draw decides")
	}
}

func TestTracingThatIsNotUnderstoodNamesTheField(t *testing.T) {
	for json, want := range map[string]string{
		`{"custom_tags": [{"literal": {"value": "x"}}]}`:                                                                                                              "custom_tags[0].tag",
		`{"custom_tags": [{"tag": "x", "value": "%NO%"}]}`:                                                                                                            "custom_tags[0].value",
		`{"provider": {"name": "dd", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.DatadogConfig"}}}`:                                          "provider.typed_config: unknown tracer",
		`{"provider": {"name": "z", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig", "collector_endpoint_version": "HTTP_JSON"}}}`: "provider.typed_config.collector_cluster",
		`{"provider": {"name": "o", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"}}}`:                                     "provider.typed_config.grpc_service",
	} {
		if _, err := compile(t, json); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", json, err, want)
		}
	}
}

func FuzzContextsThatAreWrittenAreReadAgain(f *testing.F) {
	f.Add("00-"+id+"-"+sub+"-01", id+"-"+sub+"-1-"+sub, id, sub, "1")
	f.Fuzz(func(t *testing.T, parent, b3, traceID, spanID, sampled string) {
		h := header("traceparent", parent, "b3", b3, "x-b3-traceid", traceID, "x-b3-spanid", spanID, "x-b3-sampled", sampled)
		for _, first := range []Forms{W3C, B3Multi} {
			c, _ := Extract(h, first)
			if !c.Valid() {
				continue
			}
			for _, form := range []Forms{W3C, B3Multi, B3Single} {
				out := header()
				c.Inject(out, form, [8]byte{})
				d, forms := Extract(out, form)
				if forms != form || d.Trace != c.Trace || d.Span != c.Span || d.Sampled != c.Sampled {
					t.Fatalf("%+v by %b: %+v, %b", c, form, d, forms)
				}
			}
		}
	})
}

// A client chooses what its tracestate says; protobuf takes no string that is not UTF-8, and a batch is one message.
func TestAHostileTracestateDoesNotCostOthersTheirSpans(t *testing.T) {
	s := &otlp{service: "w", post: &post{cluster: "otel", host: "otel", path: "/v1/traces"}}
	for _, state := range []string{"vendor=\xff", "a=\x01", "ok=1"} {
		c, err := s.Call([]*Span{{Context: Context{State: state}, Name: "x\xff"}, {Name: "another's"}})
		if err != nil {
			t.Errorf("%q: %v", state, err)
			continue
		}
		var m tracepb.TracesData
		if err := proto.Unmarshal(c.Body, &m); err != nil {
			t.Fatal(err)
		}
		spans := m.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()
		if want := map[string]string{"ok=1": "ok=1"}[state]; len(spans) != 2 || spans[0].GetTraceState() != want {
			t.Errorf("%q: %v", state, spans)
		}
	}
}
