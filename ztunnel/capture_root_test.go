package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/capture"
	"github.com/ambit-mesh/ambit/ztunnel/podsock"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

const (
	podIP  = "10.213.7.2"
	peerIP = "10.213.7.1"
	// childVar has the test binary run capture alone, to be killed.
	childVar = "AMBIT_TEST_CAPTURE_DIR"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVar); dir != "" {
		err := RunCapture(context.Background(), testConfig(dir, slog.New(slog.NewTextHandler(os.Stderr, nil))))
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func testConfig(dir string, log *slog.Logger) CaptureConfig {
	return CaptureConfig{Node: "n", RunDir: filepath.Join(dir, "run"), PinDir: filepath.Join(dir, "bpf", "n"), Logger: log}
}

// mesh is a pod namespace with a peer at the other end of its cable, and a node directory.
type mesh struct {
	t         *testing.T
	dir       string
	pod, peer *netns.NS
	podPath   string
	pods      *podsock.Client
	linger    time.Duration
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	netnstest.RequireRoot(t)
	m := &mesh{t: t, dir: t.TempDir()}
	bpf := filepath.Join(m.dir, "bpf")
	if err := os.Mkdir(bpf, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := redirect.Mount(bpf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := redirect.Unload(filepath.Join(bpf, "n")); err != nil {
			t.Error(err)
		}
		if err := unix.Unmount(bpf, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	prefix := fmt.Sprintf("ambit-cap%d-", os.Getpid())
	for name, to := range map[string]**netns.NS{prefix + "pod": &m.pod, prefix + "peer": &m.peer} {
		ns, err := netns.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netnstest.Must(t, ns.Close(), netns.Delete(name)) })
		netnstest.Must(t, ns.Up("lo"))
		*to = ns
	}
	m.podPath = filepath.Join(netns.Dir, prefix+"pod")
	netnstest.Link(t, m.pod, m.peer, "eth0", []string{podIP + "/24"}, []string{peerIP + "/24"})
	netnstest.Must(t, m.pod.AddRoute(netns.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: "eth0", Via: netip.MustParseAddr(peerIP)}))
	m.pods = podsock.NewClient(filepath.Join(m.dir, "run", capture.PodsSocket))
	return m
}

// capture runs capture until stop is called, at the latest when the test ends.
func (m *mesh) capture() (stop func()) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cfg := testConfig(m.dir, testLog(m.t))
	cfg.Linger = m.linger
	go func() { done <- RunCapture(ctx, cfg) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				m.t.Error(err)
			}
		})
	}
	m.t.Cleanup(stop)
	m.await()
	return stop
}

// testLog writes to the test's log.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// await waits until capture answers.
func (m *mesh) await() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := m.pods.List(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			m.t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (m *mesh) spec(ambient bool) *podsock.Pod {
	p := &podsock.Pod{
		UID: "uid-1", Name: "pod", Namespace: "default", ServiceAccount: "sa", Netns: m.podPath,
		Addresses: []netip.Addr{netip.MustParseAddr(podIP)},
	}
	if ambient {
		p.Labels = map[string]string{"istio.io/dataplane-mode": "ambient"}
	}
	return p
}

func (m *mesh) add() {
	m.t.Helper()
	if r, err := m.pods.Add(m.t.Context(), m.spec(true)); err != nil || r.Result != podsock.Captured {
		m.t.Fatalf("got %+v, %v", r, err)
	}
}

// state waits until the pod is in a state.
func (m *mesh) state(want string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	for {
		l, err := m.pods.List(ctx)
		if err != nil {
			m.t.Fatal(err)
		}
		if len(l) == 1 && l[0].State == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// dial connects from a namespace.
func (m *mesh) dial(ns *netns.NS, to string) (net.Conn, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to, 10*time.Second)
		return err
	})
	return c, err
}

// server listens in a namespace and greets who connects.
func (m *mesh) server(ns *netns.NS, at, greeting string) {
	m.t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, greeting)
			c.Close()
		}
	}()
}

// fetch connects from a namespace and reads what is sent.
func (m *mesh) fetch(ns *netns.NS, to string) (string, error) {
	c, err := m.dial(ns, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func (m *mesh) wantFetch(ns *netns.NS, to, want string) {
	m.t.Helper()
	if got, err := m.fetch(ns, to); err != nil || got != want {
		m.t.Fatalf("connection to %s: got %q, %v, want %q", to, got, err, want)
	}
}

// fakeProxy greets every connection with what it can tell of it.
type fakeProxy struct {
	*zds.Tracker
	t    *testing.T
	gate chan struct{} // accept only after it is closed; nil for at once
	hold chan struct{} // unless nil, every connection is announced on it and speaks when it is closed

	mu   sync.Mutex
	pods map[string][]net.Listener
	wg   sync.WaitGroup
}

// proxy runs a fakeProxy until stop is called, at the latest when the test ends.
func (m *mesh) proxy(gate, hold chan struct{}) (p *fakeProxy, stop func()) {
	m.t.Helper()
	p = &fakeProxy{t: m.t, gate: gate, hold: hold, pods: map[string][]net.Listener{}}
	p.Tracker = zds.NewTracker(zds.TrackerConfig{Runner: p, Logger: testLog(m.t), Setup: func(s zds.Setup) error {
		if s.AppPortMin == 0 || s.AppPortMax <= s.AppPortMin || s.Mark == 0 {
			m.t.Errorf("setup %+v", s)
		}
		return s.Exempt.Close()
	}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	c := zds.NewClient(zds.ClientConfig{Path: filepath.Join(m.dir, "run", capture.ZDSSocket), Logger: testLog(m.t)})
	go func() { done <- c.Run(ctx, p) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				m.t.Error(err)
			}
			p.StopAll(false)
			p.wg.Wait()
		})
	}
	m.t.Cleanup(stop)
	for !p.State().Synced {
		time.Sleep(time.Millisecond)
	}
	return p, stop
}

// StartPod implements zds.Runner.
func (p *fakeProxy) StartPod(_ context.Context, w *zds.Workload) error {
	for name, f := range map[string]*zds.File{"out": w.Files.Outbound, "in": w.Files.Plaintext, "hbone": w.Files.HBONE} {
		d, err := f.Dup()
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(d.FD()), name)
		l, err := net.FileListener(file)
		file.Close()
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.pods[w.UID] = append(p.pods[w.UID], l)
		p.mu.Unlock()
		p.wg.Go(func() { p.accept(l, name) })
	}
	return nil
}

func (p *fakeProxy) accept(l net.Listener, name string) {
	if p.gate != nil {
		<-p.gate
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() {
			if p.hold != nil {
				p.hold <- struct{}{}
				<-p.hold
			}
			fmt.Fprintf(c, "%s %s", name, unmapped(c.LocalAddr()))
			c.Close()
		})
	}
}

func unmapped(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// StopPod implements zds.Runner.
func (p *fakeProxy) StopPod(uid string, drain bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.pods[uid] {
		if drain {
			p.takeRest(l)
		}
		l.Close()
	}
	delete(p.pods, uid)
}

func TestRootAPodsConnectionsComeToTheProxyUntilItLeavesTheMesh(t *testing.T) {
	m := newMesh(t)
	m.server(m.pod, podIP+":8080", "app")
	m.server(m.peer, peerIP+":80", "peer")
	m.wantFetch(m.peer, podIP+":8080", "app")
	m.wantFetch(m.pod, peerIP+":80", "peer")
	stop := m.capture()
	m.proxy(nil, nil)
	m.add()
	m.wantFetch(m.pod, peerIP+":80", "out "+peerIP+":80")
	m.wantFetch(m.pod, "192.0.2.1:443", "out 192.0.2.1:443")
	m.wantFetch(m.peer, podIP+":8080", "in "+podIP+":8080")
	m.wantFetch(m.peer, podIP+":15008", "hbone "+podIP+":15008")
	if r, err := m.pods.Update(t.Context(), m.spec(false)); err != nil || r.Result != podsock.Skipped {
		t.Fatalf("got %+v, %v", r, err)
	}
	m.wantFetch(m.peer, podIP+":8080", "app")
	m.wantFetch(m.pod, peerIP+":80", "peer")
	m.add()
	m.wantFetch(m.pod, peerIP+":80", "out "+peerIP+":80")
	if _, err := m.pods.Remove(t.Context(), "uid-1"); err != nil {
		t.Fatal(err)
	}
	m.wantFetch(m.peer, podIP+":8080", "app")
	stop()
}

func TestRootAnOpenConnectionLivesOnWhenThePodLeavesTheMesh(t *testing.T) {
	m := newMesh(t)
	m.capture()
	hold := make(chan struct{})
	m.proxy(nil, hold)
	m.add()
	c, err := m.dial(m.pod, "192.0.2.1:443")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-hold
	if _, err := m.pods.Update(t.Context(), m.spec(false)); err != nil {
		t.Fatal(err)
	}
	m.state("draining")
	close(hold)
	if b, err := io.ReadAll(c); err != nil || string(b) != "out 192.0.2.1:443" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestRootWithoutAProxyAPodIsCapturedAndItsConnectionsWait(t *testing.T) {
	m := newMesh(t)
	m.server(m.pod, podIP+":8080", "app")
	m.capture()
	m.add()
	c, err := m.dial(m.peer, podIP+":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m.proxy(nil, nil)
	if b, err := io.ReadAll(c); err != nil || string(b) != "in "+podIP+":8080" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestRootARestartOfCaptureRefusesNoConnection(t *testing.T) {
	m := newMesh(t)
	stop := m.capture()
	gate := make(chan struct{})
	m.proxy(gate, nil)
	m.add()
	before, err := m.dial(m.pod, peerIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	stop()
	between, err := m.dial(m.pod, peerIP+":81")
	if err != nil {
		t.Fatal(err)
	}
	defer between.Close()
	m.capture()
	m.state("captured")
	after, err := m.dial(m.pod, peerIP+":82")
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	close(gate)
	for c, want := range map[net.Conn]string{before: "80", between: "81", after: "82"} {
		if b, err := io.ReadAll(c); err != nil || string(b) != "out "+peerIP+":"+want {
			t.Errorf("got %q, %v", b, err)
		}
	}
	// The new capture is in charge: the pod can leave and come back.
	m.server(m.peer, peerIP+":80", "peer")
	if _, err := m.pods.Update(t.Context(), m.spec(false)); err != nil {
		t.Fatal(err)
	}
	m.wantFetch(m.pod, peerIP+":80", "peer")
	m.add()
	m.wantFetch(m.pod, peerIP+":80", "out "+peerIP+":80")
}

func TestRootAPodsSwitchesAreObeyedAlsoWhileItRuns(t *testing.T) {
	m := newMesh(t)
	m.server(m.pod, podIP+":8080", "app")
	m.server(m.peer, peerIP+":80", "peer")
	m.capture()
	m.proxy(nil, nil)
	m.add()
	m.wantFetch(m.peer, podIP+":8080", "in "+podIP+":8080")
	for _, c := range []struct{ bypass, want, problem string }{
		{"true", "app", ""},
		{"maybe", "in " + podIP + ":8080", `"maybe" is neither true nor false`},
		{"true", "app", ""},
		{"false", "in " + podIP + ":8080", ""},
	} {
		p := m.spec(true)
		p.Annotations = map[string]string{"ambient.istio.io/bypass-inbound-capture": c.bypass}
		r, err := m.pods.Update(t.Context(), p)
		if err != nil || r.Result != podsock.Captured || !strings.Contains(r.Problem, c.problem) || (c.problem == "") != (r.Problem == "") {
			t.Fatalf("%s: got %+v, %v", c.bypass, r, err)
		}
		m.wantFetch(m.peer, podIP+":8080", c.want)
		m.wantFetch(m.pod, peerIP+":80", "out "+peerIP+":80")
		m.wantFetch(m.peer, podIP+":15008", "hbone "+podIP+":15008")
	}
	list, err := m.pods.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Problem != "" {
		t.Errorf("got %+v, %v", list, err)
	}
}

func TestRootANamespaceThatIsNotThePodsIsRefused(t *testing.T) {
	m := newMesh(t)
	m.capture()
	for name, change := range map[string]func(*podsock.Pod){
		"host":    func(p *podsock.Pod) { p.Netns = "/proc/self/ns/net" },
		"address": func(p *podsock.Pod) { p.Addresses = []netip.Addr{netip.MustParseAddr(peerIP)} },
		"file":    func(p *podsock.Pod) { p.Netns = "/etc/passwd" },
	} {
		p := m.spec(true)
		change(p)
		var e *podsock.Error
		if _, err := m.pods.Add(t.Context(), p); !errors.As(err, &e) || e.Retry {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.add()
}

func TestRootAPodWhoseNamespaceEndsIsForgotten(t *testing.T) {
	m := newMesh(t)
	stop := m.capture()
	m.add()
	stop()
	netnstest.Must(t, netns.Delete(filepath.Base(m.podPath)))
	m.capture()
	if l, err := m.pods.List(t.Context()); err != nil || len(l) != 0 {
		t.Errorf("got %+v, %v", l, err)
	}
}

func TestRootUnloadLetsAllPodsOutAndLeavesNothing(t *testing.T) {
	m := newMesh(t)
	m.server(m.pod, podIP+":8080", "app")
	stop := m.capture()
	m.add()
	cfg := testConfig(m.dir, nil)
	if err := Unload(cfg); err == nil {
		t.Fatal("unloaded under a capture that runs")
	}
	stop()
	for range 2 {
		if err := Unload(cfg); err != nil {
			t.Fatal(err)
		}
	}
	m.wantFetch(m.peer, podIP+":8080", "app")
	if left, err := os.ReadDir(cfg.RunDir); err != nil || len(left) != 1 {
		t.Errorf("left in the run directory: %v, %v", left, err)
	}
	if _, err := os.Stat(cfg.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pin directory: %v", err)
	}
}

func TestRootWhileCaptureIsDeadTheProxyServes(t *testing.T) {
	m := newMesh(t)
	m.server(m.pod, podIP+":8080", "app")
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), childVar+"="+m.dir)
	child.Stderr = t.Output()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Process.Kill()
	m.await()
	_, stopProxy := m.proxy(nil, nil)
	m.add()
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	m.wantFetch(m.pod, peerIP+":80", "out "+peerIP+":80")
	m.wantFetch(m.peer, podIP+":8080", "in "+podIP+":8080")
	// Both dead: refused, never plaintext to the application.
	stopProxy()
	if got, err := m.fetch(m.peer, podIP+":8080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %q, %v", got, err)
	}
	// Capture alone is enough to hold connections again.
	m.capture()
	m.state("captured")
	c, err := m.dial(m.peer, podIP+":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m.proxy(nil, nil)
	if b, err := io.ReadAll(c); err != nil || string(b) != "in "+podIP+":8080" {
		t.Errorf("got %q, %v", b, err)
	}
}
