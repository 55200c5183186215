package forward

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
)

// quiet takes what servers say about clients that they do not like.
var quiet = log.New(io.Discard, "", 0)

// another is a second client of the same waypoint.
func (r *rig) another() *rig {
	o := &rig{t: r.t, ca: r.ca, addr: r.addr, set: r.set, proxy: r.proxy}
	l := hbonetest.Loop(r.t)
	cfg := svid.ClientConfig(r.ca.Issue(r.ca.ID("demo", "other")), []spiffe.ID{r.ca.ID("demo", "waypoint")}, svid.Options{})
	l.OnLoop(func() { o.pool = hbone.NewPool(l, hbone.PoolConfig{Dial: hbonetest.Dialer(l, cfg)}) })
	r.t.Cleanup(func() { l.OnLoop(o.pool.Close) })
	return o
}

// pod starts a node's proxy, in front of addr, for the identity demo/reviews. Its tunnels are told by tag.
func (r *rig) pod(addr string, done hbone.JoinHandler) netip.AddrPort {
	r.t.Helper()
	l := hbonetest.Loop(r.t)
	id := r.ca.ID("demo", "reviews")
	var s *hbone.Server
	l.OnLoop(func() {
		s = hbone.NewServer(l, hbone.ServerConfig{Handler: hbonetest.JoinTo(r.t, l, netip.MustParseAddrPort(addr), done)})
	})
	at := hbonetest.Listen(r.t, l, s, svid.ServerConfig(r.ca.Issue(id), svid.Options{}))
	r.t.Cleanup(func() { l.OnLoop(s.Close) })
	a, err := workload.FromProto("reviews", &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: &workloadpb.Workload{
		Uid: "reviews", Name: "reviews", Namespace: "demo", ServiceAccount: "reviews", TrustDomain: "cluster.local",
		Addresses: [][]byte{at.Addr().AsSlice()}, TunnelProtocol: workloadpb.TunnelProtocol_HBONE,
	}}})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.proxy.cfg.Workloads.Apply([]xds.Resource[workload.Address]{{Name: "reviews", Value: a}}, nil); err != nil {
		r.t.Fatal(err)
	}
	return at
}

// mesh sets a cluster with one endpoint, behind a node's proxy at via; socket is the inner transport socket, more are fields.
func (r *rig) mesh(name, socket, more string, via netip.AddrPort) {
	r.t.Helper()
	if more != "" {
		more = "," + more
	}
	n, _ := json.Marshal(name)
	c, err := cluster.Compile(parse(r.t, &clusterv3.Cluster{}, fmt.Sprintf(`{"name": %s, "type": "STATIC", "connect_timeout": "1s",
	 "transport_socket": {"name": "internal_upstream", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
	  "transport_socket": {"name": "inner", "typed_config": %s}}},
	 "load_assignment": {"cluster_name": %s, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": "connect_originate", "endpoint_id": "10.244.1.2:8080"}}},
	  "metadata": {"filter_metadata": {"envoy.filters.listener.original_dst": {"local": "10.244.1.2:8080", "waypoint": %q}}}}]}]}%s}`, n, socket, n, via, more)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.set.Update([]*cluster.Config{c}, nil)
}
