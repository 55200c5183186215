package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/ebpf/redirect"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/svid/svidtest"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/ztunnel/zds"

	"google.golang.org/protobuf/proto"
)

// mesh is two nodes in one process: real namespaces, real BPF, real TLS; the control plane is the test.
type mesh struct {
	t      *testing.T
	ca     *svidtest.CA
	router *netnstest.Router
	nodes  map[string]*meshNode
	logs   *syncBuffer
}

type meshNode struct {
	name  string
	kern  *redirect.Node
	proxy *Proxy
	wl    *workload.Store
	pol   *rbac.Store
	stop  func() // what runs, and waits for its end
}

type meshPod struct {
	name, node, ns, sa string
	space              *netns.NS
	v4, v6             netip.Addr
	anon               bool // its source does not know its addresses
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newMesh(t *testing.T, change func(*Config)) *mesh {
	t.Helper()
	netnstest.RequireRoot(t)
	m := &mesh{t: t, ca: svidtest.NewCA(t, "cluster.local"), router: netnstest.NewRouter(t), nodes: map[string]*meshNode{}, logs: &syncBuffer{}}
	for _, name := range []string{"n1", "n2"} {
		m.addNode(name, change)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(m.logs.String())
		}
	})
	return m
}

func (m *mesh) addNode(name string, change func(*Config)) {
	t := m.t
	pins := filepath.Join(t.TempDir(), "bpf")
	kern, err := redirect.Open(redirect.Config{PinDir: pins})
	if err != nil {
		t.Fatal(err)
	}
	n := &meshNode{name: name, kern: kern, wl: workload.NewStore(workload.Config{Node: name}), pol: rbac.NewStore()}
	writer := telemetry.NewWriter(telemetry.WriterConfig{Out: m.logs})
	certs := svid.NewManager(svid.Config{CA: m.ca})
	cfg := Config{
		Node: name, Workloads: n.wl, Policies: n.pol, Certs: certs, WorkloadWait: 2 * time.Second, DrainTimeout: 100 * time.Millisecond,
		Metrics: telemetry.NewRegistry(telemetry.Config{}), AccessLog: telemetry.NewAccessLog(writer, telemetry.Plain, nil),
		Logger: slog.New(slog.NewTextHandler(m.logs, nil)), ResponseBaggage: true,
	}
	if change != nil {
		change(&cfg)
	}
	if n.proxy, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(uintptr(kern.ExemptFD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	setup := zds.Setup{AppPortMin: kern.AppPorts().First, AppPortMax: kern.AppPorts().Last, Exempt: zds.NewFile(fd)}
	setup.Mark, setup.Mask = kern.Mark()
	if err := n.proxy.SetupNode(setup); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{certs.Run, writer.Run, n.proxy.Run} {
		wg.Go(func() { f(ctx) })
	}
	n.stop = func() { stop(); wg.Wait() }
	t.Cleanup(func() {
		n.stop()
		netnstest.Must(t, kern.Close(), redirect.Unload(pins))
	})
	m.nodes[name] = n
}

// pod makes a pod on a node; it is not captured yet.
func (m *mesh) pod(name, node, v4, v6 string) *meshPod {
	m.t.Helper()
	p := &meshPod{name: name, node: node, ns: "shop", sa: name + "-sa", v4: netip.MustParseAddr(v4), v6: netip.MustParseAddr(v6)}
	p.space = m.router.Pod(v4, v6)
	return p
}

// capture enrols pods and tells all nodes of them.
func (m *mesh) capture(pods ...*meshPod) {
	m.t.Helper()
	for _, p := range pods {
		n := m.nodes[p.node]
		l, err := redirect.Listen(p.space)
		if err != nil {
			m.t.Fatal(err)
		}
		addrs := []netip.Addr{p.v4, p.v6}
		if err := n.kern.Attach(redirect.Pod{UID: p.name, NS: p.space, Addrs: addrs, Listeners: l}); err != nil {
			m.t.Fatal(err)
		}
		dup := func(fd int) *zds.File {
			d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				m.t.Fatal(err)
			}
			return zds.NewFile(d)
		}
		w := &zds.Workload{UID: p.name, Name: p.name, Namespace: p.ns, ServiceAccount: p.sa, Files: zds.Files{
			NetNS: dup(p.space.FD()), Outbound: dup(l.Outbound), Plaintext: dup(l.Plaintext), HBONE: dup(l.HBONE)}}
		if !p.anon {
			w.Addrs = addrs
		}
		l.Close()
		if err := n.proxy.StartPod(m.t.Context(), w); err != nil {
			m.t.Fatal(err)
		}
		w.Files.Close()
		m.tell(&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: p.record()}})
	}
}

func (p *meshPod) record(policies ...string) *workloadpb.Workload {
	return &workloadpb.Workload{
		Uid: "c//Pod/" + p.ns + "/" + p.name, Name: p.name, Namespace: p.ns, ServiceAccount: p.sa, Node: p.node,
		Addresses: [][]byte{p.v4.AsSlice(), p.v6.AsSlice()}, TunnelProtocol: workloadpb.TunnelProtocol_HBONE,
		WorkloadName: p.name, CanonicalName: p.name, CanonicalRevision: "v1", ClusterId: "c", WorkloadType: workloadpb.WorkloadType_POD,
		AuthorizationPolicies: policies,
	}
}

// tell gives all nodes an address.
func (m *mesh) tell(as ...*workloadpb.Address) {
	m.t.Helper()
	for _, n := range m.nodes { // each store owns what it is given
		var up []xds.Resource[workload.Address]
		for _, a := range as {
			name := a.GetWorkload().GetUid()
			if s := a.GetService(); s != nil {
				name = s.Namespace + "/" + s.Hostname
			}
			b, err := proto.Marshal(a)
			if err != nil {
				m.t.Fatal(err)
			}
			v, err := workload.DecodeAddress(name, b)
			if err != nil {
				m.t.Fatal(err)
			}
			up = append(up, xds.Resource[workload.Address]{Name: name, Value: v})
		}
		n.wl.Apply(up, nil)
	}
}

// policy gives all nodes a policy.
func (m *mesh) policy(p *securitypb.Authorization) {
	m.t.Helper()
	v, err := rbac.FromProto(p)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, n := range m.nodes {
		n.pol.Apply([]xds.Resource[*rbac.Policy]{{Name: p.Namespace + "/" + p.Name, Value: v}}, nil)
	}
}

// serve answers every connection to the pod with f.
func (m *mesh) serve(p *meshPod, port int, f func(*net.TCPConn)) {
	m.t.Helper()
	var l net.Listener
	err := p.space.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f(c.(*net.TCPConn))
		}
	}()
}

// dial connects from a pod.
func (m *mesh) dial(p *meshPod, addr string) (c *net.TCPConn, err error) {
	err = p.space.Do(func() error {
		d := net.Dialer{Timeout: 5 * time.Second}
		x, err := d.Dial("tcp", addr)
		if err == nil {
			c = x.(*net.TCPConn)
		}
		return err
	})
	if err == nil {
		m.t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return c, err
}

// tellPeer writes the client's address, then echoes.
func tellPeer(c *net.TCPConn) {
	defer c.Close()
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	fmt.Fprintf(c, "%s\n", host)
	io.Copy(c, c)
	c.CloseWrite()
}

// ask returns the peer address that the server sees, after an echo.
func (m *mesh) ask(p *meshPod, addr string) (string, error) {
	c, err := m.dial(p, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		return "", err
	}
	c.CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	host, echo, _ := strings.Cut(string(b), "\n")
	if echo != "hello" {
		return host, fmt.Errorf("echo %q", echo)
	}
	return host, nil
}

func (m *mesh) wantPeer(p *meshPod, addr, want string) {
	m.t.Helper()
	got, err := m.ask(p, addr)
	if err != nil || got != want {
		m.t.Errorf("from %s to %s: server saw %q, %v; want %q", p.name, addr, got, err, want)
	}
}

func (m *mesh) wantRefused(p *meshPod, addr string) {
	m.t.Helper()
	if got, err := m.ask(p, addr); err == nil {
		m.t.Errorf("from %s to %s: not refused, server saw %q", p.name, addr, got)
	} else if errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, os.ErrDeadlineExceeded) {
		m.t.Errorf("from %s to %s: timed out instead of being refused", p.name, addr)
	}
}

// line waits for a log line with all of these parts.
func (m *mesh) line(parts ...string) string {
	m.t.Helper()
	return m.lineAfter(0, parts...)
}

// lineAfter is line for what was logged behind the first n bytes.
func (m *mesh) lineAfter(n int, parts ...string) string {
	m.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	lines:
		for _, l := range strings.Split(m.logs.String()[n:], "\n") {
			for _, p := range parts {
				if !strings.Contains(l, p) {
					continue lines
				}
			}
			return l
		}
	}
	m.t.Errorf("no log line with %q", parts)
	return ""
}

func TestRootMeshCarriesConnectionsBothWaysAndKeepsTheClientsAddress(t *testing.T) {
	m := newMesh(t, nil)
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n1", "10.99.0.4", "fd99::4")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
	for _, p := range []*meshPod{a, b, c, out} {
		m.serve(p, 8080, tellPeer)
	}
	m.capture(a, b, c)
	m.tell(&workloadpb.Address{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{
		Name: "b", Namespace: "shop", Hostname: "b.shop.svc.cluster.local", Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}},
		Addresses: []*workloadpb.NetworkAddress{{Address: netip.MustParseAddr("10.96.0.1").AsSlice()}},
	}}})
	rec := b.record()
	rec.Services = map[string]*workloadpb.PortList{"shop/b.shop.svc.cluster.local": {}}
	m.tell(&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: rec}})

	t.Run("to a pod of another node, HBONE", func(t *testing.T) {
		m.wantPeer(a, "10.99.0.3:8080", "10.99.0.2")
		m.wantPeer(a, "[fd99::3]:8080", "fd99::2")
		m.line(`direction="outbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/a-sa"`, `dst.identity="spiffe://cluster.local/ns/shop/sa/b-sa"`, "dst.addr=10.99.0.3:15008", "dst.hbone_addr=10.99.0.3:8080")
		m.line(`direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/a-sa"`, "dst.addr=10.99.0.3:15008")
	})
	t.Run("to a service", func(t *testing.T) {
		m.wantPeer(a, "10.96.0.1:80", "10.99.0.2")
		m.line(`dst.service="b.shop.svc.cluster.local"`, `direction="outbound"`)
	})
	t.Run("to a service that is the client itself", func(t *testing.T) { m.wantPeer(b, "10.96.0.1:80", "10.99.0.3") })
	t.Run("inside the node, without a tunnel", func(t *testing.T) {
		m.wantPeer(a, "10.99.0.4:8080", "10.99.0.2")
		m.line(`via="same-node"`, `direction="outbound"`, `dst.workload="c"`)
		m.line(`via="same-node"`, `direction="inbound"`, `dst.workload="c"`)
	})
	t.Run("to a pod outside of the mesh, plain", func(t *testing.T) { m.wantPeer(a, "10.99.0.9:8080", "10.99.0.2") })
	t.Run("from a pod outside of the mesh, plain", func(t *testing.T) { m.wantPeer(out, "10.99.0.3:8080", "10.99.0.9") })
	t.Run("to its own address", func(t *testing.T) { m.wantPeer(a, "10.99.0.2:8080", "10.99.0.2") })
	t.Run("to a closed port, refused", func(t *testing.T) {
		for _, to := range []string{"10.99.0.3:9", "10.99.0.4:9", "10.99.0.9:9"} {
			m.wantRefused(a, to)
		}
		m.wantRefused(out, "10.99.0.3:9")
	})
}

func TestRootMeshMovesBulkDataUnharmed(t *testing.T) {
	m := newMesh(t, nil)
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n1", "10.99.0.4", "fd99::4")
	m.serve(b, 8080, func(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite(); c.Close() })
	m.serve(c, 8080, func(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite(); c.Close() })
	m.capture(a, b, c)
	data := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{7}).Read(data)
	for _, to := range []string{"10.99.0.3:8080", "10.99.0.4:8080"} {
		conn, err := m.dial(a, to)
		if err != nil {
			t.Fatal(err)
		}
		go func() { conn.Write(data); conn.CloseWrite() }()
		h := sha256.New()
		n, err := io.Copy(h, conn)
		if err != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
			t.Errorf("%s: %d bytes came back changed, or %v", to, n, err)
		}
	}
}

func strict(ns string) *securitypb.Authorization {
	return &securitypb.Authorization{Name: "strict", Namespace: ns, Scope: securitypb.Scope_NAMESPACE, Action: securitypb.Action_DENY,
		Rules: []*securitypb.Rule{{Clauses: []*securitypb.Clause{{Matches: []*securitypb.Match{{
			NotPrincipals: []*securitypb.StringMatch{{MatchType: &securitypb.StringMatch_Presence_{Presence: &securitypb.StringMatch_Presence{}}}},
		}}}}}}}
}

func denyPrincipal(id string) *securitypb.Authorization {
	return &securitypb.Authorization{Name: "deny", Namespace: "shop", Scope: securitypb.Scope_NAMESPACE, Action: securitypb.Action_DENY,
		Rules: []*securitypb.Rule{{Clauses: []*securitypb.Clause{{Matches: []*securitypb.Match{{
			Principals: []*securitypb.StringMatch{{MatchType: &securitypb.StringMatch_Exact{Exact: id}}},
		}}}}}}}
}

func TestRootMeshEnforcesPolicyAndCutsLiveConnections(t *testing.T) {
	m := newMesh(t, nil)
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n1", "10.99.0.4", "fd99::4")
	out := m.pod("out", "n2", "10.99.0.9", "fd99::9")
	for _, p := range []*meshPod{a, b, c} {
		m.serve(p, 8080, tellPeer)
	}
	m.capture(a, b, c)
	m.wantPeer(out, "10.99.0.3:8080", "10.99.0.9")
	m.policy(strict("shop"))
	m.wantRefused(out, "10.99.0.3:8080")
	m.wantPeer(a, "10.99.0.3:8080", "10.99.0.2")

	var live []*net.TCPConn
	for _, to := range []string{"10.99.0.3:8080", "10.99.0.4:8080"} {
		conn, err := m.dial(a, to)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(conn, make([]byte, len("10.99.0.2\n")))
		live = append(live, conn)
	}
	kept, err := m.dial(c, "10.99.0.3:8080")
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(kept, make([]byte, len("10.99.0.4\n")))
	m.policy(denyPrincipal("cluster.local/ns/shop/sa/a-sa"))
	start := time.Now()
	for _, conn := range live {
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a now denied connection goes on: %v", err)
		}
	}
	t.Logf("cut after %v", time.Since(start))
	m.line("closed by policy change", "shop/deny")
	m.wantRefused(a, "10.99.0.3:8080")
	m.wantRefused(a, "10.99.0.4:8080")
	io.WriteString(kept, "x")
	if _, err := io.ReadFull(kept, make([]byte, 1)); err != nil {
		t.Errorf("an allowed connection was cut: %v", err)
	}
}

func TestRootMeshRefusesWhatWouldEnterTheProxyTwice(t *testing.T) {
	m := newMesh(t, nil)
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
	m.capture(a, b)
	for _, port := range []string{"15001", "15006", "15008"} { // P5
		for _, host := range []string{"10.99.0.3", "[fd99::3]", "10.99.0.2", "127.0.0.1"} {
			m.wantNoLoop(a, host+":"+port)
		}
		m.wantNoLoop(out, "10.99.0.3:"+port)
	}
}

func TestRootMeshLetsNobodyInBeforeThePoliciesHaveArrived(t *testing.T) {
	synced := make(chan struct{})
	m := newMesh(t, func(c *Config) { c.Synced, c.WorkloadWait = synced, 300*time.Millisecond })
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
	m.serve(b, 8080, tellPeer)
	m.capture(a, b) // the workloads are known, the policies are not
	m.wantRefused(out, "10.99.0.3:8080")
	m.wantRefused(a, "10.99.0.3:8080")
	close(synced)
	m.wantPeer(a, "10.99.0.3:8080", "10.99.0.2")
	m.wantPeer(out, "10.99.0.3:8080", "10.99.0.9")
}

func TestRootMeshFailsClosed(t *testing.T) {
	m := newMesh(t, func(c *Config) { c.WorkloadWait = 200 * time.Millisecond })
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
	m.serve(b, 8080, tellPeer)
	c := m.pod("c", "n1", "10.99.0.4", "fd99::4")
	m.serve(c, 8080, tellPeer)
	m.ca.Fail(errors.New("the CA is down")) // before capture, which asks for certificates ahead of need
	m.capture(a, b, c)
	t.Run("without a certificate", func(t *testing.T) {
		m.wantRefused(a, "10.99.0.3:8080")
		m.line("the CA is down")
	})
	t.Run("but not inside the node, which vouches for both pods", func(t *testing.T) { m.wantPeer(a, "10.99.0.4:8080", "10.99.0.2") })
	t.Run("without the pod's record", func(t *testing.T) {
		for _, n := range m.nodes {
			n.wl.Apply(nil, []string{"c//Pod/shop/b", "c//Pod/shop/a"})
		}
		m.wantRefused(out, "10.99.0.3:8080")
	})
}

// A busy kubelet tells a pod's address late, and with it the control plane's record of the pod.
func TestRootMeshAPodThatTheControlPlaneDoesNotKnowYetIsHeardUnderItsIdentity(t *testing.T) {
	m := newMesh(t, func(c *Config) { c.WorkloadWait = time.Second })
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	c := m.pod("c", "n1", "10.99.0.4", "fd99::4")
	m.serve(b, 8080, tellPeer)
	m.serve(c, 8080, tellPeer)
	m.capture(a, b, c)
	for _, n := range m.nodes {
		n.wl.Apply(nil, []string{"c//Pod/shop/a"})
	}
	m.wantPeer(a, "10.99.0.3:8080", "10.99.0.2")
	m.line(`src.identity="spiffe://cluster.local/ns/shop/sa/a-sa"`, `direction="inbound"`)
	m.wantPeer(a, "10.99.0.4:8080", "10.99.0.2")
}
