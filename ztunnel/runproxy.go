package ztunnel

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/internal/memory"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/rootca"
	"github.com/ambit-mesh/ambit/internal/run"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// Names of what readiness waits for (S5).
const (
	readyState = "state manager"
	readyPods  = "workload proxy manager"
)

// RunProxy carries the traffic of the node's pods until ctx is done: then it stops accepting, lets open connections go on
// for the drain time, cuts the rest and returns nil. It must run in the node's network namespace, as root.
func RunProxy(ctx context.Context, cfg ProxyConfig) error {
	raiseFileLimit()
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	n, err := newNode(cfg, quit)
	if err != nil {
		return err
	}
	return n.run(ctx)
}

// raiseFileLimit lifts the soft limit of descriptors to the hard one (P13); whoever may not has fewer connections.
func raiseFileLimit() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
}

// node is the proxy process's parts.
type node struct {
	cfg    ProxyConfig
	writer *telemetry.Writer
	levels *telemetry.Levels
	log    *telemetry.Handler

	registry  *telemetry.Registry
	metrics   *telemetry.Ztunnel
	workloads *workload.Store
	policies  *rbac.Store
	certs     *svid.Manager
	ca        *svid.GRPCClient
	xds       *xds.Client
	proxy     *proxy.Proxy
	dns       *dns.Server
	tracker   *zds.Tracker
	zds       *zds.Client
	ready     admin.Ready
	admin     http.Handler
	loaded    atomic.Bool   // a large push was applied; memory is to be given back
	alone     chan struct{} // closed when no predecessor serves the node's pods
}

func newNode(cfg ProxyConfig, quit func()) (*node, error) {
	n := &node{cfg: cfg, workloads: workload.NewStore(workload.Config{Node: cfg.Node}), policies: rbac.NewStore(), alone: make(chan struct{})}
	n.ready.Pending(readyState)
	n.ready.Pending(readyPods)
	if err := n.observe(); err != nil {
		return nil, err
	}
	for _, f := range []func() error{n.identify, n.discover, n.carry} {
		if err := f(); err != nil {
			return nil, err
		}
	}
	n.admin = admin.New(admin.Config{Dump: n.sections(), Levels: n.levels, Quit: quit})
	return n, nil
}

// observe makes logs and metrics.
func (n *node) observe() (err error) {
	out := n.cfg.LogOutput
	if out == nil {
		out = os.Stdout
	}
	format := telemetry.Plain
	if n.cfg.LogJSON {
		format = telemetry.JSON
	}
	if n.levels, err = telemetry.NewLevels(n.cfg.LogLevel); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}
	n.writer = telemetry.NewWriter(telemetry.WriterConfig{Out: out})
	n.log = telemetry.NewHandler(n.writer, format, n.levels)
	n.registry = telemetry.NewRegistry(telemetry.Config{Component: "ztunnel", Tag: n.cfg.Version})
	n.metrics = telemetry.NewZtunnel(n.registry)
	n.registry.CounterFunc("ambit_log_dropped_total", "Log lines lost because the output was too slow.", func() float64 { return float64(n.writer.Dropped()) })
	return nil
}

// identify makes the source of certificates.
func (n *node) identify() (err error) {
	c := &n.cfg
	n.ca, err = svid.NewCAClient(svid.CAClientConfig{
		Address: c.CAAddress, RootCA: c.CARootCA, ServerNames: names(c.CAHostname), Token: rootca.TokenFile(c.Token),
		ClusterID: c.ClusterID, Headers: c.CAHeaders,
	})
	if err != nil {
		return fmt.Errorf("make CA client: %w", err)
	}
	n.certs = svid.NewManager(svid.Config{CA: n.ca, TTL: c.CertTTL, Logger: n.log.Scope("identity")})
	return nil
}

// discover makes the source of workloads and policies.
func (n *node) discover() error {
	c := &n.cfg
	transport, err := xds.NewTransport(xds.TransportConfig{
		Address: c.XDSAddress, RootCA: c.XDSRootCA, ServerNames: names(c.XDSHostname), Token: rootca.TokenFile(c.Token),
		ClusterID: c.ClusterID, Headers: c.XDSHeaders,
	})
	if err != nil {
		return fmt.Errorf("make xDS client: %w", err)
	}
	n.workloads.Watch(func(c *workload.Change) {
		if len(c.Workloads) >= largePush {
			n.loaded.Store(true)
		}
	})
	n.xds = xds.NewClient(xds.Config{Transport: transport, Node: n.xdsNode(), Logger: n.log.Scope("xds")})
	xds.Subscribe(n.xds, xds.Type[workload.Address]{URL: xds.AddressType, Decode: workload.DecodeAddress}, n.workloads, xds.Options{})
	xds.Subscribe(n.xds, xds.Type[*rbac.Policy]{URL: xds.AuthorizationType, Decode: rbac.Decode}, n.policies, xds.Options{})
	return nil
}

// xdsNode says who we are (X8).
func (n *node) xdsNode() xds.Node {
	c := &n.cfg
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	ip, pod, ns := or(c.InstanceIP, "1.1.1.1"), or(c.PodName, "ztunnel-"+c.Node), or(c.PodNamespace, "istio-system")
	meta := map[string]string{
		"NAME": pod, "NAMESPACE": ns, "INSTANCE_IPS": ip, "NODE_NAME": c.Node, "CLUSTER_ID": c.ClusterID,
		"SERVICE_ACCOUNT": or(c.ServiceAccount, "ztunnel"),
	}
	for k, v := range c.Metadata {
		if s, ok := v.(string); ok {
			meta[k] = s
		}
	}
	return xds.Node{ID: fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.%s", ip, pod, ns, ns, or(c.ClusterDomain, "cluster.local")), Metadata: meta}
}

func names(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// carry makes the data path and what tells it of pods.
func (n *node) carry() (err error) {
	c := &n.cfg
	format := telemetry.Plain
	if c.LogJSON {
		format = telemetry.JSON
	}
	workers := c.Workers
	if workers <= 0 {
		workers = max(1, runtime.GOMAXPROCS(0)/4)
	}
	log := n.log.Scope("proxy")
	n.proxy, err = proxy.New(proxy.Config{
		Node: c.Node, Network: c.Network, ClusterID: c.ClusterID, TrustDomain: c.TrustDomain,
		SameNode: proxy.SameNode(c.SameNode), Workers: workers, DrainTimeout: c.DrainTimeout, Keepalive: c.KeepAlive.Idle,
		ResponseBaggage: c.ResponseBaggage, LogPolicies: c.LogPolicies, LoopbackTunnel: c.LocalhostAppTunnel,
		Pool:   hbone.PoolConfig{StreamsPerConn: c.HBONE.MaxStreams, IdleTimeout: c.HBONE.IdleTimeout, Logger: log},
		Server: hbone.ServerConfig{Logger: log},
		Synced: n.xds.Ready(), Workloads: n.workloads, Policies: n.policies, Certs: n.certs,
		Metrics: n.registry, AccessLog: telemetry.NewAccessLog(n.writer, format, n.levels), Logger: log,
	})
	if err != nil {
		return fmt.Errorf("make data path: %w", err)
	}
	n.dns = dns.New(dns.Config{
		Lookup: dns.Lookup{Domain: c.ClusterDomain, Network: c.Network, Prefer: c.DNS.PreferredNamespace, NoIPv6: !c.IPv6},
		Off:    !c.DNS.Enabled, Workloads: n.workloads, Synced: n.xds.Ready(), Alone: n.alone, Metrics: n.metrics, Logger: n.log.Scope("dns"),
	})
	zlog := n.log.Scope("inpod")
	n.tracker = zds.NewTracker(zds.TrackerConfig{Runner: podRunner{n.proxy, n.dns}, Setup: n.setupNode, Logger: zlog})
	path := c.ZDSPath
	if path == "" {
		path = c.RunDir + "/zds.sock"
	}
	n.zds = zds.NewClient(zds.ClientConfig{Path: path, Logger: zlog})
	return nil
}

// runPods runs what serves the pods; the parts drain at the same time.
func (n *node) runPods(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.proxy.Run(ctx) })
	g.Go(func() error { return n.dns.Run(ctx) })
	return g.Wait()
}

// podRunner has the parts serve the pods.
type podRunner struct {
	proxy *proxy.Proxy
	dns   *dns.Server
}

// StartPod implements zds.Runner.
func (r podRunner) StartPod(ctx context.Context, w *zds.Workload) error {
	if err := r.proxy.StartPod(ctx, w); err != nil {
		return err
	}
	if err := r.dns.StartPod(ctx, w); err != nil {
		r.proxy.StopPod(w.UID, false)
		return err
	}
	return nil
}

// StopPod implements zds.Runner.
func (r podRunner) StopPod(uid string, drain bool) {
	r.dns.StopPod(uid, drain)
	r.proxy.StopPod(uid, drain)
}

// setupNode tells the parts how capture redirects; the proxy takes the descriptor.
func (n *node) setupNode(s zds.Setup) error {
	if err := n.dns.SetupNode(s); err != nil {
		s.Exempt.Close()
		return err
	}
	return n.proxy.SetupNode(s)
}

// run runs the parts. They stop in reverse order: first no more pods come, then the data path drains, then the rest.
func (n *node) run(ctx context.Context) error {
	defer n.ca.Close()
	log := n.log.Scope("app")
	g := run.New(run.Config{Drain: n.cfg.DrainTimeout + 5*time.Second, Logger: log})
	g.Add("log", n.writer.Run)
	ports, err := n.ports(ctx, log)
	if err != nil {
		return err
	}
	serve := func() {
		for _, p := range ports {
			g.Add(p.name, p.serve)
		}
	}
	if n.cfg.ReadySocket == "" {
		serve()
	}
	g.Add("series", n.registry.Run)
	g.Add("certificates", n.certs.Run)
	g.Add("xds", n.xds.Run)
	g.Add("state", n.watchState)
	g.Add("proxy", n.runPods)
	g.Add("pending pods", n.tracker.Run)
	g.Add("zds", func(ctx context.Context) error { return n.zds.Run(ctx, n.tracker) })
	if n.cfg.ReadySocket != "" { // last, so that they are the first to end: a successor waits for them
		serve()
	}
	log.Info("ztunnel starts", "node", n.cfg.Node, "version", n.cfg.Version, "xds", n.cfg.XDSAddress, "ca", n.cfg.CAAddress)
	return g.Run(ctx)
}

// A push of this many workloads leaves more garbage than the heap it makes. giveBackTicks after the last such push, and
// settledTicks after the start, memory is given back: the data path allocates so little that garbage would stay for minutes.
const (
	largePush     = 500
	giveBackTicks = 5
	settledTicks  = 10
)

// watchState keeps readiness and the gauges of pods up to date, and gives memory back after the start and after large pushes.
func (n *node) watchState(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	synced := n.xds.Ready()
	var last zds.State
	restless := 0 // ticks until memory is given back
	for {
		select {
		case <-ctx.Done():
			n.ready.Pending(readyPods)
			return nil
		case <-synced:
			synced = nil
			n.ready.Done(readyState)
			restless = settledTicks
		case <-tick.C:
			if n.loaded.Swap(false) {
				restless = giveBackTicks
			} else if restless > 0 {
				if restless--; restless == 0 {
					memory.GiveBack()
				}
			}
			s := n.tracker.State()
			n.ready.Set(readyPods, s.Connected && s.Synced)
			n.metrics.ActiveProxies.Set(float64(s.Active))
			n.metrics.PendingProxies.Set(float64(s.Pending))
			n.metrics.ProxiesStarted.Add(float64(s.Started - last.Started))
			n.metrics.ProxiesStopped.Add(float64(s.Stopped - last.Stopped))
			last = s
		}
	}
}
