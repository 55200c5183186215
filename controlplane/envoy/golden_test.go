package envoy

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

var update = flag.Bool("update", false, "write the results into testdata")

// TestGolden reads testdata/*.txtar: a claim, the objects, the addresses that translate would make of them, optionally
// MeshConfig, and what the waypoint demo/waypoint gets, less what every waypoint has.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var objects []kube.Object
			var want []byte
			cfg := Config{}
			out := txtar.Archive{Comment: a.Comment}
			for _, f := range a.Files {
				switch f.Name {
				case "objects.yaml":
					list, problems := kube.Decode(f.Name, f.Data)
					for _, p := range problems {
						t.Fatal(p.Error())
					}
					objects = append(objects, list...)
				case "mesh.yaml":
					if cfg.Mesh, err = ParseMesh(f.Data); err != nil {
						t.Fatal(err)
					}
				case "result":
					want = f.Data
					continue
				default:
					t.Fatalf("unknown file %q", f.Name)
				}
				out.Files = append(out.Files, f)
			}
			got := render(t, testIndex(cfg, objects))
			if *update {
				out.Files = append(out.Files, txtar.File{Name: "result", Data: []byte(got)})
				if err := os.WriteFile(path, txtar.Format(&out), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("result (-want +got); -update writes it:\n%s", d)
			}
		})
	}
}

// render writes what of a waypoint's resources is its own.
func render(t *testing.T, x *Index) string {
	t.Helper()
	r := x.Build(kube.Name{Namespace: "demo", Name: "waypoint"}, nil)
	var b strings.Builder
	for _, c := range r.Clusters {
		if strings.Contains(c.Name, "|") {
			fmt.Fprintf(&b, "cluster %s\n", compact(t, c.Message))
		}
	}
	for _, e := range r.Endpoints(Place{Region: "r1", Zone: "z1", Node: "node-1"}) {
		fmt.Fprintf(&b, "endpoints %s\n", compact(t, e.Message))
	}
	for _, l := range r.Listeners {
		if l.Name != nameMainInternal {
			continue
		}
		m := l.Message.(*listenerv3.Listener)
		fmt.Fprintf(&b, "matcher %s\n", compact(t, m.FilterChainMatcher))
		for _, f := range m.ListenerFilters[1:] {
			fmt.Fprintf(&b, "inspector %s\n", compact(t, f))
		}
		for _, c := range m.FilterChains {
			if strings.Contains(c.Name, "|") {
				renderChain(t, &b, c)
			}
		}
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "%s %s\n", p.Severity, p.Error())
	}
	return b.String()
}

func renderChain(t *testing.T, b *strings.Builder, c *listenerv3.FilterChain) {
	fmt.Fprintf(b, "chain %s\n", c.Name)
	for _, f := range c.Filters {
		var m map[string]any
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(f.GetTypedConfig())
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		if f.Name != "envoy.filters.network.http_connection_manager" {
			fmt.Fprintf(b, "  filter %s %s\n", f.Name, squeeze(m))
			continue
		}
		for _, h := range m["http_filters"].([]any) {
			h := h.(map[string]any)
			fmt.Fprintf(b, "  http %s %s\n", h["name"], squeeze(h["typed_config"]))
		}
		for _, v := range m["route_config"].(map[string]any)["virtual_hosts"].([]any) {
			v := v.(map[string]any)
			fmt.Fprintf(b, "  host %v\n", v["domains"])
			for _, k := range []string{"rate_limits", "typed_per_filter_config", "request_headers_to_add", "response_headers_to_add"} {
				if x, ok := v[k]; ok {
					fmt.Fprintf(b, "    %s %s\n", k, squeeze(x))
				}
			}
			for _, r := range v["routes"].([]any) {
				fmt.Fprintf(b, "    route %s\n", squeeze(r))
			}
		}
		for _, k := range []string{"access_log", "http2_protocol_options"} {
			if v, ok := m[k]; ok {
				fmt.Fprintf(b, "  %s %s\n", k, squeeze(v))
			}
		}
		if p, ok := m["tracing"].(map[string]any)["provider"]; ok {
			fmt.Fprintf(b, "  tracer %s\n", squeeze(p))
		}
	}
}

// boring are fields that are the same nearly everywhere.
var boring = []string{
	"@type", "alt_stat_name", "circuit_breakers", "connect_timeout", "eds_cluster_config", "transport_socket_matches", "retry_policy",
	"max_grpc_timeout", "metadata", "decorator", "lb_policy", "common_lb_config", "sds_config", "name_", "cluster_name",
}

func compact(t *testing.T, m proto.Message) string {
	t.Helper()
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return squeeze(v)
}

func squeeze(v any) string {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(prune(v)); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(buf.String())
}

// prune leaves out what is boring: a retry policy is not when it is no default.
func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			dull := slices.Contains(boring, k)
			if p, ok := x.(map[string]any); ok && k == "retry_policy" && p["num_retries"] != float64(2) {
				dull = false
			}
			if s, ok := x.(string); ok && k == "connect_timeout" && s != "10s" || ok && k == "lb_policy" && s != "LEAST_REQUEST" {
				dull = false
			}
			if dull {
				delete(v, k)
				continue
			}
			v[k] = prune(x)
		}
	case []any:
		for i, x := range v {
			v[i] = prune(x)
		}
	}
	return v
}

// testIndex makes the index without translate: services and pods as simple as the cases need them.
func testIndex(cfg Config, objects []kube.Object) *Index {
	set := kube.NewObjects(objects...)
	waypoint := &workloadpb.GatewayAddress{
		Destination: &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "demo", Hostname: "waypoint.demo.svc.cluster.local"}},
	}
	return NewIndex(cfg, set, fixtures(set, waypoint))
}
