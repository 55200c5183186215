// Package waypoint is the body of the L7 proxy: it puts the parts together and runs them. The parts are in the packages
// below: listener, route and cluster hold the configuration that comes by xDS, filter acts on requests, forward moves
// them.
package waypoint

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/internal/memory"
	"github.com/ambit-mesh/ambit/internal/rootca"
	"github.com/ambit-mesh/ambit/internal/run"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/waypoint/forward"
)

// readyConfig is what readiness waits for: the first listeners and clusters, and the own certificate.
const readyConfig = "configuration"

// Run serves a waypoint until ctx is done: then it drains for the drain time and returns nil.
func Run(ctx context.Context, cfg Config) error {
	raiseFileLimit()
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	w, err := newWaypoint(cfg, quit)
	if err != nil {
		return err
	}
	return w.run(ctx)
}

// raiseFileLimit lifts the soft limit of descriptors to the hard one; whoever may not has fewer connections.
func raiseFileLimit() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
}

// waypoint is the process's parts.
type waypoint struct {
	cfg     Config
	started time.Time
	id      spiffe.ID
	writer  *telemetry.Writer
	errors  *telemetry.Writer // of access logs that go to standard error
	levels  *telemetry.Levels
	log     *telemetry.Handler

	registry  *telemetry.Registry
	workloads *workload.Store
	certs     *svid.Manager
	ca        *svid.GRPCClient
	xds       *xds.Client
	config    *store
	proxy     *forward.Proxy
	ready     admin.Ready
	admin     http.Handler
}

func newWaypoint(cfg Config, quit func()) (*waypoint, error) {
	w := &waypoint{cfg: cfg, started: time.Now(), workloads: workload.NewStore(workload.Config{Node: cfg.Node})}
	w.ready.Pending(readyConfig)
	var err error
	if w.id, err = spiffe.New(cfg.TrustDomain, cfg.PodNamespace, cfg.ServiceAccount); err != nil {
		return nil, fmt.Errorf("make own identity: %w", err)
	}
	for _, f := range []func() error{w.observe, w.identify, w.discover, w.carry} {
		if err := f(); err != nil {
			return nil, err
		}
	}
	w.admin = w.adminHandler(quit)
	return w, nil
}

// adminHandler serves the admin port.
func (w *waypoint) adminHandler(quit func()) http.Handler {
	return admin.New(admin.Config{Quit: quit, Extra: map[string]http.Handler{
		"/config_dump":      http.HandlerFunc(w.configDumpHandler),
		"/clusters":         http.HandlerFunc(w.config.clustersHandler),
		"/listeners":        http.HandlerFunc(w.config.listenersHandler),
		"/certs":            http.HandlerFunc(w.certsHandler),
		"/server_info":      http.HandlerFunc(w.serverInfoHandler),
		"/logging":          http.HandlerFunc(w.loggingHandler),
		"/stats":            http.HandlerFunc(w.statsHandler),
		"/stats/prometheus": w.registry.Handler(),
		"/ready":            w.envoyReady(),
	}})
}

// envoyReady answers as Envoy's admin port does: LIVE, or 503 with what it waits for.
func (w *waypoint) envoyReady() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if pending := w.ready.Waiting(); len(pending) > 0 {
			rw.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(rw, "INITIALIZING: %s\n", strings.Join(pending, ", "))
			return
		}
		fmt.Fprintln(rw, "LIVE")
	})
}

// logDelay is how long a line of a log may wait for others: a write for each request would cost more than the line. Envoy
// waits for up to ten seconds.
const logDelay = 100 * time.Millisecond

// observe makes logs and metrics.
func (w *waypoint) observe() (err error) {
	out := w.cfg.LogOutput
	if out == nil {
		out = os.Stdout
	}
	format := telemetry.Plain
	if w.cfg.LogJSON {
		format = telemetry.JSON
	}
	if w.levels, err = telemetry.NewLevels(w.cfg.LogLevel); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}
	errOut := w.cfg.ErrorOutput
	if errOut == nil {
		errOut = os.Stderr
	}
	w.writer = telemetry.NewWriter(telemetry.WriterConfig{Out: out, Delay: logDelay})
	w.errors = telemetry.NewWriter(telemetry.WriterConfig{Out: errOut, Delay: logDelay})
	w.log = telemetry.NewHandler(w.writer, format, w.levels)
	w.registry = telemetry.NewRegistry(telemetry.Config{Component: "waypoint", Tag: w.cfg.Version})
	w.registry.CounterFunc("ambit_log_dropped_total", "Log lines lost because the output was too slow.", func() float64 { return float64(w.writer.Dropped() + w.errors.Dropped()) })
	return nil
}

// identify makes the source of the own certificate.
func (w *waypoint) identify() (err error) {
	c := &w.cfg
	w.ca, err = svid.NewCAClient(svid.CAClientConfig{
		Address: c.CAAddress, RootCA: c.CARootCA, Token: rootca.TokenFile(c.Token), ClusterID: c.ClusterID, Own: true,
	})
	if err != nil {
		return fmt.Errorf("make CA client: %w", err)
	}
	w.certs = svid.NewManager(svid.Config{CA: w.ca, TTL: c.CertTTL, Logger: w.log.Scope("identity")})
	return nil
}

// discover makes the source of configuration and workloads, in the order in which istiod expects to be asked: clusters,
// endpoints, listeners.
func (w *waypoint) discover() error {
	c := &w.cfg
	transport, err := xds.NewTransport(xds.TransportConfig{
		Address: c.XDSAddress, RootCA: c.XDSRootCA, Token: rootca.TokenFile(c.Token), ClusterID: c.ClusterID,
	})
	if err != nil {
		return fmt.Errorf("make xDS client: %w", err)
	}
	w.xds = xds.NewClient(xds.Config{Transport: transport, Node: w.node(), Logger: w.log.Scope("xds")})
	w.config = newStore(w.log.Scope("config"))
	w.config.subscribe(w.xds)
	xds.Subscribe(w.xds, xds.Type[workload.Address]{URL: xds.WorkloadType, Decode: workload.DecodeWorkload}, w.workloads, xds.Options{})
	return nil
}

// node says who we are (controlplane.md 4.1).
func (w *waypoint) node() xds.Node {
	c := &w.cfg
	labels := map[string]string{
		"gateway.networking.k8s.io/gateway-name": c.Gateway,
		"gateway.istio.io/managed":               "istio.io-mesh-controller",
	}
	for k, v := range c.Labels {
		labels[k] = v
	}
	return xds.Node{
		ID:      fmt.Sprintf("waypoint~%s~%s.%s~%s.svc.%s", c.InstanceIP, c.PodName, c.PodNamespace, c.PodNamespace, c.ClusterDomain),
		Cluster: c.Gateway + "." + c.PodNamespace,
		Metadata: map[string]string{
			"NAME": c.PodName, "NAMESPACE": c.PodNamespace, "SERVICE_ACCOUNT": c.ServiceAccount, "CLUSTER_ID": c.ClusterID,
			"NODE_NAME": c.Node, "INSTANCE_IPS": c.InstanceIP, "WORKLOAD_NAME": c.Gateway, "ISTIO_VERSION": "1.32.0",
			"ENABLE_HBONE": "true", "METADATA_DISCOVERY": "true", "NETWORK": c.Network,
		},
		Labels: labels,
	}
}

// workers is the number of event loops.
func (w *waypoint) workers() int {
	if w.cfg.Workers > 0 {
		return w.cfg.Workers
	}
	return max(1, runtime.GOMAXPROCS(0)/2)
}

// carry makes the data path.
func (w *waypoint) carry() (err error) {
	c := &w.cfg
	log := w.log.Scope("proxy")
	w.proxy, err = forward.New(forward.Config{
		ID: w.id, Network: c.Network, Node: w.node().ID, Env: c.Env, Hostname: c.PodName, Workers: w.workers(), DrainTimeout: c.DrainTimeout,
		Pool: hbone.PoolConfig{Logger: log}, Server: hbone.ServerConfig{Logger: log},
		Snapshot: &w.config.current, Workloads: w.workloads, Certs: w.certs,
		Metrics: w.registry, Lines: w.writer, ErrorLines: w.errors, Logger: log,
	})
	if err != nil {
		return fmt.Errorf("make data path: %w", err)
	}
	return nil
}

// run runs the parts. They stop in reverse order: readiness goes, then the data path drains, then the rest ends.
func (w *waypoint) run(ctx context.Context) error {
	defer w.ca.Close()
	adminL, err := admin.Listen(ctx, w.cfg.AdminAddress)
	if err != nil {
		return fmt.Errorf("listen for the admin port: %w", err)
	}
	metricsL, err := admin.Listen(ctx, w.cfg.MetricsAddress)
	if err != nil {
		return fmt.Errorf("listen for the metrics port: %w", err)
	}
	readyL, err := admin.Listen(ctx, w.cfg.ReadyAddress)
	if err != nil {
		return fmt.Errorf("listen for the readiness port: %w", err)
	}
	log := w.log.Scope("app")
	g := run.New(run.Config{Drain: w.cfg.DrainTimeout + 5*time.Second, Logger: log})
	g.Add("log", w.writer.Run)
	g.Add("log of errors", w.errors.Run)
	g.Add("readiness", func(ctx context.Context) error { return admin.Serve(ctx, log, w.ready.Handler(), readyL...) })
	g.Add("metrics", func(ctx context.Context) error {
		return admin.Serve(ctx, log, admin.MetricsHandler(w.registry.Handler()), metricsL...)
	})
	g.Add("admin", func(ctx context.Context) error { return admin.Serve(ctx, log, w.admin, adminL...) })
	g.Add("series", w.registry.Run)
	g.Add("certificates", w.certs.Run)
	g.Add("clusters", w.config.Run)
	g.Add("xds", w.xds.Run)
	g.Add("proxy", func(ctx context.Context) error { return w.proxy.Run(ctx, w.cfg.ListenAddress) })
	g.Add("state", w.awaitConfig) // the first to end: it takes readiness away
	log.Info("waypoint starts", "gateway", w.cfg.PodNamespace+"/"+w.cfg.Gateway, "version", w.cfg.Version, "xds", w.cfg.XDSAddress, "ca", w.cfg.CAAddress)
	return g.Run(ctx)
}

// awaitConfig makes the waypoint ready once it can serve.
func (w *waypoint) awaitConfig(ctx context.Context) error {
	for _, c := range []<-chan struct{}{w.xds.Ready(), w.config.ready} {
		select {
		case <-c:
		case <-ctx.Done():
			return nil
		}
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if _, err := w.certs.Fetch(ctx, w.id); err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	w.ready.Done(readyConfig)
	defer w.ready.Pending(readyConfig)
	w.giveBack(ctx, tick.C)
	return nil
}

const (
	// quietTicks is how many seconds the configuration has to stay the same before memory is given back, restTicks how many
	// there are between two times.
	quietTicks = 2
	restTicks  = 30
)

// giveBack returns memory to the kernel after the start, and after changes of the configuration: the data path makes so little
// garbage that what the changes have left would stay for long. It blocks until ctx is done.
func (w *waypoint) giveBack(ctx context.Context, tick <-chan time.Time) {
	var last, done *forward.Snapshot
	quiet, rest := 0, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		quiet++
		rest--
		if now := w.config.current.Load(); now != last {
			last, quiet = now, 0
		}
		if quiet >= quietTicks && rest <= 0 && last != done {
			memory.GiveBack()
			done, rest = last, restTicks
		}
	}
}
