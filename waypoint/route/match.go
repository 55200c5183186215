package route

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

type pathKind uint8

const (
	pathPrefix pathKind = iota
	pathExact
	pathSeparated
	pathRegex
	pathConnect
)

// match is a compiled RouteMatch.
type match struct {
	kind     pathKind
	fold     bool
	text     string // lower case if fold
	re       *regexp.Regexp
	headers  []*HeaderMatcher
	query    []*queryMatcher
	cookies  []*cookieMatcher
	metadata []*MetadataMatcher
	state    []*StateMatcher
	fraction *Fraction
	grpc     bool
}

func compileMatch(m *routev3.RouteMatch) (*match, error) {
	if m == nil {
		return nil, errors.New("required")
	}
	c := &match{fold: m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue(), grpc: m.GetGrpc() != nil}
	if err := c.compilePath(m); err != nil {
		return nil, err
	}
	if c.fold {
		c.text = lower(c.text)
	}
	if m.GetTlsContext() != nil { // without a condition the route would match too often
		return nil, field.Errorf("tls_context", "unsupported condition")
	}
	for i, x := range m.GetDynamicMetadata() {
		d, err := CompileMetadata(x)
		if err != nil {
			return nil, field.Index(err, "dynamic_metadata", i)
		}
		c.metadata = append(c.metadata, d)
	}
	for i, x := range m.GetFilterState() {
		d, err := CompileState(x)
		if err != nil {
			return nil, field.Index(err, "filter_state", i)
		}
		c.state = append(c.state, d)
	}
	var err error
	if c.headers, err = compileHeaders("headers", m.GetHeaders()); err != nil {
		return nil, err
	}
	for i, q := range m.GetQueryParameters() {
		x, err := compileQuery(q)
		if err != nil {
			return nil, field.Index(err, "query_parameters", i)
		}
		c.query = append(c.query, x)
	}
	for i, k := range m.GetCookies() {
		s, err := CompileString(k.GetStringMatch())
		if err != nil {
			return nil, field.Index(field.At(err, "string_match"), "cookies", i)
		}
		c.cookies = append(c.cookies, &cookieMatcher{name: k.GetName(), invert: k.GetInvertMatch(), str: s})
	}
	if f := m.GetRuntimeFraction(); f != nil {
		if c.fraction, err = compileRuntimeFraction(f); err != nil {
			return nil, field.At(err, "runtime_fraction")
		}
	}
	return c, nil
}

func (c *match) compilePath(m *routev3.RouteMatch) (err error) {
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		c.kind, c.text = pathPrefix, p.Prefix
	case *routev3.RouteMatch_Path:
		c.kind, c.text = pathExact, p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		c.kind, c.text = pathSeparated, p.PathSeparatedPrefix
		if len(c.text) < 2 || c.text[0] != '/' || strings.HasSuffix(c.text, "/") || strings.ContainsAny(c.text, "?#") {
			return field.Errorf("path_separated_prefix", "%q is not a path without trailing slash, query and fragment", c.text)
		}
	case *routev3.RouteMatch_SafeRegex:
		c.kind, c.fold = pathRegex, false
		c.re, err = FullRegexp(p.SafeRegex.GetRegex())
		return field.At(err, "safe_regex")
	case *routev3.RouteMatch_ConnectMatcher_:
		c.kind = pathConnect
	case *routev3.RouteMatch_PathMatchPolicy:
		c.kind, c.fold = pathRegex, false
		c.re, err = compilePathPolicy(p.PathMatchPolicy)
		return field.At(err, "path_match_policy")
	default:
		return field.Unsupported(m, "path_specifier")
	}
	return nil
}

func compilePathPolicy(p *corev3.TypedExtensionConfig) (*regexp.Regexp, error) {
	var t uritemplatev3.UriTemplateMatchConfig
	if err := p.GetTypedConfig().UnmarshalTo(&t); err != nil {
		return nil, field.At(err, "typed_config")
	}
	re, err := URITemplate(t.GetPathTemplate())
	return re, field.At(err, "typed_config.path_template")
}

// matches says whether the route is for the request. path is the request's path without query; rand draws the fraction.
func (c *match) matches(r *message.Request, path string, rand uint64, a Attributes) bool {
	if c.kind == pathConnect {
		if r.Method != "CONNECT" {
			return false
		}
	} else if !c.matchPath(path) {
		return false
	}
	if c.fraction != nil && !c.fraction.Hit(rand) {
		return false
	}
	if c.grpc && !IsGRPC(r) {
		return false
	}
	for _, h := range c.headers {
		if !h.Match(r) {
			return false
		}
	}
	for _, k := range c.cookies {
		if !k.matches(r) {
			return false
		}
	}
	if len(c.query) > 0 {
		query := queryOf(r.Path)
		for _, q := range c.query {
			if !q.matches(query) {
				return false
			}
		}
	}
	for _, m := range c.metadata {
		if !m.Match(a) {
			return false
		}
	}
	for _, m := range c.state {
		if !m.Match(a) {
			return false
		}
	}
	return true
}

func (c *match) matchPath(path string) bool {
	if c.kind == pathRegex {
		return path != "" && c.re.MatchString(path)
	}
	n := len(c.text)
	if len(path) < n || path == "" {
		return false
	}
	switch {
	case c.kind == pathExact && len(path) != n:
		return false
	case c.kind == pathSeparated && len(path) > n && path[n] != '/':
		return false
	case c.fold:
		return equalFold(path[:n], c.text)
	}
	return path[:n] == c.text
}

// matched is how many bytes of path the match stands for: what prefix_rewrite replaces.
func (c *match) matched(path string) int {
	if c.kind == pathPrefix || c.kind == pathSeparated {
		return min(len(c.text), len(path))
	}
	return len(path)
}

// Fraction is a share of requests.
type Fraction struct {
	numerator, denominator uint64
}

// CompileFraction compiles a FractionalPercent.
func CompileFraction(p *typev3.FractionalPercent) (*Fraction, error) {
	f := &Fraction{numerator: uint64(p.GetNumerator())}
	switch p.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
		f.denominator = 100
	case typev3.FractionalPercent_TEN_THOUSAND:
		f.denominator = 10_000
	case typev3.FractionalPercent_MILLION:
		f.denominator = 1_000_000
	default:
		return nil, field.Errorf("denominator", "unknown value %d", p.GetDenominator())
	}
	return f, nil
}

// compileRuntimeFraction takes the default value: there is no runtime that could override it.
func compileRuntimeFraction(p *corev3.RuntimeFractionalPercent) (*Fraction, error) {
	if p.GetDefaultValue() == nil {
		return nil, field.Errorf("default_value", "required")
	}
	f, err := CompileFraction(p.GetDefaultValue())
	return f, field.At(err, "default_value")
}

// Hit says whether the random number is within the share.
func (f *Fraction) Hit(rand uint64) bool { return rand%f.denominator < f.numerator }

// String is the share as a fraction.
func (f *Fraction) String() string { return fmt.Sprintf("%d/%d", f.numerator, f.denominator) }

type queryMatcher struct {
	name    string
	present bool // only presence counts, and it has to be want
	want    bool
	str     *StringMatcher
}

func compileQuery(q *routev3.QueryParameterMatcher) (*queryMatcher, error) {
	m := &queryMatcher{name: q.GetName()}
	if m.name == "" {
		return nil, field.Errorf("name", "empty parameter name")
	}
	switch p := q.GetQueryParameterMatchSpecifier().(type) {
	case nil:
		m.present, m.want = true, true
	case *routev3.QueryParameterMatcher_PresentMatch:
		m.present, m.want = true, p.PresentMatch
	case *routev3.QueryParameterMatcher_StringMatch:
		s, err := CompileString(p.StringMatch)
		if err != nil {
			return nil, field.At(err, "string_match")
		}
		m.str = s
	default:
		return nil, field.Unsupported(q, "query_parameter_match_specifier")
	}
	return m, nil
}

func (m *queryMatcher) matches(query string) bool {
	v, ok := queryParameter(query, m.name)
	if m.present {
		return ok == m.want
	}
	return ok && m.str.Match(v)
}

// CompileQuery compiles a matcher of query parameters, for those outside of routes.
func CompileQuery(q *routev3.QueryParameterMatcher) (func(*message.Request) bool, error) {
	m, err := compileQuery(q)
	if err != nil {
		return nil, err
	}
	return func(r *message.Request) bool { return m.matches(queryOf(r.Path)) }, nil
}

// queryOf is what follows the first "?" of a path.
func queryOf(path string) string {
	if i := strings.IndexByte(path, '?'); i >= 0 {
		return path[i+1:]
	}
	return ""
}

// queryParameter is the first value of a parameter. Like Envoy's route matching it decodes nothing.
func queryParameter(query, name string) (string, bool) {
	for query != "" {
		var p string
		p, query, _ = strings.Cut(query, "&")
		if k, v, _ := strings.Cut(p, "="); k == name {
			return v, true
		}
	}
	return "", false
}

type cookieMatcher struct {
	name   string
	invert bool
	str    *StringMatcher
}

func (m *cookieMatcher) matches(r *message.Request) bool {
	v, ok := Cookie(&r.Header, m.name)
	return ok && m.str.Match(v) != m.invert
}

// Cookie is the value of a cookie of a request.
func Cookie(h *message.Header, name string) (string, bool) {
	for _, f := range h.Fields() {
		if f.Name != "cookie" {
			continue
		}
		for rest := f.Value; rest != ""; {
			var p string
			p, rest, _ = strings.Cut(rest, ";")
			k, v, ok := strings.Cut(strings.TrimSpace(p), "=")
			if ok && k == name {
				if n := len(v); n >= 2 && v[0] == '"' && v[n-1] == '"' {
					v = v[1 : n-1]
				}
				return v, true
			}
		}
	}
	return "", false
}

// IsGRPC says whether a request is gRPC's, by its content type.
func IsGRPC(r *message.Request) bool {
	rest, ok := strings.CutPrefix(r.Header.Get("content-type"), "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}
