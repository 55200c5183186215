package route

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// RegexRewrite is a compiled RegexMatchAndSubstitute. nil changes nothing.
type RegexRewrite struct {
	re    *regexp.Regexp
	parts []substitute
}

// substitute is literal text, or a group's.
type substitute struct {
	text  string
	group int // -1: text
}

// CompileRewrite compiles a pattern with its substitution, in which \0 to \9 are groups and \\ is a backslash.
func CompileRewrite(p *matcherv3.RegexMatchAndSubstitute) (*RegexRewrite, error) {
	expr := p.GetPattern().GetRegex()
	if expr == "" {
		return nil, field.Errorf("pattern", "required")
	}
	if err := checkRegexp(expr); err != nil {
		return nil, field.At(err, "pattern")
	}
	r := &RegexRewrite{re: regexp.MustCompile(expr)}
	lit := ""
	s := p.GetSubstitution()
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			lit += s[i : i+1]
			continue
		}
		if i++; i == len(s) {
			return nil, field.Errorf("substitution", "backslash at the end")
		}
		switch c := s[i]; {
		case c == '\\':
			lit += "\\"
		case '0' <= c && c <= '9':
			g := int(c - '0')
			if g > r.re.NumSubexp() {
				return nil, field.Errorf("substitution", "group %d of a pattern with %d", g, r.re.NumSubexp())
			}
			r.parts = append(r.parts, substitute{text: lit, group: -1}, substitute{group: g})
			lit = ""
		default:
			return nil, field.Errorf("substitution", "backslash before %q", c)
		}
	}
	r.parts = append(r.parts, substitute{text: lit, group: -1})
	return r, nil
}

// Replace replaces every match in s.
func (r *RegexRewrite) Replace(s string) string {
	if r == nil {
		return s
	}
	matches := r.re.FindAllStringSubmatchIndex(s, -1)
	if matches == nil {
		return s
	}
	var b strings.Builder
	last := 0
	for _, m := range matches {
		b.WriteString(s[last:m[0]])
		for _, p := range r.parts {
			if p.group < 0 {
				b.WriteString(p.text)
			} else if from := m[2*p.group]; from >= 0 {
				b.WriteString(s[from:m[2*p.group+1]])
			}
		}
		last = m[1]
	}
	b.WriteString(s[last:])
	return b.String()
}

// pathRewrite changes a request's path; the query stays.
type pathRewrite struct {
	match  *match
	prefix string
	regex  *RegexRewrite
	format *Format
}

// appendPath appends the new path, and says whether it is another one; if not nothing is appended.
func (p *pathRewrite) appendPath(dst []byte, path string, c *Context) ([]byte, bool) {
	old := bare(path)
	switch {
	case p.prefix != "":
		return append(append(dst, p.prefix...), path[p.match.matched(old):]...), true
	case p.regex != nil:
		return append(append(dst, p.regex.Replace(old)...), path[len(old):]...), true
	case p.format != nil:
		return append(p.format.Append(dst, c, ""), path[len(old):]...), true
	}
	return dst, false
}

// Redirect is a compiled RedirectAction.
type Redirect struct {
	// Status is 301, 302, 303, 307 or 308.
	Status int

	scheme, host, port string
	path               string
	stripQuery         bool
	rewrite            pathRewrite
}

func compileRedirect(r *routev3.RedirectAction, m *match) (*Redirect, error) {
	d := &Redirect{host: r.GetHostRedirect(), stripQuery: r.GetStripQuery(), rewrite: pathRewrite{match: m}}
	switch c := r.GetResponseCode(); c {
	case routev3.RedirectAction_MOVED_PERMANENTLY:
		d.Status = 301
	case routev3.RedirectAction_FOUND:
		d.Status = 302
	case routev3.RedirectAction_SEE_OTHER:
		d.Status = 303
	case routev3.RedirectAction_TEMPORARY_REDIRECT:
		d.Status = 307
	case routev3.RedirectAction_PERMANENT_REDIRECT:
		d.Status = 308
	default:
		return nil, field.Errorf("response_code", "unknown value %d", c)
	}
	if r.GetHttpsRedirect() {
		d.scheme = "https"
	} else {
		d.scheme = r.GetSchemeRedirect()
	}
	switch p := r.GetPortRedirect(); {
	case p > 65535:
		return nil, field.Errorf("port_redirect", "not a port: %d", p)
	case p > 0:
		d.port = ":" + strconv.Itoa(int(p))
	}
	switch p := r.GetPathRewriteSpecifier().(type) {
	case nil:
	case *routev3.RedirectAction_PathRedirect:
		d.path = p.PathRedirect
	case *routev3.RedirectAction_PrefixRewrite:
		d.rewrite.prefix = p.PrefixRewrite
	case *routev3.RedirectAction_RegexRewrite:
		re, err := CompileRewrite(p.RegexRewrite)
		if err != nil {
			return nil, field.At(err, "regex_rewrite")
		}
		d.rewrite.regex = re
	default:
		return nil, field.Unsupported(r, "path_rewrite_specifier")
	}
	return d, nil
}

// Location is the URL that the client is sent to.
func (d *Redirect) Location(r *message.Request) string {
	scheme := d.scheme
	if scheme == "" {
		scheme = r.Scheme
	}
	if scheme == "" {
		scheme = "http"
	}
	host := d.host
	if host == "" {
		host = redirectHost(r, scheme, d.port != "")
	}
	path := r.Path
	if b, changed := d.rewrite.appendPath(nil, path, &Context{Req: r}); changed {
		path = string(b)
	}
	if d.path != "" {
		query := path[len(bare(path)):]
		path = d.path
		if !strings.Contains(path, "?") && !d.stripQuery {
			path += query
		}
	} else if d.stripQuery {
		path = bare(path)
	}
	return fmt.Sprintf("%s://%s%s%s", scheme, host, d.port, path)
}

// redirectHost is the request's host, without a port that the new URL replaces or does not need.
func redirectHost(r *message.Request, scheme string, replaced bool) string {
	h := r.Authority
	i := portStart(h)
	if i < 0 {
		return h
	}
	old := r.Header.Get("x-forwarded-proto")
	if old == "" {
		old = r.Scheme
	}
	drop := replaced
	if scheme != old {
		drop = drop || old == "https" && h[i:] == ":443" || old == "http" && h[i:] == ":80"
	}
	if drop {
		return h[:i]
	}
	return h
}

// portStart is the index of the colon before a port, or -1.
func portStart(host string) int {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.IndexByte(host[i:], ']') >= 0 {
		return -1
	}
	if host[0] != '[' && strings.IndexByte(host, ':') != i {
		return -1 // an IPv6 address without brackets
	}
	return i
}
