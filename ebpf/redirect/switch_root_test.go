//go:build linux

package redirect

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

func TestRootInboundIsLeftToAPodThatWantsItSo(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	w.b.attachPod(Pod{BypassInbound: true})
	for i, to := range []string{w.b.at4(8080), w.b.at6(8080)} {
		w.c.mustFetch(to, nil)
		peers := w.b.app.clients()
		if got, want := peers[len(peers)-1].Addr(), w.c.addrs()[i]; got != want {
			t.Errorf("application sees client %v, want %v", got, want)
		}
	}
	if got := w.b.proxy.connections(); len(got) != 0 {
		t.Errorf("proxy saw %v", got)
	}
	c, err := dial(w.c.ns, netip.MustParseAddrPort(w.b.at4(15008)), nil)
	netnstest.Must(t, err)
	c.Close()
	w.b.eventually("HBONE comes to the proxy", func() bool { return len(w.b.proxy.connections()) == 1 })
	w.b.proxy.wantLast("hbone", w.b.at4(15008))
	w.b.mustFetch(w.c.at4(8080), nil)
	w.b.proxy.wantLast("outbound", w.c.at4(8080))
	if problems := w.node.Verify("b"); len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
	w.b.attachPod(Pod{})
	w.c.mustFetch(w.b.at4(8080), nil)
	w.b.proxy.wantLast("plaintext", w.b.at4(8080))
}

// machine is a machine inside of pod a, behind an interface of it.
func (w *world) machine(dev string) *testPod {
	w.t.Helper()
	vm := &testPod{w: w, uid: "vm", ns: netnstest.New(w.t), v4: "192.168.7.2", v6: "fd99::2"}
	netnstest.Link(w.t, w.a.ns, vm.ns, dev, []string{"192.168.7.1/24", "fd99::1/64"}, []string{vm.v4 + "/24", vm.v6 + "/64"})
	netnstest.Must(w.t, w.a.ns.SetSysctls(map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}))
	for to, via := range map[string]string{"0.0.0.0/0": "192.168.7.1", "::/0": "fd99::1"} {
		netnstest.Must(w.t, vm.ns.AddRoute(netns.Route{Dst: netip.MustParsePrefix(to), Dev: dev, Via: netip.MustParseAddr(via)}))
	}
	for to, via := range map[string]string{"192.168.7.0/24": w.a.v4, "fd99::/64": w.a.v6} {
		netnstest.Must(w.t, w.router.NS.AddRoute(netns.Route{Dst: netip.MustParsePrefix(to), Dev: "pod1", Via: netip.MustParseAddr(via)}))
	}
	return vm
}

// wantRerouted checks that what the machine sends is what pod a sends.
func (w *world) wantRerouted(vm *testPod) {
	w.t.Helper()
	for i, to := range []string{w.c.at4(8080), w.c.at6(8080)} {
		vm.mustFetch(to, nil)
		if s := w.a.proxy.wantLast("outbound", to); s.peer.Addr() != vm.addrs()[i] {
			w.t.Errorf("proxy saw client %v, want %v", s.peer, vm.addrs()[i])
		}
		peers := w.c.app.clients()
		if got, want := peers[len(peers)-1].Addr(), w.a.addrs()[i]; got != want {
			w.t.Errorf("destination sees client %v, want %v", got, want)
		}
	}
}

// wantDirect checks that the machine's connections go through the pod as they are.
func (w *world) wantDirect(vm *testPod) {
	w.t.Helper()
	before := len(w.a.proxy.connections())
	for i, to := range []string{w.c.at4(8080), w.c.at6(8080)} {
		vm.mustFetch(to, nil)
		peers := w.c.app.clients()
		if got, want := peers[len(peers)-1].Addr(), vm.addrs()[i]; got != want {
			w.t.Errorf("destination sees client %v, want %v", got, want)
		}
	}
	if got := w.a.proxy.connections()[before:]; len(got) != 0 {
		w.t.Errorf("proxy saw %v", got)
	}
}

func TestRootMachinesInsideAPodAreThePod(t *testing.T) {
	w := newWorld(t)
	vm := w.machine("k6t-eth0")
	before := w.a.state()
	w.a.capture()
	w.wantDirect(vm)
	// eth0 is where strangers come from: it is never taken for a way of the pod's own.
	w.a.attachPod(Pod{Reroute: []string{"eth0", "k6t-eth0", "lo"}})
	w.wantRerouted(vm)
	vm.mustFetch(w.a.at4(8080), nil) // as Istio has it
	w.a.proxy.wantLast("outbound", w.a.at4(8080))
	for _, to := range []string{w.a.at4(8080), w.a.at6(8080)} {
		w.c.mustFetch(to, nil)
		w.a.proxy.wantLast("plaintext", to)
	}
	w.a.mustFetch(w.c.at4(8080), nil)
	w.a.proxy.wantLast("outbound", w.c.at4(8080))
	if problems := w.node.Verify("a"); len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
	// Without the proxy, and without the table, nothing goes past.
	n := len(w.c.app.clients())
	w.a.proxy.stop()
	w.flushTable()
	for _, to := range []string{w.c.at4(8080), w.c.at6(8080)} {
		if err := vm.fetch(to, nil); err == nil || errors.Is(err, errTimeout) {
			t.Errorf("connect without table: %v, want it refused", err)
		}
	}
	if got := len(w.c.app.clients()); got != n {
		t.Errorf("destination saw %d connections past the proxy", got-n)
	}
	if problems := w.node.Verify("a"); len(problems) == 0 {
		t.Error("no problem is found")
	}
	w.a.proxy.run()
	w.a.attachPod(Pod{Reroute: []string{"k6t-eth0"}})
	w.wantRerouted(vm)
	netnstest.Must(t, w.node.Detach("a"))
	w.wantDirect(vm)
	w.a.eventually("nothing is left", func() bool {
		left, err := w.node.Sweep(t.Context())
		return err == nil && left == 0
	})
	if got := w.a.state(); got != before {
		t.Errorf("namespace after:\n%swant\n%s", got, before)
	}
}

// flushTable removes what somebody with NET_ADMIN could.
func (w *world) flushTable() {
	h, err := w.a.ns.Netlink(unix.NETLINK_ROUTE)
	netnstest.Must(w.t, err)
	defer h.Close()
	for _, f := range families() {
		routes, err := h.RouteListFiltered(f, &netlink.Route{Table: DefaultTable}, netlink.RT_FILTER_TABLE)
		netnstest.Must(w.t, err)
		for _, r := range routes {
			netnstest.Must(w.t, h.RouteDel(&r))
		}
	}
}

func TestRootAnInterfaceIsReroutedOnceItIsThere(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.a.attachPod(Pod{Reroute: []string{"br0"}})
	if problems := w.node.Verify("a"); len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
	vm := w.machine("br0")
	if problems := w.node.Verify("a"); !slices.ContainsFunc(problems, func(p Problem) bool { return strings.Contains(string(p), "another build") }) {
		t.Errorf("problems: %v", problems)
	}
	w.a.attachPod(Pod{Reroute: []string{"br0"}})
	w.wantRerouted(vm)
	w.a.attachPod(Pod{})
	w.wantDirect(vm)
	if problems := w.node.Verify("a"); len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
}
