package capture

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// restart ends the Manager as a kill would and starts another.
func (n *node) restart() {
	n.t.Helper()
	n.closeFiles()
	n.k.take()
	n.Manager = n.manager()
	n.recover(n.t.Context())
}

func (n *node) netnsID(p *podsock.Pod) zds.FileID {
	n.t.Helper()
	f, err := n.k.Open(p.Netns)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	id, err := f.ID()
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

func TestARestartWithoutAProxyListensAnew(t *testing.T) {
	n := newNode(t)
	n.set(n.pod("a"))
	n.restart()
	n.wantCalls("listen ", "attach a")
	n.want("a", stateCaptured)
}

func TestARestartTakesListenersBackFromTheProxy(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	n.set(p)
	n.k.inUse[n.netnsID(p)] = true // the proxy has them
	n.restart()
	n.wantCalls("listen ")
	n.want("a", statePending)
	if got := n.Missing(); !slices.Equal(got, []string{"a"}) {
		t.Fatalf("missing: %q", got)
	}
	if w, ok := n.Workload("a"); !ok || w.Files.HasListeners() {
		t.Errorf("a proxy would be told %+v, %v, want to keep it", w, ok)
	}
	other := listeners(t)
	other.NetNS, _ = n.k.Open(n.netns("other"))
	if err := n.Returned("a", other); err == nil {
		t.Error("listeners of another namespace were taken")
	}
	f := listeners(t)
	f.NetNS, _ = n.k.Open(p.Netns)
	if err := n.Returned("a", f); err != nil {
		t.Fatal(err)
	}
	n.round(t.Context())
	n.wantCalls("attach a")
	n.want("a", stateCaptured)
	if got := n.Missing(); len(got) != 0 {
		t.Errorf("missing: %q", got)
	}
}

func TestARestartThatCannotSeeTheNamespaceUsesTheProxys(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	n.set(p)
	id := n.netnsID(p)
	f := listeners(t)
	f.NetNS, _ = n.k.Open(p.Netns)
	moved := filepath.Join(n.dir, "moved")
	if err := os.Rename(p.Netns, moved); err != nil {
		t.Fatal(err)
	}
	r := &record{Pod: *p, NetnsDev: id.Dev, NetnsIno: id.Ino, DirDev: 1, DirIno: 1}
	if err := n.store.save(r); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.want("a", statePending)
	if err := n.Returned("a", f); err != nil {
		t.Fatal(err)
	}
	n.round(t.Context())
	n.round(t.Context())
	n.want("a", stateCaptured)
	n.wantCalls("attach a")
}

func TestARestartForgetsPodsThatWentMeanwhile(t *testing.T) {
	n := newNode(t)
	p, q := n.pod("a"), n.pod("b")
	n.set(p)
	n.set(q)
	if err := os.Remove(p.Netns); err != nil {
		t.Fatal(err)
	}
	n.netns("netns-b") // another namespace under the same name
	n.restart()
	n.want("a", "")
	n.want("b", "")
	if got := n.k.Pinned(); len(got) != 0 {
		t.Errorf("redirected: %q", got)
	}
}

func TestARestartGoesOnDraining(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	n.set(p)
	p.Labels = nil
	n.set(p)
	n.restart()
	n.want("a", stateDraining)
	n.wantCalls("detach a")
}

func TestStateThatCannotBeReadHarmsNoOtherPod(t *testing.T) {
	n := newNode(t)
	p := n.pod("a")
	p.UID = "../ns/a"
	n.set(p)
	if err := os.WriteFile(filepath.Join(n.dir, "pods", "b.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "pods", "c.json"), []byte(`{"pod":{"uid":"x"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.want("../ns/a", stateCaptured)
}

// proxy is the other end of ZDS. It refuses pod b.
type proxy struct {
	*zds.Tracker
	started chan string
}

func newProxy() *proxy {
	p := &proxy{started: make(chan string, 100)}
	p.Tracker = zds.NewTracker(zds.TrackerConfig{Runner: p, Setup: func(s zds.Setup) error { return s.Exempt.Close() }})
	return p
}

func (p *proxy) StartPod(_ context.Context, w *zds.Workload) error {
	p.started <- "start " + w.UID
	if w.UID == "b" {
		return errors.New("port taken")
	}
	return nil
}

func (p *proxy) StopPod(uid string, drain bool) {
	if drain {
		p.started <- "drain " + uid
	} else {
		p.started <- "cut " + uid
	}
}

// background runs f until the test ends or stop is called.
func background(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func TestTheSocketsWorkTogether(t *testing.T) {
	n := newNode(t)
	memfd := listeners(t)
	defer memfd.Close()
	n.zds = zds.NewServer(zds.ServerConfig{Path: filepath.Join(n.dir, ZDSSocket), Source: n.Manager, Setup: zds.Setup{Exempt: memfd.HBONE}, UID: uint32(os.Getuid())})
	stop := background(t, n.Run)
	p := newProxy()
	stopProxy := background(t, func(ctx context.Context) error {
		return zds.NewClient(zds.ClientConfig{Path: filepath.Join(n.dir, ZDSSocket)}).Run(ctx, p)
	})
	defer p.StopAll(false)
	defer stopProxy()
	c := podsock.NewClient(filepath.Join(n.dir, PodsSocket))
	ctx := t.Context()
	pod := n.pod("a")
	for _, err := c.List(ctx); err != nil; _, err = c.List(ctx) { // until the socket is there
		runtime.Gosched()
	}
	if r, err := c.Add(ctx, pod); err != nil || r.Result != podsock.Captured {
		t.Fatalf("got %+v, %v", r, err)
	}
	if got := <-p.started; got != "start a" {
		t.Errorf("got %q", got)
	}
	pod.Labels = nil
	if r, err := c.Update(ctx, pod); err != nil || r.Result != podsock.Skipped {
		t.Errorf("got %+v, %v", r, err)
	}
	if got := <-p.started; got != "drain a" {
		t.Errorf("got %q", got)
	}
	var e *podsock.Error
	if _, err := c.Add(ctx, n.pod("b")); !errors.As(err, &e) || !e.Retry || !strings.Contains(e.Text, "port taken") || e.Status != http.StatusServiceUnavailable {
		t.Errorf("got %+v", err)
	}
	if _, err := c.Add(ctx, &podsock.Pod{UID: "c", Labels: map[string]string{podsock.LabelMode: podsock.LabelIn}}); !errors.As(err, &e) || e.Retry || e.Status != http.StatusUnprocessableEntity {
		t.Errorf("got %+v", err)
	}
	if l, err := c.List(ctx); err != nil || len(l) != 3 || l[1].State != statePending {
		t.Errorf("got %+v, %v", l, err)
	}
	for _, uid := range []string{"a", "b", "nobody"} {
		if r, err := c.Remove(ctx, uid); err != nil || r.Result != podsock.Removed {
			t.Errorf("got %+v, %v", r, err)
		}
	}
	stop()
	if _, err := c.List(ctx); err == nil {
		t.Error("the socket answers after the end")
	}
}
