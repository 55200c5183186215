// Package proxy moves the bytes: for every captured pod of a node it takes the connections that arrive on the pod's three
// listeners and passes them on.
//
//   - outbound (15001): what the pod's application dialled. Route decides: plain TCP, an HBONE tunnel to the peer's node
//     proxy, to a waypoint, or, when the destination pod is on this node too, directly into it.
//   - HBONE (15008): tunnels from peers. Each CONNECT is checked against the pod's policy and joined to the application.
//   - plaintext (15006): connections of peers outside of the mesh, checked in the same way, without an identity.
//
// # Threads
//
// Connections live on workers, one event loop each (package loop); a connection never leaves its worker, and workers
// share nothing but immutable snapshots: the workload view, the policy view, the certificates and the table of pods, each
// behind one atomic pointer. What may block (a handshake, a certificate that is still to come) happens on a goroutine
// of its own; the connection is parked and resumed by a closure injected into its loop.
//
// # Failing closed
//
// A connection whose pod, policy or certificate is not known waits a little and is then refused. Plaintext is sent only
// where the workload table says that the destination does not speak HBONE, or where the table does not know it at all.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/handshake"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// SameNode says how a connection between two pods of this node travels.
type SameNode string

const (
	// SameNodeDirect joins the two applications' sockets after both pods' policies were checked. The bytes stay in the
	// node's kernel, are not encrypted, and are reported as such.
	SameNodeDirect SameNode = "direct"
	// SameNodeHBONE tunnels as between nodes.
	SameNodeHBONE SameNode = "hbone"
)

// Config is what a Proxy is made of. It is not changed after New.
type Config struct {
	// Node, Network, ClusterID and TrustDomain say where this proxy is. TrustDomain is used where a workload names none.
	Node, Network, ClusterID, TrustDomain string
	// SameNode defaults to SameNodeDirect.
	SameNode SameNode
	// Workers is the number of event loops. Default 1.
	Workers int
	// WorkloadWait is how long a connection waits for its pod's record and for its certificate. Default 5 s (O2). One that a pod
	// opens goes on after a fifth of that by what the node knows of the pod (docs/decisions/0009).
	WorkloadWait time.Duration
	// ConnectTimeout bounds every dial and handshake. Default 10 s (P12).
	ConnectTimeout time.Duration
	// DrainTimeout is how long open connections may go on after Drain. Default 5 s.
	DrainTimeout time.Duration
	// Keepalive is the idle time of TCP keepalive, its interval too. Default 180 s, negative is off (1.3).
	Keepalive time.Duration
	// ResponseBaggage adds the destination's baggage to the answers to CONNECT.
	ResponseBaggage bool
	// Pool and Server configure HBONE; Dial and Handler are set by the Proxy.
	Pool   hbone.PoolConfig
	Server hbone.ServerConfig
	// TLS are the options of both roles.
	TLS svid.Options
	// LogPolicies logs what dry-run policies would have done at level info instead of debug (I19).
	LogPolicies bool
	// LoopbackTunnel hands application tunnels with PROXY protocol over on loopback (P11).
	LoopbackTunnel bool

	// Synced is closed when the control plane has delivered all workloads and all policies once. Until then every pod
	// counts as unknown: connections wait, and are refused after WorkloadWait. An empty table of policies that is merely
	// late must not pass for "no policy". nil means that the stores are complete from the start.
	Synced <-chan struct{}

	Workloads *workload.Store
	Policies  *rbac.Store
	Certs     *svid.Manager
	Metrics   *telemetry.Registry
	AccessLog *telemetry.AccessLog
	Logger    *slog.Logger
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.WorkloadWait, 5*time.Second)
	def(&c.ConnectTimeout, 10*time.Second)
	def(&c.DrainTimeout, 5*time.Second)
	def(&c.Keepalive, 180*time.Second)
	if c.SameNode == "" {
		c.SameNode = SameNodeDirect
	}
	if c.Workers <= 0 {
		c.Workers = 1
	}
	if c.TrustDomain == "" {
		c.TrustDomain = "cluster.local"
	}
	return c
}

// Proxy is the data path of one node. Make it with New, drive it with Run, tell it of pods with the methods of
// pods.go.
type Proxy struct {
	// immutable
	cfg     Config
	log     *slog.Logger
	workers []*worker

	// sockets is how connections of pods are opened; set by SetupNode before the first pod.
	sockets atomic.Pointer[Sockets]
	// pods is replaced as a whole by pods.go.
	pods atomic.Pointer[podTable]
	// changes is closed and replaced when the workload table changes.
	changes atomic.Pointer[chan struct{}]
	// next deals tunnels out to workers.
	next atomic.Uint32
	// accepting and connecting bound the handshakes under way. They are two, so that slow peers cannot keep our own pods
	// from connecting. awaiting bounds those that wait for a pod's certificate before.
	accepting            *handshake.Turns
	connecting, awaiting chan struct{}
	fds                  *handshake.Descriptors
	// done is closed when Run ends; ctx of everything that a connection starts.
	ctx    context.Context
	cancel context.CancelFunc
	// helpers are the goroutines that Run waits for. None begins once helpersEnded, which helpersMu guards.
	helpers      sync.WaitGroup
	helpersMu    sync.Mutex
	helpersEnded bool

	// podsMu serialises the changes of pods.
	podsMu   sync.Mutex
	synced   atomic.Bool
	draining atomic.Bool
}

const (
	// maxHandshakes is the number of TLS handshakes under way at once, in each role; more wait their turn: up to
	// maxWaiting for a turn to accept, as many for a certificate.
	maxHandshakes = 256
	maxWaiting    = 1024
	// handshakesPerPeer bounds those that one address begins.
	handshakesPerPeer = 32
	// slowHandshake is how long a peer may keep others waiting.
	slowHandshake = time.Second
)

// New makes a proxy without pods.
func New(cfg Config) (*Proxy, error) {
	cfg = cfg.withDefaults()
	p := &Proxy{
		cfg: cfg, log: cfg.Logger,
		connecting: make(chan struct{}, maxHandshakes), awaiting: make(chan struct{}, maxWaiting),
	}
	p.accepting = handshake.NewTurns(handshake.TurnsConfig{
		Max: maxHandshakes, PerPeer: handshakesPerPeer, Queue: maxWaiting, Slow: slowHandshake, Start: p.goHelper,
	})
	var err error
	if p.fds, err = handshake.NewDescriptors(); err != nil {
		return nil, err
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.pods.Store(newPodTable())
	first := make(chan struct{})
	p.changes.Store(&first)
	cfg.Workloads.Watch(p.workloadsChanged)
	cfg.Policies.Watch(p.policiesChanged)
	for i := range cfg.Workers {
		w, err := newWorker(p, i)
		if err != nil {
			return nil, fmt.Errorf("make worker %d: %w", i, err)
		}
		p.workers = append(p.workers, w)
	}
	return p, nil
}

// Run drives the workers until ctx is done. Then it drains: it stops accepting (what waits is left to the proxy's
// successor), tells peers to go away, lets open connections go on for the drain time and cuts the rest. It returns after
// everything that the proxy started has ended.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.cancel()
	loops, stop := context.WithCancel(context.Background())
	defer stop()
	p.goHelper(p.awaitSync)
	var wg sync.WaitGroup
	errs := make([]error, len(p.workers))
	for i, w := range p.workers {
		wg.Go(func() { errs[i] = w.loop.Run(loops) })
	}
	<-ctx.Done()
	p.drain()
	p.cancel()
	p.endHelpers()
	for _, w := range p.workers {
		w.loop.OnLoop(w.cutAll)
		w.loop.OnLoop(w.closeTunnels)
	}
	stop()
	wg.Wait()
	p.closePods()
	return errors.Join(errs...)
}

// drain blocks until all connections have ended or the drain time is over.
func (p *Proxy) drain() {
	p.podsMu.Lock()
	p.draining.Store(true) // pods that are still handed over are not served any more
	p.podsMu.Unlock()
	for _, w := range p.workers {
		w.loop.OnLoop(w.stopAcceptingAll)
	}
	for _, w := range p.workers { // what one worker accepted for another has arrived by now
		w.loop.OnLoop(w.server.Drain)
	}
	p.log.Info("draining: peers are told to go away, open connections go on", "open", p.Open(), "limit", p.cfg.DrainTimeout)
	over := time.NewTimer(p.cfg.DrainTimeout)
	defer over.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for p.busy() {
		select {
		case <-over.C:
			p.log.Info("drain time is over, connections are cut", "open", p.Open())
			return
		case <-tick.C:
		}
	}
}

// busy tells whether connections are under way, or may be in a moment: a peer whose tunnel was accepted does its handshake
// and opens its streams, until it has seen our GOAWAY and the tunnel ends.
//
// A tunnel is looked for in the order in which it goes: as a hello, as a handshake, as a tunnel. It is in the next place
// before it leaves the one before, so it is not missed on its way.
func (p *Proxy) busy() bool {
	if p.Open() > 0 {
		return true
	}
	n := 0
	for _, w := range p.workers {
		w.loop.OnLoop(func() { n += w.hellos.Younger(slowHandshake) })
	}
	if n > 0 || len(p.awaiting) > 0 || p.accepting.Busy() {
		return true
	}
	for _, w := range p.workers {
		w.loop.OnLoop(func() { n += w.server.Stats().Conns })
	}
	return n > 0
}

// Open is the number of connections under way.
func (p *Proxy) Open() int {
	n := 0
	for _, w := range p.workers {
		n += int(w.open.Load())
	}
	return n
}

// awaitSync lets connections in once the first state of the control plane is complete.
func (p *Proxy) awaitSync() {
	if p.cfg.Synced != nil {
		select {
		case <-p.cfg.Synced:
		case <-p.ctx.Done():
			return
		}
	}
	p.synced.Store(true)
	for _, w := range p.workers {
		w.nudge()
	}
}

// record is the pod's own entry in the workload table, or nil while that, or the table as a whole, is still to come.
func (p *Proxy) record(pod *Pod, v *workload.View) *workload.Workload {
	if !p.synced.Load() {
		return nil
	}
	return pod.record(v)
}

// workloadsChanged has every worker look again at the connections that wait for a record, and at the policies that
// workloads name.
func (p *Proxy) workloadsChanged(*workload.Change) {
	next := make(chan struct{})
	close(*p.changes.Swap(&next))
	for _, w := range p.workers {
		w.nudge()
	}
	p.warmCertificates()
}

func (p *Proxy) policiesChanged(*rbac.Change) {
	for _, w := range p.workers {
		w.nudge()
	}
}

// goHelper runs f on a goroutine that Run waits for. Once Run is at its end it does not, and returns false: the loops would
// be gone when f is done. Any goroutine.
func (p *Proxy) goHelper(f func()) bool {
	p.helpersMu.Lock()
	defer p.helpersMu.Unlock()
	if p.helpersEnded {
		return false
	}
	p.helpers.Go(f)
	return true
}

// endHelpers waits for the helpers and has none begin any more.
func (p *Proxy) endHelpers() {
	p.helpersMu.Lock()
	p.helpersEnded = true
	p.helpersMu.Unlock()
	p.helpers.Wait()
}

// assign picks the worker of a connection that w has accepted: w itself unless it carries more than others, by an eighth of
// what the least of them does. Tunnels, few and long-lived, go round.
func (p *Proxy) assign(w *worker, kind listenerKind) *worker {
	if kind == tunnelListener {
		return p.workers[int(p.next.Add(1))%len(p.workers)]
	}
	least := w
	for _, x := range p.workers {
		if x.load() < least.load() {
			least = x
		}
	}
	if n := least.load(); w.load() <= n+n/8 {
		return w
	}
	return least
}

var _ loop.Handler = (*acceptor)(nil)

// sock is how connections are begun. A pod is only there after the node was set up.
func (p *Proxy) sock() Sockets { return *p.sockets.Load() }
