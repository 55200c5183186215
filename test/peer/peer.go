// Package peer runs a foreign ztunnel, Istio's Rust one, as the proxy of a node, so that ours can be measured against it
// and shown to work with it. The program is named by its user and never part of this tree.
//
// What a node of Istio has around its ztunnel is here too, as small as it can be:
//
//   - agent.go: the node agent's end of ZDS, which hands the pods' namespaces to the ztunnel (ztunnel.md section 8);
//   - rules.go: the redirection in a pod's namespace (redirection.md 1.6 and 1.8), by nftables over netlink;
//   - ca.go: a certificate authority for a mesh without control plane (ztunnel.md C1 to C3);
//   - labnode.go: agent, redirection and ztunnel as a node of the lab (rustnode is the program);
//   - static.go: a static configuration in place of xDS (ztunnel.md X18).
package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/test/bed"
)

// Config says how to run a ztunnel.
type Config struct {
	// Bin is the ztunnel program.
	Bin string
	// Node is where it runs and whose pods it serves. Pods are those it is told of at start.
	Node *bed.Node
	Pods []PodInfo
	// Dir is an empty directory of its own for sockets and logs.
	Dir string
	// Env is added to its environment, as KEY=VALUE: where xDS and the CA are.
	Env []string
	// Workers is the number of its data-plane threads. Zero means 2, its default.
	Workers int
	// Log is the value of RUST_LOG. Empty means "info,access=off".
	Log string
}

// PodInfo is what the node agent knows of a pod.
type PodInfo struct {
	NS                                   *netns.NS
	UID, Name, Namespace, ServiceAccount string
}

// A Ztunnel is a running foreign ztunnel with its node agent. Stop ends both.
type Ztunnel struct {
	Process *bed.Process
	agent   *agent
	log     *os.File
	logPath string
	undo    []func() error
}

// Start redirects the pods' traffic, starts the ztunnel and returns when it has taken every pod and is ready, or when
// ctx ends. Pods of other meshes, or without one, must not be listed.
func Start(ctx context.Context, cfg Config) (*Ztunnel, error) {
	z := &Ztunnel{}
	if err := z.start(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("start ztunnel of node %q: %w", cfg.Node.Name, err), z.Stop())
	}
	return z, nil
}

func (z *Ztunnel) start(ctx context.Context, cfg Config) error {
	for _, p := range cfg.Pods {
		if err := Redirect(p.NS); err != nil {
			return fmt.Errorf("redirect pod %q: %w", p.Name, err)
		}
		z.undo = append(z.undo, func() error { return Unredirect(p.NS) })
	}
	a, err := listenAgent(filepath.Join(cfg.Dir, "zds.sock"), cfg.Pods)
	if err != nil {
		return err
	}
	z.agent = a
	z.logPath = filepath.Join(cfg.Dir, "ztunnel.log")
	if z.log, err = os.Create(z.logPath); err != nil {
		return err
	}
	cmd := exec.Command(cfg.Bin, "proxy", "ztunnel")
	cmd.Dir = cfg.Dir
	cmd.Stdout, cmd.Stderr = z.log, z.log
	cmd.Env = append(environ(cfg), cfg.Env...)
	if z.Process, err = cfg.Node.NS.Start(cmd); err != nil {
		return err
	}
	return z.awaitReady(ctx, cfg)
}

// environ is the ztunnel's whole environment, so that nothing of ours leaks into it.
func environ(cfg Config) []string {
	workers, log := cfg.Workers, cfg.Log
	if workers == 0 {
		workers = 2
	}
	if log == "" {
		log = "info,access=off"
	}
	return []string{
		"PATH=" + os.Getenv("PATH"),
		"RUST_LOG=" + log,
		"NODE_NAME=" + cfg.Node.Name,
		"INPOD_UDS=" + filepath.Join(cfg.Dir, "zds.sock"),
		fmt.Sprintf("ZTUNNEL_WORKER_THREADS=%d", workers),
		"ISTIO_META_DNS_CAPTURE=false",
	}
}

// awaitReady waits for the agent's snapshot to be taken and for the readiness port.
func (z *Ztunnel) awaitReady(ctx context.Context, cfg Config) error {
	select {
	case <-z.agent.synced:
	case <-z.Process.Done():
		return fmt.Errorf("ztunnel ended (%v); its last words: %s", z.Process.Err(), z.LogTail())
	case <-ctx.Done():
		return fmt.Errorf("wait for ztunnel to take its pods: %w; its last words: %s", ctx.Err(), z.LogTail())
	}
	if err := z.agent.result(); err != nil {
		return fmt.Errorf("hand over pods: %w", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := probe(ctx, cfg.Node.NS)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for ztunnel to be ready: %w; its last words: %s", err, z.LogTail())
		case <-tick.C:
		}
	}
}

// probe asks the readiness port of the node's ztunnel.
func probe(ctx context.Context, ns *bed.NS) error {
	client := http.Client{Transport: &http.Transport{DialContext: ns.Dial, DisableKeepAlives: true}, Timeout: time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:15021/healthz/ready", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("readiness: %s", resp.Status)
	}
	return nil
}

// LogTail is the end of the ztunnel's log, for error texts. It is whole after Stop.
func (z *Ztunnel) LogTail() string {
	const tail = 4000
	b, err := os.ReadFile(z.logPath)
	if err != nil {
		return err.Error()
	}
	if len(b) > tail {
		b = b[len(b)-tail:]
	}
	return string(b)
}

// Restart stops the ztunnel gracefully, or kills it if grace is zero, and starts a new one in its place with the same
// pods. The caller knows the configuration.
func (z *Ztunnel) Restart(ctx context.Context, cfg Config, grace time.Duration) (*Ztunnel, error) {
	if err := z.stop(grace); err != nil {
		return nil, err
	}
	return Start(ctx, cfg)
}

// Stop ends the ztunnel and its agent and removes the redirection. It may be called twice.
func (z *Ztunnel) Stop() error { return z.stop(2 * time.Second) }

func (z *Ztunnel) stop(grace time.Duration) error {
	z.Process.Stop(grace)
	var errs []error
	if z.agent != nil {
		errs = append(errs, z.agent.close())
		z.agent = nil
	}
	for _, f := range z.undo {
		errs = append(errs, f())
	}
	z.undo = nil
	if z.log != nil {
		errs = append(errs, z.log.Close())
		z.log = nil
	}
	return errors.Join(errs...)
}
