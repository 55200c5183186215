package authz

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// oracle decides as the documentation of AuthorizationPolicy says, straight from the objects: slowly, and with no code of
// the control plane or of the waypoint.
//
//   - What a DENY policy matches is denied; else, if there are ALLOW policies, only what one of them matches is allowed.
//     AUDIT and dry runs decide nothing.
//   - A policy matches if one of its rules does; a rule if one of "from", one of "to" and all of "when" do. Fields of a
//     source or an operation are ANDed, values ORed, and of a not-list none may match.
//   - What a DENY policy matches without the parameters of the path's segments is denied too, and what no ALLOW policy matches
//     without them is not allowed. To ALLOW policies a path that names a parameter is about what was written.
//   - A text is exact, a prefix "abc*", a suffix "*abc", or "*": there and not empty. Hosts ignore case.
type oracle struct {
	r *request
	// path is the path as normalised, without its query.
	path string
	// written is path when that is without parameters, and paths with parameters are still to be compared; "" otherwise.
	written string
	// issuer and subject are of the token, "" without.
	issuer, subject string
}

// The decisions.
const (
	allowed = "allowed"
	denied  = "denied"
	refused = "refused" // 400: the path is none
)

func decide(policies []*securityv1.AuthorizationPolicy, r *request, as normalization) string {
	path, ok := as.normalise(r.path)
	if !ok {
		return refused
	}
	o := &oracle{r: r, path: path}
	o.issuer, _ = r.claims["iss"].(string)
	o.subject, _ = r.claims["sub"].(string)
	bare := *o
	bare.path = segmentParameters.ReplaceAllString(o.path, "")
	named := bare
	named.written = o.path
	anyAllow, allow, allowBare := false, false, false
	for _, p := range policies {
		if p.Annotations["istio.io/dry-run"] == "true" {
			continue
		}
		hits := func(o *oracle) bool {
			return slices.ContainsFunc(p.Spec.Rules, func(x *security.Rule) bool { return o.rule(p.Namespace, x) })
		}
		switch p.Spec.Action {
		case security.AuthorizationPolicy_DENY:
			if hits(o) || hits(&bare) {
				return denied
			}
		case security.AuthorizationPolicy_ALLOW:
			anyAllow, allow, allowBare = true, allow || hits(o), allowBare || hits(&named)
		}
	}
	if anyAllow && !(allow && allowBare) {
		return denied
	}
	return allowed
}

func (o *oracle) rule(namespace string, r *security.Rule) bool {
	from := len(r.From) == 0
	for _, f := range r.From {
		from = from || o.source(namespace, f.Source)
	}
	to := len(r.To) == 0
	for _, t := range r.To {
		to = to || o.operation(t.Operation)
	}
	for _, w := range r.When {
		if !one(w.Values, w.NotValues, func(v string) bool { return o.when(namespace, w.Key, v) }) {
			return false
		}
	}
	return from && to
}

// one says that one of the values holds, if there are any, and none of those that must not.
func one(values, not []string, holds func(string) bool) bool {
	return (len(values) == 0 || slices.ContainsFunc(values, holds)) && !slices.ContainsFunc(not, holds)
}

func (o *oracle) source(namespace string, s *security.Source) bool {
	return one(s.Principals, s.NotPrincipals, func(v string) bool { return o.when(namespace, "source.principal", v) }) &&
		one(s.RequestPrincipals, s.NotRequestPrincipals, func(v string) bool { return o.when(namespace, "request.auth.principal", v) }) &&
		one(s.Namespaces, s.NotNamespaces, func(v string) bool { return o.when(namespace, "source.namespace", v) }) &&
		one(s.ServiceAccounts, s.NotServiceAccounts, func(v string) bool { return o.when(namespace, "source.serviceAccount", v) }) &&
		one(s.TrustDomains, s.NotTrustDomains, func(v string) bool { return o.when(namespace, "source.trustDomain", v) }) &&
		one(s.IpBlocks, s.NotIpBlocks, func(v string) bool { return o.when(namespace, "source.ip", v) }) &&
		one(s.RemoteIpBlocks, s.NotRemoteIpBlocks, func(v string) bool { return o.when(namespace, "remote.ip", v) })
}

func (o *oracle) operation(x *security.Operation) bool {
	return one(x.Hosts, x.NotHosts, func(v string) bool { return says(strings.ToLower(v), strings.ToLower(o.r.host)) }) &&
		one(x.Methods, x.NotMethods, func(v string) bool { return says(v, o.r.method) }) &&
		one(x.Ports, x.NotPorts, func(v string) bool { return v == fmt.Sprint(o.r.dest.Port()) }) &&
		one(x.Paths, x.NotPaths, func(v string) bool {
			path := o.path
			if o.written != "" && strings.Contains(v, ";") {
				path = o.written
			}
			if strings.Contains(v, "{") {
				return template(v, path)
			}
			return says(v, path)
		})
}

// says compares a text with a pattern.
func says(pattern, v string) bool {
	switch {
	case pattern == "*":
		return v != ""
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(v, pattern[1:])
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(v, pattern[:len(pattern)-1])
	}
	return v == pattern
}

// template matches a path with {*}, some characters of one segment, and {**}, any characters.
func template(t, p string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+,;:@=" // RFC 3986 section 3.3
	for n := 0; ; n++ {
		if rest, ok := strings.CutPrefix(t, "{**}"); ok {
			if template(rest, p[n:]) {
				return true
			}
			if n == len(p) || !strings.Contains(chars+"/", p[n:n+1]) {
				return false
			}
		} else if rest, ok := strings.CutPrefix(t, "{*}"); ok {
			if n > 0 && template(rest, p[n:]) {
				return true
			}
			if n == len(p) || !strings.Contains(chars, p[n:n+1]) {
				return false
			}
		} else if t == "" {
			return p == ""
		} else {
			return p != "" && t[0] == p[0] && template(t[1:], p[1:])
		}
	}
}

// meshDomains are the mesh's trust domain and its alias: identities that differ in it only are the same.
var meshDomains = []string{"cluster.local", "old.local"}

func (o *oracle) when(namespace, key, v string) bool {
	parts := strings.Split(o.r.identity, "/") // DOMAIN/ns/NAMESPACE/sa/ACCOUNT
	switch key {
	case "source.principal":
		return slices.ContainsFunc(o.aliases(v, parts[0]), func(d string) bool { return says(v, d+"/"+strings.Join(parts[1:], "/")) })
	case "source.trustDomain":
		return says(v, parts[0]) || slices.Contains(meshDomains, v) && slices.Contains(meshDomains, parts[0])
	case "source.namespace":
		return says(v, parts[2])
	case "source.serviceAccount":
		if !strings.Contains(v, "/") {
			v = namespace + "/" + v
		}
		return v == parts[2]+"/"+parts[4]
	case "source.ip":
		return within(v, o.r.source)
	case "remote.ip":
		return within(v, o.remote())
	case "destination.ip":
		return within(v, o.r.dest.Addr())
	case "destination.port":
		return v == fmt.Sprint(o.r.dest.Port())
	case "connection.sni":
		return says(v, "") // HTTP without TLS
	case "request.auth.principal":
		return o.requestPrincipal(v)
	case "request.auth.audiences":
		return claim(o.r.claims["aud"], v)
	case "request.auth.presenter":
		return claim(o.r.claims["azp"], v)
	}
	if name, ok := strings.CutPrefix(key, "request.headers["); ok {
		return o.headers(strings.ToLower(strings.TrimSuffix(name, "]")), v)
	}
	path := strings.Split(strings.TrimSuffix(strings.TrimPrefix(key, "request.auth.claims["), "]"), "][")
	var at any = o.r.claims
	for _, k := range path {
		m, _ := at.(map[string]any)
		at = m[k]
	}
	if s, ok := at.(string); ok && len(path) == 1 && path[0] == "scope" {
		at = strings.Fields(s) // a list by RFC 8693 section 4.2
	}
	return claim(at, v)
}

// aliases are the trust domains that the client's stands for, where the pattern names one of the mesh's.
func (o *oracle) aliases(pattern, domain string) []string {
	named, _, ok := strings.Cut(pattern, "/")
	if ok && slices.Contains(meshDomains, domain) && slices.ContainsFunc(meshDomains, func(d string) bool { return says(named, d) }) {
		return meshDomains
	}
	return []string{domain}
}

// requestPrincipal compares ISSUER/SUBJECT. Issuers have slashes, so that it is the pattern's last one that divides; those
// of "https://" do not.
func (o *oracle) requestPrincipal(v string) bool {
	if o.issuer == "" || o.subject == "" {
		return false
	}
	i := strings.LastIndexByte(v, '/')
	switch {
	case v == "*":
		return true
	case strings.HasPrefix(v, "https://") && i < len("https://"):
		return says(v, o.issuer)
	case i >= 0:
		return says(v[:i], o.issuer) && says(v[i+1:], o.subject)
	case strings.HasPrefix(v, "*"):
		return says(v, o.subject)
	case strings.HasSuffix(v, "*"):
		return says(v, o.issuer)
	}
	return false
}

// headers looks for a value among those of a header; "*" is for one that is there.
func (o *oracle) headers(name, v string) bool {
	if name == ":authority" || name == "host" {
		return says(v, o.r.host)
	}
	if name == ":method" {
		return says(v, o.r.method)
	}
	return slices.ContainsFunc(o.r.header, func(h pair) bool {
		return strings.EqualFold(h.name, name) && (v == "*" || says(v, h.value))
	})
}

// remote is the address that the last proxy wrote down, or the connection's.
func (o *oracle) remote() netip.Addr {
	var all []string
	for _, h := range o.r.header {
		if h.name == "x-forwarded-for" && h.value != "" {
			all = append(all, strings.Split(h.value, ",")...)
		}
	}
	if len(all) > 0 {
		if a, err := netip.ParseAddr(strings.TrimSpace(all[len(all)-1])); err == nil {
			return a
		}
	}
	return o.r.source
}

func within(block string, a netip.Addr) bool {
	p, err := netip.ParsePrefix(block)
	if err != nil {
		return block == a.String()
	}
	return p.Contains(a)
}

// claim says that a claim is a text that the pattern means, or a list with one.
func claim(c any, pattern string) bool {
	switch c := c.(type) {
	case string:
		return says(pattern, c)
	case []string:
		return slices.ContainsFunc(c, func(s string) bool { return says(pattern, s) })
	}
	return false
}

var (
	escapes = regexp.MustCompile(`%[0-9a-fA-F]{2}`)
	// parameters of a dot segment go to the next slash, whatever they are
	parameters = regexp.MustCompile(`([/\\]\.{1,2});[^/]*`)
)

// normalization is how paths are made canonical, as pathNormalization of MeshConfig.
type normalization string

// The ways.
const (
	none   normalization = "NONE"
	base   normalization = "BASE"
	merge  normalization = "MERGE_SLASHES"
	decode normalization = "DECODE_AND_MERGE_SLASHES"
)

// normalizations are all of them, the default first.
var normalizations = []normalization{base, decode, merge, none}

var (
	escapedSlashes     = regexp.MustCompile(`%2[fF]`)
	escapedBackslashes = regexp.MustCompile(`%5[cC]`)
	segmentParameters  = regexp.MustCompile(`;[^/]*`)
	slashes            = regexp.MustCompile(`//+`)
)

// normalise makes a path canonical, without its query. It is false for what is no path.
func (n normalization) normalise(p string) (string, bool) {
	p, query, _ := strings.Cut(p, "?")
	if n == none {
		return p, !strings.ContainsFunc(p+query, illegal)
	}
	if n == decode {
		p = escapedBackslashes.ReplaceAllString(escapedSlashes.ReplaceAllString(p, "/"), `\`)
	}
	p, ok := baseForm(p + "?" + query)
	if n != base {
		p = slashes.ReplaceAllString(p, "/")
	}
	return p, ok
}

func illegal(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' }

// baseForm is what the documentation calls BASE: RFC 3986, backslashes are slashes.
func baseForm(p string) (string, bool) {
	if strings.ContainsFunc(p, illegal) {
		return "", false
	}
	p, _, _ = strings.Cut(p, "?")
	if strings.Contains(p, "%%41") {
		p = strings.ReplaceAll(p, "%%41", "%%\x0041") // an escape that was not there must not come into being
	}
	p = escapes.ReplaceAllStringFunc(p, func(e string) string {
		var c byte
		fmt.Sscanf(e[1:], "%x", &c)
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			return string(rune(c))
		}
		return e
	})
	p = strings.ReplaceAll(parameters.ReplaceAllString(p, "$1"), "\x00", "")
	if strings.Contains(p, "%00") {
		return "", false
	}
	var b strings.Builder
	for _, c := range []byte(strings.ReplaceAll(p, `\`, "/")) {
		if strings.IndexByte("\"<>^`{|}", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	var out []string
	segments := strings.Split(b.String()[1:], "/")
	for i, s := range segments {
		if s != "." && s != ".." {
			out = append(out, s)
			continue
		}
		if s == ".." && len(out) > 0 {
			out = out[:len(out)-1]
		}
		if i == len(segments)-1 {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/"), true
}
