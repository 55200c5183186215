//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

func (r PortRange) check() error {
	if r.First < 1024 || r.Last < r.First {
		return fmt.Errorf("port range %d-%d is not one of unprivileged ports", r.First, r.Last)
	}
	return nil
}

func (r PortRange) overlaps(o PortRange) bool { return r.First <= o.Last && o.First <= r.Last }

// DefaultAppPorts are the source ports of connections towards applications: below Linux's ip_local_port_range, so that they
// do not collide with those of a real client with the same address. Where NAT chose the client's port they can.
var DefaultAppPorts = PortRange{First: 10240, Last: 32767}

// UpstreamPorts are the source ports of the proxy's connections away from a pod: above Linux's ip_local_port_range. Were they
// of that range, the pod's own connections, which go to Services, could have the same port as one that the proxy made to
// the same server a moment ago. NAT would then choose another port, by chance one of those towards applications, and the
// server's pod would take the SYN for one of a connection that is open there.
var UpstreamPorts = PortRange{First: 61000, Last: 65535}

// reserved are the mesh's own ports, on which there are listeners.
var reserved = PortRange{15000, 15099}

// PrepareUpstream makes an unconnected TCP socket of the pod's namespace, by which the proxy goes elsewhere, one that comes from
// a port of UpstreamPorts; next is as AppOptions.Next. The address is left to connect(2).
//
// It does not block. It returns unix.EADDRINUSE if no port is free. connect(2) can still find the port taken for this
// destination: see PortTaken. The socket must be marked exempt as well.
func PrepareUpstream(fd int, next *atomic.Uint32) error {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("read family of socket: %w", err)
	}
	// As in PrepareApp; a socket that was bound to its port follows one in TIME_WAIT at once.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("set SO_REUSEADDR: %w", err)
	}
	addr := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	return bindPort(fd, family, addr, UpstreamPorts, next)
}

// portTries is how many ports bindPort tries at most.
const portTries = 64

// bindPort binds a socket to addr and a port that nobody listens on; next may be nil.
func bindPort(fd, family int, addr netip.Addr, ports PortRange, next *atomic.Uint32) error {
	count := uint32(ports.Last-ports.First) + 1
	if next == nil {
		next = new(atomic.Uint32)
		next.Store(rand.Uint32())
	}
	err := error(unix.EADDRINUSE)
	for range portTries {
		port := int(uint32(ports.First) + next.Add(1)%count)
		if port >= int(reserved.First) && port <= int(reserved.Last) {
			next.Add(uint32(reserved.Last-reserved.First) + 1)
			continue
		}
		var sa unix.Sockaddr
		if family == unix.AF_INET6 {
			sa = &unix.SockaddrInet6{Port: port, Addr: addr.As16()}
		} else if addr.Is4() {
			sa = &unix.SockaddrInet4{Port: port, Addr: addr.As4()}
		} else {
			return fmt.Errorf("bind to %v: %w", addr, unix.EAFNOSUPPORT)
		}
		if err = unix.Bind(fd, sa); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("bind to %v: %w", addr, err)
	}
	return nil
}

// PortTaken reports whether PrepareApp, PrepareUpstream or a connect(2) after them failed only because of the source port: the
// caller tries again with a new socket.
func PortTaken(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE)
}

// warnPorts logs a pod whose own ports overlap those of the proxy: as a client of a pod of the mesh its connections can collide.
func (n *Node) warnPorts(p Pod) {
	v, err := p.NS.Sysctl("net.ipv4.ip_local_port_range")
	f := strings.Fields(v)
	if err != nil || len(f) != 2 {
		return
	}
	first, err1 := strconv.ParseUint(f[0], 10, 16)
	last, err2 := strconv.ParseUint(f[1], 10, 16)
	if err1 != nil || err2 != nil {
		return
	}
	own := PortRange{uint16(first), uint16(last)}
	for _, r := range []PortRange{n.cfg.AppPorts, UpstreamPorts} {
		if own.overlaps(r) {
			n.cfg.Logger.Warn("pod's ip_local_port_range overlaps the proxy's source ports", "pod", p.UID, "range", v, "first", r.First, "last", r.Last)
		}
	}
}
