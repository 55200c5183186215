package cluster

import (
	"math"
	"sync/atomic"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

const (
	unlimited      = math.MaxInt64
	defaultLimit   = 1024
	defaultRetries = 3
)

// thresholds are the bounds of a cluster.
type thresholds struct {
	connections, pending, requests, retries int64
	budget                                  *retryBudget
}

// Limits are the bounds of a cluster; math.MaxInt64 is none.
type Limits struct{ Connections, Pending, Requests, Retries int64 }

// Limits are the circuit breakers that the configuration asks for.
func (c *Config) Limits() Limits {
	t := c.thresholds
	return Limits{t.connections, t.pending, t.requests, t.retries}
}

// retryBudget bounds retries by the number of requests.
type retryBudget struct {
	percent float64
	least   int64
}

var defaultThresholds = thresholds{connections: defaultLimit, pending: defaultLimit, requests: defaultLimit, retries: defaultRetries}

// breaker counts what is under way in a cluster.
type breaker struct {
	max                           thresholds
	connections, pending, retries atomic.Int64
	requests                      atomic.Int64
}

func (c *Config) compileBreakers(p *clusterv3.Cluster) error {
	c.thresholds = defaultThresholds
	c.perHost = unlimited
	for i, t := range p.GetCircuitBreakers().GetThresholds() {
		switch t.GetPriority() {
		case corev3.RoutingPriority_DEFAULT:
		case corev3.RoutingPriority_HIGH: // of routes that ask for it: here all requests count together
			continue
		default:
			return field.At(field.Index(field.Errorf("priority", "unknown value %d", t.GetPriority()), "thresholds", i), "circuit_breakers")
		}
		x := thresholds{
			connections: limit(t.GetMaxConnections(), defaultLimit), pending: limit(t.GetMaxPendingRequests(), defaultLimit),
			requests: limit(t.GetMaxRequests(), defaultLimit), retries: limit(t.GetMaxRetries(), defaultRetries),
		}
		if b := t.GetRetryBudget(); b != nil {
			x.budget = &retryBudget{percent: 20, least: limit(b.GetMinRetryConcurrency(), 3)}
			if b.GetBudgetPercent() != nil {
				x.budget.percent = b.GetBudgetPercent().GetValue()
			}
			if !(x.budget.percent >= 0 && x.budget.percent <= 100) {
				return field.At(field.Index(field.Errorf("retry_budget.budget_percent", "%v is not between 0 and 100", x.budget.percent), "thresholds", i), "circuit_breakers")
			}
		}
		c.thresholds = x
	}
	for _, t := range p.GetCircuitBreakers().GetPerHostThresholds() {
		c.perHost = limit(t.GetMaxConnections(), unlimited)
	}
	return nil
}

// limit reads a bound; the greatest number that fits means that there is none.
func limit(v *wrapperspb.UInt32Value, def int64) int64 {
	switch {
	case v == nil:
		return def
	case v.GetValue() == math.MaxUint32:
		return unlimited
	}
	return int64(v.GetValue())
}

// take counts one more, unless there are max already.
func take(n *atomic.Int64, max int64) bool {
	if n.Add(1) <= max {
		return true
	}
	n.Add(-1)
	return false
}

func (c *Cluster) took(ok bool) bool {
	if !ok {
		c.stats.Overflows.Add(1)
	}
	return ok
}

// BeginConnection counts a connection to the cluster; false: there are as many as there may be. Unless it is false
// EndConnection has to follow, once.
func (c *Cluster) BeginConnection() bool {
	return c.took(take(&c.breaker.connections, c.breaker.max.connections))
}

// EndConnection says that a connection is closed.
func (c *Cluster) EndConnection() { c.breaker.connections.Add(-1) }

// BeginHostConnection counts a connection to an endpoint, of which there may be a greatest number too.
func (c *Cluster) BeginHostConnection(h *Host) bool { return c.took(take(&h.connections, c.perHost)) }

// EndHostConnection says that a connection to an endpoint is closed.
func (c *Cluster) EndHostConnection(h *Host) { h.connections.Add(-1) }

// BeginPending counts a request that waits for a connection; false: too many wait. EndPending has to follow unless false.
func (c *Cluster) BeginPending() bool {
	return c.took(take(&c.breaker.pending, c.breaker.max.pending))
}

// EndPending says that a request waits no more.
func (c *Cluster) EndPending() { c.breaker.pending.Add(-1) }

// BeginRequest counts a request to an endpoint, also for the choice by least requests; false: there are as many as there
// may be. EndRequest has to follow unless false.
func (c *Cluster) BeginRequest(h *Host) bool {
	if !c.took(take(&c.breaker.requests, c.breaker.max.requests)) {
		return false
	}
	h.active.Add(1)
	h.total.Add(1)
	c.stats.Requests.Add(1)
	return true
}

// EndRequest says that a request is over.
func (c *Cluster) EndRequest(h *Host) {
	c.breaker.requests.Add(-1)
	h.active.Add(-1)
}

// BeginRetry counts a retry; false: there are as many as there may be, or as the budget allows. EndRetry has to follow
// unless false.
func (c *Cluster) BeginRetry() bool {
	b := &c.breaker
	most := b.max.retries
	if x := b.max.budget; x != nil {
		most = max(x.least, int64(x.percent/100*float64(b.requests.Load()+b.pending.Load())))
	}
	if !c.took(take(&b.retries, most)) {
		return false
	}
	c.stats.Retries.Add(1)
	return true
}

// EndRetry says that a retry is over.
func (c *Cluster) EndRetry() { c.breaker.retries.Add(-1) }

// Usage is what is under way in a cluster.
type Usage struct{ Connections, Pending, Requests, Retries int64 }

// Usage counts what is under way.
func (c *Cluster) Usage() Usage {
	b := &c.breaker
	return Usage{b.connections.Load(), b.pending.Load(), b.requests.Load(), b.retries.Load()}
}
