//go:build linux

package redirect

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Exempt marks sockets as the proxy's own: what they connect to is not redirected. Only holders of the node's map can do
// that. Safe for concurrent use.
type Exempt struct{ m *ebpf.Map }

// OpenExempt takes the descriptor of ExemptFD, received from the process that has the node, unless it returns an error.
func OpenExempt(mapFD int) (*Exempt, error) {
	m, err := ebpf.NewMapFromFD(mapFD)
	if err != nil {
		return nil, fmt.Errorf("open map of exempt sockets: %w", err)
	}
	if m.Type() != ebpf.SkStorage {
		return nil, errors.Join(fmt.Errorf("open map of exempt sockets: it is of type %v", m.Type()), m.Close())
	}
	return &Exempt{m}, nil
}

// Mark exempts a socket. It must be called before connect and costs 2 us; the mark ends with the socket. Before Linux 6.0
// it needs CAP_BPF where kernel.unprivileged_bpf_disabled is set.
func (e *Exempt) Mark(fd int) error {
	if err := e.m.Put(int32(fd), uint32(1)); err != nil {
		return fmt.Errorf("exempt socket: %w", err)
	}
	return nil
}

// Close closes the map, after the last Mark has returned; the marks stay.
func (e *Exempt) Close() error { return e.m.Close() }
