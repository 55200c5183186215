package route

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// envoy is a real Envoy that serves tables at unix sockets, one each.
type envoy struct {
	t   *testing.T
	dir string
}

// startEnvoy runs the binary that ENVOY_BIN names, until the test ends. Without one the test is skipped.
func startEnvoy(t *testing.T, managers []*hcmv3.HttpConnectionManager) *envoy {
	t.Helper()
	bin := envoytest.Require(t)
	e := &envoy{t: t, dir: t.TempDir()}
	b := &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{}}
	for i, m := range managers {
		router, err := anypb.New(&routerv3.Router{})
		if err != nil {
			t.Fatal(err)
		}
		m.StatPrefix = "x"
		m.HttpFilters = []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router}}}
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, &listenerv3.Listener{
			Name: fmt.Sprint(i), Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: e.socket(i)}}},
			FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: a}}}}},
		})
	}
	raw, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	envoytest.Start(t, bin, "envoy.json", raw, "unix", e.socket(len(managers)-1))
	return e
}

func (e *envoy) socket(i int) string { return filepath.Join(e.dir, fmt.Sprint(i)) }

// send sends a request as it is written here, and returns the answer with its body.
func (e *envoy) send(i int, r *message.Request) (*http.Response, string) {
	e.t.Helper()
	c, err := net.Dial("unix", e.socket(i))
	if err != nil {
		e.t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nhost: %s\r\n", r.Method, r.Path, r.Authority)
	for _, f := range r.Header.Fields() {
		fmt.Fprintf(c, "%s: %s\r\n", f.Name, f.Value)
	}
	fmt.Fprint(c, "\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: r.Method})
	if err != nil {
		e.t.Fatalf("%s %s: %v", r.Method, r.Path, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return resp, string(body)
}

// goesOn says that our path is what Envoy's becomes when it is made canonical once more, and slashes at its beginning are
// merged too. Ours has nothing left to do: a rule cannot be got round by a second proxy.
func goesOn(p PathPolicy, envoys, ours string) bool {
	again, _ := p.Apply(envoys)
	return envoys != "" && again == ours
}

// random are bytes for a maker.
func random(r *rand.Rand) []byte {
	b := make([]byte, 400)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func manager(c *routev3.RouteConfiguration) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: c}}
}

// sayName lets routes answer with their names.
func sayName(c *routev3.RouteConfiguration) *routev3.RouteConfiguration {
	c = proto.Clone(c).(*routev3.RouteConfiguration)
	for _, vh := range c.GetVirtualHosts() {
		for _, r := range vh.GetRoutes() {
			if r.GetRoute() != nil {
				r.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
					Status: 200, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: r.GetName()}}}}
			}
		}
	}
	return c
}

// describe is a route's name and condition.
func describe(c *routev3.RouteConfiguration, name string) string {
	for _, vh := range c.GetVirtualHosts() {
		for _, r := range vh.GetRoutes() {
			if r.GetName() == name {
				return fmt.Sprintf("%s of %q %v", name, vh.GetDomains(), r.GetMatch())
			}
		}
	}
	return name
}

func TestEnvoyTakesTheSameRoutes(t *testing.T) {
	const tables, requests = 100, 60
	rnd := rand.New(rand.NewPCG(42, 1))
	var managers []*hcmv3.HttpConnectionManager
	var ours []*Table
	for range tables {
		c := (&maker{random(rnd)}).table()
		x, err := Compile(c, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, x)
		managers = append(managers, manager(sayName(c)))
	}
	e := startEnvoy(t, managers)
	differ, taken := 0, 0
	for i, x := range ours {
		for range requests {
			r := (&maker{random(rnd)}).request()
			if r.Method == "a" {
				r.Method = "PUT"
			}
			resp, want := e.send(i, r)
			if resp.StatusCode == 404 {
				want = "none"
			}
			got := "none"
			if m := x.Match(r, 0); m != nil {
				got = m.Name
				taken++
			}
			if got != want {
				if differ++; differ < 10 {
					t.Errorf("%s %s %s %v: route %s, Envoy's %s", r.Method, r.Authority, r.Path, r.Header.Fields(), describe(managers[i].GetRouteConfig(), got), describe(managers[i].GetRouteConfig(), want))
				}
			}
		}
	}
	t.Logf("%d requests to %d tables, %d took a route, %d differ", tables*requests, tables, taken, differ)
}

func TestEnvoySendsClientsToTheSameURLs(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 9))
	c := &routev3.RouteConfiguration{Name: "r"}
	vh := &routev3.VirtualHost{Name: "v", Domains: []string{"*"}}
	c.VirtualHosts = []*routev3.VirtualHost{vh}
	for i := range 300 {
		x := (&maker{random(rnd)}).redirect()
		m := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: fmt.Sprintf("/%d/a", i)}}
		switch {
		case x.GetRegexRewrite() != nil: // a regular expression of the path
		case i%3 == 0:
			m.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: fmt.Sprintf("/%d/a", i)}
		case i%3 == 1:
			m.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: fmt.Sprintf("/%d/.*", i)}}
		}
		vh.Routes = append(vh.Routes, &routev3.Route{Match: m, Action: &routev3.Route_Redirect{Redirect: x}})
	}
	ours, err := Compile(c, Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := startEnvoy(t, []*hcmv3.HttpConnectionManager{manager(c)})
	n, differ := 0, 0
	for i := range 300 {
		for _, rest := range []string{"", "/", "/b?q=1", "/b/a?a=/a", "?", "/ab"} {
			r := &message.Request{Method: "GET", Scheme: "http", Path: fmt.Sprintf("/%d/a%s", i, rest), Authority: []string{"a.com", "a.com:80", "a.com:443", "a.com:81", "[::1]:80"}[rnd.IntN(5)]}
			resp, _ := e.send(0, r)
			want := fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("location"))
			got := "404 "
			if x := ours.Match(r, 0); x != nil {
				got = fmt.Sprint(x.Redirect.Status, " ", x.Redirect.Location(r))
			}
			n++
			if got != want {
				if differ++; differ < 20 {
					t.Errorf("%s %s: %q, Envoy's %q by %v", r.Authority, r.Path, got, want, vh.GetRoutes()[i])
				}
			}
		}
	}
	t.Logf("%d requests, %d differ", n, differ)
}

func TestEnvoyChangesHeadersAlike(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 4))
	var managers []*hcmv3.HttpConnectionManager
	var ours []*Table
	for i := range 200 {
		m := &maker{random(rnd)}
		c := &routev3.RouteConfiguration{Name: "r", ResponseHeadersToAdd: m.add(), ResponseHeadersToRemove: m.remove(), MostSpecificHeaderMutationsWins: i%2 == 0}
		r := &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}, ResponseHeadersToAdd: m.add(), ResponseHeadersToRemove: m.remove(),
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200}}}
		c.VirtualHosts = []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, ResponseHeadersToAdd: m.add(), ResponseHeadersToRemove: m.remove(), Routes: []*routev3.Route{r}}}
		x, err := Compile(c, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ours, managers = append(ours, x), append(managers, manager(c))
	}
	e := startEnvoy(t, managers)
	differ := 0
	for i, x := range ours {
		r := req("GET /", "h: value", "h: second")
		answer, _ := e.send(i, r)
		resp := &message.Response{Status: 200}
		x.Match(r, 0).ChangeResponse(nil, &Context{Req: r, Resp: resp})
		for _, name := range []string{"x-a", "x-b", "x-c"} {
			want := fmt.Sprintf("%q", answer.Header.Values(name))
			var vs []string
			for _, f := range resp.Header.Fields() {
				if f.Name == name {
					vs = append(vs, f.Value)
				}
			}
			if got := fmt.Sprintf("%q", vs); got != want {
				if differ++; differ < 10 {
					t.Errorf("%s: %s, Envoy's %s by %v", name, got, want, managers[i].GetRouteConfig())
				}
			}
		}
	}
	t.Logf("%d tables, %d headers differ", len(ours), differ)
}

func TestEnvoyMakesTheSamePathsCanonical(t *testing.T) {
	policies := []PathPolicy{
		{}, {Normalize: true}, {Normalize: true, MergeSlashes: true}, {Normalize: true, Escaped: RejectEscaped},
		{Normalize: true, Escaped: UnescapeAndForward}, {Normalize: true, MergeSlashes: true, Escaped: UnescapeAndRedirect},
	}
	actions := map[EscapedSlashes]hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction{
		KeepEscaped: hcmv3.HttpConnectionManager_KEEP_UNCHANGED, RejectEscaped: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		UnescapeAndForward: hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD, UnescapeAndRedirect: hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT,
	}
	var managers []*hcmv3.HttpConnectionManager
	for _, p := range policies {
		var c routev3.RouteConfiguration
		if err := protojson.Unmarshal([]byte(`{"virtualHosts":[{"name":"v","domains":["*"],"responseHeadersToAdd":[{"header":{"key":"x-path","value":"%REQ(:path)%"}}],
			"routes":[{"match":{"prefix":""},"directResponse":{"status":200}}]}]}`), &c); err != nil {
			t.Fatal(err)
		}
		m := manager(&c)
		m.NormalizePath, m.MergeSlashes, m.PathWithEscapedSlashesAction = wrapperspb.Bool(p.Normalize), p.MergeSlashes, actions[p.Escaped]
		managers = append(managers, m)
	}
	e := startEnvoy(t, managers)
	rnd := rand.New(rand.NewPCG(7, 7))
	parts := strings.Fields(`a b admin . .. %2e %2E. .%2e %2e%2e %61dmin %2f %2F %5c \ ; ;x=1 %c0%ae %25 %252e %zz ~ %7e ! $ & ' ( ) * + , : @ = | ^ [ ] { } " < > %20 %41 %3a %3F %23 %ff`)
	differ, n := 0, 0
	for i, p := range policies {
		for range 400 {
			s := ""
			for range 1 + rnd.IntN(4) {
				s += "/" + parts[rnd.IntN(len(parts))]
				if rnd.IntN(3) == 0 {
					s += parts[rnd.IntN(len(parts))]
				}
			}
			s += []string{"", "", "/", "//", "?q=/../%2f", "?"}[rnd.IntN(6)]
			r := &message.Request{Method: "GET", Authority: "a", Path: s}
			resp, _ := e.send(i, r)
			path, verdict := p.Apply(s)
			got := fmt.Sprint(verdict, " ", path)
			var want string
			switch resp.StatusCode {
			case 200:
				want = fmt.Sprint(PathGood, " ", resp.Header.Get("x-path"))
			case 307:
				want = fmt.Sprint(PathRedirect, " ", resp.Header.Get("location"))
			default:
				want = fmt.Sprint(PathBad, " ", s)
			}
			if verdict == PathBad {
				got = fmt.Sprint(PathBad, " ", s)
			}
			n++
			if got != want && !goesOn(p, resp.Header.Get("x-path")+resp.Header.Get("location"), path) {
				if differ++; differ < 30 {
					t.Errorf("%+v %q: %q, Envoy's %q (%d)", p, s, got, want, resp.StatusCode)
				}
			}
		}
	}
	t.Logf("%d paths, %d differ", n, differ)
}
