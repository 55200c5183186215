//go:build linux

package redirect

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// The ports of the listeners, those of Istio's ztunnel. Redirected connections do not depend on them.
const (
	OutboundPort  = 15001
	PlaintextPort = 15006
)

// backlog is how many connections wait while no process accepts; the kernel's limit is net.core.somaxconn.
const backlog = 4096

// Listeners are the descriptors of a pod's listening sockets: non-blocking, close-on-exec, for both families, transparent
// (without that a listener cannot answer from foreign addresses).
type Listeners struct {
	Outbound  int // connections that the pod opens: getsockname is where they were to go
	Plaintext int // connections to the pod, without HBONE
	HBONE     int // connections to the pod's HBONE port
}

// Close closes those that are positive. The zero Listeners has none.
func (l *Listeners) Close() error {
	var errs []error
	for _, fd := range []*int{&l.Outbound, &l.Plaintext, &l.HBONE} {
		if *fd > 0 {
			errs = append(errs, unix.Close(*fd))
		}
		*fd = 0
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close listeners: %w", err)
	}
	return nil
}

// Listen opens the three listeners of a pod in its namespace. The caller closes them. The error wraps unix.EADDRINUSE if
// another socket listens on one of the ports: SO_REUSEPORT is not set, so that two processes never share a pod unnoticed.
func Listen(ns *netns.NS) (Listeners, error) {
	var l Listeners
	for _, x := range []struct {
		fd   *int
		port int
	}{{&l.Outbound, OutboundPort}, {&l.Plaintext, PlaintextPort}, {&l.HBONE, int(DefaultHBONEPort)}} {
		fd, err := listen(ns, x.port)
		if err != nil {
			return Listeners{}, errors.Join(fmt.Errorf("listen on port %d of %v: %w", x.port, ns, err), l.Close())
		}
		*x.fd = fd
	}
	return l, nil
}

func listen(ns *netns.NS, port int) (int, error) {
	family := unix.AF_INET6
	fd, err := ns.Socket(family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		family = unix.AF_INET
		fd, err = ns.Socket(family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	}
	if err != nil {
		return -1, err
	}
	if err := bindListener(fd, family, port); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bindListener(fd, family, port int) error {
	// REUSEADDR: sockets towards the application may use the same port with a client's address.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("set SO_REUSEADDR: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return fmt.Errorf("set IP_TRANSPARENT: %w", err)
	}
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: port}
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return fmt.Errorf("clear IPV6_V6ONLY: %w", err)
		}
		addr = &unix.SockaddrInet6{Port: port}
	}
	if err := unix.Bind(fd, addr); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}
