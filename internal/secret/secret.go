// Package secret says what of a message is a secret, and takes it out of what people and collectors get to see: logs,
// spans, labels of metrics, dumps of the configuration. The list is that of ecosystem.md S15: authorization, cookies, and
// parameters of the query that are tokens; docs/decisions/0008-secrets-in-logs.md tells why it is a list.
package secret

import (
	"bytes"
	"net/url"
	"slices"
	"strings"
)

// Hidden stands where a secret was.
const Hidden = "[redacted]"

// parts are what the names of secrets have in them, in lower case and without what divides words; by their first letters.
var parts = byLetter(
	"authorization", "cookie", "token", "secret", "passw", "passphrase", "passcode", "pwd", "credential", "signature", "jwt",
	"assertion", "apikey", "accesskey", "authkey", "privatekey", "subscriptionkey", "sessionid", "sessid", "bearer", "samlre",
)

func byLetter(words ...string) (out [256][]string) {
	for _, w := range words {
		out[w[0]] = append(out[w[0]], w)
	}
	return out
}

// Named says whether what has this name is a secret: a header, a parameter, a cookie, a variable of the environment.
func Named(name string) bool {
	var space [64]byte
	b, ok := plain(space[:0], name)
	if !ok {
		return false
	}
	switch string(b) { // common as parts of other names, secrets alone
	case "auth", "code", "key", "otp", "pass", "pin", "session", "sid", "sig", "ticket":
		return true
	}
	return hasPart(b)
}

// within is Named for the names of a document, where such words alone are common. How long a secret is good is none.
func within(name string) bool {
	var space [64]byte
	b, ok := plain(space[:0], name)
	return ok && hasPart(b) && !bytes.HasSuffix(b, []byte("ttl"))
}

// plain appends a name in lower case and without what divides words; false for one that is too short for a secret's.
func plain(b []byte, name string) ([]byte, bool) {
	if len(name) < 3 {
		return nil, false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'A' <= c && c <= 'Z':
			b = append(b, c|0x20)
		case c == '-' || c == '_' || c == '.':
		default:
			b = append(b, c)
		}
	}
	return b, true
}

func hasPart(b []byte) bool {
	for i, c := range b {
		for _, p := range parts[c] {
			if len(b)-i >= len(p) && string(b[i:i+len(p)]) == p {
				return true
			}
		}
	}
	return false
}

// urls are the headers whose values are a URL, or a part of one.
var urls = []string{":path", "x-envoy-original-path", "x-original-url", "referer", "location", "content-location"}

// IsURL says that a header, by its name in lower case, has a URL as its value.
func IsURL(name string) bool { return slices.Contains(urls, name) }

// Header is what may be shown of a header; its name is in lower case.
func Header(name, value string) string {
	switch {
	case Named(name):
		return Hidden
	case IsURL(name):
		return URL(value)
	}
	return Value(value)
}

// Value is what may be shown of a value whose name says nothing: not a token.
func Value(value string) string {
	if signed(value) {
		return Hidden
	}
	return value
}

// maxNested is how often a value is decoded in search of a URL within it.
const maxNested = 3

// URL is what may be shown of a URL, or of a path and query: without passwords, without values of parameters that are
// [Named] secrets, and without signed tokens wherever they stand. It allocates only if there is something to hide.
func URL(s string) string { return clean(s, 0) }

func clean(s string, depth int) string {
	s = anonymous(s)
	if strings.IndexByte(s, '=') < 0 && !signed(s) && (depth == 0 || strings.IndexByte(s, '%') < 0) {
		return s
	}
	var b strings.Builder
	kept, query := 0, false // all before kept is in b
	for at := 0; at < len(s); {
		end := at + part(s[at:], query)
		if value, whole := hide(s[at:end], depth); value >= 0 {
			if whole { // up to where every server ends it
				end = at + value + valueEnd(s[at+value:], query)
			}
			b.WriteString(s[kept : at+value])
			b.WriteString(Hidden)
			kept = end
		}
		query = query || end < len(s) && s[end] == '?'
		at = end + 1
	}
	if b.Len() == 0 {
		return s
	}
	b.WriteString(s[kept:])
	return b.String()
}

// anonymous takes a user and a password out of a URL.
func anonymous(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || strings.ContainsAny(scheme, "/?&=") {
		return s
	}
	host := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		host = rest[:i]
	}
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		return scheme + "://" + Hidden + rest[i:]
	}
	return s
}

// part is where the first name with its value ends. Some servers divide by semicolons, and a URL may be in a value.
func part(s string, query bool) int {
	divides := "/;?"
	if query {
		divides = "&;?"
	}
	if i := strings.IndexAny(s, divides); i >= 0 {
		return i
	}
	return len(s)
}

// valueEnd is where a value that is hidden ends, for every server.
func valueEnd(s string, query bool) int {
	divides := "/?"
	if query {
		divides = "&"
	}
	if i := strings.IndexAny(s, divides); i >= 0 {
		return i
	}
	return len(s)
}

// hide is where in NAME=VALUE a secret begins, or -1, and whether it is longer than the part may be.
func hide(s string, depth int) (at int, longer bool) {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		if d := decoded(s); signed(d) || d != s && depth > 0 && depth < maxNested && clean(d, depth+1) != d {
			return 0, false
		}
		return -1, false
	}
	plain := decoded(value)
	switch {
	case value == "":
		return -1, false
	case Named(decoded(name)):
		return len(name) + 1, true
	case signed(plain), plain != value && depth < maxNested && clean(plain, depth+1) != plain:
		return len(name) + 1, false
	}
	return -1, false
}

// decoded is s without escapes, or s if they are malformed.
func decoded(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	if d, err := url.QueryUnescape(s); err == nil {
		return d
	}
	return s
}

// minHeader is the length of the shortest header of a signed token, {"alg":"none"}, in base64.
const minHeader = 16

// signed says that there is a signed or an encrypted token in s, in its compact form (RFC 7515 section 3.1): dots between
// parts in base64url, of which the first is an object of JSON.
func signed(s string) bool {
	for len(s) > minHeader {
		dot := strings.IndexByte(s, '.')
		if dot < 0 {
			return false
		}
		begin := dot
		for begin > 0 && base64url(s[begin-1]) {
			begin--
		}
		rest := s[dot+1:]
		n := 0
		for n < len(rest) && base64url(rest[n]) {
			n++
		}
		if dot-begin >= minHeader && s[begin] == 'e' && open(s[begin+1]) && n > 0 && n < len(rest) && rest[n] == '.' {
			return true
		}
		s = rest
	}
	return false
}

func base64url(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// open says that c is the second letter of a text in base64 that begins with a brace; the first is an e.
func open(c byte) bool { return 'w' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_' }
