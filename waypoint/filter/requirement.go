package filter

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// requirement is what a request has to prove by its tokens.
type requirement interface {
	// meet says why the request does not fulfil the requirement, or nil. Verified tokens are added to a.
	meet(a *attempt) error
}

// attempt is one look at the tokens of a request.
type attempt struct {
	x       *Exchange
	now     time.Time
	good    []accepted
	missing *provider   // whose keys have to be fetched first
	asked   []*provider // whose keys were fetched for this request, or were not to be had
}

type (
	// from asks for a token of one provider; audiences, if not nil, replace its own.
	from struct {
		p         *provider
		audiences []string
	}
	anyOf struct {
		of                     []requirement
		allowMissing, allowBad bool
	}
	allOf   []requirement
	refused struct{ err error }
	// whoever asks for what any of the providers issued, if there is something.
	whoever struct {
		all      []*provider
		allowBad bool
	}
)

// jwtPart is what a route says.
type jwtPart struct {
	off  bool
	name string
}

func compileJWTPart(p *jwtv3.PerRouteConfig) (any, error) {
	switch s := p.GetRequirementSpecifier().(type) {
	case *jwtv3.PerRouteConfig_Disabled:
		return &jwtPart{off: s.Disabled}, nil
	case *jwtv3.PerRouteConfig_RequirementName:
		return &jwtPart{name: s.RequirementName}, nil
	}
	return nil, field.Errorf("requirement_specifier", "required")
}

// jwtCompiler compiles rules and requirements of a filter.
type jwtCompiler struct {
	f         *jwt
	providers map[string]*provider
}

func (k *jwtCompiler) rule(p *jwtv3.RequirementRule) (r jwtRule, err error) {
	if r.when, err = route.CompileCondition(p.GetMatch()); err != nil {
		return r, field.At(err, "match")
	}
	switch n := p.GetRequirementType().(type) {
	case *jwtv3.RequirementRule_Requires:
		r.need, err = k.requirement(n.Requires, 0)
		return r, field.At(err, "requires")
	case *jwtv3.RequirementRule_RequirementName:
		var ok bool
		if r.need, ok = k.f.named[n.RequirementName]; !ok {
			return r, field.Errorf("requirement_name", "%q is not in requirement_map", n.RequirementName)
		}
	}
	return r, nil
}

func (k *jwtCompiler) provider(n string) (*provider, error) {
	p, ok := k.providers[n]
	if !ok {
		return nil, field.Errorf("provider_name", "%q is not one of the providers", n)
	}
	return p, nil
}

func (k *jwtCompiler) requirement(p *jwtv3.JwtRequirement, depth int) (requirement, error) {
	if depth > maxDepth {
		return nil, errors.New("requirements are nested too deep")
	}
	switch r := p.GetRequiresType().(type) {
	case *jwtv3.JwtRequirement_ProviderName:
		q, err := k.provider(r.ProviderName)
		return from{p: q}, err
	case *jwtv3.JwtRequirement_ProviderAndAudiences:
		q, err := k.provider(r.ProviderAndAudiences.GetProviderName())
		f := from{p: q, audiences: []string{}}
		for _, a := range r.ProviderAndAudiences.GetAudiences() {
			f.audiences = append(f.audiences, bareAudience(a))
		}
		return f, field.At(err, "provider_and_audiences")
	case *jwtv3.JwtRequirement_RequiresAny:
		var out anyOf
		for i, c := range r.RequiresAny.GetRequirements() {
			switch c.GetRequiresType().(type) {
			case *jwtv3.JwtRequirement_AllowMissing:
				out.allowMissing = true
				continue
			case *jwtv3.JwtRequirement_AllowMissingOrFailed:
				out.allowBad = true
				continue
			}
			q, err := k.requirement(c, depth+1)
			if err != nil {
				return nil, field.Index(err, "requires_any.requirements", i)
			}
			out.of = append(out.of, q)
		}
		return out, nil
	case *jwtv3.JwtRequirement_RequiresAll:
		var out allOf
		for i, c := range r.RequiresAll.GetRequirements() {
			q, err := k.requirement(c, depth+1)
			if err != nil {
				return nil, field.Index(err, "requires_all.requirements", i)
			}
			out = append(out, q)
		}
		return out, nil
	case *jwtv3.JwtRequirement_AllowMissing:
		return whoever{all: k.f.providers}, nil
	case *jwtv3.JwtRequirement_AllowMissingOrFailed:
		return whoever{all: k.f.providers, allowBad: true}, nil
	case nil:
		return nil, nil
	}
	return nil, field.Errorf("requires_type", "unsupported requirement %T", p.GetRequiresType())
}

func (r refused) meet(*attempt) error { return r.err }

// worse orders errors: what is wrong with a token says more than that it is another issuer's, or not there.
func worse(a, b error) error {
	rank := func(e error) int {
		switch {
		case e == nil || errors.Is(e, errJWTMissing):
			return 0
		case errors.Is(e, errJWTIssuer):
			return 1
		}
		return 2
	}
	if a == nil || rank(b) > rank(a) {
		return b
	}
	return a
}

func (r anyOf) meet(a *attempt) error {
	var worst error
	for _, c := range r.of {
		if c == nil {
			return nil
		}
		n := len(a.good)
		err := c.meet(a)
		if a.missing != nil || err == nil {
			return err
		}
		a.good = a.good[:n]
		worst = worse(worst, err)
	}
	if r.allowBad || r.allowMissing && (worst == nil || errors.Is(worst, errJWTMissing)) {
		return nil
	}
	return worst
}

func (r allOf) meet(a *attempt) error {
	for _, c := range r {
		if c == nil {
			continue
		}
		if err := c.meet(a); err != nil || a.missing != nil {
			return err
		}
	}
	return nil
}

func (r whoever) meet(a *attempt) error {
	q := anyOf{allowMissing: true, allowBad: r.allowBad}
	for _, p := range r.all {
		q.of = append(q.of, from{p: p})
	}
	return q.meet(a)
}

// found is a token of a request, and the header that it is in, if it is in one.
type found struct{ text, header string }

// token is the token in the header, if there is one. In several fields of the name there is one that nobody takes, as in
// Envoy: which of them counted would be a matter of taste.
func (t tokenHeader) token(h *message.Header) (string, bool) {
	n, last := 0, ""
	for _, f := range h.Fields() {
		if f.Name != t.name {
			continue
		}
		if i := strings.Index(f.Value, t.prefix); i >= 0 {
			last = f.Value[i+len(t.prefix):]
			n++
		}
	}
	if n > 1 {
		return "", true
	}
	if end := strings.IndexAny(last, " ,;\"'"); end >= 0 {
		last = last[:end]
	}
	return last, n > 0
}

// tokens are those that are where the provider says.
func (p *provider) tokens(x *Exchange) []found {
	var out []found
	for _, h := range p.headers {
		if t, ok := h.token(&x.Req.Header); ok {
			out = append(out, found{t, h.name})
		}
	}
	if len(p.params) > 0 {
		if _, q, ok := strings.Cut(x.Req.Path, "?"); ok {
			values, _ := url.ParseQuery(q)
			for _, n := range p.params {
				if t := values.Get(n); t != "" {
					out = append(out, found{t, ""})
				}
			}
		}
	}
	for _, n := range p.cookies {
		if t, ok := route.Cookie(&x.Req.Header, n); ok && t != "" {
			out = append(out, found{t, ""})
		}
	}
	return out
}

func (r from) meet(a *attempt) error {
	list := r.p.tokens(a.x)
	if len(list) == 0 {
		return errJWTMissing
	}
	for _, f := range list {
		t, err := parseToken(f.text)
		if err == nil {
			err = r.p.check(a, t, r.audiences)
		}
		if err != nil {
			return err
		}
		if a.missing != nil {
			return nil
		}
		if !slices.ContainsFunc(a.good, func(g accepted) bool { return g.p == r.p && g.t.raw == t.raw }) {
			a.good = append(a.good, accepted{r.p, t, f.header})
		}
	}
	return nil
}

// check verifies a token: what it says first, which is cheap, then its signature.
func (p *provider) check(a *attempt, t *token, audiences []string) error {
	iss := t.text("iss")
	if p.issuer != "" && iss != p.issuer {
		return errJWTIssuer
	}
	if p.subject != nil && !p.subject.Match(t.text("sub")) {
		return errJWTSubject
	}
	if err := t.timely(a.now, p.skew); err != nil {
		return err
	}
	exp, there, _ := t.when("exp")
	if p.requireExp && !there {
		return refusal("Jwt expiration claim is missing")
	}
	if p.maxLife > 0 && (!there || exp.After(a.now.Add(p.maxLife))) {
		return refusal("Jwt lifetime exceeds the configured maximum")
	}
	if audiences == nil {
		audiences = p.audiences
	}
	if !t.meantFor(audiences) {
		return errJWTAudience
	}
	k := p.keys.Load()
	if p.remote != nil && (k == nil || a.now.After(k.until) && a.turn(p)) {
		a.missing = p // old keys are good for others while one request gets the new ones
		return nil
	}
	if p.remote != nil && a.now.After(k.until.Add(staleKeys)) { // what the issuer has withdrawn since must not stay good
		return errJWTFetch
	}
	err := k.verify(t)
	if errors.Is(err, errJWTNoKey) && p.remote != nil && a.turn(p) {
		a.missing = p // the issuer may have a new key
		return nil
	}
	return err
}

// staleKeys is how much longer than their time keys are good while new ones cannot be had.
const staleKeys = time.Hour

// turn says whether it is this request's turn to get a provider's new keys.
func (a *attempt) turn(p *provider) bool { return !slices.Contains(a.asked, p) && p.turn(a.now) }

// turn says whether it is a request's turn to get new keys: one at a time, and none for a while after a failure.
func (p *provider) turn(now time.Time) bool {
	next := p.next.Load()
	return now.UnixNano() >= next && p.next.CompareAndSwap(next, now.Add(p.remote.timeout).UnixNano())
}
