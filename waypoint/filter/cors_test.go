package filter

import (
	"slices"
	"testing"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

func TestAPreflightIsAnsweredWithThePolicyAndNothingOfTheRoute(t *testing.T) {
	const name = "envoy.filters.http.cors"
	f := compile(t, name, &corsv3.Cors{})
	tab := table(t, map[string]proto.Message{name: parse(t, &corsv3.CorsPolicy{}, `{"allow_origin_string_match": [{"exact": "https://a.example"}],
	 "allow_methods": "GET", "expose_headers": "x-e", "allow_credentials": true, "forward_not_matching_preflights": false}`)})
	for origin, want := range map[string]string{"https://a.example": "https://a.example", "https://b.example": ""} {
		x, _ := exchangeOf(t, tab, "/", "origin", origin, "access-control-request-method", "GET")
		x.Req.Method = "OPTIONS"
		if a := f.Request(x); a != Stop || x.Reply.Status != 200 || !x.Reply.Bare {
			t.Fatalf("%s: %v %+v", origin, a, x.Reply)
		}
		if !slices.Contains(x.Reply.Header, message.Field{Name: "access-control-allow-methods", Value: "GET"}) {
			t.Errorf("%s: %v", origin, x.Reply.Header)
		}
		x.Resp = &message.Response{Status: 200}
		f.(Answering).Answer(x)
		if got := x.Resp.Header.Get("access-control-allow-origin"); got != want {
			t.Errorf("%s: origin %q, want %q", origin, got, want)
		}
		if got := x.Resp.Header.Get("access-control-expose-headers"); (got != "") != (want != "") {
			t.Errorf("%s: exposes %q", origin, got)
		}
	}
}
