package dumps

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/test/recorded"
	"github.com/ambit-mesh/ambit/waypoint/dumptest"
)

// empty are recorded clusters without an endpoint where we have some: the recording's API server had no controller that
// would have made an EndpointSlice of a selector (make diff-dumps, docs/differences.md). Requests there get our endpoints
// on both sides, or they would only say that there are none.
var empty = []string{"inbound-vip|80|http|canaried.demo.svc.cluster.local"}

// TestOurResourcesOfTheRecordedInputsServeAsIstiods gives the recorded inputs to our control plane, and what it makes of
// them to a real Envoy and to our waypoint: both must answer the requests that are made from the recorded resources as
// Envoy does with those.
func TestOurResourcesOfTheRecordedInputsServeAsIstiods(t *testing.T) {
	dir := os.Getenv("AMBIT_DUMPS")
	scenarios := dumptest.Load(t, dir)
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "waypoint-dumps")
	}
	if _, err := os.Stat(filepath.Join(dir, "inputs")); err != nil {
		t.Skipf("no inputs of the recordings: %v", err)
	}
	bin := envoytest.Require(t)
	total := 0
	for _, s := range scenarios {
		if name, ok := strings.CutSuffix(s.Name, ".json"); ok {
			t.Run(name, func(t *testing.T) {
				ours := made(t, dir, name)
				fill(s, ours)
				total += compareInputs(t, bin, s, ours)
			})
		}
	}
	if total < least {
		t.Errorf("%d requests compared, want at least %d", total, least)
	}
}

// made is a scenario as our control plane makes it.
func made(t *testing.T, dir, name string) *dumptest.Scenario {
	t.Helper()
	list, _, err := recorded.Resources(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	s := &dumptest.Scenario{Name: name + " by us"}
	for _, r := range list["CDS"] {
		s.Clusters = append(s.Clusters, proto.Clone(r.Message).(*clusterv3.Cluster))
	}
	for _, r := range list["EDS"] {
		s.Endpoints = append(s.Endpoints, proto.Clone(r.Message).(*endpointv3.ClusterLoadAssignment))
	}
	for _, r := range list["LDS"] {
		s.Listeners = append(s.Listeners, proto.Clone(r.Message).(*listenerv3.Listener))
	}
	return s
}

// fill gives the recorded scenario our endpoints of the clusters that are empty.
func fill(s, made *dumptest.Scenario) {
	for i, e := range s.Endpoints {
		for _, m := range made.Endpoints {
			if slices.Contains(empty, e.GetClusterName()) && m.GetClusterName() == e.GetClusterName() {
				s.Endpoints[i] = m
			}
		}
	}
}

// compareInputs asks an Envoy with the recorded resources, and with ours an Envoy and a waypoint, and returns how many
// requests were compared.
func compareInputs(t *testing.T, bin string, s, made *dumptest.Scenario) int {
	at := backends{}
	o := startOurs(t)
	n, statuses := 0, map[string]int{}
	sides := []*verdicts{{name: "Envoy", excused: map[string]int{}}, {name: "waypoint", excused: map[string]int{}}}
	for _, as := range []form{calm, faults, reach} {
		theirs, ours := local(t, s, at, as), local(t, made, at, as)
		list := requests(t, theirs)
		if as == faults {
			list = faulty(t, theirs)
		}
		if len(list) == 0 || as == reach && !theirs.reached {
			continue
		}
		want, got := startEnvoy(t, bin, theirs), startEnvoy(t, bin, ours)
		o.serve(t, ours)
		for _, q := range list {
			n++
			for i, side := range []side{got, o} {
				sides[i].note(t, theirs.chainAt(q), q.String(), difference(side, want, q, statuses))
			}
		}
		for _, c := range theirs.chains {
			for _, who := range clients {
				if c.http == nil {
					n++
					for i, side := range []side{got, o} {
						sides[i].note(t, c.name, fmt.Sprint(who, " -> ", c.dst), lineDifference(side, want, who, c.dst))
					}
				}
			}
		}
	}
	fmt.Printf("%-42s %4d requests compared", s.Name, n)
	for _, v := range sides {
		fmt.Printf("; %s with our resources: %d differ", v.name, v.differ)
		for _, why := range sorted(v.excused) {
			fmt.Printf(", %d by intent (%s)", v.excused[why], why)
		}
	}
	fmt.Println()
	return n
}

// verdicts counts the differences of one side.
type verdicts struct {
	name    string
	differ  int
	excused map[string]int
}

func (v *verdicts) note(t *testing.T, chain, what, difference string) {
	t.Helper()
	if difference == "" {
		return
	}
	why := ""
	if v.name == "waypoint" {
		why = excuse(what, difference)
	}
	if why != "" {
		v.excused[why]++
		return
	}
	if v.differ++; v.differ <= 20 {
		t.Errorf("%s with our resources: %s: %s:\n%s", v.name, chain, what, difference)
	}
}

// chainAt is the name of the chain that a request is for.
func (r *resources) chainAt(q *request) string {
	for _, c := range r.chains {
		if c.dst == q.dst {
			return c.name
		}
	}
	return ""
}
