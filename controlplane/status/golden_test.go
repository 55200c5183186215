package status

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
	"github.com/ambit-mesh/ambit/controlplane/translate"
)

// TestGolden reads testdata/*.txtar: a claim, the objects, and the statuses that come of them.
func TestGolden(t *testing.T) {
	kubetest.Golden(t, func(t *testing.T, c *kubetest.Case) string {
		got := ""
		for _, s := range compute(c.Objects) {
			body, _, err := s.Render(nil, time.Unix(0, 0))
			if err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(string(body), `"lastTransitionTime":"1970-01-01T00:00:00Z",`, "")
			got += fmt.Sprintf("# %s\n%s\n", s.Object, strings.NewReplacer(`{"message"`, "\n  {\"message\"", `"parents":`, "\n\"parents\":", `,"listeners"`, ",\n\"listeners\"").Replace(text))
		}
		return got
	})
}

// compute goes the way of the control plane.
func compute(objects *kube.Objects) []Status {
	result := translate.Build(translate.Config{}, objects)
	var addresses []*workloadpb.Address
	for _, name := range slices.Sorted(maps.Keys(result.Addresses)) {
		addresses = append(addresses, result.Addresses[name].Message.(*workloadpb.Address))
	}
	x := envoy.NewIndex(envoy.Config{}, objects, addresses)
	problems := slices.Concat(result.Problems, gateway.NewPlanner(gateway.Settings{Image: "waypoint"}).Update(objects).Problems)
	for _, name := range x.Waypoints() {
		problems = append(problems, x.Build(name, nil).Problems...)
	}
	return Compute(Input{Objects: objects, Translated: result.Status, Routes: x.RouteParents(), Problems: problems, ClusterDomain: "cluster.local"})
}

func TestAConditionKeepsItsTimeUntilItsStatusChanges(t *testing.T) {
	s := Status{Object: kube.Key{Kind: kube.KindService, Name: kube.Name{Namespace: "demo", Name: "x"}}}
	render := func(old []byte, status, message string, at int64) ([]byte, bool) {
		t.Helper()
		s.Conditions = nil
		if status != "" {
			s.Conditions = append(s.Conditions, condition("istio.io/WaypointBound", envoy.Verdict{OK: status == "True", Reason: "R", Message: message}, 0))
		}
		body, changed, err := s.Render(old, time.Unix(at, 0))
		if err != nil {
			t.Fatal(err)
		}
		return body, changed
	}
	foreign := []byte(`{"conditions":[{"type":"Somebody/Else","status":"True"}],"loadBalancer":{}}`)
	one, changed := render(foreign, "True", "a", 1)
	if !changed || !strings.Contains(string(one), "Somebody/Else") || !strings.Contains(string(one), "1970-01-01T00:00:01Z") {
		t.Fatalf("first: %v %s", changed, one)
	}
	if again, changed := render(one, "True", "a", 2); changed || string(again) != string(one) {
		t.Errorf("the same again: %s", again)
	}
	two, changed := render(one, "True", "b", 3)
	if !changed || !strings.Contains(string(two), "1970-01-01T00:00:01Z") {
		t.Errorf("another message: %s", two)
	}
	three, changed := render(two, "False", "b", 4)
	if !changed || !strings.Contains(string(three), "1970-01-01T00:00:04Z") {
		t.Errorf("another status: %s", three)
	}
	if gone, changed := render(three, "", "", 5); !changed || string(gone) != `{"conditions":[{"status":"True","type":"Somebody/Else"}],"loadBalancer":{}}` {
		t.Errorf("taken back: %v %s", changed, gone)
	}
}
