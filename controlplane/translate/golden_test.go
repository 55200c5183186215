package translate

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
)

// TestGolden reads testdata/*.txtar: a claim, the objects, and what is made of them. Addresses are written as text, and
// what is the same in nearly all workloads is left out.
func TestGolden(t *testing.T) {
	kubetest.Golden(t, func(t *testing.T, c *kubetest.Case) string {
		cfg := Config{}
		if err := yaml.UnmarshalStrict(c.File("config.yaml"), &cfg); err != nil {
			t.Fatal(err)
		}
		return render(t, Build(cfg, c.Objects))
	})
}

// boring are the values that are left out of a rendered workload.
var boring = map[string]any{"clusterId": "Kubernetes", "workloadType": "POD", "canonical": true, "hboneMtlsPort": float64(15008)}

func render(t *testing.T, r Result) string {
	t.Helper()
	var b strings.Builder
	for _, m := range []map[string]*Resource{r.Addresses, r.Authorizations} {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			text, err := protojson.Marshal(m[name].Message)
			if err != nil {
				t.Fatal(err)
			}
			var v map[string]any
			if err := json.Unmarshal(text, &v); err != nil {
				t.Fatal(err)
			}
			body, err := yaml.Marshal(readable(v))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "# %s %v\n%s", name, m[name].Aliases, bytes.ReplaceAll(body, []byte("\n\n"), []byte("\n")))
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(r.Status), kube.Key.Compare) {
		for _, c := range r.Status[k].Conditions {
			fmt.Fprintf(&b, "status %s: %s=%s %s: %s\n", k, c.Type, c.Status, c.Reason, c.Message)
		}
		for _, a := range r.Status[k].Addresses {
			fmt.Fprintf(&b, "status %s: address %s %s\n", k, a.Host, a.Address)
		}
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "%s %s\n", p.Severity, p.Error())
	}
	return b.String()
}

// readable writes addresses as text and leaves out what is boring.
func readable(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if b, ok := boring[k]; ok && b == x {
				delete(v, k)
				continue
			}
			if s, ok := x.(string); ok && k == "address" {
				v[k] = addressText(s)
				continue
			}
			v[k] = readable(x)
		}
	case []any:
		for i, x := range v {
			if s, ok := x.(string); ok {
				v[i] = addressText(s)
				continue
			}
			v[i] = readable(x)
		}
	}
	return v
}

// addressText is the text of an address in base64, or the string itself.
func addressText(s string) string {
	if b, err := base64.StdEncoding.DecodeString(s); err == nil && strings.HasSuffix(s, "=") {
		if a, ok := netip.AddrFromSlice(b); ok {
			return a.String()
		}
	}
	return s
}
