// Package forwardtest runs a waypoint's data path in a test's process, with clients that reach it as ztunnels would: by HBONE,
// under certificates of the waypoint's mesh.
package forwardtest

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

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

// Waypoint is a waypoint demo/waypoint of the trust domain cluster.local. It is for one goroutine but for Dial.
type Waypoint struct {
	addr  netip.AddrPort
	ca    *svidtest.CA
	id    spiffe.ID
	snap  atomic.Pointer[forward.Snapshot]
	loop  *loop.Loop // of the clients
	pools map[spiffe.ID]*hbone.Pool
}

// Start runs a waypoint until the test ends, and blocks until it listens. It serves nothing yet.
func Start(t testing.TB) *Waypoint {
	t.Helper()
	ca := svidtest.NewCA(t, "cluster.local")
	w := &Waypoint{addr: envoytest.Addrs(t, 1)[0], ca: ca, id: ca.ID("demo", "waypoint"), loop: hbonetest.Loop(t), pools: map[spiffe.ID]*hbone.Pool{}}
	certs := svid.NewManager(svid.Config{CA: ca})
	p, err := forward.New(forward.Config{
		ID: w.id, Workers: 1, Snapshot: &w.snap, Certs: certs, Metrics: telemetry.NewRegistry(telemetry.Config{}),
		Workloads: workload.NewStore(workload.Config{}), Lines: telemetry.NewWriter(telemetry.WriterConfig{Out: t.Output()}), DrainTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- certs.Run(ctx) }()
	go func() { ended <- p.Run(ctx, w.addr) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		c, err := net.Dial("tcp", w.addr.String())
		if err == nil {
			c.Close()
			return w
		}
		<-tick.C
	}
	t.Fatal("the waypoint does not listen")
	return nil
}

// Serve makes the waypoint serve a listener and clusters, in place of what it served before.
func (w *Waypoint) Serve(t testing.TB, l *listenerv3.Listener, clusters []*clusterv3.Cluster) {
	t.Helper()
	main, err := listener.Compile(l)
	if err != nil {
		t.Fatal(err)
	}
	var list []*cluster.Config
	for _, p := range clusters {
		c, err := cluster.Compile(p)
		if err != nil {
			t.Fatalf("%s: %v", p.GetName(), err)
		}
		list = append(list, c)
	}
	set := cluster.NewSet(cluster.SetConfig{})
	set.Update(list, nil)
	w.snap.Store(&forward.Snapshot{Listener: main, Clusters: set.View()})
}

// Client makes tunnels of an identity until the test ends; asked again it returns the same.
func (w *Waypoint) Client(t testing.TB, id spiffe.ID) *Client {
	t.Helper()
	p := w.pools[id]
	if p == nil {
		cfg := svid.ClientConfig(w.ca.Issue(id), []spiffe.ID{w.id}, svid.Options{})
		w.loop.OnLoop(func() { p = hbone.NewPool(w.loop, hbone.PoolConfig{Dial: hbonetest.Dialer(w.loop, cfg)}) })
		t.Cleanup(func() { w.loop.OnLoop(p.Close) })
		w.pools[id] = p
	}
	return &Client{w: w, pool: p}
}

// Client opens connections through a Waypoint. It is safe for concurrent use.
type Client struct {
	w    *Waypoint
	pool *hbone.Pool
}

// Dial opens a connection to an address behind the waypoint, from an address of this machine (the zero Addr: any). The
// caller closes it.
func (c *Client) Dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	conn, _, err := c.pool.OpenConn(ctx, hbone.Key{Addr: c.w.addr, SourceIP: from}, nil, &hbone.Request{Authority: to.String()})
	if err != nil {
		return nil, err
	}
	return conn, nil
}
