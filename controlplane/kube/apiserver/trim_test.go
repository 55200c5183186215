package apiserver

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
)

// trimmed sends objects through what an API server's objects go through.
func trimmed(t *testing.T, objects []kube.Object) []kube.Object {
	t.Helper()
	var out []kube.Object
	for _, o := range objects {
		body, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		trim(kube.KeyOf(o).Kind, m)
		if body, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
		small, problems := kube.DecodeStored(body)
		for _, p := range problems {
			t.Fatal(p.Error())
		}
		out = append(out, small)
	}
	return out
}

// objectsOf reads the golden cases of a package that translates.
func objectsOf(t *testing.T, pattern string) map[string][]kube.Object {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in %s: %v", pattern, err)
	}
	out := map[string][]kube.Object{}
	for _, path := range files {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			if f.Name == "objects.yaml" {
				list, problems := kube.Decode(f.Name, f.Data)
				for _, p := range problems {
					t.Fatal(p.Error())
				}
				out[path] = append(out[path], list...)
			}
		}
	}
	return out
}

func TestTranslationMakesTheSameOfTrimmedObjects(t *testing.T) {
	for path, objects := range objectsOf(t, "../../translate/testdata/*.txtar") {
		whole := translate.Build(translate.Config{}, kube.NewObjects(objects...))
		small := translate.Build(translate.Config{}, kube.NewObjects(trimmed(t, objects)...))
		if d := cmp.Diff(whole, small, protocmp.Transform()); d != "" {
			t.Errorf("%s (-whole +trimmed):\n%s", path, d)
		}
	}
}

func TestWaypointsGetTheSameOfTrimmedObjects(t *testing.T) {
	cases := objectsOf(t, "../../envoy/testdata/*.txtar")
	maps.Copy(cases, objectsOf(t, "../../translate/testdata/waypoint-*.txtar"))
	for path, objects := range cases {
		if d := cmp.Diff(waypoint(objects), waypoint(trimmed(t, objects))); d != "" {
			t.Errorf("%s (-whole +trimmed):\n%s", path, d)
		}
	}
}

func TestGatewaysBecomeTheSameOfTrimmedObjects(t *testing.T) {
	for path, objects := range objectsOf(t, "../../gateway/testdata/*.txtar") {
		settings := gateway.Settings{Image: "waypoint"}
		whole := gateway.NewPlanner(settings).Update(kube.NewObjects(objects...))
		small := gateway.NewPlanner(settings).Update(kube.NewObjects(trimmed(t, objects)...))
		if d := cmp.Diff(whole.Problems, small.Problems); d != "" {
			t.Errorf("%s: problems (-whole +trimmed):\n%s", path, d)
		}
		for i, w := range small.Waypoints {
			if d := cmp.Diff(whole.Waypoints[i].Objects, w.Objects); d != "" {
				t.Errorf("%s: %s (-whole +trimmed):\n%s", path, w.Gateway.Name, d)
			}
		}
	}
}

// waypoint is what the waypoints of a set of objects get.
func waypoint(objects []kube.Object) map[string]string {
	set := kube.NewObjects(objects...)
	var addresses []*workloadpb.Address
	result := translate.Build(translate.Config{}, set)
	for _, name := range slices.Sorted(maps.Keys(result.Addresses)) {
		addresses = append(addresses, result.Addresses[name].Message.(*workloadpb.Address))
	}
	out := map[string]string{}
	index := envoy.NewIndex(envoy.Config{}, set, addresses)
	for _, name := range index.Waypoints() {
		r := index.Build(name, nil)
		for _, list := range [][]envoy.Resource{r.Clusters, r.Listeners, r.Endpoints(envoy.Place{})} {
			for _, res := range list {
				out[name.String()+" "+res.Name] = res.Version
			}
		}
		for _, p := range r.Problems {
			out[name.String()+" "+p.Error()] = "problem"
		}
	}
	return out
}
