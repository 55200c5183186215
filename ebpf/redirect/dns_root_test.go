//go:build linux

package redirect

import (
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// dnsRules are the rules for DNS in a pod's namespace.
func dnsRules(t *testing.T, p *testPod) (out []netlink.Rule) {
	t.Helper()
	h, err := p.ns.Netlink(unix.NETLINK_ROUTE)
	netnstest.Must(t, err)
	defer h.Close()
	for _, f := range families() {
		rules, err := h.RuleList(f)
		netnstest.Must(t, err)
		for _, r := range rules {
			if r.Dport != nil {
				r.Family = f
				out = append(out, r)
			}
		}
	}
	return out
}

func TestRootRulesForDNSAreThereOnlyWhileItIsCaptured(t *testing.T) {
	w := newWorld(t)
	netnstest.Start(t, w.a.ns, exec.Command("sleep", "60")) // as in a pod: Unload finds the namespace by its process
	l, err := Listen(w.a.ns)
	netnstest.Must(t, err)
	defer l.Close()
	d, err := ListenDNS(w.a.ns)
	netnstest.Must(t, err)
	defer d.Close()
	attach := func(d DNSSockets) {
		t.Helper()
		netnstest.Must(t, w.node.Attach(Pod{UID: "a", NS: w.a.ns, Addrs: w.a.addrs(), Listeners: l, DNS: d}))
		if p := w.node.Verify("a"); len(p) > 0 {
			t.Errorf("after Attach: %v", p)
		}
	}
	want := func(n int, when string) {
		t.Helper()
		if got := dnsRules(t, w.a); len(got) != n {
			t.Errorf("%s: %d rules, want %d: %v", when, len(got), n, got)
		}
	}
	attach(DNSSockets{})
	want(0, "attached without DNS")
	attach(d)
	attach(d)
	want(2, "attached with DNS")
	// What others flushed is missed, and made again.
	h, err := w.a.ns.Netlink(unix.NETLINK_ROUTE)
	netnstest.Must(t, err)
	defer h.Close()
	r := w.node.cfg.routing()
	netnstest.Must(t, h.RuleDel(r.dnsRule(unix.AF_INET)))
	if p := w.node.Verify("a"); len(p) != 1 {
		t.Errorf("one rule deleted: %v", p)
	}
	attach(d)
	want(2, "repaired")
	attach(DNSSockets{})
	want(0, "attached without DNS again")
	attach(d)
	netnstest.Must(t, w.node.Detach("a"))
	want(0, "detached")
	attach(d)
	netnstest.Must(t, w.node.Close(), Unload(w.pinDir))
	want(0, "unloaded")
	// Sockets that are gone are missed too.
	w.open()
	attach(d)
	netnstest.Must(t, d.Close())
	if p := w.node.Verify("a"); len(p) == 0 {
		t.Error("sockets closed: no problem")
	}
}
