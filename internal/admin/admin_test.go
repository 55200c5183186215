package admin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// do sends a request and returns status and body.
func do(h http.Handler, method, target string) (int, string) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, target, nil))
	return rec.Code, rec.Body.String()
}

// fakeLevels accepts anything but "bad".
type fakeLevels struct{ list string }

func (f *fakeLevels) String() string { return f.list }

func (f *fakeLevels) Merge(l string) error {
	if strings.Contains(l, "bad") {
		return errors.New("no such level")
	}
	f.list = strings.Trim(f.list+","+l, ",")
	return nil
}

func (f *fakeLevels) Reset(l string) error {
	f.list = "info"
	return f.Merge(l)
}

func TestLogging(t *testing.T) { // 9.1
	h := New(Config{Levels: &fakeLevels{"info"}})
	for _, tc := range []struct {
		method, target string
		status         int
		want           string
	}{
		{"GET", "/logging", 405, "usage: POST /logging"}, {"POST", "/logging", 200, "current log level is info\n"},
		{"POST", "/logging?level=debug", 200, "current log level is info,debug\n"}, {"POST", "/logging?level=bad", 400, "no such level"},
		{"POST", "/logging?level=xds=debug,access=off", 200, "info,debug,xds=debug,access=off"}, {"POST", "/logging?reset", 200, "current log level is info\n"},
		{"POST", "/logging?reset&level=warn", 200, "current log level is info,warn\n"}, {"POST", "/logging?foo=bar", 400, "usage"},
	} {
		status, body := do(h, tc.method, tc.target)
		if status != tc.status || !strings.Contains(body, tc.want) {
			t.Errorf("%s %s = %d %q, want %d with %q", tc.method, tc.target, status, body, tc.status, tc.want)
		}
	}
}

func TestQuit(t *testing.T) {
	n := 0
	h := New(Config{Quit: func() { n++ }})
	if status, _ := do(h, "GET", "/quitquitquit"); status != 405 || n != 0 {
		t.Errorf("GET = %d after %d calls", status, n)
	}
	if status, body := do(h, "POST", "/quitquitquit"); status != 200 || body != "shutdown now\n" || n != 1 {
		t.Errorf("POST = %d %q after %d calls", status, body, n)
	}
}

func TestIndexAndUnknownPaths(t *testing.T) {
	extra := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { text(w, 200, "mine") })
	h := New(Config{Extra: map[string]http.Handler{"/debug/mine": extra}})
	if status, body := do(h, "GET", "/"); status != 200 || !strings.Contains(body, `href="/debug/pprof/heap"`) || !strings.Contains(body, "/debug/mine") {
		t.Errorf("index = %d %q", status, body)
	}
	if status, body := do(h, "GET", "/debug/mine"); status != 200 || body != "mine\n" {
		t.Errorf("extra path = %d %q", status, body)
	}
	for _, path := range []string{"/nothing", "/config_dump", "/config_dump/x", "/logging", "/quitquitquit", "//"} {
		if status, _ := do(h, "POST", path); status != 404 {
			t.Errorf("POST %s = %d, want 404", path, status)
		}
	}
}

func TestProfiles(t *testing.T) { // 9.1
	h := New(Config{})
	for _, bad := range []string{"seconds=0", "seconds=301", "seconds=x", "frequency=0", "frequency=1001"} {
		if status, _ := do(h, "GET", "/debug/pprof/profile?"+bad); status != 400 {
			t.Errorf("profile?%s = %d, want 400", bad, status)
		}
	}
	for path, status := range map[string]int{
		"/debug/pprof/heap": 200, "/debug/pprof/goroutine": 200, "/debug/pprof/heap/profiling": 400,
		"/debug/pprof/heap/profiling?activate=true": 200, "/debug/pprof/heap/profiling?activate=maybe": 400,
	} {
		if got, _ := do(h, "GET", path); got != status {
			t.Errorf("%s = %d, want %d", path, got, status)
		}
	}
	// A client that goes away ends the profile.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/debug/pprof/profile", nil).WithContext(ctx))
	if rec.Code != 200 || rec.Body.Len() == 0 {
		t.Errorf("profile = %d with %d bytes", rec.Code, rec.Body.Len())
	}
}

func TestReadiness(t *testing.T) {
	var r Ready
	for _, task := range []string{"workload proxy manager", "state manager", "state manager"} {
		r.Pending(task)
	}
	check := func(status int, want string) {
		t.Helper()
		if s, body := do(r.Handler(), "GET", "/healthz/ready"); s != status || body != want {
			t.Errorf("ready = %d %q, want %d %q", s, body, status, want)
		}
	}
	check(500, "not ready, pending: state manager, workload proxy manager\n")
	r.Done("state manager")
	r.Set("workload proxy manager", true)
	r.Done("nobody")
	check(200, "ready\n")
	r.Set("workload proxy manager", false)
	check(500, "not ready, pending: workload proxy manager\n")
	if s, _ := do(r.Handler(), "POST", "/healthz/ready"); s != 405 {
		t.Errorf("POST = %d, want 405", s)
	}
	if s, _ := do(r.Handler(), "GET", "/"); s != 404 {
		t.Errorf("GET / = %d, want 404", s)
	}
}

func TestMetricsPaths(t *testing.T) {
	h := MetricsHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { text(w, 200, "m") }))
	for path, want := range map[string]int{"/metrics": 200, "/stats/prometheus": 200, "/": 404, "/metrics/x": 404} {
		if s, _ := do(h, "GET", path); s != want {
			t.Errorf("%s = %d, want %d", path, s, want)
		}
	}
}

func TestDumpIsOnePrettyObjectInOrder(t *testing.T) { // 9.2
	var list iter.Seq[any] = slices.Values([]any{map[string]int{"a": 1}, 2})
	var none iter.Seq[any] = func(func(any) bool) {}
	h := New(Config{Dump: []Section{
		{"workloads", func() any { return list }}, {"empty", func() any { return none }}, {"version", func() any { return Version{Version: "1"} }},
	}})
	status, body := do(h, "GET", "/config_dump")
	want := "{\n  \"workloads\": [\n    {\n      \"a\": 1\n    },\n    2\n  ],\n  \"empty\": [],\n  \"version\": {\n    \"version\": \"1\",\n"
	if status != 200 || !strings.HasPrefix(body, want) || !json.Valid([]byte(body)) {
		t.Errorf("dump = %d %s", status, body)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(body), "", "  "); err != nil || indented.String() != body {
		t.Errorf("the dump is not indented as a whole would be: %v\n%s", err, indented.String())
	}
	if err := WriteDump(io.Discard, []Section{{"bad", func() any { return func() {} }}}); err == nil {
		t.Error("a section that cannot be encoded is not reported")
	}
}

func TestCertificatesShowNoSecrets(t *testing.T) { // 9.2, A2
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(255), NotBefore: from, NotAfter: from.Add(time.Hour)}, &x509.Certificate{SerialNumber: big.NewInt(255)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	list := []Certificate{NewCertificate("spiffe://b", "Available", []*x509.Certificate{cert}, nil), NewCertificate("spiffe://a", "Initializing", nil, nil)}
	SortCertificates(list)
	c := list[1]
	pemText, err := base64.StdEncoding.DecodeString(c.CertChain[0].PEM)
	if err != nil || !strings.HasPrefix(string(pemText), "-----BEGIN CERTIFICATE-----\n") {
		t.Errorf("pem = %q, %v", pemText, err)
	}
	c.CertChain[0].PEM = "P"
	got, _ := json.Marshal([]Certificate{list[0], c})
	want := `[{"identity":"spiffe://a","state":"Initializing","certChain":[],"rootCerts":[]},{"identity":"spiffe://b","state":"Available",` +
		`"certChain":[{"pem":"P","serialNumber":"255","validFrom":"2026-01-02T03:04:05Z","expirationTime":"2026-01-02T04:04:05Z"}],"rootCerts":[]}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestWorkloadStateShape(t *testing.T) { // 9.2, A3
	got, _ := json.Marshal(WorkloadState{State: "Up", Connections: Connections{Inbound: []Connection{{Src: "a", ActualDst: "b", Protocol: "HBONE"}}, Outbound: []Connection{}}})
	want := `{"state":"Up","connections":{"inbound":[{"src":"a","originalDst":null,"actualDst":"b","protocol":"HBONE"}],"outbound":[]},"info":{"name":"","namespace":"","serviceAccount":""}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	var r Ready
	ctx, cancel := context.WithCancel(t.Context())
	listeners, err := Listen(ctx, "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- Serve(ctx, slog.New(slog.DiscardHandler), r.Handler(), listeners...) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, l := range listeners {
		res, err := client.Get("http://" + l.Addr().String() + "/healthz/ready")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 200 {
			t.Errorf("status = %d", res.StatusCode)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
	if c, err := net.Dial("tcp", listeners[0].Addr().String()); err == nil {
		c.Close()
		t.Error("the listener is still open")
	}
}

func TestAListenerThatFailsEndsServe(t *testing.T) {
	listeners, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listeners[0].Close()
	if err := Serve(t.Context(), slog.New(slog.DiscardHandler), http.NotFoundHandler(), listeners...); err == nil {
		t.Error("Serve = nil, want the listener's error")
	}
}

func TestListenSaysWhichAddressIsTaken(t *testing.T) { // conflicting_bind_error_admin
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l[0].Close()
	addr := l[0].Addr().String()
	if _, err := Listen(t.Context(), "127.0.0.1:0", addr); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("Listen = %v, want an error that names %s", err, addr)
	}
	if _, err := Listen(t.Context(), "nonsense"); err == nil {
		t.Error("Listen accepts an address without port")
	}
}
