// Command controlplane is the mesh's control plane: delta ADS and certificates for node proxies on one TLS port.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/controlplane"
	"github.com/ambit-mesh/ambit/controlplane/ca"
	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/apiserver"
	"github.com/ambit-mesh/ambit/internal/admin"
)

// version is set by the linker; without that it is the module's.
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// run is main with its surroundings passed in; it returns the exit code: 0, 1 for a failure, 2 for wrong flags.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	cfg, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "controlplane:", err)
		return 2
	}
	if err := controlplane.Run(ctx, cfg); err != nil {
		cfg.Logger.Error("control plane ended", "err", err)
		return 1
	}
	return 0
}

// flags are the values that need a look before they are a Config.
type flags struct {
	manifests, kubeconfig, replica, listen, admin, review, tokenKey, accounts, aliases, level string

	waypointResources string
	waypointReplicas  int

	inCluster bool
}

func parse(args []string, stderr io.Writer) (controlplane.Config, error) {
	var cfg controlplane.Config
	var f flags
	fs := flag.NewFlagSet("controlplane", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.BoolVar(&f.inCluster, "in-cluster", false, "work from the API server of the cluster that this pod runs in")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "work from the API server that this file names")
	fs.StringVar(&f.manifests, "manifests", "", "work from a directory of Kubernetes manifests, watched for changes, in place of an API server")
	fs.StringVar(&f.replica, "replica-name", "", "name that no other replica has; empty = the host's name, which is the pod's")
	fs.StringVar(&f.listen, "listen", "0.0.0.0:15012", "IP address and port for xDS and certificates, TLS only")
	fs.StringVar(&f.admin, "admin-address", "127.0.0.1:15014", "IP address and port for /ready, /debug and /metrics; empty = none")
	fs.StringVar(&f.review, "webhook-address", "", "IP address and port where the API server asks about objects before it stores them, TLS only; empty = none")
	fs.StringVar(&cfg.Webhook, "webhook-configuration", "", "ValidatingWebhookConfiguration that gets the root certificates for that; empty = none")
	fs.StringVar(&cfg.RootCAOut, "root-ca-out", "", "file that gets the root certificates, PEM")
	fs.StringVar(&cfg.CADir, "ca-dir", "", "directory of the certificate authority (ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem); empty = the secret cacerts or istio-ca-secret of the root namespace, with --manifests a new root in memory")
	fs.StringVar(&f.tokenKey, "lab-token-key", "", "file with the key that lab tokens are signed with (required with --manifests)")
	fs.StringVar(&cfg.TrustDomain, "trust-domain", "cluster.local", "trust domain of the mesh")
	fs.StringVar(&f.aliases, "trust-domain-aliases", "", "further trust domains that certificates may be asked for, comma-separated")
	fs.StringVar(&cfg.ClusterID, "cluster-id", "Kubernetes", "name of the cluster")
	fs.StringVar(&cfg.RootNamespace, "root-namespace", "istio-system", "namespace of mesh-wide policies")
	fs.StringVar(&f.accounts, "trusted-node-accounts", "", "service accounts (namespace/name, comma-separated) of node proxies; empty = ztunnel of the root namespace")
	fs.DurationVar(&cfg.MaxCertTTL, "max-cert-ttl", 0, "longest lifetime of certificates; 0 = 90 days")
	fs.StringVar(&cfg.Waypoint.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of services")
	w := &cfg.Waypoint
	fs.StringVar(&w.Image, "waypoint-image", "", "image of the waypoints that are made of Gateways; empty = none are made")
	fs.StringVar((*string)(&w.PullPolicy), "waypoint-pull-policy", "", "pull policy of the image: Always, IfNotPresent or Never; empty = the cluster's default")
	fs.StringVar(&f.waypointResources, "waypoint-resources", "", "resources of a waypoint, JSON: {\"requests\": {\"cpu\": \"100m\"}, \"limits\": {}}")
	fs.IntVar(&f.waypointReplicas, "waypoint-replicas", 1, "instances of a waypoint that has no autoscaler")
	fs.DurationVar(&w.Drain, "waypoint-drain-timeout", 30*time.Second, "how long requests of a waypoint that ends may go on")
	fs.StringVar(&w.LogLevel, "waypoint-log-level", "info", "level of waypoints, and levels of scopes")
	fs.StringVar(&w.ControlPlane, "waypoint-control-plane", "", "URL at which waypoints reach the control plane; empty = the service ambit-controlplane of the root namespace")
	fs.StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	cfg.Version = admin.ProgramVersion(version)
	if fs.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return cfg, f.apply(&cfg, stderr)
}

// apply checks the flags; each error names the flag, its value and the cause.
func (f flags) apply(cfg *controlplane.Config, stderr io.Writer) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return fmt.Errorf("--log-level=%s: want debug, info, warn or error", f.level)
	}
	cfg.Logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	var err error
	if cfg.Listen, err = netip.ParseAddrPort(f.listen); err != nil {
		return fmt.Errorf("--listen=%s: want an IP address and port: %w", f.listen, err)
	}
	if f.admin != "" {
		if cfg.AdminListen, err = parseAdmin(f.admin); err != nil {
			return fmt.Errorf("--admin-address=%s: want an IP address and port: %w", f.admin, err)
		}
	}
	if f.review != "" {
		if cfg.ReviewListen, err = netip.ParseAddrPort(f.review); err != nil {
			return fmt.Errorf("--webhook-address=%s: want an IP address and port: %w", f.review, err)
		}
	}
	if cfg.MaxCertTTL < 0 {
		return fmt.Errorf("--max-cert-ttl=%s: want no negative duration", cfg.MaxCertTTL)
	}
	if f.accounts != "" {
		if cfg.TrustedNodeAccounts, err = controlplane.ParseAccounts(f.accounts); err != nil {
			return fmt.Errorf("--trusted-node-accounts=%s: %w", f.accounts, err)
		}
	}
	for td := range strings.SplitSeq(f.aliases, ",") {
		if td = strings.TrimSpace(td); td != "" {
			cfg.TrustDomainAliases = append(cfg.TrustDomainAliases, td)
		}
	}
	if err := f.waypoint(&cfg.Waypoint); err != nil {
		return err
	}
	switch chosen := f.sources(); {
	case len(chosen) == 0:
		return errors.New("one of --in-cluster, --kubeconfig=FILE and --manifests=DIR is required: where the objects come from")
	case len(chosen) > 1:
		return fmt.Errorf("%s exclude each other: the objects come from one place", strings.Join(chosen, " and "))
	case f.manifests != "":
		return f.directory(cfg)
	}
	return f.cluster(cfg)
}

// waypoint checks the flags about waypoints.
func (f flags) waypoint(s *gateway.Settings) error {
	switch s.PullPolicy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		return fmt.Errorf("--waypoint-pull-policy=%s: want Always, IfNotPresent or Never", s.PullPolicy)
	}
	if f.waypointReplicas < 1 || f.waypointReplicas > maxReplicas {
		return fmt.Errorf("--waypoint-replicas=%d: want 1 to %d", f.waypointReplicas, maxReplicas)
	}
	s.Replicas = int32(f.waypointReplicas)
	if s.Drain < time.Second {
		return fmt.Errorf("--waypoint-drain-timeout=%s: want at least 1s", s.Drain)
	}
	if f.waypointResources == "" {
		return nil
	}
	d := json.NewDecoder(strings.NewReader(f.waypointResources))
	d.DisallowUnknownFields()
	if err := d.Decode(&s.Resources); err != nil {
		return fmt.Errorf("--waypoint-resources=%s: want requests and limits: %w", f.waypointResources, err)
	}
	return nil
}

// maxReplicas is what is certainly meant as something else.
const maxReplicas = 1000

// sources lists the flags that say where objects come from.
func (f flags) sources() []string {
	var out []string
	if f.inCluster {
		out = append(out, "--in-cluster")
	}
	if f.kubeconfig != "" {
		out = append(out, "--kubeconfig")
	}
	if f.manifests != "" {
		out = append(out, "--manifests")
	}
	return out
}

// directory sets up a mesh without an API server.
func (f flags) directory(cfg *controlplane.Config) error {
	if info, err := os.Stat(f.manifests); err != nil {
		return fmt.Errorf("--manifests=%s: %w", f.manifests, err)
	} else if !info.IsDir() {
		return fmt.Errorf("--manifests=%s: not a directory", f.manifests)
	}
	cfg.Source = kube.NewDirectory(kube.DirectoryConfig{Path: f.manifests, Quiet: 15 * time.Millisecond, MaxDelay: 100 * time.Millisecond, Logger: cfg.Logger})
	if f.tokenKey == "" {
		return errors.New("--lab-token-key is required with --manifests: the file with the key of the lab's tokens")
	}
	key, err := os.ReadFile(f.tokenKey)
	if err != nil {
		return fmt.Errorf("--lab-token-key=%s: %w", f.tokenKey, err)
	}
	if key = bytes.TrimSpace(key); len(key) < 16 {
		return fmt.Errorf("--lab-token-key=%s: want at least 16 bytes, got %d", f.tokenKey, len(key))
	}
	cfg.Authenticator, cfg.TrustNodeClaim = ca.LabTokens{Key: key}, true
	return nil
}

// cluster sets up a mesh on an API server. It does not talk to the server yet.
func (f flags) cluster(cfg *controlplane.Config) error {
	if f.tokenKey != "" {
		return errors.New("--lab-token-key is for --manifests: with an API server proxies show the tokens of their service accounts")
	}
	client, err := apiserver.Connect(f.kubeconfig)
	if err != nil && f.kubeconfig != "" {
		return fmt.Errorf("--kubeconfig=%s: %w", f.kubeconfig, err)
	}
	if err != nil {
		return fmt.Errorf("--in-cluster: %w", err)
	}
	if f.replica == "" {
		if f.replica, err = os.Hostname(); err != nil {
			return fmt.Errorf("--replica-name is required: the host has no name: %w", err)
		}
	}
	cfg.Source = apiserver.NewSource(apiserver.SourceConfig{Client: client, Logger: cfg.Logger})
	cfg.Authenticator = apiserver.NewTokens(client)
	if cfg.CADir == "" {
		cfg.Vault = apiserver.NewVault(client, cfg.RootNamespace)
	}
	cfg.Cluster = apiserver.NewCluster(client, cfg.RootNamespace, f.replica, cfg.Logger)
	return nil
}

// parseAdmin also takes ":port", all addresses.
func parseAdmin(address string) (netip.AddrPort, error) {
	if strings.HasPrefix(address, ":") {
		address = "0.0.0.0" + address
	}
	return netip.ParseAddrPort(address)
}
