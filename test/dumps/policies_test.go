package dumps

import (
	"encoding/json"
	"strings"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	templatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
)

// leaves are the values that the conditions of policies speak of.
type leaves struct {
	m                           *maker
	paths, methods, authorities []string
	headers                     []pair
}

// filters makes requests that the chain's filters decide about.
func (m *maker) filters(c *chain) {
	tokens := map[string]string{"": ""}
	base := &request{why: c.name, dst: c.dst, who: clients[0], method: "GET", authority: "service.example.com", path: "/"}
	for _, f := range c.http.GetHttpFilters() {
		var r rbacv3.RBAC
		var j jwtv3.JwtAuthentication
		switch a := f.GetTypedConfig(); {
		case a.MessageIs(&j):
			if err := a.UnmarshalTo(&j); err != nil {
				m.t.Fatal(err)
			}
			m.jwt(base, &j, tokens)
		case a.MessageIs(&r):
			if err := a.UnmarshalTo(&r); err != nil {
				m.t.Fatal(err)
			}
			for _, name := range sorted(r.GetRules().GetPolicies()) {
				m.policy(base, name, r.GetRules().GetPolicies()[name], tokens)
			}
			for _, name := range sorted(r.GetShadowRules().GetPolicies()) {
				m.policy(base, name, r.GetShadowRules().GetPolicies()[name], tokens)
			}
		}
	}
}

// jwt makes requests with tokens of all kinds, in all places.
func (m *maker) jwt(base *request, j *jwtv3.JwtAuthentication, kept map[string]string) {
	for _, name := range sorted(j.GetProviders()) {
		p := j.GetProviders()[name]
		var keys struct{ Keys []struct{ Kid string } }
		if err := json.Unmarshal([]byte(p.GetLocalJwks().GetInlineString()), &keys); err != nil || len(keys.Keys) == 0 {
			continue
		}
		all := tokens(m.t, p.GetIssuer(), keys.Keys[0].Kid, p.GetAudiences())
		kept[name] = all["good"]
		for _, kind := range sorted(all) {
			m.places(base.with(name+": "+kind, func(r *request) { r.authority, r.path = "reviews.example.com", "/api/x" }), p, all[kind])
		}
		m.add(base.with(name+": not a bearer", func(r *request) { r.set("authorization", "Basic "+all["good"]) }))
		m.out = append(m.out, base.with(name+": bearer and nothing", func(r *request) { r.set("authorization", "Bearer ") }))
		m.add(base.with(name+": lower case bearer", func(r *request) { r.set("authorization", "bearer "+all["good"]) }))
		m.add(base.with(name+": two", func(r *request) {
			r.header = append(r.header, pair{"authorization", "Bearer " + all["good"]}, pair{"authorization", "Bearer " + all["expired"]})
		}))
		m.add(base.with(name+": forged result", func(r *request) { r.set("x-payload", "forged"); r.set("x-sub", "root") }))
	}
}

// places puts a token wherever the provider looks for one.
func (m *maker) places(base *request, p *jwtv3.JwtProvider, token string) {
	if len(p.GetFromHeaders())+len(p.GetFromParams())+len(p.GetFromCookies()) == 0 {
		m.add(base.with("authorization", func(r *request) { r.set("authorization", "Bearer "+token) }))
		m.add(base.with("access_token", func(r *request) { r.path += "?access_token=" + token }))
	}
	for _, h := range p.GetFromHeaders() {
		m.add(base.with(h.GetName(), func(r *request) { r.set(strings.ToLower(h.GetName()), h.GetValuePrefix()+token) }))
	}
	for _, n := range p.GetFromParams() {
		m.add(base.with("parameter "+n, func(r *request) { r.path += "?a=b&" + n + "=" + token }))
	}
	for _, n := range p.GetFromCookies() {
		m.add(base.with("cookie "+n, func(r *request) { r.set("cookie", "a=b; "+n+"="+token+"; c=d") }))
	}
}

// policy makes requests that differ in one of the things that a policy speaks of, by every client.
func (m *maker) policy(base *request, name string, p *rbacconfigv3.Policy, tokens map[string]string) {
	l := &leaves{m: m}
	for _, x := range p.GetPermissions() {
		l.permission(x)
	}
	for _, x := range p.GetPrincipals() {
		l.principal(x)
	}
	first := func(list []string, or string) string {
		if len(list) > 0 {
			return list[0]
		}
		return or
	}
	hit := base.with(name, func(r *request) {
		r.path, r.method, r.authority = first(l.paths, "/some"), first(l.methods, "GET"), first(l.authorities, "service.example.com")
	})
	for _, who := range clients {
		for _, tok := range sorted(tokens) {
			hit := hit.with("token "+tok, func(r *request) {
				r.who = who
				if tok != "" {
					r.set("authorization", "Bearer "+tokens[tok])
				}
			})
			m.add(hit)
			for _, x := range l.paths {
				m.add(hit.with("path "+x, func(r *request) { r.path = x }))
			}
		}
	}
	for _, x := range append([]string{"GET", "DELETE", "TRACE"}, l.methods...) {
		if x != "TRACE" || len(l.methods) > 0 {
			m.add(hit.with("method "+x, func(r *request) { r.method = x }))
		}
	}
	for _, x := range append([]string{"nobody.example.net"}, l.authorities...) {
		m.add(hit.with("host "+x, func(r *request) { r.authority = x }))
		m.add(hit.with("host "+strings.ToUpper(x)+":80", func(r *request) { r.authority = strings.ToUpper(x) + ":80" }))
	}
	for _, h := range l.headers {
		m.add(hit.with("header "+h.name, func(r *request) { r.put(h.name, h.value) }))
	}
	for _, x := range []string{"allow", "deny"} {
		m.add(hit.with("authorizer "+x, func(r *request) { r.set("x-ext-authz", x); r.set("x-secret", "1"); r.set("x-authz-user", "root") }))
	}
	m.add(hit.with("authorizer and a body", func(r *request) { r.method, r.body = "POST", "some bytes" }))
}

func (l *leaves) permission(p *rbacconfigv3.Permission) {
	for _, x := range p.GetAndRules().GetRules() {
		l.permission(x)
	}
	for _, x := range p.GetOrRules().GetRules() {
		l.permission(x)
	}
	if x := p.GetNotRule(); x != nil {
		l.permission(x)
	}
	if x := p.GetUrlPath(); x != nil {
		v := l.m.text(x.GetPath())
		if x.GetPath().GetSuffix() != "" {
			v = "/" + v
		}
		l.paths = append(l.paths, v, v+"?q=/other", v+"/", strings.ToUpper(v))
	}
	if x := p.GetUriTemplate(); x != nil {
		var t templatev3.UriTemplateMatchConfig
		if x.GetTypedConfig().UnmarshalTo(&t) == nil {
			v := strings.ReplaceAll(strings.ReplaceAll(t.GetPathTemplate(), "**", "y/z"), "*", "t")
			l.paths = append(l.paths, v, v+"/", "/x"+v, strings.Replace(v, "/t", "/t/t", 1), strings.Replace(v, "/y/z", "", 1), strings.Replace(v, "/y/z", "/", 1))
		}
	}
	if h := p.GetHeader(); h != nil {
		switch v := l.m.value(h); h.GetName() {
		case ":method":
			l.methods = append(l.methods, v)
		case ":authority":
			l.authorities = append(l.authorities, v)
		default:
			l.headers = append(l.headers, pair{h.GetName(), v})
		}
	}
}

func (l *leaves) principal(p *rbacconfigv3.Principal) {
	for _, x := range p.GetAndIds().GetIds() {
		l.principal(x)
	}
	for _, x := range p.GetOrIds().GetIds() {
		l.principal(x)
	}
	if x := p.GetNotId(); x != nil {
		l.principal(x)
	}
	if h := p.GetHeader(); h != nil {
		l.headers = append(l.headers, pair{h.GetName(), l.m.value(h)})
	}
}
