package forward

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/accesslog"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// What istiod makes of an extension provider envoyOtelAls.
const otelLog = `{"name": "otel", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
 "common_config": {"log_name": "otel_envoy_accesslog", "transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "otel", "authority": "otel.demo"}},
  "filter_state_objects_to_log": ["upstream_peer"]}, "disable_builtin_labels": true,
 "body": {"string_value": "%REQ(:METHOD)% %REQ(:PATH)% \"%REQ(USER-AGENT)%\" %RESPONSE_CODE%\n"}, "attributes": {"values": [{"key": "agent", "value": {"string_value": "%REQ(USER-AGENT)%"}}]}}}`

func TestALogOfStandardErrorDoesNotGoToStandardOutput(t *testing.T) {
	out, errOut := &logBuffer{}, &logBuffer{}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { stop(); wg.Wait() })
	writer := func(to *logBuffer) *telemetry.Writer {
		w := telemetry.NewWriter(telemetry.WriterConfig{Out: to})
		wg.Go(func() { _ = w.Run(ctx) }) // ends with ctx only
		return w
	}
	r := newRigWith(t, func(c *Config) { c.Lines, c.ErrorLines = writer(out), writer(errOut) })
	r.cluster("reviews", "", backend(t, func(http.ResponseWriter, *http.Request) {}))
	r.routes(toReviews)
	const log = `{"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stderr", "log_format": {"text_format_source": {"inline_string": "%RESPONSE_CODE% to errors\n"}}}}`
	r.logs("%RESPONSE_CODE% to output", log)
	get(t, r.client(), "/")
	if got := out.await(t, 1); got != "200 to output\n" {
		t.Errorf("standard output has %q", got)
	}
	if got := errOut.await(t, 1); got != "200 to errors\n" {
		t.Errorf("standard error has %q", got)
	}
}

func TestACollectorIsToldOfRequestsThatAreLogged(t *testing.T) {
	r := newRig(t)
	addr, got := collector[logspb.LogsData](t, "logs")
	r.cluster("otel", h2, addr)
	r.cluster("reviews", "", backend(t, func(http.ResponseWriter, *http.Request) {}))
	r.routes(toReviews)
	h := *r.snap.Load().Listener.(targets)[vip].HTTP
	var err error
	if h.Logs, err = accesslog.Compile([]*accesslogv3.AccessLog{parse(t, &accesslogv3.AccessLog{}, otelLog)}); err != nil {
		t.Fatal(err)
	}
	r.target(&listener.Target{HTTP: &h, H2C: &h})

	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	req, _ := http.NewRequest("GET", "http://reviews:9080/a", nil)
	req.Header.Set("traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	req.Header.Set("user-agent", "a\"\xffb")
	resp, err := r.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	records := (<-got).GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()
	if len(records) != 1 {
		t.Fatalf("%d records", len(records))
	}
	x := records[0]
	if got := x.GetBody().GetStringValue(); got != `GET /a "a\x22\xFFb" 200` {
		t.Errorf("body %q", got)
	}
	if a := x.GetAttributes(); len(a) != 1 || a[0].GetKey() != "agent" || a[0].GetValue().GetStringValue() != "a\"\uFFFDb" {
		t.Errorf("attributes %v", a)
	}
	if hex.EncodeToString(x.GetTraceId()) != trace || x.GetTimeUnixNano() == 0 {
		t.Errorf("record %v", x)
	}
	var text strings.Builder
	for text.Reset(); !strings.Contains(text.String(), `ambit_access_log_exports_total{result="sent"} 1`); { // ends with the test's time
		text.Reset()
		if err := r.metrics.Expose(&text); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOperatorsOfLogFormatsHaveTheirValues(t *testing.T) {
	r := newRig(t)
	var out bytes.Buffer
	lines := telemetry.NewWriter(telemetry.WriterConfig{Out: &out})
	w := r.proxy.workers[0]
	w.loop.OnLoop(func() {
		r.proxy.cfg.Lines, r.proxy.cfg.Hostname = lines, "waypoint-1"
		r.proxy.cfg.Env = func(name string) (string, bool) { return "value", name == "COLOR" }
	})
	addr := backend(t, func(http.ResponseWriter, *http.Request) {})
	r.cluster("reviews", "", addr)
	r.routes(toReviews)
	h := *r.snap.Load().Listener.(targets)[vip].HTTP
	var err error
	h.Logs, err = accesslog.Compile([]*accesslogv3.AccessLog{parse(t, &accesslogv3.AccessLog{}, `{"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stdout",
	 "log_format": {"text_format_source": {"inline_string": "%PATH% %QUERY_PARAM(b)% %QUERY_PARAM(x)% %ENVIRONMENT(COLOR)% %ENVIRONMENT(X)% %HOSTNAME% %STREAM_ID% %UPSTREAM_HOST_NAME% %UPSTREAM_REMOTE_PORT% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_TLS_VERSION% %START_TIME(in words)% %REQ(X-LONG):3% %TRAILER(x)% %CONNECTION_ID% | %REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%\n"}}}}`)})
	if err != nil {
		t.Fatal(err)
	}
	r.target(&listener.Target{HTTP: &h, H2C: &h})
	req, _ := http.NewRequest("GET", "http://reviews:9080/a?b=c%22&d", nil)
	req.Header.Set("x-request-id", "437bf158-1ff9-4665-8921-c352f6e70f4c")
	req.Header.Set("x-long", "12345")
	resp, err := r.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for end := time.Now().Add(10 * time.Second); out.Len() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		_ = lines.Run(ended) // writes what there is
	}
	_, port, _ := net.SplitHostPort(addr)
	got, times, _ := strings.Cut(out.String(), " | ")
	want := "/a?b=c%22&d c%22 - value - waypoint-1 437bf158-1ff9-4665-8921-c352f6e70f4c " + addr + " " + port + " 127.0.0.1 TLSv1.3 in words 123 - -"
	if got != want || len(strings.Fields(times)) != 3 || strings.Contains(times, "-") {
		t.Errorf("got  %s | %s\nwant %s", got, times, want)
	}
}
