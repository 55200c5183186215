package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netNS is an open network namespace.
type netNS struct {
	name string
	f    *os.File
}

func openNS(name string) (*netNS, error) {
	f, err := os.Open(filepath.Join(netnsDir, name))
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &netNS{name, f}, nil
}

func (n *netNS) Close() error { return n.f.Close() }
func (n *netNS) FD() int      { return int(n.f.Fd()) }

// Do runs f on a thread of its own inside of the namespace; the thread ends with f.
func (n *netNS) Do(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		errc <- f()
	}()
	return <-errc
}

func createNS(name string) (*netNS, error) {
	if err := prepareNetnsDir(); err != nil {
		return nil, err
	}
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create network namespace: %w", err)
	}
	f.Close()
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			errc <- err
			return
		}
		errc <- unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	}()
	if err := <-errc; err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	return openNS(name)
}

// prepareNetnsDir makes /run/netns a shared mount as iproute2 does, so that an unmount reaches other mount namespaces.
func prepareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", netnsDir, err)
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", netnsDir, err)
		}
		err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}

func deleteNS(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}

// sysctl writes net/... settings of a namespace.
func (n *netNS) sysctl(values map[string]string) error {
	return n.Do(func() error {
		for k, v := range values {
			// /proc/sys/net shows the namespace of the thread that opens it.
			if err := os.WriteFile("/proc/sys/net/"+k, []byte(v), 0); err != nil {
				return fmt.Errorf("set net/%s: %w", k, err)
			}
		}
		return nil
	})
}

func (n *netNS) handle() (*netlink.Handle, error) {
	var h *netlink.Handle
	err := n.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

// makeVeth makes a pair of interfaces, a in n and b in peer, both up.
func (n *netNS) makeVeth(a string, peer *netNS, b string) error {
	h, err := n.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: b, PeerNamespace: netlink.NsFd(peer.FD())}
	if err := h.LinkAdd(v); err != nil {
		return fmt.Errorf("create link %s: %w", a, err)
	}
	return errors.Join(n.up(a), peer.up(b))
}

func (n *netNS) up(link string) error {
	return n.withLink(link, func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkSetUp(l)
	})
}

func (n *netNS) withLink(name string, f func(*netlink.Handle, netlink.Link) error) error {
	h, err := n.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err == nil {
		err = f(h, l)
	}
	if err != nil {
		return fmt.Errorf("set up link %s: %w", name, err)
	}
	return nil
}

func (n *netNS) deleteLink(name string) error {
	err := n.withLink(name, func(h *netlink.Handle, l netlink.Link) error { return h.LinkDel(l) })
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	return err
}

func (n *netNS) makeBridge(name string) error {
	h, err := n.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("create bridge: %w", err)
	}
	return n.up(name)
}

func (n *netNS) enslave(link, bridge string) error {
	return n.withLink(bridge, func(h *netlink.Handle, br netlink.Link) error {
		l, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		return h.LinkSetMaster(l, br)
	})
}

func (n *netNS) addAddr(link string, p netip.Prefix) error {
	return n.withLink(link, func(h *netlink.Handle, l netlink.Link) error {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if p.Addr().IsLinkLocalUnicast() {
			a.Scope = unix.RT_SCOPE_LINK
		}
		return h.AddrAdd(l, a)
	})
}

// addRoute routes dst to the link, by a gateway if via is valid.
func (n *netNS) addRoute(link string, dst netip.Prefix, via netip.Addr) error {
	return n.withLink(link, func(h *netlink.Handle, l netlink.Link) error {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst)}
		if via.IsValid() {
			r.Gw = via.AsSlice()
			r.Flags = unix.RTNH_F_ONLINK
		} else if dst.Addr().Is4() {
			r.Scope = unix.RT_SCOPE_LINK
		}
		return h.RouteReplace(r)
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
