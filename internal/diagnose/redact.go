package diagnose

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Redacted stands where something was taken out.
const Redacted = "REDACTED"

// secretWords are in names of what is not shown.
var secretWords = regexp.MustCompile(`(?i)passw|secret|token|authorization|api[-_]?key|private[-_]?key|credential|cookie|client[-_]?key`)

// secretTexts are what is not shown wherever it stands.
var secretTexts = []*regexp.Regexp{
	regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----`),
	regexp.MustCompile(`(?s)LS0tLS1CRUdJTi[A-Za-z0-9+/]*(UFJJVkFURSBLRV|BSSVZBVEUgS0VZ|QUklWQVRFIEtFW)[A-Za-z0-9+/=]*`), // the same in base64
	regexp.MustCompile(`\bey[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.?[A-Za-z0-9_-]*`),                                     // tokens, a lab's too
	regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}`),
	regexp.MustCompile(`(?i)\b[a-z0-9_-]*(passw(or)?d|secret|token|api[-_]?key|authorization)["']?\s*[=:]\s*("[^"]*"|'[^']*'|[^\s,;&"']+)`),
	regexp.MustCompile(`://[^/\s:@]+:[^/\s@]+@`), // user and password in a URL
}

// RedactText takes secrets out of a text: a log, or a line of it.
func RedactText(text []byte) []byte {
	for i, re := range secretTexts {
		to := Redacted
		if i == len(secretTexts)-1 {
			to = "://" + Redacted + "@"
		}
		text = re.ReplaceAll(text, []byte(to))
	}
	return text
}

// RedactJSON takes secrets out of a document: values under names that tell of one, values of environment variables and of
// headers with such names, and what looks like a key or a token anywhere. A text that is no document is redacted as one.
func RedactJSON(doc []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return RedactText(doc)
	}
	out, err := json.MarshalIndent(redact("", v), "", "  ")
	if err != nil {
		return []byte(Redacted)
	}
	return out
}

// redact walks a value that stands under a name.
func redact(name string, v any) any {
	switch x := v.(type) {
	case map[string]any:
		key, _ := x["name"].(string)
		if header, ok := x["key"].(string); key == "" && ok {
			key = header
		}
		for k, child := range x {
			switch {
			case (k == "value" || k == "values") && secretWords.MatchString(key), secretWords.MatchString(k) && leaf(child):
				x[k] = Redacted
			default:
				x[k] = redact(k, child)
			}
		}
		return x
	case []any:
		for i := range x {
			x[i] = redact(name, x[i])
		}
		return x
	case string:
		if t := strings.TrimSpace(x); strings.HasPrefix(t, "{") || strings.HasPrefix(t, "[") {
			return string(RedactJSON([]byte(x)))
		}
		return string(RedactText([]byte(x)))
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

// RedactObject is an object as a report may have it: redacted, of containers no values of the environment and no arguments
// that are not ours, of ConfigMaps only the names of keys, and without what kubectl remembers.
func RedactObject(o kube.Object, ours bool) ([]byte, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	if meta, ok := m["metadata"].(map[string]any); ok {
		delete(meta, "managedFields")
		if a, ok := meta["annotations"].(map[string]any); ok {
			delete(a, "kubectl.kubernetes.io/last-applied-configuration")
		}
	}
	if kube.KeyOf(o).Kind == kube.KindConfigMap {
		for _, part := range []string{"data", "binaryData"} {
			if d, ok := m[part].(map[string]any); ok {
				for k := range d {
					d[k] = Redacted
				}
			}
		}
	}
	stripContainers(m, ours)
	if body, err = json.Marshal(m); err != nil {
		return nil, err
	}
	return RedactJSON(body), nil
}

// stripContainers takes values of the environment, and arguments that are not ours, out of all containers in a document.
func stripContainers(v any, ours bool) {
	switch x := v.(type) {
	case map[string]any:
		for _, e := range list(x["env"]) {
			if m, ok := e.(map[string]any); ok && m["value"] != nil {
				m["value"] = Redacted
			}
		}
		if _, container := x["image"]; container && !ours {
			for _, k := range []string{"args", "command"} {
				if x[k] != nil {
					x[k] = []any{Redacted}
				}
			}
		}
		for _, child := range x {
			stripContainers(child, ours)
		}
	case []any:
		for _, child := range x {
			stripContainers(child, ours)
		}
	}
}

func list(v any) []any { l, _ := v.([]any); return l }
