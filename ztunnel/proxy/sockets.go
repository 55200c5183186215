package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
	"github.com/ambit-mesh/ambit/internal/handshake"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// Sockets begins the TCP connections of a pod, in the pod's network namespace: the descriptors are non-blocking and
// connecting. How they escape the pod's redirection is the business of who set that up. Any goroutine; nothing blocks.
type Sockets interface {
	// Upstream connects to dst, away from the pod, from the pod's own address and a port that the pod itself does not choose.
	Upstream(pod *Pod, dst netip.AddrPort) (fd int, err error)
	// App connects to the application at dst from the address of client; from the pod's own where that cannot be (client
	// is invalid, or the pod itself).
	App(pod *Pod, client netip.Addr, dst netip.AddrPort) (fd int, err error)
}

// redirected begins connections of pods that ebpf/redirect captures.
type redirected struct {
	exempt *redirect.Exempt
	setup  zds.Setup
	fds    *handshake.Descriptors
}

// appTries and upstreamTries bound how often a connection is begun with another source port.
const appTries, upstreamTries = 16, 3

// SetupNode tells how capture redirects the pods of this node: the proxy's own sockets are exempt by the map in s, which
// it takes over. It is called before the first pod; again after a restart of capture, it holds for connections made later.
// Any goroutine.
func (p *Proxy) SetupNode(s zds.Setup) error {
	defer s.Exempt.Close()
	fd, err := unix.FcntlInt(uintptr(s.Exempt.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("duplicate map of exempt sockets: %w", err)
	}
	exempt, err := redirect.OpenExempt(fd)
	if err != nil {
		return err
	}
	var sockets Sockets = &redirected{exempt: exempt, setup: s, fds: p.fds}
	p.sockets.Store(&sockets) // the map of before stays open: a worker may be using it, and this happens rarely
	return nil
}

func (r *redirected) socket(ns *netns.NS, dst netip.AddrPort) (int, error) {
	fd, err := ns.Socket(loop.Family(dst), unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	if !r.fds.MayDial(fd) {
		unix.Close(fd)
		return -1, unix.EMFILE
	}
	if err := r.exempt.Mark(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("exempt socket from capture: %w", err)
	}
	return fd, nil
}

// Upstream implements Sockets. Where thousands of connections to dst are open the proxy's ports may all be taken; then the kernel
// chooses one of the pod's.
func (r *redirected) Upstream(pod *Pod, dst netip.AddrPort) (int, error) {
	next := &pod.nextUpstream
	for range upstreamTries {
		fd, err := r.upstream(pod, dst, func(fd int) error { return redirect.PrepareUpstream(fd, next) })
		if err == nil || !redirect.PortTaken(err) {
			return fd, err
		}
		next = nil // anywhere else, as in App
	}
	return r.upstream(pod, dst, func(int) error { return nil })
}

func (r *redirected) upstream(pod *Pod, dst netip.AddrPort, prepare func(fd int) error) (int, error) {
	fd, err := r.socket(pod.NS, dst)
	if err != nil {
		return -1, err
	}
	if err := prepare(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return connecting(fd, dst)
}

// App implements Sockets. P10: a pod that calls itself is not spoofed.
func (r *redirected) App(pod *Pod, client netip.Addr, dst netip.AddrPort) (int, error) {
	if client.Is4() != dst.Addr().Is4() {
		client = netip.Addr{}
	}
	o := redirect.AppOptions{
		Dst: dst.Addr(), Mark: r.setup.Mark, Mask: r.setup.Mask,
		Ports: redirect.PortRange{First: r.setup.AppPortMin, Last: r.setup.AppPortMax}, Next: &pod.nextApp,
	}
	var err error
	for range appTries {
		var fd int
		if fd, err = r.socket(pod.NS, dst); err != nil {
			return -1, err
		}
		if err = redirect.PrepareApp(fd, client, o); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("bind to the client's address %s: %w", client, err)
		}
		if fd, err = connecting(fd, dst); err == nil || !redirect.PortTaken(err) {
			return fd, err
		}
		o.Next = nil // anywhere else: the next ports may be taken as well, by connections that were opened together
	}
	return -1, err
}

// connecting begins to connect fd, which is closed on error.
func connecting(fd int, dst netip.AddrPort) (int, error) {
	if err := unix.Connect(fd, loop.Sockaddr(dst)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// portCounter deals out the source ports of a pod's connections of one kind.
type portCounter = atomic.Uint32
