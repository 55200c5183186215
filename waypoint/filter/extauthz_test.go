package filter

import (
	"encoding/binary"
	"errors"
	"testing"

	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// checked answers a gRPC check with resp, which is proto JSON of a CheckResponse, and keeps what was asked.
func checked(t *testing.T, resp string, asked *authv3.CheckRequest) func(*Call) (*CallAnswer, error) {
	return func(c *Call) (*CallAnswer, error) {
		if err := proto.Unmarshal(c.Body[5:], asked); err != nil {
			t.Error(err)
		}
		var p authv3.CheckResponse
		if err := protojson.Unmarshal([]byte(resp), &p); err != nil {
			t.Fatal(err)
		}
		b, _ := proto.MarshalOptions{}.MarshalAppend(make([]byte, 5), &p)
		binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
		a := &CallAnswer{Status: 200, Body: b}
		a.Trailer.Add("grpc-status", "0")
		return a, nil
	}
}

func TestExternalAuthorizationOverGRPC(t *testing.T) {
	f := compile(t, "envoy.filters.http.ext_authz", parse(t, &extauthzv3.ExtAuthz{}, `{"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}, "timeout": "1s"}}`))
	t.Run("an allowed request goes on with the service's headers", func(t *testing.T) {
		var asked authv3.CheckRequest
		x, h := exchangeOf(t, table(t, nil), "/a?b=c", "x-user", "mallory", "x-secret", "1")
		h.answer = checked(t, `{"ok_response": {"headers": [{"header": {"key": "X-User", "value": "alice"}}, {"header": {"key": "host", "value": "evil"}}], "headers_to_remove": ["x-secret"],
			"response_headers_to_add": [{"header": {"key": "x-checked", "value": "yes"}}]}}`, &asked)
		if a := f.Request(x); a != Wait || len(h.resumed) != 1 || h.resumed[0] != Continue {
			t.Fatalf("%v %v %+v", a, h.resumed, x.Reply)
		}
		if x.Req.Header.Get("x-user") != "alice" || x.Req.Header.Has("x-secret") || x.Req.Header.Has("host") {
			t.Errorf("header: %v", x.Req.Header.Fields())
		}
		q := asked.GetAttributes()
		if q.GetSource().GetPrincipal() != x.Client.Principal || q.GetSource().GetAddress().GetSocketAddress().GetAddress() != "10.244.1.5" {
			t.Errorf("source: %v; the original client is the source, not the waypoint", q.GetSource())
		}
		if r := q.GetRequest().GetHttp(); r.GetPath() != "/a?b=c" || r.GetMethod() != "GET" || r.GetHost() != "reviews:9080" || r.GetHeaders()["x-user"] != "mallory" {
			t.Errorf("request: %v", r)
		}
		x.Resp = &message.Response{Status: 200}
		f.(Answering).Answer(x)
		if x.Resp.Header.Get("x-checked") != "yes" {
			t.Errorf("answer: %v", x.Resp.Header.Fields())
		}
	})
	t.Run("a request cannot keep the service from being asked", func(t *testing.T) { // no string of protobuf is not UTF-8
		if !message.Value("\xff") {
			t.Error("such a value does not come here any more")
		}
		lenient := compile(t, "envoy.filters.http.ext_authz", parse(t, &extauthzv3.ExtAuthz{}, `{"transport_api_version": "V3", "failure_mode_allow": true, "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}}}`))
		for _, name := range []string{"x-request-id", "x-user"} {
			x, h := exchangeOf(t, table(t, nil), "/", name, "a\xff")
			h.answer = checked(t, `{"status": {"code": 7}}`, new(authv3.CheckRequest))
			if lenient.Request(x); len(h.resumed) != 1 || h.resumed[0] != Stop {
				t.Errorf("%s: %v %+v", name, h.resumed, x.Reply)
			}
		}
	})
	t.Run("a refused request gets the service's answer", func(t *testing.T) {
		x, h := exchangeOf(t, table(t, nil), "/")
		h.answer = checked(t, `{"status": {"code": 7}, "denied_response": {"status": {"code": "Unauthorized"}, "body": "who?", "headers": [{"header": {"key": "www-authenticate", "value": "Basic"}}]}}`, new(authv3.CheckRequest))
		f.Request(x)
		if h.resumed[0] != Stop || x.Reply.Status != 401 || x.Reply.Body != "who?" || len(x.Reply.Header) != 1 || x.Flags != Unauthorized {
			t.Errorf("%v %+v %v", h.resumed, x.Reply, x.Flags)
		}
	})
	t.Run("without the service nothing passes", func(t *testing.T) {
		x, h := exchangeOf(t, table(t, nil), "/")
		f.Request(x)
		if h.resumed[0] != Stop || x.Reply.Status != 403 || x.Details != "ext_authz_error" {
			t.Errorf("%v %+v", h.resumed, x.Reply)
		}
	})
	t.Run("garbage is no verdict", func(t *testing.T) {
		for _, b := range []string{"", "\x00\x00\x00\x00\x05ab", "\x01\x00\x00\x00\x00", "\x00\x00\x00\x00\x01\xff"} {
			x, h := exchangeOf(t, table(t, nil), "/")
			h.answer = func(*Call) (*CallAnswer, error) {
				a := &CallAnswer{Status: 200, Body: []byte(b)}
				a.Trailer.Add("grpc-status", "0")
				return a, nil
			}
			if f.Request(x); h.resumed[0] != Stop {
				t.Errorf("%q passed", b)
			}
		}
	})
	t.Run("failure_mode_allow lets pass and says so", func(t *testing.T) {
		f := compile(t, "a", parse(t, &extauthzv3.ExtAuthz{}, `{"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}}, "failure_mode_allow": true, "failure_mode_allow_header_add": true}`))
		x, h := exchangeOf(t, table(t, nil), "/")
		f.Request(x)
		if h.resumed[0] != Continue || x.Req.Header.Get("x-envoy-auth-failure-mode-allowed") != "true" {
			t.Errorf("%v %v", h.resumed, x.Req.Header.Fields())
		}
	})
	t.Run("a body that is too large is refused unless a part is enough", func(t *testing.T) {
		for partial, want := range map[string]Action{"false": Stop, "true": Continue} {
			f := compile(t, "a", parse(t, &extauthzv3.ExtAuthz{}, `{"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}},
				"with_request_body": {"max_request_bytes": 4, "allow_partial_message": `+partial+`}}`))
			var asked authv3.CheckRequest
			x, h := exchangeOf(t, table(t, nil), "/")
			x.Req.ContentLength, h.body = 6, []byte("abcdef")
			h.answer = checked(t, `{"ok_response": {}}`, &asked)
			f.Request(x)
			if h.resumed[0] != want || want == Continue && asked.GetAttributes().GetRequest().GetHttp().GetBody() != "abcd" {
				t.Errorf("partial %s: %v %v", partial, h.resumed, &asked)
			}
		}
	})
}

func TestExternalAuthorizationOverHTTP(t *testing.T) {
	f := compile(t, "a", parse(t, &extauthzv3.ExtAuthz{}, `{"transport_api_version": "V3", "allowed_headers": {"patterns": [{"exact": "x-ext-authz", "ignore_case": true}]},
	 "http_service": {"server_uri": {"uri": "http://ext-authz.demo.svc.cluster.local", "cluster": "outbound|8000||ext-authz", "timeout": "0.5s"}, "path_prefix": "/check",
	 "authorization_response": {"allowed_upstream_headers": {"patterns": [{"exact": "x-authz-user", "ignore_case": true}]}}}}`))
	x, h := exchangeOf(t, table(t, nil), "/a", "x-ext-authz", "allow", "cookie", "secret")
	h.answer = func(c *Call) (*CallAnswer, error) {
		if c.Req.Path != "/check/a" || c.Req.Header.Get("x-ext-authz") != "allow" || c.Req.Header.Has("cookie") || c.Req.Authority != "reviews:9080" {
			t.Errorf("call: %+v", c.Req)
		}
		a := &CallAnswer{Status: 200}
		a.Header.Add("x-authz-user", "alice")
		a.Header.Add("x-other", "1")
		return a, nil
	}
	if f.Request(x); h.resumed[0] != Continue || x.Req.Header.Get("x-authz-user") != "alice" || x.Req.Header.Has("x-other") {
		t.Errorf("allowed: %v %v", h.resumed, x.Req.Header.Fields())
	}
	for status, want := range map[int]int{302: 302, 401: 401, 403: 403, 404: 404, 500: 403, 503: 403} {
		x, h := exchangeOf(t, table(t, nil), "/a")
		h.answer = func(*Call) (*CallAnswer, error) { return &CallAnswer{Status: status, Body: []byte("no")}, nil }
		if f.Request(x); h.resumed[0] != Stop || x.Reply.Status != want {
			t.Errorf("service says %d: %v %+v", status, h.resumed, x.Reply)
		}
	}
}

func TestCustomActionAsksOnlyForRequestsOfItsPolicy(t *testing.T) { // what istiod makes of action CUSTOM
	shadow := compile(t, rbacName, parse(t, &rbacv3.RBAC{}, `{"shadow_rules_stat_prefix": "istio_ext_authz_", "shadow_rules": {"action": "DENY", "policies": {
	 "istio-ext-authz-x-ns[demo]-policy[p]-rule[0]": {"permissions": [{"url_path": {"path": {"prefix": "/admin"}}}], "principals": [{"any": true}]}}}}`))
	ask := compile(t, "a", parse(t, &extauthzv3.ExtAuthz{}, `{"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}},
	 "filter_enabled_metadata": {"filter": "envoy.filters.http.rbac", "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}], "value": {"string_match": {"prefix": "istio-ext-authz-x"}}}}`))
	for path, want := range map[string]int{"/admin/a": 1, "/a": 0} {
		x, h := exchangeOf(t, table(t, nil), path)
		h.answer = func(*Call) (*CallAnswer, error) { return nil, errors.New("down") }
		if a := shadow.Request(x); a != Continue {
			t.Errorf("shadow rules refused %s", path)
		}
		ask.Request(x)
		if len(h.calls) != want {
			t.Errorf("%s: %d calls", path, len(h.calls))
		}
	}
}
