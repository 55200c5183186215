package archtest

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/ambit-mesh/ambit"

// floors says on which floor a package stands; the longest matching prefix counts. A package may import packages of
// lower floors, and of its own floor only what siblings allows.
var floors = map[string]int{
	"api":                 0,
	"internal/loop":       0,
	"internal/looptls":    0,
	"internal/handshake":  0,
	"internal/spiffe":     0,
	"internal/xds":        0,
	"internal/netns":      0,
	"internal/procfs":     0,
	"internal/run":        0,
	"internal/memory":     0,
	"internal/admin":      0,
	"internal/rootca":     0,
	"internal/secret":     0,
	"internal/format":     0,
	"internal/kubeconfig": 0,
	"internal/archtest":   0,
	"internal/atomicfile": 0,
	"internal/envoytest":  0,
	"hbone":               1,
	"ebpf/redirect":       1,
	"internal/svid":       1,
	"internal/workload":   1,
	"internal/rbac":       1,
	"internal/telemetry":  1,
	"ztunnel/":            2,
	"waypoint/":           2,
	"controlplane/":       2,
	"ztunnel":             3,
	"waypoint":            3,
	"controlplane":        3,
	"internal/diagnose":   3,
	"internal/lab":        4,
	"internal/install":    4,
	"cmd":                 4,
	"deploy":              4,
	"test":                5,
}

// siblings are the imports within one floor, each with its reason.
var siblings = map[string]string{
	"internal/handshake -> internal/loop":                 "silent connections wait on a loop",
	"internal/looptls -> internal/loop":                   "a TLS connection is driven by a loop",
	"internal/xds -> internal/rootca":                     "both ends of the control plane's TLS are read in one place",
	"controlplane/translate -> controlplane/kube":         "translation reads the frozen objects",
	"controlplane/envoy -> controlplane/kube":             "waypoints' resources come from the frozen objects",
	"controlplane/admission -> controlplane/kube":         "what an API server asks about is decoded as what it stores",
	"controlplane/status -> controlplane/kube":            "statuses are of objects",
	"controlplane/status -> controlplane/translate":       "what translation found out is said in the status",
	"controlplane/status -> controlplane/envoy":           "what waypoints serve of a route is said in its status",
	"controlplane/gateway -> controlplane/kube":           "waypoints are made of the frozen objects",
	"controlplane/discovery -> controlplane/translate":    "discovery serves what translation made",
	"controlplane/ca -> controlplane/kube":                "the CA asks which pods run on a node",
	"controlplane/kube/apiserver -> controlplane/gateway": "what waypoints are customised by is kept of ConfigMaps",
	"controlplane/kube/apiserver -> controlplane/status":  "statuses are rendered into those that are in the API server",
	"controlplane/kube/apiserver -> controlplane/ca":      "tokens and the CA's secret are in the API server",

	"controlplane/kube/apiserver -> controlplane/translate": "translation says what is written to objects",
	"cmd/ambit -> internal/install":                         "the command line installs the mesh",
	"internal/install -> deploy":                            "what is installed is the chart",
	"cmd/ambit -> internal/lab":                             "the command line runs labs",
	"cmd/ambit -> internal/lab/envoy":                       "the command line runs an Envoy in a waypoint's pod",
	"cmd/ambit -> internal/lab/demo":                        "the command line runs the demo",
	"cmd/ambit -> internal/lab/echo":                        "the built-in image is the binary itself",
	"cmd/ambit -> internal/lab/manifest":                    "the command line reads manifests",
	"internal/lab/demo -> internal/lab/echo":                "the demo talks to the built-in image",
	"internal/lab/demo -> internal/lab/manifest":            "the demo changes manifests",
	"internal/lab/demo -> internal/lab/wire":                "the demo looks at the wire",
	"ztunnel/capture/nodepods -> ztunnel/podsock":           "a source of pods describes them as the socket does",
	"ztunnel/cni -> ztunnel/podsock":                        "the CNI plugin asks by the pods' socket",
	"ztunnel/capture -> ztunnel/podsock":                    "capture serves the pods' socket",
	"ztunnel/capture -> ztunnel/zds":                        "capture speaks ZDS to the proxy",
	"ztunnel/proxy -> ztunnel/zds":                          "the proxy takes pods as ZDS hands them over",
	"ztunnel/dns -> ztunnel/zds":                            "the DNS proxy takes pods as ZDS hands them over",
	"waypoint/forward -> waypoint/accesslog":                "the data path puts the parts together",
	"waypoint/forward -> waypoint/cluster":                  "the data path puts the parts together",
	"waypoint/forward -> waypoint/filter":                   "the data path puts the parts together",
	"waypoint/forward -> waypoint/http1":                    "the data path puts the parts together",
	"waypoint/forward -> waypoint/http2":                    "the data path puts the parts together",
	"waypoint/forward -> waypoint/listener":                 "the data path puts the parts together",
	"waypoint/forward -> waypoint/message":                  "the data path puts the parts together",
	"waypoint/accesslog -> waypoint/expr":                   "a log's condition is an expression",
	"waypoint/expr -> waypoint/filter":                      "expressions are about exchanges",
	"waypoint/expr -> waypoint/message":                     "expressions are about messages",
	"waypoint/expr -> waypoint/route":                       "headers are looked up as routes do",
	"waypoint/forward -> waypoint/expr":                     "the data path puts the parts together",
	"waypoint/listener -> waypoint/stats":                   "a chain says how it is counted",
	"waypoint/stats -> waypoint/expr":                       "extra labels are expressions",
	"waypoint/stats -> waypoint/field":                      "an error names the field",
	"waypoint/forward -> waypoint/trace":                    "the data path puts the parts together",
	"waypoint/listener -> waypoint/trace":                   "a chain says what is traced",
	"waypoint/trace -> waypoint/field":                      "an error names the field",
	"waypoint/trace -> waypoint/filter":                     "spans are of exchanges, and are told by calls like a filter's",
	"waypoint/trace -> waypoint/message":                    "a trace's context stands in headers",
	"waypoint/trace -> waypoint/route":                      "tags of spans are format strings",
	"waypoint/forward -> waypoint/stats":                    "metrics of a chain differ as its filter says",
	"waypoint/forward -> waypoint/route":                    "the data path puts the parts together",
	"waypoint/http1 -> waypoint/message":                    "a codec makes messages of bytes",
	"waypoint/http2 -> waypoint/message":                    "a codec makes messages of bytes",
	"waypoint/listener -> waypoint/accesslog":               "a chain says what is logged",
	"waypoint/listener -> waypoint/cluster":                 "TLS is configured alike on both sides",
	"waypoint/listener -> waypoint/field":                   "an error names the field",
	"waypoint/listener -> waypoint/filter":                  "a chain is a list of filters",
	"waypoint/listener -> waypoint/route":                   "a chain ends in a table of routes",
	"waypoint/cluster -> waypoint/field":                    "an error names the field",
	"waypoint/cluster -> waypoint/route":                    "names in certificates are matched as strings in routes are",
	"waypoint/route -> waypoint/field":                      "an error names the field",
	"waypoint/route -> waypoint/message":                    "routes are taken by requests",
	"waypoint/filter -> waypoint/field":                     "an error names the field",
	"waypoint/filter -> waypoint/message":                   "filters look at messages",
	"waypoint/filter -> waypoint/route":                     "filters are configured by routes too, and ask what they match",
	"waypoint/accesslog -> waypoint/field":                  "an error names the field",
	"waypoint/accesslog -> waypoint/filter":                 "an exchange is what is logged",
	"waypoint/accesslog -> waypoint/message":                "a log line names a request",
	"waypoint/accesslog -> waypoint/route":                  "log lines are format strings",
	"waypoint/forward/forwardtest -> waypoint/forward":      "a package's test double knows the package",
	"waypoint/forward/forwardtest -> waypoint/cluster":      "a package's test double configures the package",
	"waypoint/forward/forwardtest -> waypoint/listener":     "a package's test double configures the package",
	"controlplane/kube/kubetest -> controlplane/kube":       "a package's test support knows the package",
	"internal/svid/svidtest -> internal/svid":               "a package's test double knows the package",
	"hbone/hbonetest -> hbone":                              "a package's test double knows the package",
	"internal/xds/xdstest -> internal/xds":                  "a package's test double knows the package",
	"internal/netns/netnstest -> internal/netns":            "a package's test double knows the package",
}

// doors are the libraries that only some packages may use: a library's import path prefix, who may, and why.
var doors = []struct {
	lib    string
	may    []string
	reason string
}{
	{"github.com/cilium/ebpf", []string{"ebpf/redirect"}, "BPF objects have one owner"},
	{"github.com/vishvananda/netlink", []string{"internal/netns", "ebpf/redirect"}, "links, routes and rules have one door"},
	{"github.com/vishvananda/netns", []string{"internal/netns"}, "entering namespaces has one door"},
	{"github.com/google/nftables", []string{"internal/lab"}, "only the lab's stand-in for kube-proxy translates addresses; the mesh itself uses no netfilter"},
	{"k8s.io/client-go", []string{"controlplane/kube", "controlplane/gateway", "controlplane/ca", "ztunnel/capture", "internal/install", "internal/kubeconfig", "cmd/ambit"}, "the API server has few readers"},
	{"helm.sh/helm", []string{"internal/install"}, "charts are rendered in one place"},
	{"github.com/containernetworking/cni", []string{"ztunnel/cni", "cmd/ambit-cni"}, "the protocol of CNI plugins is spoken by the plugin"},
	{"github.com/miekg/dns", []string{"ztunnel/dns", "test"}, "DNS messages are read in one place"},
	{"github.com/prometheus/", []string{"internal/telemetry", "controlplane"}, "metrics have one door"},
	{"google.golang.org/grpc", []string{"api", "internal/xds", "internal/svid", "controlplane/discovery", "controlplane/ca", "waypoint/filter", "controlplane", "internal/lab/envoy"}, "RPC stays at the edges"},
}

// forbidden are calls that no package may make outside the named ones.
var forbidden = []struct {
	pkg, name string
	except    []string
	reason    string
}{
	{"context", "TODO", nil, "say where the context comes from"},
	{"time", "After", nil, "it leaks a timer until it fires; use a timer or a context"},
	{"log", "Fatal", nil, "deferred clean-up would not run"},
	{"log", "Fatalf", nil, "deferred clean-up would not run"},
	{"os", "Getenv", []string{"cmd", "internal/envoytest"}, "programs are configured by a Config; mains read the environment"},
	{"os", "LookupEnv", []string{"cmd"}, "programs are configured by a Config; mains read the environment"},
	{"os", "Exit", []string{"cmd", "deploy/images"}, "only mains end the process"},
}

type pkg struct {
	ImportPath, Dir                    string
	Imports, TestImports, XTestImports []string
	GoFiles, CgoFiles                  []string
}

func (p *pkg) rel() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

func packages(t *testing.T) []*pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var ps []*pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		p := new(pkg)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}

// floor is the floor of a package path, or -1.
func floor(rel string) int {
	best, n := -1, -1
	for prefix, f := range floors {
		if (rel == prefix || strings.HasPrefix(rel, strings.TrimSuffix(prefix, "/")+"/") && rel != strings.TrimSuffix(prefix, "/")) && len(prefix) > n {
			if strings.HasSuffix(prefix, "/") && rel == strings.TrimSuffix(prefix, "/") {
				continue
			}
			best, n = f, len(prefix)
		}
	}
	return best
}

func within(rel, dir string) bool { return rel == dir || strings.HasPrefix(rel, dir+"/") }

func TestImportsGoDownTheFloors(t *testing.T) {
	for _, p := range packages(t) {
		from := p.rel()
		if floor(from) < 0 {
			t.Errorf("%s stands on no floor: add it to floors here and to docs/architecture.md", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module+"/")
			if !ours || within(to, from) || within(from, to) && floor(from) == floor(to) {
				continue
			}
			if _, ok := siblings[from+" -> "+to]; ok || floor(to) < floor(from) || within(from, "test") && within(to, "test") {
				continue
			}
			t.Errorf("%s (floor %d) imports %s (floor %d): imports go down, or beside with a reason in siblings", from, floor(from), to, floor(to))
		}
	}
}

func TestProgramBodiesDoNotImportEachOther(t *testing.T) {
	bodies := []string{"ztunnel", "waypoint", "controlplane"}
	for _, p := range packages(t) {
		for _, a := range bodies {
			for _, imp := range p.Imports {
				to := strings.TrimPrefix(imp, module+"/")
				if within(p.rel(), a) && slices.ContainsFunc(bodies, func(b string) bool { return b != a && within(to, b) }) {
					t.Errorf("%s imports %s: programs meet on the wire only", p.rel(), to)
				}
			}
		}
	}
}

func TestLibrariesAreUsedOnlyBehindTheirDoors(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			for _, d := range doors {
				if !strings.HasPrefix(imp, d.lib) || strings.HasPrefix(imp, d.lib) && within(p.rel(), "test") {
					continue
				}
				if !slices.ContainsFunc(d.may, func(m string) bool { return within(p.rel(), m) }) {
					t.Errorf("%s imports %s, which only %v may: %s", p.rel(), imp, d.may, d.reason)
				}
			}
		}
	}
}

// generated tells files that a tool wrote.
func generated(f *ast.File) bool { return ast.IsGenerated(f) }

// eachFile parses every non-test Go file of the module.
func eachFile(t *testing.T, do func(p *pkg, fset *token.FileSet, name string, f *ast.File)) {
	for _, p := range packages(t) {
		fset := token.NewFileSet()
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			do(p, fset, name, f)
		}
	}
}

func TestEveryPackageHasExactlyOneComment(t *testing.T) {
	count := map[string]int{}
	eachFile(t, func(p *pkg, _ *token.FileSet, _ string, f *ast.File) {
		count[p.rel()] += 0
		if f.Doc != nil && !generated(f) {
			count[p.rel()]++
		}
	})
	for rel, n := range count {
		if n != 1 && !strings.HasPrefix(rel, "api/") {
			t.Errorf("%s has %d package comments, want 1", rel, n)
		}
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	eachFile(t, func(p *pkg, fset *token.FileSet, _ string, f *ast.File) {
		if generated(f) {
			return
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !selfEvident(d) {
					t.Errorf("%s: %s has no comment", fset.Position(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				undocumented(t, fset, d)
			}
		}
	})
}

// selfEvident are methods of interfaces that every reader knows.
func selfEvident(d *ast.FuncDecl) bool {
	return d.Recv != nil && slices.Contains([]string{"Error", "Unwrap", "String"}, d.Name.Name)
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	x := d.Recv.List[0].Type
	if s, ok := x.(*ast.StarExpr); ok {
		x = s.X
	}
	switch s := x.(type) {
	case *ast.IndexExpr:
		x = s.X
	case *ast.IndexListExpr:
		x = s.X
	}
	id, ok := x.(*ast.Ident)
	return ok && id.IsExported()
}

func undocumented(t *testing.T, fset *token.FileSet, d *ast.GenDecl) {
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
				t.Errorf("%s: type %s has no comment", fset.Position(s.Pos()), s.Name.Name)
			}
		case *ast.ValueSpec:
			for _, n := range s.Names {
				if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
					t.Errorf("%s: %s has no comment", fset.Position(n.Pos()), n.Name)
				}
			}
		}
	}
}

func TestFilesAreShortEnoughToRead(t *testing.T) {
	const limit = 700
	eachFile(t, func(p *pkg, fset *token.FileSet, name string, f *ast.File) {
		if n := fset.Position(f.FileEnd).Line; n > limit && !generated(f) {
			t.Errorf("%s/%s has %d lines, more than %d: split it by concern", p.rel(), name, n, limit)
		}
	})
}

func TestForbiddenCalls(t *testing.T) {
	eachFile(t, func(p *pkg, fset *token.FileSet, _ string, f *ast.File) {
		if generated(f) || within(p.rel(), "test") {
			return
		}
		names := map[string]string{} // local name -> import path
		for _, i := range f.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			local := path[strings.LastIndex(path, "/")+1:]
			if i.Name != nil {
				local = i.Name.Name
			}
			names[local] = path
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if fn, ok := n.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: init: nothing happens on import", fset.Position(n.Pos()))
			}
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			for _, r := range forbidden {
				if names[x.Name] == r.pkg && sel.Sel.Name == r.name && !slices.ContainsFunc(r.except, func(e string) bool { return within(p.rel(), e) }) {
					t.Errorf("%s: %s.%s: %s", fset.Position(n.Pos()), r.pkg, r.name, r.reason)
				}
			}
			return true
		})
	})
}

func TestNoPackageHasABagName(t *testing.T) {
	for _, p := range packages(t) {
		base := filepath.Base(p.ImportPath)
		if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "base", "types", "misc", "constants"}, base) {
			t.Errorf("%s: name a package for what is in it", p.rel())
		}
	}
}

func TestTheFloorsNameOnlyWhatExists(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	later := []string{"waypoint", "waypoint/", "test"} // planned rooms
	for prefix := range floors {
		if _, err := os.Stat(filepath.Join(root, strings.TrimSuffix(prefix, "/"))); err != nil && !slices.Contains(later, prefix) {
			t.Errorf("floors names %s, which is not there: a rule about nothing rots", prefix)
		}
	}
}
