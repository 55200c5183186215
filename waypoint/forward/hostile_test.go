package forward

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/http1/http1test"
)

// chainFilter is a filter by its name and its configuration, proto JSON with @type.
func chainFilter(t *testing.T, name, json string) filter.Filter {
	t.Helper()
	var a anypb.Any
	if err := protojson.Unmarshal([]byte(json), &a); err != nil {
		t.Fatal(err)
	}
	f, err := filter.Compile(&hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: &a}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// exchange sends bytes to the service and returns what is answered until the end.
func (r *rig) exchange(in string) ([]byte, error) {
	r.t.Helper()
	c, err := r.dial(r.t.Context(), vip)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go io.WriteString(c, in)
	return io.ReadAll(c)
}

// statuses are those of the answers in b.
func statuses(b []byte) (all []int) {
	for br := bufio.NewReader(bytes.NewReader(b)); ; {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return all
		}
		io.Copy(io.Discard, resp.Body)
		all = append(all, resp.StatusCode)
	}
}

// B9 to B13: the corpus that http1 compares with net/http's verdict, through the whole waypoint.
func TestSmuggledRequestsAreRefusedOrCanonicalBehindTheWaypoint(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var raw bytes.Buffer
	var seen []string
	at := script(t, func(c net.Conn) {
		br := bufio.NewReader(c)
		for {
			var one bytes.Buffer
			tee := bufio.NewReader(io.TeeReader(br, &one))
			req, err := http.ReadRequest(tee)
			if err != nil {
				return
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			s := fmt.Sprintf("%s %s %s", req.Method, req.RequestURI, body)
			if req.Host != "h" {
				s += " @" + req.Host
			}
			mu.Lock()
			raw.Write(one.Bytes())
			seen = append(seen, s)
			mu.Unlock()
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	r.cluster("reviews", "", at)
	r.routes(toReviews)
	for _, a := range http1test.Corpus {
		switch a.Name {
		case "HTTP/2 preface": // a waypoint speaks that too: the beginning of a connection that goes no further
			a.Status = 0
		case "asterisk of OPTIONS": // no route is for that
			a.Status, a.Seen = 404, nil
		}
		t.Run(a.Name, func(t *testing.T) {
			mu.Lock()
			raw.Reset()
			seen = nil
			mu.Unlock()
			out, err := r.exchange(a.In + "GET /end HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
			got := statuses(out)
			mu.Lock()
			defer mu.Unlock()
			switch a.Status {
			case 0:
				if len(got) > 0 || len(seen) > 0 {
					t.Errorf("answers %v, %v; the backend saw %q", got, err, seen)
				}
				return
			case 200:
			case 404:
				if !slices.Equal(got, []int{404, 200}) || !slices.Equal(seen, []string{"GET /end "}) {
					t.Errorf("answers %v, %v; the backend saw %q", got, err, seen)
				}
				return
			default:
				if len(got) != 1 || got[0] != a.Status || len(seen) > 0 {
					t.Errorf("answers %v, %v, want %d; the backend saw %q", got, err, a.Status, seen)
				}
				return
			}
			want := append(slices.Clone(a.Seen), "GET /end ")
			if !slices.Equal(seen, want) || !slices.Equal(got, slices.Repeat([]int{200}, len(want))) {
				t.Errorf("answers %v, %v; the backend saw %q, want %q", got, err, seen, want)
			}
			if err := http1test.Canonical(raw.Bytes()); err != nil {
				t.Error(err)
			}
			if strings.Contains(raw.String(), "x-auth") {
				t.Error("a field that Connection names was passed on")
			}
		})
	}
	t.Logf("%d attacks", len(http1test.Corpus))
}

// denyDelete is what becomes of an AuthorizationPolicy that denies DELETE.
const denyDelete = `{"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"action": "DENY", "policies": {"p": {
 "permissions": [{"header": {"name": ":method", "string_match": {"exact": "DELETE"}}}], "principals": [{"any": true}]}}}}`

func TestAMethodInOtherLettersDoesNotPassADeny(t *testing.T) { // B15
	r := newRig(t)
	var reached atomic.Int32
	r.cluster("reviews", "", backend(t, func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	r.routes(toReviews, chainFilter(t, "envoy.filters.http.rbac", denyDelete))
	for _, m := range []string{"DELETE", "delete", "dElEtE", "Delete", "DELETE ", " DELETE", "DELETE\t", "DELETE\x00", "DEL\u0415TE"} {
		out, _ := r.exchange(m + " / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if got := statuses(out); len(got) != 1 || got[0] != 400 && got[0] != 403 {
			t.Errorf("HTTP/1.1 %q: %v", m, got)
		}
		if s := r.send2(m); s != "403" && s != "400" && !strings.HasPrefix(s, "RST_STREAM") {
			t.Errorf("HTTP/2 %q: %v", m, s)
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d requests reached the backend", n)
	}
	out, _ := r.exchange("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	if got := statuses(out); !slices.Equal(got, []int{200}) || reached.Load() != 1 || r.send2("GET") != "200" {
		t.Errorf("GET: %v", got)
	}
}

// send2 sends a request of HTTP/2 with any method and says what became of it: a status, or the frame that refused it.
func (r *rig) send2(method string, more ...string) string {
	r.t.Helper()
	c, err := r.dial(r.t.Context(), vip)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	fields := append([]string{":method", method, ":scheme", "http", ":path", "/", ":authority", "h"}, more...)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err.Error()
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return "RST_STREAM " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			return "GOAWAY " + f.ErrCode.String()
		}
	}
}

// denyHeader denies what has x-role admin, and what has no x-tenant blue.
const denyHeader = `{"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"action": "DENY", "policies": {
 "role": {"permissions": [{"any": true}], "principals": [{"header": {"name": "x-role", "string_match": {"exact": "admin"}}}]},
 "pattern": {"permissions": [{"any": true}], "principals": [{"header": {"name": "x-name", "string_match": {"safe_regex": {"regex": "^[a-z]*evil[a-z]*$"}}}}]},
 "tenant": {"permissions": [{"any": true}], "principals": [{"not_id": {"header": {"name": "x-tenant", "string_match": {"exact": "blue"}}}}]}}}}`

func TestAConditionOnAHeaderHoldsForEachOfItsValues(t *testing.T) { // B16
	r := newRig(t)
	r.cluster("reviews", "", backend(t, func(http.ResponseWriter, *http.Request) {}))
	r.routes(toReviews, chainFilter(t, "envoy.filters.http.rbac", denyHeader))
	const blue = "x-tenant: blue\r\n"
	for head, want := range map[string]int{
		blue:                                            200,
		blue + "x-role: user\r\n":                       200,
		blue + "x-role: admin\r\n":                      403,
		blue + "X-ROLE: admin\r\n":                      403,
		blue + "x-role:   admin  \r\n":                  403,
		blue + "x-role: user\r\nx-role: admin\r\n":      403,
		blue + "x-role: admin\r\nx-role: user\r\n":      403,
		blue + "x-role:\r\nx-role: admin\r\n":           403,
		blue + "x-role:\r\n":                            200,
		blue + "x-role: \xff\xfe\r\nx-role: admin\r\n":  403,
		blue + "x-name: ok\r\nx-name: someevilname\r\n": 403,
		blue + "x-name: ok\r\n":                         200,
		"":                                              403, // what must be there is not
		"x-tenant:\r\n":                                 403,
		"x-tenant: bluegreen\r\n":                       403,
		"x-tenant: \xe2\x80\x8bblue\r\n":                403,
	} {
		out, _ := r.exchange("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + head + "\r\n")
		if got := statuses(out); len(got) != 1 || got[0] != want {
			t.Errorf("%q: %v, want %d", head, got, want)
		}
	}
}

func TestWhatAClientSaysOfItselfIsNotBelieved(t *testing.T) { // B18
	r := newRig(t)
	got := make(chan http.Header, 1)
	r.cluster("reviews", "", backend(t, func(_ http.ResponseWriter, q *http.Request) { got <- q.Header }))
	r.routes(toReviews)
	forged := []string{"x-forwarded-client-cert", "By=spiffe://evil;URI=spiffe://cluster.local/ns/x/sa/admin"}
	for _, n := range []string{"x-envoy-internal", "x-envoy-retry-on", "x-envoy-max-retries", "x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-stream-duration-ms", "x-envoy-original-path",
		"x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-envoy-decorator-operation", "x-envoy-ip-tags", "x-envoy-force-trace"} {
		forged = append(forged, n, "forged")
	}
	for name, c := range map[string]*http.Client{"HTTP/1.1": r.client(), "HTTP/2": r.client2()} {
		req, err := http.NewRequest("GET", "http://reviews:9080/", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(forged); i += 2 {
			req.Header.Set(forged[i], forged[i+1])
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		for n, v := range <-got {
			if s := strings.Join(v, ","); strings.Contains(s, "forged") || strings.Contains(s, "evil") {
				t.Errorf("%s: %s: %s was passed on", name, n, s)
			}
		}
	}
}

// service answers checks as a broken one does.
func brokenServices(t *testing.T) map[string]string {
	return map[string]string{
		"down":          "127.0.0.1:1",
		"slow":          script(t, func(c net.Conn) { io.Copy(io.Discard, c) }),
		"reset at once": script(t, func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }),
		"not HTTP/2": script(t, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			io.Copy(io.Discard, c)
		}),
		"reset in the middle": script(t, func(c net.Conn) { check(c, func(fr *http2.Framer) { fr.WriteRSTStream(1, http2.ErrCodeInternal) }) }),
		"an error":            script(t, func(c net.Conn) { check(c, func(fr *http2.Framer) { answer2(fr, nil, "200", "14") }) }),
		"HTTP 500":            script(t, func(c net.Conn) { check(c, func(fr *http2.Framer) { answer2(fr, nil, "500", "") }) }),
		"garbage":             script(t, func(c net.Conn) { check(c, func(fr *http2.Framer) { answer2(fr, []byte("\xff\xff\xff"), "200", "0") }) }),
		"a length that lies": script(t, func(c net.Conn) {
			check(c, func(fr *http2.Framer) { answer2(fr, []byte{0, 0xff, 0xff, 0xff, 0xff, 1}, "200", "0") })
		}),
		"no message": script(t, func(c net.Conn) { check(c, func(fr *http2.Framer) { answer2(fr, nil, "200", "0") }) }),
	}
}

// check is a server that reads one request of HTTP/2 and answers it.
func check(c net.Conn, answer func(*http2.Framer)) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	fr := http2.NewFramer(c, c)
	fr.WriteSettings()
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		if f.Header().Flags.Has(http2.FlagDataEndStream) && f.Header().Type == http2.FrameData {
			answer(fr)
		}
	}
}

// answer2 answers stream 1 with a body and, if status is not "", a gRPC status.
func answer2(fr *http2.Framer, body []byte, code, status string) {
	block := func(kv ...string) []byte {
		var b bytes.Buffer
		e := hpack.NewEncoder(&b)
		for i := 0; i < len(kv); i += 2 {
			e.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
		}
		return b.Bytes()
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":status", code, "content-type", "application/grpc"), EndHeaders: true, EndStream: status == ""})
	if status == "" {
		return
	}
	if len(body) > 0 {
		fr.WriteData(1, false, body)
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("grpc-status", status), EndHeaders: true, EndStream: true})
}

// B33: each way to fail, with each answer to that.
func TestAServiceThatFailsToDecideLetsPassOnlyIfItIsSaidSo(t *testing.T) {
	const grpcService = `"grpc_service": {"envoy_grpc": {"cluster_name": "decides"}, "timeout": "0.2s"}`
	authz := func(more string) string {
		return `{"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", "transport_api_version": "V3", ` + grpcService + more + `}`
	}
	limit := func(more string) string {
		return `{"@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit", "domain": "d", "rate_limits": [{"actions": [{"generic_key": {"descriptor_value": "all"}}]}],
		 "rate_limit_service": {"transport_api_version": "V3", ` + grpcService + `}` + more + `}`
	}
	for how, at := range brokenServices(t) {
		t.Run(how, func(t *testing.T) {
			for _, c := range []struct {
				name, filter, json string
				want               int
			}{
				{"authorization", "envoy.filters.http.ext_authz", authz(""), 403},
				{"authorization with another status", "envoy.filters.http.ext_authz", authz(`, "status_on_error": {"code": "ServiceUnavailable"}`), 503},
				{"authorization that may fail", "envoy.filters.http.ext_authz", authz(`, "failure_mode_allow": true`), 200},
				{"limit", "envoy.filters.http.ratelimit", limit(""), 200},
				{"limit that may not fail", "envoy.filters.http.ratelimit", limit(`, "failure_mode_deny": true`), 500},
			} {
				r := newRig(t)
				var reached atomic.Int32
				r.cluster("reviews", "", backend(t, func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
				r.cluster("decides", h2, at)
				r.routes(toReviews, chainFilter(t, c.filter, c.json))
				begin := time.Now()
				resp, _ := get(t, r.client(), "/")
				if resp.StatusCode != c.want || (reached.Load() > 0) != (c.want == 200) {
					t.Errorf("%s: status %d, want %d; %d requests reached the backend", c.name, resp.StatusCode, c.want, reached.Load())
				}
				if d := time.Since(begin); d > 5*time.Second {
					t.Errorf("%s: took %v", c.name, d)
				}
			}
		})
	}
}

// B34: what becomes of a request by what its endpoint does, and that nothing of it gets into the next request.
func TestABackendThatMisbehavesIsNamedAndNotUsedAgain(t *testing.T) {
	request := func(c net.Conn) bool {
		_, err := http.ReadRequest(bufio.NewReader(c))
		return err == nil
	}
	for _, b := range []struct {
		name   string
		f      func(net.Conn)
		status int // 0: the answer is cut off
		flags  string
		body   string
	}{
		{"closes without an answer", func(c net.Conn) { request(c) }, 503, "UC", ""},
		{"resets without an answer", func(c net.Conn) { request(c); c.(*net.TCPConn).SetLinger(0) }, 503, "UC", ""},
		{"resets in the middle of the body", func(c net.Conn) {
			request(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
			time.Sleep(50 * time.Millisecond)
			c.(*net.TCPConn).SetLinger(0)
		}, 0, "UC", ""},
		{"ends in the middle of the body", func(c net.Conn) { request(c); io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf") }, 0, "UC", ""},
		{"ends in the middle of a chunk", func(c net.Conn) {
			request(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
		}, 0, "UC", ""},
		{"ends without the last chunk", func(c net.Conn) {
			request(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		}, 0, "UC", ""},
		{"says continue for ever", func(c net.Conn) {
			for request(c); ; {
				if _, err := io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
					return
				}
			}
		}, 502, "UPE", ""},
		{"gives hints for ever", func(c net.Conn) {
			for request(c); ; {
				if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"); err != nil {
					return
				}
			}
		}, 502, "UPE", ""},
		{"changes protocols unasked", func(c net.Conn) {
			request(c)
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
			io.Copy(io.Discard, c)
		}, 502, "UPE", ""},
		{"has no length and closes", func(c net.Conn) { request(c); io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nall of it") }, 200, "-", "all of it"},
		{"says more than its length", func(c net.Conn) {
			request(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nthisHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
			io.Copy(io.Discard, c)
		}, 200, "-", "this"},
		{"two lengths", func(c net.Conn) {
			request(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 6\r\n\r\nthisor")
		}, 502, "UPE", ""},
		{"answers what is no HTTP", func(c net.Conn) { request(c); io.WriteString(c, "220 mail.example ESMTP\r\n"); io.Copy(io.Discard, c) }, 502, "UPE", ""},
		{"answers with a head without end", func(c net.Conn) {
			request(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := io.WriteString(c, "x-more: "+strings.Repeat("x", 1000)+"\r\n"); err != nil {
					return
				}
			}
		}, 502, "UPE", ""},
		{"never answers", func(c net.Conn) { io.Copy(io.Discard, c) }, 504, "UT", ""},
	} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			r, out := newLoggedRig(t)
			var conns atomic.Int32
			r.cluster("bad", "", script(t, func(c net.Conn) { conns.Add(1); b.f(c) }))
			r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "bad", "timeout": "0.7s"}}]`)
			r.logs("code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% details=%RESPONSE_CODE_DETAILS%")
			c := r.client()
			for range 3 {
				resp, err := c.Get("http://reviews:9080/")
				if err != nil {
					if b.status != 0 {
						t.Fatal(err)
					}
					continue // the end may overtake the head
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				switch {
				case b.status == 0 && err == nil:
					t.Errorf("%d %q was taken for whole", resp.StatusCode, body)
				case b.status != 0 && (resp.StatusCode != b.status || err != nil || b.body != "" && string(body) != b.body):
					t.Errorf("%d %q, %v; want %d %q", resp.StatusCode, body, err, b.status, b.body)
				case bytes.Contains(body, []byte("poison")):
					t.Errorf("got the answer of nobody's request: %q", body)
				}
			}
			if conns.Load() < 3 {
				t.Errorf("3 requests came by %d connections", conns.Load())
			}
			code := b.status
			if code == 0 {
				code = 200 // its head was passed on
			}
			for line := range strings.Lines(out.await(t, 3)) {
				if want := fmt.Sprintf("code=%d flags=%s ", code, b.flags); !strings.HasPrefix(line, want) {
					t.Errorf("logged %q, want %q", line, want)
				}
			}
			var metrics strings.Builder
			if err := r.metrics.Expose(&metrics); err != nil {
				t.Fatal(err)
			}
			counted := slices.Collect(func(yield func(string) bool) {
				for line := range strings.Lines(metrics.String()) {
					if strings.HasPrefix(line, "istio_requests_total{") && !yield(line) {
						return
					}
				}
			})
			if want := fmt.Sprintf(`response_code="%d"`, code); len(counted) != 1 || !strings.Contains(counted[0], want) ||
				!strings.Contains(counted[0], `response_flags="`+b.flags+`"`) || !strings.HasSuffix(counted[0], "} 3\n") {
				t.Errorf("counted %q, want 3 with code %d and flags %s", counted, code, b.flags)
			}
		})
	}
}

// B34: a server of HTTP/2 that takes no stream any more gets none, and what it never took is sent elsewhere.
func TestAGoAwayWithoutAStreamLosesNoRequest(t *testing.T) {
	r := newRig(t)
	var n atomic.Int32
	at := script(t, func(c net.Conn) {
		first := n.Add(1) == 1
		check2(c, func(fr *http2.Framer, id uint32) {
			if first {
				fr.WriteGoAway(0, http2.ErrCodeNo, nil)
				return
			}
			var b bytes.Buffer
			hpack.NewEncoder(&b).WriteField(hpack.HeaderField{Name: ":status", Value: "204"})
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: true})
		})
	})
	r.cluster("reviews", h2, at)
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "reviews", "retry_policy": {"retry_on": "refused-stream,connect-failure", "num_retries": 2}}}]`)
	for range 3 {
		if resp, _ := get(t, r.client(), "/"); resp.StatusCode != 204 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
}

// check2 is a server of HTTP/2 that calls f for each request.
func check2(c net.Conn, f func(*http2.Framer, uint32)) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	fr := http2.NewFramer(c, c)
	fr.WriteSettings()
	for {
		g, err := fr.ReadFrame()
		if err != nil {
			return
		}
		if g.Header().Type == http2.FrameHeaders {
			f(fr, g.Header().StreamID)
		}
	}
}
