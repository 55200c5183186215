package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"

	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/ztunnel"
)

// captureConfig reads the flags of `ztunnel capture`.
func captureConfig(args []string, env env, out io.Writer) (ztunnel.CaptureConfig, logFlags, error) {
	r := &reader{env: env}
	cfg := ztunnel.CaptureConfig{RunDir: "/var/run/ztunnel", PinDir: "/sys/fs/bpf/ambit"}
	log := logFlags{level: "info", json: env["LOG_FORMAT"] == "json"}
	r.nonEmpty(&cfg.Node, "NODE_NAME")
	r.nonEmpty(&log.level, "RUST_LOG")
	r.nonEmpty(&cfg.Policy.SystemNamespace, "POD_NAMESPACE")
	excluded := "kube-system"
	r.text(&excluded, "EXCLUDE_NAMESPACES")

	f := newFlags("capture", out)
	f.StringVar(&cfg.Node, "node", cfg.Node, "name of this node [NODE_NAME]")
	f.StringVar(&cfg.RunDir, "run-dir", cfg.RunDir, "directory of sockets and state")
	f.StringVar(&cfg.PinDir, "pin-dir", cfg.PinDir, "directory of this node on a BPF file system")
	f.StringVar(&cfg.Cgroup, "cgroup", "", "root of cgroup v2 (default: found)")
	f.StringVar(&cfg.MetricsAddress, "metrics-address", "", "also serve /metrics at this address")
	f.StringVar(&cfg.ReadyAddress, "ready-address", "", "also serve /healthz/ready and /metrics at this address")
	f.StringVar(&cfg.ReadySocket, "ready-socket", env["READY_SOCKET"], "Unix socket of /healthz/ready, also while another capture is at work [READY_SOCKET]")
	probes := f.String("probes", "", "how the kubelet's probes of pods are told from other connections: kubelet, address or captured; MODE,NODE=MODE for some nodes another (default: kubelet with --pods=kubernetes)")
	kubernetes := kubernetesFlags(f, r)
	f.StringVar(&excluded, "exclude-namespaces", excluded, "comma-separated namespaces that are never captured [EXCLUDE_NAMESPACES]")
	dns := f.Bool("dns-capture", true, "capture DNS queries too of pods whose annotation ambient.istio.io/dns-capture does not say")
	f.String("same-node", "direct", "taken for symmetry with proxy, without effect")
	f.StringVar(&log.level, "log-level", log.level, "level of the log [RUST_LOG]")
	f.BoolVar(&log.json, "log-json", log.json, "log JSON [LOG_FORMAT=json]")
	if err := parse(f, args); err != nil {
		return cfg, log, err
	}
	var err error
	if cfg.Probes, err = ofNode(*probes, cfg.Node); err != nil {
		return cfg, log, usageError{fmt.Errorf("--probes=%s: %w", *probes, err)}
	}
	cfg.Policy.NoDNS = !*dns
	cfg.Policy.ExcludeNamespaces = []string{}
	for _, ns := range strings.Split(excluded, ",") {
		if ns = strings.TrimSpace(ns); ns != "" {
			cfg.Policy.ExcludeNamespaces = append(cfg.Policy.ExcludeNamespaces, ns)
		}
	}
	if cfg.Kubernetes, err = kubernetes(&cfg); err != nil {
		return cfg, log, err
	}
	return cfg, log, r.err
}

// ofNode picks a node's value from "VALUE,NODE=VALUE,...".
func ofNode(list, node string) (value string, err error) {
	all, nodes := "", map[string]string{}
	for i, v := range strings.Split(list, ",") {
		name, of, ok := strings.Cut(strings.TrimSpace(v), "=")
		switch {
		case !ok && i == 0:
			all = name
		case !ok || name == "" || of == "":
			return "", fmt.Errorf("%q is not NODE=MODE", v)
		default:
			nodes[name] = of
		}
	}
	if of, ok := nodes[node]; ok {
		return of, nil
	}
	return all, nil
}

// kubernetesFlags declares the flags of capture on a node of a cluster; the result is called when they are parsed, and
// returns nil if pods come by pods.sock only.
func kubernetesFlags(f *flag.FlagSet, r *reader) func(*ztunnel.CaptureConfig) (*ztunnel.KubernetesConfig, error) {
	k := ztunnel.KubernetesConfig{Proc: "/proc"}
	pods, agent := "socket", "ztunnel-"
	f.StringVar(&pods, "pods", pods, "where pods come from: socket (pods.sock only) or kubernetes")
	f.StringVar(&k.Kubeconfig, "kubeconfig", "", "API server of --pods=kubernetes (default: that of the cluster we run in)")
	f.StringVar(&k.Proc, "host-proc", k.Proc, "the node's /proc")
	f.StringVar(&k.CNIConfDir, "cni-conf-dir", "", "keep the CNI plugin in the network configuration of this directory")
	f.StringVar(&k.CNIBinDir, "cni-bin-dir", "/opt/cni/bin", "directory of CNI plugins")
	f.StringVar(&k.CNIBinary, "cni-binary", "/ambit-cni", "the CNI plugin to install")
	f.StringVar(&k.SocketDir, "node-run-dir", "", "--run-dir as the node sees it (default: the same)")
	f.DurationVar(&k.Propagation, "leave-propagation", ztunnel.DefaultPropagation, "when the mesh leaves the node: time for the other nodes to learn that its pods speak plaintext")
	f.StringVar(&agent, "agent-prefix", agent, "pods of our own namespace whose names begin so start without being captured")
	return func(cfg *ztunnel.CaptureConfig) (*ztunnel.KubernetesConfig, error) {
		switch {
		case pods == "socket" && k.CNIConfDir != "":
			return nil, usageError{errors.New("--cni-conf-dir needs --pods=kubernetes: the CNI plugin knows no labels")}
		case pods == "socket":
			return nil, nil
		case pods != "kubernetes":
			return nil, usageError{fmt.Errorf("--pods=%s: not socket or kubernetes", pods)}
		case k.Propagation < 0:
			return nil, usageError{fmt.Errorf("--leave-propagation=%s: less than 0", k.Propagation)}
		case cfg.Node == "":
			return nil, usageError{errors.New("--pods=kubernetes needs the node's name: --node or NODE_NAME")}
		}
		system := "istio-system"
		r.nonEmpty(&system, "POD_NAMESPACE")
		r.nonEmpty(&k.PodUID, "POD_UID")
		k.Agent, k.UserAgent = []string{system + "/" + agent}, "ambit-capture/"+admin.ProgramVersion(version)
		return &k, nil
	}
}

func newFlags(verb string, out io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("ztunnel "+verb, flag.ContinueOnError)
	f.SetOutput(out)
	return f
}

// parse ignores what follows the flags: the chart runs "proxy ztunnel".
func parse(f *flag.FlagSet, args []string) error {
	err := f.Parse(args)
	if err != nil && err != flag.ErrHelp {
		return usageError{err}
	}
	return err
}

// proxyConfig reads the flags of `ztunnel proxy`.
func proxyConfig(args []string, env env, out io.Writer) (ztunnel.ProxyConfig, error) {
	mesh, err := readOptional(meshConfigPath)
	if err != nil {
		return ztunnel.ProxyConfig{}, fmt.Errorf("read mesh configuration: %w", err)
	}
	cfg, err := proxyEnv(mesh, env)
	if err != nil {
		return cfg, err
	}
	f := newFlags("proxy", out)
	rootCA := proxyFlags(f, &cfg)
	if err := parse(f, args); err != nil {
		return cfg, err
	}
	if *rootCA != "" {
		cfg.XDSRootCA, cfg.CARootCA = *rootCA, *rootCA
	}
	if cfg.RunDir != "" && env["INPOD_UDS"] == "" && !isSet(f, "zds") {
		cfg.ZDSPath = ""
	}
	if isSet(f, "xds-address") && !isSet(f, "ca-address") && env["CA_ADDRESS"] == "" {
		cfg.CAAddress = cfg.XDSAddress
	}
	cfg.XDSAddress, cfg.CAAddress = withScheme(cfg.XDSAddress), withScheme(cfg.CAAddress)
	return cfg, check(&cfg)
}

func isSet(f *flag.FlagSet, name string) bool {
	set := false
	f.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

func withScheme(address string) string {
	if address == "" || strings.Contains(address, "://") {
		return address
	}
	return "https://" + address
}

// proxyFlags declares the flags; the result is the root CA for both.
func proxyFlags(f *flag.FlagSet, cfg *ztunnel.ProxyConfig) (rootCA *string) {
	f.StringVar(&cfg.Node, "node", cfg.Node, "name of this node [NODE_NAME]")
	f.StringVar(&cfg.RunDir, "run-dir", cfg.RunDir, "directory of capture's sockets")
	f.StringVar(&cfg.ZDSPath, "zds", cfg.ZDSPath, "socket of the agent; with --run-dir its zds.sock [INPOD_UDS]")
	f.StringVar(&cfg.XDSAddress, "xds-address", cfg.XDSAddress, "control plane [XDS_ADDRESS]")
	f.StringVar(&cfg.CAAddress, "ca-address", cfg.CAAddress, "certificate authority [CA_ADDRESS] (default: as --xds-address)")
	rootCA = f.String("root-ca", "", "root certificates of both: file, SYSTEM or PEM [XDS_ROOT_CA, CA_ROOT_CA]")
	f.StringVar(&cfg.Token, "token", cfg.Token, "file with the token, or the token [AUTH_TOKEN]")
	f.StringVar(&cfg.ClusterID, "cluster-id", cfg.ClusterID, "name of the cluster [CLUSTER_ID]")
	f.StringVar(&cfg.ClusterDomain, "cluster-domain", cfg.ClusterDomain, "DNS domain of the cluster [CLUSTER_DOMAIN]")
	f.StringVar(&cfg.Network, "network", cfg.Network, "network of this node [NETWORK]")
	f.StringVar(&cfg.TrustDomain, "trust-domain", cfg.TrustDomain, "trust domain [TRUST_DOMAIN]")
	f.StringVar(&cfg.AdminAddress, "admin-address", cfg.AdminAddress, "address of the admin server")
	f.StringVar(&cfg.MetricsAddress, "metrics-address", cfg.MetricsAddress, "address of /metrics")
	f.StringVar(&cfg.ReadyAddress, "ready-address", cfg.ReadyAddress, "address of the readiness probe")
	f.StringVar(&cfg.ReadySocket, "ready-socket", cfg.ReadySocket, "Unix socket of the readiness probe; with it another proxy may have the ports still [READY_SOCKET]")
	f.Var((*sameNodeFlag)(&cfg.SameNode), "same-node", "between pods of this node: direct or hbone")
	f.IntVar(&cfg.Workers, "workers", cfg.Workers, "event loops; 0 is one per CPU [ZTUNNEL_WORKER_THREADS]")
	f.DurationVar(&cfg.CertTTL, "cert-ttl", cfg.CertTTL, "lifetime of certificates to ask for [SECRET_TTL]")
	f.DurationVar(&cfg.DrainTimeout, "drain-timeout", cfg.DrainTimeout, "how long connections go on at the end [CONNECTION_TERMINATION_DEADLINE]")
	f.BoolVar(&cfg.XDSOnDemand, "xds-on-demand", cfg.XDSOnDemand, "ask for workloads as they are needed [XDS_ON_DEMAND]")
	f.StringVar(&cfg.LogLevel, "log-level", cfg.LogLevel, "level of the log, and of scopes: info,access=warn [RUST_LOG]")
	f.BoolVar(&cfg.LogJSON, "log-json", cfg.LogJSON, "log JSON [LOG_FORMAT=json]")
	return rootCA
}

type sameNodeFlag ztunnel.SameNode

func (s *sameNodeFlag) String() string { return string(*s) }

func (s *sameNodeFlag) Set(v string) error {
	switch ztunnel.SameNode(v) {
	case ztunnel.SameNodeDirect, ztunnel.SameNodeHBONE:
		*s = sameNodeFlag(v)
		return nil
	}
	return fmt.Errorf("not direct or hbone")
}

// proxyEnv returns the defaults, over them the mesh configuration, over that the environment.
func proxyEnv(mesh []byte, env env) (ztunnel.ProxyConfig, error) {
	cfg := ztunnel.DefaultProxyConfig()
	r := &reader{env: env}
	y, err := readMeshConfig(mesh, env["PROXY_CONFIG"])
	if err != nil {
		return cfg, err
	}
	istiod := "https://localhost:15012"
	if env["KUBERNETES_SERVICE_HOST"] != "" {
		istiod = "https://istiod.istio-system.svc:15012"
	}
	cfg.XDSAddress, cfg.CAAddress = istiod, istiod
	y.apply(&cfg)
	readNode(r, &cfg)
	readControl(r, &cfg)
	readData(r, &cfg)
	cfg.Metadata = r.metadata(y.ProxyMetadata)
	if v, ok := cfg.Metadata["DNS_CAPTURE"].(string); ok {
		cfg.DNS.Enabled = v == "true" // D1
	}
	if v, ok := cfg.Metadata["DNS_PROXY_ADDR"].(string); ok && v != "" {
		if cfg.DNS.Address, err = parseDNSAddress(v); err != nil {
			return cfg, usageError{fmt.Errorf("read DNS_PROXY_ADDR %q: %w", v, err)}
		}
	}
	cfg.Workers = r.workers(runtime.NumCPU())
	if y.Concurrency != nil && env["ZTUNNEL_WORKER_THREADS"] == "" {
		if cfg.Workers = int(*y.Concurrency); cfg.Workers == 0 {
			cfg.Workers = runtime.NumCPU()
		}
	}
	return cfg, r.err
}

func parseDNSAddress(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	return netip.ParseAddrPort(net.JoinHostPort(host, port))
}

func readNode(r *reader, cfg *ztunnel.ProxyConfig) {
	r.nonEmpty(&cfg.Node, "NODE_NAME")
	r.nonEmpty(&cfg.PodName, "POD_NAME")
	r.nonEmpty(&cfg.PodNamespace, "POD_NAMESPACE")
	r.nonEmpty(&cfg.ServiceAccount, "SERVICE_ACCOUNT")
	r.nonEmpty(&cfg.InstanceIP, "INSTANCE_IP")
	r.nonEmpty(&cfg.ReadySocket, "READY_SOCKET")
	r.nonEmpty(&cfg.ZDSPath, "INPOD_UDS")
	r.text(&cfg.Network, "NETWORK")
	r.nonEmpty(&cfg.ClusterID, "ISTIO_META_CLUSTER_ID", "CLUSTER_ID")
	r.nonEmpty(&cfg.ClusterDomain, "CLUSTER_DOMAIN")
	r.nonEmpty(&cfg.TrustDomain, "TRUST_DOMAIN")
	r.nonEmpty(&cfg.LogLevel, "RUST_LOG")
	cfg.LogJSON = r.env["LOG_FORMAT"] == "json"
}

func readControl(r *reader, cfg *ztunnel.ProxyConfig) {
	r.text(&cfg.XDSAddress, "XDS_ADDRESS")
	r.text(&cfg.CAAddress, "CA_ADDRESS")
	r.nonEmpty(&cfg.XDSRootCA, "XDS_ROOT_CA")
	r.nonEmpty(&cfg.CARootCA, "CA_ROOT_CA")
	r.nonEmpty(&cfg.XDSHostname, "ALT_XDS_HOSTNAME")
	r.nonEmpty(&cfg.CAHostname, "ALT_CA_HOSTNAME")
	cfg.XDSHeaders, cfg.CAHeaders = r.prefixed("XDS_HEADER_"), r.prefixed("CA_HEADER_")
	r.boolean(&cfg.XDSOnDemand, "XDS_ON_DEMAND")
	r.nonEmpty(&cfg.LocalXDSPath, "LOCAL_XDS_PATH")
	r.nonEmpty(&cfg.LocalXDS, "LOCAL_XDS")
	r.nonEmpty(&cfg.Token, "AUTH_TOKEN")
	r.duration(&cfg.CertTTL, "SECRET_TTL")
	r.nonEmpty(&cfg.CRLPath, "CRL_PATH")
	r.nonEmpty(&cfg.CompliancePolicy, "COMPLIANCE_POLICY")
	r.nonEmpty(&cfg.DNS.PreferredNamespace, "PREFERED_SERVICE_NAMESPACE")
}

func readData(r *reader, cfg *ztunnel.ProxyConfig) {
	if v := r.env["ENABLE_ORIG_SRC"]; v != "" {
		must := false
		r.boolean(&must, "ENABLE_ORIG_SRC")
		cfg.OriginalSource = ztunnel.OriginalSourceNever
		if must {
			cfg.OriginalSource = ztunnel.OriginalSourceMust
		}
	}
	r.unsigned(&cfg.PacketMark, "PACKET_MARK")
	r.boolean(&cfg.PortReuse, "INPOD_PORT_REUSE")
	r.boolean(&cfg.IPv6, "IPV6_ENABLED")
	on := true
	r.boolean(&on, "KEEPALIVE_ENABLED")
	r.duration(&cfg.KeepAlive.Idle, "KEEPALIVE_TIME")
	r.duration(&cfg.KeepAlive.Interval, "KEEPALIVE_INTERVAL")
	r.count(&cfg.KeepAlive.Probes, "KEEPALIVE_RETRIES")
	if !on {
		cfg.KeepAlive = ztunnel.KeepAlive{}
	}
	r.boolean(&cfg.UserTimeout, "USER_TIMEOUT_ENABLED")
	r.unsigned(&cfg.HBONE.StreamWindow, "HTTP2_STREAM_WINDOW_SIZE")
	r.unsigned(&cfg.HBONE.ConnectionWindow, "HTTP2_CONNECTION_WINDOW_SIZE")
	r.unsigned(&cfg.HBONE.FrameSize, "HTTP2_FRAME_SIZE")
	r.count(&cfg.HBONE.MaxStreams, "POOL_MAX_STREAMS_PER_CONNECTION")
	r.duration(&cfg.HBONE.IdleTimeout, "POOL_UNUSED_RELEASE_TIMEOUT")
	r.boolean(&cfg.LocalhostAppTunnel, "LOCALHOST_APP_TUNNEL")
	r.boolean(&cfg.ResponseBaggage, "ENABLE_RESPONSE_BAGGAGE")
	r.boolean(&cfg.LogPolicies, "AUTHZ_POLICY_INFO_LOGGING")
	r.boolean(&cfg.SOCKS5, "UNSTABLE_ENABLE_SOCKS5")
	r.drain(&cfg.DrainTimeout)
}

// check refuses what is asked for and not there, rather than run without it.
func check(cfg *ztunnel.ProxyConfig) error {
	switch {
	case cfg.CompliancePolicy != "" && cfg.CompliancePolicy != "pqc":
		return usageError{fmt.Errorf("compliance policy %q is not known", cfg.CompliancePolicy)}
	case cfg.HBONE.FrameSize < 1<<14 || cfg.HBONE.FrameSize > 1<<24-1:
		return usageError{fmt.Errorf("frame size %d is not 16384 to 16777215 (RFC 9113 6.5.2)", cfg.HBONE.FrameSize)}
	case cfg.HBONE.StreamWindow > 1<<31-1 || cfg.HBONE.ConnectionWindow > 1<<31-1:
		return usageError{fmt.Errorf("window of 2 GiB or more (RFC 9113 6.9.1)")}
	case cfg.XDSOnDemand && cfg.DNS.Enabled:
		return usageError{fmt.Errorf("XDS_ON_DEMAND needs DNS_CAPTURE to be off (D1)")}
	case cfg.Workers < 0:
		return usageError{fmt.Errorf("%d workers", cfg.Workers)}
	}
	return nil
}
