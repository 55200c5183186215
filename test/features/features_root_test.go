package features

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

func TestRootFeaturesOnOurWaypoint(t *testing.T) { run(t, start(t, "features", ""), false) }

// TestRootFeaturesOnEnvoy is the judge of the table. It runs when ENVOY_BIN names an Envoy.
func TestRootFeaturesOnEnvoy(t *testing.T) {
	netnstest.RequireRoot(t)
	run(t, start(t, "featenvoy", envoytest.Require(t)), true)
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
	logs   []string // of waypoints, ztunnels, the control plane and the collector of spans
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
	for _, pod := range []string{"shop/client", "other/stranger", "outside/outsider", "shop/helper", "shop/slow"} {
		b.enter(t, pod)
	}
	b.serve(t)
	b.findLogs(t)
	b.settle(t)
	return b
}

func (b *bed) findLogs(t *testing.T) {
	t.Helper()
	log := func(namespace, name, container string) string {
		path, err := b.c.LogFile(t.Context(), namespace, name, container)
		netnstest.Must(t, err)
		return path
	}
	raw, err := b.c.Objects(t.Context(), "pod", "", "")
	netnstest.Must(t, err)
	for _, r := range raw {
		var p struct {
			Metadata struct {
				Name, Namespace string
				Labels          map[string]string
			}
		}
		netnstest.Must(t, json.Unmarshal(r, &p))
		if strings.HasPrefix(p.Metadata.Name, "v2-") {
			b.v2log = log(p.Metadata.Namespace, p.Metadata.Name, "")
		}
		if p.Metadata.Labels["gateway.networking.k8s.io/gateway-name"] != "" || p.Metadata.Name == "collector" {
			b.logs = append(b.logs, log(p.Metadata.Namespace, p.Metadata.Name, ""))
		}
	}
	b.logs = append(b.logs, log("", "ztunnel/node-1", "proxy"), log("", "ztunnel/node-2", "proxy"), log("", "controlplane", ""))
}

// apply applies what all cases share, learns the addresses of pods, and then applies the waypoints and the cases.
func (b *bed) apply(t *testing.T) {
	t.Helper()
	files, err := manifest.Read("testdata/base.yaml", "testdata/helpers.yaml")
	netnstest.Must(t, err)
	_, err = b.c.Apply(t.Context(), files...)
	netnstest.Must(t, err)
	b.ready(t)
	var all strings.Builder
	for _, g := range b.groups {
		for _, f := range g.features {
			all.WriteString(b.fill(f.service, f.manifest()) + "\n---\n")
		}
	}
	files, err = manifest.Read("testdata/waypoints.yaml")
	netnstest.Must(t, err)
	_, err = b.c.Apply(t.Context(), append(files, lab.File{Name: "features.yaml", Data: []byte(all.String())})...)
	netnstest.Must(t, err)
	b.ready(t)
}

// ready waits for pods and learns the addresses of services and pods.
func (b *bed) ready(t *testing.T) {
	t.Helper()
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
	raw, err = b.c.Objects(t.Context(), "pod", "", "")
	netnstest.Must(t, err)
	for _, r := range raw {
		var p struct {
			Metadata struct {
				Name, Namespace string
				Labels          map[string]string
			}
			Status struct{ PodIP string }
		}
		netnstest.Must(t, json.Unmarshal(r, &p))
		a, err := netip.ParseAddr(p.Status.PodIP)
		netnstest.Must(t, err)
		for _, name := range []string{p.Metadata.Name, p.Metadata.Labels["pod"], p.Metadata.Labels["gateway.networking.k8s.io/gateway-name"]} {
			b.vips["pod/"+name] = a
		}
	}
}

var word = regexp.MustCompile(`\$([TP])\(([^)]*)\)`)

// fill puts names and values into a text: $S is the case's service, $D a directory with certificates, $CA the authority's
// certificate as a word of JSON, $JWKS the keys, $T(NAME) a token, $P(POD) the address of a pod or of a Gateway's.
func (b *bed) fill(service, text string) string {
	if !strings.Contains(text, "$") {
		return text
	}
	text = strings.NewReplacer("$S", service, "$JWKS", b.keys.set, "$D", b.keys.dir, "$CA", b.keys.ca).Replace(text)
	return word.ReplaceAllStringFunc(text, func(w string) string {
		name := w[3 : len(w)-1]
		if w[1] == 'T' {
			return b.keys.tokens[name]
		}
		if a, ok := b.vips["pod/"+name]; ok {
			return a.String()
		}
		return w
	})
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

// settle waits until the waypoint and the ztunnels have what was applied: the control plane has nothing more to tell them, and all
// pods answer, for a while.
func (b *bed) settle(t *testing.T) {
	t.Helper()
	b.synced(t)
	const rounds = 5
	begin := time.Now()
	for good := 0; good < rounds; time.Sleep(100 * time.Millisecond) {
		var err error
		for _, pod := range []string{"client", "stranger"} {
			for service, pods := range map[string]int{"v1": 2, "v2": 1, "zz-last": 3, b.groups[0].features[0].service: 2} {
				a := get("/").by(pod).times(12).anew().want(ok, "header.X-Request-Id=*").pods(pods, pods)
				err = errors.Join(err, a.check(t.Context(), b.dialer(pod), b.address(service, 80)))
			}
		}
		if good++; err != nil {
			good = 0
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("not all pods answer through the waypoint: %v", err)
		}
	}
}

// synced waits until the control plane's clients have acknowledged all that it has, and nothing follows: it reads the manifests
// in pieces when the machine is slow.
func (b *bed) synced(t *testing.T) {
	t.Helper()
	const quiet = 2 * time.Second
	last, since := "", time.Now()
	for begin := time.Now(); time.Since(since) < quiet; time.Sleep(100 * time.Millisecond) {
		text, err := b.c.Fetch(t.Context(), "controlplane", "http://127.0.0.1:15014/debug/syncz")
		netnstest.Must(t, err)
		if text != last || strings.Contains(text, `"STALE"`) {
			last, since = text, time.Now()
		}
		if time.Since(begin) > 2*time.Minute {
			t.Fatalf("the control plane's clients do not settle: %s", text)
		}
	}
}

// address is that of a service, or of pod/NAME; an address stands for itself.
func (b *bed) address(name string, port int) string {
	if port == 0 {
		port = 80
	}
	return netip.AddrPortFrom(b.find(name), uint16(port)).String()
}

func (b *bed) find(name string) netip.Addr {
	if a, err := netip.ParseAddr(name); err == nil {
		return a
	}
	return b.vips[name]
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

// tries is how often what is about chance, or about time on a busy machine, may be tried. Everything else must hold at once.
const tries = 3

// try makes the case's requests.
func (b *bed) try(t *testing.T, f feature) {
	for _, a := range f.asks {
		service := f.service
		if a.to != "" {
			service = a.to
		}
		if !b.find(service).IsValid() {
			t.Fatalf("service %q has no address", service)
		}
		if a.before != "" {
			netnstest.Must(t, b.c.ApplyYAML(t.Context(), b.fill(f.service, a.before)))
		}
		a.path, a.authority, a.payload = b.fill(f.service, a.path), b.fill(f.service, a.authority), b.fill(f.service, a.payload)
		if a.authority == "" {
			a.authority = f.service + ".shop"
			if a.to != "" {
				a.authority = a.to + ".shop"
			}
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
		shares := slices.Clone(a.shares)
		for i := range shares {
			shares[i].line = b.fill(f.service, shares[i].line)
		}
		a.shares = shares
		var err error
		left, end := 1, time.Now()
		if len(a.shares) > 0 || a.key != "" || a.most > 0 {
			left = tries
		}
		if a.act != nil {
			a.act(b)
		}
		if a.before != "" || a.act != nil {
			end = end.Add(10 * time.Second)
		}
		for ; left > 0 || time.Now().Before(end); left-- {
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
	if len(f.logged) > 0 {
		b.told(t, f)
	}
}

// told waits until a log has a line with all that the case wants.
func (b *bed) told(t *testing.T, f feature) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		for _, path := range b.logs {
			log, err := os.ReadFile(path)
			netnstest.Must(t, err)
			for line := range strings.Lines(string(log)) {
				if !slices.ContainsFunc(f.logged, func(want string) bool { return !strings.Contains(line, b.fill(f.service, want)) }) {
					return
				}
			}
		}
		if time.Now().After(end) {
			t.Errorf("%s (%s): no log has a line with %q", f.field, f.service, f.logged)
			return
		}
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
