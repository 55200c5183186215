package bed

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A route leads to dst by a gateway, or straight by the device if via is not valid.
type route struct {
	dst netip.Prefix
	via netip.Addr
}

func (r route) netlink(index int) *netlink.Route {
	n := &netlink.Route{LinkIndex: index, Dst: IPNet(r.dst)}
	if r.via.IsValid() {
		n.Gw = r.via.AsSlice()
		n.Flags = unix.RTNH_F_ONLINK
	} else {
		n.Scope = netlink.SCOPE_LINK
	}
	return n
}

// IPNet is p for the netlink library.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// host is the prefix of a alone.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// joinPod wires a pod to its node: a host route on the node, a default route in the pod.
func joinPod(n *Node, p *Pod, gw4, gw6 netip.Addr, dev string) error {
	if err := p.NS.sysctl(map[string]string{"net/ipv6/conf/default/accept_dad": "0"}); err != nil {
		return err
	}
	if err := p.NS.setUp(); err != nil {
		return err
	}
	if err := veth(n.NS, dev, p.NS, "eth0"); err != nil {
		return err
	}
	err := n.NS.device(dev, []netip.Prefix{host(gw4), host(gw6)},
		[]route{{dst: host(p.Addr)}, {dst: host(p.Addr6)}})
	if err != nil {
		return err
	}
	return p.NS.device("eth0", []netip.Prefix{host(p.Addr), host(p.Addr6)}, []route{
		{dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), via: gw4},
		{dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), via: gw6},
	})
}

// joinNodes wires two nodes together and routes each one's pods to the other.
func joinNodes(a, b *Node) error {
	if err := veth(a.NS, linkDev, b.NS, linkDev); err != nil {
		return err
	}
	for _, x := range []struct{ self, peer *Node }{{a, b}, {b, a}} {
		var routes []route
		if len(x.peer.Pods) > 0 {
			p := x.peer.Pods[0]
			routes = []route{{network(p.Addr), x.peer.Addr}, {network(p.Addr6), x.peer.Addr6}}
		}
		on := []netip.Prefix{
			netip.PrefixFrom(x.self.Addr, 24),
			netip.PrefixFrom(x.self.Addr6, 64),
		}
		if err := x.self.NS.device(linkDev, on, routes); err != nil {
			return err
		}
	}
	return nil
}
