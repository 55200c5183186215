// Package forward moves the requests of a waypoint: from HBONE tunnels of clients, through the chain that the listener
// names, to an endpoint of a cluster, most often through HBONE again.
//
//   - accept.go: tunnels and their handshakes. inbound.go: one CONNECT, its chain and protocol (sniff.go). handover.go: the
//     connections of one tunnel are spread over the workers. plain.go: connections without a tunnel, for benchmarks.
//   - exchange.go: one HTTP request, from its head to the last byte of the answer; attempt.go: one try of it.
//   - upstream.go: connections to endpoints, HTTP/1 and HTTP/2, kept for later requests. reach.go: how one is made; tunnel.go:
//     HBONE to a pod; tls.go: TLS to an endpoint, and proxyproto.go: what tells it of the client.
//   - dynamic.go: hosts that requests name themselves.
//   - tcp.go and relay.go: connections that are not HTTP.
//   - record.go: metrics and access log.
//
// # Threads
//
// A client's connection, its requests and the upstream connections that they use belong to one worker, an event loop
// (package loop). Workers share immutable snapshots, behind one atomic pointer, and the counters of clusters. A request
// sees one snapshot from its head to its end. What may block (a handshake, a certificate, a call to another service)
// happens on a goroutine, and the request waits for a closure that is injected into its loop.
package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/handshake"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Config is what a Proxy is made of. It is not changed after New.
type Config struct {
	// ID is the waypoint's own identity: that of its listener and of its tunnels to endpoints. Required.
	ID spiffe.ID
	// Workers is the number of event loops. Default 1.
	Workers int
	// ConnectTimeout bounds handshakes of clients, and waits for our certificate. Default 10 s.
	ConnectTimeout time.Duration
	// DetectTimeout is how long a connection of unknown protocol may be silent before it counts as TCP. Default 100 ms.
	DetectTimeout time.Duration
	// DrainTimeout is how long requests may go on after the end was asked for. Default 5 s.
	DrainTimeout time.Duration
	// NoticeTime is how long of that, at least, peers that have not heard of the end are served as before, in new tunnels
	// too. Default 2 s; negative: not at all.
	NoticeTime time.Duration
	// IdleUpstream is how long an unused HTTP connection to an endpoint is kept. Default 60 s.
	IdleUpstream time.Duration
	// Pool and Server configure HBONE; Dial and Handler are set by the Proxy.
	Pool   hbone.PoolConfig
	Server hbone.ServerConfig
	// TLS are the options of both roles.
	TLS svid.Options

	// Plain are ports for benchmarks, which compare us with proxies that know no tunnels. A waypoint has none: who speaks to
	// them is nobody.
	Plain []PlainPort

	// Snapshot is the configuration in force. Until it holds one, connections are refused.
	Snapshot *atomic.Pointer[Snapshot]
	// Workloads tells who is behind an address.
	Workloads *workload.Store
	Certs     *svid.Manager
	// Network is the ID of the own network.
	Network string
	// Node is the own node ID, which spans tell, and Env the process's environment, which tags of spans and access logs may
	// refer to; nil: it is empty.
	Node string
	Env  func(name string) (string, bool)
	// Hostname is the pod's, for access logs.
	Hostname string
	Metrics  *telemetry.Registry
	// Lines takes the lines of access logs, ErrorLines those of them that go to standard error; nil: Lines does.
	Lines, ErrorLines *telemetry.Writer
	Logger            *slog.Logger
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.ConnectTimeout, 10*time.Second)
	def(&c.DetectTimeout, 100*time.Millisecond)
	def(&c.DrainTimeout, 5*time.Second)
	def(&c.NoticeTime, 2*time.Second)
	def(&c.IdleUpstream, time.Minute)
	if c.Workers <= 0 {
		c.Workers = 1
	}
	if c.Env == nil {
		c.Env = func(string) (string, bool) { return "", false }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Proxy is the data path of one waypoint. Make it with New, drive it with Run.
type Proxy struct {
	// immutable
	cfg       Config
	log       *slog.Logger
	workers   []*worker
	principal string // our own
	spans     *telemetry.CounterVec
	entries   *telemetry.CounterVec

	next atomic.Uint32
	// turns bounds the handshakes of clients under way, awaiting those that wait for our certificate before.
	turns    *handshake.Turns
	awaiting chan struct{}
	fds      *handshake.Descriptors
	refusals handshake.Seldom
	// lookups bounds the lookups of hosts that requests name.
	lookups chan struct{}
	ctx     context.Context
	cancel  context.CancelFunc
	secrets secrets
	hurry   chan struct{} // tests close it: the notice time is over
	// helpers are the goroutines that Run waits for.
	helpers sync.WaitGroup
}

const (
	// maxHandshakes is the number of TLS handshakes of clients under way at once, handshakesPerPeer that of one address;
	// up to maxWaiting wait their turn, as many for our certificate.
	maxHandshakes     = 256
	handshakesPerPeer = 32
	maxWaiting        = 1024
	// slowHandshake is how long a peer may keep others waiting.
	slowHandshake = time.Second
)

// New makes a proxy that listens nowhere yet.
func New(cfg Config) (*Proxy, error) {
	p := &Proxy{cfg: cfg.withDefaults(), awaiting: make(chan struct{}, maxWaiting), lookups: make(chan struct{}, maxLookups), hurry: make(chan struct{})}
	p.log, p.principal = p.cfg.Logger, p.cfg.ID.String()
	p.spans = p.cfg.Metrics.Counters("ambit_trace_spans_total", "Spans of requests, by what became of them.", "result")
	p.entries = p.cfg.Metrics.Counters("ambit_access_log_exports_total", "Entries of access logs for collectors, by what became of them.", "result")
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.turns = handshake.NewTurns(handshake.TurnsConfig{
		Max: maxHandshakes, PerPeer: handshakesPerPeer, Queue: maxWaiting, Slow: slowHandshake,
		Start: func(f func()) bool { p.helpers.Go(f); return true },
	})
	var err error
	if p.fds, err = handshake.NewDescriptors(); err != nil {
		return nil, err
	}
	for i := range p.cfg.Workers {
		w, err := newWorker(p, i)
		if err != nil {
			return nil, fmt.Errorf("make worker %d: %w", i, err)
		}
		p.workers = append(p.workers, w)
	}
	return p, nil
}

// Run serves addr, the HBONE port, until ctx is done. Then it drains: who asks is served and told to go elsewhere, for the
// notice time in any case and for the drain time at most as long as anything is open, and the rest is cut. It returns after
// everything that the proxy started has ended.
func (p *Proxy) Run(ctx context.Context, addr netip.AddrPort) error {
	defer p.cancel()
	ln, err := listen(addr)
	if err != nil {
		return fmt.Errorf("listen on %v: %w", addr, err)
	}
	loops, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	errs := make([]error, len(p.workers)+1)
	for i, w := range p.workers {
		wg.Go(func() { errs[i] = w.loop.Run(loops) })
		w.loop.Inject(func() { w.Expired(nil) })
	}
	w := p.workers[0]
	w.loop.OnLoop(func() { errs[len(p.workers)] = w.startAccepting(ln, netip.AddrPort{}) })
	if errs[len(p.workers)] == nil {
		errs[len(p.workers)] = p.listenPlain()
	}
	if errs[len(p.workers)] == nil {
		<-ctx.Done()
		p.drain()
	}
	w.loop.OnLoop(w.stopAccepting)
	for _, w := range p.workers {
		w.loop.OnLoop(w.deafen) // no helper begins from now on but from another
	}
	p.cancel()
	p.helpers.Wait()
	for _, w := range p.workers {
		w.loop.OnLoop(w.close)
	}
	stop()
	wg.Wait()
	return errors.Join(errs...)
}

// drain blocks until nothing is open and the notice time is over, or until the drain time is. The port stays open: those who
// choose a waypoint hear of its end a little later than it does, and a refusal would be a request lost.
func (p *Proxy) drain() {
	for _, w := range p.workers {
		w.loop.OnLoop(w.drain)
	}
	over := time.NewTimer(p.cfg.DrainTimeout)
	defer over.Stop()
	notice := time.NewTimer(p.cfg.NoticeTime)
	defer notice.Stop()
	select {
	case <-notice.C:
	case <-over.C:
	case <-p.hurry:
	}
	for _, w := range p.workers {
		w.loop.OnLoop(w.drainTunnels)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for p.Open() > 0 {
		select {
		case <-over.C:
			p.log.Info("drain time is over, connections are cut", "open", p.Open())
			return
		case <-tick.C:
		}
	}
}

// Open is the number of connections and requests under way.
func (p *Proxy) Open() int {
	n := 0
	for _, w := range p.workers {
		n += int(w.open.Load())
	}
	return n
}

// assign picks the worker of the next tunnel.
func (p *Proxy) assign() *worker {
	return p.workers[int(p.next.Add(1))%len(p.workers)]
}
