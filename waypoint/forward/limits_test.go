package forward

import (
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// httpOptions are options of a cluster for HTTP.
func httpOptions(options string) string {
	return `"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", ` + options + `}}`
}

func TestAConnectionCarriesAsManyRequestsAtOnceAsIsAllowed(t *testing.T) {
	r := newRig(t)
	const n = 4
	var mu sync.Mutex
	var from []string
	var all sync.WaitGroup
	all.Add(n)
	r.cluster("reviews", httpOptions(`"explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 1}}`), backend2(t, func(_ http.ResponseWriter, q *http.Request) {
		mu.Lock()
		from = append(from, q.RemoteAddr)
		mu.Unlock()
		all.Done()
		all.Wait() // all requests are there at once
	}))
	r.routes(toReviews)
	c := r.client()
	var clients sync.WaitGroup
	for range n {
		clients.Go(func() { get(t, c, "/") })
	}
	clients.Wait()
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(from)
	if got := len(slices.Compact(from)); got != n {
		t.Errorf("%d requests at once came by %d connections, one is allowed on each", n, got)
	}
}

func TestAConnectionEndsWhenItIsTooOld(t *testing.T) {
	r := newRig(t)
	closed := make(chan struct{}, 8)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	r.cluster("reviews", httpOptions(`"common_http_protocol_options": {"max_connection_duration": "0.05s"}, "explicit_http_config": {"http_protocol_options": {}}`), s.Listener.Addr().String())
	r.routes(toReviews)
	get(t, r.client(), "/")
	select {
	case <-closed: // without another request
	case <-time.After(10 * time.Second):
		t.Error("the connection is still there")
	}
}
