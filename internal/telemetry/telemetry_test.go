package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func labels(n int) *Labels {
	return &Labels{
		Reporter: Source, Security: MutualTLS,
		Source: Peer{
			Workload: fmt.Sprint("cart", n), Namespace: "shop", CanonicalService: "cart", CanonicalRevision: "v1",
			Principal: "spiffe://cluster.local/ns/shop/sa/cart", Cluster: "c1",
		},
		Dest:    Peer{Workload: "pay", Namespace: "shop", CanonicalService: "pay", Cluster: "c1"},
		Service: "pay.shop.svc.cluster.local", ServiceNamespace: "shop", ServiceName: "pay",
	}
}

func exposed(t *testing.T, r *Registry) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Expose(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// lines returns the samples of the metrics whose name begins with prefix.
func lines(text, prefix string) []string {
	var out []string
	for l := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(l, prefix) {
			out = append(out, l)
		}
	}
	return out
}

func TestConnectionMetricsHaveTheirLabelsInOrder(t *testing.T) { // 9.3
	r := NewRegistry(Config{})
	s := r.TCP(labels(0))
	s.Opened()
	s.Received(10)
	s.Sent(20)
	s.Closed(OK)
	s.Closed(Denied)
	s.Release()
	const before = `{reporter="source",source_workload="cart0",source_canonical_service="cart",source_canonical_revision="v1",` +
		`source_workload_namespace="shop",source_principal="spiffe://cluster.local/ns/shop/sa/cart",source_app="cart",source_version="v1",` +
		`source_cluster="c1",destination_service="pay.shop.svc.cluster.local",destination_service_namespace="shop",destination_service_name="pay",` +
		`destination_workload="pay",destination_canonical_service="pay",destination_canonical_revision="unknown",` +
		`destination_workload_namespace="shop",destination_principal="unknown",destination_app="pay",destination_version="unknown",` +
		`destination_cluster="c1",request_protocol="tcp",response_flags="`
	const after = `",connection_security_policy="mutual_tls"}`
	want := []string{
		"istio_tcp_connections_opened_total" + before + "-" + after + " 1", "istio_tcp_connections_closed_total" + before + "-" + after + " 1",
		"istio_tcp_connections_closed_total" + before + "DENY" + after + " 1", "istio_tcp_connections_failed_total" + before + "DENY" + after + " 1",
		"istio_tcp_received_bytes_total" + before + "-" + after + " 10", "istio_tcp_sent_bytes_total" + before + "-" + after + " 20",
	}
	text := exposed(t, r)
	if got := lines(text, "istio_tcp_"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !strings.HasSuffix(text, "# EOF\n") || strings.Count(text, "# EOF") != 1 {
		t.Error("the text does not end in one # EOF")
	}
}

func TestLocalityLabelsAppearWhenKnown(t *testing.T) {
	r := NewRegistry(Config{})
	l := labels(0)
	l.Dest.Zone = "z1"
	r.TCP(l).Opened()
	if got := exposed(t, r); !strings.Contains(got, `source_region="unknown",source_zone="unknown",destination_region="unknown",destination_zone="z1"}`) {
		t.Error("locality labels are missing")
	}
}

func TestLabelValuesAreEscapedAndBounded(t *testing.T) { // B43
	r := NewRegistry(Config{})
	l := labels(0)
	l.Source.Workload = "a\"b\\c\nd\xff" + strings.Repeat("x", 10000)
	r.TCP(l).Opened()
	got := lines(exposed(t, r), "istio_tcp_connections_opened_total")
	if len(got) != 1 || !strings.Contains(got[0], `source_workload="a\"b\\c\nd?x`) || len(got[0]) > 2500 {
		t.Errorf("lines = %.300q", got)
	}
}

func TestTheSameLabelsAreTheSameSeries(t *testing.T) {
	r := NewRegistry(Config{})
	a, b := r.TCP(labels(1)), r.TCP(labels(1))
	if a != b || r.TCP(labels(2)) == a {
		t.Error("series are not told apart by their labels")
	}
	if n := testing.AllocsPerRun(100, func() { r.TCP(labels1).Release() }); n != 0 {
		t.Errorf("allocations = %v, want 0", n)
	}
}

var labels1 = labels(1)

func TestSeriesAboveTheBoundAreCountedAsOverflow(t *testing.T) { // B44
	r := NewRegistry(Config{MaxSeries: 10})
	for i := range 1000 {
		s := r.TCP(labels(i))
		s.Opened()
		s.Release()
	}
	text := exposed(t, r)
	if got := len(lines(text, "istio_tcp_connections_opened_total")); got != 11 {
		t.Errorf("%d series, want 10 and the overflow", got)
	}
	if !strings.Contains(text, `source_workload="overflow"`) || !strings.Contains(text, "ambit_metric_series_overflow_total 990") {
		t.Error("overflow is not reported")
	}
}

func TestIdleSeriesExpire(t *testing.T) { // B7, M5
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Config{SeriesTTL: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		idle, held := r.TCP(labels(1)), r.TCP(labels(2))
		idle.Opened()
		idle.Release()
		held.Opened()
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if got := len(r.tcp.snapshot()); got != 2 {
			t.Errorf("%d series after 30 min, want 2", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := r.tcp.snapshot(); len(got) != 1 || got[0] != held {
			t.Errorf("%d series after 2.5 h, want the held one", len(got))
		}
		if got := r.tcp.count.Load(); got != 1 {
			t.Errorf("count = %d, want 1", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestMetricsServer(t *testing.T) { // 9.1: content types and gzip
	r := NewRegistry(Config{Tag: "1.0"})
	NewZtunnel(r)
	get := func(accept, encoding string) (*http.Response, string) {
		req := httptest.NewRequest("GET", "/metrics", nil)
		req.Header.Set("Accept", accept)
		req.Header.Set("Accept-Encoding", encoding)
		rec := httptest.NewRecorder()
		r.Handler().ServeHTTP(rec, req)
		res := rec.Result()
		var body io.Reader = res.Body
		if res.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Fatal(err)
			}
			body = z
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(b)
	}
	for _, tc := range []struct{ accept, encoding, content, enc string }{
		{"application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "", contentOpenMetrics, ""},
		{"text/plain", "gzip, br", contentText, "gzip"}, {"", "br, gzip;q=0", contentText, ""}, {"*/*", "gzip;q=0.5", contentText, "gzip"},
	} {
		res, body := get(tc.accept, tc.encoding)
		if got := res.Header.Get("Content-Type"); got != tc.content {
			t.Errorf("Content-Type for %q = %q, want %q", tc.accept, got, tc.content)
		}
		if got := res.Header.Get("Content-Encoding"); got != tc.enc {
			t.Errorf("Content-Encoding for %q = %q, want %q", tc.encoding, got, tc.enc)
		}
		for _, want := range []string{`istio_build{component="ztunnel",tag="1.0"} 1`, "process_open_fds", "workload_manager_active_proxy_count", "# EOF\n"} {
			if !strings.Contains(body, want) {
				t.Errorf("body lacks %q", want)
			}
		}
	}
}

// blocking is an output that waits until it is released.
type blocking struct {
	mu  sync.Mutex
	got bytes.Buffer
	err error
}

func (b *blocking) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	return b.got.Write(p)
}

func TestAFullQueueDropsLinesAndNeverBlocks(t *testing.T) { // B42
	out := &blocking{}
	w := NewWriter(WriterConfig{Out: out, MaxLines: 10})
	for range 25 {
		w.Line([]byte("x\n"))
	}
	if got := w.Dropped(); got != 15 {
		t.Errorf("Dropped = %d, want 15", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Run(ctx); err != nil || out.got.Len() != 20 {
		t.Errorf("Run = %v after %d bytes, want 20", err, out.got.Len())
	}
	out.err = io.ErrShortWrite
	w.Line([]byte("y\n"))
	_ = w.Run(ctx)
	if got := w.Dropped(); got != 16 {
		t.Errorf("Dropped after a failed write = %d, want 16", got)
	}
}

func TestTheWriterKeepsTheOrderOfLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &blocking{}
		w := NewWriter(WriterConfig{Out: out})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		var want strings.Builder
		for i := range 1000 {
			l := fmt.Sprintln("line", i)
			want.WriteString(l)
			w.Line([]byte(l))
			if i%100 == 0 {
				synctest.Wait()
			}
		}
		cancel()
		<-done
		if out.got.String() != want.String() {
			t.Error("lines are lost or out of order")
		}
	})
}

func BenchmarkTCP(b *testing.B) {
	r := NewRegistry(Config{})
	l := labels(1)
	b.ReportAllocs()
	for b.Loop() {
		s := r.TCP(l)
		s.Opened()
		s.Closed(OK)
		s.Release()
	}
}

func BenchmarkExpose1000Series(b *testing.B) {
	r := NewRegistry(Config{})
	for i := range 1000 {
		r.TCP(labels(i)).Closed(OK)
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = r.Expose(io.Discard)
	}
}
