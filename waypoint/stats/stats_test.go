package stats

import (
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/expr"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

func compile(t *testing.T, json string) (*Config, error) {
	t.Helper()
	var a anypb.Any
	if err := protojson.Unmarshal([]byte(`{"@type": "type.googleapis.com/stats.PluginConfig",`+json+`}`), &a); err != nil {
		t.Fatal(err)
	}
	return Compile(&a)
}

// expose counts a request of each principal and returns the lines of the metrics with the prefix.
func expose(t *testing.T, c *Config, prefix string, principals ...string) []string {
	t.Helper()
	r := telemetry.NewRegistry(telemetry.Config{})
	for _, p := range principals {
		l := telemetry.HTTPLabels{Protocol: "http", Code: 200, Flags: "-"}
		l.Reporter, l.Security = telemetry.Waypoint, telemetry.MutualTLS
		l.Source = telemetry.Peer{Workload: "client", Namespace: "demo", CanonicalService: "client", CanonicalRevision: "v1", Principal: p, Cluster: "Kubernetes"}
		l.Dest = telemetry.Peer{Workload: "reviews-v1", Namespace: "demo", CanonicalService: "reviews", CanonicalRevision: "v1", Principal: "spiffe://td/ns/demo/sa/reviews", Cluster: "Kubernetes"}
		l.Service, l.ServiceName, l.ServiceNamespace = "reviews.demo.svc.cluster.local", "reviews", "demo"
		x := &filter.Exchange{Req: &message.Request{Method: "GET", Authority: "reviews:9080", Path: "/a"}, Dest: netip.MustParseAddrPort("10.0.0.1:9080")}
		if c != nil {
			c.Apply(&l, &expr.Env{Exchange: x, Status: 200})
		}
		r.HTTP(&l, &telemetry.Request{Duration: 3 * time.Millisecond, Received: 10, Sent: 20})
		tcp := r.TCP(&l.Labels)
		tcp.Opened()
		tcp.Closed(telemetry.OK)
		tcp.Release()
	}
	var b strings.Builder
	if err := r.Expose(&b); err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, prefix) {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	return out
}

const golden = `istio_requests_total{reporter="waypoint",source_workload="client",source_canonical_service="client",source_canonical_revision="v1",source_workload_namespace="demo",source_principal="spiffe://td/ns/demo/sa/a",source_app="client",source_version="v1",source_cluster="Kubernetes",destination_service="reviews.demo.svc.cluster.local",destination_service_namespace="demo",destination_service_name="reviews",destination_workload="reviews-v1",destination_canonical_service="reviews",destination_canonical_revision="v1",destination_workload_namespace="demo",destination_principal="spiffe://td/ns/demo/sa/reviews",destination_app="reviews",destination_version="v1",destination_cluster="Kubernetes",request_protocol="http",response_code="200",grpc_response_status="",response_flags="-",connection_security_policy="mutual_tls"} 2`

const a, b = "spiffe://td/ns/demo/sa/a", "spiffe://td/ns/demo/sa/b"

func TestMetricsWithoutOverridesAreIstios(t *testing.T) {
	c, err := compile(t, `"reporter": "SERVER_GATEWAY", "disable_host_header_fallback": true`)
	if c != nil || err != nil {
		t.Fatal(c, err)
	}
	if got := expose(t, nil, "istio_requests_total", a, a); len(got) != 1 || got[0] != golden {
		t.Errorf("got  %q\nwant %q", got, golden)
	}
}

func TestLabelsAreRemovedAddedAndReplaced(t *testing.T) {
	c, err := compile(t, `"metrics": [
	 {"tags_to_remove": ["source_principal", "response_flags"]},
	 {"name": "requests_total", "tags_to_remove": ["destination_principal"], "dimensions": {"request_method": "request.method", "source_app": "'an ' + 'app'", "none": "request.headers['x-none']"}}]`)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer(`source_principal="`+a+`",`, "", `response_flags="-",`, "", `destination_principal="spiffe://td/ns/demo/sa/reviews",`, "", `source_app="client",`, "",
		`"mutual_tls"`, `"mutual_tls",none="unknown",request_method="GET",source_app="an app"`).Replace(golden)
	if got := expose(t, c, "istio_requests_total", a, b); len(got) != 1 || got[0] != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := expose(t, c, "istio_request_bytes_count", a, b); len(got) != 1 || strings.Contains(got[0], a) || strings.Contains(got[0], "request_method") || !strings.Contains(got[0], "destination_principal") || !strings.HasSuffix(got[0], " 2") {
		t.Errorf("another metric: %q", got)
	}
	if got := expose(t, c, `istio_response_bytes_bucket`, a, b); len(got) != 20 || !strings.Contains(got[4], `,le="25"} 2`) {
		t.Errorf("%d buckets: %q", len(got), got)
	}
	if got := expose(t, c, "istio_tcp_connections_closed_total", a, b); len(got) != 1 || strings.Contains(got[0], a) || !strings.HasSuffix(got[0], " 2") {
		t.Errorf("connections: %q", got)
	}
}

func TestAConfigurationThatComesAgainCountsIntoTheSameSeries(t *testing.T) {
	const overrides = `"metrics": [{"name": "requests_total", "tags_to_remove": ["source_principal"], "dimensions": {"a": "request.method", "b": "'x'"}}]`
	r := telemetry.NewRegistry(telemetry.Config{MaxSeries: 2})
	for i := range 50 { // as many updates of a listener
		c, err := compile(t, overrides)
		if err != nil {
			t.Fatal(err)
		}
		l := telemetry.HTTPLabels{Protocol: "http", Code: 200, Flags: "-"}
		c.Apply(&l, &expr.Env{Exchange: &filter.Exchange{Req: &message.Request{Method: "GET"}}, Status: 200})
		r.HTTP(&l, &telemetry.Request{})
		if i == 0 {
			runtime.GC()
		}
	}
	var b strings.Builder
	if err := r.Expose(&b); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\nistio_requests_total{"); n != 1 || strings.Contains(b.String(), `"overflow"`) {
		t.Errorf("%d series: %s", n, b.String())
	}
}

func TestMetricsAreDropped(t *testing.T) {
	c, err := compile(t, `"metrics": [{"name": "request_bytes", "drop": true}, {"name": "tcp_connections_opened_total", "drop": true}]`)
	if err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string]int{"istio_request_bytes": 0, "istio_tcp_connections_opened_total": 0, "istio_requests_total": 1, "istio_tcp_connections_closed_total": 1} {
		if got := expose(t, c, prefix, a); len(got) != want {
			t.Errorf("%s: %q", prefix, got)
		}
	}
}

func TestOverridesThatAreNotUnderstoodNameTheField(t *testing.T) {
	for json, want := range map[string]string{
		`"metrics": [{"dimensions": {"x": "request.nothing"}}]`: `metrics[0].dimensions["x"]`,
		`"metrics": [{"dimensions": {"a-b": "request.host"}}]`:  "not the name of a label",
		`"definitions": [{"name": "mine"}]`:                     "definitions",
	} {
		if _, err := compile(t, json); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", json, err, want)
		}
	}
}

// TestLabelsThatClientsChooseMakeABoundedNumberOfSeries: a Telemetry that counts by host, and a client that asks for many.
func TestLabelsThatClientsChooseMakeABoundedNumberOfSeries(t *testing.T) { // B44
	const asked, most = 100_000, 1000
	c, err := compile(t, `"metrics": [{"name": "requests_total", "dimensions": {"host": "request.host", "user": "request.headers['x-user']"}}]`)
	if err != nil {
		t.Fatal(err)
	}
	r := telemetry.NewRegistry(telemetry.Config{MaxSeries: most})
	for i := range asked {
		l := telemetry.HTTPLabels{Protocol: "http", Code: 200, Flags: "-"}
		req := &message.Request{Method: "GET", Authority: fmt.Sprintf("h%d.example:%d", i, i%65536)}
		req.Header.Add("x-user", strings.Repeat("u", 1+i%5000))
		c.Apply(&l, &expr.Env{Exchange: &filter.Exchange{Req: req}, Status: 200})
		r.HTTP(&l, &telemetry.Request{})
	}
	var b strings.Builder
	if err := r.Expose(&b); err != nil {
		t.Fatal(err)
	}
	series, sum := 0, 0
	for line := range strings.Lines(b.String()) {
		if !strings.HasPrefix(line, "istio_requests_total{") {
			continue
		}
		series++
		n, err := strconv.Atoi(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]))
		if sum += n; err != nil || len(line) > 4096 {
			t.Errorf("%v in a line of %d bytes", err, len(line))
		}
	}
	if series != most+1 || sum != asked || !strings.Contains(b.String(), `"overflow"`) {
		t.Errorf("%d series that count %d, want %d and the overflow, and all %d", series, sum, most, asked)
	}
}
