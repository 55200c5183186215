package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/ztunnel/capture"
	"github.com/ambit-mesh/ambit/ztunnel/capture/nodepods"
	"github.com/ambit-mesh/ambit/ztunnel/cni"
	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// cluster is what capture does on a node of Kubernetes; nil elsewhere.
type cluster struct {
	source    *nodepods.Source
	installer *cni.Installer
	// propagation is as in KubernetesConfig.
	propagation time.Duration
	log         *slog.Logger
}

// newCluster returns nil if the pods come by pods.sock only.
func newCluster(cfg *CaptureConfig, kernel capture.Kernel, probePorts bool, log *slog.Logger) (*cluster, error) {
	k := cfg.Kubernetes
	if k == nil {
		return nil, nil
	}
	api, err := nodepods.NewAPI(k.Kubeconfig, k.UserAgent)
	if err != nil {
		return nil, err
	}
	c := &cluster{log: log, propagation: k.Propagation, source: nodepods.New(nodepods.Config{
		API: api, Node: cfg.Node, Self: k.PodUID, Memory: filepath.Join(cfg.RunDir, podsock.MemoryFile), ProbePorts: probePorts, Logger: log,
		Find: nodepods.NewFinder(k.Proc, func(path string) ([]netip.Addr, error) {
			ns, err := kernel.Open(path)
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			return kernel.Addrs(ns)
		}),
	})}
	c.installer = installer(cfg, log)
	return c, nil
}

// installer of the CNI plugin; nil if it is not to be installed.
func installer(cfg *CaptureConfig, log *slog.Logger) *cni.Installer {
	k := cfg.Kubernetes
	if k == nil || k.CNIConfDir == "" {
		return nil
	}
	dir := k.SocketDir
	if dir == "" {
		dir = cfg.RunDir
	}
	return &cni.Installer{
		ConfDir: k.CNIConfDir, BinDir: k.CNIBinDir, Binary: k.CNIBinary, Logger: log,
		Entry: cni.Config{Socket: filepath.Join(dir, capture.PodsSocket), Memory: filepath.Join(dir, podsock.MemoryFile), Agent: k.Agent},
	}
}

// lookup is who knows the pods that the CNI plugin asks for.
func (c *cluster) lookup() capture.Cluster {
	if c == nil {
		return nil
	}
	return c.source
}

// late counts the pods that ran before they were captured.
func (c *cluster) late() func() uint64 {
	if c == nil {
		return nil
	}
	return c.source.Late
}

// run watches the pods and keeps the plugin installed until ctx is done. left says that the mesh was told to leave the node,
// and that the pods were told.
func (c *cluster) run(ctx context.Context, m *capture.Manager) (left bool, err error) {
	if c == nil {
		return false, nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.source.Run(ctx, m) })
	installing, stop := context.WithCancel(ctx)
	stopped := make(chan struct{})
	g.Go(func() error {
		defer close(stopped)
		if c.installer == nil {
			return nil
		}
		return c.installer.Run(installing)
	})
	g.Go(func() error {
		defer stop()
		if !c.prepare(ctx, m) {
			return nil
		}
		stop()
		<-stopped
		left = c.leave(ctx, m)
		return nil
	})
	err = g.Wait()
	return left, err
}

// ServeHTTP answers whether pods of the mesh can be started.
func (c *cluster) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if err := c.ready(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

func (c *cluster) ready() error {
	switch {
	case c == nil:
		return nil
	case c.left():
		return errors.New("the mesh leaves this node: ambit uninstall asked for it")
	case !c.source.Synced():
		return errors.New("the pods of the node are not known yet")
	case c.installer != nil && !c.installer.Installed():
		return errors.New("the CNI plugin is not in the node's network configuration yet")
	}
	return nil
}
