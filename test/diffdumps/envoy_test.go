package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/test/recorded"
)

// static writes a bootstrap with resources as static ones.
func static(t *testing.T, resources map[string][]envoy.Resource) string {
	t.Helper()
	list := func(in []envoy.Resource) []json.RawMessage {
		var out []json.RawMessage
		for _, r := range envoy.Plain(in) {
			text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r.Message)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, text)
		}
		return out
	}
	local := func(name string) json.RawMessage {
		return json.RawMessage(`{"name":"` + name + `","type":"STATIC","load_assignment":{"cluster_name":"` + name + `"},
			"typed_extension_protocol_options":{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{"@type":"type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions","explicit_http_config":{"http2_protocol_options":{}}}}}`)
	}
	boot := map[string]any{
		"node": map[string]any{"id": "waypoint~1.2.3.4~w.demo~demo.svc.cluster.local", "cluster": "waypoint.demo"},
		"dynamic_resources": map[string]any{"ads_config": map[string]any{
			"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": []any{map[string]any{"envoy_grpc": map[string]any{"cluster_name": "xds-grpc"}}},
		}},
		"static_resources": map[string]any{
			"clusters": append(list(resources["CDS"]), local("xds-grpc"), local("sds-grpc")), "listeners": list(resources["LDS"]),
		},
		"bootstrap_extensions": []any{map[string]any{"name": "envoy.bootstrap.internal_listener", "typed_config": map[string]any{
			"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
		}}},
	}
	text, err := json.Marshal(boot)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEnvoyTakesWhatWeMakeOfTheRecordedInputs(t *testing.T) {
	bin, dir := envoytest.Require(t), find()
	if dir == "" {
		t.Skip("no recordings of istiod (shared/waypoint-dumps in a folder above)")
	}
	names, err := recordedScenarios(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			resources, _, err := recorded.Resources(dir, name)
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(bin, "--mode", "validate", "-l", "error", "-c", static(t, resources)).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// goldenCases are the cases of controlplane/envoy, with what is wrong in them.
func goldenCases(t *testing.T) map[string]map[string][]envoy.Resource {
	t.Helper()
	files, err := filepath.Glob("../../controlplane/envoy/testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	out := map[string]map[string][]envoy.Resource{}
	for _, path := range files {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		cfg := envoy.Config{}
		var set *kube.Objects
		for _, f := range a.Files {
			switch f.Name {
			case "objects.yaml":
				objects, _ := kube.Decode(f.Name, f.Data)
				set = kube.NewObjects(objects...)
			case "mesh.yaml":
				if cfg.Mesh, err = envoy.ParseMesh(f.Data); err != nil {
					t.Fatal(err)
				}
			}
		}
		var services []kube.Object // bound to the waypoint, as the cases mean it
		for s := range kube.List[*corev1.Service](set) {
			s = s.DeepCopy()
			s.Labels = map[string]string{"istio.io/use-waypoint": "waypoint"}
			services = append(services, s)
		}
		set = set.With(services, nil)
		var addresses []*workloadpb.Address
		for _, r := range translate.Build(translate.Config{}, set).Addresses {
			addresses = append(addresses, r.Message.(*workloadpb.Address))
		}
		r := envoy.NewIndex(cfg, set, addresses).Build(recorded.Gateway, nil)
		out[strings.TrimSuffix(filepath.Base(path), ".txtar")] = map[string][]envoy.Resource{"CDS": r.Clusters, "LDS": r.Listeners}
	}
	return out
}

func TestEnvoyTakesWhatWeMakeOfBadConfiguration(t *testing.T) {
	bin := envoytest.Require(t)
	for name, resources := range goldenCases(t) {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command(bin, "--mode", "validate", "-l", "error", "-c", static(t, resources)).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
