package filter

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

const localName = "envoy.filters.http.local_ratelimit"

func local(t *testing.T, json string) Filter {
	t.Helper()
	return compile(t, localName, parse(t, &localv3.LocalRateLimit{}, json))
}

const on = `"filter_enabled": {"default_value": {"numerator": 100}}, "filter_enforced": {"default_value": {"numerator": 100}}`

func TestALocalRateLimitLetsABurstThroughAndThenItsRate(t *testing.T) {
	f := local(t, `{"stat_prefix": "x", "token_bucket": {"max_tokens": 3, "tokens_per_fill": 1, "fill_interval": "1s"}, `+on+`,
	 "enable_x_ratelimit_headers": "DRAFT_VERSION_03", "enable_retry_after_header": true, "response_headers_to_add": [{"header": {"key": "x-limited", "value": "yes"}}]}`)
	start := epoch.Add(10 * time.Second)
	at := func(d time.Duration) (*Exchange, Action) {
		x, _ := exchangeOf(t, table(t, nil), "/")
		x.Now = start.Add(d)
		a := f.Request(x)
		x.Resp = &message.Response{Status: 200}
		f.(Answering).Answer(x)
		return x, a
	}
	for i, want := range []string{"2", "1", "0"} {
		if x, a := at(0); a != Continue || x.Resp.Header.Get("x-ratelimit-remaining") != want || x.Resp.Header.Get("x-ratelimit-limit") != "3" {
			t.Errorf("request %d: %v %v", i, a, x.Resp.Header.Fields())
		}
	}
	x, a := at(100 * time.Millisecond)
	if a != Stop || x.Reply.Status != 429 || x.Reply.Body != "local_rate_limited" || x.Flags != RateLimited || x.Resp.Header.Get("x-limited") != "yes" {
		t.Errorf("beyond the burst: %v %+v %v", a, x.Reply, x.Resp.Header.Fields())
	}
	if len(x.Reply.Header) != 1 || x.Reply.Header[0].Value != "1" {
		t.Errorf("retry-after: %v", x.Reply.Header)
	}
	if _, a := at(time.Second); a != Continue {
		t.Error("one more a second later")
	}
	if _, a := at(time.Second); a != Stop {
		t.Error("and only one")
	}
	for range 3 {
		if _, a := at(time.Hour); a != Continue {
			t.Error("after an hour the burst is whole again")
		}
	}
	if _, a := at(time.Hour); a != Stop {
		t.Error("and no more than that")
	}
}

func TestALocalRateLimitIsOffUnlessItIsEnabledAndOnlyCountsUnlessItIsEnforced(t *testing.T) {
	for _, json := range []string{
		`{"stat_prefix": "x", "token_bucket": {"max_tokens": 1, "fill_interval": "60s"}}`,
		`{"stat_prefix": "x", "token_bucket": {"max_tokens": 1, "fill_interval": "60s"}, "filter_enabled": {"default_value": {"numerator": 100}}}`,
	} {
		f := local(t, json)
		for range 5 {
			if x, _ := exchangeOf(t, table(t, nil), "/"); f.Request(x) != Continue {
				t.Errorf("%s refused", json)
			}
		}
	}
}

func TestDescriptorsHaveBucketsOfTheirOwn(t *testing.T) {
	f := local(t, `{"stat_prefix": "x", "token_bucket": {"max_tokens": 100, "fill_interval": "60s"}, `+on+`,
	 "rate_limits": [{"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}],
	 "descriptors": [{"entries": [{"key": "user", "value": "mallory"}], "token_bucket": {"max_tokens": 1, "fill_interval": "60s"}}]}`)
	got := map[string][]Action{}
	for range 2 {
		for _, u := range []string{"mallory", "alice"} {
			x, _ := exchangeOf(t, table(t, nil), "/", "x-user", u)
			got[u] = append(got[u], f.Request(x))
		}
	}
	if !slices.Equal(got["mallory"], []Action{Continue, Stop}) || !slices.Equal(got["alice"], []Action{Continue, Continue}) {
		t.Errorf("%v", got)
	}
}

func TestALimitWithAValueLeftOpenHasABucketForEachValue(t *testing.T) {
	f := local(t, `{"stat_prefix": "x", "token_bucket": {"max_tokens": 100, "fill_interval": "60s"}, `+on+`, "max_dynamic_descriptors": 2,
	 "rate_limits": [{"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}],
	 "descriptors": [{"entries": [{"key": "user"}], "token_bucket": {"max_tokens": 1, "fill_interval": "3600s"}}]}`)
	ask := func(u string) Action {
		x, _ := exchangeOf(t, table(t, nil), "/", "x-user", u)
		return f.Request(x)
	}
	for i, c := range []struct {
		user string
		want Action
	}{{"a", Continue}, {"b", Continue}, {"a", Stop}, {"b", Stop}, {"c", Continue}, {"b", Stop}, {"a", Continue}} {
		if got := ask(c.user); got != c.want {
			t.Errorf("request %d, of %s: %v, want %v (two are remembered)", i, c.user, got, c.want)
		}
	}
}

const twoLimits = `{"stat_prefix": "x", "token_bucket": {"max_tokens": 100, "fill_interval": "60s"}, ` + on + `, %s "descriptors": [
 {"entries": [{"key": "route", "value": "r"}], "token_bucket": {"max_tokens": 3, "fill_interval": "3600s"}},
 {"entries": [{"key": "host", "value": "h"}], "token_bucket": {"max_tokens": 1, "fill_interval": "3600s"}}]}`

func TestTheLimitsOfARouteAndOfItsVirtualHostAreThoseOfTheFilter(t *testing.T) {
	key := func(k, v string) []*routev3.RateLimit {
		return []*routev3.RateLimit{{Actions: []*routev3.RateLimit_Action{{ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{
			GenericKey: &routev3.RateLimit_Action_GenericKey{DescriptorKey: k, DescriptorValue: v},
		}}}}}
	}
	staged := key("host", "h")
	staged[0].Stage = wrapperspb.UInt32(1)
	for name, c := range map[string]struct {
		route, host []*routev3.RateLimit
		include     bool
		more        string
		let         int // of four
	}{
		"no limit of either":                       {let: 4},
		"the route's":                              {route: key("route", "r"), let: 3},
		"the host's, where the route has none":     {host: key("host", "h"), let: 1},
		"the route's in place of the host's":       {route: key("route", "r"), host: key("host", "h"), let: 3},
		"both, if the route says so":               {route: key("route", "r"), host: key("host", "h"), include: true, let: 1},
		"both, if the filter says so":              {route: key("route", "r"), host: key("host", "h"), more: `"vh_rate_limits": "INCLUDE",`, let: 1},
		"not the host's, if the filter says so":    {host: key("host", "h"), more: `"vh_rate_limits": "IGNORE",`, let: 4},
		"of another stage":                         {host: staged, let: 4},
		"of the filter's stage":                    {host: staged, more: `"stage": 1,`, let: 1},
		"the filter's own in place of all of them": {host: key("host", "h"), more: `"rate_limits": [{"actions": [{"generic_key": {"descriptor_key": "route", "descriptor_value": "r"}}]}],`, let: 3},
	} {
		f := local(t, fmt.Sprintf(twoLimits, c.more))
		r := &routev3.Route{
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				//lint:ignore SA1019 it is deprecated, and still in use
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "reviews"}, RateLimits: c.route, IncludeVhRateLimits: wrapperspb.Bool(c.include),
			}},
		}
		tab := tableOf(t, r, &routev3.VirtualHost{RateLimits: c.host}, nil)
		let := 0
		for range 4 {
			if x, _ := exchangeOf(t, tab, "/"); f.Request(x) == Continue {
				let++
			}
		}
		if let != c.let {
			t.Errorf("%s: %d of 4, want %d", name, let, c.let)
		}
	}
}

func TestTheRateLimitServiceIsAskedAndObeyed(t *testing.T) {
	f := compile(t, "envoy.filters.http.ratelimit", parse(t, &limitv3.RateLimit{}, `{"domain": "d", "rate_limit_service": {"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "rls"}}},
	 "rate_limits": [{"actions": [{"generic_key": {"descriptor_value": "all"}}, {"remote_address": {}}]}]}`))
	answer := func(p *rlsv3.RateLimitResponse) func(*Call) (*CallAnswer, error) {
		return func(c *Call) (*CallAnswer, error) {
			var q rlsv3.RateLimitRequest
			if err := proto.Unmarshal(c.Body[5:], &q); err != nil {
				t.Error(err)
			}
			if e := q.GetDescriptors()[0].GetEntries(); q.GetDomain() != "d" || len(e) != 2 || e[0].GetValue() != "all" || e[1].GetValue() != "10.244.1.5" {
				t.Errorf("asked: %v", &q)
			}
			b, _ := proto.MarshalOptions{}.MarshalAppend(make([]byte, 5), p)
			binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
			a := &CallAnswer{Status: 200, Body: b}
			a.Trailer.Add("grpc-status", "0")
			return a, nil
		}
	}
	x, h := exchangeOf(t, table(t, nil), "/")
	h.answer = answer(&rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK})
	if f.Request(x); h.resumed[0] != Continue {
		t.Errorf("OK: %v", h.resumed)
	}
	x, h = exchangeOf(t, table(t, nil), "/")
	h.answer = answer(&rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OVER_LIMIT})
	f.Request(x)
	x.Resp = &message.Response{Status: 429}
	if f.(Answering).Answer(x); h.resumed[0] != Stop || x.Reply.Status != 429 || x.Resp.Header.Get("x-envoy-ratelimited") != "true" {
		t.Errorf("over limit: %v %+v", h.resumed, x.Reply)
	}
	x, h = exchangeOf(t, table(t, nil), "/")
	if f.Request(x); h.resumed[0] != Continue {
		t.Errorf("without the service, as Envoy, requests pass: %v", h.resumed)
	}
}

func TestTheServicesLimitsAreToldAsTheDraftWantsThem(t *testing.T) {
	f := compile(t, "envoy.filters.http.ratelimit", parse(t, &limitv3.RateLimit{}, `{"domain": "d", "rate_limit_service": {"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "rls"}}},
	 "enable_x_ratelimit_headers": "DRAFT_VERSION_03", "rate_limits": [{"actions": [{"generic_key": {"descriptor_value": "all"}}]}]}`))
	x, h := exchangeOf(t, table(t, nil), "/")
	h.answer = func(*Call) (*CallAnswer, error) {
		b, _ := proto.MarshalOptions{}.MarshalAppend(make([]byte, 5), parse(t, &rlsv3.RateLimitResponse{}, `{"overallCode": "OK", "statuses": [
		 {"code": "OK", "currentLimit": {"requestsPerUnit": 10, "unit": "MINUTE"}, "limitRemaining": 7, "durationUntilReset": "30s"},
		 {"code": "OK", "currentLimit": {"requestsPerUnit": 5, "unit": "SECOND", "name": "burst"}, "limitRemaining": 4, "durationUntilReset": "1s"}]}`))
		binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
		a := &CallAnswer{Status: 200, Body: b}
		a.Trailer.Add("grpc-status", "0")
		return a, nil
	}
	f.Request(x)
	x.Resp = &message.Response{Status: 200}
	f.(Answering).Answer(x)
	for k, want := range map[string]string{"x-ratelimit-limit": `5, 10;w=60, 5;w=1;name="burst"`, "x-ratelimit-remaining": "4", "x-ratelimit-reset": "1"} {
		if got := x.Resp.Header.Get(k); got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
}

// A value that is not UTF-8 must not be a way around the service, which lets requests pass when it is not there.
func TestARequestCannotKeepTheRateLimitServiceFromBeingAsked(t *testing.T) {
	f := compile(t, "envoy.filters.http.ratelimit", parse(t, &limitv3.RateLimit{}, `{"domain": "d", "rate_limit_service": {"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "rls"}}},
	 "rate_limits": [{"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}]}`))
	x, h := exchangeOf(t, table(t, nil), "/", "x-user", "a\xff")
	h.answer = func(*Call) (*CallAnswer, error) {
		b, _ := proto.MarshalOptions{}.MarshalAppend(make([]byte, 5), &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OVER_LIMIT})
		binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
		a := &CallAnswer{Status: 200, Body: b}
		a.Trailer.Add("grpc-status", "0")
		return a, nil
	}
	if f.Request(x); len(h.resumed) != 1 || h.resumed[0] != Stop {
		t.Errorf("%v %+v", h.resumed, x.Reply)
	}
}
