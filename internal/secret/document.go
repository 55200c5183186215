package secret

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
)

// texts are what is not shown wherever it stands in a text.
var texts = []*regexp.Regexp{
	regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----`),
	regexp.MustCompile(`(?s)LS0tLS1CRUdJTi[A-Za-z0-9+/]*(UFJJVkFURSBLRV|BSSVZBVEUgS0VZ|QUklWQVRFIEtFW)[A-Za-z0-9+/=]*`), // the same in base64
	regexp.MustCompile(`\bey[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.?[A-Za-z0-9_-]*`),                                     // tokens, a lab's too
	regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}`),
	regexp.MustCompile(`(?i)\b[a-z0-9_-]*(passw(or)?d|secret|token|api[-_]?key|authorization)["']?\s*[=:]\s*("[^"]*"|'[^']*'|[^\s,;&"']+)`),
	regexp.MustCompile(`://[^/\s:@]+:[^/\s@]+@`), // user and password in a URL
}

// pairs are names with their values in YAML, a list of two each: the headers in what a Rust ztunnel logs when it starts.
var pairs = regexp.MustCompile(`(?m)^([ \t]*- - ["']?)([A-Za-z0-9_.-]+)(["']?[ \t]*\r?\n[ \t]*- )(.+)$`)

func hidePair(pair []byte) []byte {
	parts := pairs.FindSubmatch(pair)
	if !Named(string(parts[2])) {
		return pair
	}
	return append(bytes.Join(parts[1:4], nil), Hidden...)
}

// Text takes secrets out of a text: a log, or a line of it.
func Text(text []byte) []byte {
	for i, re := range texts {
		to := Hidden
		if i == len(texts)-1 {
			to = "://" + Hidden + "@"
		}
		text = re.ReplaceAll(text, []byte(to))
	}
	return pairs.ReplaceAllFunc(text, hidePair)
}

// JSON takes secrets out of a document: values under names that tell of one, values of environment variables and of
// headers with such names, and what looks like a key or a token anywhere. A text that is no document is redacted as one.
func JSON(doc []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return Text(doc)
	}
	out, err := json.MarshalIndent(hideIn(v), "", "  ")
	if err != nil {
		return []byte(Hidden)
	}
	return out
}

// hideIn takes secrets out of a value of a document, in place where it can.
func hideIn(v any) any {
	switch x := v.(type) {
	case map[string]any:
		key, _ := x["name"].(string)
		if header, ok := x["key"].(string); key == "" && ok {
			key = header
		}
		for k, child := range x {
			switch {
			case (k == "value" || k == "values") && Named(key), within(k) && leaf(child):
				x[k] = Hidden
			default:
				x[k] = hideIn(child)
			}
		}
		return x
	case []any:
		for i := range x {
			if pair, ok := x[i].([]any); ok && len(pair) == 2 { // a header of a Rust ztunnel's
				if name, ok := pair[0].(string); ok && Named(name) && leaf(pair[1]) {
					pair[1] = Hidden
				}
			}
			x[i] = hideIn(x[i])
		}
		return x
	case string:
		if t := strings.TrimSpace(x); strings.HasPrefix(t, "{") || strings.HasPrefix(t, "[") {
			return string(JSON([]byte(x)))
		}
		return string(Text([]byte(x)))
	}
	return v
}

// leaf says whether a value is not itself a document: a name may have "token" in it and hold a whole configuration.
func leaf(v any) bool {
	switch x := v.(type) {
	case map[string]any:
		return false
	case []any:
		for _, y := range x {
			if _, ok := y.(map[string]any); ok {
				return false
			}
		}
	case bool, json.Number, nil:
		return false
	}
	return true
}
