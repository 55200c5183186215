package dumps

//lint:file-ignore SA1019 deprecated fields are in what istiod sends

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/dumptest"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// resources are those of a scenario, with what a test cannot have replaced: every endpoint is a backend of this machine.
// Both sides get these.
type resources struct {
	main     *listenerv3.Listener
	clusters []*clusterv3.Cluster
	chains   []*chain
	reached  bool // policies were made reachable
}

// form is what is done with what a test cannot meet, or would meet by chance only.
type form int

const (
	// calm has no faults.
	calm form = iota
	// faults has faults that always strike, after a short delay.
	faults
	// reach has policies that a test's clients can satisfy.
	reach
)

// chain is a filter chain that an address leads to.
type chain struct {
	name string
	dst  netip.AddrPort
	http *hcmv3.HttpConnectionManager // nil: TCP
}

// accept compiles every resource as the waypoint does when it comes by xDS, and returns how many.
func accept(t *testing.T, s *dumptest.Scenario) int {
	t.Helper()
	n := 0
	check := func(kind, name string, err error) {
		if n++; err != nil {
			t.Errorf("%s: refused: %s %s: %v", s.Name, kind, name, err)
		}
	}
	for _, p := range s.Clusters {
		_, err := cluster.Decode(p.GetName(), wire(t, p))
		check("CDS", p.GetName(), err)
	}
	for _, p := range s.Endpoints {
		_, err := cluster.DecodeEndpoints(p.GetClusterName(), wire(t, p))
		check("EDS", p.GetClusterName(), err)
	}
	for _, p := range s.Listeners {
		_, err := listener.Decode(p.GetName(), wire(t, p))
		check("LDS", p.GetName(), err)
	}
	return n
}

func wire(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// backends are the addresses of clusters' backends.
type backends map[string]netip.AddrPort

// local makes resources of a scenario.
func local(t *testing.T, s *dumptest.Scenario, at backends, as form) *resources {
	t.Helper()
	r := &resources{}
	for _, p := range s.Listeners {
		if p.GetName() == listener.Main {
			r.main = proto.Clone(p).(*listenerv3.Listener)
		}
	}
	if r.main == nil {
		t.Fatalf("%s: no %s", s.Name, listener.Main)
	}
	managers := map[string]*hcmv3.HttpConnectionManager{}
	for _, c := range r.main.GetFilterChains() {
		for _, f := range c.GetFilters() {
			var m hcmv3.HttpConnectionManager
			if f.GetTypedConfig().MessageIs(&m) {
				if err := f.GetTypedConfig().UnmarshalTo(&m); err != nil {
					t.Fatal(err)
				}
				certain(t, m.GetRouteConfig(), as == faults)
				if as == reach && reachable(t, &m) {
					r.reached = true
				}
				f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, &m)}
				managers[c.GetName()] = &m
			}
		}
	}
	eds := map[string]*endpointv3.ClusterLoadAssignment{}
	for _, e := range s.Endpoints {
		eds[e.GetClusterName()] = e
	}
	for _, p := range s.Clusters {
		if strings.HasSuffix(p.GetName(), "connect_originate") || p.GetName() == listener.Main {
			continue
		}
		r.clusters = append(r.clusters, localCluster(t, p, eds, at))
	}
	for _, d := range destinations(t, r.main) {
		r.chains = append(r.chains, &chain{name: d.chain, dst: d.dst, http: managers[d.chain]})
	}
	return r
}

// localCluster is a cluster whose one endpoint is its backend, without what is below HTTP on the way there.
func localCluster(t *testing.T, p *clusterv3.Cluster, eds map[string]*endpointv3.ClusterLoadAssignment, at backends) *clusterv3.Cluster {
	t.Helper()
	p = proto.Clone(p).(*clusterv3.Cluster)
	name := p.GetName()
	groups := []*endpointv3.LocalityLbEndpoints{{}}
	if p.GetType() == clusterv3.Cluster_EDS {
		if n := p.GetEdsClusterConfig().GetServiceName(); n != "" {
			name = n
		}
		if groups = eds[name].GetEndpoints(); len(groups) > 1 {
			groups = groups[:1]
		}
	}
	p.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	p.EdsClusterConfig, p.TransportSocket, p.TransportSocketMatches, p.Filters = nil, nil, nil, nil
	p.DnsLookupFamily, p.DnsJitter, p.DnsRefreshRate, p.RespectDnsTtl, p.TypedDnsResolverConfig = 0, nil, nil, false, nil
	p.CleanupInterval, p.UpstreamConnectionOptions = nil, nil
	if _, ok := p.GetLbConfig().(*clusterv3.Cluster_OriginalDstLbConfig_); ok {
		p.LbConfig = nil
	}
	if p.GetLbPolicy() == clusterv3.Cluster_CLUSTER_PROVIDED {
		p.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	}
	a := &endpointv3.ClusterLoadAssignment{ClusterName: p.GetName()}
	for _, g := range groups {
		g := &endpointv3.LocalityLbEndpoints{Locality: g.GetLocality(), LoadBalancingWeight: g.GetLoadBalancingWeight()}
		g.LbEndpoints = []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(at.of(t, p.GetName()))}}}}
		a.Endpoints = append(a.Endpoints, g)
	}
	p.LoadAssignment = a
	return p
}

// of is the address of a cluster's backend, which is started if it has none.
func (b backends) of(t *testing.T, cluster string) netip.AddrPort {
	t.Helper()
	if a, ok := b[cluster]; ok {
		return a
	}
	start := startBackend
	if parts := strings.Split(cluster, "|"); len(parts) == 4 && strings.HasPrefix(parts[2], "tcp") {
		start = startTCP
	}
	b[cluster] = start(t, cluster)
	return b[cluster]
}

// certain makes faults certain, or none.
func certain(t *testing.T, c *routev3.RouteConfiguration, strike bool) {
	t.Helper()
	for _, vh := range c.GetVirtualHosts() {
		for _, r := range vh.GetRoutes() {
			f := faultOf(t, r)
			if f == nil {
				continue
			}
			share := &typev3.FractionalPercent{}
			if strike {
				share.Numerator = 100
			}
			if d := f.GetDelay(); d != nil {
				d.Percentage = share
				if d.GetFixedDelay() != nil {
					d.FaultDelaySecifier = &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(10 * time.Millisecond)}
				}
			}
			if a := f.GetAbort(); a != nil {
				a.Percentage = share
			}
			for k, a := range r.TypedPerFilterConfig {
				if a.MessageIs(f) {
					r.TypedPerFilterConfig[k] = pack(t, f)
				}
			}
		}
	}
}

// faultOf is the fault of a route; nil: it has none.
func faultOf(t *testing.T, r *routev3.Route) *faultv3.HTTPFault {
	t.Helper()
	var f faultv3.HTTPFault
	if !partOf(t, r.GetTypedPerFilterConfig(), &f) {
		return nil
	}
	return &f
}

// partOf reads the first part of a filter's type.
func partOf(t *testing.T, parts map[string]*anypb.Any, m proto.Message) bool {
	t.Helper()
	for _, a := range parts {
		if a.MessageIs(m) {
			if err := a.UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			return true
		}
	}
	return false
}

// destination is an address and a chain that it leads to.
type destination struct {
	dst   netip.AddrPort
	chain string
}

// destinations walks the listener's matcher: for each chain the first address that leads to it.
func destinations(t *testing.T, l *listenerv3.Listener) []destination {
	t.Helper()
	w := &walker{t: t, seen: map[string]bool{}}
	w.matcher(l.GetFilterChainMatcher(), netip.Addr{}, 0)
	slices.SortFunc(w.out, func(a, b destination) int { return strings.Compare(a.chain, b.chain) })
	return w.out
}

type walker struct {
	t    *testing.T
	out  []destination
	seen map[string]bool
}

// anyPort stands for a port where none is said.
const anyPort = 8081

func (w *walker) matcher(m *xdsmatcherv3.Matcher, ip netip.Addr, port uint16) {
	for _, k := range slices.Sorted(maps.Keys(m.GetMatcherTree().GetExactMatchMap().GetMap())) {
		next := port
		if strings.HasSuffix(m.GetMatcherTree().GetInput().GetTypedConfig().GetTypeUrl(), "DestinationPortInput") {
			n, err := strconv.ParseUint(k, 10, 16)
			if err != nil {
				w.t.Fatal(err)
			}
			next = uint16(n)
		}
		w.on(m.GetMatcherTree().GetExactMatchMap().GetMap()[k], ip, next)
	}
	if c := m.GetMatcherTree().GetCustomMatch(); c != nil {
		var t xdsmatcherv3.IPMatcher
		if err := c.GetTypedConfig().UnmarshalTo(&t); err != nil {
			w.t.Fatal(err)
		}
		for _, r := range t.GetRangeMatchers() {
			for _, x := range r.GetRanges() {
				a, err := netip.ParseAddr(x.GetAddressPrefix())
				if err != nil {
					w.t.Fatal(err)
				}
				w.on(r.GetOnMatch(), a, port)
			}
		}
	}
	w.on(m.GetOnNoMatch(), ip, port)
}

func (w *walker) on(m *xdsmatcherv3.Matcher_OnMatch, ip netip.Addr, port uint16) {
	if next := m.GetMatcher(); next != nil {
		w.matcher(next, ip, port)
	}
	a := m.GetAction()
	if a == nil || !ip.Is4() || ip.IsUnspecified() || w.seen[a.GetName()] {
		return
	}
	if port == 0 {
		port = anyPort
	}
	w.seen[a.GetName()] = true
	w.out = append(w.out, destination{netip.AddrPortFrom(ip, port), a.GetName()})
}
