// Package bed makes the ground that benchmarks and interop tests stand on: nodes and pods as network namespaces of this
// machine, joined by veth pairs and routes as a plain CNI would. It knows nothing of any mesh.
//
//	pod ──veth── node a ──veth "link"── node b ──veth── pod
//
// Addresses are the same in every bed (10.99.0.0/16 and fd99::/32), because a bed's namespaces see only each other:
// node n has 10.99.0.n on the link, its pods are 10.99.n.2, 10.99.n.3 and so on, and 10.99.n.1 is their gateway.
//
// Everything is under names that begin with the bed's, so that New can remove what an earlier, killed run left. A Bed is
// not safe for use by several goroutines while New or Close runs; afterwards its fields are immutable.
package bed

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// linkDev is the name of the device that joins a node to the other one.
const linkDev = "link"

// A Bed is a set of nodes with their pods. Close removes it.
type Bed struct {
	Name  string
	Nodes []*Node
}

// A Node is a namespace that routes for its pods.
type Node struct {
	Name string
	NS   *NS
	// Addr is the node's address on the link, Addr6 the same for IPv6.
	Addr, Addr6 netip.Addr
	Pods        []*Pod
}

// A Pod is a namespace with one device, eth0, and a default route by its node.
type Pod struct {
	Name        string
	Node        *Node
	NS          *NS
	Addr, Addr6 netip.Addr
}

// A NodeSpec names a node and its pods. Pod names are unique in a bed.
type NodeSpec struct {
	Name string
	Pods []string
}

// New makes the namespaces; it needs root. Namespaces of an earlier bed of that name are removed first, with the
// processes that still run in them. Two nodes at most.
func New(name string, specs ...NodeSpec) (*Bed, error) {
	if len(specs) < 1 || len(specs) > 2 {
		return nil, fmt.Errorf("make bed %q: %d nodes, want 1 or 2", name, len(specs))
	}
	if err := removeStale(name + "-"); err != nil {
		return nil, fmt.Errorf("remove what an earlier bed %q left: %w", name, err)
	}
	b := &Bed{Name: name}
	if err := b.build(specs); err != nil {
		return nil, errors.Join(fmt.Errorf("make bed %q: %w", name, err), b.Close())
	}
	return b, nil
}

func (b *Bed) build(specs []NodeSpec) error {
	for i, s := range specs {
		n := &Node{Name: s.Name, Addr: addr4(0, i+1), Addr6: addr6(0, i+1)}
		b.Nodes = append(b.Nodes, n)
		var err error
		if n.NS, err = createNS(b.Name + "-node-" + s.Name); err != nil {
			return err
		}
		if err := n.NS.setUpNode(); err != nil {
			return fmt.Errorf("set up node %q: %w", s.Name, err)
		}
		for j, pod := range s.Pods {
			p := &Pod{Name: pod, Node: n, Addr: addr4(i+1, j+2), Addr6: addr6(i+1, j+2)}
			n.Pods = append(n.Pods, p)
			if p.NS, err = createNS(b.Name + "-pod-" + pod); err != nil {
				return err
			}
			if err := joinPod(n, p, addr4(i+1, 1), addr6(i+1, 1), fmt.Sprintf("pod%d", j)); err != nil {
				return fmt.Errorf("set up pod %q: %w", pod, err)
			}
		}
	}
	if len(b.Nodes) == 2 {
		return joinNodes(b.Nodes[0], b.Nodes[1])
	}
	return nil
}

// Pod is the pod of that name, or nil.
func (b *Bed) Pod(name string) *Pod {
	for _, n := range b.Nodes {
		for _, p := range n.Pods {
			if p.Name == name {
				return p
			}
		}
	}
	return nil
}

// Close removes the namespaces and with them their devices. Processes in them are not touched: who started them stops
// them first. It may be called twice.
func (b *Bed) Close() error {
	var errs []error
	for _, n := range b.Nodes {
		for _, p := range n.Pods {
			errs = append(errs, p.NS.remove())
		}
		errs = append(errs, n.NS.remove())
	}
	b.Nodes = nil
	return errors.Join(errs...)
}

// addr4 is 10.99.net.host.
func addr4(net, host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, byte(net), byte(host)}) }

// addr6 is fd99:0:0:net::host.
func addr6(net, host int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 7: byte(net), 15: byte(host)})
}

// network is the prefix that a node's pods are in.
func network(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		panic("bed: " + err.Error()) // both lengths fit their family
	}
	return p
}

// isOurs says whether a namespace of that name belongs to the bed whose names begin with prefix.
func isOurs(name, prefix string) bool {
	return strings.HasPrefix(name, prefix+"node-") || strings.HasPrefix(name, prefix+"pod-")
}
