package diagnose

import (
	"encoding/json"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/secret"
)

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
					d[k] = secret.Hidden
				}
			}
		}
	}
	stripContainers(m, ours)
	if body, err = json.Marshal(m); err != nil {
		return nil, err
	}
	return secret.JSON(body), nil
}

// stripContainers takes values of the environment, and arguments that are not ours, out of all containers in a document.
func stripContainers(v any, ours bool) {
	switch x := v.(type) {
	case map[string]any:
		for _, e := range list(x["env"]) {
			if m, ok := e.(map[string]any); ok && m["value"] != nil {
				m["value"] = secret.Hidden
			}
		}
		if _, container := x["image"]; container && !ours {
			for _, k := range []string{"args", "command"} {
				if x[k] != nil {
					x[k] = []any{secret.Hidden}
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
