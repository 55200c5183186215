package message

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"
)

func TestWhatMayStandInAHead(t *testing.T) {
	for _, c := range []struct {
		what     string
		f        func(string) bool
		yes, not []string
	}{
		{"token", Token, []string{"a", "GET", "x-y", "!#$%&'*+-.^_`|~09"}, []string{"", " ", "a b", "a:", "a/b", "\x00", "é", "(", `"a"`, "a\x7f"}},
		{"name of HTTP/2", LowerToken, []string{"a", "x-y1"}, []string{"", "A", "xY", "a b", ":path"}},
		{"value", Value, []string{"", "a", "a b", "a\tb", "caf\xe9", "\"", "é"}, []string{" ", "a ", " a", "\ta", "a\t", "a\r\nb", "a\nb", "a\x00", "\x7f", "\x1b["}},
		{"path", PathAndQuery, []string{"/", "//", "/a?b=c", "/%zz", `/a\b`, "/a;b", `/"<>{}|^`}, []string{"", "a", "?a", "/a b", "/#", "/a#b", "/\x00", "/é", "/\x7f", "*"}},
		{"authority", Authority,
			[]string{"h", "h:80", "h:", "a.b.", "H_1", "1.2.3.4:5", "[::1]", "[::1]:80", "[::ffff:1.2.3.4]", "a%20b", "a,b", "a=b;c"},
			[]string{"", ":80", "h:80:80", "h:x", "h:123456", "u@h", "h/p", "h?q", "h#f", "h i", "[::1", "::1]", "[]", "[:]x", "[::1]80", "[fe80::1%25eth0]", "[g::1]", "a[b]", "h%", "h%2", "h%zz", "h\x00", "é", `h\`, "[::1]:x", "::1"}},
		{"method", Method, []string{"GET", "PURGE", "M-SEARCH", "purge", "Foo"}, []string{"", "get", "Get", "dElEtE", "GET ", "G T", "connect"}},
	} {
		for _, s := range c.yes {
			if !c.f(s) {
				t.Errorf("%s %q is refused", c.what, s)
			}
		}
		for _, s := range c.not {
			if c.f(s) {
				t.Errorf("%s %q is accepted", c.what, s)
			}
		}
	}
}

func TestLengthsAreDigitsThatFit(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "5": 5, "0005": 5, "4611686018427387904": 1 << 62, "0000000000000000000": 0} {
		if got, ok := Length(s); got != want || !ok {
			t.Errorf("%q: %d, %v, want %d", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "+1", "-1", "-0", "1 ", " 1", "1,1", "0x1", "1.0", "1e1", "4611686018427387905", "9223372036854775807", "9999999999999999999",
		"18446744073709551616", "00000000000000000000", "１"} {
		if got, ok := Length(s); ok {
			t.Errorf("%q is accepted as %d", s, got)
		}
	}
}

func TestCaseIsFoldedInASCIIOnly(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{{"", "", true}, {"aZ", "Az", true}, {"a", "ab", false}, {"[", "{", false}, {"k", "\u212a", false}, {"@", "`", false}} {
		if got := EqualFold(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %v", c.a, c.b, got)
		}
	}
	for name, want := range map[string]bool{"connection": true, "keep-alive": true, "te": false, "host": false, "upgrade": true, "trailer": false} {
		if ConnectionField(name) != want {
			t.Errorf("%q belongs to the connection: %v", name, !want)
		}
	}
}

func FuzzTokenAndValue(f *testing.F) {
	for _, s := range []string{"", "a", "a b", "\t", "x\x00", "é", "Content-Length"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := Token(s), httpguts.ValidHeaderFieldName(s); got != want {
			t.Errorf("token %q: %v, httpguts %v", s, got, want)
		}
		if got, want := LowerToken(s), Token(s) && strings.ToLower(s) == s; got != want {
			t.Errorf("lower token %q: %v, want %v", s, got, want)
		}
		trimmed := strings.Trim(s, " \t") == s
		if got, want := Value(s), httpguts.ValidHeaderFieldValue(s) && trimmed; got != want {
			t.Errorf("value %q: %v, want %v", s, got, want)
		}
		if Method(s) && !Token(s) {
			t.Errorf("method %q is no token", s)
		}
		n, err := strconv.ParseUint(s, 10, 63)
		if got, ok := Length(s); ok && (err != nil || uint64(got) != n) || !ok && err == nil && n <= 1<<62 && len(s) <= 19 {
			t.Errorf("length %q: %d, %v, strconv %d, %v", s, got, ok, n, err)
		}
		if isASCII(s) && !EqualFold(s, strings.ToUpper(s)) {
			t.Errorf("%q differs from itself in capitals", s)
		}
	})
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

func FuzzAuthorityAndPath(f *testing.F) {
	for _, s := range []string{"", "h", "h:80", "[::1]:80", "u@h", "h/p", "/a?b", "/a#b", "//x", "a%41", "[::1", "/%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if Authority(s) != unusual(s) {
			t.Errorf("authority %q: fast %v, slow %v", s, Authority(s), unusual(s))
		}
		if Authority(s) {
			u, err := url.Parse("http://" + s + "/")
			switch {
			case err != nil && strings.HasPrefix(s, "["): // hexadecimal digits, colons and dots, but no address
				if _, err := netip.ParseAddr(strings.Trim(inBrackets(s), "[]")); err == nil {
					t.Errorf("authority %q: %v", s, err)
				}
			case err != nil && strings.Contains(s, "%"): // what is escaped is url's concern
			case err != nil:
				t.Errorf("authority %q: %v", s, err)
			case u.User != nil || u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
				t.Errorf("authority %q is more than that: %+v", s, u)
			}
		}
		if PathAndQuery(s) {
			u, err := url.ParseRequestURI(s)
			if err != nil && !strings.Contains(s, "%") {
				t.Errorf("path %q: %v", s, err)
			}
			if err == nil && (u.Host != "" && !strings.HasPrefix(s, "//") || u.Fragment != "" || u.Scheme != "") {
				t.Errorf("path %q is more than that: %+v", s, u)
			}
		}
	})
}

// inBrackets is the part in brackets.
func inBrackets(s string) string {
	host, _, _ := strings.Cut(s, "]")
	return host
}
