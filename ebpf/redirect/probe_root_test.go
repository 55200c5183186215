//go:build linux

package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// dialerVar has the test binary dial what it is told: a process of its own, such as a kubelet.
const dialerVar = "AMBIT_TEST_DIALER"

func TestMain(m *testing.M) {
	if os.Getenv(dialerVar) != "" {
		dialer(os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// dialer connects from the first to the second address of each line, exchanges some bytes, resets the connection, and
// says how that went.
func dialer(in io.Reader) {
	for s := bufio.NewScanner(in); s.Scan(); {
		from, to, _ := strings.Cut(s.Text(), " ")
		if err := dialFrom(from, to); err != nil {
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println("ok")
		}
	}
}

func dialFrom(from, to string) error {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from)), Timeout: patience}
	c, err := d.Dial("tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	c.(*net.TCPConn).SetLinger(0) // the port is free at once
	return echo(c)
}

// process is a process in the node's namespace that dials.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

func (w *world) process(t *testing.T, name string) *process {
	t.Helper()
	exe, err := os.Executable()
	netnstest.Must(t, err)
	path := filepath.Join(t.TempDir(), name)
	netnstest.Must(t, os.Symlink(exe, path))
	p := &process{t: t, cmd: exec.Command(path)}
	p.cmd.Env = append(os.Environ(), dialerVar+"=1")
	in, err := p.cmd.StdinPipe()
	netnstest.Must(t, err)
	out, err := p.cmd.StdoutPipe()
	netnstest.Must(t, err)
	p.in, p.out = in, bufio.NewScanner(out)
	netnstest.Start(t, w.router.NS, p.cmd)
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) dial(from, to string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, from, to); err != nil {
		p.t.Fatal(err)
	}
	if !p.out.Scan() {
		p.t.Fatalf("process %d ended", p.pid())
	}
	if got := p.out.Text(); got != "ok" {
		p.t.Fatalf("connection of process %d from %s to %s: %s", p.pid(), from, to, got)
	}
}

const (
	node4 = "10.77.0.1"
	node6 = "fd77::1"
)

// newProbeWorld is a world whose router is the node, with addresses of its own.
func newProbeWorld(t *testing.T, probes Probes) *world {
	t.Helper()
	w := newWorldWith(t, probes)
	netnstest.Must(t,
		w.router.NS.AddAddr("lo", netip.MustParsePrefix(node4+"/32")), w.router.NS.AddAddr("lo", netip.MustParsePrefix(node6+"/128")))
	w.b.capture()
	return w
}

// direct checks that b's application gets connections of a process straight from the node, and through that its proxy none.
func (w *world) direct(p *process) {
	p.t.Helper()
	before := len(w.b.proxy.connections())
	for from, to := range map[string]string{node4: w.b.at4(8080), node6: w.b.at6(8080)} {
		p.dial(net.JoinHostPort(from, "0"), to)
		peers := w.b.app.clients()
		if got := peers[len(peers)-1].Addr().String(); got != from {
			p.t.Errorf("application sees client %s, want %s", got, from)
		}
	}
	if got := w.b.proxy.connections()[before:]; len(got) != 0 {
		p.t.Errorf("proxy saw %v", got)
	}
}

// captured checks that connections of a process from the node's addresses come to b's proxy.
func (w *world) captured(p *process) {
	p.t.Helper()
	for from, to := range map[string]string{node4: w.b.at4(8080), node6: w.b.at6(8080)} {
		before := len(w.b.proxy.connections())
		p.dial(net.JoinHostPort(from, "0"), to)
		if got := len(w.b.proxy.connections()); got != before+1 {
			p.t.Errorf("connection from %s to %s: proxy saw %d", from, to, got-before)
			continue
		}
		if s := w.b.proxy.wantLast("plaintext", to); s.peer.Addr().String() != from {
			p.t.Errorf("proxy saw client %v, want %s", s.peer, from)
		}
	}
}

func (w *world) setKubelet(t *testing.T, pid int, want string) {
	t.Helper()
	if how, err := w.node.SetKubelet(pid); err != nil || how != want {
		t.Fatalf("kubelet is recognised by %q, %v, want %q", how, err, want)
	}
}

func TestRootProbesOfTheKubeletReachTheApplication(t *testing.T) {
	w := newProbeWorld(t, ProbesOfKubelet)
	kubelet, other := w.process(t, "kubelet"), w.process(t, "kubelet")
	w.captured(kubelet)
	w.setKubelet(t, kubelet.pid(), ByProcess)
	w.direct(kubelet)
	w.captured(other)
	// Its other connections are nobody's business.
	kubelet.dial(net.JoinHostPort(node4, "0"), w.c.at4(8080))
	// Also when the proxy is away: a pod that cannot be asked would be restarted.
	w.b.proxy.kill()
	w.direct(kubelet)
	if err := w.c.fetch(w.b.at4(8080), nil); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect without proxy: %v, want ECONNREFUSED", err)
	}
}

func TestRootTheMeshsOwnPortIsNoProbe(t *testing.T) {
	w := newProbeWorld(t, ProbesOfKubelet)
	kubelet := w.process(t, "kubelet")
	w.setKubelet(t, kubelet.pid(), ByProcess)
	if _, err := fmt.Fprintln(kubelet.in, net.JoinHostPort(node4, "0"), w.b.at4(15008)); err != nil || !kubelet.out.Scan() {
		t.Fatal("kubelet ended", err)
	}
	w.b.proxy.wantLast("hbone", w.b.at4(15008))
}

func TestRootAKubeletOfAnotherNodeOfTheKernelIsNone(t *testing.T) {
	w := newWorldWith(t, "") // the node is the test's own namespace
	netnstest.Must(t, w.node.Close())
	w.node = nil
	n, err := Open(Config{PinDir: w.pinDir, Probes: ProbesOfKubelet})
	netnstest.Must(t, err)
	t.Cleanup(func() { netnstest.Must(t, n.Close()) })
	w.node = n
	netnstest.Must(t,
		w.router.NS.AddAddr("lo", netip.MustParsePrefix(node4+"/32")), w.router.NS.AddAddr("lo", netip.MustParsePrefix(node6+"/128")))
	w.b.capture()
	kubelet := w.process(t, "kubelet")
	w.setKubelet(t, kubelet.pid(), ByProcess)
	w.captured(kubelet)
}

func TestRootAnotherKubeletTakesThePlaceOfTheFirst(t *testing.T) {
	w := newProbeWorld(t, ProbesOfKubelet)
	first, second := w.process(t, "kubelet"), w.process(t, "kubelet")
	w.setKubelet(t, first.pid(), ByProcess)
	w.direct(first)
	w.setKubelet(t, 0, "")
	w.captured(first)
	w.setKubelet(t, second.pid(), ByProcess)
	w.captured(first)
	w.direct(second)
	if _, err := w.node.SetKubelet(1 << 30); err == nil || !strings.Contains(err.Error(), "process 1073741824") {
		t.Errorf("a process that is not: %v", err)
	}
	w.captured(second) // after an error nobody is the kubelet
}

// newCgroup makes a cgroup v2; join moves a process into it. It is removed when the processes that the test starts later have
// ended.
func newCgroup(t *testing.T, name string) (join func(pid int)) {
	t.Helper()
	root, err := openCgroup("")
	netnstest.Must(t, err)
	t.Cleanup(func() { root.Close() })
	dir := filepath.Join(fdPath(root), fmt.Sprintf("ambit-test-%d-%s", os.Getpid(), name))
	netnstest.Must(t, os.MkdirAll(dir, 0o755))
	t.Cleanup(func() {
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // its processes are ending
			err := os.Remove(dir)
			if err == nil || errors.Is(err, os.ErrNotExist) {
				return
			}
			if time.Now().After(end) {
				t.Error(err)
				return
			}
		}
	})
	return func(pid int) {
		t.Helper()
		netnstest.Must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
	}
}

func TestRootAKubeletWithACgroupOfItsOwnIsKnownByThat(t *testing.T) {
	w := newProbeWorld(t, ProbesOfKubelet)
	join := newCgroup(t, "kubelet")
	kubelet, other := w.process(t, "kubelet"), w.process(t, "kubelet")
	w.setKubelet(t, kubelet.pid(), ByProcess)
	join(kubelet.pid())
	w.setKubelet(t, kubelet.pid(), ByCgroup)
	w.direct(kubelet)
	w.captured(other)
	// With a stranger in it a cgroup says nothing.
	join(other.pid())
	w.setKubelet(t, kubelet.pid(), ByProcess)
	w.direct(kubelet)
	w.captured(other)
}

func TestRootATupleIsWorthNothingAfterTheKubeletsConnection(t *testing.T) {
	w := newProbeWorld(t, ProbesOfKubelet)
	kubelet, other := w.process(t, "kubelet"), w.process(t, "other")
	w.setKubelet(t, kubelet.pid(), ByProcess)
	for from, to := range map[string]string{node4 + ":39001": w.b.at4(8080), "[" + node6 + "]:39001": w.b.at6(8080)} {
		before := len(w.b.proxy.connections())
		kubelet.dial(from, to)
		if got := len(w.b.proxy.connections()); got != before {
			t.Fatal("the kubelet's probe was captured")
		}
		other.dial(from, to)
		if got := len(w.b.proxy.connections()); got != before+1 {
			t.Errorf("proxy saw %d connections of another process that used %s again", got-before, from)
		}
	}
	var k probeTuple
	var v uint64
	for i := w.node.probes.Iterate(); i.Next(&k, &v); {
		t.Errorf("left of closed connections: %+v", k)
	}
}

func TestRootAnOldTupleIsWorthNothing(t *testing.T) {
	w := newProbeWorld(t, ProbesOfKubelet)
	other := w.process(t, "other")
	key := probeTuple{NodePort: 39002, PodPort: 8080}
	copy(key.Node.Word[:], words([]netip.Addr{netip.MustParseAddr(node4)})[0].Word[:])
	copy(key.Pod.Word[:], words([]netip.Addr{netip.MustParseAddr(w.b.v4)})[0].Word[:])
	for age, want := range map[time.Duration]int{0: 0, 6 * time.Second: 1} {
		var ts unix.Timespec
		netnstest.Must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
		netnstest.Must(t, w.node.probes.Put(key, uint64(ts.Nano())-uint64(age)))
		before := len(w.b.proxy.connections())
		other.dial(node4+":39002", w.b.at4(8080))
		if got := len(w.b.proxy.connections()) - before; got != want {
			t.Errorf("proxy saw %d connections with a tuple of %v ago, want %d", got, age, want)
		}
	}
}

func TestRootAForwardedClientWithTheNodesAddressIsCaptured(t *testing.T) {
	netnstest.RequireRoot(t)
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("needs iptables to translate addresses; test/kube has the same with kube-proxy")
	}
	w := newProbeWorld(t, ProbesOfKubelet)
	kubelet := w.process(t, "kubelet")
	w.setKubelet(t, kubelet.pid(), ByProcess)
	netnstest.Output(t, w.router.NS, "iptables", "-t", "nat", "-A", "POSTROUTING", "-s", w.c.v4, "-j", "SNAT", "--to-source", node4)
	w.c.mustFetch(w.b.at4(8080), nil)
	if s := w.b.proxy.wantLast("plaintext", w.b.at4(8080)); s.peer.Addr().String() != node4 {
		t.Errorf("proxy saw client %v, want the node", s.peer)
	}
	w.direct(kubelet)
}

func TestRootRecognitionOfTheKubeletSurvivesARestartAndEndsWithTheNode(t *testing.T) {
	w := newProbeWorld(t, ProbesOfKubelet)
	kubelet := w.process(t, "kubelet")
	w.setKubelet(t, kubelet.pid(), ByProcess)
	netnstest.Must(t, w.node.Close())
	w.direct(kubelet)
	w.open()
	w.direct(kubelet) // before it is named again
	w.setKubelet(t, kubelet.pid(), ByProcess)
	w.direct(kubelet)
	netnstest.Must(t, w.node.Close())
	w.probes = ProbesCaptured
	w.open()
	w.captured(kubelet)
	if _, err := w.node.SetKubelet(kubelet.pid()); err == nil {
		t.Error("kubelet is recognised although it is not wanted")
	}
	netnstest.Must(t, w.node.Close())
	w.probes = ProbesOfKubelet
	w.open()
	w.captured(kubelet)
	w.setKubelet(t, kubelet.pid(), ByProcess)
	w.direct(kubelet)
	o := objectsOf(t, w.pinDir)
	if len(o.links) != 2+3+1 {
		t.Errorf("links: %v", o.links)
	}
	netnstest.Must(t, w.node.Close())
	w.b.proxy.close()
	netnstest.Must(t, Unload(w.pinDir))
	w.b.eventually("links, programs and maps are gone", func() bool { return len(o.left()) == 0 })
}

func TestRootProbesByAddressGoToTheirPortsOnly(t *testing.T) {
	w := newProbeWorld(t, ProbesByAddress)
	serve(t, w.b.ns, 9090, nil)
	p := w.process(t, "kubelet")
	w.captured(p)
	// The kernel chooses the source of the kubelet's connections by the route.
	for to, from := range map[string]string{w.b.v4 + "/32": node4, w.b.v6 + "/128": node6} {
		netnstest.Must(t, w.router.NS.AddRoute(netns.Route{Dst: netip.MustParsePrefix(to), Dev: "pod2", Src: netip.MustParseAddr(from)}))
	}
	w.b.attachPod(Pod{ProbePorts: []uint16{8080}})
	w.direct(p)
	before := len(w.b.proxy.connections())
	p.dial(net.JoinHostPort(node4, "0"), w.b.at4(9090))
	if got := len(w.b.proxy.connections()); got != before+1 {
		t.Error("a port without probe is not captured")
	}
	w.c.mustFetch(w.b.at4(8080), nil)
	w.b.proxy.wantLast("plaintext", w.b.at4(8080))
	if problems := w.node.Verify("b"); len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
}
