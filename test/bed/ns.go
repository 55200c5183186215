package bed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// nsDir is where named namespaces are.
const nsDir = "/run/netns"

// NS is a named network namespace. Its methods are safe for use by several goroutines.
type NS struct {
	*netns.NS
	name string
}

func createNS(name string) (*NS, error) {
	n, err := netns.Create(name)
	if err != nil {
		return nil, err
	}
	return &NS{NS: n, name: name}, nil
}

// OpenNS opens a named namespace that others made. The caller closes it.
func OpenNS(name string) (*NS, error) {
	n, err := netns.Open(filepath.Join(nsDir, name))
	if err != nil {
		return nil, err
	}
	return &NS{NS: n, name: name}, nil
}

// Name is the namespace's name, File the path it is found at.
func (ns *NS) Name() string { return ns.name }

// File is the path at which the namespace is found.
func (ns *NS) File() string { return filepath.Join(nsDir, ns.name) }

// Dial connects to a numeric address from inside the namespace. It has the shape of http.Transport.DialContext.
func (ns *NS) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Listen listens on a numeric address inside the namespace.
func (ns *NS) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	var l net.Listener
	err := ns.Do(func() (err error) {
		var c net.ListenConfig
		l, err = c.Listen(ctx, network, addr)
		return err
	})
	return l, err
}

// remove deletes the namespace; it lives on as long as a process is in it. It may be called on nil.
func (ns *NS) remove() error {
	if ns == nil {
		return nil
	}
	return errors.Join(ns.Close(), netns.Delete(ns.name))
}

// removeStale deletes the namespaces that begin with prefix and kills the processes left in them.
func removeStale(prefix string) error {
	entries, err := os.ReadDir(nsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if isOurs(e.Name(), prefix) {
			errs = append(errs, killInside(filepath.Join(nsDir, e.Name())), netns.Delete(e.Name()))
		}
	}
	return errors.Join(errs...)
}

// killInside kills every process whose network namespace is the one at path.
func killInside(path string) error {
	ns, err := netns.Open(path)
	if err != nil {
		return nil // a name without a namespace behind it: nothing runs in it
	}
	defer ns.Close()
	procs, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	for _, p := range procs {
		var st unix.Stat_t
		if unix.Stat(p, &st) != nil || (netns.ID{Dev: uint64(st.Dev), Ino: st.Ino}) != ns.ID() {
			continue // gone, or elsewhere
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(p))))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d in %q: %w", pid, path, err)
		}
	}
	return nil
}

// setUp is what nodes and pods have in common. A namespace is born with the machine's congestion control. A bed has
// reno, which without loss acts as Linux's default does and which every namespace may choose: one that paces its sending
// by timers (bbr) would make the timers all that is measured on a link without delay.
func (ns *NS) setUp() error {
	return errors.Join(ns.SetSysctl("net.ipv4.tcp_congestion_control", "reno"), ns.Up("lo"))
}

func (ns *NS) setUpNode() error {
	err := ns.SetSysctls(map[string]string{
		"net.ipv4.ip_forward":             "1",
		"net.ipv4.conf.all.rp_filter":     "0",
		"net.ipv4.conf.default.rp_filter": "0",
		"net.ipv6.conf.all.forwarding":    "1",
	})
	return errors.Join(err, ns.setUp())
}

// join makes a veth pair between two namespaces and gives each end its addresses.
func join(a *NS, aDev string, aAddrs []netip.Prefix, b *NS, bDev string, bAddrs []netip.Prefix) error {
	if err := a.Veth(aDev, b.NS, bDev); err != nil {
		return err
	}
	for _, x := range []struct {
		ns    *NS
		dev   string
		addrs []netip.Prefix
	}{{a, aDev, aAddrs}, {b, bDev, bAddrs}} {
		for _, p := range x.addrs {
			if err := x.ns.AddAddr(x.dev, p); err != nil {
				return fmt.Errorf("add %s to %s: %w", p, x.dev, err)
			}
		}
	}
	return nil
}

// host is the prefix of a alone.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// joinPod wires a pod to its node: host routes on the node, default routes in the pod.
func joinPod(n *Node, p *Pod, gw4, gw6 netip.Addr, dev string) error {
	if err := p.NS.setUp(); err != nil {
		return err
	}
	err := join(n.NS, dev, []netip.Prefix{host(gw4), host(gw6)}, p.NS, "eth0", []netip.Prefix{host(p.Addr), host(p.Addr6)})
	if err != nil {
		return err
	}
	return errors.Join(
		n.NS.AddRoute(netns.Route{Dst: host(p.Addr), Dev: dev}),
		n.NS.AddRoute(netns.Route{Dst: host(p.Addr6), Dev: dev}),
		p.NS.AddRoute(netns.Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Dev: "eth0", Via: gw4}),
		p.NS.AddRoute(netns.Route{Dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Dev: "eth0", Via: gw6}),
	)
}

// joinNodes wires two nodes together and routes each one's pods to the other.
func joinNodes(a, b *Node) error {
	on := func(n *Node) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(n.Addr, 24), netip.PrefixFrom(n.Addr6, 64)}
	}
	if err := join(a.NS, linkDev, on(a), b.NS, linkDev, on(b)); err != nil {
		return err
	}
	for _, x := range []struct{ self, peer *Node }{{a, b}, {b, a}} {
		if len(x.peer.Pods) == 0 {
			continue
		}
		p := x.peer.Pods[0]
		err := errors.Join(
			x.self.NS.AddRoute(netns.Route{Dst: network(p.Addr), Dev: linkDev, Via: x.peer.Addr}),
			x.self.NS.AddRoute(netns.Route{Dst: network(p.Addr6), Dev: linkDev, Via: x.peer.Addr6}),
		)
		if err != nil {
			return err
		}
	}
	return nil
}
