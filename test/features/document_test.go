package features

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/features.md")

const document = "../../docs/features.md"

func TestDocumentOfFeaturesIsCurrent(t *testing.T) {
	want := describe(groups())
	if *update {
		if err := os.WriteFile(document, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, err := os.ReadFile(document); err != nil || string(got) != want {
		t.Errorf("%s is not what the table says (%v): make generate writes it", document, err)
	}
}

func TestFeaturesHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, g := range groups() {
		for _, f := range g.features {
			name := g.title + "/" + f.name
			if seen[name] || f.name == "" || f.field == "" || len(f.asks) == 0 {
				t.Errorf("%s: there twice, or without name, field or requests", name)
			}
			seen[name] = true
		}
	}
}

// describe is docs/features.md.
func describe(groups []group) string {
	var b strings.Builder
	total, ours := 0, 0
	for _, g := range groups {
		total += len(g.features)
		for _, f := range g.features {
			if f.envoy != "" {
				ours++
			}
		}
	}
	fmt.Fprintf(&b, `# Features of the waypoint

Made from the table in test/features by `+"`make generate`"+`; do not edit.

%d features, each with a test: a small manifest, requests of a client, and what must come of them. They run in one lab, in
about half a minute, on our waypoint (`+"`TestRootFeaturesOnOurWaypoint`"+`) and, but for the %d that say so, on a real Envoy under
the same control plane (`+"`TestRootFeaturesOnEnvoy`"+`):

    make build
    sudo AMBIT_BIN_DIR=$PWD/bin go test -count=1 -v -run RootFeaturesOnOur ./test/features
    sudo AMBIT_BIN_DIR=$PWD/bin ENVOY_BIN=/path/to/envoy go test -count=1 -v -run RootFeaturesOnEnvoy ./test/features

One feature is run by the test's name in its table, with `+"`table/`"+` between: `+"`-run 'RootFeaturesOnOur.*/table/CORS/a_preflight_is_answered$'`"+`.
`, total, ours)
	for _, g := range groups {
		fmt.Fprintf(&b, "\n## %s%s\n\n| feature | API field | test |\n|---|---|---|\n", strings.ToUpper(g.title[:1]), g.title[1:])
		for _, f := range g.features {
			name := f.name
			if f.envoy != "" {
				name += " (not Envoy: " + f.envoy + ")"
			}
			fmt.Fprintf(&b, "| %s | `%s` | `%s` |\n", name, f.field, strings.ReplaceAll(g.title+"/"+f.name, " ", "_"))
		}
	}
	return b.String()
}
