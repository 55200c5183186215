package forward

import (
	"net/http"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/trace"
)

// seen asks the service once and returns what the endpoint saw, and the answer's headers.
func seen(t *testing.T, more, routes string, change func(*http.Request), tune func(*listener.HTTP)) (request, answer http.Header) {
	t.Helper()
	r := newRig(t)
	got := make(chan http.Header, 1)
	r.cluster("reviews", more, backend(t, func(_ http.ResponseWriter, q *http.Request) {
		select {
		case got <- q.Header.Clone():
		default: // a retry: the first one counts
		}
	}))
	r.routes(routes)
	if tune != nil {
		tune(r.snap.Load().Listener.Lookup(vip).HTTP)
	}
	q, err := http.NewRequest("GET", "http://reviews:9080/", nil)
	if err != nil {
		t.Fatal(err)
	}
	change(q)
	resp, err := r.client().Do(q)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	select {
	case request = <-got:
	default: // no endpoint was asked
	}
	return request, resp.Header
}

func TestAnEndpointIsToldHowLongItsAnswerIsWaitedFor(t *testing.T) {
	const route = `[{"match": {"prefix": "/"}, "route": {"cluster": "reviews", "timeout": "5s", "max_grpc_timeout": "4s", "retry_policy": {"retry_on": "5xx", "per_try_timeout": "2s"}}}]`
	got, _ := seen(t, "", route, func(*http.Request) {}, nil)
	if v := got.Get("x-envoy-expected-rq-timeout-ms"); v != "2000" || got.Get("grpc-timeout") != "" {
		t.Errorf("%v", got)
	}
	got, _ = seen(t, "", route, func(q *http.Request) { q.Header.Set("content-type", "application/grpc") }, nil)
	if v := got.Get("grpc-timeout"); v != "2000m" {
		t.Errorf("grpc-timeout %q", v)
	}
}

func TestAClientThatTracesIsToldTheNameOfItsSpan(t *testing.T) {
	const route = `[{"match": {"prefix": "/"}, "route": {"cluster": "reviews"}, "decorator": {"operation": "reviews:9080/*"}}]`
	_, got := seen(t, "", route, func(*http.Request) {}, func(h *listener.HTTP) { h.Tracing = &trace.Config{} })
	if v := got.Get("x-envoy-decorator-operation"); v != "reviews:9080/*" {
		t.Errorf("%q", v)
	}
	if _, got = seen(t, "", route, func(*http.Request) {}, nil); got.Get("x-envoy-decorator-operation") != "" {
		t.Errorf("without tracing: %v", got)
	}
}

func TestTheSchemeOfAnHTTP1RequestIsWhatTheProxyBeforeUsSays(t *testing.T) {
	const route = `[{"match": {"prefix": "/", "headers": [{"name": ":scheme", "string_match": {"exact": "https"}}]}, "direct_response": {"status": 200}}, {"match": {"prefix": "/"}, "route": {"cluster": "reviews"}}]`
	got, _ := seen(t, "", route, func(q *http.Request) { q.Header.Set("x-forwarded-proto", "https") }, nil)
	if got != nil {
		t.Error("the route for https was not taken")
	}
	if got, _ = seen(t, "", route, func(q *http.Request) { q.Header.Set("x-forwarded-proto", "evil") }, nil); got == nil {
		t.Error("the route for https was taken")
	}
}

func TestAHeaderThatSaysNothingIsAsGoodAsNone(t *testing.T) {
	got, _ := seen(t, "", toReviews, func(q *http.Request) {
		q.Header["X-Request-Id"], q.Header["X-Forwarded-Proto"] = []string{"", ""}, []string{""}
	}, nil)
	if v := got["X-Request-Id"]; len(v) != 1 || len(v[0]) != 36 {
		t.Errorf("x-request-id %q", v)
	}
	if v := got["X-Forwarded-Proto"]; len(v) != 1 || v[0] != "http" {
		t.Errorf("x-forwarded-proto %q", v)
	}
	if got, _ = seen(t, "", toReviews, func(q *http.Request) { q.Header["X-Request-Id"] = []string{"", "mine"} }, nil); got["X-Request-Id"][1] != "mine" {
		t.Errorf("x-request-id of two lines %q", got["X-Request-Id"])
	}
}

func TestACookieIsSetOnlyWhereItChoosesTheEndpoint(t *testing.T) {
	const route = `[{"match": {"prefix": "/"}, "route": {"cluster": "reviews", "hash_policy": [{"cookie": {"name": "sess", "ttl": "60s"}}]}}]`
	for more, want := range map[string]bool{`"lb_policy": "RING_HASH"`: true, "": false} {
		if _, got := seen(t, more, route, func(*http.Request) {}, nil); (got.Get("set-cookie") != "") != want {
			t.Errorf("%q: %v", more, got)
		}
	}
}
