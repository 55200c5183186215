package listener

import (
	"math"
	"strings"
	"time"

	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/ambit-mesh/ambit/waypoint/accesslog"
	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/stats"
)

// TCP is a compiled TcpProxy. It is immutable.
type TCP struct {
	// Chain is the chain that it ends.
	Chain      *Chain
	StatPrefix string
	// Gates let connections in, in order.
	Gates []filter.Gate
	Logs  []*accesslog.Log
	// Stats is how its metrics differ from the standard ones, or nil.
	Stats *stats.Config
	// IdleTimeout ends a connection on which nothing moves, MaxDuration one that is that old; 0: no bound.
	IdleTimeout, MaxDuration time.Duration
	// MaxConnectAttempts is how many endpoints are tried.
	MaxConnectAttempts int
	// HashSource makes the client's address the hash for the choice of an endpoint, HashState an object of the filter state.
	HashSource bool
	HashState  string
	// ReadsName says that a gate asks for the server name that TLS clients send: the decision waits for their first bytes.
	ReadsName bool
	// NamePort, if not 0, says that the endpoint is the server name that the TLS client asks for, at that port
	// (sni_dynamic_forward_proxy); the cluster is one of cluster.Dynamic.
	NamePort uint16
	// Tunnel is set if the connection is carried by a CONNECT of its own: what Envoy uses to make HBONE.
	Tunnel *Tunnel

	clusters []weighted
	total    uint64
}

// Tunnel is a compiled TunnelingConfig.
type Tunnel struct {
	// Host is the authority asked for.
	Host *route.Format
	// Header changes the CONNECT's header.
	Header *route.HeaderOps
	// Post asks by POST instead of CONNECT.
	Post bool
}

type weighted struct {
	name   string
	weight uint64
}

// Cluster chooses the cluster by the random number. With the same number it chooses the same.
func (t *TCP) Cluster(rand uint64) string {
	if len(t.clusters) == 1 {
		return t.clusters[0].name
	}
	at := rand % t.total
	for i := range t.clusters {
		if at < t.clusters[i].weight {
			return t.clusters[i].name
		}
		at -= t.clusters[i].weight
	}
	return "" // not reached: at is less than the sum
}

// Clusters are the names of all clusters.
func (t *TCP) Clusters() []string {
	var out []string
	for _, c := range t.clusters {
		out = append(out, c.name)
	}
	return out
}

func (c *compiler) tcp(p *tcpv3.TcpProxy) (*TCP, error) {
	t := &TCP{StatPrefix: strings.TrimSuffix(p.GetStatPrefix(), ";"), MaxConnectAttempts: 1}
	switch {
	case p.GetMetadataMatch() != nil && len(p.GetMetadataMatch().GetFilterMetadata()) > 0:
		return nil, field.Errorf("metadata_match", "unsupported: subsets are clusters of their own")
	case p.GetOnDemand() != nil:
		return nil, field.Errorf("on_demand", "unsupported")
	case len(p.GetProxyProtocolTlvs()) > 0:
		return nil, field.Errorf("proxy_protocol_tlvs", "unsupported")
	}
	var err error
	if t.IdleTimeout, err = field.Duration("idle_timeout", p.GetIdleTimeout(), defaultIdle); err != nil {
		return nil, err
	}
	if t.MaxDuration, err = field.Duration("max_downstream_connection_duration", p.GetMaxDownstreamConnectionDuration(), 0); err != nil {
		return nil, err
	}
	if n := p.GetMaxConnectAttempts(); n != nil {
		if n.GetValue() == 0 {
			return nil, field.Errorf("max_connect_attempts", "must be more than 0")
		}
		t.MaxConnectAttempts = int(min(n.GetValue(), math.MaxInt32))
	}
	for _, step := range []func(*tcpv3.TcpProxy) error{t.compileClusters, t.compileHash, t.compileTunnel} {
		if err := step(p); err != nil {
			return nil, err
		}
	}
	t.Logs, err = c.accessLogs(p.GetAccessLog())
	return t, err
}

func (t *TCP) compileClusters(p *tcpv3.TcpProxy) error {
	switch c := p.GetClusterSpecifier().(type) {
	case *tcpv3.TcpProxy_Cluster:
		if c.Cluster == "" {
			return field.Errorf("cluster", "empty name")
		}
		t.clusters, t.total = []weighted{{c.Cluster, 1}}, 1
		return nil
	case *tcpv3.TcpProxy_WeightedClusters:
		for i, w := range c.WeightedClusters.GetClusters() {
			switch {
			case w.GetName() == "":
				return field.At(field.Index(field.Errorf("name", "required"), "clusters", i), "weighted_clusters")
			case w.GetMetadataMatch() != nil && len(w.GetMetadataMatch().GetFilterMetadata()) > 0:
				return field.At(field.Index(field.Errorf("metadata_match", "unsupported: subsets are clusters of their own"), "clusters", i), "weighted_clusters")
			}
			t.clusters = append(t.clusters, weighted{w.GetName(), uint64(w.GetWeight())})
			t.total += uint64(w.GetWeight())
		}
		if t.total == 0 {
			return field.Errorf("weighted_clusters.clusters", "the sum of weights is 0")
		}
		return nil
	}
	return field.Errorf("cluster_specifier", "required")
}

func (t *TCP) compileHash(p *tcpv3.TcpProxy) error {
	for i, h := range p.GetHashPolicy() {
		switch x := h.GetPolicySpecifier().(type) {
		case *typev3.HashPolicy_SourceIp_:
			t.HashSource = true
		case *typev3.HashPolicy_FilterState_:
			t.HashState = x.FilterState.GetKey()
		default:
			return field.Index(field.Unsupported(h, "policy_specifier"), "hash_policy", i)
		}
	}
	return nil
}

func (t *TCP) compileTunnel(p *tcpv3.TcpProxy) (err error) {
	c := p.GetTunnelingConfig()
	if c == nil {
		return nil
	}
	x := &Tunnel{Post: c.GetUsePost()}
	if x.Host, err = route.CompileFormat(c.GetHostname()); err != nil {
		return field.At(err, "tunneling_config.hostname")
	}
	if x.Header, err = route.CompileHeaderOps("headers_to_add", c.GetHeadersToAdd(), "", nil); err != nil {
		return field.At(err, "tunneling_config")
	}
	t.Tunnel = x
	return nil
}
