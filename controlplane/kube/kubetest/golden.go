// Package kubetest runs tests whose cases are archives in testdata: Kubernetes objects, and what comes of them.
package kubetest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

var update = flag.Bool("update", false, "write the results into testdata")

const (
	objectsFile = "objects.yaml"
	resultFile  = "result"
)

// Case is an archive: a claim, the objects, and files that only some tests know.
type Case struct {
	// Objects are those of objects.yaml, all without problems, and Manifests its text.
	Objects   *kube.Objects
	Manifests string

	files map[string][]byte // that nobody has asked for yet
}

// File is a further file of the archive, nil if it has none of that name.
func (c *Case) File(name string) []byte {
	b := c.files[name]
	delete(c.files, name)
	return b
}

// Golden reads testdata/*.txtar and compares what of makes of each case with the file result; the flag -update writes it. A
// file that of does not ask for fails the test.
func Golden(t *testing.T, of func(t *testing.T, c *Case) string) {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c, want := &Case{files: map[string][]byte{}}, ""
			out := txtar.Archive{Comment: a.Comment}
			for _, f := range a.Files {
				switch f.Name {
				case objectsFile:
					c.Manifests = string(f.Data)
					c.Objects = Decode(t, c.Manifests)
				case resultFile:
					want = string(f.Data)
					continue
				default:
					c.files[f.Name] = f.Data
				}
				out.Files = append(out.Files, f)
			}
			if c.Objects == nil {
				t.Fatal("no objects.yaml")
			}
			got := of(t, c)
			for name := range c.files {
				t.Fatalf("unknown file %q", name)
			}
			if *update {
				out.Files = append(out.Files, txtar.File{Name: resultFile, Data: []byte(got)})
				if err := os.WriteFile(path, txtar.Format(&out), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("result (-want +got); -update writes it:\n%s", d)
			}
		})
	}
}

// Decode reads manifests in which nothing is wrong.
func Decode(t testing.TB, manifests string) *kube.Objects {
	t.Helper()
	objects, problems := kube.Decode(objectsFile, []byte(manifests))
	for _, p := range problems {
		t.Fatal(p.Error())
	}
	return kube.NewObjects(objects...)
}
