package authz

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/svid/svidtest"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/forward"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// wire is our whole waypoint, which clients of the mesh's own trust domain reach through tunnels: with their certificate,
// from their address.
type wire struct {
	ca    *svidtest.CA
	id    spiffe.ID
	addr  netip.AddrPort
	snap  atomic.Pointer[forward.Snapshot]
	loop  *loop.Loop
	pools map[string]*hbone.Pool // by identity
}

func startWire(t *testing.T) *wire {
	t.Helper()
	ca := svidtest.NewCA(t, "cluster.local")
	w := &wire{ca: ca, id: ca.ID("demo", "waypoint"), loop: hbonetest.Loop(t), pools: map[string]*hbone.Pool{}}
	certs := svid.NewManager(svid.Config{CA: ca})
	p, err := forward.New(forward.Config{
		ID: w.id, Workers: 1, Snapshot: &w.snap, Certs: certs, Metrics: telemetry.NewRegistry(telemetry.Config{}),
		Workloads: workload.NewStore(workload.Config{}), Lines: telemetry.NewWriter(telemetry.WriterConfig{Out: t.Output()}), DrainTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.addr = envoytest.Addrs(t, 1)[0]
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

// serve makes the waypoint serve a listener.
func (w *wire) serve(t *testing.T, l *listenerv3.Listener) {
	t.Helper()
	main, err := listener.Compile(l)
	if err != nil {
		t.Fatal(err)
	}
	w.snap.Store(&forward.Snapshot{Listener: main, Clusters: cluster.NewSet(cluster.SetConfig{}).View()})
}

// pool is the tunnels of an identity.
func (w *wire) pool(t *testing.T, identity string) *hbone.Pool {
	t.Helper()
	if p := w.pools[identity]; p != nil {
		return p
	}
	id, err := spiffe.Parse("spiffe://" + identity)
	if err != nil {
		t.Fatal(err)
	}
	cfg := svid.ClientConfig(w.ca.Issue(id), []spiffe.ID{w.id}, svid.Options{})
	var p *hbone.Pool
	w.loop.OnLoop(func() { p = hbone.NewPool(w.loop, hbone.PoolConfig{Dial: dialFrom(cfg)}) })
	t.Cleanup(func() { w.loop.OnLoop(p.Close) })
	w.pools[identity] = p
	return p
}

// dialFrom dials from the key's source address.
func dialFrom(cfg *tls.Config) func(hbone.Key, any, func(int, *looptls.Conn, error)) {
	return func(key hbone.Key, _ any, done func(int, *looptls.Conn, error)) {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: key.SourceIP.AsSlice()}}
			c, err := d.DialContext(ctx, "tcp", key.Addr.String())
			if err != nil {
				done(-1, nil, err)
				return
			}
			fd, err := hbonetest.Descriptor(c)
			if err != nil {
				done(-1, nil, err)
				return
			}
			tc, err := looptls.Client(ctx, fd, cfg)
			if err != nil {
				unix.Close(fd)
				done(-1, nil, err)
				return
			}
			done(fd, tc, nil)
		}()
	}
}

// takes says whether the waypoint can be asked: certificates of other trust domains are not its mesh's.
func (w *wire) takes(r *request) bool { return strings.HasPrefix(r.identity, "cluster.local/") }

func (w *wire) decide(t *testing.T, r *request) (decision, path string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, _, err := w.pool(t, r.identity).OpenConn(ctx, hbone.Key{Source: r.identity, Addr: w.addr, SourceIP: r.source}, nil, &hbone.Request{Authority: r.dest.String()})
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return r.ask(c, nil)
}
