package telemetry

import (
	"strings"
	"testing"
	"time"
)

func TestRequestMetricsHaveIstiosNamesLabelsAndBuckets(t *testing.T) {
	r := NewRegistry(Config{Component: "waypoint"})
	l := HTTPLabels{Labels: *labels(0), Protocol: "http", Code: 200, Flags: "-"}
	l.Reporter = Waypoint
	for range 3 {
		r.HTTP(&l, &Request{Duration: 7 * time.Millisecond, Received: 10, Sent: 2000})
	}
	text := exposed(t, r)
	total := lines(text, "istio_requests_total")
	if len(total) != 1 || !strings.HasSuffix(total[0], " 3") {
		t.Fatalf("istio_requests_total: %q", total)
	}
	for _, want := range []string{
		`reporter="waypoint"`, `source_workload="cart0"`, `destination_service="pay.shop.svc.cluster.local"`, `request_protocol="http"`,
		`response_code="200"`, `grpc_response_status=""`, `response_flags="-"`, `connection_security_policy="mutual_tls"`,
	} {
		if !strings.Contains(total[0], want) {
			t.Errorf("no %s in %s", want, total[0])
		}
	}
	for _, want := range []struct{ metric, le, value string }{
		{"istio_request_duration_milliseconds_bucket", "5", "0"}, {"istio_request_duration_milliseconds_bucket", "10", "3"},
		{"istio_request_duration_milliseconds_bucket", "+Inf", "3"}, {"istio_response_bytes_bucket", "1000", "0"},
		{"istio_response_bytes_bucket", "2500", "3"},
	} {
		found := false
		for _, line := range lines(text, want.metric) {
			if strings.Contains(line, `le="`+want.le+`"`) {
				found = strings.HasSuffix(line, " "+want.value)
			}
		}
		if !found {
			t.Errorf("%s of %s is not %s", want.metric, want.le, want.value)
		}
	}
	if s := lines(text, "istio_request_duration_milliseconds_sum"); len(s) != 1 || !strings.HasSuffix(s[0], " 21") {
		t.Errorf("sum: %q", s)
	}
	if m := lines(text, "istio_request_messages_total"); len(m) != 0 {
		t.Errorf("messages of requests that are not gRPC: %q", m)
	}
}

func TestGRPCMetricsCountMessagesAndStatus(t *testing.T) {
	r := NewRegistry(Config{})
	r.HTTP(&HTTPLabels{Labels: *labels(0), Protocol: "grpc", Code: 200, GRPC: "14", Flags: "UF"}, &Request{Messages: 2, Answers: 5})
	text := exposed(t, r)
	if m := lines(text, "istio_response_messages_total"); len(m) != 1 || !strings.HasSuffix(m[0], " 5") || !strings.Contains(m[0], `grpc_response_status="14"`) {
		t.Errorf("messages: %q", m)
	}
}

func TestCountingARequestOfAKnownLabelSetDoesNotAllocate(t *testing.T) {
	r := NewRegistry(Config{})
	l := HTTPLabels{Labels: *labels(0), Protocol: "http", Code: 200, Flags: "-"}
	q := Request{Duration: time.Millisecond}
	r.HTTP(&l, &q)
	if n := testing.AllocsPerRun(100, func() { r.HTTP(&l, &q) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
