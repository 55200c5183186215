package route

import (
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// maker makes random messages of fuzzed bytes.
type maker struct{ b []byte }

func (m *maker) n(below int) int {
	if len(m.b) == 0 {
		return 0
	}
	v := int(m.b[0]) % below
	m.b = m.b[1:]
	return v
}

func (m *maker) of(list ...string) string { return list[m.n(len(list))] }

func (m *maker) path() string {
	s := ""
	for range m.n(4) {
		s += "/" + m.of("a", "b", "ab", "A", "", "a.b")
	}
	return s
}

func (m *maker) text() string { return m.of("", "a", "b", "ab", "A", "aB", "x,y", "1") }

func (m *maker) str() *matcherv3.StringMatcher {
	s := &matcherv3.StringMatcher{IgnoreCase: m.n(2) == 1}
	v := m.of("a", "b", "ab", "A", "bA", "x,y")
	switch m.n(5) {
	case 0:
		s.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: v}
	case 1:
		s.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: v}
	case 2:
		s.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: v}
	case 3:
		s.MatchPattern = &matcherv3.StringMatcher_Contains{Contains: v}
	default:
		s.IgnoreCase = false
		s.MatchPattern = &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: v + m.of("", "*", "|b", ".")}}
	}
	return s
}

func (m *maker) match() *routev3.RouteMatch {
	r := &routev3.RouteMatch{}
	switch m.n(4) {
	case 0:
		r.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/" + strings.TrimPrefix(m.path(), "/")}
	case 1:
		r.PathSpecifier = &routev3.RouteMatch_Path{Path: m.path()}
	case 2:
		r.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: m.of("/a", "/a/b", "/ab")}
	default:
		r.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: m.of("/a.*", "/a|/b", "/[ab]+", "(/a)*")}}
	}
	if m.n(3) == 0 {
		r.CaseSensitive = wrapperspb.Bool(false)
	}
	for range []int{0, 0, 1, 2}[m.n(4)] {
		h := &routev3.HeaderMatcher{Name: m.of("h", "G", ":method", ":authority"), InvertMatch: m.n(3) == 0, TreatMissingHeaderAsEmpty: m.n(3) == 0}
		if m.n(3) == 0 {
			h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: m.n(2) == 0}
		} else {
			h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: m.str()}
		}
		r.Headers = append(r.Headers, h)
	}
	for range []int{0, 0, 0, 1}[m.n(4)] {
		q := &routev3.QueryParameterMatcher{Name: m.of("q", "r")}
		if m.n(2) == 0 {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: m.n(2) == 0}
		} else {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: m.str()}
		}
		r.QueryParameters = append(r.QueryParameters, q)
	}
	return r
}

func (m *maker) table() *routev3.RouteConfiguration {
	c := &routev3.RouteConfiguration{}
	domains := []string{"a", "*.b", "a.*", "*", "*.a.b", "A.b:80"}
	for i := range 1 + m.n(4) {
		vh := &routev3.VirtualHost{Name: fmt.Sprint(i), Domains: domains[i : i+1+m.n(2)]}
		if i > 0 {
			vh.Domains = domains[i+1 : i+2]
		}
		for j := range 1 + m.n(4) {
			vh.Routes = append(vh.Routes, &routev3.Route{Name: fmt.Sprint(i, ".", j), Match: m.match(),
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "c"}}}})
		}
		c.VirtualHosts = append(c.VirtualHosts, vh)
	}
	return c
}

func (m *maker) redirect() *routev3.RedirectAction {
	r := &routev3.RedirectAction{StripQuery: m.n(4) == 0, ResponseCode: routev3.RedirectAction_RedirectResponseCode(m.n(5))}
	switch m.n(3) {
	case 0:
		r.SchemeRewriteSpecifier = &routev3.RedirectAction_HttpsRedirect{HttpsRedirect: true}
	case 1:
		r.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: m.of("http", "https")}
	}
	if m.n(2) == 0 {
		r.HostRedirect = m.of("c.com", "d")
	}
	if m.n(3) == 0 {
		r.PortRedirect = []uint32{80, 443, 8080}[m.n(3)]
	}
	switch m.n(4) {
	case 0:
		r.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: m.of("/n", "/n?x=1", "/")}
	case 1:
		r.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: m.of("/n", "/", "/n/")}
	case 2:
		r.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: &matcherv3.RegexMatchAndSubstitute{
			Pattern: &matcherv3.RegexMatcher{Regex: m.of("a", "^/a/(.*)$", "(a)(b)?")}, Substitution: m.of("b", "\\0", "x\\\\y")}}
	}
	return r
}

func (m *maker) add() []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	for range m.n(4) {
		out = append(out, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: m.of("x-a", "X-B", "x-c"), Value: m.of("1", "2", "", "%REQ(h)%", "<%REQ(g?h):2%>", "%%", "%PROTOCOL%")},
			AppendAction: corev3.HeaderValueOption_HeaderAppendAction(m.n(4)), KeepEmptyValue: m.n(3) == 0,
		})
	}
	return out
}

func (m *maker) remove() []string {
	if m.n(3) > 0 {
		return nil
	}
	return []string{m.of("x-a", "X-B", "x-c")}
}

func (m *maker) request() *message.Request {
	r := &message.Request{Method: m.of("GET", "POST", "a"), Authority: m.of("a", "b", "a.b", "A.b:80", "x.a.b"), Path: "/" + strings.TrimPrefix(m.path(), "/")}
	if m.n(2) == 0 {
		r.Path += "?" + m.of("q", "q=a", "r=b&q=ab", "q=A&q=b", "&&q=")
	}
	for range m.n(4) {
		r.Header.Add(m.of("h", "g"), m.text())
	}
	return r
}

// naive does the same by the plainest means, each word of Envoy's documentation by itself.
type naive struct{}

func (naive) str(s *matcherv3.StringMatcher, v string) bool {
	low := func(x string) string {
		if s.GetIgnoreCase() {
			return strings.ToLower(x)
		}
		return x
	}
	switch p := s.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return low(v) == low(p.Exact)
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(low(v), low(p.Prefix))
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(low(v), low(p.Suffix))
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(low(v), low(p.Contains))
	case *matcherv3.StringMatcher_SafeRegex:
		return whole(p.SafeRegex.GetRegex(), v)
	}
	panic("unknown")
}

func whole(expr, s string) bool { return regexp.MustCompile("^(?:" + expr + ")$").MatchString(s) }

func (n naive) matches(m *routev3.RouteMatch, r *message.Request) bool {
	path, rawQuery, _ := strings.Cut(r.Path, "?")
	fold := m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	low := func(s string) string {
		if fold {
			return strings.ToLower(s)
		}
		return s
	}
	ok := false
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		ok = strings.HasPrefix(low(path), low(p.Prefix))
	case *routev3.RouteMatch_Path:
		ok = low(path) == low(p.Path)
	case *routev3.RouteMatch_PathSeparatedPrefix:
		ok = low(path) == low(p.PathSeparatedPrefix) || strings.HasPrefix(low(path), low(p.PathSeparatedPrefix)+"/")
	case *routev3.RouteMatch_SafeRegex:
		ok = whole(p.SafeRegex.GetRegex(), path)
	}
	for _, h := range m.GetHeaders() {
		ok = ok && n.header(h, r)
	}
	query, _ := url.ParseQuery(rawQuery)
	for _, q := range m.GetQueryParameters() {
		vs, there := query[q.GetName()]
		if p, is := q.GetQueryParameterMatchSpecifier().(*routev3.QueryParameterMatcher_PresentMatch); is {
			ok = ok && there == p.PresentMatch
		} else {
			ok = ok && there && n.str(q.GetStringMatch(), vs[0])
		}
	}
	return ok
}

func (n naive) header(h *routev3.HeaderMatcher, r *message.Request) bool {
	var vs []string
	switch name := strings.ToLower(h.GetName()); name {
	case ":method":
		vs = []string{r.Method}
	case ":authority":
		vs = []string{r.Authority}
	default:
		for _, f := range r.Header.Fields() {
			if f.Name == name {
				vs = append(vs, f.Value)
			}
		}
	}
	if p, is := h.GetHeaderMatchSpecifier().(*routev3.HeaderMatcher_PresentMatch); is {
		there := len(vs) > 0 || h.GetTreatMissingHeaderAsEmpty()
		return (there == p.PresentMatch) != h.GetInvertMatch()
	}
	if len(vs) == 0 && !h.GetTreatMissingHeaderAsEmpty() {
		return false
	}
	if len(vs) == 0 {
		vs = []string{""}
	}
	one := false
	for _, v := range vs {
		one = one || n.str(h.GetStringMatch(), v)
	}
	return one != h.GetInvertMatch()
}

// host finds the virtual host by trying every domain.
func (naive) host(c *routev3.RouteConfiguration, authority string) *routev3.VirtualHost {
	authority = strings.ToLower(authority)
	var best *routev3.VirtualHost
	rank := 0
	for _, vh := range c.GetVirtualHosts() {
		for _, d := range vh.GetDomains() {
			x := 0
			switch d = strings.ToLower(d); {
			case d == authority:
				x = 4000
			case d == "*":
				x = 1
			case strings.HasPrefix(d, "*") && strings.HasSuffix(authority, d[1:]) && len(authority) > len(d)-1:
				x = 2000 + len(d)
			case strings.HasSuffix(d, "*") && strings.HasPrefix(authority, d[:len(d)-1]) && len(authority) > len(d)-1:
				x = 1000 + len(d)
			}
			if x > rank {
				best, rank = vh, x
			}
		}
	}
	return best
}

// FuzzMatch compares the table with the naive one, on random tables and requests.
func FuzzMatch(f *testing.F) {
	for i := range 32 {
		b := make([]byte, 200)
		for j := range b {
			b[j] = byte((i*7 + j*j*13 + i*j) >> 1)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &maker{b}
		c := m.table()
		table, err := Compile(c, Options{})
		if err != nil {
			t.Fatalf("%v of %v", err, c)
		}
		for range 4 {
			r := m.request()
			want := ""
			if vh := (naive{}).host(c, r.Authority); vh != nil {
				for _, x := range vh.GetRoutes() {
					if (naive{}).matches(x.GetMatch(), r) {
						want = x.GetName()
						break
					}
				}
			}
			got := ""
			if x := table.Match(r, 0); x != nil {
				got = x.Name
			}
			if got != want {
				t.Fatalf("%s %s %s %v: route %q, want %q of %v", r.Method, r.Authority, r.Path, r.Header.Fields(), got, want, c)
			}
		}
	})
}

// FuzzTable takes any bytes as a table: they are refused, or make a table that can be asked.
func FuzzTable(f *testing.F) {
	raw, err := os.ReadFile("testdata/table.json")
	if err != nil {
		f.Fatal(err)
	}
	var c routev3.RouteConfiguration
	if err := dumptest.Unmarshal(raw, &c); err != nil {
		f.Fatal(err)
	}
	if _, err := Compile(&c, Options{}); err != nil {
		f.Fatal(err)
	}
	b, err := proto.Marshal(&c)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, "web.shop", "/a/b?q=1", "a", "b")
	f.Fuzz(func(t *testing.T, b []byte, host, path, name, value string) {
		var c routev3.RouteConfiguration
		if proto.Unmarshal(b, &c) != nil {
			return
		}
		table, err := Compile(&c, Options{})
		if err != nil {
			return
		}
		r := &message.Request{Method: "GET", Scheme: "http", Authority: host, Path: path, Proto: message.HTTP2}
		r.Header.Add(name, value)
		x := table.Match(r, 1)
		if x == nil {
			return
		}
		if x.Redirect != nil {
			_ = x.Redirect.Location(r)
			return
		}
		a := x.Action(r, 3)
		if a == nil {
			return
		}
		a.Hash(&HashInput{Req: r})
		for _, m := range a.Mirrors {
			m.Wanted(5)
		}
		if a.Retry.For(r) {
			a.Retry.BackOff(3, 99)
		}
		resp := &message.Response{Status: 503}
		x.ChangeRequest(a, &Context{Req: r})
		x.ChangeResponse(a, &Context{Req: r, Resp: resp})
		for _, f := range r.Header.Fields() {
			if f.Name != name && f.Name != "x-envoy-original-path" && f.Name != "x-envoy-original-host" && f.Name != "x-forwarded-host" && strings.ContainsAny(f.Value, "\r\n\x00") {
				t.Fatalf("header %q has value %q", f.Name, f.Value)
			}
		}
	})
}

// FuzzNormalizePath holds that a normal path stays as it is, whatever it was before (B14).
func FuzzNormalizePath(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e%2e/%61dmin", "/a%2fb", `/a\..\b`, "/%25%32%65/", "/a;b/./c?x=/../", "/%2", "//a//", "/..", "/.%2e/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once, ok := NormalizePath(s)
		if !ok {
			return
		}
		twice, ok := NormalizePath(once)
		if !ok || once != twice {
			t.Fatalf("%q: %q, then %q %v", s, once, twice, ok)
		}
		path, _, _ := strings.Cut(once, "?")
		for _, seg := range strings.Split(path, "/") {
			if seg == "." || seg == ".." {
				t.Fatalf("%q: %q has a dot segment", s, once)
			}
		}
		if strings.Contains(path, `\`) {
			t.Fatalf("%q: %q has a backslash", s, once)
		}
	})
}
