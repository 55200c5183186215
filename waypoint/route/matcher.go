package route

//lint:file-ignore SA1019 deprecated fields are still sent, and Envoy still obeys them

import (
	"errors"
	"regexp"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// maxRegex is the length of the longest regular expression that is accepted, in bytes.
const maxRegex = 16 << 10

// FullRegexp compiles an expression in RE2's syntax that has to match the whole of a string, as Envoy's safe_regex.
func FullRegexp(expr string) (*regexp.Regexp, error) {
	if err := checkRegexp(expr); err != nil {
		return nil, err
	}
	return regexp.Compile(`\A(?:` + expr + `)\z`)
}

// checkRegexp refuses what is not a complete expression by itself, such as "a)|(b".
func checkRegexp(expr string) error {
	if len(expr) > maxRegex {
		return errors.New("regular expression too long")
	}
	_, err := regexp.Compile(expr)
	return err
}

type stringKind uint8

const (
	exact stringKind = iota
	prefix
	suffix
	contains
	regex
)

// StringMatcher is a compiled envoy.type.matcher.v3.StringMatcher. It is immutable.
type StringMatcher struct {
	kind stringKind
	fold bool
	text string // lower case if fold
	re   *regexp.Regexp
}

// CompileString compiles a StringMatcher. Custom ones are refused.
func CompileString(m *matcherv3.StringMatcher) (*StringMatcher, error) {
	s := &StringMatcher{fold: m.GetIgnoreCase()}
	name := ""
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		s.kind, s.text = exact, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		s.kind, s.text, name = prefix, p.Prefix, "prefix"
	case *matcherv3.StringMatcher_Suffix:
		s.kind, s.text, name = suffix, p.Suffix, "suffix"
	case *matcherv3.StringMatcher_Contains:
		s.kind, s.text, name = contains, p.Contains, "contains"
	case *matcherv3.StringMatcher_SafeRegex:
		if s.fold { // Envoy refuses it too: (?i) is the way to say so
			return nil, field.Errorf("ignore_case", "has no effect on safe_regex")
		}
		re, err := FullRegexp(p.SafeRegex.GetRegex())
		if err != nil {
			return nil, field.At(err, "safe_regex")
		}
		s.kind, s.re = regex, re
	case nil:
		return nil, errors.New("no pattern")
	default:
		return nil, field.Unsupported(m, "match_pattern")
	}
	if name != "" && s.text == "" {
		return nil, field.Errorf(name, "empty pattern")
	}
	if s.fold {
		s.text = lower(s.text)
	}
	return s, nil
}

// Exact is the string that an exact matcher is about; ok is false for the other kinds.
func (s *StringMatcher) Exact() (text string, ok bool) { return s.text, s.kind == exact }

// Match says whether v is one of the strings meant. It does not allocate.
func (s *StringMatcher) Match(v string) bool {
	if s.kind == regex {
		return s.re.MatchString(v)
	}
	n := len(s.text)
	if len(v) < n {
		return false
	}
	switch s.kind {
	case exact:
		return len(v) == n && s.equal(v)
	case prefix:
		return s.equal(v[:n])
	case suffix:
		return s.equal(v[len(v)-n:])
	}
	if !s.fold {
		return strings.Contains(v, s.text)
	}
	for i := 0; i+n <= len(v); i++ {
		if s.equal(v[i : i+n]) {
			return true
		}
	}
	return false
}

// equal compares v, which is as long as the text.
func (s *StringMatcher) equal(v string) bool {
	if !s.fold {
		return v == s.text
	}
	return equalFold(v, s.text)
}

// equalFold compares strings of the same length; low is lower case. Only ASCII letters have a case, as in Envoy.
func equalFold(v, low string) bool {
	for i := range len(v) {
		if lowerByte(v[i]) != low[i] {
			return false
		}
	}
	return true
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// lower makes ASCII letters lower case.
func lower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				b[j] = lowerByte(b[j])
			}
			return string(b)
		}
	}
	return s
}

// HeaderMatcher is a compiled envoy.config.route.v3.HeaderMatcher. It is immutable.
type HeaderMatcher struct {
	name      string
	invert    bool
	emptyToo  bool // a missing header is an empty one
	present   bool // only presence counts, and it has to be want
	want      bool
	ranged    bool
	low, high int64 // [low, high)
	str       *StringMatcher
}

// CompileHeader compiles a HeaderMatcher, the deprecated forms too.
func CompileHeader(h *routev3.HeaderMatcher) (*HeaderMatcher, error) {
	m := &HeaderMatcher{name: lower(h.GetName()), invert: h.GetInvertMatch(), emptyToo: h.GetTreatMissingHeaderAsEmpty()}
	if m.name == "" {
		return nil, field.Errorf("name", "empty header name")
	}
	str := func(part string, s *matcherv3.StringMatcher) (err error) {
		m.str, err = CompileString(s)
		return field.At(err, part)
	}
	var err error
	switch p := h.GetHeaderMatchSpecifier().(type) {
	case nil:
		m.present, m.want = true, true
	case *routev3.HeaderMatcher_PresentMatch:
		m.present, m.want = true, p.PresentMatch
	case *routev3.HeaderMatcher_RangeMatch:
		m.ranged, m.low, m.high = true, p.RangeMatch.GetStart(), p.RangeMatch.GetEnd()
	case *routev3.HeaderMatcher_StringMatch:
		err = str("string_match", p.StringMatch)
	case *routev3.HeaderMatcher_ExactMatch:
		err = str("exact_match", &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: p.ExactMatch}})
	case *routev3.HeaderMatcher_PrefixMatch:
		err = str("prefix_match", &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p.PrefixMatch}})
	case *routev3.HeaderMatcher_SuffixMatch:
		err = str("suffix_match", &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: p.SuffixMatch}})
	case *routev3.HeaderMatcher_ContainsMatch:
		err = str("contains_match", &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: p.ContainsMatch}})
	case *routev3.HeaderMatcher_SafeRegexMatch:
		err = str("safe_regex_match", &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: p.SafeRegexMatch}})
	default:
		err = field.Unsupported(h, "header_match_specifier")
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

func compileHeaders(list string, hs []*routev3.HeaderMatcher) ([]*HeaderMatcher, error) {
	var out []*HeaderMatcher
	for i, h := range hs {
		m, err := CompileHeader(h)
		if err != nil {
			return nil, field.Index(err, list, i)
		}
		out = append(out, m)
	}
	return out, nil
}

// Name is the header's name, lower case; a pseudo header's begins with ":".
func (m *HeaderMatcher) Name() string { return m.name }

// Match applies the matcher to a request. Of a header that is there several times each value counts by itself: it is
// matched if one of them is (and not if that is inverted), as in Envoy.
func (m *HeaderMatcher) Match(r *message.Request) bool {
	if m.name[0] == ':' || m.name == "host" {
		v, ok := RequestHeader(r, m.name)
		return m.decide(ok, ok && m.hit(v))
	}
	return m.fields(&r.Header)
}

// MatchResponse applies the matcher to a response.
func (m *HeaderMatcher) MatchResponse(r *message.Response) bool {
	if m.name[0] == ':' {
		v, ok := ResponseHeader(r, m.name)
		return m.decide(ok, ok && m.hit(v))
	}
	return m.fields(&r.Header)
}

func (m *HeaderMatcher) fields(h *message.Header) bool {
	there, hit := false, false
	fs := h.Fields()
	for i := range fs {
		if fs[i].Name == m.name {
			there = true
			if hit = m.hit(fs[i].Value); hit {
				break
			}
		}
	}
	return m.decide(there, hit)
}

// decide is the answer. A header that is not there is not matched by a pattern, inverted or not.
func (m *HeaderMatcher) decide(there, hit bool) bool {
	switch {
	case m.present:
		return ((there || m.emptyToo) == m.want) != m.invert
	case !there && !m.emptyToo:
		return false
	case !there:
		hit = m.hit("")
	}
	return hit != m.invert
}

// hit says whether a value fits.
func (m *HeaderMatcher) hit(v string) bool {
	switch {
	case m.present:
		return true
	case m.ranged:
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		return err == nil && m.low <= n && n < m.high
	}
	return m.str.Match(v)
}

// RequestHeader is the first value of a request's header, and whether it is there. Pseudo headers, and host, are the
// head's fields.
func RequestHeader(r *message.Request, name string) (string, bool) {
	if name != "" && name[0] == ':' {
		switch name {
		case ":path":
			return r.Path, r.Path != ""
		case ":method":
			return r.Method, r.Method != ""
		case ":authority":
			return r.Authority, r.Authority != ""
		case ":scheme":
			return r.Scheme, r.Scheme != ""
		case ":protocol":
			return r.Upgrade, r.Upgrade != "" && r.Proto == message.HTTP2
		}
		return "", false
	}
	if name == "host" {
		return r.Authority, r.Authority != ""
	}
	return r.Header.Lookup(name)
}

// ResponseHeader is the same for a response.
func ResponseHeader(r *message.Response, name string) (string, bool) {
	if name == ":status" {
		return strconv.Itoa(r.Status), true
	}
	return r.Header.Lookup(name)
}
