package cluster

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
)

// fixtures are the resources of testdata, as they come.
func fixtures(t testing.TB, pattern string, m func() proto.Message) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		x := m()
		if err := dumptest.Unmarshal(raw, x); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if out[f], err = proto.Marshal(x); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func newCDS() proto.Message { return &clusterv3.Cluster{} }
func newEDS() proto.Message { return &endpointv3.ClusterLoadAssignment{} }

func TestFixturesCompile(t *testing.T) {
	for f, b := range fixtures(t, "cluster-*.json", newCDS) {
		if _, err := Decode("", b); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
	for f, b := range fixtures(t, "endpoints-*.json", newEDS) {
		if _, err := DecodeEndpoints("", b); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// FuzzSnapshot takes any bytes as a cluster and its endpoints: they are refused, or make clusters that can be used.
func FuzzSnapshot(f *testing.F) {
	for _, c := range fixtures(f, "cluster-*.json", newCDS) {
		for _, e := range fixtures(f, "endpoints-*.json", newEDS) {
			f.Add(c, e)
		}
	}
	f.Fuzz(func(t *testing.T, c, e []byte) {
		cfg, err := Decode("", c)
		if err != nil {
			return
		}
		if cfg.balance.ringMin > 1<<16 || cfg.balance.maglevSize > 1<<17 {
			return // allowed, and too slow to try often
		}
		cfg.balance.ringMax = min(cfg.balance.ringMax, 1<<17)
		k := &clock{time.Unix(0, 0)}
		set := NewSet(SetConfig{Now: k.now})
		set.Update([]*Config{cfg}, nil)
		if a, err := DecodeEndpoints("", e); err == nil {
			if cfg.Discovery == EDS {
				a.Name = cfg.ServiceName
			}
			set.UpdateEndpoints([]*Assignment{a}, nil)
		}
		x := set.View().Get(cfg.Name)
		r := rand.New(rand.NewPCG(1, 1))
		hosts := x.Hosts()
		for i := range 20 {
			h, err := x.Pick(&Pick{Rand: r, Hash: uint64(i) << 60, HasHash: i%2 == 0, Attempts: 2, Avoid: func(*Host) bool { return i%3 == 0 }, Failed: uint64(i % 4)})
			if err != nil {
				continue
			}
			if h == nil || len(hosts) == 0 {
				t.Fatal("chose nothing, or something of nothing")
			}
			h.Answered(500)
			h.Failed(Failure(i % 3))
			_ = h.String()
			k.t = k.t.Add(time.Second)
			set.tick(k.now())
		}
		set.UpdateEndpoints(nil, []string{cfg.ServiceName})
		set.Update(nil, []string{cfg.Name})
		for _, h := range hosts {
			if !h.Gone() {
				t.Fatal("an endpoint outlives its cluster")
			}
		}
	})
}
