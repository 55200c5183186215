package cluster

import (
	"fmt"
	"runtime"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
)

// heap is the number of bytes in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestTenThousandEndpointsFitInTenMegabytes(t *testing.T) {
	const services, each = 1000, 10
	mesh := fixtures(t, "cluster-mesh.json", newCDS)["testdata/cluster-mesh.json"]
	before := heap()
	set := NewSet(SetConfig{})
	for i := range services {
		p := newCDS()
		if err := proto.Unmarshal(mesh, p); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("inbound-vip|80|http|web-%d.shop.svc.cluster.local", i)
		b, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := Decode("", b)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Name, cfg.ServiceName = name, name
		set.Update([]*Config{cfg}, nil)
		var es string
		for j := range each {
			addr := fmt.Sprintf("10.%d.%d.%d:8080", i/256, i%256, j)
			if j > 0 {
				es += ","
			}
			es += `{"endpoint":{"address":{"envoy_internal_address":{"server_listener_name":"connect_originate","endpoint_id":"` + addr + `"}}},"load_balancing_weight":1,"metadata":{"filter_metadata":{"envoy.filters.listener.original_dst":{"local":"` + addr +
				`"},"istio":{"workload":"web-` + fmt.Sprint(i) + `;shop;web;v1;Kubernetes"}}}}`
		}
		e := newEDS()
		if err := dumptest.Unmarshal([]byte(`{"cluster_name":"`+name+`","endpoints":[{"locality":{"region":"r","zone":"z"},"load_balancing_weight":10,"lb_endpoints":[`+es+`]}]}`), e); err != nil {
			t.Fatal(err)
		}
		if b, err = proto.Marshal(e); err != nil {
			t.Fatal(err)
		}
		a, err := DecodeEndpoints("", b)
		if err != nil {
			t.Fatal(err)
		}
		set.UpdateEndpoints([]*Assignment{a}, nil)
	}
	used := heap() - before
	t.Logf("%d clusters, %d endpoints: %d bytes each endpoint, %.1f MB in all", services, services*each, used/services/each, float64(used)/1e6)
	if used > 10e6 {
		t.Errorf("%.1f MB", float64(used)/1e6)
	}
	runtime.KeepAlive(set)
}
