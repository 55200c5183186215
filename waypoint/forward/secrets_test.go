package forward

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/accesslog"
	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/trace"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// logBuffer takes the lines of logs.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// await waits until there are n lines.
func (l *logBuffer) await(t *testing.T, n int) string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); strings.Count(l.String(), "\n") < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %d lines:\n%s", n, l.String())
		}
	}
	return l.String()
}

// newLoggedRig is a rig whose lines of logs are kept.
func newLoggedRig(t *testing.T) (*rig, *logBuffer) {
	t.Helper()
	out := &logBuffer{}
	lines := telemetry.NewWriter(telemetry.WriterConfig{Out: out})
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = lines.Run(ctx) }) // ends with ctx only
	t.Cleanup(func() { stop(); wg.Wait() })
	return newRigWith(t, func(c *Config) {
		c.Lines = lines
		c.Env = func(name string) (string, bool) { return "PLANTED", name == "DB_PASSWORD" }
	}), out
}

// logs has the service's requests logged, in a text format each.
func (r *rig) logs(configs ...string) {
	r.t.Helper()
	h := *r.snap.Load().Listener.(targets)[vip].HTTP
	var list []*accesslogv3.AccessLog
	for _, c := range configs {
		if !strings.HasPrefix(c, "{") {
			c = fmt.Sprintf(`{"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stdout", "log_format": {"text_format_source": {"inline_string": %q}}}}`, c+"\n")
		}
		list = append(list, parse(r.t, &accesslogv3.AccessLog{}, c))
	}
	var err error
	if h.Logs, err = accesslog.Compile(list); err != nil {
		r.t.Fatal(err)
	}
	r.target(&listener.Target{HTTP: &h, H2C: &h})
}

// TestSecretsOfARequestAreInNoLogAndNoSpan: what is PLANTED is passed on, and not told.
func TestSecretsOfARequestAreInNoLogAndNoSpan(t *testing.T) { // B45
	r, out := newLoggedRig(t)
	spansAt, spans := collector[tracepb.TracesData](t, "trace")
	recordsAt, records := collector[logspb.LogsData](t, "logs")
	r.cluster("otel", h2, spansAt)
	r.cluster("otel-logs", h2, recordsAt)
	passed := make(chan *http.Request, 8)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		passed <- q
		w.Header().Set("set-cookie", "id=PLANTED")
		w.Header().Set("location", "/next?token=PLANTED")
	}))
	r.routes(toReviews)
	h := *r.snap.Load().Listener.(targets)[vip].HTTP
	var err error
	h.Tracing, err = trace.Compile(parse(t, &hcmv3.HttpConnectionManager_Tracing{}, strings.Replace(otlpTracing, `"custom_tags": [`, `"custom_tags": [
	 {"tag": "a", "request_header": {"name": "Authorization"}}, {"tag": "b", "value": "%REQ(COOKIE)% %PATH%"}, {"tag": "c", "environment": {"name": "DB_PASSWORD"}}, `, 1)))
	if err != nil {
		t.Fatal(err)
	}
	r.target(&listener.Target{HTTP: &h, H2C: &h})
	r.logs(strings.TrimSuffix(accesslog.DefaultFormat, "\n"),
		"%REQ(AUTHORIZATION)% %REQ(authorization):5% %REQ(X-NONE?COOKIE)% %RESP(SET-COOKIE)% %RESP(LOCATION)% %REQ(REFERER)% %REQ(X-API-KEY)% %REQ(X-WHO)% %PATH% %QUERY_PARAM(token)% %QUERY_PARAM(q)% %REQ_WITHOUT_QUERY(:PATH)% %ENVIRONMENT(DB_PASSWORD)%",
		`{"name": "j", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stdout", "log_format": {"json_format": {"auth": "%REQ(AUTHORIZATION)%", "path": "%REQ(:PATH)%"}}}}`,
		strings.ReplaceAll(strings.Replace(otelLog, `"key": "agent", "value": {"string_value": "%REQ(USER-AGENT)%"}`, `"key": "auth", "value": {"string_value": "%REQ(AUTHORIZATION)%"}`, 1), `"cluster_name": "otel"`, `"cluster_name": "otel-logs"`))

	const jwt = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.UExBTlRFRFBMQU5URUQ.UExBTlRFRFBMQU5URUQ"
	const path = "/shown/" + jwt + "?page=shown&access_token=PLANTED&q=" + jwt + "&next=%2Fa%3Fpassword%3DPLANTED"
	for _, c := range []*http.Client{r.client(), r.client2()} {
		req, _ := http.NewRequest("GET", "http://reviews:9080"+path, nil)
		for n, v := range map[string]string{
			"authorization": "Bearer PLANTED", "cookie": "session=PLANTED", "x-api-key": "PLANTED", "x-who": jwt, "referer": "http://user:PLANTED@a/?token=PLANTED",
			"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x-color": "shown",
		} {
			req.Header.Set(n, v)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if q := <-passed; q.RequestURI != path || q.Header.Get("authorization") != "Bearer PLANTED" || q.Header.Get("x-who") != jwt || q.Header.Get("cookie") != "session=PLANTED" {
			t.Errorf("the endpoint got %s %v", q.RequestURI, q.Header)
		}
		if v := resp.Header.Get("location"); v != "/next?token=PLANTED" {
			t.Errorf("the client got %q", v)
		}
	}
	told := map[string]string{"the logs": out.await(t, 6), "the spans": "", "the records": ""}
	for strings.Count(told["the spans"], "http.url") < 2 {
		told["the spans"] += prototext.Format(<-spans)
	}
	for strings.Count(told["the records"], "body") < 2 {
		told["the records"] += prototext.Format(<-records)
	}
	var metrics strings.Builder
	if err := r.metrics.Expose(&metrics); err != nil {
		t.Fatal(err)
	}
	told["the metrics"] = metrics.String()
	for what, text := range told {
		if i := strings.Index(text, "PLANTED"); i >= 0 || strings.Contains(text, "UExBTlRFR") {
			t.Errorf("a secret is in %s: %s", what, text)
		}
		if what != "the metrics" && (!strings.Contains(text, "page=shown") || !strings.Contains(text, "[redacted]")) {
			t.Errorf("%s do not tell the rest: %s", what, text)
		}
	}
}

// TestAHostileValueStaysInOneBoundedLineOfTheLog: whatever a client sends, a request is one line, that it cannot forge.
func TestAHostileValueStaysInOneBoundedLineOfTheLog(t *testing.T) { // B43
	r, out := newLoggedRig(t)
	r.cluster("reviews", "", backend(t, func(http.ResponseWriter, *http.Request) {}))
	r.routes(toReviews)
	const inJSON = `{"name": "j", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stdout", "log_format": {"json_format":
	 {"agent": "%REQ(USER-AGENT)%", "host": "%REQ(:AUTHORITY)%", "path": "%REQ(:PATH)%", "more": {"xff": "%REQ(X-FORWARDED-FOR)%"}}}}}`
	r.logs(strings.TrimSuffix(accesslog.DefaultFormat, "\n"), inJSON)
	long := strings.Repeat("x", 60_000)
	lines := 0
	for _, c := range []struct{ name, host, path, agent string }{
		{"quotes and backslashes", "h", "/", `a" 200 - "forged\" \`},
		{"bytes that are not UTF-8", "h", "/", "a\xff\xfe\xc2"},
		{"line ends of Unicode", "h", "/", "a\u2028b\u0085c\u202e"},
		{"64 KiB", "h", "/", long},
		{"64 KiB of quotes", "h", "/", strings.Repeat(`"`, 60_000)},
		{"64 KiB of two bytes each", "h", "/", strings.Repeat("\u00e9", 30_000)},
		{"a long path", "h", "/" + long, "a"},
		{"long everywhere", strings.Repeat("h", 20_000), "/" + long[:20_000], long[:20_000]},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, _ := http.NewRequest("GET", "http://reviews:9080"+c.path, nil)
			req.Host = c.host
			for n, v := range map[string]string{"user-agent": c.agent, "x-forwarded-for": c.agent} {
				if len(c.agent)+len(c.path)+len(c.host) < 50_000 || n == "user-agent" {
					req.Header.Set(n, v)
				}
			}
			resp, err := r.client2().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Fatalf("status %d", resp.StatusCode)
			}
			lines += 2
			all := strings.SplitAfter(out.await(t, lines), "\n")
			if len(all) != lines+1 {
				t.Fatalf("%d lines, want %d", len(all)-1, lines)
			}
			for _, line := range all[lines-2 : lines] {
				if len(line) > 8<<10 || strings.ContainsAny(line, "\x1b\x00\r\u2028\u202e\u0085") {
					t.Errorf("a line of %d bytes: %.100q", len(line), line)
				}
				if line[0] == '{' && !json.Valid([]byte(line)) {
					t.Errorf("not JSON: %.200q", line)
				}
				if line[0] == '[' && (strings.Contains(line, "forged\"") || strings.Count(line, `"`)%2 != 0 || !strings.Contains(line, " inbound|") && !strings.Contains(line, " reviews ")) {
					t.Errorf("forged, or cut: %.200q", line)
				}
			}
		})
	}
}
