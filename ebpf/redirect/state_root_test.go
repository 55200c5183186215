//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// objects are the kernel's BPF objects of a pin directory: links, their programs, and the maps of both.
type objects struct {
	links []link.ID
	progs []ebpf.ProgramID
	maps  []ebpf.MapID
}

func objectsOf(t *testing.T, dir string) (o objects) {
	t.Helper()
	netnstest.Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".debug") { // the kernel's own
			return err
		}
		if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
			defer m.Close()
			info, err := m.Info()
			netnstest.Must(t, err)
			id, _ := info.ID()
			o.maps = append(o.maps, id)
			return nil
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("%s is neither map nor link: %w", path, err)
		}
		defer l.Close()
		info, err := l.Info()
		netnstest.Must(t, err)
		o.links, o.progs = append(o.links, info.ID), append(o.progs, info.Program)
		p, err := ebpf.NewProgramFromID(info.Program)
		netnstest.Must(t, err)
		defer p.Close()
		pi, err := p.Info()
		netnstest.Must(t, err)
		ids, _ := pi.MapIDs()
		o.maps = append(o.maps, ids...)
		return nil
	}))
	return o
}

// left returns which of the objects the kernel still has.
func (o objects) left() (out []string) {
	for _, id := range o.links {
		if l, err := link.NewFromID(id); err == nil {
			l.Close()
			out = append(out, fmt.Sprintf("link %d", id))
		}
	}
	for _, id := range o.progs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			p.Close()
			out = append(out, fmt.Sprintf("program %d", id))
		}
	}
	for _, id := range o.maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			out = append(out, fmt.Sprintf("map %d (%v)", id, m))
			m.Close()
		}
	}
	return out
}

func TestRootUnloadLeavesNothing(t *testing.T) {
	w := newWorld(t)
	before := w.c.state()
	w.a.capture()
	w.b.capture()
	w.a.mustFetch(w.b.at4(8080), nil)
	netnstest.Must(t, w.node.Detach("b")) // in the middle of leaving
	o := objectsOf(t, w.pinDir)
	if len(o.links) != 3 || len(o.progs) != 3 || len(o.maps) < 2+2*2+2 {
		t.Fatalf("objects before: %+v", o)
	}
	netnstest.Must(t, w.node.Close())
	w.a.proxy.close()
	w.b.proxy.close()
	// Namespaces without a name are not found by looking: hold them by a name.
	for i, p := range []*testPod{w.a, w.b} {
		defer nameOf(t, p.ns, fmt.Sprintf("ambit-test-%d-%d", os.Getpid(), i))()
	}
	netnstest.Must(t, Unload(w.pinDir), Unload(w.pinDir))
	for _, p := range []*testPod{w.a, w.b} {
		if got := p.state(); got != before {
			t.Errorf("namespace of %s after unload:\n%swant\n%s", p.uid, got, before)
		}
	}
	if _, err := os.Stat(w.pinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pin directory after unload: %v", err)
	}
	if onBPFFS(filepath.Dir(w.pinDir)) {
		t.Error("mount is left")
	}
	w.a.mustFetch(w.b.at4(8080), nil) // direct
	// The kernel frees programs and maps after a grace period.
	w.a.eventually("links, programs and maps are gone", func() bool { return len(o.left()) == 0 })
}

// nameOf gives a namespace a name as `ip netns attach` does, and returns what takes it away.
func nameOf(t *testing.T, ns *netns.NS, name string) func() {
	t.Helper()
	n, err := netns.Create(name)
	netnstest.Must(t, err, n.Close())
	path := filepath.Join(netns.Dir, name)
	netnstest.Must(t, unix.Unmount(path, unix.MNT_DETACH), unix.Mount(ns.Path(), path, "none", unix.MS_BIND, ""))
	return func() { netnstest.Must(t, netns.Delete(name)) }
}

func TestRootNodesOfOneKernelDoNotTouchEachOther(t *testing.T) {
	w := newWorld(t)
	other, err := Open(Config{PinDir: filepath.Join(t.TempDir(), "bpf")})
	netnstest.Must(t, err)
	defer func() { netnstest.Must(t, other.Close(), Unload(string(other.dir))) }()
	w.a.capture()
	w.b.w = &world{t: t, router: w.router, node: other, pinDir: string(other.dir)}
	w.b.capture()
	for _, p := range []*testPod{w.a, w.b} {
		p.mustFetch(w.c.at4(8080), nil)
		p.proxy.wantLast("outbound", w.c.at4(8080))
		if n := len(p.proxy.connections()); n != 1 {
			t.Errorf("proxy of %s saw %d connections, want 1", p.uid, n)
		}
	}
	if pods := w.node.Pods(); len(pods) != 1 || pods[0].UID != "a" {
		t.Errorf("pods of the first node: %v", pods)
	}
	// What one node does to the other's pod does nothing.
	netnstest.Must(t, w.node.Detach("b"), w.node.Remove("b"), w.node.Close(), Unload(w.pinDir))
	w.b.mustFetch(w.c.at6(8080), nil)
	w.b.proxy.wantLast("outbound", w.c.at6(8080))
	w.c.mustFetch(w.b.at4(8080), nil)
	w.b.proxy.wantLast("plaintext", w.b.at4(8080))
	w.open()
}

func TestRootThePodsNamespaceIsNeverTheNodes(t *testing.T) {
	w := newWorld(t)
	own, err := netns.Current()
	netnstest.Must(t, err)
	defer own.Close()
	if err := w.node.Attach(Pod{UID: "x", NS: own}); err == nil {
		t.Error("the node's own namespace was attached")
	}
	if pods := w.node.Pods(); len(pods) != 0 {
		t.Errorf("pods after a refused Attach: %v", pods)
	}
}

func TestRootPodsOfOneFamily(t *testing.T) {
	w := newWorld(t)
	for _, p := range []*testPod{w.pod("four", "10.77.0.14", ""), w.pod("six", "", "fd77::16")} {
		p.capture()
		to, from, other := w.c.at4(8080), p.at4(8080), "[fd77::4]:8080"
		if p.v4 == "" {
			to, from, other = w.c.at6(8080), p.at6(8080), "10.77.0.4:8080"
		}
		p.mustFetch(to, nil)
		p.proxy.wantLast("outbound", to)
		w.c.mustFetch(from, nil)
		p.proxy.wantLast("plaintext", from)
		if err := p.fetch(other, nil); !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("pod %s connects by the other family: %v, want unreachable", p.uid, err)
		}
		w.wantWell(p.uid)
	}
}

func TestRootAPodWithoutIPv6InItsNamespaceIsCaptured(t *testing.T) {
	w := newWorld(t)
	p := &testPod{w: w, uid: "no6", v4: "10.77.0.15"}
	p.ns = netnstest.New(t)
	netnstest.Must(t, p.ns.SetSysctls(map[string]string{"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.lo.disable_ipv6": "1"}))
	w.router.Plug(p.ns, "eth0", p.v4)
	p.app = serve(t, p.ns, 8080, nil)
	p.capture()
	p.mustFetch(w.c.at4(8080), nil)
	p.proxy.wantLast("outbound", w.c.at4(8080))
	w.c.mustFetch(p.at4(8080), nil)
	p.proxy.wantLast("plaintext", p.at4(8080))
	w.wantWell("no6")
}

func TestRootEveryInterfaceHasItsSourceAddress(t *testing.T) {
	w := newWorld(t)
	// A second network that only the pod and another namespace are in.
	peer := &testPod{w: w, uid: "peer", ns: netnstest.New(t), v4: "192.168.5.9", v6: "fd99::9"}
	netnstest.Link(t, w.a.ns, peer.ns, "net1", []string{"192.168.5.2/24", "fd99::2/64"}, []string{"192.168.5.9/24", "fd99::9/64"})
	netnstest.Must(t, w.a.ns.AddRoute(netns.Route{Dst: netip.MustParsePrefix("10.200.0.0/16"), Dev: "net1", Via: netip.MustParseAddr("192.168.5.9")}),
		peer.ns.AddAddr("net1", netip.MustParsePrefix("10.200.0.1/32")))
	peer.app = serve(t, peer.ns, 8080, nil)
	w.a.capture()
	for _, x := range []struct{ to, from string }{
		{"192.168.5.9:8080", "192.168.5.2"}, {"[fd99::9]:8080", "fd99::2"}, {"10.200.0.1:8080", "192.168.5.2"},
		{w.c.at4(8080), w.a.v4}, {w.c.at6(8080), w.a.v6},
	} {
		w.a.mustFetch(x.to, nil)
		if s := w.a.proxy.wantLast("outbound", x.to); s.peer.Addr().String() != x.from {
			t.Errorf("connection to %s comes from %v, want %s", x.to, s.peer, x.from)
		}
	}
	for _, to := range []string{"192.168.5.2:8080", "[fd99::2]:8080"} {
		peer.mustFetch(to, nil)
		w.a.proxy.wantLast("plaintext", to)
		peers := w.a.app.clients()
		if got := peers[len(peers)-1].Addr(); !slices.Contains(peer.addrs(), got) {
			t.Errorf("application sees %v, want the peer", got)
		}
	}
	for _, to := range []string{"192.168.5.2:8080", "[fd99::2]:8080"} {
		n := len(w.a.proxy.connections())
		w.a.mustFetch(to, nil)
		if got := len(w.a.proxy.connections()); got != n {
			t.Errorf("connection to the pod's own %s was captured", to)
		}
	}
	w.wantWell("a")
}

func TestRootASandboxMadeAnewTakesTheOldOnesPlace(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	old, err := w.a.ns.Cookie()
	netnstest.Must(t, err)
	w.a.proxy.kill()
	anew := w.pod("a", "10.77.0.12", "fd77::12")
	anew.capture()
	anew.mustFetch(w.c.at4(8080), nil)
	anew.proxy.wantLast("outbound", w.c.at4(8080))
	var e connectEnrolment
	if err := w.node.maps.Enrolled.Lookup(old, &e); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("old namespace is enrolled still: %v", err)
	}
	if pods := w.node.Pods(); len(pods) != 1 || pods[0].NS != anew.ns.ID() {
		t.Errorf("pods: %+v", pods)
	}
	netnstest.Must(t, w.node.Remove("a"), w.node.Remove("a"))
	if pods := w.node.Pods(); len(pods) != 0 {
		t.Errorf("pods after Remove: %+v", pods)
	}
}

func TestRootWhatACrashLeavesIsCompleted(t *testing.T) {
	w := newWorld(t)
	for _, x := range []struct {
		name  string
		crash func() error
	}{
		{"pins staged and linked, not published", func() error {
			dir, err := w.node.dir.stage(stagedPod + escape("a"))
			netnstest.Must(t, err)
			objs, err := w.node.loadProgram(constants{own: w.a.addrs()}, nil)
			netnstest.Must(t, err)
			defer objs.Close()
			l, err := link.AttachNetNs(w.a.ns.FD(), objs.Lookup)
			netnstest.Must(t, err)
			defer l.Close()
			return errors.Join(l.Pin(dir+"/link"), objs.Record.Pin(dir+"/record"))
		}},
		{"record without anything else done", func() error {
			cookie, err := w.a.ns.Cookie()
			netnstest.Must(t, err)
			st, err := w.node.createPod("a", cookie, w.a.ns.ID())
			return errors.Join(err, st.Close())
		}},
		{"linked but not enrolled", func() error {
			w.a.capture()
			cookie, err := w.a.ns.Cookie()
			w.a.proxy.kill()
			return errors.Join(err, w.node.maps.Enrolled.Delete(cookie))
		}},
		{"detach noted but not done", func() error {
			w.a.capture()
			w.a.proxy.kill()
			st, err := w.node.openPod("a")
			netnstest.Must(t, err)
			st.rec.Detached = now()
			return errors.Join(st.save(), st.Close())
		}},
		{"removal in the middle", func() error {
			w.a.capture()
			w.a.proxy.kill()
			netnstest.Must(t, w.node.Detach("a"))
			w.node.cfg.SweepAfter = 1
			st, err := w.node.openPod("a")
			netnstest.Must(t, err, undo(w.a.ns, st), st.Close())
			dir := filepath.Join(w.pinDir, stagedPrefix+stagedPod+"a")
			return errors.Join(os.Rename(w.node.dir.pod("a"), dir), os.Remove(dir+"/record"))
		}},
	} {
		t.Log(x.name)
		netnstest.Must(t, x.crash(), w.node.Close())
		w.open()
		if left, _ := filepath.Glob(filepath.Join(w.pinDir, stagedPrefix+"*")); len(left) != 0 {
			t.Errorf("%s: Open left %v", x.name, left)
		}
		w.a.capture()
		w.a.mustFetch(w.c.at4(8080), nil)
		w.a.proxy.wantLast("outbound", w.c.at4(8080))
		w.c.mustFetch(w.a.at4(8080), nil)
		w.a.proxy.wantLast("plaintext", w.a.at4(8080))
		w.wantWell("a")
		w.a.proxy.kill()
		netnstest.Must(t, w.node.Detach("a"))
		w.node.cfg.SweepAfter = 1
		if done, err := w.node.SweepPod("a"); !done || err != nil {
			t.Errorf("%s: sweep: %t, %v", x.name, done, err)
		}
		if got := w.a.state(); got != w.c.state() {
			t.Errorf("%s: namespace afterwards:\n%s", x.name, got)
		}
	}
}

func TestRootADetachThatACrashInterruptedIsCompletedBySweep(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	st, err := w.node.openPod("a")
	netnstest.Must(t, err)
	st.rec.Detached = now()
	netnstest.Must(t, st.save(), st.Close())
	if left, err := w.node.Sweep(t.Context()); left != 0 || err != nil {
		t.Errorf("sweep: %d left, %v", left, err)
	}
	w.a.mustFetch(w.c.at4(8080), nil)
	w.c.mustFetch(w.a.at4(8080), nil)
	if n := len(w.a.proxy.connections()); n != 0 {
		t.Errorf("proxy saw %d connections", n)
	}
	if done, err := w.node.SweepPod("nobody"); !done || err != nil {
		t.Errorf("sweep of an unknown pod: %t, %v", done, err)
	}
}

func TestRootTheRootOfCgroupsIsFoundOrMounted(t *testing.T) {
	netnstest.RequireRoot(t)
	found, err := openCgroup("")
	netnstest.Must(t, err)
	defer found.Close()
	mounted, err := mountCgroup()
	netnstest.Must(t, err)
	defer mounted.Close()
	if !isRootCgroup(found) || !isRootCgroup(mounted) {
		t.Error("not the root of cgroup v2")
	}
	n, err := Open(Config{PinDir: filepath.Join(t.TempDir(), "bpf"), Cgroup: fdPath(mounted)})
	netnstest.Must(t, err, n.Close(), Unload(string(n.dir)))
}

func TestRootALinkOnAnotherCgroupIsMadeAnew(t *testing.T) {
	w := newWorld(t)
	root, err := openCgroup("")
	netnstest.Must(t, err)
	defer root.Close()
	dir := fmt.Sprintf("%s/ambit-test-%d", fdPath(root), os.Getpid())
	netnstest.Must(t, os.Mkdir(dir, 0o755), w.node.Close())
	n, err := Open(Config{PinDir: w.pinDir, Cgroup: dir})
	netnstest.Must(t, err, n.Close(), os.Remove(dir))
	w.open() // back to the root; the link ended with its cgroup
	w.a.capture()
	w.a.mustFetch(w.c.at4(8080), nil)
	w.a.proxy.wantLast("outbound", w.c.at4(8080))
}

func TestRootChangedMarkMovesAPodsRules(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	netnstest.Must(t, w.node.Close())
	var err error
	w.node, err = Open(Config{PinDir: w.pinDir, Mark: 0x40, Mask: 0x40, Table: 7000, Priority: 700})
	netnstest.Must(t, err)
	w.a.attach(Listeners{})
	w.a.mustFetch(w.c.at4(8080), nil)
	w.a.proxy.wantLast("outbound", w.c.at4(8080))
	w.wantWell("a")
	netnstest.Must(t, w.node.Detach("a"))
	w.a.eventually("swept", func() bool { done, err := w.node.SweepPod("a"); netnstest.Must(t, err); return done })
	if got := w.a.state(); got != w.c.state() {
		t.Errorf("namespace afterwards:\n%s", got)
	}
	netnstest.Must(t, w.node.Close())
}

func TestRootExplainLeavesOtherErrorsAlone(t *testing.T) {
	netnstest.RequireRoot(t)
	err := errors.New("something else")
	if got := explain(err, features); got != err || errors.Is(got, ErrNotSupported) {
		t.Errorf("explain on a kernel that has everything: %v", got)
	}
}

func TestRootOpenMountsNothingWhereItWouldEndWithTheContainer(t *testing.T) {
	netnstest.RequireRoot(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	n, err := Open(Config{PinDir: filepath.Join(dir, "node"), Mounted: true})
	if !errors.Is(err, ErrNotMounted) {
		n.Close()
		t.Fatalf("open where no BPF file system is mounted: %v, want ErrNotMounted", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was left there: %v", err)
	}
	netnstest.Must(t, os.Mkdir(dir, 0o700))
	netnstest.Must(t, Mount(dir))
	defer func() { netnstest.Must(t, unix.Unmount(dir, 0)) }()
	n, err = Open(Config{PinDir: filepath.Join(dir, "node"), Mounted: true})
	netnstest.Must(t, err)
	netnstest.Must(t, n.Close())
	netnstest.Must(t, Unload(filepath.Join(dir, "node")))
}

func TestRootOpenWithoutCapabilitySaysWhich(t *testing.T) {
	netnstest.RequireRoot(t)
	dir, err := makePinDir(filepath.Join(t.TempDir(), "bpf"), true)
	netnstest.Must(t, err)
	defer func() { netnstest.Must(t, Unload(string(dir))) }()
	ns := netnstest.New(t)
	err = ns.Do(func() error { // on a thread that ends
		netnstest.Must(t, dropCapabilities())
		spec, err := loadLookup()
		netnstest.Must(t, err)
		n := &Node{spec: spec}
		return explain(n.tryLookup(), features)
	})
	if !errors.Is(err, unix.EPERM) || errors.Is(err, ErrNotSupported) {
		t.Errorf("load without capabilities: %v, want EPERM", err)
	}
}
