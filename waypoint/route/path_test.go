package route

import (
	"strings"
	"testing"
)

func TestPathsAreMadeCanonicalBeforeAnythingLooksAtThem(t *testing.T) { // B14
	for in, want := range map[string]string{
		"/":                  "/",
		"/admin":             "/admin",
		"/%61dmin":           "/admin",
		"/a/..%2fadmin":      "/a/..%2fadmin", // an escaped slash stays, by KEEP_UNCHANGED
		"/a/../admin":        "/admin",
		"/a/%2e%2e/admin":    "/admin",
		"/.%2e/admin":        "/admin",
		"/..":                "/",
		"/a/.":               "/a/",
		"/a/./b":             "/a/b",
		`\admin`:             `\admin`, // not a path at all
		`/\admin`:            "//admin",
		`/a\..\admin`:        "/admin",
		"//admin":            "//admin", // merged only by merge_slashes
		"/admin;x=1":         "/admin;x=1",
		"/a/..;x=1/admin":    "/admin",
		"/a/%2e%2e;/admin":   "/admin",
		"/a/.;":              "/a/",
		"/a/...;/b":          "/a/...;/b",
		"/a|b^c":             "/a%7Cb%5Ec",
		"/a?b=/../c":         "/a?b=/../c",
		"/%41%5A%7e":         "/AZ~",
		"/%zz":               "/%zz",
		"/a b":               "/a%20b",
		"/\xc3\xa4":          "/%C3%A4",
		"/%c0%ae%c0%ae/":     "/%c0%ae%c0%ae/", // overlong UTF-8 is not decoded
		"/a/../../../../etc": "/etc",
		"*":                  "*",
		"":                   "",
	} {
		got, verdict := PathPolicy{Normalize: true}.Apply(in)
		if verdict != PathGood || got != want {
			t.Errorf("%q: %q (%d), want %q", in, got, verdict, want)
		}
	}
	for _, in := range []string{"/a%00", "/admin#f", "/%00/../a", "/a\x00"} {
		if got, verdict := (PathPolicy{Normalize: true}).Apply(in); verdict != PathBad {
			t.Errorf("%q: %q (%d), want it refused", in, got, verdict)
		}
	}
}

func TestSlashesAreMergedIfAskedFor(t *testing.T) {
	p := PathPolicy{Normalize: true, MergeSlashes: true}
	for in, want := range map[string]string{"//a///b//": "/a/b/", "/a?b=//c": "/a?b=//c", `/\/a`: "/a", "/a//../b": "/a/b"} {
		if got, _ := p.Apply(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestEscapedSlashesAreTreatedAsConfigured(t *testing.T) {
	for name, c := range map[string]struct {
		how     EscapedSlashes
		path    string
		verdict PathVerdict
	}{
		"kept":                    {KeepEscaped, "/a%2Fb%5cc", PathGood},
		"refused":                 {RejectEscaped, "/a%2Fb%5cc", PathBad},
		"unescaped by a redirect": {UnescapeAndRedirect, "/a/b/c", PathRedirect},
		"unescaped and forwarded": {UnescapeAndForward, "/a/b/c", PathGood},
	} {
		got, verdict := PathPolicy{Normalize: true, Escaped: c.how}.Apply("/a%2Fb%5cc")
		if verdict != c.verdict || got != c.path {
			t.Errorf("%s: %q (%d), want %q (%d)", name, got, verdict, c.path, c.verdict)
		}
	}
	if got, verdict := (PathPolicy{Escaped: RejectEscaped}).Apply("/a?b=%2f"); verdict != PathGood || got != "/a?b=%2f" {
		t.Errorf("in the query: %q (%d)", got, verdict)
	}
}

func TestATemplateIsRefusedWithItsFault(t *testing.T) {
	for in, want := range map[string]string{
		"a":                        "pattern does not begin with /",
		"/{a":                      "unmatched {",
		"/a?b":                     `invalid character '?'`,
		"/**/*":                    "wildcard after **",
		"/{a}/{b}/{c}/{d}/{e}/{f}": "more than 5 variables",
	} {
		if _, err := URITemplate(in); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
}

func TestATemplateTakesTheCharactersThatEnvoyTakes(t *testing.T) {
	one, err := URITemplate("/t/*/e")
	if err != nil {
		t.Fatal(err)
	}
	many, err := URITemplate("/t/**/e")
	if err != nil {
		t.Fatal(err)
	}
	for c := byte('!'); c < 0x7f; c++ {
		// RFC 3986 section 3.3: unreserved, sub-delims, ":", "@", and what an escape is made of
		want := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~!$&'()*+,;=:@%", c) >= 0
		path := "/t/" + string(rune(c)) + "/e"
		if got := one.MatchString(path); got != want {
			t.Errorf("* takes %q: %v, want %v", c, got, want)
		}
		if got := many.MatchString(path); got != (want || c == '/') {
			t.Errorf("** takes %q: %v, want %v", c, got, want || c == '/')
		}
	}
}

func TestFormatsAreEnvoys(t *testing.T) {
	r := req("GET /a", "x-a: 1234567890")
	c := &Context{Req: r, Values: duration{}}
	for in, want := range map[string]string{
		"plain":                     "plain",
		"100%%":                     "100%",
		"%REQ(X-A)%":                "1234567890",
		"%REQ(X-A):3%":              "123",
		"%REQ(X-B?X-A):4%!":         "1234!",
		"[%REQ(X-B)%]":              "[-]",
		"%PROTOCOL% %REQ(:PATH)%":   "HTTP/1.1 /a",
		"%RESPONSE_CODE%":           "0",
		"%START_TIME(%Y-%m)%":       "7",
		"%FILTER_STATE(a:PLAIN):9%": "7",
	} {
		f, err := CompileFormat(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := string(f.Append(nil, c, "-")); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"%":          `position 1 of "%": unknown operator ""`,
		"%REQ()%":    `position 1 of "%REQ()%": REQ: no header name`,
		"%PROTOCOL":  `position 1 of "%PROTOCOL": PROTOCOL: no closing %`,
		"%REQ(a):x%": `position 1 of "%REQ(a):x%": REQ: no closing parenthesis`,
	} {
		if _, err := CompileFormat(in); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
}

func TestAGRPCTimeoutIsReadByItsUnit(t *testing.T) {
	for in, want := range map[string]string{
		"1H": "1h0m0s", "2M": "2m0s", "3S": "3s", "4m": "4ms", "5u": "5µs", "6n": "6ns", "99999999H": "2562047h47m16.854775807s",
		"": "bad", "S": "bad", "1": "bad", "123456789S": "bad", "-1S": "bad", "1s": "bad", "1.5S": "bad",
	} {
		d, ok := GRPCTimeout(in)
		got := d.String()
		if !ok {
			got = "bad"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
