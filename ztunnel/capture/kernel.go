package capture

import (
	"context"
	"errors"
	"net/netip"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// ErrInUse is wrapped by Kernel.Listen when another socket has a port of the mesh: a proxy still holds the pod's
// listeners (capture was restarted), or the application took the port (P14).
var ErrInUse = errors.New("port of the mesh is in use")

// Kernel is everything that a Manager does to the node; NewKernel has the real one. Its methods block for system calls
// only, are idempotent, and may be called for different pods at a time. Descriptors passed in stay the caller's.
type Kernel interface {
	// Open opens the network namespace at path; the host's own is refused.
	Open(path string) (*zds.File, error)
	// Addrs returns the addresses of a namespace's interfaces.
	Addrs(ns *zds.File) ([]netip.Addr, error)
	// Listen opens the three listening sockets of a pod; NetNS of the result is nil.
	Listen(ns *zds.File) (zds.Files, error)
	// ListenDNS opens the sockets that a pod's DNS queries come to; the rest of the result is nil.
	ListenDNS(ns *zds.File) (zds.Files, error)
	// Attach redirects the pod's traffic to its listeners, or repairs that: its DNS queries too if f has the sockets for
	// them, and not if it has none.
	Attach(p *podsock.Pod, f zds.Files) error
	// Detach ends redirection; open connections go on until Swept says that they are over.
	Detach(uid string) error
	// Swept cleans up behind detached pods without connections left and reports whether nothing of uid remains.
	Swept(ctx context.Context, uid string) (bool, error)
	// Remove forgets a pod that is gone and ends its redirection.
	Remove(uid string) error
	// Verify returns what is wrong with a pod's redirection; Attach repairs it.
	Verify(uid string) []string
	// Pinned returns the pods that are redirected, also those of an earlier process.
	Pinned() []string
}
