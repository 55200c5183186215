package interop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/wire"
	"github.com/ambit-mesh/ambit/test/bed"
)

// The lab, its nodes, and the ports of the services, which are not those of the pods.
const (
	labName  = "interop"
	oursNode = "node-1"
	rustNode = "node-2"
	shift    = 100
	// drainTime is how long streams in flight go on when a ztunnel ends.
	drainTime = 30 * time.Second
)

// meshWorld is a lab whose node-2 has the Rust ztunnel. Each node has a client, another one and a server, all in the mesh
// and each with an account of its own; node-1 has a pod outside of the mesh too.
type meshWorld struct {
	t   *testing.T
	lab *lab.Lab
	c   *lab.Client
	bin string // directory of programs
}

// programs is the directory of ours, and of the program that puts a Rust ztunnel on a node.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir+"/", "../../cmd/ztunnel", "../../cmd/controlplane", "../../cmd/ambit", "../peer/rustnode")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build programs: %v\n%s", err, out)
	}
	return dir
}

func newMeshWorld(t *testing.T) *meshWorld {
	t.Helper()
	rustBin(t)
	t.Setenv("RUST_LOG", "info,access=info")
	t.Setenv("CONNECTION_TERMINATION_DEADLINE", drainTime.String()) // of both
	bin := programs(t)
	l, err := lab.Up(t.Context(), lab.Options{Name: labName, Programs: lab.Programs{
		Ztunnel: filepath.Join(bin, "ztunnel"), Controlplane: filepath.Join(bin, "controlplane"),
		ZtunnelOf: map[string]string{rustNode: filepath.Join(bin, "rustnode")},
	}})
	must(t, err)
	w := &meshWorld{t: t, lab: l, c: l.Client(), bin: bin}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range []string{oursNode, rustNode} {
				t.Logf("the ztunnel's log on %s ends with:\n%s", n, tail(w.log(n)))
			}
		}
		must(t, l.Close())
	})
	w.apply(`
- {apiVersion: v1, kind: Namespace, metadata: {name: interop, labels: {istio.io/dataplane-mode: ambient}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: outside}}`)
	w.pod("outside", "outsider", oursNode)
	for prefix, node := range map[string]string{"ours": oursNode, "rust": rustNode} {
		w.pod("interop", prefix+"-client", node)
		w.pod("interop", prefix+"-other", node)
		w.pod("interop", prefix+"-server", node)
		w.apply(fmt.Sprintf(`
- apiVersion: v1
  kind: Service
  metadata: {name: %[1]s-server, namespace: interop}
  spec:
    ipFamilyPolicy: RequireDualStack
    selector: {app: %[1]s-server}
    ports: [{name: tcp-echo, port: %[2]d, targetPort: %[3]d}, {name: tcp-last, port: %[4]d, targetPort: %[5]d}]`,
			prefix, echoPort+shift, echoPort, lastPort+shift, lastPort))
	}
	must(t, w.c.WaitReady(within(t, time.Minute), nil))
	for _, n := range []string{oursNode, rustNode} {
		eventually(t, "the ztunnel on "+n+" to know all pods as captured", func() error { return w.knows(n, 6) })
	}
	apps(t, w.ns(t, "interop", "ours-server"))
	apps(t, w.ns(t, "interop", "rust-server"))
	return w
}

// knows says whether a node's ztunnel knows of n workloads that it is to reach by tunnel, and that they are ready: until then
// it reaches them in plaintext, or by their Services not at all. Both ztunnels dump their configuration in one shape.
func (w *meshWorld) knows(node string, n int) error {
	dump, err := w.dump(node)
	if err != nil {
		return err
	}
	var workloads []struct{ Protocol, Status string }
	if err := json.Unmarshal(dump["workloads"], &workloads); err != nil {
		return err
	}
	got := 0
	for _, x := range workloads {
		if x.Protocol == "HBONE" && x.Status == "Healthy" {
			got++
		}
	}
	if got != n {
		return fmt.Errorf("%d are, want %d", got, n)
	}
	return nil
}

// apply applies a YAML list of objects.
func (w *meshWorld) apply(list string) {
	w.t.Helper()
	must(w.t, w.c.ApplyYAML(w.t.Context(), "apiVersion: v1\nkind: List\nitems:\n"+strings.TrimPrefix(list, "\n")))
}

// pod makes a pod in which nothing happens: the test's own clients and servers enter its network namespace.
func (w *meshWorld) pod(ns, name, node string) {
	w.t.Helper()
	w.apply(fmt.Sprintf(`
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: %[2]s, namespace: %[1]s}}
- apiVersion: v1
  kind: Pod
  metadata: {name: %[2]s, namespace: %[1]s, labels: {app: %[2]s}}
  spec:
    nodeName: %[3]s
    serviceAccountName: %[2]s
    terminationGracePeriodSeconds: 0
    containers: [{name: main, command: [sleep, infinity]}]`, ns, name, node))
}

// ns is the network namespace of a pod or, without a Kubernetes namespace, of a node.
func (w *meshWorld) ns(t *testing.T, ns, pod string) *bed.NS {
	t.Helper()
	a, err := w.c.Access(t.Context(), ns, pod, "")
	must(t, err)
	n, err := bed.OpenNS(a.NetNS)
	must(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

// addrs are the addresses that a pod or service of the mesh has, IPv4 first.
func (w *meshWorld) addrs(kind, name string) (v4, v6 netip.Addr) {
	w.t.Helper()
	objs, err := w.c.Objects(w.t.Context(), kind, "interop", name)
	must(w.t, err)
	var ips []string
	switch kind {
	case "pod":
		var p corev1.Pod
		must(w.t, json.Unmarshal(objs[0], &p))
		for _, ip := range p.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
	case "service":
		var s corev1.Service
		must(w.t, json.Unmarshal(objs[0], &s))
		ips = s.Spec.ClusterIPs
	}
	if len(ips) != 2 {
		w.t.Fatalf("%s %q has addresses %v, want one of each family", kind, name, ips)
	}
	return netip.MustParseAddr(ips[0]), netip.MustParseAddr(ips[1])
}

// log is the file with the log of a node's proxy.
func (w *meshWorld) log(node string) string {
	return filepath.Join(w.lab.NodeDir(node), "proxy.log")
}

func tail(path string) string {
	const size = 6000
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-size):])
}

// eventually calls f until it gives no error, for at most ten seconds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx := within(t, 10*time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// A direction is traffic from a client on one node to the server on the other.
type direction struct {
	*meshWorld
	ctx                    context.Context
	server, serverNode     string
	client, other          string // pods
	clientNS, otherNS      *bed.NS
	pod4, pod6, vip4, vip6 netip.Addr
}

func (w *meshWorld) direction(t *testing.T, from, to, serverNode string) *direction {
	d := &direction{meshWorld: w, ctx: within(t, 5*time.Minute), server: to + "-server", serverNode: serverNode,
		client: from + "-client", other: from + "-other"}
	d.clientNS, d.otherNS = w.ns(t, "interop", d.client), w.ns(t, "interop", d.other)
	d.pod4, d.pod6 = w.addrs("pod", d.server)
	d.vip4, d.vip6 = w.addrs("service", d.server)
	return d
}

func (d *direction) open(to netip.Addr, port int) (conn, error) {
	return dial(d.ctx, d.clientNS, netip.AddrPortFrom(to, uint16(port)))
}

// does opens a connection of the client and uses it.
func (d *direction) does(to netip.Addr, port int, use func(conn) error) error {
	c, err := d.open(to, port)
	if err != nil {
		return err
	}
	return use(c)
}

// reaches says whether a pod reaches the server by the pod's address.
func (d *direction) reaches(from *bed.NS) error {
	c, err := dial(d.ctx, from, netip.AddrPortFrom(d.pod4, echoPort))
	if err != nil {
		return err
	}
	defer c.Close()
	return asks(c, "are you there?\n")
}

// refused turns a success into an error.
func refused(err error) error {
	if err == nil {
		return errors.New("it is not refused")
	}
	return nil
}

func TestRootInteropRustNodeOfTheLab(t *testing.T) {
	w := newMeshWorld(t)
	t.Run("ambit config shows what the Rust ztunnel knows", w.configShows)
	for _, x := range []struct{ name, from, to, node string }{
		{"ours to Rust", "ours", "rust", rustNode}, {"Rust to ours", "rust", "ours", oursNode},
	} {
		t.Run(x.name, func(t *testing.T) {
			d := w.direction(t, x.from, x.to, x.node)
			d.reachesAll(t)
			t.Run("bytes", d.bytes)
			t.Run("nothing is plaintext on the wire", d.encrypted)
			t.Run("the server sees the client's address", d.keepsAddress)
			t.Run("a policy refuses one account and cuts its connections", d.denied)
			t.Run("STRICT refuses plaintext", d.strict)
			t.Run("a successor of the server's ztunnel takes over by GOAWAY", d.handover)
		})
	}
}

// reachesAll reaches the server by every address it has.
func (d *direction) reachesAll(t *testing.T) {
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(d.pod4, echoPort), netip.AddrPortFrom(d.vip4, echoPort+shift),
		netip.AddrPortFrom(d.pod6, echoPort), netip.AddrPortFrom(d.vip6, echoPort+shift),
	} {
		must(t, d.does(to.Addr(), int(to.Port()), func(c conn) error { return echoes(c, 1<<20) }))
	}
}

func (d *direction) bytes(t *testing.T) {
	for _, c := range []struct {
		name string
		to   netip.Addr
		port int
		use  func(conn) error
	}{
		{"1 GiB there and back by pod IP", d.pod4, echoPort, func(c conn) error { return echoes(c, 1<<30) }},
		{"256 MiB there and back by ClusterIP", d.vip4, echoPort + shift, func(c conn) error { return echoes(c, 256<<20) }},
		{"16 MiB there and back by IPv6 pod IP", d.pod6, echoPort, func(c conn) error { return echoes(c, 16<<20) }},
		{"16 MiB there and back by IPv6 ClusterIP", d.vip6, echoPort + shift, func(c conn) error { return echoes(c, 16<<20) }},
		{"an answer after the client's half-close, by pod IP", d.pod4, lastPort, func(c conn) error { return uploads(c, 64<<20) }},
		{"an answer after the client's half-close, by ClusterIP", d.vip4, lastPort + shift, func(c conn) error { return uploads(c, 64<<20) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			must(t, d.does(c.to, c.port, c.use))
			t.Logf("took %s", time.Since(start).Round(time.Millisecond))
		})
	}
	t.Run("200 connections at once by ClusterIP", func(t *testing.T) {
		must(t, at200(func() (conn, error) { return d.open(d.vip4, echoPort+shift) }))
	})
}

// encrypted watches the server's node while requests with a marker pass.
func (d *direction) encrypted(t *testing.T) {
	const marker = "INTEROP-MARKER-51c07"
	node := d.ns(t, "", d.serverNode)
	tap, err := wire.Open(wire.Config{Inside: node.Do, Link: "eth0", Marker: []byte(marker), Filter: func(s wire.Segment) bool {
		return s.Src.Port() != 15012 && s.Dst.Port() != 15012
	}})
	must(t, err)
	ctx, stop := context.WithCancel(d.ctx)
	done := make(chan error, 1)
	go func() { done <- tap.Run(ctx) }()
	for range 20 {
		must(t, d.does(d.vip4, echoPort+shift, func(c conn) error { defer c.Close(); return asks(c, marker) }))
	}
	stop()
	must(t, <-done)
	r := tap.Report()
	must(t, tap.Close())
	if n := r.Markers(); n > 0 || len(r.Flows) == 0 {
		t.Errorf("the marker was seen %d times in %d connections on the wire, want 0 in some", n, len(r.Flows))
	}
	if n := r.Count(func(f *wire.Flow) bool { return f.Plaintext() }); n > 0 {
		t.Errorf("%d connections are in plaintext", n)
	}
	t.Logf("%d connections on the wire, no marker", len(r.Flows))
}

func (d *direction) keepsAddress(t *testing.T) {
	want, want6 := d.addrs("pod", d.client)
	for to, want := range map[netip.Addr]netip.Addr{d.pod4: want, d.pod6: want6} {
		var got []byte
		must(t, d.does(to, whoPort, func(c conn) (err error) { defer c.Close(); got, err = io.ReadAll(c); return err }))
		if string(got) != want.String() {
			t.Errorf("the server sees %s, want %s", got, want)
		}
	}
}

// denied refuses the client by a policy for the whole namespace and by one for the server's pod. The first also cuts what
// is open; the second only at ours: the peer judges open connections by the policies that the pod had when they began
// (ztunnel.md I18).
func (d *direction) denied(t *testing.T) {
	d.deniedBy(t, "for-all", "", true)
	d.deniedBy(t, "for-one", "selector: {matchLabels: {app: "+d.server+"}}", d.serverNode == oursNode)
}

func (d *direction) deniedBy(t *testing.T, policy, selector string, cuts bool) {
	live, err := d.open(d.pod4, echoPort)
	must(t, err)
	defer live.Close()
	must(t, asks(live, "before\n"))
	policy = policy + "-" + d.client
	d.apply(fmt.Sprintf(`
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: %s, namespace: interop}
  spec:
    %s
    action: DENY
    rules: [{from: [{source: {principals: [cluster.local/ns/interop/sa/%s]}}]}]`, policy, selector, d.client))
	defer func() {
		must(t, d.c.DeleteObject(d.ctx, "AuthorizationPolicy", "interop", policy))
		eventually(t, "the refusal to end", func() error { return d.reaches(d.clientNS) })
	}()
	eventually(t, "the refusal", func() error { return refused(d.reaches(d.clientNS)) })
	if cuts {
		eventually(t, "the open connection to be cut", func() error { return refused(asks(live, "after\n")) })
	}
	must(t, d.reaches(d.otherNS))
	eventually(t, "the server's node to name the policy in its log", func() error {
		if !strings.Contains(tail(d.log(d.serverNode)), "interop/"+policy) {
			return errors.New("it does not")
		}
		return nil
	})
}

func (d *direction) strict(t *testing.T) {
	outsider := d.ns(t, "outside", "outsider")
	must(t, d.reaches(outsider)) // PERMISSIVE
	d.apply(`
- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: interop}, spec: {mtls: {mode: STRICT}}}`)
	defer func() {
		must(t, d.c.DeleteObject(d.ctx, "PeerAuthentication", "interop", "default"))
		eventually(t, "the outsider to be let in again", func() error { return d.reaches(outsider) })
	}()
	eventually(t, "the outsider to be refused", func() error { return refused(d.reaches(outsider)) })
	must(t, d.reaches(d.clientNS), d.does(d.vip6, echoPort+shift, func(c conn) error { return echoes(c, 1<<20) }))
}

// drainWords are what each ztunnel logs when it begins to drain.
var drainWords = map[string]string{oursNode: "draining: peers are told", rustNode: "starting shutdown"}

// handover restarts the ztunnel of the server's node as a rolling update does, under new connections: the new process
// comes first, then the old one says GOAWAY. What is open goes on, and when it ends the old one ends long before its time
// is over, because the client's side has left its tunnel.
func (d *direction) handover(t *testing.T) {
	log, err := os.Open(d.log(d.serverNode))
	must(t, err)
	defer log.Close()
	_, err = log.Seek(0, io.SeekEnd)
	must(t, err)
	old, err := d.open(d.vip4, echoPort+shift)
	must(t, err)
	must(t, asks(old, "before\n"))
	restarted := make(chan error, 1)
	go func() { restarted <- d.c.Program(d.ctx, "restart", "ztunnel/"+d.serverNode, "proxy") }()
	before, after := 0, 0 // new connections, before and after the GOAWAY
	for said := ""; after < 500; {
		must(t, d.does(d.vip4, echoPort+shift, func(c conn) error { return echoes(c, 1<<10) }))
		must(t, asks(old, "during\n"))
		if strings.Contains(said, drainWords[d.serverNode]) {
			after++
			continue
		}
		before++
		b, err := io.ReadAll(log)
		must(t, err)
		said += string(b)
	}
	select {
	case err := <-restarted:
		t.Fatalf("the old ztunnel did not wait for its streams (%v)", err)
	default:
	}
	must(t, echoes(old, 1<<20))
	began := time.Now()
	must(t, <-restarted)
	if took := time.Since(began); took > drainTime/2 {
		t.Errorf("the old ztunnel ended %s after its last stream: the client's side held its tunnel", took)
	} else {
		t.Logf("%d and %d new connections before and after the old ztunnel began to drain, none failed; it ended %s after its last stream",
			before, after, took.Round(time.Millisecond))
	}
	must(t, d.does(d.vip4, echoPort+shift, func(c conn) error { return echoes(c, 1<<20) }))
}
