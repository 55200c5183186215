package dumps

//lint:file-ignore SA1019 deprecated fields are in what istiod sends

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// pair is a header field.
type pair struct{ name, value string }

// request is a request of a client to an address.
type request struct {
	why                     string
	dst                     netip.AddrPort
	who                     client
	method, path, authority string
	header                  []pair
	body                    string
	http2, grpc             bool
	clusters                []string // that the route chooses among, if the request is there to find them all
}

// String is the request in one line.
func (r *request) String() string {
	v := "HTTP/1.1"
	if r.http2 {
		v = "HTTP/2"
	}
	var h []string
	for _, p := range r.header {
		x := p.value
		if len(x) > 60 {
			x = x[:60] + "..."
		}
		h = append(h, p.name+": "+x)
	}
	return fmt.Sprintf("%v -> %v: %s %s%s %s {%s} (%s)", r.who, r.dst, r.method, r.authority, r.path, v, strings.Join(h, ", "), r.why)
}

// with is a changed copy.
func (r request) with(why string, change func(*request)) *request {
	r.header = slices.Clone(r.header)
	r.why += ", " + why
	r.clusters = nil
	change(&r)
	return &r
}

func (r *request) set(name, value string) {
	r.drop(name)
	r.header = append(r.header, pair{name, value})
}

func (r *request) drop(name string) {
	r.header = slices.DeleteFunc(r.header, func(p pair) bool { return p.name == name })
}

// maker makes the requests of a scenario.
type maker struct {
	t   *testing.T
	out []*request
}

// requests are the requests that a scenario's chains are asked.
func requests(t *testing.T, r *resources) []*request {
	m := &maker{t: t}
	asked := map[string]bool{}
	for _, c := range r.chains {
		if c.http == nil {
			continue
		}
		if kind := headersKind(c.http); !asked[kind] && m.forged(c) {
			asked[kind] = true
		}
		for _, vh := range c.http.GetRouteConfig().GetVirtualHosts() {
			for i, x := range vh.GetRoutes() {
				m.route(c, vh, x, fmt.Sprintf("%s route %d", c.name, i))
			}
		}
		m.filters(c)
	}
	return m.out
}

func (m *maker) add(r *request) {
	m.out = append(m.out, r)
	if !strings.HasPrefix(r.path, "//") {
		m.out = append(m.out, r.with("h2", func(r *request) { r.http2 = true }))
	}
}

// route makes requests for a route: some that it takes, and for each of its conditions some that miss.
func (m *maker) route(c *chain, vh *routev3.VirtualHost, x *routev3.Route, why string) {
	hit := m.hit(c, vh, x.GetMatch(), why)
	first := *hit
	for _, w := range x.GetRoute().GetWeightedClusters().GetClusters() {
		if w.GetWeight().GetValue() > 0 {
			first.clusters = append(first.clusters, w.GetName())
		}
	}
	m.add(&first)
	add := func(why string, change func(*request)) { m.add(hit.with(why, change)) }
	m.paths(x.GetMatch(), hit, add)
	for _, h := range x.GetMatch().GetHeaders() {
		m.misses(h, add)
	}
	for _, q := range x.GetMatch().GetQueryParameters() {
		add("without parameter "+q.GetName(), func(r *request) { r.path = strings.SplitN(r.path, "?", 2)[0] })
		add("other parameter "+q.GetName(), func(r *request) { r.path = strings.SplitN(r.path, "?", 2)[0] + "?" + q.GetName() + "=other" })
		add("parameter "+q.GetName()+" twice", func(r *request) { r.path += "&" + q.GetName() + "=other" })
	}
	add("other client", func(r *request) { r.who = clients[2] })
	add("blocked client", func(r *request) { r.who = clients[1] })
	add("body", func(r *request) { r.method, r.body = "POST", "some bytes" })
	add("HEAD", func(r *request) { r.method = "HEAD" })
	add("headers that routes change", func(r *request) {
		for _, n := range []string{"x-remove", "x-set", "x-add", "x-dest", "x-grpc", "x-backend", "x-kept"} {
			r.header = append(r.header, pair{n, "client's"})
		}
		r.header = append(r.header, pair{"x-kept", "second"})
	})
	add("headers that proxies own", func(r *request) {
		r.header = append(r.header, pair{"x-envoy-original-path", "/x"}, pair{"x-envoy-max-retries", "9"}, pair{"x-forwarded-proto", "https"}, pair{"x-forwarded-for", "192.0.2.7"},
			pair{"x-request-id", "mine"}, pair{"x-forwarded-client-cert", "By=me"}, pair{"x-envoy-external-address", "1.2.3.4"})
	})
	m.cors(vh, x, add)
	m.out = append(m.out, hit.with("gRPC", func(r *request) {
		r.http2, r.grpc, r.method = true, true, "POST"
		r.header = append(r.header, pair{"content-type", "application/grpc"}, pair{"te", "trailers"})
	}))
}

// hit is a request that the match takes.
func (m *maker) hit(c *chain, vh *routev3.VirtualHost, x *routev3.RouteMatch, why string) *request {
	r := &request{why: why, dst: c.dst, who: clients[0], method: "GET", authority: "service.example.com"}
	if d := vh.GetDomains(); len(d) > 0 && d[0] != "*" {
		r.authority = strings.Replace(d[0], "*", "some", 1)
	}
	switch p := x.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		r.path = p.Prefix
	case *routev3.RouteMatch_Path:
		r.path = p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		r.path = p.PathSeparatedPrefix
	case *routev3.RouteMatch_SafeRegex:
		r.path = m.example(p.SafeRegex.GetRegex())
	default:
		r.path = "/"
	}
	for _, h := range x.GetHeaders() {
		if !h.GetInvertMatch() {
			r.put(h.GetName(), m.value(h))
		}
	}
	for i, q := range x.GetQueryParameters() {
		sep := "&"
		if i == 0 {
			sep = "?"
		}
		r.path += sep + q.GetName() + "=" + m.text(q.GetStringMatch())
	}
	return r
}

// put sets a header, or what a pseudo-header stands for.
func (r *request) put(name, value string) {
	switch name {
	case ":method":
		r.method = value
	case ":authority":
		r.authority = value
	case ":path":
		r.path = value
	case ":scheme": // what the connection says
	default:
		r.set(name, value)
	}
}

// paths are other paths: some that the match takes as well, and near misses.
func (m *maker) paths(x *routev3.RouteMatch, hit *request, add func(string, func(*request))) {
	base, query, _ := strings.Cut(hit.path, "?")
	if query != "" {
		query = "?" + query
	}
	to := func(p string) {
		add("path "+p, func(r *request) { r.path = p + query })
	}
	to(strings.TrimSuffix(base, "/") + "/below/it")
	to(base + "x")
	to(strings.ToUpper(base))
	to("/." + base)
	to(strings.TrimSuffix(base, "/") + "/a/../b%2fc%20d")
	to("/other")
	if base != "/" {
		to(base + "/")
		to(base[:len(base)-1])
		to("/" + base)
		to("/x" + base)
	}
	if query == "" {
		add("a query", func(r *request) { r.path += "?q=1&b=/x/../y" })
	}
	if x.GetSafeRegex() != nil {
		to("/v12/some/path")
		to("/item/")
	}
}

// misses are near misses of a header's condition.
func (m *maker) misses(h *routev3.HeaderMatcher, add func(string, func(*request))) {
	n := h.GetName()
	if !strings.HasPrefix(n, ":") {
		add("without "+n, func(r *request) { r.drop(n) })
		add("two "+n, func(r *request) { r.header = append(r.header, pair{n, "other"}) })
		add("empty "+n, func(r *request) { r.set(n, "") })
	}
	v := m.value(h)
	other := []string{"other", v, v + "x", "x" + v, strings.ToUpper(v)}
	if n == ":method" {
		other = []string{"PUT", "POST", "OPTIONS"}
	}
	for _, o := range other {
		add(n+" is "+o, func(r *request) { r.put(n, o) })
	}
}

// cors are preflights and requests of other origins.
func (m *maker) cors(vh *routev3.VirtualHost, x *routev3.Route, add func(string, func(*request))) {
	var p corsv3.CorsPolicy
	origins := []string{"https://nobody.example.net"}
	if partOf(m.t, x.GetTypedPerFilterConfig(), &p) || partOf(m.t, vh.GetTypedPerFilterConfig(), &p) {
		for _, o := range p.GetAllowOriginStringMatch() {
			origins = append(origins, m.text(o))
		}
	}
	for _, o := range origins {
		add("origin "+o, func(r *request) { r.set("origin", o) })
		add("preflight from "+o, func(r *request) {
			r.method = "OPTIONS"
			r.set("origin", o)
			r.set("access-control-request-method", "GET")
			r.set("access-control-request-headers", "x-h")
		})
		add("half a preflight from "+o, func(r *request) {
			r.method = "OPTIONS"
			r.set("origin", o)
		})
	}
}

// value is one that a header's condition takes, if it is not inverted.
func (m *maker) value(h *routev3.HeaderMatcher) string {
	if s := h.GetStringMatch(); s != nil {
		return m.text(s)
	}
	if s := h.GetExactMatch(); s != "" {
		return s
	}
	return "any"
}

// text is one that a condition takes.
func (m *maker) text(s *matcherv3.StringMatcher) string {
	switch p := s.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return p.Exact
	case *matcherv3.StringMatcher_Prefix:
		return p.Prefix + "x"
	case *matcherv3.StringMatcher_Suffix:
		return "x" + p.Suffix
	case *matcherv3.StringMatcher_Contains:
		return "x" + p.Contains + "x"
	case *matcherv3.StringMatcher_SafeRegex:
		return m.example(p.SafeRegex.GetRegex())
	}
	return "any"
}

// example is a text that a regular expression takes.
func (m *maker) example(expr string) string {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		m.t.Fatal(err)
	}
	var b strings.Builder
	write(&b, re)
	return b.String()
}

func write(b *strings.Builder, re *syntax.Regexp) {
	switch re.Op {
	case syntax.OpLiteral:
		b.WriteString(string(re.Rune))
	case syntax.OpCharClass:
		for _, r := range "a1/-_.x" {
			for i := 0; i+1 < len(re.Rune); i += 2 {
				if re.Rune[i] <= r && r <= re.Rune[i+1] {
					b.WriteRune(r)
					return
				}
			}
		}
		b.WriteRune(re.Rune[0])
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteByte('a')
	case syntax.OpAlternate:
		write(b, re.Sub[0])
	case syntax.OpRepeat:
		for range max(1, re.Min) {
			write(b, re.Sub[0])
		}
	default:
		for _, s := range re.Sub {
			write(b, s)
		}
	}
}

// sorted are a map's keys in order, so that every run asks the same.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
