package route

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// forward matches a request against one route with the given RouteAction.
func forward(t testing.TB, action string, r *message.Request) (*Route, *Action) {
	t.Helper()
	table := mustCompile(t, `{"match":{"prefix":"/a"},"route":{`+action+`}}`)
	x := table.Match(r, 0)
	if x == nil {
		t.Fatal("no match")
	}
	return x, x.Action(r, 0)
}

func TestClustersGetTheirShareOfRequests(t *testing.T) {
	table := mustCompile(t, `{"match":{"prefix":"/"},"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":90},{"name":"b","weight":0},{"name":"c","weight":10}]}}}`)
	got := map[string]int{}
	r := req("GET /")
	for i := range uint64(1000) {
		got[table.Match(r, i).Action(r, i).Cluster]++
	}
	if got["a"] != 900 || got["b"] != 0 || got["c"] != 100 {
		t.Errorf("shares %v, want a:900 c:100", got)
	}
}

func TestAHeaderMayNameTheCluster(t *testing.T) {
	r := req("GET /a", "x-cluster: c")
	_, a := forward(t, `"cluster_header":"X-Cluster"`, r)
	if got := a.ClusterName(r); got != "c" {
		t.Errorf("cluster %q", got)
	}
	if got := a.ClusterName(req("GET /a")); got != "" {
		t.Errorf("cluster %q without the header", got)
	}
}

func TestThePathIsRewritten(t *testing.T) {
	for name, c := range map[string]struct{ action, in, want string }{
		"prefix":                             {`"prefix_rewrite":"/b"`, "/a/x?q=1", "/b/x?q=1"},
		"regular expression":                 {`"regex_rewrite":{"pattern":{"regex":"^/a/([^/]+)/(.*)$"},"substitution":"/\\2/\\1"}`, "/a/x/y?q", "/y/x?q"},
		"every match is replaced":            {`"regex_rewrite":{"pattern":{"regex":"a"},"substitution":"b"}`, "/a/a?a", "/b/b?a"},
		"what comes out begins with a slash": {`"regex_rewrite":{"pattern":{"regex":"^/a/"},"substitution":""}`, "/a/x", "/x"},
	} {
		t.Run(name, func(t *testing.T) {
			r := req("GET " + c.in)
			x, a := forward(t, `"cluster":"c",`+c.action, r)
			x.ChangeRequest(a, &Context{Req: r})
			if r.Path != c.want || r.Header.Get("x-envoy-original-path") != c.in {
				t.Errorf("path %q (was %q), want %q", r.Path, r.Header.Get("x-envoy-original-path"), c.want)
			}
		})
	}
}

func TestTheHostIsRewritten(t *testing.T) {
	for name, c := range map[string]struct{ action, want string }{
		"literal":          {`"host_rewrite_literal":"b.com"`, "b.com"},
		"header":           {`"host_rewrite_header":"X-Host"`, "c.com"},
		"part of the path": {`"host_rewrite_path_regex":{"pattern":{"regex":"^/a/([^/]+)/.*$"},"substitution":"\\1.org"}`, "d.org"},
		"unchanged":        {`"prefix_rewrite":"/a"`, "a.com"},
	} {
		t.Run(name, func(t *testing.T) {
			r := req("GET /a/d/e", ":authority: a.com", "x-host: c.com")
			x, a := forward(t, `"cluster":"c",`+c.action, r)
			x.ChangeRequest(a, &Context{Req: r})
			if r.Authority != c.want {
				t.Errorf("authority %q, want %q", r.Authority, c.want)
			}
		})
	}
}

func TestARedirectNamesTheNewURL(t *testing.T) {
	for name, c := range map[string]struct {
		redirect, url, want string
		status              int
	}{
		"scheme":             {`"https_redirect":true`, "/a?q=1", "https://a.com/a?q=1", 301},
		"host":               {`"host_redirect":"b.com","response_code":"FOUND"`, "/a", "http://b.com/a", 302},
		"port":               {`"port_redirect":8443,"scheme_redirect":"https","response_code":"SEE_OTHER"`, "/a", "https://a.com:8443/a", 303},
		"path":               {`"path_redirect":"/b","response_code":"TEMPORARY_REDIRECT"`, "/a?q=1", "http://a.com/b?q=1", 307},
		"path with query":    {`"path_redirect":"/b?x=2","response_code":"PERMANENT_REDIRECT"`, "/a?q=1", "http://a.com/b?x=2", 308},
		"prefix":             {`"prefix_rewrite":"/b"`, "/a/c?q=1", "http://a.com/b/c?q=1", 301},
		"regular expression": {`"regex_rewrite":{"pattern":{"regex":"a"},"substitution":"b"}`, "/a/c?a", "http://a.com/b/c?a", 301},
		"without query":      {`"strip_query":true,"host_redirect":"b.com"`, "/a?q=1", "http://b.com/a", 301},
	} {
		t.Run(name, func(t *testing.T) {
			table := mustCompile(t, `{"match":{"prefix":"/a"},"redirect":{`+c.redirect+`}}`)
			r := req("GET "+c.url, ":authority: a.com")
			x := table.Match(r, 0)
			if got := x.Redirect.Location(r); got != c.want || x.Redirect.Status != c.status {
				t.Errorf("%d %s, want %d %s", x.Redirect.Status, got, c.status, c.want)
			}
		})
	}
}

func TestHeadersChangeOnTheWay(t *testing.T) {
	table, err := compileJSON(t, `{
		"request_headers_to_add":[{"header":{"key":"x-set","value":"table"},"append_action":"OVERWRITE_IF_EXISTS_OR_ADD"}],
		"virtual_hosts":[{"name":"v","domains":["*"],
			"request_headers_to_add":[{"header":{"key":"x-list","value":"host"}}],
			"response_headers_to_add":[{"header":{"key":"x-code","value":"%RESPONSE_CODE%"}}],
			"routes":[{"match":{"prefix":"/"},
				"request_headers_to_add":[
					{"header":{"key":"X-Set","value":"route"},"append_action":"OVERWRITE_IF_EXISTS_OR_ADD"},
					{"header":{"key":"x-list","value":"%REQ(:method)%-%PROTOCOL%"}},
					{"header":{"key":"x-new","value":"1"},"append_action":"ADD_IF_ABSENT"},
					{"header":{"key":"x-old","value":"2"},"append_action":"ADD_IF_ABSENT"},
					{"header":{"key":"x-nope","value":"3"},"append_action":"OVERWRITE_IF_EXISTS"},
					{"header":{"key":"x-gone","value":"%REQ(x-absent)%"}}],
				"request_headers_to_remove":["X-Del"],
				"response_headers_to_remove":["server"],
				"route":{"cluster":"a"}}]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	r := req("GET /", "x-set: client", "x-old: 0", "x-del: 1", "x-del: 2", "x-list: client")
	x := table.Match(r, 0)
	a := x.Action(r, 0)
	resp := &message.Response{Status: 204}
	resp.Header.Add("server", "s")
	x.ChangeRequest(a, &Context{Req: r})
	x.ChangeResponse(a, &Context{Req: r, Resp: resp})
	got := fmt.Sprint(r.Header.Fields(), resp.Header.Fields())
	const want = "[{x-set table} {x-old 0} {x-list client} {x-list GET-HTTP/1.1} {x-new 1} {x-list host}] [{x-code 204}]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAValueFromTheRequestSmugglesInNoHeader(t *testing.T) {
	table, err := compileJSON(t, `{"request_headers_to_add":[{"header":{"key":"x","value":"%REQ(a)%"}}],"virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/"},`+toA+`}]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	r := req("GET /", "a: 1\r\nb: 2")
	x := table.Match(r, 0)
	x.ChangeRequest(x.Action(r, 0), &Context{Req: r})
	if got := r.Header.Get("x"); got != "1  b: 2" {
		t.Errorf("value %q", got)
	}
}

func TestAMirrorGetsItsShareUnderAnotherName(t *testing.T) {
	r := req("GET /a", ":authority: a.com:80")
	_, a := forward(t, `"cluster":"c","request_mirror_policies":[{"cluster":"m","runtime_fraction":{"default_value":{"numerator":500000,"denominator":"MILLION"}}},{"cluster":"n","disable_shadow_host_suffix_append":true}]`, r)
	n := 0
	for i := range uint64(1_000_000) {
		if a.Mirrors[0].Wanted(i) {
			n++
		}
	}
	if n != 500_000 || !a.Mirrors[1].Wanted(0) {
		t.Errorf("%d of a million", n)
	}
	a.Mirrors[1].Change(r, &Context{Req: r})
	if r.Authority != "a.com:80" {
		t.Errorf("authority %q", r.Authority)
	}
	a.Mirrors[0].Change(r, &Context{Req: r})
	if r.Authority != "a.com-shadow:80" {
		t.Errorf("authority %q", r.Authority)
	}
}

func TestTheTimeoutIsTheRoutesUnlessGRPCSaysLess(t *testing.T) {
	grpc := func(v string) *message.Request {
		return req("POST /a", "content-type: application/grpc", "grpc-timeout: "+v)
	}
	for name, c := range map[string]struct {
		action string
		r      *message.Request
		want   time.Duration
	}{
		"default":                           {`"priority":"DEFAULT"`, req("GET /a"), 15 * time.Second},
		"none":                              {`"timeout":"0s"`, req("GET /a"), 0},
		"some":                              {`"timeout":"2.5s"`, req("GET /a"), 2500 * time.Millisecond},
		"gRPC's own":                        {`"timeout":"0s","max_grpc_timeout":"0s"`, grpc("100m"), 100 * time.Millisecond},
		"gRPC's own, bounded":               {`"timeout":"1s","max_grpc_timeout":"1s"`, grpc("5S"), time.Second},
		"gRPC without a deadline":           {`"timeout":"1s","max_grpc_timeout":"1s"`, grpc(""), time.Second},
		"gRPC on a route that does not ask": {`"timeout":"1s"`, grpc("100m"), time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			_, a := forward(t, `"cluster":"c",`+c.action, c.r)
			if got := a.TimeoutFor(c.r); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestRetriesFollowThePolicy(t *testing.T) {
	_, a := forward(t, `"cluster":"c","retry_policy":{"retry_on":"connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes","num_retries":2,"retriable_status_codes":[503],"host_selection_retry_max_attempts":"5","retry_host_predicate":[{"name":"envoy.retry_host_predicates.previous_hosts","typed_config":{"@type":"type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],"per_try_timeout":"1s"}`, req("GET /a"))
	p := a.Retry
	if p.Max != 2 || p.HostAttempts != 5 || !p.SkipPrevious || p.PerTry != time.Second || !p.For(req("GET /a")) {
		t.Errorf("policy %+v", p)
	}
	answer := func(status int, fields ...string) *message.Response {
		r := &message.Response{Status: status}
		for i := 0; i < len(fields); i += 2 {
			r.Header.Add(fields[i], fields[i+1])
		}
		return r
	}
	for name, c := range map[string]struct{ got, want bool }{
		"refused connection":     {p.OnFailure(ConnectFailed, false), true},
		"refused stream":         {p.OnFailure(Refused, true), true},
		"reset":                  {p.OnFailure(ResetByPeer, true), false},
		"slow try":               {p.OnFailure(TryTimeout, true), false},
		"open circuit":           {p.OnFailure(Overflow, false), false},
		"named status":           {p.OnResponse(answer(503)), true},
		"other status":           {p.OnResponse(answer(502)), false},
		"success":                {p.OnResponse(answer(200)), false},
		"gRPC unavailable":       {p.OnResponse(answer(200, "grpc-status", "14")), true},
		"gRPC cancelled":         {p.OnResponse(answer(200, "grpc-status", "1")), true},
		"gRPC internal":          {p.OnResponse(answer(200, "grpc-status", "13")), false},
		"rate limited by a peer": {p.OnResponse(answer(503, "x-envoy-ratelimited", "true")), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: retry %v, want %v", name, c.got, c.want)
		}
	}
}

func TestRetryOnNamesMeanWhatEnvoyMeans(t *testing.T) {
	all := func(on string) *Retry {
		_, a := forward(t, `"cluster":"c","retry_policy":{"retry_on":"`+on+`"}`, req("GET /a"))
		return a.Retry
	}
	if p := all("5xx"); !p.OnResponse(&message.Response{Status: 500}) || !p.OnFailure(TryTimeout, true) || p.Max != 1 {
		t.Error("5xx")
	}
	if p := all("gateway-error"); p.OnResponse(&message.Response{Status: 500}) || !p.OnResponse(&message.Response{Status: 504}) || !p.OnFailure(ResetByPeer, true) {
		t.Error("gateway-error")
	}
	if p := all("retriable-4xx, nonsense"); !p.OnResponse(&message.Response{Status: 409}) || p.OnResponse(&message.Response{Status: 429}) {
		t.Error("retriable-4xx")
	}
	if p := all("reset-before-request"); p.OnFailure(ResetByPeer, true) || !p.OnFailure(ResetByPeer, false) {
		t.Error("reset-before-request")
	}
}

func TestBackOffGrowsToItsBound(t *testing.T) {
	_, a := forward(t, `"cluster":"c","retry_policy":{"retry_on":"5xx","retry_back_off":{"base_interval":"0.01s","max_interval":"0.05s"}}`, req("GET /a"))
	for n, limit := range map[int]time.Duration{1: 10, 2: 30, 3: 50, 9: 50, 99: 50} {
		if d := a.Retry.BackOff(n, 1<<63-1); d < 0 || d >= limit*time.Millisecond {
			t.Errorf("retry %d: %v, want less than %d ms", n, d, limit)
		}
	}
}

func TestTheSameHashPolicyInputGivesTheSameHash(t *testing.T) {
	src := netip.MustParseAddrPort("10.0.0.1:4000")
	hash := func(policy string, r *message.Request, from netip.AddrPort) (uint64, bool, string) {
		_, a := forward(t, `"cluster":"c","hash_policy":[`+policy+`]`, r)
		return a.Hash(&HashInput{Req: r, Source: from})
	}
	for name, c := range map[string]struct {
		policy  string
		a, b, d *message.Request // a and b alike, d not
	}{
		"header":    {`{"header":{"header_name":"X-User"}}`, req("GET /a", "x-user: eve"), req("GET /a?z", "x-user: eve"), req("GET /a", "x-user: bob")},
		"cookie":    {`{"cookie":{"name":"s"}}`, req("GET /a", "cookie: s=1"), req("GET /a", "cookie: t=2; s=1"), req("GET /a", "cookie: s=2")},
		"parameter": {`{"query_parameter":{"name":"q"}}`, req("GET /a?q=1"), req("GET /a?r=2&q=1"), req("GET /a?q=2")},
	} {
		ha, oka, _ := hash(c.policy, c.a, src)
		hb, okb, _ := hash(c.policy, c.b, src)
		hd, okd, _ := hash(c.policy, c.d, src)
		_, none, _ := hash(c.policy, req("GET /a"), src)
		if !oka || !okb || !okd || ha != hb || ha == hd || none {
			t.Errorf("%s: %x %x %x, without: %v", name, ha, hb, hd, none)
		}
	}
	const ip = `{"connection_properties":{"source_ip":true}}`
	h1, _, _ := hash(ip, req("GET /a"), src)
	h2, _, _ := hash(ip, req("GET /a"), netip.MustParseAddrPort("10.0.0.1:5000"))
	h3, _, _ := hash(ip, req("GET /a"), netip.MustParseAddrPort("10.0.0.2:4000"))
	if h1 != h2 || h1 == h3 {
		t.Errorf("source: %x %x %x", h1, h2, h3)
	}
}

func TestAClientWithoutTheCookieGetsOneThatHashesTheSame(t *testing.T) {
	const policy = `"cluster":"c","hash_policy":[{"cookie":{"name":"s","ttl":"60s","path":"/p"}}]`
	r := req("GET /a")
	_, a := forward(t, policy, r)
	h, ok, set := a.Hash(&HashInput{Req: r, Source: netip.MustParseAddrPort("10.0.0.1:4000")})
	var value string
	if _, err := fmt.Sscanf(set, `s="%16s"; Max-Age=60; Path=/p; HttpOnly`, &value); err != nil || !ok {
		t.Fatalf("cookie %q: %v", set, err)
	}
	again := req("GET /a", "cookie: s="+value)
	if h2, _, set := a.Hash(&HashInput{Req: again}); h2 != h || set != "" {
		t.Errorf("hash %x, then %x with set-cookie %q", h, h2, set)
	}
}

func TestUpgradesAreTheRoutesOrNobodys(t *testing.T) {
	r := req("GET /a")
	_, a := forward(t, `"cluster":"c","upgrade_configs":[{"upgrade_type":"websocket"},{"upgrade_type":"foo","enabled":false}]`, r)
	for proto, want := range map[string][2]bool{"websocket": {true, true}, "foo": {false, true}, "bar": {false, false}} {
		if allowed, set := a.Upgrade(proto); allowed != want[0] || set != want[1] {
			t.Errorf("%s: %v %v", proto, allowed, set)
		}
	}
}

func TestADirectResponseHasStatusAndBody(t *testing.T) {
	x := mustCompile(t, `{"name":"n","match":{"prefix":"/"},"decorator":{"operation":"op"},"direct_response":{"status":418,"body":{"inline_string":"teapot"}}}`).Match(req("GET /"), 0)
	if x.Direct == nil || x.Direct.Status != 418 || x.Direct.Body != "teapot" || x.Action(req("GET /"), 0) != nil || x.Operation != "op" {
		t.Errorf("route %+v", x)
	}
}

func TestAFilterIsConfiguredByTheMostSpecificPart(t *testing.T) {
	cfg := func(numerator string) string {
		return `"typed_per_filter_config":{"f":{"@type":"type.googleapis.com/envoy.type.v3.FractionalPercent","numerator":` + numerator + `}}`
	}
	var c routev3.RouteConfiguration
	if err := dumptest.Unmarshal([]byte(`{`+cfg("1")+`,"virtual_hosts":[{"name":"v","domains":["*"],`+cfg("2")+`,"routes":[
		{"name":"cluster","match":{"path":"/c"},`+cfg("3")+`,"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":1,`+cfg("4")+`}]}}},
		{"name":"route","match":{"path":"/r"},`+cfg("3")+`,`+toA+`},
		{"name":"host","match":{"path":"/h"},`+toA+`},
		{"name":"off","match":{"path":"/o"},"typed_per_filter_config":{"f":{"@type":"type.googleapis.com/envoy.config.route.v3.FilterConfig","disabled":true}},`+toA+`}]},
		{"name":"w","domains":["w"],"routes":[{"name":"table","match":{"path":"/t"},`+toA+`}]}]}`), &c); err != nil {
		t.Fatal(err)
	}
	calls := 0
	table, err := Compile(&c, Options{Filter: func(name string, cfg *anypb.Any) (any, error) {
		calls++
		m, err := cfg.UnmarshalNew()
		return fmt.Sprint(name, m.ProtoReflect().Descriptor().Name(), m.(interface{ GetNumerator() uint32 }).GetNumerator()), err
	}})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/c": "fFractionalPercent4", "/r": "fFractionalPercent3", "/h": "fFractionalPercent2", "/t": "fFractionalPercent1"} {
		r := req("GET " + path)
		if path == "/t" {
			r.Authority = "w"
		}
		x := table.Match(r, 0)
		got, ok := x.FilterConfig(x.Action(r, 0), "f")
		if !ok || fmt.Sprint(got.Value) != want {
			t.Errorf("%s: %v, want %s", path, got.Value, want)
		}
	}
	r := req("GET /o")
	x := table.Match(r, 0)
	if got, ok := x.FilterConfig(x.Action(r, 0), "f"); !ok || !got.Disabled {
		t.Errorf("off: %+v", got)
	}
	if calls != 5 {
		t.Errorf("compiled %d times, want once for each of 5", calls)
	}
}
