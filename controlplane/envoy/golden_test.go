package envoy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
)

// TestGolden reads testdata/*.txtar: a claim, the objects, the addresses that translate would make of them, optionally
// MeshConfig, and what the waypoint demo/waypoint gets, less what every waypoint has.
func TestGolden(t *testing.T) {
	kubetest.Golden(t, func(t *testing.T, c *kubetest.Case) string {
		cfg := Config{}
		if mesh := c.File("mesh.yaml"); mesh != nil {
			var err error
			if cfg.Mesh, err = ParseMesh(mesh); err != nil {
				t.Fatal(err)
			}
		}
		return render(t, testIndex(cfg, c.Objects))
	})
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
func testIndex(cfg Config, set *kube.Objects) *Index {
	waypoint := &workloadpb.GatewayAddress{
		Destination: &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "demo", Hostname: "waypoint.demo.svc.cluster.local"}},
	}
	return NewIndex(cfg, set, fixtures(set, waypoint))
}
