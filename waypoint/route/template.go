package route

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// maxTemplateVars is the number of variables that Envoy allows in a URI template.
const maxTemplateVars = 5

// The characters that Envoy allows in a path of a URI template (RFC 3986 section 3.3, pchar).
const templateChar = `[a-zA-Z0-9\-._~%!$&'()*+,;:@=]`

// URITemplate compiles a pattern of Envoy's uri_template extension into an expression that matches whole paths: "*" is
// one segment, "**" any number of them with no wildcard behind it, {name} and {name=pattern} capture. Istio writes {*} and {**}.
func URITemplate(pattern string) (*regexp.Regexp, error) {
	if !strings.HasPrefix(pattern, "/") {
		return nil, errors.New("pattern does not begin with /")
	}
	t := templater{}
	t.WriteString(`\A`)
	for rest := pattern; rest != ""; {
		var err error
		if rest[0] == '{' {
			rest, err = t.variable(rest)
		} else {
			rest, err = t.token(rest)
		}
		if err != nil {
			return nil, err
		}
	}
	t.WriteString(`\z`)
	return regexp.Compile(t.String())
}

// templater translates a template.
type templater struct {
	strings.Builder
	vars int
	open bool // "**" came: no wildcard may follow
}

// variable translates a variable at the beginning of s and returns the rest.
func (t *templater) variable(s string) (string, error) {
	end := strings.IndexByte(s, '}')
	if end < 0 {
		return "", errors.New("unmatched {")
	}
	name, inner, ok := strings.Cut(s[1:end], "=")
	if !ok {
		inner = "*"
		if name == "**" {
			inner = name
		}
	}
	if t.vars++; t.vars > maxTemplateVars {
		return "", fmt.Errorf("more than %d variables", maxTemplateVars)
	}
	t.WriteByte('(')
	for inner != "" {
		var err error
		if inner, err = t.token(inner); err != nil {
			return "", err
		}
	}
	t.WriteByte(')')
	return s[end+1:], nil
}

// token translates one wildcard or literal character and returns the rest.
func (t *templater) token(s string) (string, error) {
	if s[0] == '*' {
		if t.open {
			return "", errors.New("wildcard after **")
		}
		if r, ok := strings.CutPrefix(s, "**"); ok {
			t.open = true
			t.WriteString(`(?:` + templateChar + `|/)*`)
			return r, nil
		}
		t.WriteString(templateChar + `+`)
		return s[1:], nil
	}
	if strings.IndexByte("{}?#\\ ", s[0]) >= 0 {
		return "", fmt.Errorf("invalid character %q", s[0])
	}
	t.WriteString(regexp.QuoteMeta(s[:1]))
	return s[1:], nil
}
