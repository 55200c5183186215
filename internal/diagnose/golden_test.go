package diagnose

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	networkv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
)

// fixture is the file world.yaml of a case: what of the World is not objects. Without a case's own proxies there is a mesh
// on node-1 in which all is well.
type fixture struct {
	Command         string // analyze (default), check, preflight, explain, enrol
	Now, ServerTime time.Time
	KubeVersion     string
	Missing         []kube.Kind
	Manifests, Lab  bool
	NetworkPolicies []networkv1.NetworkPolicy
	Proxies         []Proxy
	Namespace       string   // for enrol
	Pod             string   // for enrol
	Query           []string // for explain
}

const healthyMesh = `
- {role: controlplane, namespace: istio-system, name: ambit-controlplane-1, ready: true, control: {version: v1, clients: [{client: ztunnel~10.0.0.1~ztunnel-a.istio-system~d, types: []}]}}
- {role: ztunnel, namespace: istio-system, name: ztunnel-a, node: node-1, ready: true, plugin: true, dump: {version: {version: v1}, config: {trustDomain: cluster.local}}}
`

func (f *fixture) world(t *testing.T, objects *kube.Objects) *World {
	if f.Now.IsZero() {
		f.Now = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	}
	if f.ServerTime.IsZero() {
		f.ServerTime = f.Now
	}
	if f.Proxies == nil {
		if err := yaml.Unmarshal([]byte(healthyMesh), &f.Proxies); err != nil {
			t.Fatal(err)
		}
	}
	return &World{
		Objects: objects, Now: f.Now, ServerTime: f.ServerTime, KubeVersion: f.KubeVersion, Missing: f.Missing, Manifests: f.Manifests,
		Lab: f.Lab, NetworkPolicies: f.NetworkPolicies, Proxies: f.Proxies,
	}
}

func (f *fixture) explain(t *testing.T, w *World) string {
	client, err := Find(w, kube.KindPod, f.Namespace, f.Pod)
	if err != nil {
		t.Fatal(err)
	}
	out := ""
	for _, q := range f.Query {
		kind, rest, _ := strings.Cut(q, " ")
		name, port, _ := strings.Cut(rest, ":")
		server, err := Find(w, kube.Kind(kind), f.Namespace, name)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(port)
		e, err := Explain(w, client, server, uint16(n))
		if err != nil {
			out += err.Error() + "\n"
			continue
		}
		out += "# " + q + "\n" + e.Text()
	}
	return out
}

// findings runs the command of a case.
func (f *fixture) findings(t *testing.T, objects *kube.Objects) []Finding {
	w := f.world(t, objects)
	switch f.Command {
	case "", "analyze":
		return Analyze(w)
	case "check":
		return Check(w)
	case "preflight":
		return Preflight(w)
	case "enrol":
		return Enrol(w, f.Namespace, f.Pod, false)
	}
	t.Fatalf("unknown command %q", f.Command)
	return nil
}

func readFixture(t *testing.T, text string) *fixture {
	f := &fixture{}
	if err := yaml.UnmarshalStrict([]byte(text), f); err != nil {
		t.Fatal(err)
	}
	return f
}

// repair makes of a case what it is when somebody did what the findings say. Its lines are "OLD => NEW", a replacement in
// the objects and the world (\n in NEW is a new line), "+ OBJECT", and "- KIND NAMESPACE/NAME".
func repair(t *testing.T, lines, manifests, world string) (*fixture, *kube.Objects) {
	var gone []kube.Key
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		old, now, replace := strings.Cut(line, " =>")
		switch kind, rest, _ := strings.Cut(line, " "); {
		case kind == "+":
			manifests += "---\n" + rest + "\n"
		case kind == "-":
			word, name, _ := strings.Cut(rest, " ")
			namespace, name, _ := strings.Cut(name, "/")
			gone = append(gone, kube.Key{Kind: kube.Kind(word), Name: kube.Name{Namespace: namespace, Name: name}})
		case !replace || !strings.Contains(manifests+world, old):
			t.Fatalf("repair: line %q changes nothing", line)
		default:
			now = strings.ReplaceAll(strings.TrimPrefix(now, " "), `\n`, "\n")
			manifests, world = strings.ReplaceAll(manifests, old, now), strings.ReplaceAll(world, old, now)
		}
	}
	objects := kubetest.Decode(t, manifests)
	for _, k := range gone {
		if objects.Lookup(k) == nil {
			t.Fatalf("repair: there is no %s", k)
		}
	}
	return readFixture(t, world), objects.With(nil, gone)
}

// TestGolden reads testdata/*.txtar: a situation that is broken on purpose, what is found, and what repairs it, after which
// nothing is found.
func TestGolden(t *testing.T) {
	seen := map[string]bool{}
	kubetest.Golden(t, func(t *testing.T, c *kubetest.Case) string {
		world, lines := string(c.File("world.yaml")), string(c.File("repair"))
		f := readFixture(t, world)
		if f.Command == "explain" {
			return f.explain(t, f.world(t, c.Objects))
		}
		out := ""
		for _, x := range f.findings(t, c.Objects) {
			seen[x.Code] = true
			out += fmt.Sprintf("%s\n  fix: %s\n", x, x.Fix)
		}
		if out == "" {
			return ""
		}
		f, repaired := repair(t, lines, c.Manifests, world)
		for _, x := range f.findings(t, repaired) {
			if x.Severity != Info || strings.Contains(out, x.Code) {
				t.Errorf("repaired, and found all the same: %s", x)
			}
		}
		return out
	})
	for _, c := range Codes() {
		if !seen[c.Code] {
			t.Errorf("%s (%s) is in no case", c.Code, c.Title)
		}
	}
}

func TestCodesAreUniqueAndInOrder(t *testing.T) {
	last := ""
	for _, c := range Codes() {
		if c.Code <= last || c.Title == "" || c.Fix == "" || c.Severity.rank() < 0 {
			t.Errorf("code %q after %q: %+v", c.Code, last, c)
		}
		last = c.Code
	}
	if n := strings.Count(Markdown(), "\n"); n != len(codes)+2 {
		t.Errorf("%d lines", n)
	}
}

// TestTheDocumentationHasTheCodes compares docs/findings.md; the flag -update writes it.
func TestTheDocumentationHasTheCodes(t *testing.T) {
	const path = "../../docs/findings.md"
	want := findingsHead + Markdown()
	if f := flag.Lookup("update"); f != nil && f.Value.String() == "true" {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s is not what the code says (%v): go test ./internal/diagnose -update", path, err)
	}
}

const findingsHead = `# Findings

What ` + "`ambit analyze` and `ambit check`" + ` say, each with a code that keeps its meaning. This table is made of the code
(` + "`go test ./internal/diagnose -update`" + `). Every code has a case in internal/diagnose/testdata: a situation that is broken on
purpose, and what is found.

`
