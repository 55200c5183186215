//go:build linux

package redirect

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

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
	return bindPort(fd, family, client, o.Ports, o.Next)
}

const loopbackIndex = 1
