// Package dumptest reads recorded xDS resources, the golden input of the waypoint's tests. They are not part of the
// repository: where the folder is absent, a test says so and ends.
//
// A folder holds, for each scenario, NAME.json (resources by type, as proto JSON) and pb/NAME.TYPE.pb (a serialized
// envoy.service.discovery.v3.DeltaDiscoveryResponse).
package dumptest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/cncf/xds/go/udpa/type/v1" // TypedStruct
	_ "github.com/cncf/xds/go/xds/type/v3"  // TypedStruct
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
)

// Scenario is what one waypoint received.
type Scenario struct {
	// Name is the scenario's name and form, such as "01-basic.json".
	Name      string
	Clusters  []*clusterv3.Cluster
	Endpoints []*endpointv3.ClusterLoadAssignment
	Listeners []*listenerv3.Listener
}

// Load reads all scenarios, each in both forms. dir is the folder, "" for waypoint-dumps in the directory shared beside
// the repository. If it is absent the test is skipped, with that reason.
func Load(t testing.TB, dir string) []*Scenario {
	t.Helper()
	if dir == "" {
		dir = filepath.Join(root(t), "..", "shared", "waypoint-dumps")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no recorded resources: %v (AMBIT_DUMPS names the folder)", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var out []*Scenario
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		if strings.HasSuffix(name, ".ztunnel") {
			continue
		}
		out = append(out, readJSON(t, f), readPB(t, filepath.Join(dir, "pb"), name))
	}
	if len(out) == 0 {
		t.Fatalf("no scenario in %s", dir)
	}
	return out
}

// root is the directory of go.mod.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = up
	}
}

func readJSON(t testing.TB, file string) *Scenario {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Resources map[string][]struct{ Resource json.RawMessage }
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	s := &Scenario{Name: filepath.Base(file)}
	for _, rs := range d.Resources {
		for _, r := range rs {
			var a anypb.Any
			if err := Unmarshal(r.Resource, &a); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			s.add(t, &a)
		}
	}
	return s
}

func readPB(t testing.TB, dir, name string) *Scenario {
	t.Helper()
	s := &Scenario{Name: name + ".pb"}
	for _, kind := range []string{"CDS", "EDS", "LDS"} {
		raw, err := os.ReadFile(filepath.Join(dir, name+"."+kind+".pb"))
		if err != nil {
			t.Fatal(err)
		}
		var d discoveryv3.DeltaDiscoveryResponse
		if err := proto.Unmarshal(raw, &d); err != nil {
			t.Fatalf("%s %s: %v", name, kind, err)
		}
		for _, r := range d.GetResources() {
			s.add(t, r.GetResource())
		}
	}
	return s
}

func (s *Scenario) add(t testing.TB, a *anypb.Any) {
	t.Helper()
	m, err := a.UnmarshalNew()
	if err != nil {
		t.Fatalf("%s: %v", s.Name, err)
	}
	switch m := m.(type) {
	case *clusterv3.Cluster:
		s.Clusters = append(s.Clusters, m)
	case *endpointv3.ClusterLoadAssignment:
		s.Endpoints = append(s.Endpoints, m)
	case *listenerv3.Listener:
		s.Listeners = append(s.Listeners, m)
	}
}

// Unmarshal reads a message in proto JSON. Types that are not linked in (those of Istio's build of Envoy) lose their
// content, not their name.
func Unmarshal(raw []byte, m proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true, Resolver: resolver{protoregistry.GlobalTypes}}.Unmarshal(raw, m)
}

// resolver finds an empty message for a type that is not linked in.
type resolver struct{ *protoregistry.Types }

// FindMessageByURL implements protojson's resolver.
func (r resolver) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	if mt, err := r.Types.FindMessageByURL(url); err == nil {
		return mt, nil
	}
	full := protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:])
	fd, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String(string(full) + ".proto"), Package: proto.String(string(full.Parent())),
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String(string(full.Name()))}},
	}, nil)
	if err != nil {
		return nil, err
	}
	return dynamicpb.NewMessageType(fd.Messages().Get(0)), nil
}
