package cluster

import (
	"sync/atomic"
	"time"
)

// Host is an endpoint in use: the same object for as long as the endpoint is the same. It is safe for use by several
// goroutines.
type Host struct {
	// Cluster is the host's; Transport is what is spoken to it. Not changed once made.
	Cluster   *Cluster
	Transport *Transport

	key      string
	text     string // where the endpoint is
	endpoint atomic.Pointer[Endpoint]
	gone     atomic.Bool
	ejected  atomic.Bool

	_           [64]byte     // what follows is written with each request
	active      atomic.Int64 // requests under way
	connections atomic.Int64
	total       atomic.Uint64
	failed      atomic.Uint64 // answers of 500 and above, and failures
	monitor     monitor

	// guarded by Cluster.mu
	since time.Time // when its slow start began
	used  time.Time // of endpoints made by At: when it was asked for
}

func (c *Cluster) newHost(e *Endpoint, t *Transport) *Host {
	h := &Host{Cluster: c, Transport: t, key: e.key, text: e.String()}
	h.endpoint.Store(e)
	return h
}

// Endpoint is what is known of the endpoint now: weight, health and metadata may change, where and how it is reached not.
func (h *Host) Endpoint() *Endpoint { return h.endpoint.Load() }

// String is where the endpoint is.
func (h *Host) String() string { return h.text }

// Gone says that the endpoint is not one of the cluster's any more: its connections should end when they are not used.
func (h *Host) Gone() bool { return h.gone.Load() }

// Ejected says that outlier detection has taken the endpoint out of the choice.
func (h *Host) Ejected() bool { return h.ejected.Load() }

// Available says that the endpoint takes new requests: neither named unhealthy or draining, nor ejected.
func (h *Host) Available() bool { return h.healthy() || h.degraded() }

func (h *Host) healthy() bool  { return h.Endpoint().Health == Healthy && !h.ejected.Load() }
func (h *Host) degraded() bool { return h.Endpoint().Health == Degraded && !h.ejected.Load() }

// Active is the number of requests under way.
func (h *Host) Active() int64 { return h.active.Load() }

// Connections is the number of connections, as counted by BeginHostConnection.
func (h *Host) Connections() int64 { return h.connections.Load() }

// Requests is the number of requests that were begun, and of those how many came to an answer of 500 and above or to none.
func (h *Host) Requests() (total, failed uint64) { return h.total.Load(), h.failed.Load() }
