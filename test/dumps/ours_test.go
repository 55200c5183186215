package dumps

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/svid/svidtest"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/forward"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// client is who sends requests: a service account, as namespace and name.
type client struct{ namespace, account string }

func (c client) String() string { return c.namespace + "/" + c.account }

// principal is the client's identity, as policies see it.
func (c client) principal() string {
	return "spiffe://cluster.local/ns/" + c.namespace + "/sa/" + c.account
}

// clients are all of them: one that policies let in, one that they keep out, and one that they do not know.
var clients = []client{{"demo", "client"}, {"blocked", "app"}, {"other", "app"}}

// side is a waypoint under test.
type side interface {
	// dial opens a connection of a client to an address behind the waypoint.
	dial(ctx context.Context, who client, to netip.AddrPort) (net.Conn, error)
}

// ours is our waypoint, in the test's process. Clients reach it through tunnels, as their ztunnel would.
type ours struct {
	addr  netip.AddrPort
	snap  atomic.Pointer[forward.Snapshot]
	pools map[client]*hbone.Pool
}

func startOurs(t *testing.T) *ours {
	t.Helper()
	ca := svidtest.NewCA(t, "cluster.local")
	id := ca.ID("demo", "waypoint")
	certs := svid.NewManager(svid.Config{CA: ca})
	o := &ours{pools: map[client]*hbone.Pool{}}
	p, err := forward.New(forward.Config{
		ID: id, Workers: 1, Snapshot: &o.snap, Certs: certs, Metrics: telemetry.NewRegistry(telemetry.Config{}),
		Workloads: workload.NewStore(workload.Config{}), Lines: telemetry.NewWriter(telemetry.WriterConfig{Out: t.Output()}), DrainTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	o.addr = envoytest.Addrs(t, 1)[0]
	ended := make(chan error, 2)
	go func() { ended <- certs.Run(ctx) }()
	go func() { ended <- p.Run(ctx, o.addr) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	l := hbonetest.Loop(t)
	for _, c := range clients {
		cfg := svid.ClientConfig(ca.Issue(ca.ID(c.namespace, c.account)), []spiffe.ID{id}, svid.Options{})
		o.pool(t, l, c, hbone.PoolConfig{Dial: hbonetest.Dialer(l, cfg)})
	}
	return o
}

func (o *ours) pool(t *testing.T, l *loop.Loop, c client, cfg hbone.PoolConfig) {
	var p *hbone.Pool
	l.OnLoop(func() { p = hbone.NewPool(l, cfg) })
	t.Cleanup(func() { l.OnLoop(p.Close) })
	o.pools[c] = p
}

// serve makes the waypoint serve resources; only main_internal counts of the listeners.
func (o *ours) serve(t *testing.T, r *resources) {
	t.Helper()
	main, err := listener.Compile(r.main)
	if err != nil {
		t.Fatal(err)
	}
	set := cluster.NewSet(cluster.SetConfig{})
	var list []*cluster.Config
	for _, p := range r.clusters {
		c, err := cluster.Compile(p)
		if err != nil {
			t.Fatalf("%s: %v", p.GetName(), err)
		}
		list = append(list, c)
	}
	set.Update(list, nil)
	o.snap.Store(&forward.Snapshot{Listener: main, Clusters: set.View()})
}

func (o *ours) dial(ctx context.Context, who client, to netip.AddrPort) (net.Conn, error) {
	c, _, err := o.pools[who].OpenConn(ctx, hbone.Key{Addr: o.addr}, nil, &hbone.Request{Authority: to.String()})
	if err != nil {
		return nil, err
	}
	return c, nil
}
