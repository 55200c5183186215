package authz

import (
	"encoding/json"
	"strings"
)

// excuse is why a decision may differ; "": it may not. docs/differences.md has the reasons.
func excuse(r *request, as normalization, whose, got string) string {
	path := strings.ToLower(r.path)
	canonical, _ := as.normalise(r.path)
	switch {
	case whose != envoys:
	case strings.Contains(path, ";") && strings.HasPrefix(got, denied):
		return "a rule looks at a path without parameters too"
	case as == none:
	case (strings.Contains(path, "%2e") || strings.Contains(path, `\`)) && strings.Contains(path, ";"):
		return "a dot segment with parameters is one, also if it is escaped or behind a backslash"
	case strings.Contains(path, "%%41"):
		return "no escape comes into being"
	case (as == merge || as == decode) && canonical == "/":
		return "slashes are merged also if there is nothing else"
	}
	return ""
}

// rulesOf are a service's policies in words.
func rulesOf(s *service) string {
	var b strings.Builder
	for _, p := range s.policies {
		text, err := json.Marshal(&p.Spec)
		if err != nil {
			text = []byte(err.Error())
		}
		b.WriteString("  " + p.Name + " " + p.Annotations["istio.io/dry-run"] + " ")
		b.Write(text)
		b.WriteByte('\n')
	}
	return b.String()
}
