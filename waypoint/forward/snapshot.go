package forward

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// Snapshot is the configuration that connections and requests go by. It is immutable; the clusters in it live on.
type Snapshot struct {
	// Listener is the one behind the tunnels (main_internal).
	Listener Finder
	Clusters *cluster.View
}

// Finder says what is done with connections to an address; nil: they are refused.
type Finder interface {
	Lookup(dst netip.AddrPort) *listener.Target
}
