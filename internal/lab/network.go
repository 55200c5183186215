package lab

import (
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// The plan of addresses. N is the number of a node.
var (
	fabricV4 = netip.MustParsePrefix("172.30.0.0/24") // control plane .2, nodes .(10+N)
	fabricV6 = netip.MustParsePrefix("fd00:172:30::/64")
	podsV4   = netip.MustParsePrefix("10.244.0.0/16") // node N: 10.244.N.0/24
	podsV6   = netip.MustParsePrefix("fd00:10:244::/48")
	// serviceV4 and serviceV6 hold the VIPs.
	serviceV4 = netip.MustParsePrefix("10.96.0.0/16")
	serviceV6 = netip.MustParsePrefix("fd00:10:96::/112")

	// The name server of pods. Nobody is there: what the mesh knows its own DNS proxy answers, and what it does not is refused.
	nameV4 = at(serviceV4, 5)
	nameV6 = at(serviceV6, 5)

	// Gateways are link-local, the same in every pod, as with Calico.
	gatewayV4 = netip.MustParseAddr("169.254.1.1")
	gatewayV6 = netip.MustParseAddr("fe80::1")

	anyV4 = netip.MustParsePrefix("0.0.0.0/0")
	anyV6 = netip.MustParsePrefix("::/0")
)

const controlIndex = 2

// at returns the n-th address of a prefix.
func at(p netip.Prefix, n int) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; n > 0 && i >= 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// addresses hands out addresses of a v4 and a v6 range; not safe for concurrent use (Lab.mu guards it).
type addresses struct {
	ranges []netip.Prefix
	used   map[netip.Addr]bool
	next   int
}

func newAddresses(families string, v4, v6 netip.Prefix) *addresses {
	a := &addresses{used: map[netip.Addr]bool{}, next: 10}
	if families != "ipv6" {
		a.ranges = append(a.ranges, v4)
	}
	if families != "ipv4" {
		a.ranges = append(a.ranges, v6)
	}
	return a
}

// take returns one address of each family, with the same number in each. Numbers are handed out in a circle so that an
// address is not used again soon.
func (a *addresses) take() ([]netip.Addr, error) {
	for range 245 {
		n := a.next
		if a.next++; a.next > 254 {
			a.next = 10
		}
		var out []netip.Addr
		free := true
		for _, r := range a.ranges {
			ip := at(r, n)
			free = free && !a.used[ip]
			out = append(out, ip)
		}
		if free {
			for _, ip := range out {
				a.used[ip] = true
			}
			return out, nil
		}
	}
	return nil, fmt.Errorf("no address left in %v", a.ranges)
}

// claim marks an address that a user chose; false if it is taken or out of the ranges.
func (a *addresses) claim(ip netip.Addr) bool {
	for _, r := range a.ranges {
		if r.Contains(ip) && !a.used[ip] {
			a.used[ip] = true
			return true
		}
	}
	return false
}

func (a *addresses) free(ips []netip.Addr) {
	for _, ip := range ips {
		delete(a.used, ip)
	}
}

// node is a node of the lab.
type node struct {
	name   string
	ns     *netNS
	addrs  []netip.Addr // v4, v6
	podNet []netip.Prefix
	pods   *addresses // guarded by Lab.mu
	vips   *vipTable
	links  int // guarded by Lab.mu: counter behind names of interfaces

	capture, proxy *program // nil without mesh
}

// buildFabric makes the bridge that nodes and control plane are plugged into.
func (l *Lab) buildFabric() error {
	ns, err := createNS(l.paths.fabricNS())
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := ns.SetSysctls(map[string]string{"net/ipv6/conf/all/disable_ipv6": "1"}); err != nil {
		return err
	}
	if err := ns.Bridge("br0"); err != nil {
		return err
	}
	ctl, err := createNS(l.paths.controlNS())
	if err != nil {
		return err
	}
	defer ctl.Close()
	return l.plug(ctl, "control", controlIndex)
}

// plug connects a namespace to the fabric with the n-th addresses.
func (l *Lab) plug(ns *netNS, name string, n int) error {
	if err := ns.SetSysctls(baseSysctls); err != nil {
		return err
	}
	fabric, err := openNS(l.paths.fabricNS())
	if err != nil {
		return err
	}
	defer fabric.Close()
	if err := fabric.Veth(name, ns.NS, "eth0"); err != nil {
		return err
	}
	if err := fabric.Enslave(name, "br0"); err != nil {
		return err
	}
	if err := ns.Up("lo"); err != nil {
		return err
	}
	for _, p := range []netip.Prefix{fabricV4, fabricV6} {
		if err := ns.AddAddr("eth0", netip.PrefixFrom(at(p, n), p.Bits())); err != nil {
			return err
		}
	}
	return nil
}

// baseSysctls hold in every namespace: no waiting for duplicate addresses, no router advertisements, every refusal is told.
var baseSysctls = map[string]string{
	"net/ipv6/conf/all/accept_dad": "0", "net/ipv6/conf/default/accept_dad": "0",
	"net/ipv6/conf/all/accept_ra": "0", "net/ipv6/conf/default/accept_ra": "0",
	"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
	"net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0",
}

func (l *Lab) buildNode(i int) (*node, error) {
	n := &node{name: fmt.Sprintf("node-%d", i)}
	v4 := netip.PrefixFrom(at(podsV4, i<<8), 24)
	v6p := podsV6.Addr().As16()
	v6p[7] = byte(i)
	v6 := netip.PrefixFrom(netip.AddrFrom16(v6p), 64)
	n.podNet = []netip.Prefix{v4, v6}
	n.addrs = []netip.Addr{at(fabricV4, 10+i), at(fabricV6, 10+i)}
	n.pods = newAddresses(l.opts.Families, v4, v6)
	ns, err := createNS(l.paths.nodeNS(n.name))
	if err != nil {
		return nil, err
	}
	n.ns = ns
	if err := l.plug(ns, n.name, 10+i); err != nil {
		return nil, err
	}
	err = ns.SetSysctls(map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"})
	if err != nil {
		return nil, err
	}
	// A route for VIPs lets the node's own sockets reach the output hook, where they are translated.
	for _, p := range []netip.Prefix{serviceV4, serviceV6} {
		if err := ns.AddRoute(netns.Route{Dst: p, Dev: "eth0"}); err != nil {
			return nil, err
		}
	}
	n.vips = &vipTable{ns: ns}
	return n, n.vips.program(nil)
}

// connectNodes routes every node's pods on every other node, and in the control plane.
func (l *Lab) connectNodes() error {
	ctl, err := openNS(l.paths.controlNS())
	if err != nil {
		return err
	}
	defer ctl.Close()
	for _, n := range l.nodes {
		for i, p := range n.podNet {
			if err := ctl.AddRoute(netns.Route{Dst: p, Dev: "eth0", Via: n.addrs[i]}); err != nil {
				return err
			}
			for _, other := range l.nodes {
				if other == n {
					continue
				}
				if err := other.ns.AddRoute(netns.Route{Dst: p, Dev: "eth0", Via: n.addrs[i]}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// plugPod gives a pod's namespace its interface and routes on the node; link is the name of the node's end.
func (n *node) plugPod(ns *netNS, link string, addrs []netip.Addr) error {
	if err := ns.SetSysctls(baseSysctls); err != nil {
		return err
	}
	if err := n.ns.Veth(link, ns.NS, "eth0"); err != nil {
		return err
	}
	if err := ns.Up("lo"); err != nil {
		return err
	}
	for _, a := range addrs {
		gw, all := gatewayV4, anyV4
		if a.Is6() {
			gw, all = gatewayV6, anyV6
		}
		bits := a.BitLen()
		if a.Is6() {
			bits = 64
		}
		if err := n.ns.AddAddr(link, netip.PrefixFrom(gw, bits)); err != nil {
			return err
		}
		if err := ns.AddAddr("eth0", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
		if err := ns.AddRoute(netns.Route{Dst: all, Dev: "eth0", Via: gw}); err != nil {
			return err
		}
		if err := n.ns.AddRoute(netns.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Dev: link}); err != nil {
			return err
		}
	}
	return nil
}
