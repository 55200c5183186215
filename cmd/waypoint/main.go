// Command waypoint is the L7 proxy of a namespace or service. Flags come first, then the environment variables that Istio's
// waypoint template sets, then the defaults.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/waypoint"
)

// version is set by the linker; without that it is the module's.
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], environment(os.Environ()), os.Stdout, os.Stderr))
}

// gcPercent is how much the heap may grow before garbage is collected, in percent of what is in use.
const gcPercent = 50

// usageError is a flag or variable that makes no sense.
type usageError struct{ error }

// Unwrap returns the cause.
func (e usageError) Unwrap() error { return e.error }

// run is main without the process around it; it returns the exit status.
func run(ctx context.Context, args []string, env map[string]string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "version" {
		fmt.Fprintln(stdout, admin.ProgramVersion(version))
		return 0
	}
	cfg, err := config(args, env, stderr)
	if env["GOGC"] == "" { // the data path makes next to no garbage: collecting it earlier costs nothing and saves megabytes
		debug.SetGCPercent(gcPercent)
	}
	if err == nil {
		cfg.Version = admin.ProgramVersion(version)
		cfg.Env = func(name string) (string, bool) { v, ok := env[name]; return v, ok }
		err = waypoint.Run(ctx, cfg)
	}
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintln(stderr, "waypoint:", err)
		return 2
	}
	fmt.Fprintln(stderr, "waypoint:", err)
	return 1
}

// environment is a list of NAME=value as a map.
func environment(list []string) map[string]string {
	e := map[string]string{}
	for _, kv := range list {
		if k, v, ok := strings.Cut(kv, "="); ok {
			e[k] = v
		}
	}
	return e
}

// config reads flags and environment.
func config(args []string, env map[string]string, stderr io.Writer) (waypoint.Config, error) {
	c := waypoint.DefaultConfig()
	fs := flag.NewFlagSet("waypoint", flag.ContinueOnError)
	fs.SetOutput(stderr)
	text := func(to *string, name, variable, help string) {
		if v := env[variable]; v != "" {
			*to = v
		}
		fs.StringVar(to, name, *to, help+" ["+variable+"]")
	}
	text(&c.PodName, "pod-name", "POD_NAME", "name of the own pod")
	text(&c.PodNamespace, "pod-namespace", "POD_NAMESPACE", "its namespace")
	text(&c.ServiceAccount, "service-account", "SERVICE_ACCOUNT", "its service account")
	text(&c.InstanceIP, "instance-ip", "INSTANCE_IP", "its address")
	text(&c.Gateway, "gateway", "ISTIO_META_GATEWAY_NAME", "name of the Gateway that the pod belongs to")
	text(&c.Node, "node", "ISTIO_META_NODE_NAME", "name of the node")
	text(&c.Network, "network", "ISTIO_META_NETWORK", "ID of the pod's network")
	text(&c.ClusterID, "cluster-id", "ISTIO_META_CLUSTER_ID", "name of the cluster")
	text(&c.ClusterDomain, "cluster-domain", "CLUSTER_DOMAIN", "DNS domain of services")
	text(&c.TrustDomain, "trust-domain", "TRUST_DOMAIN", "trust domain of the own identity")
	text(&c.XDSAddress, "xds-address", "XDS_ADDRESS", "control plane")
	text(&c.CAAddress, "ca-address", "CA_ADDRESS", "certificate authority; the control plane if empty")
	text(&c.XDSRootCA, "root-ca", "XDS_ROOT_CA", "path, SYSTEM or PEM of the roots that control plane and CA are checked with")
	text(&c.Token, "token", "TOKEN_FILE", "path of the service account's token, or the token")
	text(&c.AdminAddress, "admin-address", "ADMIN_ADDRESS", "host:port of the admin interface")
	text(&c.MetricsAddress, "metrics-address", "METRICS_ADDRESS", "host:port of the metrics")
	text(&c.ReadyAddress, "ready-address", "READY_ADDRESS", "host:port of readiness")
	text(&c.LogLevel, "log-level", "WAYPOINT_LOG_LEVEL", "level, and levels of scopes: info,config=debug")
	fs.TextVar(&c.ListenAddress, "listen", c.ListenAddress, "where tunnels come in")
	fs.DurationVar(&c.CertTTL, "cert-ttl", c.CertTTL, "lifetime of certificates asked for")
	fs.DurationVar(&c.DrainTimeout, "drain-timeout", c.DrainTimeout, "how long requests may go on at the end")
	fs.IntVar(&c.Workers, "workers", c.Workers, "number of event loops; 0: one for two CPUs")
	fs.BoolVar(&c.LogJSON, "log-json", c.LogJSON, "write JSON lines")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return c, err
		}
		return c, usageError{err}
	}
	if fs.NArg() > 0 {
		return c, usageError{fmt.Errorf("unexpected argument %q", fs.Arg(0))}
	}
	c.CARootCA = c.XDSRootCA
	if c.CAAddress == "" {
		c.CAAddress = c.XDSAddress
	}
	for _, r := range []struct{ name, value string }{
		{"pod-name", c.PodName}, {"pod-namespace", c.PodNamespace}, {"service-account", c.ServiceAccount},
		{"instance-ip", c.InstanceIP}, {"gateway", c.Gateway}, {"xds-address", c.XDSAddress},
	} {
		if r.value == "" {
			return c, usageError{fmt.Errorf("--%s is required", r.name)}
		}
	}
	return c, nil
}
