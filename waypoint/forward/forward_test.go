package forward

import (
	"bytes"
	"crypto/rand"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const toReviews = `[{"match": {"prefix": "/"}, "route": {"cluster": "reviews", "timeout": "0s"}}]`

// backend is a server on loopback.
func backend(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func get(t *testing.T, c *http.Client, path string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", "http://reviews:9080"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestARequestGoesThroughATunnelToItsEndpointAndBack(t *testing.T) {
	r := newRig(t)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("x-path", q.URL.Path)
		w.Header().Set("x-id", q.Header.Get("x-request-id"))
		io.WriteString(w, "hello "+q.Host)
	}))
	r.routes(toReviews)
	c := r.client()
	for range 3 {
		resp, body := get(t, c, "/a/b/../c")
		if resp.StatusCode != 200 || body != "hello reviews:9080" || resp.Header.Get("x-path") != "/a/c" || len(resp.Header.Get("x-id")) != 36 {
			t.Fatalf("%d %q %v", resp.StatusCode, body, resp.Header)
		}
		if resp.Header.Get("server") != "istio-envoy" || resp.Header.Get("x-envoy-upstream-service-time") == "" {
			t.Errorf("header: %v", resp.Header)
		}
	}
}

func TestBodiesOfAnySizePassBothWays(t *testing.T) {
	r := newRig(t)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, q.Body)
	}))
	r.routes(toReviews)
	c := r.client()
	for _, n := range []int{0, 1, 1000, 64 << 10, 1 << 20, 20 << 20} {
		body := make([]byte, n)
		rand.Read(body)
		for _, chunked := range []bool{false, true} {
			var rd io.Reader = bytes.NewReader(body)
			if chunked {
				rd = struct{ io.Reader }{rd}
			}
			resp, err := c.Post("http://reviews:9080/", "application/octet-stream", rd)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%d bytes, chunked %v: %d came back, %v", n, chunked, len(got), err)
			}
		}
	}
}

func TestErrorsOfOursAreEnvoys(t *testing.T) {
	r := newRig(t)
	r.cluster("nobody", "")
	r.cluster("down", "", "127.0.0.1:1")
	r.routes(`[{"match": {"prefix": "/none"}, "route": {"cluster": "missing"}},
	 {"match": {"prefix": "/nobody"}, "route": {"cluster": "nobody"}}, {"match": {"prefix": "/down"}, "route": {"cluster": "down"}},
	 {"match": {"prefix": "/redirect"}, "redirect": {"path_redirect": "/new"}}, {"match": {"prefix": "/direct"}, "direct_response": {"status": 418, "body": {"inline_string": "tea"}}}]`)
	c := r.client()
	for path, want := range map[string]struct {
		status int
		body   string
	}{
		"/else":     {404, ""},
		"/none":     {503, ""},
		"/nobody":   {503, "no healthy upstream"},
		"/down":     {503, "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, transport failure reason: connection refused"},
		"/redirect": {301, ""},
		"/direct":   {418, "tea"},
	} {
		resp, body := get(t, c, path)
		if resp.StatusCode != want.status || body != want.body {
			t.Errorf("%s: %d %q, want %d %q", path, resp.StatusCode, body, want.status, want.body)
		}
		if path == "/redirect" && resp.Header.Get("location") != "http://reviews:9080/new" {
			t.Errorf("location: %q", resp.Header.Get("location"))
		}
	}
	text := &strings.Builder{}
	r.metrics.Expose(text)
	if !strings.Contains(text.String(), `response_flags="NR"`) || !strings.Contains(text.String(), `response_flags="UF"`) {
		t.Error("flags are not in the metrics")
	}
}
