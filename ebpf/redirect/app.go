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

// reserved are the mesh's own ports, on which PrepareApp would find listeners.
var reserved = PortRange{15000, 15099}

// AppOptions are the node's settings for sockets towards applications, and the connection's destination.
type AppOptions struct {
	// Dst is the address that the socket will be connected to.
	Dst netip.Addr
	// Mark and Mask are the node's; both 0: the defaults.
	Mark, Mask uint32
	// Ports are the source ports to use; zero: DefaultAppPorts.
	Ports PortRange
	// Next counts through Ports; sharing one among all of a pod's connections makes a port come again as late as
	// possible. Nil: start anywhere.
	Next *atomic.Uint32
}

// portTries is how many ports PrepareApp tries at most.
const portTries = 64

// PrepareApp makes an unconnected TCP socket of the pod's namespace, by which the proxy goes to the application, one that
// comes from the client's address: transparent, marked, bound to lo and to client with a port of the range. The answers
// come back by lo. If client is the destination's own address or loopback (a pod that calls itself), or invalid, the
// socket stays as it is and connects from the pod's address.
//
// It does not block. It returns unix.EADDRINUSE if no port is free. connect(2) can still find the port taken for this
// destination: see PortTaken. The socket must be marked exempt as well.
func PrepareApp(fd int, client netip.Addr, o AppOptions) error {
	client = client.Unmap().WithZone("")
	if !client.IsValid() || client.IsLoopback() || client == o.Dst.Unmap().WithZone("") {
		return nil
	}
	if o.Mark == 0 && o.Mask == 0 {
		o.Mark, o.Mask = DefaultMark, DefaultMask
	}
	if o.Ports == (PortRange{}) {
		o.Ports = DefaultAppPorts
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("read family of socket: %w", err)
	}
	transparentLevel, transparent := unix.SOL_IP, unix.IP_TRANSPARENT
	if family == unix.AF_INET6 && !client.Is4() {
		transparentLevel, transparent = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	for _, opt := range []struct {
		level, name, value int
		text               string
	}{
		{transparentLevel, transparent, 1, "IP_TRANSPARENT"},
		{unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark), "SO_MARK"},
		// Otherwise the local table would match, and the SYN would look as if it came from outside.
		{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, loopbackIndex, "SO_BINDTOIFINDEX"},
		// Ports in TIME_WAIT, and those that are in use towards other destinations, can be used.
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"},
	} {
		if err := unix.SetsockoptInt(fd, opt.level, opt.name, opt.value); err != nil {
			return fmt.Errorf("set %s: %w", opt.text, err)
		}
	}
	return bindApp(fd, family, client, o)
}

const loopbackIndex = 1

func bindApp(fd, family int, client netip.Addr, o AppOptions) error {
	count := uint32(o.Ports.Last-o.Ports.First) + 1
	next := o.Next
	if next == nil {
		next = new(atomic.Uint32)
		next.Store(rand.Uint32())
	}
	err := error(unix.EADDRINUSE)
	for range portTries {
		port := int(uint32(o.Ports.First) + next.Add(1)%count)
		if port >= int(reserved.First) && port <= int(reserved.Last) {
			next.Add(uint32(reserved.Last-reserved.First) + 1)
			continue
		}
		var sa unix.Sockaddr
		if family == unix.AF_INET6 {
			sa = &unix.SockaddrInet6{Port: port, Addr: client.As16()}
		} else if client.Is4() {
			sa = &unix.SockaddrInet4{Port: port, Addr: client.As4()}
		} else {
			return fmt.Errorf("bind to client %v: %w", client, unix.EAFNOSUPPORT)
		}
		if err = unix.Bind(fd, sa); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("bind to client %v: %w", client, err)
	}
	return nil
}

// PortTaken reports whether a connect(2) after PrepareApp failed only because of the source port: the caller tries again
// with a new socket.
func PortTaken(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE)
}

// warnPorts logs a pod whose own ports overlap those of PrepareApp: as a client of a pod on this node its connections
// can collide.
func (n *Node) warnPorts(p Pod) {
	v, err := p.NS.Sysctl("net.ipv4.ip_local_port_range")
	f := strings.Fields(v)
	if err != nil || len(f) != 2 {
		return
	}
	first, err1 := strconv.ParseUint(f[0], 10, 16)
	last, err2 := strconv.ParseUint(f[1], 10, 16)
	if r := (PortRange{uint16(first), uint16(last)}); err1 == nil && err2 == nil && r.overlaps(n.cfg.AppPorts) {
		n.cfg.Logger.Warn("pod's ip_local_port_range overlaps the proxy's source ports", "pod", p.UID, "range", v,
			"first", n.cfg.AppPorts.First, "last", n.cfg.AppPorts.Last)
	}
}
