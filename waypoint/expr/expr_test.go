package expr

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

func env() *Env {
	r := &message.Request{Method: "GET", Scheme: "http", Authority: "reviews:9080", Path: "/a/b?c=d", Proto: message.HTTP11}
	r.Header.Add("x-user", "ann")
	x := &filter.Exchange{Req: r, Resp: &message.Response{Status: 503}, Dest: netip.MustParseAddrPort("10.96.0.10:9080")}
	x.Client = filter.Peer{Principal: "spiffe://td/ns/a/sa/b", Addr: netip.MustParseAddrPort("10.1.1.1:4000")}
	return &Env{Exchange: x, Status: 503, Duration: 2 * time.Second}
}

func TestExpressionsSayWhatTheySayInCEL(t *testing.T) {
	for in, want := range map[string]string{
		`response.code >= 400`:  "true",
		`response.code == 200`:  "false",
		`request.method`:        "GET",
		`request.url_path`:      "/a/b",
		`request.query`:         "c=d",
		`request.host`:          "reviews:9080",
		`string(response.code)`: "503",
		`"a" + 'b' + "\"\\"`:    `ab"\`,
		`string(destination.port) + "/" + request.headers['X-User']`: "9080/ann",
		`request.headers.host`:                                         "reviews:9080",
		`request.headers["x-none"] == "a"`:                             "",
		`has(request.headers["x-none"])`:                               "false",
		`has(request.headers["x-user"])`:                               "true",
		`request.headers["x-none"] == "a" || true`:                     "true",
		`false && request.headers["x-none"] == "a"`:                    "false",
		`request.headers["x-none"] == "a" && true`:                     "",
		`has(request.headers.x) ? request.headers.x : "none"`:          "none",
		`response.code in [500, 503]`:                                  "true",
		`request.method in ["POST"]`:                                   "false",
		`request.path.startsWith("/a") && !request.path.endsWith("x")`: "true",
		`request.path.matches("^/[a-z]/b")`:                            "true",
		`request.path.contains("zz")`:                                  "false",
		`request.path.size() == 8 && size([1, 2]) == 2`:                "true",
		`request.duration > duration("1.5s")`:                          "true",
		`connection.mtls`:                                              "true",
		`source.principal == "spiffe://td/ns/a/sa/b"`:                  "true",
		`1 + 2 - 5 == -2 && 1.5 < 2 && 2 > 1.5`:                        "true",
		`1 == "1"`:                                                     "false",
		`1 < "1"`:                                                      "",
		`int("12") + int(1.9)`:                                         "13",
		`(true ? 1 : 2) == 1`:                                          "true",
		`response.code == 503 && request.method == "POST" || request.scheme == "http"`: "true",
	} {
		p, err := Compile(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := p.Eval(env()).String(); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestExpressionsOutsideTheSubsetSayWhereAndWhy(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "unexpected end",
		"request.nothing":               "unknown attribute",
		"request":                       "known are connection.mtls",
		"1 +":                           "unexpected end",
		"[1].exists(true)":              `unknown method "exists"`,
		"foo(1)":                        `unknown function "foo"`,
		`"abc`:                          "string without end",
		"1 2":                           `unexpected "2"`,
		`request.path.matches("(")`:     "missing closing",
		`"a".matches(request.path)`:     "has to be a literal",
		`request.headers[1]`:            "has to be a string",
		strings.Repeat("(", 100):        "nested too deep",
		strings.Repeat("!", 100) + "a":  "nested too deep",
		strings.Repeat("1", 5000):       "too long",
		"response.code === 1":           "unexpected",
		"99999999999999999999999999999": "out of range",
	} {
		if _, err := Compile(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v; want %q", in, err, want)
		}
	}
}

func FuzzExpressions(f *testing.F) {
	for _, s := range []string{`response.code >= 400 || request.headers['x'].startsWith("a")`, `has(a.b) ? [1, 2.5, "x"] : -duration("1s")`, `!((true && false) || 1 in [2])`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Compile(s)
		if err != nil {
			return
		}
		if a, b := p.Eval(env()).String(), p.Eval(env()).String(); a != b {
			t.Fatalf("%q and %q", a, b)
		}
	})
}
