package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

const h2 = `"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
 "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}`

// backend2 is a server of HTTP/2 without TLS.
func backend2(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.Protocols.SetHTTP1(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// client2 is an HTTP/2 client of the service.
func (r *rig) client2() *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx, vip) }, Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

func TestEveryVersionOfHTTPIsForwardedToEveryOther(t *testing.T) {
	r := newRig(t)
	seen := func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Trailer", "x-sum")
		b, _ := io.ReadAll(q.Body)
		fmt.Fprintf(w, "%s %s %d %s", q.Proto, q.Method, len(b), q.Trailer.Get("x-end"))
		w.(http.Flusher).Flush() // a length would leave no place for a trailer in HTTP/1.1
		w.Header().Set("x-sum", "42")
	}
	r.cluster("one", "", backend(t, seen))
	r.cluster("two", h2, backend2(t, seen))
	r.routes(`[{"match": {"prefix": "/one"}, "route": {"cluster": "one"}}, {"match": {"prefix": "/two"}, "route": {"cluster": "two"}}]`)
	for name, c := range map[string]*http.Client{"HTTP/1.1": r.client(), "HTTP/2.0": r.client2()} {
		for path, proto := range map[string]string{"/one": "HTTP/1.1", "/two": "HTTP/2.0"} {
			body := strings.Repeat("x", 100_000)
			req, _ := http.NewRequest("POST", "http://reviews:9080"+path, struct{ io.Reader }{strings.NewReader(body)})
			req.Trailer = http.Header{"X-End": {"yes"}}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatalf("%s to %s: %v", name, proto, err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := proto + " POST 100000 yes"; err != nil || string(b) != want || resp.Trailer.Get("x-sum") != "42" {
				t.Errorf("%s to %s: %q %v, trailer %v; want %q", name, proto, b, err, resp.Trailer, want)
			}
		}
	}
}

func TestRequestsOfOneClientConnectionRunAtOnceOverHTTP2(t *testing.T) {
	r := newRig(t)
	var at atomic.Int32
	all := make(chan struct{})
	r.cluster("reviews", h2, backend2(t, func(w http.ResponseWriter, q *http.Request) {
		if at.Add(1) == 50 {
			close(all)
		}
		select {
		case <-all:
		case <-time.After(5 * time.Second):
		}
	}))
	r.routes(toReviews)
	c := r.client2()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { get(t, c, "/") })
	}
	wg.Wait()
	if at.Load() != 50 {
		t.Errorf("%d requests", at.Load())
	}
}

func TestARetryHidesAFailingEndpoint(t *testing.T) {
	r := newRig(t)
	var n atomic.Int32
	body := make(chan string, 10)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		body <- string(b)
		if n.Add(1) < 3 {
			w.WriteHeader(503)
			return
		}
		fmt.Fprint(w, q.Header.Get("x-envoy-attempt-count"))
	}))
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "reviews", "retry_policy": {"retry_on": "5xx", "num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}}}]`)
	resp, err := r.client().Post("http://reviews:9080/", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || n.Load() != 3 {
		t.Errorf("status %d after %d attempts", resp.StatusCode, n.Load())
	}
	for range 3 {
		if b := <-body; b != "hello" {
			t.Errorf("an attempt had the body %q", b)
		}
	}
}

func TestARetryGoesToAnotherEndpoint(t *testing.T) {
	r := newRig(t)
	good := backend(t, func(w http.ResponseWriter, q *http.Request) {})
	r.cluster("reviews", "", "127.0.0.1:1", good)
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "reviews", "retry_policy": {"retry_on": "connect-failure", "num_retries": 2, "host_selection_retry_max_attempts": "5",
	 "retry_back_off": {"base_interval": "0.001s"},
	 "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}}}]`)
	c := r.client()
	for range 20 {
		if resp, body := get(t, c, "/"); resp.StatusCode != 200 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
}

func TestTimeouts(t *testing.T) {
	r := newRig(t)
	release := make(chan struct{})
	defer close(release)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		select {
		case <-release:
		case <-q.Context().Done():
		}
	}))
	r.routes(`[{"match": {"prefix": "/route"}, "route": {"cluster": "reviews", "timeout": "0.05s"}},
	 {"match": {"prefix": "/try"}, "route": {"cluster": "reviews", "timeout": "0s", "retry_policy": {"retry_on": "connect-failure", "per_try_timeout": "0.05s"}}},
	 {"match": {"prefix": "/stream"}, "route": {"cluster": "reviews", "timeout": "0s", "max_stream_duration": {"max_stream_duration": "0.05s"}}}]`)
	c := r.client()
	for path, want := range map[string]string{"/route": "504 upstream request timeout", "/try": "504 upstream request timeout", "/stream": "408 downstream duration timeout"} {
		resp, body := get(t, c, path)
		if got := fmt.Sprint(resp.StatusCode, " ", body); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestAMirrorGetsACopyAndItsAnswerIsDropped(t *testing.T) {
	r := newRig(t)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, "main") }))
	got := make(chan string, 1)
	r.cluster("shadow", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		got <- q.Host + " " + q.URL.Path + " " + string(b)
		w.WriteHeader(500)
	}))
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "reviews", "request_mirror_policies": [{"cluster": "shadow"}]}}]`)
	resp, err := r.client().Post("http://reviews:9080/p", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "main" || resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	select {
	case s := <-got:
		if s != "reviews-shadow:9080 /p body" {
			t.Errorf("mirror: %q", s)
		}
	case <-time.After(5 * time.Second):
		t.Error("no mirror")
	}
}

func TestWebSocketsAreTunnelsWithHalfClose(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := bufio.NewReader(c)
		req, err := http.ReadRequest(b)
		if err != nil || req.Header.Get("Upgrade") != "websocket" {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		io.Copy(c, b)
		io.WriteString(c, "bye")
	}()
	r.cluster("reviews", "", ln.Addr().String())
	r.routes(toReviews)
	c, err := r.dial(t.Context(), vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: reviews\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	b := bufio.NewReader(c)
	resp, err := http.ReadResponse(b, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	go func() {
		for i := range 1000 {
			fmt.Fprintf(c, "%08d", i)
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(b)
	if err != nil || len(got) != 8003 || !strings.HasSuffix(string(got), "00000999bye") {
		t.Errorf("%d bytes, %v: ...%q", len(got), err, got[max(0, len(got)-12):])
	}
}

func TestATunnelsOtherDirectionGoesOnWhenTheEndpointHasEnded(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	got := make(chan string, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := bufio.NewReader(c)
		if _, err := http.ReadRequest(b); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello")
		c.(*net.TCPConn).CloseWrite()
		all, _ := io.ReadAll(b)
		got <- string(all)
	}()
	r.cluster("reviews", "", ln.Addr().String())
	r.routes(toReviews)
	c, err := r.dial(t.Context(), vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: reviews\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	b := bufio.NewReader(c)
	if resp, err := http.ReadResponse(b, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	if all, err := io.ReadAll(b); string(all) != "hello" || err != nil {
		t.Errorf("got %q, %v", all, err)
	}
	io.WriteString(c, "and on")
	c.(interface{ CloseWrite() error }).CloseWrite()
	if s := <-got; s != "and on" {
		t.Errorf("the endpoint got %q", s)
	}
}

func TestATCPConnectionIsRelayedWithHalfClose(t *testing.T) {
	r := newRig(t)
	r.cluster("db", "", script(t, func(c net.Conn) {
		io.WriteString(c, "server first\n")
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%d", len(b))
	}))
	r.target(&listener.Target{TCP: raw(t, "db")})
	for _, n := range []int{0, 10, 5 << 20} {
		c, err := r.dial(t.Context(), vip)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b := bufio.NewReader(c)
		if l, err := b.ReadString('\n'); l != "server first\n" {
			t.Fatal(l, err)
		}
		if _, err := c.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
		rest, err := io.ReadAll(b)
		if string(rest) != fmt.Sprint(n) || err != nil {
			t.Errorf("%q %v", rest, err)
		}
		c.Close()
	}
}

func TestAnUnnamedPortIsToldByItsFirstBytesOrByTheirAbsence(t *testing.T) {
	r := newRig(t)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, "http") }))
	r.cluster("raw", "", script(t, func(c net.Conn) {
		io.WriteString(c, "tcp")
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
	}))
	r.routes(toReviews)
	both := *r.snap.Load().Listener.Lookup(vip)
	both.TCP = raw(t, "raw")
	r.target(&both)
	if _, body := get(t, r.client(), "/"); body != "http" {
		t.Errorf("HTTP/1.1: %q", body)
	}
	if _, body := get(t, r.client2(), "/"); body != "http" {
		t.Errorf("HTTP/2: %q", body)
	}
	for _, first := range []string{"", "GETTING", "\x16\x03\x01", "PRI * HTTP/1"} {
		c, err := r.dial(t.Context(), vip)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c, first)
		start := time.Now()
		got, _ := io.ReadAll(c)
		if string(got) != "tcp" {
			t.Errorf("%q: %q", first, got)
		}
		if d := time.Since(start); first == "" && d < 90*time.Millisecond {
			t.Errorf("a silent client was taken for TCP after %v", d)
		}
		c.Close()
	}
}

func TestAnAddressThatIsNotAServicesIsRefused(t *testing.T) {
	r := newRig(t)
	r.routes(toReviews)
	for _, to := range []string{"10.96.0.11:9080", "10.96.0.10:9081"} {
		if _, _, err := r.pool.OpenConn(t.Context(), keyOf(r), nil, requestTo(to)); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("%s: %v", to, err)
		}
	}
}

func TestAClientThatGoesAwayTakesItsRequestWithIt(t *testing.T) {
	r := newRig(t)
	began, ended := make(chan struct{}), make(chan struct{})
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		close(began)
		<-q.Context().Done()
		close(ended)
	}))
	r.routes(toReviews)
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://reviews:9080/", nil)
	go func() {
		<-began
		cancel()
	}()
	if _, err := r.client().Do(req); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the endpoint was not told")
	}
}

func TestAnEndpointThatBreaksOffInTheMiddleOfABodyIsSeenAsBroken(t *testing.T) { // B34
	r := newRig(t)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("content-length", "1000")
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	r.routes(toReviews)
	resp, err := r.client().Get("http://reviews:9080/")
	if err != nil {
		return // the reset may overtake the head
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%q was taken for whole", b)
	}
}

func TestConnectionsToEndpointsAreUsedAgain(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var from []string
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(from, q.RemoteAddr) {
			from = append(from, q.RemoteAddr)
		}
	}))
	r.routes(toReviews)
	for range 5 {
		c := r.client()
		for range 10 {
			get(t, c, "/")
		}
	}
	if len(from) != 1 {
		t.Errorf("50 requests in a row came by %d connections", len(from))
	}
}

func TestDrainLetsRequestsEnd(t *testing.T) {
	r := newRig(t)
	began := make(chan struct{})
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		close(began)
		time.Sleep(200 * time.Millisecond)
		io.WriteString(w, "done")
	}))
	r.routes(toReviews)
	go func() {
		<-began
		r.stop()
	}()
	if _, body := get(t, r.client(), "/"); body != "done" {
		t.Errorf("%q", body)
	}
}

func TestARequestOnAnOldConnectionGoesByTheNewRoutes(t *testing.T) {
	r := newRig(t)
	for _, n := range []string{"v1", "v2"} {
		r.cluster(n, "", backend(t, func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, n) }))
	}
	for name, c := range map[string]*http.Client{"HTTP/1.1": r.client(), "HTTP/2": r.client2()} {
		for _, n := range []string{"v1", "v2", "v1"} {
			r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "` + n + `"}}]`)
			if _, body := get(t, c, "/"); body != n {
				t.Errorf("%s: %s answered, want %s", name, body, n)
			}
		}
	}
}

func TestARequestOnAConnectionThatTheEndpointJustClosedIsSentAgain(t *testing.T) { // RFC 9112 section 9.3.1
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	var conns, posts atomic.Int32
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // answers one request, and closes when the next one comes
				defer c.Close()
				b := bufio.NewReader(c)
				n := conns.Add(1)
				for i := range 2 {
					q, err := http.ReadRequest(b)
					if err != nil || i == 1 {
						return
					}
					if q.Method == "POST" {
						posts.Add(1)
					}
					io.Copy(io.Discard, q.Body)
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", n%10)
				}
			}()
		}
	}()
	r.cluster("reviews", "", ln.Addr().String())
	r.routes(toReviews)
	c := r.client()
	for i := range 5 {
		if resp, body := get(t, c, "/"); resp.StatusCode != 200 {
			t.Errorf("request %d: %d %q", i, resp.StatusCode, body)
		}
	}
	resp, err := c.Post("http://reviews:9080/", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 || posts.Load() != 0 {
		t.Errorf("a POST, which may have had its effect, was sent again: %d", resp.StatusCode)
	}
}

func TestWhoHasNotHeardOfTheEndIsServedForAWhile(t *testing.T) {
	r := newRigWith(t, func(c *Config) { c.DrainTimeout, c.NoticeTime = 10*time.Second, 10*time.Second })
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	r.routes(toReviews)
	old := r.client()
	if resp, _ := get(t, old, "/"); resp.Close {
		t.Error("connections end before the end was asked for")
	}
	stopped := make(chan struct{})
	go func() { // ends with the test's clean-up
		defer close(stopped)
		r.stop()
	}()
	for closes := false; !closes; { // until it is draining
		resp, body := get(t, old, "/")
		if resp.StatusCode != 200 || body != "hello" {
			t.Fatalf("%d %q", resp.StatusCode, body)
		}
		closes = resp.Close
	}
	late := r.another() // a tunnel of its own
	for name, c := range map[string]*http.Client{"HTTP/1.1": late.client(), "HTTP/2": late.client2()} {
		for range 3 {
			resp, body := get(t, c, "/")
			if resp.StatusCode != 200 || body != "hello" || name == "HTTP/1.1" && !resp.Close {
				t.Errorf("%s: %d %q, closes %v", name, resp.StatusCode, body, resp.Close)
			}
		}
	}
	select {
	case <-stopped:
		t.Error("the proxy has ended before its time")
	default:
	}
	close(r.proxy.hurry)
	<-stopped
}

func TestARequestWaitsForEndpointsThatAreStillToCome(t *testing.T) {
	r := newRig(t)
	addr := backend(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	c, err := cluster.Compile(parse(t, &clusterv3.Cluster{}, `{"name": "reviews", "type": "EDS", "connect_timeout": "1s", "eds_cluster_config": {"service_name": "s", "eds_config": {"ads": {}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.set.Update([]*cluster.Config{c}, nil)
	r.routes(toReviews)
	go func() {
		for r.proxy.workers[0].waits.Load() == 0 { // the request has come
			time.Sleep(time.Millisecond)
		}
		ap := netip.MustParseAddrPort(addr)
		a, err := cluster.CompileEndpoints(parse(t, &endpointv3.ClusterLoadAssignment{}, fmt.Sprintf(`{"cluster_name": "s", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": %q, "port_value": %d}}}}]}]}`, ap.Addr(), ap.Port())))
		if err != nil {
			t.Error(err)
			return
		}
		r.set.UpdateEndpoints([]*cluster.Assignment{a}, nil)
	}()
	if resp, body := get(t, r.client(), "/"); resp.StatusCode != 200 || body != "hello" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}
