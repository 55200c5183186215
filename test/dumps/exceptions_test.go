package dumps

import (
	"regexp"
	"strings"
)

// exceptions are differences that are there on purpose, by lines of the comparison. docs/differences.md has them all, with
// reasons.
var exceptions = []struct {
	why   string
	lines *regexp.Regexp
	of    string // the requests that it is about, by their reason; "": all
}{
	{"trailers of HTTP/1.1 endpoints are passed on, and asked for as RFC 9110 says", regexp.MustCompile(`^([-+]\s+"(X-Trailer|Grpc-Status)":\s+(nil|\{"(end|0)"\})|\+\s+"Connection":\s+\{"te"\}),$`), ""},
	{"a client's x-envoy-original-path is not believed", regexp.MustCompile(`^-\s+"X-Envoy-Original-Path":\s+\{"/x"\},$`), ""},
	{"what an Envoy tells itself or its peers is not taken from clients", regexp.MustCompile(`^-\s+"X-Envoy-(Attempt-Count|Original-(Path|Host|Url)|Peer-Metadata(-Id)?)":\s+\{.*\},$`), "forged x-envoy-"},
	{"a client does not name our spans", regexp.MustCompile(`^\+\s+"X-Envoy-Decorator-Operation":\s+\{.*\},$`), "forged x-envoy-decorator-operation"},
	{"a refused token does not come back in www-authenticate", regexp.MustCompile(`^- realm with a query$`), ""},
}

// realmQuery is the query in a challenge's realm.
var realmQuery = regexp.MustCompile(`(realm="[^"?]*)\?[^"]*`)

// excuse is why a difference is there on purpose; "": it is not, or not all of it.
func excuse(request, difference string) string {
	var found []string
	for l := range strings.Lines(difference) {
		l = strings.ReplaceAll(strings.TrimSpace(l), "\u00a0", " ")
		if strings.HasPrefix(l, "status ") {
			continue
		}
		why := ""
		for _, x := range exceptions {
			if x.lines.MatchString(l) && strings.Contains(request, x.of) {
				why = x.why
			}
		}
		if why == "" {
			return ""
		}
		found = append(found, why)
	}
	return found[0]
}
