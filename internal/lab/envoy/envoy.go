// Package envoy runs a real Envoy as a waypoint of the lab: the stand-in for Istio's pilot-agent, so that Envoy can be
// the judge of our waypoint and of our control plane.
//
// Envoy asks for its certificates by SDS from a local cluster named sds-grpc, as istiod's listeners and clusters say
// (controlplane.md 3.11). The agent therefore gets a certificate for the pod's own account from the mesh's CA, renews
// it, and serves it as the secrets "default" and "ROOTCA" on a unix socket; the private key never is in a file. Envoy
// speaks delta ADS with the control plane itself, with the pod's token. It does not get ISTIO_VERSION as metadata: the
// control plane then leaves out the filters that only Istio's build of Envoy has.
package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	secretpb "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
)

// Config is what Run needs. It must not be modified while Run runs.
type Config struct {
	// Envoy is the program. Required.
	Envoy string
	// RunDir is a directory for the bootstrap and the socket. Required.
	RunDir string
	// XDSAddress and CAAddress are https://host:port. Required.
	XDSAddress, CAAddress string
	// RootCA and Token are files: the roots of the control plane, and the pod's token. Required.
	RootCA, Token string
	// Pod is who the waypoint is. Name, Namespace, ServiceAccount and IP are required.
	Pod Pod
	// TrustDomain; "" = cluster.local.
	TrustDomain string
	// AdminAddress is Envoy's; MetricsAddress and ReadyAddress are the agent's, which asks Envoy; "" = none.
	AdminAddress, MetricsAddress, ReadyAddress string
	// Concurrency is the number of Envoy's workers; 0 = 2.
	Concurrency int
	// LogLevel of Envoy; "" = warning.
	LogLevel string
	// Args follow the agent's own arguments of Envoy.
	Args []string
	// Stdout and Stderr of Envoy; nil = nowhere.
	Stdout, Stderr io.Writer
	// Logger; nil = nothing is logged.
	Logger *slog.Logger
}

// Pod is the pod that Envoy runs in.
type Pod struct {
	Name, Namespace, ServiceAccount, IP, Node, Gateway, ClusterID, Network string
}

// agent is a running Config.
type agent struct {
	cfg Config
	log *slog.Logger
	id  spiffe.ID
	sds *secrets
}

// Run starts Envoy with its certificate and returns when ctx ended and Envoy too, or with an error when either fails.
func Run(ctx context.Context, cfg Config) error {
	if cfg.TrustDomain == "" {
		cfg.TrustDomain = "cluster.local"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	id, err := spiffe.New(cfg.TrustDomain, cfg.Pod.Namespace, cfg.Pod.ServiceAccount)
	if err != nil {
		return fmt.Errorf("make identity: %w", err)
	}
	client, err := svid.NewCAClient(svid.CAClientConfig{
		Address: cfg.CAAddress, RootCA: cfg.RootCA, ClusterID: cfg.Pod.ClusterID, Own: true,
		Token: func() (string, error) { return readToken(cfg.Token) },
	})
	if err != nil {
		return err
	}
	defer client.Close()
	a := &agent{cfg: cfg, log: cfg.Logger, id: id, sds: newSecrets()}
	manager := svid.NewManager(svid.Config{CA: client, Logger: cfg.Logger})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return manager.Run(ctx) })
	group.Go(func() error { return a.follow(ctx, manager) })
	if err := a.serveSecrets(ctx, group); err != nil {
		return err
	}
	if err := a.serveHTTP(ctx, group); err != nil {
		return err
	}
	group.Go(func() error { return a.run(ctx) })
	return group.Wait()
}

func readToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// follow hands each new certificate to Envoy.
func (a *agent) follow(ctx context.Context, m *svid.Manager) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var have uint64
	for {
		if s, err := m.Fetch(ctx, a.id); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			a.log.Warn("no certificate yet", "id", a.id.String(), "err", err)
		} else if s.Generation != have {
			if err := a.sds.set(s); err != nil {
				return err
			}
			have = s.Generation
			a.log.Info("certificate", "id", a.id.String(), "notAfter", s.NotAfter)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *agent) socket() string { return filepath.Join(a.cfg.RunDir, "sds.sock") }

func (a *agent) serveSecrets(ctx context.Context, group *errgroup.Group) error {
	_ = os.Remove(a.socket()) // of an earlier run
	ln, err := net.Listen("unix", a.socket())
	if err != nil {
		return fmt.Errorf("listen for envoy: %w", err)
	}
	rpc := grpc.NewServer()
	secretpb.RegisterSecretDiscoveryServiceServer(rpc, a.sds)
	group.Go(func() error {
		if err := rpc.Serve(ln); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve envoy: %w", err)
		}
		return nil
	})
	group.Go(func() error { <-ctx.Done(); rpc.Stop(); return nil })
	return nil
}

// serveHTTP answers readiness and metrics where a waypoint of ours would, by asking Envoy.
func (a *agent) serveHTTP(ctx context.Context, group *errgroup.Group) error {
	for _, s := range []struct{ listen, path, envoy string }{
		{a.cfg.ReadyAddress, "/healthz/ready", "/ready"}, {a.cfg.MetricsAddress, "/stats/prometheus", "/stats/prometheus"},
	} {
		if s.listen == "" {
			continue
		}
		ln, err := net.Listen("tcp", s.listen)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", s.listen, err)
		}
		mux := http.NewServeMux()
		mux.HandleFunc("GET "+s.path, func(w http.ResponseWriter, r *http.Request) { a.askEnvoy(w, r, s.envoy) })
		srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
		group.Go(func() error {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", s.path, err)
			}
			return nil
		})
		group.Go(func() error { <-ctx.Done(); return srv.Close() })
	}
	return nil
}

// askEnvoy passes on what Envoy's administration interface answers.
func (a *agent) askEnvoy(w http.ResponseWriter, r *http.Request, path string) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://"+a.cfg.AdminAddress+path, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer resp.Body.Close()
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

// run writes the bootstrap once the certificate is there, and keeps Envoy until ctx ends; then Envoy gets SIGTERM.
func (a *agent) run(ctx context.Context) error {
	if !a.sds.await(ctx) {
		return nil
	}
	token, err := readToken(a.cfg.Token)
	if err != nil {
		return err
	}
	boot, err := Bootstrap(a.cfg, token, a.socket())
	if err != nil {
		return err
	}
	path := filepath.Join(a.cfg.RunDir, "bootstrap.json")
	if err := os.WriteFile(path, boot, 0o600); err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	concurrency, level := a.cfg.Concurrency, a.cfg.LogLevel
	if concurrency == 0 {
		concurrency = 2
	}
	if level == "" {
		level = "warning"
	}
	args := append([]string{"-c", path, "--concurrency", fmt.Sprint(concurrency), "--use-dynamic-base-id", "-l", level, "--file-flush-interval-msec", "500"}, a.cfg.Args...)
	cmd := exec.CommandContext(ctx, a.cfg.Envoy, args...)
	cmd.Stdout, cmd.Stderr = a.cfg.Stdout, a.cfg.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); ctx.Err() == nil {
		return fmt.Errorf("envoy ended: %w", errors.Join(err, errors.New("see its log above")))
	}
	return nil
}
