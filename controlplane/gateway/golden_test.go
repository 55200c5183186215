package gateway

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
)

// TestGolden reads testdata/*.txtar: a claim, the objects, and what their Gateways become.
func TestGolden(t *testing.T) {
	kubetest.Golden(t, func(t *testing.T, c *kubetest.Case) string {
		return planned(t, NewPlanner(Settings{Image: "registry/waypoint:1"}).Update(c.Objects))
	})
}

// planned is a plan in words.
func planned(t *testing.T, p *Plan) string {
	t.Helper()
	var b strings.Builder
	for _, w := range p.Waypoints {
		b.WriteString("# " + kube.KeyOf(w.Gateway).String() + "\n")
		if w.Refused {
			b.WriteString("# stays as it is\n")
		}
		for _, o := range w.Objects {
			body, err := yaml.Marshal(o.Object)
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString("---\n" + string(body))
		}
	}
	for _, problem := range p.Problems {
		b.WriteString("! " + problem.Severity.String() + ": " + problem.Error() + "\n")
	}
	return b.String()
}
