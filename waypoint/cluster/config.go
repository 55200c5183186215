package cluster

import (
	"crypto/sha256"
	"errors"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	dfpclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

//lint:file-ignore SA1019 deprecated fields are still sent, and Envoy still obeys them

const (
	defaultConnectTimeout = 5 * time.Second
	defaultCleanup        = 5 * time.Second
	defaultRefresh        = 5 * time.Second
)

// Discovery is how a cluster's endpoints become known.
type Discovery uint8

// The ways.
const (
	// Static: they are in the cluster.
	Static Discovery = iota
	// EDS: they come as a resource named ServiceName.
	EDS
	// StrictDNS: each address of Names is an endpoint.
	StrictDNS
	// LogicalDNS: the first address of the only name is the endpoint; it changes for new connections only.
	LogicalDNS
	// OriginalDst: the endpoint is where the client wanted to go; see Cluster.At.
	OriginalDst
	// Dynamic: the endpoint is the request's host, resolved; see Cluster.At.
	Dynamic
)

// Service is a service that a cluster stands for.
type Service struct{ Host, Name, Namespace string }

// Config is a compiled Cluster. It is immutable.
type Config struct {
	Name string
	// StatName is the name in statistics: alt_stat_name without its semicolon, or Name.
	StatName  string
	Discovery Discovery
	// ServiceName is the name of the EDS resource; "" if Discovery is another.
	ServiceName string
	// Endpoints are those in the resource itself: of Static all, of StrictDNS and LogicalDNS what is to be resolved.
	Endpoints *Assignment
	DNS       DNS
	// CacheName is the name of the DNS cache of a Dynamic cluster.
	CacheName string
	// Cleanup is how long endpoints made by Cluster.At stay when they are not used.
	Cleanup time.Duration
	// PortOverride, if not 0, replaces the port of an OriginalDst cluster's endpoints.
	PortOverride uint16

	// ConnectTimeout bounds the time until a connection is there.
	ConnectTimeout time.Duration
	// Keepalive are the options of TCP keep-alive; all zero if it is off.
	Keepalive Keepalive
	HTTP

	// Services, Subset, Rule (the path of the DestinationRule), External and ALPNOverride are the metadata under "istio".
	Services     []Service
	Subset       string
	Rule         string
	External     bool
	ALPNOverride string

	balance    balanceConfig
	outlier    *outlierConfig
	thresholds thresholds
	perHost    int64 // connections to one endpoint, or unlimited
	transports []transportMatch
	transport  *Transport
	digest     [sha256.Size]byte
}

// DNS says how names are resolved.
type DNS struct {
	// Refresh is how often a name is resolved again; RespectTTL makes the answer's TTL that time.
	Refresh    time.Duration
	RespectTTL bool
	// Jitter is the greatest random time added to Refresh.
	Jitter time.Duration
	Family DNSFamily
}

// DNSFamily says which addresses of a name count.
type DNSFamily uint8

// The families.
const (
	// PreferV6: IPv6 addresses, or if there are none IPv4 (Envoy's AUTO).
	PreferV6 DNSFamily = iota
	OnlyV4
	OnlyV6
	// PreferV4: IPv4 addresses, or if there are none IPv6.
	PreferV4
	// Both: all addresses.
	Both
)

// Keepalive are the options of TCP keep-alive; zero leaves one to the system.
type Keepalive struct {
	On             bool
	Probes         int
	Idle, Interval time.Duration
}

// Decode reads and compiles a resource; it has the form that package xds asks for.
func Decode(_ string, body []byte) (*Config, error) {
	var c clusterv3.Cluster
	if err := proto.Unmarshal(body, &c); err != nil {
		return nil, err
	}
	return Compile(&c)
}

// Compile compiles a cluster. An error names the field. What Envoy would do and is not done here is refused, unless it
// changes nothing about where requests go.
func Compile(p *clusterv3.Cluster) (*Config, error) {
	c := &Config{Name: p.GetName(), StatName: p.GetAltStatName()}
	if c.Name == "" {
		return nil, field.Errorf("name", "required")
	}
	if n := len(c.StatName); n > 0 && c.StatName[n-1] == ';' {
		c.StatName = c.StatName[:n-1]
	}
	if c.StatName == "" {
		c.StatName = c.Name
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	if err != nil {
		return nil, err
	}
	c.digest = sha256.Sum256(b)
	for _, step := range []func(*clusterv3.Cluster) error{
		c.refuse, c.compileTimes, c.compileTransports, c.compileHTTP, c.compileDiscovery, c.compileBalance, c.compileOutlier, c.compileBreakers,
	} {
		if err := step(p); err != nil {
			return nil, err
		}
	}
	c.readMetadata(p.GetMetadata().GetFilterMetadata()["istio"])
	return c, nil
}

// refuse names fields that would change where requests go.
func (c *Config) refuse(p *clusterv3.Cluster) error {
	switch {
	case len(p.GetHealthChecks()) > 0:
		return field.Errorf("health_checks", "unsupported: endpoints' health comes by EDS and outlier detection")
	case p.GetLbSubsetConfig() != nil && len(p.GetLbSubsetConfig().GetSubsetSelectors()) > 0:
		return field.Errorf("lb_subset_config", "unsupported: subsets are clusters of their own")
	case p.GetUpstreamConfig() != nil:
		return field.Errorf("upstream_config", "unsupported")
	case p.GetTransportSocketMatcher() != nil:
		return field.Errorf("transport_socket_matcher", "unsupported, use transport_socket_matches")
	}
	for i, f := range p.GetFilters() {
		if !knownFilter(f) {
			return field.Index(field.Errorf("typed_config", "unknown network filter %q of type %q", f.GetName(), f.GetTypedConfig().GetTypeUrl()), "filters", i)
		}
	}
	return nil
}

// knownFilter says whether an upstream network filter may be left out: those that exchange metadata between proxies, which
// is known here from the workloads' records (controlplane.md 3.10).
func knownFilter(f *clusterv3.Filter) bool {
	switch f.GetName() {
	case "istio.metadata_exchange", "envoy.filters.network.upstream.metadata_exchange", "envoy.filters.network.peer_metadata", "upstream_peer_metadata":
		return true
	}
	return false
}

func (c *Config) compileTimes(p *clusterv3.Cluster) (err error) {
	if c.ConnectTimeout, err = field.Duration("connect_timeout", p.GetConnectTimeout(), defaultConnectTimeout); err != nil {
		return err
	}
	if c.ConnectTimeout == 0 {
		return field.Errorf("connect_timeout", "must be more than 0")
	}
	if c.Cleanup, err = field.Duration("cleanup_interval", p.GetCleanupInterval(), defaultCleanup); err != nil {
		return err
	}
	if k := p.GetUpstreamConnectionOptions().GetTcpKeepalive(); k != nil {
		c.Keepalive = Keepalive{
			On: true, Probes: int(k.GetKeepaliveProbes().GetValue()),
			Idle:     time.Duration(k.GetKeepaliveTime().GetValue()) * time.Second,
			Interval: time.Duration(k.GetKeepaliveInterval().GetValue()) * time.Second,
		}
	}
	return nil
}

func (c *Config) compileDiscovery(p *clusterv3.Cluster) error {
	switch d := p.GetClusterDiscoveryType().(type) {
	case *clusterv3.Cluster_ClusterType:
		if err := c.compileCustom(d.ClusterType); err != nil {
			return field.At(err, "cluster_type")
		}
	default: // absent means STATIC
		switch p.GetType() {
		case clusterv3.Cluster_STATIC:
			c.Discovery = Static
		case clusterv3.Cluster_EDS:
			c.Discovery = EDS
			if p.GetEdsClusterConfig() == nil {
				return field.Errorf("eds_cluster_config", "required by type EDS")
			}
			if c.ServiceName = p.GetEdsClusterConfig().GetServiceName(); c.ServiceName == "" {
				c.ServiceName = c.Name
			}
			return nil
		case clusterv3.Cluster_STRICT_DNS:
			c.Discovery = StrictDNS
		case clusterv3.Cluster_LOGICAL_DNS:
			c.Discovery = LogicalDNS
		case clusterv3.Cluster_ORIGINAL_DST:
			c.Discovery = OriginalDst
			port := p.GetOriginalDstLbConfig().GetUpstreamPortOverride().GetValue()
			if port > 65535 {
				return field.Errorf("original_dst_lb_config.upstream_port_override", "not a port: %d", port)
			}
			c.PortOverride = uint16(port)
			return nil
		default:
			return field.Errorf("type", "unknown value %d", p.GetType())
		}
	}
	if c.Discovery == Dynamic {
		return nil
	}
	a, err := compileAssignment(p.GetLoadAssignment(), c.Discovery == StrictDNS || c.Discovery == LogicalDNS)
	if err != nil {
		return field.At(err, "load_assignment")
	}
	c.Endpoints = a
	if c.Discovery == LogicalDNS && len(a.Endpoints) != 1 {
		return field.Errorf("load_assignment", "%d endpoints, and LOGICAL_DNS demands 1", len(a.Endpoints))
	}
	return c.compileDNS(p)
}

func (c *Config) compileCustom(t *clusterv3.Cluster_CustomClusterType) error {
	var d dfpclusterv3.ClusterConfig
	if !t.GetTypedConfig().MessageIs(&d) {
		return field.Errorf("typed_config", "unknown kind of cluster %q of type %q", t.GetName(), t.GetTypedConfig().GetTypeUrl())
	}
	if err := t.GetTypedConfig().UnmarshalTo(&d); err != nil {
		return field.At(err, "typed_config")
	}
	c.Discovery = Dynamic
	cache := d.GetDnsCacheConfig()
	if cache == nil {
		return field.Errorf("typed_config.dns_cache_config", "required")
	}
	c.CacheName = cache.GetName()
	var err error
	if c.DNS.Refresh, err = field.Duration("typed_config.dns_cache_config.dns_refresh_rate", cache.GetDnsRefreshRate(), time.Minute); err != nil {
		return err
	}
	c.DNS.Family, err = dnsFamily(cache.GetDnsLookupFamily())
	return field.At(err, "typed_config.dns_cache_config.dns_lookup_family")
}

func (c *Config) compileDNS(p *clusterv3.Cluster) (err error) {
	if c.DNS.Refresh, err = field.Duration("dns_refresh_rate", p.GetDnsRefreshRate(), defaultRefresh); err != nil {
		return err
	}
	if c.DNS.Jitter, err = field.Duration("dns_jitter", p.GetDnsJitter(), 0); err != nil {
		return err
	}
	c.DNS.RespectTTL = p.GetRespectDnsTtl()
	c.DNS.Family, err = dnsFamily(p.GetDnsLookupFamily())
	return field.At(err, "dns_lookup_family")
}

func dnsFamily(f clusterv3.Cluster_DnsLookupFamily) (DNSFamily, error) {
	switch f {
	case clusterv3.Cluster_AUTO:
		return PreferV6, nil
	case clusterv3.Cluster_V4_ONLY:
		return OnlyV4, nil
	case clusterv3.Cluster_V6_ONLY:
		return OnlyV6, nil
	case clusterv3.Cluster_V4_PREFERRED:
		return PreferV4, nil
	case clusterv3.Cluster_ALL:
		return Both, nil
	}
	return 0, errors.New("unknown value")
}

// readMetadata reads what istiod says about a cluster (controlplane.md 3.5). Nothing of it is demanded.
func (c *Config) readMetadata(s *structpb.Struct) {
	f := s.GetFields()
	c.Subset = f["subset"].GetStringValue()
	c.Rule = f["config"].GetStringValue()
	c.External = f["external"].GetBoolValue()
	c.ALPNOverride = f["alpn_override"].GetStringValue()
	for _, v := range f["services"].GetListValue().GetValues() {
		x := v.GetStructValue().GetFields()
		c.Services = append(c.Services, Service{x["host"].GetStringValue(), x["name"].GetStringValue(), x["namespace"].GetStringValue()})
	}
}

// Same says whether two configurations were made of the same resource.
func (c *Config) Same(o *Config) bool { return c != nil && o != nil && c.digest == o.digest }
