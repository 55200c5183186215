package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3" // named by the configuration
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	wds "github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	waypoint "github.com/ambit-mesh/ambit/waypoint/forward"
	lds "github.com/ambit-mesh/ambit/waypoint/listener"
)

// plainMain is our waypoint's data path with nothing around it: requests come in cleartext, and go to a server in cleartext.
func plainMain(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("plain", flag.ContinueOnError)
	to := fs.String("to", "", "address of the server")
	workers := fs.Int("workers", 1, "event loops")
	if err := fs.Parse(args); err != nil {
		return err
	}
	server, err := netip.ParseAddr(*to)
	if err != nil {
		return err
	}
	id, err := spiffe.New("cluster.local", "bench", "waypoint")
	if err != nil {
		return err
	}
	cfg := waypoint.Config{
		ID: id, Workers: *workers, Snapshot: &atomic.Pointer[waypoint.Snapshot]{}, Certs: svid.NewManager(svid.Config{}),
		Metrics: telemetry.NewRegistry(telemetry.Config{}), Workloads: wds.NewStore(wds.Config{}),
		Lines: telemetry.NewWriter(telemetry.WriterConfig{Out: os.Stderr}), NoticeTime: -1,
	}
	set := cluster.NewSet(cluster.SetConfig{})
	targets := plainTargets{}
	for _, port := range []uint16{http1Port, http2Port, grpcPort} {
		at := netip.AddrPortFrom(server, port)
		if targets[at], err = plainTarget(set, at, port != http1Port); err != nil {
			return err
		}
		cfg.Plain = append(cfg.Plain, waypoint.PlainPort{Listen: netip.AddrPortFrom(netip.IPv4Unspecified(), port), As: at})
	}
	cfg.Snapshot.Store(&waypoint.Snapshot{Listener: targets, Clusters: set.View()})
	p, err := waypoint.New(cfg)
	if err != nil {
		return err
	}
	fmt.Println("READY") // the harness asks until it is answered
	return p.Run(ctx, netip.MustParseAddrPort("127.0.0.1:15008"))
}

// plainTargets is a forward.Finder.
type plainTargets map[netip.AddrPort]*lds.Target

// Lookup implements forward.Finder.
func (t plainTargets) Lookup(to netip.AddrPort) *lds.Target { return t[to] }

// plainTarget forwards everything to one server.
func plainTarget(set *cluster.Set, at netip.AddrPort, two bool) (*lds.Target, error) {
	name, options := at.String(), ""
	if two {
		options = `, "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
		 "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}`
	}
	var cp clusterv3.Cluster
	c, err := fromJSON(&cp, fmt.Sprintf(`{"name": %q, "type": "STATIC", "load_assignment": {"cluster_name": %[1]q, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": %q, "port_value": %d}}}}]}]}%s}`,
		name, at.Addr(), at.Port(), options), cluster.Compile)
	if err != nil {
		return nil, err
	}
	set.Update([]*cluster.Config{c}, nil)
	var lp listenerv3.Listener
	l, err := fromJSON(&lp, fmt.Sprintf(`{"name": "x", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}, "filter_chains": [{"filters": [{"name": "http", "typed_config": {
	 "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "x",
	 "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": %q, "timeout": "0s"}}]}]},
	 "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`, name), lds.Compile)
	if err != nil {
		return nil, err
	}
	h := l.Chains[0].HTTP
	return &lds.Target{HTTP: h, H2C: h}, nil
}

// fromJSON reads a message and compiles it.
func fromJSON[M proto.Message, T any](m M, text string, compile func(M) (T, error)) (T, error) {
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		var none T
		return none, err
	}
	return compile(m)
}
