package forward

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/svid/svidtest"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// vip is the address of the service that the rig's clients dial.
var vip = netip.MustParseAddrPort("10.96.0.10:9080")

// rig is a waypoint in the test's process: clients reach it through tunnels, its endpoints listen on loopback.
type rig struct {
	t       testing.TB
	ca      *svidtest.CA
	addr    netip.AddrPort
	pool    *hbone.Pool
	set     *cluster.Set
	snap    atomic.Pointer[Snapshot]
	metrics *telemetry.Registry
	proxy   *Proxy
	stop    func()
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigWith(t, func(*Config) {})
}

// newRigWith makes a rig whose configuration change has changed.
func newRigWith(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, ca: svidtest.NewCA(t, "cluster.local"), set: cluster.NewSet(cluster.SetConfig{}), metrics: telemetry.NewRegistry(telemetry.Config{})}
	id := r.ca.ID("demo", "waypoint")
	certs := svid.NewManager(svid.Config{CA: r.ca})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- certs.Run(ctx) }()
	cfg := Config{
		ID: id, Workers: 1, Snapshot: &r.snap, Certs: certs, Metrics: r.metrics, Workloads: workload.NewStore(workload.Config{}),
		Lines: telemetry.NewWriter(telemetry.WriterConfig{Out: t.Output()}), DrainTimeout: time.Second, NoticeTime: -1,
	}
	change(&cfg)
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.proxy = p
	r.addr = envoytest.Addrs(t, 1)[0]
	go func() { done <- p.Run(ctx, r.addr) }()
	r.stop = func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		done <- nil
		done <- nil
	}
	t.Cleanup(r.stop)
	for c, err := net.Conn(nil), io.EOF; err != nil; { // until it listens
		if c, err = net.Dial("tcp", r.addr.String()); err == nil {
			c.Close()
		}
	}
	l := hbonetest.Loop(t)
	client := r.ca.Issue(r.ca.ID("demo", "client"))
	tcfg := svid.ClientConfig(client, []spiffe.ID{id}, svid.Options{})
	l.OnLoop(func() { r.pool = hbone.NewPool(l, hbone.PoolConfig{Dial: hbonetest.Dialer(l, tcfg)}) })
	t.Cleanup(func() { l.OnLoop(r.pool.Close) })
	return r
}

// dial opens a connection to an address behind the waypoint.
func (r *rig) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, _, err := r.pool.OpenConn(ctx, hbone.Key{Addr: r.addr}, nil, &hbone.Request{Authority: to.String()})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// client is an HTTP/1.1 client of the service.
func (r *rig) client() *http.Client {
	tr := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx, vip) },
		DisableCompression: true,
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// parse reads proto JSON.
func parse[M proto.Message](t testing.TB, m M, json string) M {
	t.Helper()
	if err := protojson.Unmarshal([]byte(json), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// clusters sets clusters, each with its endpoints; more is proto JSON of further fields.
func (r *rig) cluster(name, more string, addrs ...string) {
	r.t.Helper()
	eps := ""
	for i, a := range addrs {
		ap := netip.MustParseAddrPort(a)
		if i > 0 {
			eps += ","
		}
		eps += fmt.Sprintf(`{"endpoint": {"address": {"socket_address": {"address": %q, "port_value": %d}}}}`, ap.Addr(), ap.Port())
	}
	if more != "" {
		more = "," + more
	}
	c, err := cluster.Compile(parse(r.t, &clusterv3.Cluster{}, fmt.Sprintf(`{"name": %q, "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": %q, "endpoints": [{"lb_endpoints": [%s]}]}%s}`, name, name, eps, more)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.set.Update([]*cluster.Config{c}, nil)
}

// raw is a chain that carries bytes to a cluster.
func raw(t *testing.T, cluster string) *listener.TCP {
	t.Helper()
	l, err := listener.Compile(parse(t, &listenerv3.Listener{}, fmt.Sprintf(`{"name": "x", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}, "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {
	 "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "x", "cluster": %q}}]}]}`, cluster)))
	if err != nil {
		t.Fatal(err)
	}
	return l.Chains[0].TCP
}

// routes makes the service HTTP, with these routes (a JSON list) for all hosts, and filters.
func (r *rig) routes(routes string, filters ...filter.Filter) {
	r.t.Helper()
	table, err := route.Compile(parse(r.t, &routev3.RouteConfiguration{}, `{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": `+routes+`}]}`),
		route.Options{Filter: filter.CompilePart, Limits: filter.CompileLimits})
	if err != nil {
		r.t.Fatal(err)
	}
	h := &listener.HTTP{Routes: table, Filters: filters, ServerName: "istio-envoy", RequestID: true, Path: route.PathPolicy{Normalize: true}, Upgrades: map[string]bool{"websocket": true}}
	r.target(&listener.Target{HTTP: h, H2C: h})
}

func (r *rig) target(t *listener.Target) {
	r.snap.Store(&Snapshot{Listener: targets{vip: t}, Clusters: r.set.View()})
}

// targets is a Finder.
type targets map[netip.AddrPort]*listener.Target

func (t targets) Lookup(to netip.AddrPort) *listener.Target { return t[to] }

func keyOf(r *rig) hbone.Key { return hbone.Key{Addr: r.addr} }

func requestTo(authority string) *hbone.Request { return &hbone.Request{Authority: authority} }

// script is a server that handles each connection with f, which may leave it open, until the test ends.
func script(t testing.TB, f func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scriptOn(t, ln, f)
	return ln.Addr().String()
}

// scriptOn is script on a listener, which it closes.
func scriptOn(t testing.TB, ln net.Listener, f func(net.Conn)) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{} // nil when the test has ended
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if open == nil {
				c.Close()
			} else {
				open[c] = true
			}
			mu.Unlock()
			wg.Go(func() {
				f(c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		open = nil
		mu.Unlock()
		wg.Wait()
	})
}
