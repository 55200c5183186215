//go:build linux

package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// hold opens a connection and exchanges some bytes on it.
func (p *testPod) hold(to string) net.Conn {
	p.w.t.Helper()
	c, err := dial(p.ns, netip.MustParseAddrPort(to), nil)
	netnstest.Must(p.w.t, err)
	p.w.t.Cleanup(func() { c.Close() })
	netnstest.Must(p.w.t, echo(c))
	return c
}

func TestRootOpenConnectionsAreUndisturbedByEnrolment(t *testing.T) {
	w := newWorld(t)
	var conns []net.Conn
	for _, to := range []string{w.c.at4(8080), w.c.at6(8080)} {
		conns = append(conns, w.a.hold(to))
	}
	for _, to := range []string{w.a.at4(8080), w.a.at6(8080)} {
		conns = append(conns, w.c.hold(to))
	}
	w.a.capture()
	for i, c := range conns {
		if err := echo(c); err != nil {
			t.Errorf("connection %d broke: %v", i, err)
		}
	}
	if n := len(w.a.proxy.connections()); n != 0 {
		t.Errorf("proxy saw %d connections that were open before", n)
	}
}

func TestRootASocketMadeBeforeEnrolmentIsCapturedWhenItConnects(t *testing.T) {
	w := newWorld(t)
	fd, err := w.a.ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	netnstest.Must(t, err)
	defer unix.Close(fd)
	w.a.capture()
	netnstest.Must(t, connect(fd, netip.MustParseAddrPort(w.c.at4(8080))))
	_, err = unix.Write(fd, []byte("x"))
	netnstest.Must(t, err)
	w.a.eventually("the proxy sees it", func() bool { return len(w.a.proxy.connections()) == 1 })
	w.a.proxy.wantLast("outbound", w.c.at4(8080))
}

// eventually waits for what other goroutines or the kernel do.
func (p *testPod) eventually(what string, done func() bool) {
	p.w.t.Helper()
	for range patience / time.Millisecond {
		if done() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	p.w.t.Fatalf("not so within %v: %s", patience, what)
}

func TestRootOpenConnectionsAreUndisturbedWhenThePodLeaves(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	conns := []net.Conn{w.a.hold(w.c.at4(8080)), w.a.hold(w.c.at6(8080)), w.c.hold(w.a.at4(8080)), w.c.hold(w.a.at6(8080))}
	netnstest.Must(t, w.node.Detach("a"), w.node.Detach("a"))
	n := len(w.a.proxy.connections())
	w.a.mustFetch(w.c.at4(8080), nil)
	w.c.mustFetch(w.a.at6(8080), nil)
	if got := len(w.a.proxy.connections()); got != n {
		t.Errorf("proxy saw %d connections after Detach", got-n)
	}
	for i, c := range conns {
		if done, err := w.node.SweepPod("a"); done || err != nil {
			t.Errorf("sweep with %d open connections: %t, %v", len(conns)-i, done, err)
		}
		if err := echo(c); err != nil {
			t.Errorf("connection %d broke: %v", i, err)
		}
		c.Close()
	}
	w.a.eventually("nothing is left of the pod", func() bool {
		left, err := w.node.Sweep(t.Context())
		netnstest.Must(t, err)
		return left == 0
	})
	if got := w.a.state(); got != w.c.state() {
		t.Errorf("namespace after sweep:\n%swant that of a pod that never was captured:\n%s", got, w.c.state())
	}
	if pods := w.node.Pods(); len(pods) != 0 {
		t.Errorf("pods after sweep: %v", pods)
	}
}

// state describes what redirection changes in a namespace.
func (p *testPod) state() string {
	t := p.w.t
	t.Helper()
	var out string
	h, err := p.ns.Netlink(unix.NETLINK_ROUTE)
	netnstest.Must(t, err)
	defer h.Close()
	for _, f := range families() {
		rules, err := h.RuleList(f)
		netnstest.Must(t, err)
		for _, r := range rules {
			out += fmt.Sprintf("%v mark %#x\n", r, r.Mark)
		}
		routes, err := h.RouteListFiltered(f, &netlink.Route{Table: DefaultTable}, netlink.RT_FILTER_TABLE)
		netnstest.Must(t, err)
		for _, r := range routes {
			out += fmt.Sprintf("%v\n", r)
		}
	}
	for _, key := range sysctls {
		v, err := p.ns.Sysctl(key)
		netnstest.Must(t, err)
		out += key + "=" + v + "\n"
	}
	return out
}

func TestRootADrainingPodCanComeBack(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	c := w.a.hold(w.c.at4(8080))
	netnstest.Must(t, w.node.Detach("a"))
	w.a.attach(w.a.proxy.ls)
	w.a.mustFetch(w.c.at4(8080), nil)
	w.c.mustFetch(w.a.at4(8080), nil)
	w.a.proxy.wantLast("plaintext", w.a.at4(8080))
	netnstest.Must(t, echo(c))
	if done, err := w.node.SweepPod("a"); done || err != nil {
		t.Errorf("sweep of an attached pod: %t, %v", done, err)
	}
	w.wantWell("a")
}

func (w *world) wantWell(uid string) {
	w.t.Helper()
	if p := w.node.Verify(uid); len(p) != 0 {
		w.t.Errorf("pod %s has problems: %q", uid, p)
	}
}

func TestRootSweepEndsAtTheDeadline(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.a.hold(w.c.at4(8080))
	netnstest.Must(t, w.node.Detach("a"))
	w.node.cfg.SweepAfter = 1
	if left, err := w.node.Sweep(t.Context()); left != 0 || err != nil {
		t.Errorf("sweep after the deadline: %d left, %v", left, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.node.Sweep(ctx); err != nil {
		t.Errorf("sweep of nothing: %v", err)
	}
}

func TestRootWithoutItsRuleACapturedPodIsRefusedNotDirect(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	h, err := w.a.ns.Netlink(unix.NETLINK_ROUTE)
	netnstest.Must(t, err)
	defer h.Close()
	r := routing{DefaultMark, DefaultMask, DefaultTable, DefaultPriority}
	netnstest.Must(t, h.RuleDel(&r.rules(unix.AF_INET)[0]), h.RuleDel(&r.rules(unix.AF_INET6)[0]))
	for _, to := range []string{w.c.at4(8080), w.c.at6(8080)} {
		if err := w.a.fetch(to, nil); !errors.Is(err, unix.EACCES) {
			t.Errorf("connect without the rule: %v, want EACCES", err)
		}
	}
	if p := w.node.Verify("a"); len(p) != 2 {
		t.Errorf("problems are %q, want one per family", p)
	}
	w.a.attach(Listeners{})
	w.wantWell("a")
	w.a.mustFetch(w.c.at4(8080), nil)
	w.a.proxy.wantLast("outbound", w.c.at4(8080))
}

func TestRootVerifyFindsWhatAttachRepairs(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.wantWell("a")
	dir := w.node.dir.pod("a")
	for _, x := range []struct {
		name   string
		damage func() error
	}{
		{"sysctl reset", func() error { return w.a.ns.SetSysctl(sysctls[0], "0") }},
		{"table flushed", func() error {
			h, err := w.a.ns.Netlink(unix.NETLINK_ROUTE)
			netnstest.Must(t, err)
			defer h.Close()
			rs, err := h.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: DefaultTable}, netlink.RT_FILTER_TABLE)
			netnstest.Must(t, err)
			return h.RouteDel(&rs[0])
		}},
		{"link unpinned", func() error { return os.Remove(filepath.Join(dir, "link")) }},
		{"enrolment deleted", func() error {
			cookie, err := w.a.ns.Cookie()
			return errors.Join(err, w.node.maps.Enrolled.Delete(cookie))
		}},
		{"address added", func() error { return w.a.ns.AddAddr("eth0", netip.MustParsePrefix("fd77::22/128")) }},
		{"everything unpinned", func() error { return os.RemoveAll(dir) }},
	} {
		netnstest.Must(t, x.damage())
		if p := w.node.Verify("a"); len(p) == 0 {
			t.Errorf("%s: no problem found", x.name)
		}
		w.a.attach(w.a.proxy.ls)
		w.wantWell("a")
		for _, to := range []string{w.c.at4(8080), w.c.at6(8080)} {
			w.a.mustFetch(to, nil)
			w.a.proxy.wantLast("outbound", to)
		}
		w.c.mustFetch(w.a.at4(8080), nil)
		w.a.proxy.wantLast("plaintext", w.a.at4(8080))
	}
	w.a.proxy.kill()
	if p := w.node.Verify("a"); len(p) != 3 {
		t.Errorf("problems without listeners: %q, want 3", p)
	}
}

func TestRootPinsGoOnWithoutTheAgentAndASuccessorTakesOver(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.b.capture()
	held := w.a.hold(w.b.at4(8080))
	netnstest.Must(t, w.node.Close(), w.node.Close())
	if err := w.node.Detach("a"); err == nil {
		t.Error("Detach of a closed node succeeded")
	}
	w.a.mustFetch(w.b.at4(8080), nil)
	w.a.proxy.wantLast("outbound", w.b.at4(8080))
	w.b.proxy.wantLast("plaintext", w.b.at4(8080))

	w.open()
	pods := w.node.Pods()
	if len(pods) != 2 || pods[0].UID != "a" || !pods[0].Attached || pods[0].NS != w.a.ns.ID() || pods[1].UID != "b" {
		t.Fatalf("pods of the earlier process: %+v", pods)
	}
	// Without a namespace at hand it is searched: the test's own descriptor is not in a place where one would look.
	w.a.attach(Listeners{})
	w.b.attach(w.b.proxy.ls)
	w.wantWell("a")
	w.wantWell("b")
	netnstest.Must(t, echo(held))
	w.a.mustFetch(w.b.at6(8080), nil)
	w.b.proxy.wantLast("plaintext", w.b.at6(8080))
}

func TestRootASuccessorDetachesAPodByItsPinsAlone(t *testing.T) {
	w := newWorld(t)
	name := fmt.Sprintf("ambit-test-%d", os.Getpid())
	ns, err := netns.Create(name)
	netnstest.Must(t, err)
	defer func() { netnstest.Must(t, ns.Close(), netns.Delete(name)) }()
	netnstest.Must(t, ns.Up("lo"))
	w.router.Plug(ns, "eth0", "10.77.0.9", "fd77::9")
	p := &testPod{w: w, uid: "named", v4: "10.77.0.9", v6: "fd77::9", ns: ns}
	p.app = serve(t, ns, 8080, nil)
	p.capture()
	netnstest.Must(t, w.node.Close())
	w.open()
	netnstest.Must(t, w.node.Detach("named"))
	p.mustFetch(w.c.at4(8080), nil)
	w.c.mustFetch(p.at4(8080), nil)
	if n := len(p.proxy.connections()); n != 0 {
		t.Errorf("proxy saw %d connections after Detach", n)
	}
	netnstest.Must(t, w.node.Close())
	w.open()
	if done, err := w.node.SweepPod("named"); !done || err != nil {
		t.Errorf("sweep: %t, %v", done, err)
	}
	if got := p.state(); got != w.c.state() {
		t.Errorf("namespace after sweep:\n%s", got)
	}
}

func TestRootProgramsAreUpdatedUnderLoadWithoutAnError(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.b.capture()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := w.a.fetch(w.b.at4(8080), nil); err != nil {
					t.Errorf("connection during update: %v", err)
					return
				}
			}
		}()
	}
	var before link.ID
	for i := range 5 {
		netnstest.Must(t, w.node.Close())
		w.open() // updates the links of the node
		for _, p := range []*testPod{w.a, w.b} {
			st, err := w.node.openPod(p.uid)
			netnstest.Must(t, err)
			st.rec.Build = uint64(i) // as if an earlier build had attached it
			netnstest.Must(t, st.save(), st.Close())
			p.attach(Listeners{})
			w.wantWell(p.uid)
		}
		id := w.linkID("a")
		if before != 0 && id != before {
			t.Errorf("link was made anew: %d, then %d", before, id)
		}
		before = id
	}
	close(stop)
	wg.Wait()
	a, b := len(w.a.proxy.connections()), len(w.b.proxy.connections())
	if a == 0 || a != b {
		t.Errorf("proxies saw %d and %d connections, want the same number", a, b)
	}
}

func (w *world) linkID(uid string) link.ID {
	w.t.Helper()
	l, err := link.LoadPinnedLink(filepath.Join(w.node.dir.pod(uid), "link"), nil)
	netnstest.Must(w.t, err)
	defer l.Close()
	info, err := l.Info()
	netnstest.Must(w.t, err)
	return info.ID
}
