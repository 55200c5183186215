package filter

import (
	"strings"
	"testing"
	"time"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

const rbacOf = `{"rules": {"action": "ACTION", "policies": {"ns[demo]-policy[p]-rule[0]": {
 "permissions": [{"and_rules": {"rules": [{"or_rules": {"rules": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}}]}}, {"url_path": {"path": {"prefix": "/info"}}}, {"destination_port": 9080}]}}],
 "principals": [{"and_ids": {"ids": [{"filter_state": {"key": "io.istio.peer_principal", "string_match": {"exact": "spiffe://cluster.local/ns/demo/sa/client"}}}, {"direct_remote_ip": {"address_prefix": "10.244.0.0", "prefix_len": 16}}]}}]}}}}`

func TestRBACDecidesByTheOriginalClientsIdentity(t *testing.T) {
	for _, c := range []struct {
		action, path, principal string
		allowed                 bool
		details                 string
	}{
		{"ALLOW", "/info?x", "spiffe://cluster.local/ns/demo/sa/client", true, ""},
		{"ALLOW", "/other", "spiffe://cluster.local/ns/demo/sa/client", false, "rbac_access_denied_matched_policy[none]"},
		{"ALLOW", "/info", "spiffe://cluster.local/ns/demo/sa/waypoint", false, "rbac_access_denied_matched_policy[none]"},
		{"ALLOW", "/info", "", false, "rbac_access_denied_matched_policy[none]"},
		{"DENY", "/info", "spiffe://cluster.local/ns/demo/sa/client", false, "rbac_access_denied_matched_policy[ns[demo]-policy[p]-rule[0]]"},
		{"DENY", "/other", "spiffe://cluster.local/ns/demo/sa/client", true, ""},
		{"LOG", "/info", "spiffe://cluster.local/ns/demo/sa/client", true, ""},
	} {
		f := compile(t, rbacName, parse(t, &rbacv3.RBAC{}, strings.Replace(rbacOf, "ACTION", c.action, 1)))
		x, _ := exchangeOf(t, table(t, nil), c.path)
		x.Client.Principal = c.principal
		a := f.Request(x)
		if (a == Continue) != c.allowed || x.Details != c.details {
			t.Errorf("%+v: action %v, details %q", c, a, x.Details)
		}
		if !c.allowed && (x.Reply.Status != 403 || x.Reply.Body != "RBAC: access denied") {
			t.Errorf("%+v: reply %+v", c, x.Reply)
		}
	}
}

func TestAnALLOWWithoutPoliciesRefusesEverything(t *testing.T) {
	f := compile(t, rbacName, parse(t, &rbacv3.RBAC{}, `{"rules": {"action": "ALLOW"}}`))
	x, _ := exchangeOf(t, table(t, nil), "/")
	if f.Request(x) != Stop {
		t.Error("let pass")
	}
	g, err := compileNetworkRBAC(parse(t, &networkv3.RBAC{}, `{"rules": {"action": "ALLOW"}, "stat_prefix": "x"}`))
	if err != nil || g.Admit(x) {
		t.Error("a TCP connection was let pass", err)
	}
}

func TestFiltersThatAreNotUnderstoodAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck"}}`: `unknown type "envoy.extensions.filters.http.health_check.v3.HealthCheck" of filter "x"`,
		`{"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"}}`:          `not one of a filter`,
		`{"name": "x"}`:                         `typed_config: required`,
		`{"name": "x", "config_discovery": {}}`: `extension discovery`,
		`{"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"policies": {"p": {"permissions": [{"any": true}], "principals": [{"or_ids": {}}]}}}}}`: `typed_config.rules.policies["p"].principals[0].or_ids.ids: at least one is required`,
	} {
		var p hcmv3.HttpFilter
		parseLoose(t, &p, text)
		if _, err := Compile(&p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// parseLoose is parse of JSON whose types are linked in.
func parseLoose(t *testing.T, p *hcmv3.HttpFilter, text string) {
	t.Helper()
	if strings.Contains(text, "health_check") {
		p.Name, p.ConfigType = "x", &hcmv3.HttpFilter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: prefix + "envoy.extensions.filters.http.health_check.v3.HealthCheck"}}
		return
	}
	parse(t, p, text)
}

func TestFaults(t *testing.T) {
	f := compile(t, "envoy.filters.http.fault", &faultv3.HTTPFault{})
	at := func(json string) (*Exchange, *fakeHost, Action) {
		x, h := exchangeOf(t, table(t, map[string]proto.Message{"envoy.filters.http.fault": parse(t, &faultv3.HTTPFault{}, json)}), "/")
		return x, h, f.Request(x)
	}
	if x, _, a := at(`{"abort": {"http_status": 418, "percentage": {"numerator": 100}}}`); a != Stop || x.Reply.Status != 418 || x.Flags != FaultInjected {
		t.Errorf("abort: %v %+v", a, x.Reply)
	}
	if _, _, a := at(`{"abort": {"http_status": 418, "percentage": {"numerator": 0}}}`); a != Continue {
		t.Errorf("0%%: %v", a)
	}
	if x, _, a := at(`{"abort": {"grpc_status": 14, "percentage": {"numerator": 100}}}`); a != Stop || !x.Reply.HasGRPC || x.Reply.GRPC != 14 {
		t.Errorf("gRPC abort: %v %+v", a, x.Reply)
	}
	x, h, a := at(`{"delay": {"fixed_delay": "5s", "percentage": {"numerator": 100}}, "abort": {"http_status": 503, "percentage": {"numerator": 100}}}`)
	if a != Wait || h.delay != 5*time.Second || x.Flags != DelayInjected {
		t.Fatalf("delay: %v %v", a, h.delay)
	}
	if h.after() != Stop || x.Reply.Status != 503 {
		t.Errorf("after the delay: %+v", x.Reply)
	}
	hits := 0
	for range 50 {
		tab := table(t, map[string]proto.Message{"envoy.filters.http.fault": parse(t, &faultv3.HTTPFault{}, `{"abort": {"http_status": 503, "percentage": {"numerator": 10}}}`)})
		x, _ := exchangeOf(t, tab, "/")
		for range 100 {
			if f.Request(x) == Stop {
				hits++
			}
		}
	}
	if hits < 300 || hits > 700 {
		t.Errorf("%d of 5000 at 10%%", hits)
	}
}

func TestCORS(t *testing.T) {
	f := compile(t, "envoy.filters.http.cors", &corsv3.Cors{})
	tab := table(t, map[string]proto.Message{"envoy.filters.http.cors": parse(t, &corsv3.CorsPolicy{}, `{"allow_origin_string_match": [{"exact": "https://a.example"}],
	 "allow_methods": "GET,POST", "allow_headers": "x-a", "max_age": "600", "allow_credentials": true, "expose_headers": "x-b", "forward_not_matching_preflights": false}`)})
	preflight := func(origin string) (*Exchange, Action) {
		x, _ := exchangeOf(t, tab, "/", "origin", origin, "access-control-request-method", "GET")
		x.Req.Method = "OPTIONS"
		return x, f.Request(x)
	}
	x, a := preflight("https://a.example")
	if a != Stop || x.Reply.Status != 200 {
		t.Fatalf("preflight: %v %+v", a, x.Reply)
	}
	x.Resp = &message.Response{Status: 200}
	for _, m := range x.Reply.Header {
		x.Resp.Header.Add(m.Name, m.Value)
	}
	f.(Answering).Answer(x)
	for n, want := range map[string]string{
		"access-control-allow-origin": "https://a.example", "access-control-allow-methods": "GET,POST", "access-control-allow-headers": "x-a",
		"access-control-max-age": "600", "access-control-allow-credentials": "true",
	} {
		if v := x.Resp.Header.Get(n); v != want {
			t.Errorf("%s: %q", n, v)
		}
	}
	if x, a := preflight("https://evil.example"); a != Stop || x.Noted(f) != nil {
		t.Errorf("preflight of another origin: %v %+v", a, x.Reply)
	}
	y, _ := exchangeOf(t, tab, "/", "origin", "https://a.example")
	if f.Request(y) != Continue {
		t.Fatal("a simple request was answered")
	}
	y.Resp = &message.Response{Status: 200}
	if f.(Answering).Answer(y); y.Resp.Header.Get("access-control-expose-headers") != "x-b" {
		t.Errorf("answer: %v", y.Resp.Header.Fields())
	}
}

func TestHeaderMutation(t *testing.T) {
	f := compile(t, "m", parse(t, &mutationv3.HeaderMutation{}, `{"mutations": {"request_mutations": [{"remove": "x-a"}, {"append": {"header": {"key": "x-b", "value": "%REQ(:path)%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}},
	 {"remove_on_match": {"key_matcher": {"prefix": "x-secret"}}}]}}`))
	x, _ := exchangeOf(t, table(t, nil), "/p", "x-a", "1", "x-b", "2", "x-secret-1", "3")
	f.Request(x)
	if h := &x.Req.Header; h.Has("x-a") || h.Get("x-b") != "/p" || h.Len() != 1 {
		t.Errorf("header: %v", h.Fields())
	}
}
