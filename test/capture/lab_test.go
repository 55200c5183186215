package capture

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/echo"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/ambit-mesh/ambit/internal/lab/wire"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

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

// programs is the directory of the built programs: AMBIT_BIN_DIR, or one that is built once for all tests.
func programs(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("AMBIT_BIN_DIR"); dir != "" {
		return dir
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "ambit-capture"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", built.dir, "./cmd/...")
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// soak tells whether the long forms are asked for (make soak).
func soak() bool { return os.Getenv("AMBIT_SOAK") == "1" }

// world is a lab that ends with the test.
type world struct {
	t     *testing.T
	name  string
	c     *lab.Client
	ambit string
}

// newWorld starts a lab of two nodes with the mesh. change may be nil.
func newWorld(t *testing.T, name string, change func(*lab.Options)) *world {
	t.Helper()
	netnstest.RequireRoot(t)
	bin := programs(t)
	w := &world{t: t, name: name, ambit: filepath.Join(bin, "ambit")}
	o := lab.Options{Name: name, Programs: lab.Programs{
		Ztunnel: filepath.Join(bin, "ztunnel"), Controlplane: filepath.Join(bin, "controlplane"), Echo: []string{w.ambit, "echo"},
	}}
	if change != nil {
		change(&o)
	}
	if err := lab.Down(name, time.Minute); err != nil { // of a run that was killed
		t.Fatal(err)
	}
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	w.c = l.Client()
	t.Cleanup(func() {
		if t.Failed() {
			w.tails()
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// tails shows the end of the proxies' logs.
func (w *world) tails() {
	for _, node := range []string{"node-1", "node-2"} {
		for _, part := range []string{"capture", "proxy"} {
			var lines []string
			for line := range strings.Lines(w.log("ztunnel/"+node, part)) {
				if !strings.Contains(line, "connection complete") {
					lines = append(lines, line)
				}
			}
			w.t.Logf("%s of %s:\n%s", part, node, strings.Join(lines[max(0, len(lines)-20):], ""))
		}
	}
}

// log is what a program has written so far.
func (w *world) log(name, part string) string {
	w.t.Helper()
	path, err := w.c.LogFile(context.WithoutCancel(w.t.Context()), "", name, part)
	if err != nil {
		w.t.Error(err)
		return ""
	}
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Error(err)
	}
	return string(b)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// demo applies files of the demo and waits until all is ready.
func (w *world) demo(names ...string) {
	w.t.Helper()
	for _, name := range names {
		files, err := manifest.Read(filepath.Join("../../deploy/examples/demo", name))
		must(w.t, err)
		_, err = w.c.Apply(w.t.Context(), files...)
		must(w.t, err)
	}
	w.ready()
}

// apply applies manifests and waits until all is ready.
func (w *world) apply(yaml string) {
	w.t.Helper()
	must(w.t, w.c.ApplyYAML(w.t.Context(), yaml))
	w.ready()
}

func (w *world) ready() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	must(w.t, w.c.WaitReady(ctx, nil))
}

// await repeats f until it returns nil.
func (w *world) await(what string, limit time.Duration, f func() error) {
	w.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("waited in vain for %s: %v", what, err)
		}
	}
}

// addrs are a pod's addresses; the second one is IPv6 in a lab of both families.
func (w *world) addrs(namespace, pod string) (out []netip.Addr) {
	w.t.Helper()
	for _, p := range w.pods(namespace) {
		if p.Metadata.Name == pod {
			return p.addrs(w.t)
		}
	}
	w.t.Fatalf("no pod %s/%s", namespace, pod)
	return nil
}

// podObject is a pod as the lab lists it.
type podObject struct {
	Metadata struct {
		Name        string
		Annotations map[string]string
	}
	Status struct {
		Phase  string
		PodIPs []struct{ IP string }
	}
}

func (p *podObject) addrs(t *testing.T) (out []netip.Addr) {
	t.Helper()
	for _, ip := range p.Status.PodIPs {
		a, err := netip.ParseAddr(ip.IP)
		must(t, err)
		out = append(out, a)
	}
	return out
}

func (p *podObject) captured() bool {
	return p.Metadata.Annotations["ambient.istio.io/redirection"] == "enabled"
}

func (w *world) pods(namespace string) []podObject {
	w.t.Helper()
	return objects[podObject](w, "pod", namespace, "")
}

// vips are a service's addresses.
func (w *world) vips(namespace, name string) (out []netip.Addr) {
	w.t.Helper()
	type service struct{ Spec struct{ ClusterIPs []string } }
	for _, s := range objects[service](w, "service", namespace, name)[0].Spec.ClusterIPs {
		a, err := netip.ParseAddr(s)
		must(w.t, err)
		out = append(out, a)
	}
	return out
}

func objects[T any](w *world, kind, namespace, name string) []T {
	w.t.Helper()
	raw, err := w.c.Objects(w.t.Context(), kind, namespace, name)
	must(w.t, err)
	out := make([]T, len(raw))
	for i := range raw {
		must(w.t, json.Unmarshal(raw[i], &out[i]))
	}
	return out
}

// tunnelled waits until a node's ztunnel knows that a pod is reached by a tunnel. Before, its clients speak to it as to any
// address outside of the mesh.
func (w *world) tunnelled(node, pod string, want bool) {
	w.t.Helper()
	w.await(fmt.Sprintf("%s to know that tunnels to %s: %t", node, pod, want), 20*time.Second, func() error {
		text, err := w.c.Fetch(w.t.Context(), "ztunnel/"+node, "http://127.0.0.1:15000/config_dump")
		if err != nil {
			return err
		}
		var dump struct {
			Workloads []struct{ Name, Protocol string }
		}
		if err := json.Unmarshal([]byte(text), &dump); err != nil {
			return err
		}
		for _, l := range dump.Workloads {
			if strings.HasPrefix(l.Name, pod) && (l.Protocol == "HBONE") == want {
				return nil
			}
		}
		return fmt.Errorf("it knows %v", dump.Workloads)
	})
}

// inside runs f on a thread in the namespace of a pod, or of a node if namespace is empty.
func (w *world) inside(namespace, name string, f func() error) error {
	a, err := w.c.Access(w.t.Context(), namespace, name, "")
	if err != nil {
		return err
	}
	return a.Do(f)
}

// insideNetNS runs f on a thread in a named network namespace.
func (w *world) insideNetNS(name string, f func() error) error {
	ns, err := netns.Open(filepath.Join("/run/netns", name))
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(f)
}

// dial connects from a pod or node. It may be called from any goroutine.
func (w *world) dial(namespace, name string, to netip.AddrPort, timeout time.Duration) (conn *net.TCPConn, err error) {
	err = w.inside(namespace, name, func() error {
		c, err := (&net.Dialer{Timeout: timeout}).DialContext(w.t.Context(), "tcp", to.String())
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	return conn, err
}

// load runs the echo client in a pod.
func (w *world) load(namespace, pod string, args ...string) *echo.Summary {
	w.t.Helper()
	argv := append([]string{w.ambit, "echo", "client", "--json"}, args...)
	out, err := w.c.Run(w.t.Context(), namespace, pod, argv...)
	must(w.t, err)
	sum := &echo.Summary{}
	must(w.t, json.Unmarshal([]byte(out), sum))
	return sum
}

// tap captures a node's link to the other nodes until stop is called. What goes to the control plane is left out.
func (w *world) tap(node, marker string) (stop func() wire.Report) {
	w.t.Helper()
	a, err := w.c.Access(w.t.Context(), "", node, "")
	must(w.t, err)
	c, err := wire.Open(wire.Config{
		Link: "eth0", Inside: a.Do, Marker: []byte(marker),
		Filter: func(s wire.Segment) bool { return s.Src.Port() != 15012 && s.Dst.Port() != 15012 },
	})
	must(w.t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	end := sync.OnceValue(func() wire.Report {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		defer c.Close()
		return c.Report()
	})
	w.t.Cleanup(func() { end() })
	return end
}

// encrypted says what in a capture was not TLS 1.3 from its first byte on. Flows without payload, such as a refused SYN,
// say nothing; a ClientHello that was never answered, because its pod is gone, must offer nothing else.
func encrypted(r wire.Report) error {
	var errs []error
	if n := r.Markers(); n > 0 {
		errs = append(errs, fmt.Errorf("the marker was on the wire %d times", n))
	}
	if r.Dropped > 0 {
		errs = append(errs, fmt.Errorf("%d packets were not looked at", r.Dropped))
	}
	for _, f := range r.Flows {
		unanswered := f.TLS && f.Version == 0 && slices.Equal(f.Offered, []uint16{tls.VersionTLS13})
		if f.Bytes > 0 && (f.Plaintext() || f.Whole && !f.TLS13() && !unanswered) {
			errs = append(errs, fmt.Errorf("%s to %s is not TLS 1.3: version %#x, first bytes %q", f.Client, f.Server, f.Version, f.First))
		}
	}
	return errors.Join(errs...)
}
