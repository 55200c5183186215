package workload

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// mesh returns the wire bytes of n workloads in n/10+1 services.
func mesh(n int) [][]byte {
	out := make([][]byte, 0, n+n/10)
	add := func(a *pb.Address) {
		b, _ := proto.Marshal(a)
		out = append(out, b)
	}
	for i := range n/10 + 1 {
		s := svc("ns", fmt.Sprint("s", i), []string{fmt.Sprintf("10.200.%d.%d", i/256, i%256)})
		add(&pb.Address{Type: &pb.Address_Service{Service: s}})
	}
	for i := range n {
		w := wl(fmt.Sprintf("deploy-%d-7c9f8b6d5-x%d", i/10, i), fmt.Sprintf("10.%d.%d.%d", i/65536, i/256%256, i%256),
			member(fmt.Sprintf("ns/s%d.ns", i/10), 80, 8080), at("eu-west", "eu-west-1", ""))
		w.ServiceAccount, w.WorkloadName, w.CanonicalName = fmt.Sprint("sa", i/10), fmt.Sprint("deploy-", i/10), fmt.Sprint("deploy-", i/10)
		w.CanonicalRevision, w.Node, w.ClusterId, w.TrustDomain = "latest", fmt.Sprint("node", i%100), "Kubernetes", "cluster.local"
		add(&pb.Address{Type: &pb.Address_Workload{Workload: w}})
	}
	return out
}

func decodeAll(b testing.TB, in [][]byte) []xds.Resource[Address] {
	out := make([]xds.Resource[Address], len(in))
	for i, m := range in {
		a, err := DecodeAddress("x", m)
		if err != nil {
			b.Fatal(err)
		}
		out[i] = xds.Resource[Address]{Value: a}
	}
	return out
}

func BenchmarkDecodeAndInsert(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := mesh(n)
			b.ReportAllocs()
			for b.Loop() {
				s := NewStore(Config{})
				_ = s.Apply(decodeAll(b, in), nil)
			}
		})
	}
}

func BenchmarkUpdateOneEndpointOf10000(b *testing.B) {
	shape := map[string]func(int) string{
		"distinct-services": func(i int) string { return fmt.Sprintf("ns/s%d.ns", i/10) },
		"one-service":       func(int) string { return "ns/s0.ns" },
	}
	for name, key := range shape {
		b.Run(name, func(b *testing.B) {
			s := NewStore(Config{})
			msgs := []any{}
			for i := range 10000 {
				msgs = append(msgs, wl(fmt.Sprint("w", i), fmt.Sprintf("10.0.%d.%d", i/256, i%256), member(key(i))))
			}
			for i := range 1000 {
				msgs = append(msgs, svc("ns", fmt.Sprint("s", i), nil))
			}
			apply(b, s, msgs)
			up := []xds.Resource[Address]{resource(b, wl("w5", "10.0.0.5", member(key(5)))), resource(b, wl("w5", "10.0.0.5", member(key(5))))}
			v := s.View()
			v.Pick(v.ServiceByKey("ns/s0.ns"), &Pick{Port: 80})
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				_ = s.Apply(up[i%2:i%2+1], nil)
			}
		})
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		for _, mode := range []string{"uniform", "weighted", "locality"} {
			b.Run(fmt.Sprint(mode, "/", n), func(b *testing.B) {
				opts := []func(*pb.Service){}
				if mode == "locality" {
					opts = append(opts, balanced(pb.LoadBalancing_FAILOVER, network, region, zone))
				}
				msgs := []any{svc("ns", "s", nil, opts...), wl("src", "10.9.0.1", at("r1", "z1", ""))}
				for i := range n {
					c := uint32(1)
					if mode == "weighted" {
						c = uint32(i%7 + 1)
					}
					msgs = append(msgs, wl(fmt.Sprint("w", i), fmt.Sprintf("10.0.%d.%d", i/256, i%256), member("ns/s.ns"), at("r1", fmt.Sprint("z", i%3), ""), capacity(c)))
				}
				v := store(b, msgs...).View()
				s, src := v.ServiceByKey("ns/s.ns"), v.Pod("src", "default", "src")
				r := rand.New(rand.NewPCG(1, 2))
				b.ReportAllocs()
				for b.Loop() {
					v.Pick(s, &Pick{Source: src, Port: 80, Rand: r})
				}
			})
		}
	}
}

func BenchmarkServiceByVIP(b *testing.B) {
	for _, n := range []int{1, 100, 10000} {
		s := NewStore(Config{})
		var msgs []any
		for i := range n {
			msgs = append(msgs, svc("ns", fmt.Sprint("e", i), []string{fmt.Sprintf("10.0.%d.%d", i/256, i%256)}),
				svc("ns", fmt.Sprint("c", i), []string{fmt.Sprintf("11.%d.%d.0/24", i/256, i%256)}))
		}
		v := apply(b, s, msgs)
		for name, addr := range map[string]string{"exact": "10.0.0.0", "cidr": "11.0.0.9", "miss": "12.0.0.1"} {
			b.Run(fmt.Sprint(name, "/", n), func(b *testing.B) {
				a := netip.MustParseAddr(addr)
				b.ReportAllocs()
				for b.Loop() {
					v.ServiceByVIP("", a, "x")
				}
			})
		}
	}
}

// TestTenThousandWorkloadsFitIn40MB holds the memory target of the proxy: the store itself stays far below it.
func TestTenThousandWorkloadsFitIn40MB(t *testing.T) {
	in := mesh(10000)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := NewStore(Config{})
	_ = s.Apply(decodeAll(t, in), nil)
	used := int64(heap()) - int64(before)
	t.Logf("10,000 workloads and 1,001 services use %.1f MB", float64(used)/1e6)
	if used > 25e6 {
		t.Errorf("heap = %d bytes, want at most 25 MB", used)
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(in)
}

// BenchmarkFirstPick is what the first connection to a service of 10,000 endpoints costs its loop.
func BenchmarkFirstPick(b *testing.B) {
	msgs := []any{svc("ns", "s", nil, balanced(pb.LoadBalancing_FAILOVER, network, region, zone))}
	for i := range 10000 {
		msgs = append(msgs, wl(fmt.Sprint("w", i), fmt.Sprintf("10.0.%d.%d", i/256, i%256), member("ns/s.ns"), at("r1", fmt.Sprint("z", i%3), "")))
	}
	e := store(b, msgs...).View().entry("ns/s.ns")
	b.ReportAllocs()
	for b.Loop() {
		e.build(pickKey{port: 80, locality: Locality{Region: "r1", Zone: "z1"}})
	}
}
