package gateway

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

var update = flag.Bool("update", false, "write the results into testdata")

// TestGolden reads testdata/*.txtar: a claim, the objects, and what their Gateways become.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := planned(t, NewPlanner(Settings{Image: "registry/waypoint:1"}).Update(set(t, string(a.Files[0].Data))))
			if *update {
				out := txtar.Archive{Comment: a.Comment, Files: []txtar.File{a.Files[0], {Name: "result", Data: []byte(got)}}}
				if err := os.WriteFile(path, txtar.Format(&out), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(a.Files[1].Data), got); d != "" {
				t.Errorf("result (-want +got); -update writes it:\n%s", d)
			}
		})
	}
}

// set decodes manifests as an API server holds them.
func set(t *testing.T, manifests string) *kube.Objects {
	t.Helper()
	objects, problems := kube.Decode("objects.yaml", []byte(manifests))
	for _, p := range problems {
		t.Fatal(p.Error())
	}
	return kube.NewObjects(objects...)
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
