package capture

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/ztunnel/podsock"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// NodeKernel is the Kernel of a node. It is safe for concurrent use.
type NodeKernel struct {
	node *redirect.Node
	own  netns.ID
	init netns.ID // of process 1; zero if it cannot be seen
}

// NewKernel returns the Kernel of node, which stays the caller's. The calling process must be in the node's namespace.
func NewKernel(node *redirect.Node) (*NodeKernel, error) {
	k := &NodeKernel{node: node}
	own, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	k.own = own.ID()
	if err := own.Close(); err != nil {
		return nil, err
	}
	if first, err := netns.Open("/proc/1/ns/net"); err == nil {
		k.init = first.ID()
		first.Close()
	}
	return k, nil
}

// Open implements Kernel.
func (k *NodeKernel) Open(path string) (*zds.File, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if id := ns.ID(); id == k.own || id == k.init {
		return nil, fmt.Errorf("open network namespace %q: it is the host's", path)
	}
	return dup(ns.FD())
}

func dup(fd int) (*zds.File, error) {
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return zds.NewFile(d), nil
}

// with calls f with the namespace of a descriptor.
func with(file *zds.File, f func(ns *netns.NS) error) error {
	d, err := file.Dup()
	if err != nil {
		return err
	}
	ns, err := netns.FromFD(d.FD())
	if err != nil {
		d.Close()
		return err
	}
	defer ns.Close() // d's descriptor is ns' now
	return f(ns)
}

// Addrs implements Kernel.
func (k *NodeKernel) Addrs(file *zds.File) (addrs []netip.Addr, err error) {
	err = with(file, func(ns *netns.NS) error {
		addrs, err = ns.Addrs()
		return err
	})
	return addrs, err
}

// Listen implements Kernel.
func (k *NodeKernel) Listen(file *zds.File) (f zds.Files, err error) {
	err = with(file, func(ns *netns.NS) error {
		l, err := redirect.Listen(ns)
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("%w: %w", ErrInUse, err)
		}
		if err != nil {
			return err
		}
		f = zds.Files{
			Outbound: zds.NewFile(l.Outbound), Plaintext: zds.NewFile(l.Plaintext), HBONE: zds.NewFile(l.HBONE),
		}
		return nil
	})
	return f, err
}

// ListenDNS implements Kernel.
func (k *NodeKernel) ListenDNS(file *zds.File) (f zds.Files, err error) {
	err = with(file, func(ns *netns.NS) error {
		d, err := redirect.ListenDNS(ns)
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("%w: %w", ErrInUse, err)
		}
		if err != nil {
			return err
		}
		f = zds.Files{DNS: zds.NewFile(d.Datagram), DNSStream: zds.NewFile(d.Stream)}
		return nil
	})
	return f, err
}

// Attach implements Kernel.
func (k *NodeKernel) Attach(p *podsock.Pod, f zds.Files) error {
	w, _ := wishesOf(p)
	return with(f.NetNS, func(ns *netns.NS) error {
		return k.node.Attach(redirect.Pod{
			UID: p.UID, NS: ns, Addrs: p.Addresses, ProbePorts: p.ProbePorts,
			BypassInbound: w.bypassInbound, Reroute: w.reroute,
			Listeners: redirect.Listeners{Outbound: f.Outbound.FD(), Plaintext: f.Plaintext.FD(), HBONE: f.HBONE.FD()},
			DNS:       redirect.DNSSockets{Datagram: f.DNS.FD(), Stream: f.DNSStream.FD()},
		})
	})
}

// Detach implements Kernel.
func (k *NodeKernel) Detach(uid string) error { return k.node.Detach(uid) }

// Swept implements Kernel.
func (k *NodeKernel) Swept(_ context.Context, uid string) (bool, error) { return k.node.SweepPod(uid) }

// Remove implements Kernel.
func (k *NodeKernel) Remove(uid string) error { return k.node.Remove(uid) }

// Verify implements Kernel.
func (k *NodeKernel) Verify(uid string) []string {
	var out []string
	for _, p := range k.node.Verify(uid) {
		out = append(out, string(p))
	}
	return out
}

// Pinned implements Kernel.
func (k *NodeKernel) Pinned() []string {
	var out []string
	for _, p := range k.node.Pods() {
		if p.Attached {
			out = append(out, p.UID)
		}
	}
	return out
}
