package cluster

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
)

func TestEveryRecordedClusterAndEndpointCompiles(t *testing.T) {
	clusters, endpoints := 0, 0
	for _, s := range dumptest.Load(t, os.Getenv("AMBIT_DUMPS")) {
		set := NewSet(SetConfig{Now: func() time.Time { return time.Unix(0, 0) }})
		for _, p := range s.Clusters {
			c, err := Compile(p)
			if err != nil {
				t.Errorf("%s: %s: %v", s.Name, p.GetName(), err)
				continue
			}
			set.Update([]*Config{c}, nil)
			clusters++
		}
		for _, p := range s.Endpoints {
			a, err := CompileEndpoints(p)
			if err != nil {
				t.Errorf("%s: %s: %v", s.Name, p.GetClusterName(), err)
				continue
			}
			set.UpdateEndpoints([]*Assignment{a}, nil)
			endpoints += len(a.Endpoints)
		}
		for _, c := range set.View().All() {
			if c.Discovery != EDS && c.Discovery != Static {
				continue
			}
			h, err := c.Pick(&Pick{})
			if len(c.Hosts()) == 0 {
				if err == nil {
					t.Errorf("%s: %s: chose %v of no endpoints", s.Name, c.Name, h)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %s: %v", s.Name, c.Name, err)
				continue
			}
			e := h.Endpoint()
			if strings.HasPrefix(c.Name, "inbound-vip|") && e.Via == HBONE && (!e.Tunnel.IsValid() || !h.Transport.Tunnel || e.Workload.Namespace == "") {
				t.Errorf("%s: %s: endpoint %+v over %+v", s.Name, c.Name, e, h.Transport)
			}
		}
	}
	t.Logf("%d clusters, %d endpoints", clusters, endpoints)
}
