package apiserver

import "log/slog"

// Cluster is all that the control plane writes to the API server. It implements controlplane.Cluster.
type Cluster struct {
	*Client
	*Lease
	*Events
	*Statuses
}

// leaseName is the lease of the replicas that serve one mesh.
const leaseName = "ambit-controlplane"

// NewCluster makes the writer of a replica: holder is its name, and the lease lives in namespace.
func NewCluster(c *Client, namespace, holder string, logger *slog.Logger) *Cluster {
	return &Cluster{Client: c, Lease: NewLease(c, namespace, leaseName, holder, logger), Events: NewEvents(c), Statuses: NewStatuses(c)}
}
