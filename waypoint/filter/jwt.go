package filter

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// jwtName is the filter's name, under which it leaves claims as metadata.
const jwtName = "envoy.filters.http.jwt_authn"

// jwt checks the tokens of requests (Envoy's jwt_authn).
type jwt struct {
	name
	providers  []*provider
	rules      []jwtRule
	named      map[string]requirement
	bypassCORS bool
	quiet      bool // refusals have no body
}

type jwtRule struct {
	when *route.Condition
	need requirement // nil: nothing
}

// provider is an issuer of tokens.
type provider struct {
	name, issuer string
	audiences    []string
	subject      *route.StringMatcher
	requireExp   bool
	maxLife      time.Duration
	skew         time.Duration
	keys         atomic.Pointer[keySet] // nil: still to be fetched
	remote       *remoteKeys            // nil: the keys are in the configuration
	next         atomic.Int64           // when new keys may be asked for in place of old ones, unix nanoseconds
	headers      []tokenHeader
	params       []string
	cookies      []string
	forward      bool
	payload      string // header
	padded       bool
	metadata     string // key
	headerMeta   string // key
	split        []string
	claims       []claimHeader
	clear        bool
}

type keySet struct {
	*jwks
	until time.Time // zero: for ever
}

type tokenHeader struct{ name, prefix string }

type claimHeader struct {
	header string
	path   []string
}

// remoteKeys says where keys are fetched.
type remoteKeys struct {
	cluster, authority, path string
	timeout, cache           time.Duration
}

// defaultSkew is Envoy's tolerance of clocks, defaultCache its time for fetched keys.
const (
	defaultSkew  = 60 * time.Second
	defaultCache = 10 * time.Minute
)

func compileJWT(p *jwtv3.JwtAuthentication) (Filter, error) {
	f := &jwt{bypassCORS: p.GetBypassCorsPreflight(), quiet: p.GetStripFailureResponse(), named: map[string]requirement{}}
	byName := map[string]*provider{}
	for n, c := range p.GetProviders() {
		q, err := compileProvider(n, c)
		if err != nil {
			return nil, field.Key(err, "providers", n)
		}
		byName[n] = q
		f.providers = append(f.providers, q)
	}
	if p.GetFilterStateRules() != nil {
		return nil, field.Errorf("filter_state_rules", "not supported")
	}
	k := jwtCompiler{f, byName}
	for n, r := range p.GetRequirementMap() {
		need, err := k.requirement(r, 0)
		if err != nil {
			return nil, field.Key(err, "requirement_map", n)
		}
		f.named[n] = need
	}
	for i, r := range p.GetRules() {
		c, err := k.rule(r)
		if err != nil {
			return nil, field.Index(err, "rules", i)
		}
		f.rules = append(f.rules, c)
	}
	return f, nil
}

func compileProvider(name string, p *jwtv3.JwtProvider) (*provider, error) {
	q := &provider{
		name: name, issuer: p.GetIssuer(), requireExp: p.GetRequireExpiration(), skew: defaultSkew, forward: p.GetForward(),
		payload: lower(p.GetForwardPayloadHeader()), padded: p.GetPadForwardPayloadHeader(), metadata: p.GetPayloadInMetadata(),
		headerMeta: p.GetHeaderInMetadata(), split: p.GetNormalizePayloadInMetadata().GetSpaceDelimitedClaims(),
		params: p.GetFromParams(), cookies: p.GetFromCookies(), clear: p.GetClearRouteCache(),
	}
	if s := p.GetClockSkewSeconds(); s > 0 {
		q.skew = time.Duration(s) * time.Second
	}
	for _, a := range p.GetAudiences() {
		q.audiences = append(q.audiences, bareAudience(a))
	}
	var err error
	if q.maxLife, err = field.Duration("max_lifetime", p.GetMaxLifetime(), 0); err != nil {
		return nil, err
	}
	if p.GetSubjects() != nil {
		if q.subject, err = route.CompileString(p.GetSubjects()); err != nil {
			return nil, field.At(err, "subjects")
		}
	}
	if err := q.compileKeys(p); err != nil {
		return nil, err
	}
	for i, h := range p.GetFromHeaders() {
		if h.GetName() == "" {
			return nil, field.Index(errors.New("no name"), "from_headers", i)
		}
		q.headers = append(q.headers, tokenHeader{lower(h.GetName()), h.GetValuePrefix()})
	}
	if len(q.headers)+len(q.params)+len(q.cookies) == 0 {
		q.headers, q.params = []tokenHeader{{"authorization", "Bearer "}}, []string{"access_token"}
	}
	for i, c := range p.GetClaimToHeaders() {
		h := claimHeader{header: lower(c.GetHeaderName())}
		for _, s := range c.GetClaimPath() {
			h.path = append(h.path, s.GetKey())
		}
		if len(h.path) == 0 {
			h.path = strings.Split(c.GetClaimName(), ".")
		}
		if !message.LowerToken(h.header) || h.path[0] == "" {
			return nil, field.Index(errors.New("a header name and a claim are required"), "claim_to_headers", i)
		}
		q.claims = append(q.claims, h)
	}
	return q, nil
}

func (q *provider) compileKeys(p *jwtv3.JwtProvider) error {
	switch s := p.GetJwksSourceSpecifier().(type) {
	case *jwtv3.JwtProvider_LocalJwks:
		b, err := inline(s.LocalJwks)
		if err != nil {
			return field.At(err, "local_jwks")
		}
		keys, err := parseJWKS(b)
		if err != nil {
			return field.At(err, "local_jwks")
		}
		q.keys.Store(&keySet{jwks: keys})
	case *jwtv3.JwtProvider_RemoteJwks:
		u := s.RemoteJwks.GetHttpUri()
		authority, path, err := splitURI(u.GetUri())
		if err != nil {
			return field.At(err, "remote_jwks.http_uri.uri")
		}
		q.remote = &remoteKeys{cluster: u.GetCluster(), authority: authority, path: path}
		if q.remote.timeout, err = field.Duration("remote_jwks.http_uri.timeout", u.GetTimeout(), 5*time.Second); err != nil {
			return err
		}
		if q.remote.cache, err = field.Duration("remote_jwks.cache_duration", s.RemoteJwks.GetCacheDuration(), defaultCache); err != nil {
			return err
		}
		if q.remote.cache < time.Second {
			q.remote.cache = defaultCache
		}
	default:
		return field.Errorf("jwks_source_specifier", "one of local_jwks and remote_jwks is required")
	}
	return nil
}

// inline is the data of a DataSource that holds it.
func inline(d *corev3.DataSource) ([]byte, error) {
	switch s := d.GetSpecifier().(type) {
	case *corev3.DataSource_InlineString:
		return []byte(s.InlineString), nil
	case *corev3.DataSource_InlineBytes:
		return s.InlineBytes, nil
	}
	return nil, errors.New("inline data is required")
}

// splitURI is the authority and the path of an http(s) URL.
func splitURI(uri string) (authority, path string, err error) {
	_, rest, ok := strings.Cut(uri, "://")
	if !ok {
		rest = uri
	}
	authority, path, _ = strings.Cut(rest, "/")
	path = "/" + path
	if !message.Authority(authority) || !message.PathAndQuery(path) {
		return "", "", errors.New("not a URL")
	}
	return authority, path, nil
}

func bareAudience(a string) string {
	a = strings.TrimPrefix(strings.TrimPrefix(a, "https://"), "http://")
	return strings.TrimSuffix(a, "/")
}

func lower(s string) string { return strings.ToLower(s) }

// Request implements Filter.
func (f *jwt) Request(x *Exchange) Action {
	if f.bypassCORS && x.Req.Method == "OPTIONS" && x.Req.Header.Has("origin") && x.Req.Header.Has("access-control-request-method") {
		return Continue
	}
	need, check := f.required(x)
	f.sanitize(x)
	if !check || need == nil {
		return Continue
	}
	return f.try(x, need, nil)
}

// required is what a request has to prove.
func (f *jwt) required(x *Exchange) (requirement, bool) {
	if v, off := x.settings(f.name.name); off {
		return nil, false
	} else if own, ok := v.(*jwtPart); ok {
		if own.off {
			return nil, false
		}
		need, known := f.named[own.name]
		if !known {
			return refused{refusal("Wrong requirement_name: " + own.name)}, true
		}
		return need, true
	}
	for _, r := range f.rules {
		if r.when.Match(x.Req, x.Rand.Uint64(), x) {
			return r.need, true
		}
	}
	return nil, false
}

// sanitize removes what only we may say.
func (f *jwt) sanitize(x *Exchange) {
	for _, p := range f.providers {
		if p.payload != "" {
			x.Req.Header.Del(p.payload)
		}
		for _, c := range p.claims {
			x.Req.Header.Del(c.header)
		}
	}
}

// try decides, or fetches the keys that are missing and tries again, but for those of the providers in asked: a request waits for
// each of them once.
func (f *jwt) try(x *Exchange, need requirement, asked []*provider) Action {
	a := attempt{x: x, now: time.Now(), asked: asked}
	err := need.meet(&a)
	if a.missing != nil {
		a.missing.fetch(x, func() {
			if a.missing.keys.Load() == nil {
				x.Resume(f.refuse(x, errJWTFetch))
				return
			}
			x.Resume(f.try(x, need, append(asked, a.missing)))
		})
		return Wait
	}
	if err != nil {
		return f.refuse(x, err)
	}
	for _, g := range a.good {
		g.accept(x)
	}
	return Continue
}

func (f *jwt) refuse(x *Exchange, err error) Action {
	status := 401
	if errors.Is(err, errJWTAudience) {
		status = 403
	}
	body := err.Error()
	if f.quiet {
		body = ""
	}
	x.Answered(status, body, "jwt_authn_access_denied{"+strings.ReplaceAll(err.Error(), " ", "_")+"}", Unauthorized)
	if !f.quiet {
		v := `Bearer realm="` + x.Req.Scheme + "://" + x.Req.Authority + barePath(x.Req.Path) + `"`
		if !errors.Is(err, errJWTMissing) {
			v += `, error="invalid_token"`
		}
		x.Reply.Header = append(x.Reply.Header, message.Field{Name: "www-authenticate", Value: v})
	}
	return Stop
}

// fetch gets the provider's keys from where they are published. Requests that come meanwhile and need them wait for the same
// answer, at most as long as a fetch may take.
func (p *provider) fetch(x *Exchange, done func()) {
	c := &Call{Cluster: p.remote.cluster, Timeout: p.remote.timeout}
	c.Req.Method, c.Req.Scheme, c.Req.Authority, c.Req.Path = "GET", "http", p.remote.authority, p.remote.path
	x.Share(p, c, p.take, done)
}

// take keeps the keys that were fetched, if they were.
func (p *provider) take(a *CallAnswer, err error) {
	if err == nil && a.Status != 200 {
		err = errJWTFetch
	}
	var keys *jwks
	if err == nil {
		keys, err = parseJWKS(a.Body)
	}
	if err == nil {
		p.keys.Store(&keySet{keys, time.Now().Add(p.remote.cache)})
	} else if p.keys.Load() != nil { // the turn of the next one is after a while, also if this one has taken long
		p.next.Store(time.Now().Add(p.remote.timeout).UnixNano())
	}
}

// accepted is a token that was verified, and where it was.
type accepted struct {
	p     *provider
	t     *token
	place string // the header that it was in, or ""
}

// accept makes the token's claims known.
func (g *accepted) accept(x *Exchange) {
	p, h := g.p, &x.Req.Header
	if !p.forward && g.place != "" {
		h.Del(g.place)
	}
	if p.payload != "" {
		v := g.t.raw
		if n := len(v) % 4; p.padded && n > 0 {
			v += "===="[n:]
		}
		h.Set(p.payload, h.Hold(v))
	}
	for _, c := range p.claims {
		if v, ok := claimText(g.t.claims, c.path); ok {
			h.Set(c.header, h.Hold(v))
		}
	}
	if p.metadata != "" {
		if v, err := structpb.NewValue(p.normal(g.t.claims)); err == nil {
			x.SetMetadata(jwtName, p.metadata, v)
		}
	}
	if p.headerMeta != "" {
		h := g.t.sig.Signatures[0].Header
		x.SetMetadata(jwtName, p.headerMeta, structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"alg": structpb.NewStringValue(h.Algorithm), "kid": structpb.NewStringValue(h.KeyID),
		}}))
	}
	if p.clear {
		x.ClearRoute()
	}
}

// normal is the claims with the space-delimited ones made lists.
func (p *provider) normal(claims map[string]any) map[string]any {
	if len(p.split) == 0 {
		return claims
	}
	out := make(map[string]any, len(claims))
	for k, v := range claims {
		out[k] = v
	}
	for _, n := range p.split {
		if s, ok := out[n].(string); ok {
			var list []any
			for _, w := range strings.Fields(s) {
				list = append(list, w)
			}
			out[n] = list
		}
	}
	return out
}

// claimText is a claim as a header's value.
func claimText(claims map[string]any, path []string) (string, bool) {
	var v any = claims
	for _, k := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return "", false
		}
		if v, ok = m[k]; !ok {
			return "", false
		}
	}
	switch c := v.(type) {
	case string:
		return c, message.Value(c)
	case bool:
		return strconv.FormatBool(c), true
	case float64:
		return strconv.FormatFloat(c, 'f', -1, 64), true
	case nil:
		return "", false
	}
	b, err := json.Marshal(v)
	return base64.RawURLEncoding.EncodeToString(b), err == nil
}
