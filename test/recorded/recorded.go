// Package recorded makes our control plane's resources of the inputs of which istiod's were recorded
// (shared/waypoint-dumps/inputs), so that the two can be compared.
package recorded

import (
	"os"
	"path/filepath"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
)

// Gateway is the recorded waypoint, and Place is where it ran (README of the dumps).
var (
	Gateway = kube.Name{Namespace: "demo", Name: "waypoint"}
	Place   = envoy.Place{Region: "r1", Zone: "r1-z1", Node: "node-1"}
)

// Resources are those that we make of the inputs of a scenario, by type (CDS, EDS, LDS), and what is wrong with the inputs.
func Resources(dir, scenario string) (map[string][]envoy.Resource, []string, error) {
	var objects []kube.Object
	var problems []string
	for _, f := range []string{"base.yaml", scenario + ".yaml"} {
		data, err := os.ReadFile(filepath.Join(dir, "inputs", f))
		if err != nil {
			return nil, nil, err
		}
		list, found := kube.Decode(f, data)
		for _, p := range found {
			problems = append(problems, p.Error())
		}
		objects = append(objects, list...)
	}
	meshText, err := os.ReadFile(filepath.Join(dir, "inputs", "mesh.yaml"))
	if err != nil {
		return nil, nil, err
	}
	mesh, err := envoy.ParseMesh(meshText)
	if err != nil {
		return nil, nil, err
	}
	set := kube.NewObjects(objects...)
	var addresses []*workloadpb.Address
	for _, a := range translate.Build(translate.Config{}, set).Addresses {
		addresses = append(addresses, a.Message.(*workloadpb.Address))
	}
	res := envoy.NewIndex(envoy.Config{Mesh: mesh}, set, addresses).Build(Gateway, nil)
	for _, p := range res.Problems {
		problems = append(problems, p.Error())
	}
	return map[string][]envoy.Resource{"CDS": res.Clusters, "EDS": res.Endpoints(Place), "LDS": res.Listeners}, problems, nil
}
