package waypoint

import (
	"io"
	"net/netip"
	"time"
)

// Config configures Run. The names in brackets are the environment variables of Istio's injection that cmd/waypoint maps
// to a field. "Default" is what DefaultConfig sets; apart from that zero means zero.
type Config struct {
	// PodName, PodNamespace, ServiceAccount and InstanceIP are the waypoint's own pod: node ID and identity. Required
	// [POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT, INSTANCE_IP].
	PodName, PodNamespace, ServiceAccount, InstanceIP string
	// Gateway is the name of the Gateway that the pod belongs to, in its own namespace. Required
	// [ISTIO_META_GATEWAY_NAME].
	Gateway string
	// Node is the name of the node that the pod runs on [ISTIO_META_NODE_NAME].
	Node string
	// Network is the pod's network ID [ISTIO_META_NETWORK].
	Network string
	// ClusterID names the cluster [ISTIO_META_CLUSTER_ID]. Default Kubernetes.
	ClusterID string
	// ClusterDomain is the DNS domain of services. Default cluster.local.
	ClusterDomain string
	// TrustDomain is that of the own identity [TRUST_DOMAIN]. Default cluster.local.
	TrustDomain string

	// XDSAddress and CAAddress are URLs; without a scheme it is https. Required.
	XDSAddress, CAAddress string
	// XDSRootCA and CARootCA are a path, "SYSTEM" or PEM. Default ./var/run/secrets/istio/root-cert.pem.
	XDSRootCA, CARootCA string
	// Token is a path or a literal. Default ./var/run/secrets/tokens/istio-token.
	Token string
	// CertTTL is the lifetime asked for. Default 24 h.
	CertTTL time.Duration
	// Labels are the pod's labels, as node metadata LABELS.
	Labels map[string]string

	// ListenAddress is where tunnels come in. Default [::]:15008.
	ListenAddress netip.AddrPort
	// AdminAddress, MetricsAddress and ReadyAddress are host:port. Default localhost:15000, :15020, :15021.
	AdminAddress, MetricsAddress, ReadyAddress string

	// Workers is the number of event loops; 0 means one for each two CPUs.
	Workers int
	// DrainTimeout is how long requests may go on after the end was asked for. Default 5 s.
	DrainTimeout time.Duration

	// LogLevel is a level, and levels of scopes: "info,access=warn". Default info.
	LogLevel string
	// LogJSON writes JSON.
	LogJSON bool
	// Version is the program's.
	Version string
	// Env is the process's environment, for tags of spans that are told from it; nil: it is empty.
	Env func(name string) (string, bool)
	// LogOutput is where log lines go; nil means standard output.
	LogOutput io.Writer
	// ErrorOutput is where access logs go whose file is /dev/stderr; nil means standard error.
	ErrorOutput io.Writer
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		ClusterID:      "Kubernetes",
		ClusterDomain:  "cluster.local",
		TrustDomain:    "cluster.local",
		XDSRootCA:      "./var/run/secrets/istio/root-cert.pem",
		CARootCA:       "./var/run/secrets/istio/root-cert.pem",
		Token:          "./var/run/secrets/tokens/istio-token",
		CertTTL:        24 * time.Hour,
		ListenAddress:  netip.AddrPortFrom(netip.IPv6Unspecified(), 15008),
		AdminAddress:   "localhost:15000",
		MetricsAddress: ":15020",
		ReadyAddress:   ":15021",
		DrainTimeout:   5 * time.Second,
		LogLevel:       "info",
	}
}
