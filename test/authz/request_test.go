package authz

import (
	"fmt"
	"net/netip"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// pair is a header field.
type pair struct{ name, value string }

// request is a request as the client writes it.
type request struct {
	service string
	// identity is the client's, without the scheme.
	identity string
	source   netip.Addr
	dest     netip.AddrPort
	// method, path and host are what stands in the request.
	method, path, host string
	header             []pair
	// claims are those of the token that the request carries; nil: none.
	claims map[string]any
	token  string
}

func (r *request) String() string {
	return fmt.Sprintf("%s from %v to %v: %s %q, host %s, %v, claims %v", r.identity, r.source, r.dest, r.method, r.path, r.host, r.header, r.claims)
}

// request makes a request to a service, more often than not one that its policies speak of.
func (m *maker) request(s *service, tokens []*token) *request {
	r := &request{
		service: s.name, identity: m.identity(), source: netip.MustParseAddr(pick(m, addresses)), dest: s.dest,
		method: pick(m, methods), host: pick(m, hosts),
	}
	r.path = m.path(s.policies)
	if list := words(s.policies, hostsOf); len(list) > 0 && m.chance(2) {
		r.host = strings.ReplaceAll(pick(m, list), "*", pick(m, []string{"", "x", "example"}))
		if name, port, ok := strings.Cut(r.host, ":"); name == "" || ok && strings.Trim(port, "0123456789") != "" {
			r.host = name + "x" // what is no host is refused before any rule
		}
	}
	switch m.IntN(5) {
	case 0:
		r.host = strings.ToUpper(r.host)
	case 1:
		if !strings.Contains(r.host, ":") {
			r.host += "."
		}
	}
	for range m.IntN(4) {
		r.header = append(r.header, pair{pick(m, headerNames), pick(m, append(headerValues, "", "test, prod", "prod,prod"))})
	}
	for range m.IntN(3) * m.IntN(2) {
		r.header = append(r.header, pair{"x-forwarded-for", pick(m, []string{
			"127.0.0.1", "192.0.2.7", "192.0.2.8, 127.0.1.1", "127.0.0.1,192.0.2.7", "10.0.0.1 , 10.0.0.2", "unknown", "", "2001:db8::1", "192.0.2.7:80", "[2001:db8::1]", "192.0.2.7,",
		})})
	}
	if m.chance(2) {
		t := pick(m, tokens)
		r.claims, r.token = t.claims, t.text
	}
	return r
}

// path is one that the policies speak of, or another, often written in another way.
func (m *maker) path(policies []*securityv1.AuthorizationPolicy) string {
	p := pick(m, basePaths)
	if list := words(policies, pathsOf); len(list) > 0 && !m.chance(4) {
		p = pick(m, list)
		p = strings.ReplaceAll(p, "{**}", pick(m, []string{"", "x", "x/y", "x/y/z", "/"}))
		for strings.Contains(p, "{*}") {
			p = strings.Replace(p, "{*}", pick(m, []string{"x", "bar", "v1", "", "x/y", "a.b"}), 1)
		}
		p = strings.ReplaceAll(p, "*", pick(m, []string{"", "x", "/x"}))
	}
	if !strings.HasPrefix(p, "/") {
		p = "/" + p
	}
	for range m.IntN(3) {
		p = m.disguise(p)
	}
	return p + pick(m, []string{"", "", "", "", "?q=1", "?a=/../admin", "?", "?//", "?%2e%2e"})
}

// disguise writes a path in another way, or makes one that looks much the same (B14).
func (m *maker) disguise(p string) string {
	at := m.IntN(len(p))
	slash := strings.LastIndexByte(p[:at+1], '/')
	insert := func(s string) string { return p[:slash] + s + p[slash:] }
	switch m.IntN(30) {
	case 0:
		return insert("/.")
	case 1:
		return insert("/x/..")
	case 2:
		return insert("/")
	case 3:
		return insert("/%2e")
	case 4:
		return insert("/x/%2E%2e")
	case 5:
		return insert("/x/.%2e")
	case 6:
		return insert("/..")
	case 7:
		return insert("/..;a=b")
	case 8:
		return insert("/.;")
	case 9:
		return p[:1] + strings.Replace(p[1:], "/", `\`, 1)
	case 10:
		return insert(`/x\..`)
	case 11, 12:
		return m.escape(p, at)
	case 13:
		return p[:1] + strings.Replace(p[1:], "/", "%2f", 1+m.IntN(2))
	case 14:
		return p[:1] + strings.Replace(p[1:], "/", "%5C", 1)
	case 15:
		return strings.ToUpper(p)
	case 16:
		return p + "/"
	case 17:
		return p + ";x=1"
	case 18:
		return p + "/.."
	case 19:
		return p + "/."
	case 20:
		return p + pick(m, []string{"%00", "#f", "%", "%zz", "%20", "%25", "%252e"})
	case 21:
		return p + pick(m, []string{"|", "[x]", "{*}", "\"", "<x>", "^", "`", "\xc3\xa9", "\xff", "*", "'", "!$&'()*+,=:@"})
	case 22:
		return insert("/%c0%ae%c0%ae")
	case 23:
		return insert("/...")
	case 24:
		return "/" + p
	case 25:
		return insert("/x/%2e%2e;a")
	case 26:
		return insert(`/..;x\y`)
	case 27:
		return p + "%%41"
	}
	return p
}

// escape escapes a letter that does not belong to an escape.
func (m *maker) escape(p string, at int) string {
	c := p[at]
	if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z') || strings.Contains(p[max(0, at-2):at], "%") {
		return p
	}
	return p[:at] + fmt.Sprintf(pick(m, []string{"%%%02x", "%%%02X"}), c) + p[at+1:]
}
