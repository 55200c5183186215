//go:build linux

package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Netlink opens a netlink handle whose sockets are in the namespace. The caller closes it.
func (n *NS) Netlink(families ...int) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := n.Do(func() (err error) {
		h, err = netlink.NewHandleAt(vishnetns.None(), families...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in %v: %w", n, err)
	}
	return h, nil
}

// withLink runs f with a handle and the interface called name.
func (n *NS) withLink(name string, f func(*netlink.Handle, netlink.Link) error) error {
	h, err := n.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %q in %v: %w", name, n, err)
	}
	if err := f(h, l); err != nil {
		return fmt.Errorf("set up interface %q in %v: %w", name, n, err)
	}
	return nil
}

// Veth makes a pair of interfaces, name here and peerName in peer, both up.
func (n *NS) Veth(name string, peer *NS, peerName string) error {
	h, err := n.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(peer.FD())}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("make interfaces %q and %q: %w", name, peerName, err)
	}
	return errors.Join(n.Up(name), peer.Up(peerName))
}

// Bridge makes a bridge, up.
func (n *NS) Bridge(name string) error {
	h, err := n.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make bridge %q: %w", name, err)
	}
	return n.Up(name)
}

// Enslave plugs an interface into a bridge.
func (n *NS) Enslave(name, bridge string) error {
	return n.withLink(bridge, func(h *netlink.Handle, br netlink.Link) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		return h.LinkSetMaster(l, br)
	})
}

// Up sets an interface up.
func (n *NS) Up(name string) error {
	return n.withLink(name, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetUp(l) })
}

// DeleteLink removes an interface (and the other end of a pair). One that does not exist is no error.
func (n *NS) DeleteLink(name string) error {
	err := n.withLink(name, func(h *netlink.Handle, l netlink.Link) error { return h.LinkDel(l) })
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil
	}
	return err
}

// AddAddr gives an interface an address, usable at once (IPv6 without duplicate address detection). An address that is
// there already is no error.
func (n *NS) AddAddr(name string, p netip.Prefix) error {
	return n.withLink(name, func(h *netlink.Handle, l netlink.Link) error {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if p.Addr().IsLinkLocalUnicast() {
			a.Scope = unix.RT_SCOPE_LINK
		}
		return h.AddrReplace(l, a)
	})
}

// DelAddr takes an address from an interface. One that is not there is no error.
func (n *NS) DelAddr(name string, p netip.Prefix) error {
	return n.withLink(name, func(h *netlink.Handle, l netlink.Link) error {
		if err := h.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)}); !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		return nil
	})
}

// Route is a route of the main table.
type Route struct {
	Dst netip.Prefix // 0.0.0.0/0 and ::/0 are the default routes
	Dev string       // the interface
	Via netip.Addr   // the gateway, taken to be on the link; invalid: Dst itself is on the link
	Src netip.Addr   // the source address it prefers; invalid: the kernel chooses
}

// AddRoute adds a route or replaces the one to the same destination.
func (n *NS) AddRoute(r Route) error {
	return n.withLink(r.Dev, func(h *netlink.Handle, l netlink.Link) error {
		kr := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.Dst)}
		switch {
		case r.Via.IsValid():
			kr.Gw, kr.Flags = r.Via.AsSlice(), int(netlink.FLAG_ONLINK)
		case r.Dst.Addr().Is4():
			kr.Scope = netlink.SCOPE_LINK
		}
		if r.Src.IsValid() {
			kr.Src = r.Src.AsSlice()
		}
		return h.RouteReplace(kr)
	})
}

// Addrs returns the addresses of all interfaces that are not loopback, in the kernel's order, IPv6 without zone.
func (n *NS) Addrs() ([]netip.Addr, error) {
	h, err := n.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	list, err := h.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %v: %w", n, err)
	}
	var out []netip.Addr
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLoopback() {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}

// SetSysctl writes a setting below net, such as net.ipv4.ip_forward, in the namespace.
func (n *NS) SetSysctl(key, value string) error { return n.SetSysctls(map[string]string{key: value}) }

// SetSysctls writes several settings; see SetSysctl.
func (n *NS) SetSysctls(values map[string]string) error {
	return n.Do(func() error {
		for k, v := range values {
			// /proc/sys/net shows the namespace of the thread that opens it.
			err := os.WriteFile(sysctlPath(k), []byte(v), 0)
			if errors.Is(err, unix.EROFS) {
				err = writeOwnProc(sysctlPath(k), []byte(v))
			}
			if err != nil {
				return fmt.Errorf("set %s: %w", k, err)
			}
		}
		return nil
	})
}

// ownProc is a /proc of our own, without a place in the file system, mounted when it is first needed: containers have
// /proc/sys read-only. It stays open.
var ownProc = sync.OnceValues(func() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open proc: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make proc: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount proc: %w", err)
	}
	return mnt, nil
})

// writeOwnProc writes a file of /proc by way of ownProc.
func writeOwnProc(path string, value []byte) error {
	proc, err := ownProc()
	if err != nil {
		return err
	}
	fd, err := unix.Openat(proc, strings.TrimPrefix(path, "/proc/"), unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, value); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// Sysctl reads a setting below net.
func (n *NS) Sysctl(key string) (string, error) {
	var v string
	err := n.Do(func() error {
		b, err := os.ReadFile(sysctlPath(key))
		v = strings.TrimSpace(string(b))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	return v, nil
}

// sysctlPath takes both spellings, with dots and with slashes; an interface whose name has dots needs slashes.
func sysctlPath(key string) string {
	if !strings.ContainsRune(key, '/') {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return "/proc/sys/" + key
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
