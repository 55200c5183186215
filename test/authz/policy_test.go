package authz

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maker draws policies and requests. Its words are few, so that policies often match.
type maker struct{ *rand.Rand }

// pick is one of a list.
func pick[T any](m *maker, list []T) T { return list[m.IntN(len(list))] }

// chance is true once in n times.
func (m *maker) chance(n int) bool { return m.IntN(n) == 0 }

// some are a few of a list, perhaps some twice.
func (m *maker) some(make func() string) []string {
	var out []string
	for range 1 + m.IntN(3)*m.IntN(2) {
		out = append(out, make())
	}
	return out
}

var (
	basePaths = []string{
		"/", "/admin", "/admin/", "/admin/users", "/Admin", "/api/v1/items", "/api/v1", "/api/v2/items", "/public", "/secret", "/a/b/c", "/a/b", "/a//b",
		"/foo", "/foo/", "/foo/bar", "/foo/bar/baz", "/foo/x/bar/y", "/files/report.txt", "/a%2fb", "/caf%C3%A9", "/a;x=1", "/%7Euser/~x",
	}
	templates = []string{
		"/foo/{*}", "/foo/{**}", "/{*}/bar", "/foo/{*}/{**}", "/api/{*}/items", "/foo/{**}/", "/{**}", "/foo/{*}/bar/{**}", "/{*}/{*}/{*}", "/a/{*}", "/{*}/{**}/items", "/admin/{**}",
	}
	hosts      = []string{"example.com", "www.example.com", "example.org", "example.com:80", "example.com:8080", "api.example.com", "EXAMPLE.com", "localhost", "10.1.2.3"}
	methods    = []string{"GET", "GET", "GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"}
	namespaces = []string{"foo", "bar", "foo-bar", "demo"}
	accounts   = []string{"client", "admin", "client-2"}
	domains    = []string{"cluster.local", "old.local", "partner.example"}
	addresses  = []string{"127.0.0.1", "127.0.0.2", "127.0.1.1", "127.0.1.2", "127.1.0.1"}
	blocks     = []string{
		"127.0.0.1", "127.0.0.0/24", "127.0.1.7/24", "127.0.0.0/16", "127.0.0.0/8", "10.0.0.0/8", "192.0.2.7", "192.0.2.0/24", "0.0.0.0/0", "::/0", "::1", "2001:db8::/32", "127.0.0.2/31",
		"::ffff:127.0.0.1", "::ffff:127.0.0.0/104",
	}
	headerNames  = []string{"x-env", "X-Team", "x-role", "cookie"}
	headerValues = []string{"prod", "prod-eu", "test", "PROD", "a=b; c=d", "dev-1"}
	issuers      = []string{"https://idp.example.com", "https://idp.example.com/tenant", "accounts"}
	claimKeys    = []string{"groups", "nested][claim", "nested][list", "scope", "sub", "level", "missing", "a.b"}
	claimValues  = []string{"admin", "dev-1", "dev-2", "x", "y", "read", "write", "alice", "5", "true"}
	ports        = []string{"80", "8080", "8443"}
)

// text makes an exact text, a prefix, a suffix or presence of a value.
func (m *maker) text(v string) string {
	switch m.IntN(7) {
	case 0:
		return v[:1+m.IntN(len(v))] + "*"
	case 1:
		return "*" + v[m.IntN(len(v)):]
	case 2:
		return "*"
	}
	return v
}

func (m *maker) pathPattern() string {
	if m.chance(3) {
		return pick(m, templates)
	}
	return m.text(pick(m, basePaths))
}

func (m *maker) identity() string {
	return pick(m, domains) + "/ns/" + pick(m, namespaces) + "/sa/" + pick(m, accounts)
}

func (m *maker) requestPrincipal() string {
	v := pick(m, issuers) + "/" + pick(m, []string{"alice", "bob"})
	if m.chance(5) {
		v = v[:strings.LastIndexByte(v, '/')+1] + "*"
	}
	return m.text(v)
}

// lists fills one list, or the one of what must not be, or both.
func (m *maker) lists(yes, no *[]string, make func() string) {
	switch m.IntN(4) {
	case 0:
		*no = m.some(make)
	case 1:
		*yes, *no = m.some(make), m.some(make)
	default:
		*yes = m.some(make)
	}
}

func (m *maker) source() *security.Source {
	s := &security.Source{}
	for range 1 + m.IntN(2) {
		switch m.IntN(7) {
		case 0:
			m.lists(&s.Principals, &s.NotPrincipals, func() string { return m.text(m.identity()) })
		case 1:
			m.lists(&s.Namespaces, &s.NotNamespaces, func() string { return m.text(pick(m, namespaces)) })
		case 2:
			m.lists(&s.RequestPrincipals, &s.NotRequestPrincipals, m.requestPrincipal)
		case 3:
			m.lists(&s.IpBlocks, &s.NotIpBlocks, func() string { return pick(m, blocks) })
		case 4:
			m.lists(&s.RemoteIpBlocks, &s.NotRemoteIpBlocks, func() string { return pick(m, blocks) })
		case 5:
			m.lists(&s.TrustDomains, &s.NotTrustDomains, func() string { return m.text(pick(m, domains)) })
		case 6:
			if len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces) == 0 {
				m.lists(&s.ServiceAccounts, &s.NotServiceAccounts, m.serviceAccount)
				return s // with nothing that may not stand beside it
			}
		}
	}
	return s
}

func (m *maker) serviceAccount() string {
	if m.chance(2) {
		return pick(m, accounts)
	}
	return pick(m, namespaces) + "/" + pick(m, accounts)
}

func (m *maker) operation() *security.Operation {
	o := &security.Operation{}
	for range 1 + m.IntN(2) {
		switch m.IntN(6) {
		case 0:
			m.lists(&o.Hosts, &o.NotHosts, func() string { return m.text(pick(m, hosts)) })
		case 1:
			m.lists(&o.Methods, &o.NotMethods, func() string { return m.text(pick(m, methods)) })
		case 2:
			m.lists(&o.Ports, &o.NotPorts, func() string { return pick(m, ports) })
		default:
			m.lists(&o.Paths, &o.NotPaths, m.pathPattern)
		}
	}
	return o
}

func (m *maker) condition() *security.Condition {
	c := &security.Condition{}
	kinds := []struct {
		key  string
		make func() string
	}{
		{"request.headers[" + pick(m, headerNames) + "]", func() string { return m.text(pick(m, headerValues)) }},
		{"request.headers[" + pick(m, []string{":authority", "host"}) + "]", func() string { return m.text(pick(m, hosts)) }},
		{"request.headers[:method]", func() string { return m.text(pick(m, methods)) }},
		{"source.ip", func() string { return pick(m, blocks) }},
		{"remote.ip", func() string { return pick(m, blocks) }},
		{"source.namespace", func() string { return m.text(pick(m, namespaces)) }},
		{"source.serviceAccount", m.serviceAccount},
		{"source.principal", func() string { return m.text(m.identity()) }},
		{"source.trustDomain", func() string { return m.text(pick(m, domains)) }},
		{"request.auth.principal", m.requestPrincipal},
		{"request.auth.audiences", func() string { return m.text(pick(m, []string{"reviews", "other"})) }},
		{"request.auth.presenter", func() string { return m.text(pick(m, []string{"p1", "p2"})) }},
		{"request.auth.claims[" + pick(m, claimKeys) + "]", func() string { return m.text(pick(m, claimValues)) }},
		{"destination.ip", func() string {
			return pick(m, []string{"10.200.0.0/16", "10.200.0.0/24", "10.201.0.0/16", "10.200.0.3", "::/0"})
		}},
		{"destination.port", func() string { return pick(m, ports) }},
		{"connection.sni", func() string { return m.text("a.example.com") }},
	}
	k := pick(m, kinds)
	c.Key = k.key
	m.lists(&c.Values, &c.NotValues, k.make)
	return c
}

func (m *maker) rule() *security.Rule {
	r := &security.Rule{}
	if m.chance(40) {
		return r // matches everything
	}
	for len(r.From)+len(r.To)+len(r.When) == 0 {
		if m.chance(2) {
			for range 1 + m.IntN(2) {
				r.From = append(r.From, &security.Rule_From{Source: m.source()})
			}
		}
		if !m.chance(3) {
			for range 1 + m.IntN(2) {
				r.To = append(r.To, &security.Rule_To{Operation: m.operation()})
			}
		}
		if m.chance(3) {
			for range 1 + m.IntN(2) {
				r.When = append(r.When, m.condition())
			}
		}
	}
	return r
}

// policies are those of a service: some that allow, some that deny, some that only watch.
func (m *maker) policies(service string) []*securityv1.AuthorizationPolicy {
	var out []*securityv1.AuthorizationPolicy
	for i := range 1 + m.IntN(3) {
		p := &securityv1.AuthorizationPolicy{}
		p.APIVersion, p.Kind = "security.istio.io/v1", "AuthorizationPolicy"
		p.ObjectMeta = metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", service, i), Namespace: "demo"}
		p.Spec.TargetRefs = []*typev1beta1.PolicyTargetReference{{Kind: "Service", Name: service}}
		p.Spec.Action = pick(m, []security.AuthorizationPolicy_Action{
			security.AuthorizationPolicy_ALLOW, security.AuthorizationPolicy_ALLOW, security.AuthorizationPolicy_DENY, security.AuthorizationPolicy_DENY, security.AuthorizationPolicy_AUDIT,
		})
		if p.Spec.Action != security.AuthorizationPolicy_AUDIT && m.chance(8) {
			p.Annotations = map[string]string{"istio.io/dry-run": "true"}
		}
		for range m.IntN(4) {
			p.Spec.Rules = append(p.Spec.Rules, m.rule())
		}
		out = append(out, p)
	}
	return out
}

// words are what the policies say about one thing, so that requests can be made that they speak of.
func words(policies []*securityv1.AuthorizationPolicy, of func(*security.Rule) []string) []string {
	var out []string
	for _, p := range policies {
		for _, r := range p.Spec.Rules {
			out = append(out, of(r)...)
		}
	}
	return out
}

func pathsOf(r *security.Rule) (out []string) {
	for _, t := range r.To {
		out = append(out, slices.Concat(t.Operation.Paths, t.Operation.NotPaths)...)
	}
	return out
}

func hostsOf(r *security.Rule) (out []string) {
	for _, t := range r.To {
		out = append(out, slices.Concat(t.Operation.Hosts, t.Operation.NotHosts)...)
	}
	return out
}
