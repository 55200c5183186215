// Package ztunnel composes the node proxy of its parts. It is two processes: RunCapture owns the redirection of the node's
// pods and their listeners, RunProxy carries their traffic; they talk ZDS.
package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
	"github.com/ambit-mesh/ambit/ztunnel/capture"
	"github.com/ambit-mesh/ambit/ztunnel/capture/kubelet"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// RunCapture owns the redirection of a node until ctx is done; then it returns nil and leaves pods captured, unless the mesh
// was told to leave the node: then nothing of it remains. It must run in the node's network namespace, as root.
func RunCapture(ctx context.Context, cfg CaptureConfig) error {
	if cfg.RunDir == "" || cfg.PinDir == "" {
		return errors.New("capture without run directory or pin directory")
	}
	left, err := runCapture(ctx, cfg)
	if err != nil || !left {
		return err
	}
	return vacate(cfg)
}

func runCapture(ctx context.Context, cfg CaptureConfig) (left bool, err error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return false, fmt.Errorf("make run directory: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var ready captureReady
	g, ctx := errgroup.WithContext(ctx)
	if cfg.ReadySocket != "" {
		g.Go(func() error { return serve(ctx, "unix", cfg.ReadySocket, &ready) })
	}
	g.Go(func() error {
		defer stop()
		unlock, err := capture.Lock(ctx, log, cfg.RunDir)
		if err != nil {
			return unlessDone(ctx, err)
		}
		defer unlock()
		left, err = own(ctx, cfg, &ready, log)
		return err
	})
	err = g.Wait()
	return left, err
}

// unlessDone is err, or nil once ctx is done.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// captureReady says what cluster says, once the node is ours: until then another capture of the node is at work, or we start.
type captureReady struct {
	cluster *cluster // written before ours
	ours    atomic.Bool
}

// ServeHTTP implements http.Handler.
func (r *captureReady) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if r.ours.Load() {
		r.cluster.ServeHTTP(w, req)
		return
	}
	fmt.Fprintln(w, "ready to follow another capture of this node")
}

// own owns the redirection of the node until ctx is done; the caller has the lock.
func own(ctx context.Context, cfg CaptureConfig, ready *captureReady, log *slog.Logger) (left bool, err error) {
	probes := redirect.Probes(cfg.Probes)
	if probes == "" {
		if probes = redirect.ProbesCaptured; cfg.Kubernetes != nil {
			probes = redirect.ProbesOfKubelet
		}
	}
	node, err := redirect.Open(redirect.Config{
		PinDir: cfg.PinDir, Mounted: cfg.Kubernetes != nil, Cgroup: cfg.Cgroup, Mark: cfg.Mark, Mask: cfg.Mask, Table: cfg.Table, Priority: cfg.Priority,
		AppPorts: redirect.PortRange{First: cfg.AppPortMin, Last: cfg.AppPortMax}, Probes: probes, Logger: log,
	})
	if errors.Is(err, redirect.ErrNotMounted) {
		return false, fmt.Errorf("open redirection: %w; in a container it must be the node's, or all pods leave the mesh when the container ends: "+
			"run mount -t bpf bpf /sys/fs/bpf on the node, or install with --set ztunnel.mountBPF=true", err)
	}
	if err != nil {
		return false, fmt.Errorf("open redirection: %w", err)
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	kernel, err := capture.NewKernel(node)
	if err != nil {
		return false, err
	}
	exempt, err := unix.FcntlInt(uintptr(node.ExemptFD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("duplicate map descriptor: %w", err)
	}
	setup := zds.Setup{AppPortMin: node.AppPorts().First, AppPortMax: node.AppPorts().Last, Exempt: zds.NewFile(exempt)}
	setup.Mark, setup.Mask = node.Mark()
	defer setup.Exempt.Close()
	cluster, err := newCluster(&cfg, kernel, probes == redirect.ProbesByAddress, log)
	if err != nil {
		return false, err
	}
	ready.cluster = cluster
	ready.ours.Store(true)
	prober := newProber(probes, &cfg, node, log)
	m, err := capture.New(capture.Config{
		RunDir: cfg.RunDir, Kernel: kernel, Setup: setup, Policy: cfg.Policy, Linger: cfg.Linger, Cluster: cluster.lookup(), Late: cluster.late(), Probes: prober.How, Logger: log,
	})
	if err != nil {
		return false, err
	}
	log.Info("capture starts", "node", cfg.Node, "run_dir", cfg.RunDir, "pin_dir", cfg.PinDir, "probes", probes)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.Run(ctx) })
	g.Go(func() (err error) { left, err = cluster.run(ctx, m); return err })
	g.Go(func() error { return prober.Run(ctx) })
	g.Go(func() error { giveBackAfterStart(ctx); return nil })
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", m.ServeMetrics)
	if cfg.MetricsAddress != "" {
		g.Go(func() error { return serve(ctx, "tcp", cfg.MetricsAddress, mux) })
	}
	if cfg.ReadyAddress != "" {
		mux.Handle("GET /healthz/ready", cluster)
		g.Go(func() error { return serve(ctx, "tcp", cfg.ReadyAddress, mux) })
	}
	err = g.Wait()
	return left, err
}

// prober tells the kubelet's probes from other connections.
type prober interface {
	How() string
	Run(ctx context.Context) error
}

func newProber(mode redirect.Probes, cfg *CaptureConfig, node *redirect.Node, log *slog.Logger) prober {
	if mode != redirect.ProbesOfKubelet {
		return fixedProber(mode)
	}
	proc := "/proc"
	if cfg.Kubernetes != nil {
		proc = cfg.Kubernetes.Proc
	}
	return kubelet.New(kubelet.Config{Proc: proc, Set: node.SetKubelet, Logger: log})
}

// fixedProber is a mode that needs nothing to be followed.
type fixedProber redirect.Probes

// How implements prober.
func (p fixedProber) How() string { return string(p) }

// Run implements prober.
func (p fixedProber) Run(context.Context) error { return nil }

// serve serves h until ctx is done.
func serve(ctx context.Context, network, address string, h http.Handler) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, network, address)
	if err != nil {
		return fmt.Errorf("listen for HTTP: %w", err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", address, err)
	}
	return nil
}
