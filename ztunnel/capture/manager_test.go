package capture

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var podAddr = netip.MustParseAddr("10.0.0.1")

// fakeKernel is a node: namespaces are files, listeners are files too.
type fakeKernel struct {
	mu       sync.Mutex
	t        *testing.T
	calls    []string
	fail     map[string]error // by verb, or by "verb uid"
	inUse    map[zds.FileID]bool
	attached map[string]bool
	draining map[string]bool
	dns      map[string]bool // attached with the sockets for DNS
	bypass   map[string]bool // attached so that connections from outside reach it
	problems []string
}

func newFakeKernel(t *testing.T) *fakeKernel {
	return &fakeKernel{
		t: t, fail: map[string]error{}, inUse: map[zds.FileID]bool{}, attached: map[string]bool{}, draining: map[string]bool{},
		dns: map[string]bool{}, bypass: map[string]bool{},
	}
}

func (k *fakeKernel) call(verb, uid string) error {
	k.calls = append(k.calls, verb+" "+uid)
	if err := k.fail[verb+" "+uid]; err != nil {
		return err
	}
	return k.fail[verb]
}

func (k *fakeKernel) set(verb string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail[verb] = err
}

func (k *fakeKernel) take() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.calls
	k.calls = nil
	return c
}

func (k *fakeKernel) Open(path string) (*zds.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open namespace %q: %w", path, err)
	}
	return zds.NewFile(fd), nil
}

func (k *fakeKernel) Addrs(*zds.File) ([]netip.Addr, error) { return []netip.Addr{podAddr}, nil }

func (k *fakeKernel) Listen(ns *zds.File) (zds.Files, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("listen", ""); err != nil {
		return zds.Files{}, err
	}
	id, err := ns.ID()
	if err != nil {
		return zds.Files{}, err
	}
	if k.inUse[id] {
		return zds.Files{}, fmt.Errorf("bind: %w", ErrInUse)
	}
	return listeners(k.t), nil
}

func (k *fakeKernel) ListenDNS(*zds.File) (zds.Files, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fail["listen dns"]; err != nil {
		return zds.Files{}, err
	}
	l := listeners(k.t)
	l.HBONE.Close()
	return zds.Files{DNS: l.Outbound, DNSStream: l.Plaintext}, nil
}

// listeners returns three files that stand for sockets.
func listeners(t *testing.T) zds.Files {
	var f [3]*zds.File
	for i := range f {
		fd, err := unix.Open("/", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			fd, err = unix.MemfdCreate("listener", unix.MFD_CLOEXEC)
		}
		if err != nil {
			t.Fatal(err)
		}
		f[i] = zds.NewFile(fd)
	}
	return zds.Files{Outbound: f[0], Plaintext: f[1], HBONE: f[2]}
}

func (k *fakeKernel) Attach(p *podsock.Pod, f zds.Files) error {
	uid := p.UID
	k.mu.Lock()
	defer k.mu.Unlock()
	if !f.HasListeners() || f.NetNS.FD() < 0 || f.HBONE.FD() < 0 {
		k.t.Errorf("attach of %s without descriptors", uid)
	}
	if err := k.call("attach", uid); err != nil {
		return err
	}
	k.attached[uid], k.draining[uid], k.problems = true, false, nil
	k.dns[uid], k.bypass[uid] = f.HasDNS(), p.Annotations[annotationBypass] == "true"
	return nil
}

func (k *fakeKernel) Detach(uid string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("detach", uid); err != nil {
		return err
	}
	if k.attached[uid] {
		k.draining[uid] = true
	}
	delete(k.attached, uid)
	return nil
}

func (k *fakeKernel) Swept(_ context.Context, uid string) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.draining[uid], nil
}

func (k *fakeKernel) Remove(uid string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("remove", uid); err != nil {
		return err
	}
	delete(k.attached, uid)
	delete(k.draining, uid)
	return nil
}

func (k *fakeKernel) Verify(string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.problems
}

func (k *fakeKernel) Pinned() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for uid := range k.attached {
		out = append(out, uid)
	}
	return out
}

// node is a Manager on a fakeKernel.
type node struct {
	*Manager
	t   *testing.T
	k   *fakeKernel
	dir string
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, k: newFakeKernel(t), dir: t.TempDir()}
	n.Manager = n.manager()
	t.Cleanup(func() { n.closeFiles() })
	return n
}

func (n *node) manager() *Manager {
	n.t.Helper()
	m, err := New(Config{RunDir: n.dir, Kernel: n.k, ProxyUID: uint32(os.Getuid())})
	if err != nil {
		n.t.Fatal(err)
	}
	return m
}

// netns makes a file that stands for a namespace.
func (n *node) netns(name string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil { // another inode than the one that was there
		n.t.Fatal(err)
	}
	return path
}

func (n *node) pod(uid string) *podsock.Pod {
	return &podsock.Pod{
		UID: uid, Name: uid, Namespace: "default", ServiceAccount: "sa", Netns: n.netns("netns-" + uid),
		Addresses: []netip.Addr{podAddr}, Labels: map[string]string{podsock.LabelMode: podsock.LabelIn},
	}
}

func (n *node) set(p *podsock.Pod) podsock.Result {
	n.t.Helper()
	r, err := n.Set(n.t.Context(), p)
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

func (n *node) want(uid, state string) podsock.State {
	n.t.Helper()
	for _, s := range n.List() {
		if s.UID == uid {
			if s.State != state {
				n.t.Fatalf("pod %s is %s (%s), want %s", uid, s.State, s.Error, state)
			}
			return s
		}
	}
	if state != "" {
		n.t.Fatalf("pod %s is not listed", uid)
	}
	return podsock.State{}
}

func (n *node) wantCalls(calls ...string) {
	n.t.Helper()
	if got := n.k.take(); !slices.Equal(got, calls) {
		n.t.Fatalf("got %q, want %q", got, calls)
	}
}

func TestAPodIsCapturedAndCapturedAgainWithoutHarm(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	if r := n.set(p); r.Result != podsock.Captured {
		t.Errorf("got %+v", r)
	}
	n.set(p)
	short := *p
	short.Netns, short.Addresses = "", nil
	n.set(&short)
	n.wantCalls("listen ", "attach a", "attach a", "attach a")
	n.want("a", stateCaptured)
	w, ok := n.Workload("a")
	if !ok || !w.Files.HasListeners() || w.ServiceAccount != "sa" {
		t.Errorf("the proxy is told %+v, %v", w, ok)
	}
	w.Files.Close()
	if s := n.Stats(); s.Active != 1 || s.Started != 1 {
		t.Errorf("got %+v", s)
	}
}

func TestCaptureOfDNSFollowsThePodsAnnotation(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	for _, c := range []struct {
		annotation string
		want       bool
	}{{"", true}, {"false", false}, {"false", false}, {"true", true}, {"", true}} {
		p.Annotations = map[string]string{annotationDNS: c.annotation}
		n.set(p)
		w, ok := n.Workload("a")
		if !ok || !w.Files.HasListeners() || w.Files.HasDNS() != c.want || n.k.dns["a"] != c.want {
			t.Errorf("annotation %q: the proxy is told %+v, attached %v, want %v", c.annotation, w.Files, n.k.dns["a"], c.want)
		}
		w.Files.Close()
	}
	n.k.set("listen dns", ErrInUse)
	if _, err := n.Set(t.Context(), n.pod("b")); !errors.Is(err, ErrInUse) {
		t.Errorf("port taken: %v", err)
	}
	n.want("b", statePending)
	n.k.set("listen dns", nil)
	n.round(t.Context())
	n.want("b", stateCaptured)
}

// TestPodsAreOpenOnlyWhileTheMeshIsAboutToLeave: a capture that starts again knows nothing of it.
func TestPodsAreOpenOnlyWhileTheMeshIsAboutToLeave(t *testing.T) {
	n := newNode(t)
	n.set(n.pod("a"))
	for _, open := range []bool{true, false, true} {
		if err := n.Open(t.Context(), open); err != nil {
			t.Error(err)
		}
		n.set(n.pod("b"))
		if n.k.bypass["a"] != open || n.k.bypass["b"] != open {
			t.Errorf("open: %v, want %v", n.k.bypass, open)
		}
	}
	n.k.set("attach a", unix.EIO)
	if err := n.Open(t.Context(), true); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
}

func TestAPodThatIsNotOursIsLeftAlone(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	p.HostNetwork = true
	if r := n.set(p); r.Result != podsock.Skipped || r.Reason == "" {
		t.Errorf("got %+v", r)
	}
	n.wantCalls()
	n.want("a", StateSkipped)
}

func TestAPodThatLeavesTheMeshDrains(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	n.set(p)
	p.Labels = nil
	if r := n.set(p); r.Result != podsock.Skipped {
		t.Errorf("got %+v", r)
	}
	n.wantCalls("listen ", "attach a", "detach a")
	n.want("a", stateDraining)
	if got := n.Pods(); len(got) != 0 {
		t.Errorf("a new proxy would be told of %q", got)
	}
	n.round(t.Context())
	n.want("a", stateDraining)
	n.k.mu.Lock()
	n.k.draining["a"] = false
	n.k.mu.Unlock()
	n.round(t.Context())
	n.want("a", StateSkipped)
	if r, err := n.store.load(); len(r) != 0 || err != nil {
		t.Errorf("state remains: %v, %v", r, err)
	}
}

func TestALeaveThatFailsGoesOnLater(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	n.set(p)
	p.Labels = nil
	n.k.set("detach", errors.New("busy"))
	if _, err := n.Set(t.Context(), p); err == nil {
		t.Fatal("no error")
	}
	if s := n.want("a", stateDraining); s.Error == "" {
		t.Error("the failure is not listed")
	}
	n.restart()
	n.want("a", stateDraining)
	n.k.set("detach", nil)
	n.round(t.Context())
	if got := n.k.Pinned(); len(got) != 0 {
		t.Errorf("redirected: %q", got)
	}
}

func TestAPodComesBackWhileItDrains(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	n.set(p)
	out := *p
	out.Labels = nil
	n.set(&out)
	n.set(p)
	n.want("a", stateCaptured)
	n.wantCalls("listen ", "attach a", "detach a", "listen ", "attach a")
}

func TestAPodThatComesBackWaitsForTheProxyToCloseItsListeners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		p := n.pod("a")
		n.k.set("listen", ErrInUse)
		time.AfterFunc(time.Second, func() { n.k.set("listen", nil) })
		n.set(p)
		n.want("a", stateCaptured)
	})
}

func TestARemovedPodLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.set(n.pod("a"))
	if err := n.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(t.Context(), "a"); err != nil {
		t.Errorf("again: %v", err)
	}
	n.wantCalls("listen ", "attach a", "remove a")
	n.want("a", "")
	if s := n.Stats(); s.Active != 0 || s.Stopped != 1 {
		t.Errorf("got %+v", s)
	}
}

func TestAFailedRemovalIsTriedAgain(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	n.set(p)
	n.k.set("remove", errors.New("busy"))
	if err := n.Remove(t.Context(), "a"); err == nil {
		t.Fatal("no error")
	}
	n.k.set("remove", nil)
	if err := os.Remove(p.Netns); err != nil {
		t.Fatal(err)
	}
	n.round(t.Context())
	n.want("a", "")
	if len(n.k.Pinned()) != 0 {
		t.Error("pins remain")
	}
}

func TestANewSandboxReplacesTheOldOne(t *testing.T) {
	n := newNode(t)
	n.set(n.pod("a"))
	n.set(n.pod("a")) // same path, another inode
	n.wantCalls("listen ", "attach a", "remove a", "listen ", "attach a")
	n.want("a", stateCaptured)
}

func TestAPodWhoseNamespaceIsGoneIsForgotten(t *testing.T) {
	n := newNode(t)
	p, q := n.pod("a"), n.pod("b")
	n.set(p)
	n.set(q)
	if err := os.Remove(p.Netns); err != nil {
		t.Fatal(err)
	}
	n.round(t.Context())
	n.want("a", "")
	n.want("b", stateCaptured)
	if got := n.k.Pinned(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("redirected: %q", got)
	}
}

func TestAPathInProcThatIsGoneSaysNothing(t *testing.T) {
	if gone("/host/proc/999999999/ns/net", zds.FileID{}, zds.FileID{}) {
		t.Error("the pod would be let out of the mesh")
	}
}

func TestAPathThatThisContainerDoesNotSeeSaysNothing(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	id, err := statID(p.Netns)
	if err != nil {
		t.Fatal(err)
	}
	dir := dirID(p.Netns)
	for _, c := range []struct {
		name    string
		path    string
		id, dir zds.FileID
		want    bool
	}{
		{"it is there", p.Netns, id, dir, false},
		{"it is another", p.Netns, zds.FileID{Dev: id.Dev, Ino: id.Ino + 1}, dir, true},
		{"it is a file where a namespace was mounted", p.Netns, zds.FileID{Dev: id.Dev + 1, Ino: 1}, dir, false},
		{"it is not there", p.Netns + "x", id, dir, true},
		{"it is not there, in another directory", p.Netns + "x", id, zds.FileID{Dev: dir.Dev, Ino: dir.Ino + 1}, false},
		{"the directory is not there", p.Netns + "x/y", id, dir, false},
	} {
		if got := gone(c.path, c.id, c.dir); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestAPodThatCannotBeCapturedIsReportedAndHarmsNoOther(t *testing.T) {
	n := newNode(t)
	bad := errors.New("no BPF")
	n.k.set("attach bad", bad)
	p := n.pod("bad")
	if _, err := n.Set(t.Context(), p); !errors.Is(err, bad) || isRefusal(err) {
		t.Errorf("got %v", err)
	}
	n.set(n.pod("good"))
	if s := n.want("bad", statePending); !strings.Contains(s.Error, "no BPF") {
		t.Errorf("got %+v", s)
	}
	if s := n.Stats(); s.Active != 1 || s.Pending != 1 {
		t.Errorf("got %+v", s)
	}
	n.k.set("attach bad", nil)
	n.round(t.Context())
	if s := n.want("bad", stateCaptured); s.Error != "" {
		t.Errorf("got %+v", s)
	}
}

func TestWhatCannotSucceedIsRefused(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		name   string
		change func(*podsock.Pod)
	}{
		{"an address that the namespace does not have", func(p *podsock.Pod) { p.Addresses = []netip.Addr{netip.MustParseAddr("10.9.9.9")} }},
		{"no address", func(p *podsock.Pod) { p.Addresses = nil }},
		{"no namespace", func(p *podsock.Pod) { p.Netns = "" }},
		{"a namespace that is not there", func(p *podsock.Pod) { p.Netns += "x" }},
		{"a uid with a line end", func(p *podsock.Pod) { p.UID = "a\n" }},
		{"no uid", func(p *podsock.Pod) { p.UID = "" }},
	} {
		p := n.pod("a")
		c.change(p)
		_ = n.Remove(t.Context(), "a")
		if _, err := n.Set(t.Context(), p); !isRefusal(err) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	n.wantCalls()
	p := n.pod("a")
	p.Labels = nil
	n.set(p)
	n.want("a", StateSkipped)
}

func TestDamageIsRepaired(t *testing.T) {
	n := newNode(t)
	n.set(n.pod("a"))
	n.k.take()
	n.each(t.Context(), n.verify)
	n.wantCalls()
	n.k.problems = []string{"rule is gone"}
	n.each(t.Context(), n.verify)
	n.wantCalls("attach a")
	if s := n.Stats(); s.Repaired != 1 {
		t.Errorf("got %+v", s)
	}
}
