package envoy

import (
	"strings"
	"testing"
)

func TestExpressionsAreReadBeforeAClientReadsThem(t *testing.T) {
	for _, good := range []string{
		"response.code >= 400", "true", `request.headers["x-a"] == "b" || has(request.headers['x-b'])`, "request.url_path.startsWith('/api/') && !connection.mtls",
		"response.code in [500, 503]", `request.method == "GET" ? request.host : "other"`, "duration('1s') < request.duration", "request.headers.accept.contains('json')",
		`request.path.matches("/v[0-9]+")`, "upstream_peer.workload", "-1 < 2.5", "(response.code) - 1 > size(request.host)", "request.host.size() > 3",
		`filter_state.downstream_peer.namespace == "shop"`,
	} {
		if err := expressionFlaw(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		"":                              "unexpected end",
		"response.code >":               "unexpected end",
		"response.code > 400)":          `unexpected ")"`,
		"response.code = 400":           `cannot read "= 400"`,
		"response.status == 1":          "unknown attribute",
		"request":                       "unknown attribute",
		"lower(request.host)":           `unknown function "lower"`,
		"request.host.lower()":          `unknown method "lower"`,
		`request.path.matches("(")`:     "missing closing",
		`request.headers[1] == ""`:      "has to be a string",
		`"unfinished`:                   "cannot read",
		"99999999999999999999 > 1":      "out of range",
		strings.Repeat("(", 100):        "nested too deep",
		strings.Repeat("!", 100) + "1":  "nested too deep",
		strings.Repeat("1 + ", 100):     "too many operators",
		strings.Repeat("a", 5000):       "at most 4096",
		"true ? false":                  `"" instead of ":"`,
		"request.headers['a'] == 'b' ;": "cannot read",
	} {
		if err := expressionFlaw(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %s", bad, err, want)
		}
	}
}

func FuzzExpression(f *testing.F) {
	f.Add(`response.code >= 400 && request.headers["x"].matches("a.*") ? 1 : [2, 3]`)
	f.Fuzz(func(_ *testing.T, s string) { _ = expressionFlaw(s) }) // must return
}
