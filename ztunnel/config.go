package ztunnel

import (
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/capture"
)

// CaptureConfig configures RunCapture.
type CaptureConfig struct {
	// Node is the node's name, for logs.
	Node string
	// RunDir is where zds.sock, pods.sock and capture's state are. It must live as long as the pins. Mandatory.
	RunDir string
	// PinDir is the node's own directory on a BPF file system, which is mounted if there is none, but not with Kubernetes: there
	// we run in a container. Mandatory.
	PinDir string
	// Cgroup is the root of cgroup v2. "" means that it is found.
	Cgroup string
	// Mark, Mask, Table and Priority of the redirection. 0 means redirect's defaults.
	Mark, Mask      uint32
	Table, Priority int
	// AppPortMin and AppPortMax bound the source ports of connections towards applications. 0 means redirect's defaults.
	AppPortMin, AppPortMax uint16
	// Policy says which pods are never captured.
	Policy capture.Policy
	// Linger is how long the listeners of a pod that leaves the mesh stay when its redirection has ended, for handshakes that are
	// under way. 0 means capture's default.
	Linger time.Duration
	// Probes says how the kubelet's probes of pods are told from other connections: "kubelet", "address" or "captured",
	// as redirect.Probes. "" is kubelet on a node of Kubernetes, and captured elsewhere.
	Probes string
	// Kubernetes is where the node's pods come from, besides pods.sock. nil for nowhere else.
	Kubernetes *KubernetesConfig
	// MetricsAddress is where /metrics is served besides pods.sock; "" for nowhere.
	MetricsAddress string
	// ReadyAddress is where /healthz/ready says whether new pods of the mesh can be started, and /metrics is; "" for
	// nowhere.
	ReadyAddress string
	// ReadySocket is a Unix socket where /healthz/ready says the same, and that all is well while another capture of this node
	// is at work, for whose end we wait; "" for nowhere.
	ReadySocket string
	// Logger, nil for none.
	Logger *slog.Logger
}

// KubernetesConfig configures capture on a node of a cluster. The process must see the node's processes, and the network
// namespaces at the paths at which the container runtime has them.
type KubernetesConfig struct {
	// Kubeconfig names the API server; "" means that of the cluster that the process runs in.
	Kubeconfig string
	// Proc is the node's /proc. Mandatory.
	Proc string
	// CNIConfDir and CNIBinDir are the container runtime's directories for network configurations and plugins. "" means
	// that no CNI plugin is installed: then pods are captured only after they have started.
	CNIConfDir, CNIBinDir string
	// CNIBinary is the plugin's file that is installed. Mandatory with CNIConfDir.
	CNIBinary string
	// SocketDir is RunDir as the node sees it, which is where the plugin runs. "" means RunDir.
	SocketDir string
	// Agent are the pods of the mesh's node agent, as namespace/name-prefix: they start without being asked about.
	Agent []string
	// PodUID is the UID of the pod that the process runs in, by which the mesh can be told to leave the node. "" means never.
	PodUID string
	// Propagation is how long the other nodes have to learn that pods of this one speak plaintext, before they stop to take
	// anything else when the mesh leaves the node. Zero means no pause.
	Propagation time.Duration
	// UserAgent is what the API server's log calls us.
	UserAgent string
}

// SameNode says how two captured pods of one node are connected.
type SameNode string

const (
	// SameNodeDirect joins their sockets under the destination's policy, without TLS.
	SameNodeDirect SameNode = "direct"
	// SameNodeHBONE treats them as if they were on two nodes.
	SameNodeHBONE SameNode = "hbone"
)

// OriginalSource says whether connections to the application come from the client's address (P7, P10).
type OriginalSource int

const (
	// OriginalSourceTry uses it if the kernel lets us, and remembers.
	OriginalSourceTry OriginalSource = iota
	// OriginalSourceMust fails if it is not possible.
	OriginalSourceMust
	// OriginalSourceNever connects from the pod's own address.
	OriginalSourceNever
)

// ProxyConfig configures RunProxy. The names in brackets are the environment variables of Istio's chart that cmd/ztunnel
// maps to a field. "Default" is what DefaultProxyConfig sets; apart from that zero means zero.
type ProxyConfig struct {
	// Node is the node's name: workload scope, certificate prefetch, xDS metadata [NODE_NAME].
	Node string
	// PodName, PodNamespace, ServiceAccount and InstanceIP are the proxy's own pod: node ID, and identity of its own
	// 15008 listener, which exists only if the first three are set (P2) [POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT,
	// INSTANCE_IP].
	PodName, PodNamespace, ServiceAccount, InstanceIP string
	// RunDir is capture's directory.
	RunDir string
	// ZDSPath is the agent's socket [INPOD_UDS]; "" means zds.sock in RunDir. Default
	// /var/run/ztunnel/ztunnel.sock if RunDir is "".
	ZDSPath string

	// Network is the node's network ID [NETWORK].
	Network string
	// ClusterID names the cluster [ISTIO_META_CLUSTER_ID, CLUSTER_ID]. Default Kubernetes.
	ClusterID string
	// ClusterDomain is the DNS domain of services [CLUSTER_DOMAIN]. Default cluster.local.
	ClusterDomain string
	// TrustDomain is that of our own identity [TRUST_DOMAIN]. Default cluster.local.
	TrustDomain string

	// XDSAddress and CAAddress are URLs; without a scheme it is https [XDS_ADDRESS, CA_ADDRESS]. "" disables xDS.
	XDSAddress, CAAddress string
	// XDSRootCA and CARootCA are a path, "SYSTEM" or PEM [XDS_ROOT_CA, CA_ROOT_CA].
	// Default ./var/run/secrets/istio/root-cert.pem.
	XDSRootCA, CARootCA string
	// XDSHostname and CAHostname are extra server names [ALT_XDS_HOSTNAME, ALT_CA_HOSTNAME].
	XDSHostname, CAHostname string
	// XDSHeaders and CAHeaders are extra gRPC metadata [XDS_HEADER_*, CA_HEADER_*].
	XDSHeaders, CAHeaders map[string]string
	// XDSOnDemand asks for workloads as they are needed (X3) [XDS_ON_DEMAND].
	XDSOnDemand bool
	// LocalXDSPath is a file of static configuration, LocalXDS its text [LOCAL_XDS_PATH, LOCAL_XDS].
	LocalXDSPath, LocalXDS string
	// Metadata is node metadata for xDS [ISTIO_META_*, proxyMetadata of PROXY_CONFIG].
	Metadata map[string]any
	// Token is a path or a literal [AUTH_TOKEN]. Default ./var/run/secrets/tokens/istio-token.
	Token string
	// CertTTL is the lifetime asked for [SECRET_TTL]. Default 24 h.
	CertTTL time.Duration
	// CRLPath is a certificate revocation list (H5) [CRL_PATH].
	CRLPath string
	// CompliancePolicy is "" or "pqc" [COMPLIANCE_POLICY].
	CompliancePolicy string

	// AdminAddress, MetricsAddress and ReadyAddress are host:port. Default localhost:15000, :15020, :15021.
	AdminAddress, MetricsAddress, ReadyAddress string
	// ReadySocket is a Unix socket where /healthz/ready is served too [READY_SOCKET]; "" for nowhere. With it a proxy may be
	// started while its predecessor runs: ports that the predecessor has are waited for, and at our end we give them up first.
	ReadySocket string

	// SameNode says how pods of this node are connected. Default SameNodeDirect.
	SameNode SameNode
	// OriginalSource is [ENABLE_ORIG_SRC].
	OriginalSource OriginalSource
	// PacketMark is the mark of our sockets under istio-cni (P6); our capture sends its own [PACKET_MARK]. Default 1337.
	PacketMark uint32
	// PortReuse lets another proxy listen on the same ports under istio-cni (P15) [INPOD_PORT_REUSE]. Default true.
	PortReuse bool
	// IPv6 listens on IPv6 too [IPV6_ENABLED]. Default true.
	IPv6 bool
	// Workers is the number of loops; 0 means one per CPU [ZTUNNEL_WORKER_THREADS, see Workers].
	Workers int

	// KeepAlive is for connections of applications (1.3) [KEEPALIVE_*].
	KeepAlive KeepAlive
	// UserTimeout sets TCP_USER_TIMEOUT to KeepAlive.Idle + Probes * Interval [USER_TIMEOUT_ENABLED].
	UserTimeout bool

	// HBONE has the settings of tunnels.
	HBONE HBONEConfig
	// LocalhostAppTunnel sends app tunnels with PROXY protocol to loopback (P11) [LOCALHOST_APP_TUNNEL]. Default true.
	LocalhostAppTunnel bool
	// ResponseBaggage exchanges baggage in answers [ENABLE_RESPONSE_BAGGAGE]. Default true.
	ResponseBaggage bool
	// LogPolicies logs the policy that decided at level info (I19) [AUTHZ_POLICY_INFO_LOGGING].
	LogPolicies bool
	// SOCKS5 listens on 127.0.0.1:15080 of every pod (P17) [UNSTABLE_ENABLE_SOCKS5].
	SOCKS5 bool

	// DNS is the DNS proxy.
	DNS DNSConfig

	// DrainTimeout is how long connections may go on after the end was asked for
	// [CONNECTION_TERMINATION_DEADLINE, TERMINATION_GRACE_PERIOD_SECONDS]. Default 5 s.
	DrainTimeout time.Duration

	// LogLevel is a level, and levels of scopes: "info,access=warn" [RUST_LOG]. Default info.
	LogLevel string
	// LogJSON writes JSON [LOG_FORMAT=json].
	LogJSON bool
	// Version is the program's, for istio_build.
	Version string
	// LogOutput is where log lines go; nil means standard output.
	LogOutput io.Writer
}

// KeepAlive is TCP keep-alive. Idle <= 0 turns it off.
type KeepAlive struct {
	// Idle is the time without data before the first probe, Interval that between probes. Default 180 s.
	Idle, Interval time.Duration
	// Probes without answer end the connection. Default 9.
	Probes int
}

// HBONEConfig has the settings of tunnels.
type HBONEConfig struct {
	// StreamWindow and ConnectionWindow are receive windows in bytes, FrameSize the largest frame taken (H2)
	// [HTTP2_STREAM_WINDOW_SIZE, HTTP2_CONNECTION_WINDOW_SIZE, HTTP2_FRAME_SIZE]. Default 4 MiB, 16 MiB, 1 MiB.
	StreamWindow, ConnectionWindow, FrameSize uint32
	// MaxStreams is the number of streams of a tunnel before another is opened (H21)
	// [POOL_MAX_STREAMS_PER_CONNECTION]. Default 100.
	MaxStreams int
	// IdleTimeout closes a tunnel without streams (H23) [POOL_UNUSED_RELEASE_TIMEOUT]. Default 5 min.
	IdleTimeout time.Duration
}

// DNSConfig is the DNS proxy.
type DNSConfig struct {
	// Enabled is node metadata DNS_CAPTURE (D1) [ISTIO_META_DNS_CAPTURE]. Default true.
	Enabled bool
	// Address is where it listens in each pod (P4) [ISTIO_META_DNS_PROXY_ADDR]. Default 127.0.0.1:15053 and [::1]:15053,
	// when it is zero.
	Address netip.AddrPort
	// PreferredNamespace decides between services of the same name [PREFERED_SERVICE_NAMESPACE].
	PreferredNamespace string
}

// DefaultProxyConfig returns the defaults of ztunnel.
func DefaultProxyConfig() ProxyConfig {
	return ProxyConfig{
		ZDSPath:            "/var/run/ztunnel/ztunnel.sock",
		ClusterID:          "Kubernetes",
		ClusterDomain:      "cluster.local",
		TrustDomain:        "cluster.local",
		XDSRootCA:          "./var/run/secrets/istio/root-cert.pem",
		CARootCA:           "./var/run/secrets/istio/root-cert.pem",
		Token:              "./var/run/secrets/tokens/istio-token",
		CertTTL:            24 * time.Hour,
		AdminAddress:       "localhost:15000",
		MetricsAddress:     ":15020",
		ReadyAddress:       ":15021",
		SameNode:           SameNodeDirect,
		PacketMark:         1337,
		PortReuse:          true,
		IPv6:               true,
		KeepAlive:          KeepAlive{Idle: 180 * time.Second, Interval: 180 * time.Second, Probes: 9},
		HBONE:              HBONEConfig{StreamWindow: 4 << 20, ConnectionWindow: 16 << 20, FrameSize: 1 << 20, MaxStreams: 100, IdleTimeout: 5 * time.Minute},
		LocalhostAppTunnel: true,
		ResponseBaggage:    true,
		DNS:                DNSConfig{Enabled: true},
		DrainTimeout:       5 * time.Second,
		LogLevel:           "info",
	}
}
