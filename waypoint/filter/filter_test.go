package filter

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// fakeHost carries an exchange without a loop: what would happen later is kept.
type fakeHost struct {
	t       *testing.T
	resumed []Action
	delay   time.Duration
	after   func() Action
	calls   []*Call
	answer  func(*Call) (*CallAnswer, error)
	body    []byte
}

func (h *fakeHost) Resume(a Action) { h.resumed = append(h.resumed, a) }

func (h *fakeHost) After(d time.Duration, f func() Action) { h.delay, h.after = d, f }

func (h *fakeHost) Go(func(context.Context) func()) { h.t.Fatal("unexpected Go") }

func (h *fakeHost) Call(c *Call, done func(*CallAnswer, error)) {
	h.calls = append(h.calls, c)
	if h.answer == nil {
		done(nil, errors.New("no service"))
		return
	}
	done(h.answer(c))
}

func (h *fakeHost) Share(_ any, c *Call, take func(*CallAnswer, error), done func()) {
	h.Call(c, take)
	done()
}

func (h *fakeHost) Body(limit int, done func([]byte, bool)) {
	done(h.body[:min(len(h.body), limit)], len(h.body) <= limit)
}

// table is a route table with one route, whose filter settings are in JSON by filter name.
func table(t *testing.T, settings map[string]proto.Message) *route.Table {
	t.Helper()
	r := &routev3.Route{
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "reviews"}}},
	}
	return tableOf(t, r, &routev3.VirtualHost{}, settings)
}

// tableOf is table with what the route and the virtual host say besides.
func tableOf(t *testing.T, r *routev3.Route, vh *routev3.VirtualHost, settings map[string]proto.Message) *route.Table {
	t.Helper()
	for n, m := range settings {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		if r.TypedPerFilterConfig == nil {
			r.TypedPerFilterConfig = map[string]*anypb.Any{}
		}
		r.TypedPerFilterConfig[n] = a
	}
	vh.Name, vh.Domains, vh.Routes = "v", []string{"*"}, []*routev3.Route{r}
	out, err := route.Compile(&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{vh}}, route.Options{Filter: CompilePart, Limits: CompileLimits})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// exchangeOf is a GET of path by a client of the mesh; headers are names and values.
func exchangeOf(t *testing.T, tab *route.Table, path string, headers ...string) (*Exchange, *fakeHost) {
	t.Helper()
	h := &fakeHost{t: t}
	r := &message.Request{Method: "GET", Scheme: "http", Authority: "reviews:9080", Path: path, Proto: message.HTTP11}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return &Exchange{
		Host: h, Req: r, Routes: tab, Rand: rand.New(rand.NewPCG(1, 2)), Now: time.Now(),
		Client: Peer{Principal: "spiffe://cluster.local/ns/demo/sa/client", Addr: netip.MustParseAddrPort("10.244.1.5:40000")},
		Local:  "spiffe://cluster.local/ns/demo/sa/waypoint", Dest: netip.MustParseAddrPort("10.96.0.10:9080"),
	}, h
}

// compile makes a filter of a message, under Envoy's usual name of it.
func compile(t *testing.T, name string, m proto.Message) Filter {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile(&hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: a}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// parse reads proto JSON.
func parse[M proto.Message](t testing.TB, m M, json string) M {
	t.Helper()
	if err := protojson.Unmarshal([]byte(json), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTheRemoteAddressIsWhatTheLastProxyWroteDown(t *testing.T) {
	for _, c := range []struct {
		headers []string
		want    string
	}{
		{nil, "10.244.1.5"},
		{[]string{"192.0.2.1"}, "192.0.2.1"},
		{[]string{"192.0.2.1, 192.0.2.2"}, "192.0.2.2"},
		{[]string{"192.0.2.1", "192.0.2.2 , 2001:db8::1"}, "2001:db8::1"},
		{[]string{"192.0.2.1", ""}, "192.0.2.1"}, // an empty line is none, as with Envoy
		{[]string{"", "192.0.2.1", "", ""}, "192.0.2.1"},
		{[]string{"192.0.2.1,"}, "10.244.1.5"},
		{[]string{"192.0.2.1", "unknown"}, "10.244.1.5"},
		{[]string{"192.0.2.1:80"}, "10.244.1.5"},
		{[]string{""}, "10.244.1.5"},
	} {
		x, _ := exchangeOf(t, table(t, nil), "/")
		for _, v := range c.headers {
			x.Req.Header.Add("x-forwarded-for", v)
		}
		if got := x.RemoteIP().String(); got != c.want {
			t.Errorf("x-forwarded-for %q: %s, want %s", c.headers, got, c.want)
		}
	}
}
