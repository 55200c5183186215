package waypoint

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/internal/xds/xdstest"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

func testStore() *store {
	s := newStore(slog.New(slog.DiscardHandler))
	s.subscribe(xds.NewClient(xds.Config{Transport: xdstest.NewServer()}))
	return s
}

func (s *store) testCluster(t *testing.T, name string) {
	t.Helper()
	var p clusterv3.Cluster
	if err := protojson.Unmarshal([]byte(`{"name": "`+name+`", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "x"}}`), &p); err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Compile(&p)
	if err != nil {
		t.Fatal(err)
	}
	if err := (clusterHandler{s}).Apply([]xds.Resource[*cluster.Config]{{Name: name, Value: c}}, nil); err != nil {
		t.Fatal(err)
	}
}

func (s *store) testListener(t *testing.T) {
	t.Helper()
	var p listenerv3.Listener
	err := protojson.Unmarshal([]byte(`{"name": "main_internal", "internal_listener": {}, "filter_chains": [{"name": "c", "filters": [{"name": "tcp", "typed_config": {
	 "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "x", "cluster": "a"}}]}]}`), &p)
	if err != nil {
		t.Fatal(err)
	}
	l, err := listener.Compile(&p)
	if err != nil {
		t.Fatal(err)
	}
	if err := (listenerHandler{s}).Apply([]xds.Resource[*listener.Listener]{{Name: listener.Main, Value: l}}, nil); err != nil {
		t.Fatal(err)
	}
}

// A control plane says that a cluster is gone before it says that the routes to it are.
func TestAClusterThatWasRemovedServesUntilTheListenersDoWithoutIt(t *testing.T) {
	s := testStore()
	s.testCluster(t, "a")
	s.testListener(t)
	if err := (clusterHandler{s}).Apply(nil, []string{"a"}); err != nil {
		t.Fatal(err)
	}
	if s.current.Load().Clusters.Get("a") == nil {
		t.Error("requests on their way to the cluster fail")
	}
	s.testListener(t)
	if s.current.Load().Clusters.Get("a") != nil {
		t.Error("the cluster is still there")
	}
}

func TestAClusterThatWasRemovedGoesInAnyCase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testStore()
		s.testCluster(t, "a")
		s.testListener(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		if err := (clusterHandler{s}).Apply(nil, []string{"a"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * leaveTime)
		synctest.Wait()
		if s.current.Load().Clusters.Get("a") != nil {
			t.Error("the cluster is still there")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAClusterThatComesBackStays(t *testing.T) {
	s := testStore()
	s.testCluster(t, "a")
	s.testListener(t)
	if err := (clusterHandler{s}).Apply(nil, []string{"a"}); err != nil {
		t.Fatal(err)
	}
	s.testCluster(t, "a")
	s.testListener(t)
	if s.current.Load().Clusters.Get("a") == nil {
		t.Error("the cluster is gone")
	}
}
