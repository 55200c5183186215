//go:build linux

// Package netnstest makes network namespaces for tests that need root. Their namespaces have no names, so a test that
// dies leaves nothing behind.
package netnstest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// RequireRoot skips the test unless it runs as root. AMBIT_ROOT_TESTS=off in the environment skips it in any case.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads BPF programs")
	}
	if slices.Contains(os.Environ(), "AMBIT_ROOT_TESTS=off") {
		t.Skip("needs root, and AMBIT_ROOT_TESTS=off says no")
	}
}

// New makes a namespace with lo up, closed at the end of the test.
func New(t testing.TB) *netns.NS {
	t.Helper()
	n, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	// Without duplicate address detection link-local addresses, too, can be used at once.
	Must(t, n.Up("lo"), n.SetSysctls(map[string]string{"net.ipv6.conf.all.accept_dad": "0", "net.ipv6.conf.default.accept_dad": "0"}))
	return n
}

// Must ends the test if one of errs is an error.
func Must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Link connects two namespaces by a pair of interfaces called dev on both ends, with addresses a and b, a list of
// prefixes such as "10.0.0.1/24".
func Link(t testing.TB, a, b *netns.NS, dev string, addrsA, addrsB []string) {
	t.Helper()
	Must(t, a.Veth(dev, b, dev))
	for _, p := range addrsA {
		Must(t, a.AddAddr(dev, netip.MustParsePrefix(p)))
	}
	for _, p := range addrsB {
		Must(t, b.AddAddr(dev, netip.MustParsePrefix(p)))
	}
}

// Router is a namespace that routes between pods, as a node does.
type Router struct {
	NS *netns.NS

	t    testing.TB
	pods int
}

// NewRouter makes a router of both families.
func NewRouter(t testing.TB) *Router {
	t.Helper()
	r := &Router{NS: New(t), t: t}
	Must(t, r.NS.SetSysctls(map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}))
	return r
}

// Pod makes a namespace that is connected to the router by eth0, with the given addresses (one each of a family at most)
// and a default route per family over a link-local gateway, as Calico does.
func (r *Router) Pod(addrs ...string) *netns.NS {
	r.t.Helper()
	pod := New(r.t)
	r.Plug(pod, "eth0", addrs...)
	return pod
}

// Plug connects pod to the router by one more interface. Only an interface called eth0 gets default routes.
func (r *Router) Plug(pod *netns.NS, dev string, addrs ...string) {
	t := r.t
	t.Helper()
	r.pods++
	host := fmt.Sprintf("pod%d", r.pods)
	Must(t, r.NS.Veth(host, pod, dev))
	for _, s := range addrs {
		a := netip.MustParseAddr(s)
		gw, bits, any := "169.254.1.1", 32, "0.0.0.0/0"
		if a.Is6() {
			gw, bits, any = "fe80::1", 128, "::/0"
		}
		via := netip.MustParseAddr(gw)
		Must(t, r.NS.AddAddr(host, netip.PrefixFrom(via, bits)),
			r.NS.AddRoute(netns.Route{Dst: netip.PrefixFrom(a, bits), Dev: host}),
			pod.AddAddr(dev, netip.PrefixFrom(a, bits)))
		if dev == "eth0" {
			Must(t, pod.AddRoute(netns.Route{Dst: netip.MustParsePrefix(any), Dev: dev, Via: via}))
		}
	}
}

// Start starts a command inside of a namespace. It is killed at the end of the test if it still runs.
func Start(t testing.TB, ns *netns.NS, cmd *exec.Cmd) {
	t.Helper()
	Must(t, ns.Do(cmd.Start))
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
		}
	})
}

// Output runs a command inside of a namespace and returns what it wrote to both outputs; the test ends if it fails.
func Output(t testing.TB, ns *netns.NS, name string, args ...string) string {
	t.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
