package waypoint

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/svid/svidtest"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
)

// newAdmin is a waypoint without data path, whose admin port is served.
func newAdmin(t *testing.T) (*waypoint, func(method, target string) (int, string)) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.PodName, cfg.PodNamespace, cfg.InstanceIP, cfg.Gateway, cfg.LogOutput = "waypoint-1", "demo", "10.1.1.1", "waypoint", io.Discard
	id, err := spiffe.New("cluster.local", "demo", "waypoint")
	if err != nil {
		t.Fatal(err)
	}
	w := &waypoint{cfg: cfg, id: id}
	w.ready.Pending(readyConfig)
	if err := w.observe(); err != nil {
		t.Fatal(err)
	}
	w.config = newStore(w.log.Scope("config"))
	w.certs = svid.NewManager(svid.Config{CA: svidtest.NewCA(t, "cluster.local")})
	h := w.adminHandler(func() {})
	return w, func(method, target string) (int, string) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(method, target, nil))
		return rec.Code, rec.Body.String()
	}
}

func body(t *testing.T, m proto.Message, json string) []byte {
	t.Helper()
	if err := protojson.Unmarshal([]byte(json), m); err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// take hands a resource to a keeping handler as the xDS client does.
func take[T any](t *testing.T, typ xds.Type[T], h keeping[T], name, version string, b []byte, removed ...string) {
	t.Helper()
	v, err := keepingType(typ).Decode(name, b)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Apply([]xds.Resource[held[T]]{{Name: name, Version: version, Value: v}}, removed); err != nil {
		t.Fatal(err)
	}
}

// accept takes everything in.
type accept[T any] struct{}

func (accept[T]) Apply([]xds.Resource[T], []string) error { return nil }

// TestConfigDumpIsEnvoys: Envoy's own messages, which istioctl reads it with, are the judge.
func TestConfigDumpIsEnvoys(t *testing.T) {
	w, do := newAdmin(t)
	s := w.config
	clusters := xds.Type[*cluster.Config]{URL: xds.ClusterType, Decode: cluster.Decode}
	const name = "inbound-vip|9080|http|reviews.demo.svc.cluster.local"
	take(t, clusters, keeping[*cluster.Config]{&s.rawClusters, accept[*cluster.Config]{}}, name, "7",
		body(t, &clusterv3.Cluster{}, `{"name": "`+name+`", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}}`))
	take(t, clusters, keeping[*cluster.Config]{&s.rawClusters, accept[*cluster.Config]{}}, "gone", "1", body(t, &clusterv3.Cluster{}, `{"name": "gone", "type": "STATIC"}`))
	take(t, clusters, keeping[*cluster.Config]{&s.rawClusters, accept[*cluster.Config]{}}, "second", "2", body(t, &clusterv3.Cluster{}, `{"name": "second", "type": "STATIC"}`), "gone")
	take(t, xds.Type[*cluster.Assignment]{URL: xds.EndpointType, Decode: cluster.DecodeEndpoints}, keeping[*cluster.Assignment]{&s.rawEndpoints, accept[*cluster.Assignment]{}}, name, "9",
		body(t, &endpointv3.ClusterLoadAssignment{}, `{"cluster_name": "`+name+`"}`))
	take(t, xds.Type[string]{URL: xds.ListenerType, Decode: func(string, []byte) (string, error) { return "", nil }}, keeping[string]{&s.rawListeners, accept[string]{}}, "main_internal", "3",
		body(t, &listenerv3.Listener{}, `{"name": "main_internal", "internal_listener": {}, "traffic_direction": "INBOUND"}`))

	status, text := do("GET", "/config_dump?include_eds")
	if status != 200 {
		t.Fatal(status, text)
	}
	var d adminv3.ConfigDump
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), &d); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	var got []string
	for _, c := range d.GetConfigs() {
		m, err := c.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *adminv3.BootstrapConfigDump:
			n := m.GetBootstrap().GetNode()
			got = append(got, n.GetId(), n.GetMetadata().GetFields()["NAMESPACE"].GetStringValue())
		case *adminv3.ClustersConfigDump:
			for _, x := range m.GetDynamicActiveClusters() {
				var c clusterv3.Cluster
				if err := x.GetCluster().UnmarshalTo(&c); err != nil {
					t.Fatal(err)
				}
				got = append(got, c.GetName()+"@"+x.GetVersionInfo())
			}
		case *adminv3.EndpointsConfigDump:
			for _, x := range m.GetDynamicEndpointConfigs() {
				var c endpointv3.ClusterLoadAssignment
				if err := x.GetEndpointConfig().UnmarshalTo(&c); err != nil {
					t.Fatal(err)
				}
				got = append(got, "eds "+c.GetClusterName()+"@"+x.GetVersionInfo())
			}
		case *adminv3.ListenersConfigDump:
			for _, x := range m.GetDynamicListeners() {
				var c listenerv3.Listener
				if err := x.GetActiveState().GetListener().UnmarshalTo(&c); err != nil {
					t.Fatal(err)
				}
				got = append(got, x.GetName()+" "+c.GetTrafficDirection().String()+"@"+x.GetActiveState().GetVersionInfo())
			}
		}
	}
	want := []string{"waypoint~10.1.1.1~waypoint-1.demo~demo.svc.cluster.local", "demo", name + "@7", "second@2", "eds " + name + "@9", "main_internal INBOUND@3"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if _, text := do("GET", "/config_dump"); strings.Contains(text, "EndpointsConfigDump") {
		t.Error("endpoints are there without having been asked for")
	}
}

func TestAConfigDumpNamesTypesThatAreNotKnown(t *testing.T) {
	w, do := newAdmin(t)
	l := &listenerv3.Listener{Name: "x", FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "f"}}}}}
	// typed_config of an unknown type: field 4 of the filter.
	l.FilterChains[0].Filters[0].ProtoReflect().SetUnknown([]byte{0x22, 0x0d, 0x0a, 0x0b, 'a', '.', 'b', '/', 'c', '.', 'D', 'e', 'e', 'e', 'p'})
	b, err := proto.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	w.config.rawListeners.all = map[string]*raw{"x": {name: "x", packed: pack(b)}}
	if _, text := do("GET", "/config_dump"); !strings.Contains(text, `"a.b/c.Deeep"`) {
		t.Error(text)
	}
}

func TestTheAdminPortAnswersAsEnvoys(t *testing.T) {
	w, do := newAdmin(t)
	if status, text := do("GET", "/ready"); status != 503 || !strings.Contains(text, "INITIALIZING: "+readyConfig) {
		t.Error(status, text)
	}
	w.ready.Done(readyConfig)
	if status, text := do("GET", "/ready"); status != 200 || text != "LIVE\n" {
		t.Error(status, text)
	}
	if status, text := do("GET", "/stats/prometheus"); status != 200 || !strings.Contains(text, "istio_build{") || !strings.HasSuffix(text, "# EOF\n") {
		t.Error(status, text)
	}
	c, err := cluster.Compile(&clusterv3.Cluster{Name: "one", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, LoadAssignment: func() *endpointv3.ClusterLoadAssignment {
		a := &endpointv3.ClusterLoadAssignment{}
		body(t, a, `{"cluster_name": "one", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}}]}]}`)
		return a
	}()})
	if err != nil {
		t.Fatal(err)
	}
	w.config.clusters.Update([]*cluster.Config{c}, nil)
	_, text := do("GET", "/clusters?format=json")
	var x adminv3.Clusters
	if err := protojson.Unmarshal([]byte(text), &x); err != nil {
		t.Fatal(err)
	}
	if s := x.GetClusterStatuses()[0]; s.GetCircuitBreakers().GetThresholds()[0].GetMaxRetries().GetValue() != 3 || s.GetObservabilityName() != "one" {
		t.Errorf("%v", s)
	}
	h := x.GetClusterStatuses()[0].GetHostStatuses()[0]
	if a := h.GetAddress().GetSocketAddress(); a.GetAddress() != "10.0.0.1" || a.GetPortValue() != 80 || h.GetHealthStatus().GetEdsHealthStatus().String() != "HEALTHY" {
		t.Errorf("%v", h)
	}
}

func TestStatisticsHaveEnvoysNames(t *testing.T) {
	w, do := newAdmin(t)
	w.ready.Done(readyConfig)
	c, err := cluster.Compile(&clusterv3.Cluster{Name: "one", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, AltStatName: "inbound;",
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: "one"}})
	if err != nil {
		t.Fatal(err)
	}
	w.config.clusters.Update([]*cluster.Config{c}, nil)
	w.config.clusters.View().Get("one").Stats().Requests.Add(3)
	if status, text := do("GET", "/stats?filter=upstream_rq_total"); status != 200 || text != "cluster.inbound.upstream_rq_total: 3\n" {
		t.Error(status, text)
	}
	if _, text := do("GET", "/stats?usedonly"); !strings.Contains(text, "server.live: 1\n") || strings.Contains(text, ": 0\n") {
		t.Error(text)
	}
	var x struct {
		Stats []struct {
			Name  string
			Value int
		}
	}
	_, text := do("GET", "/stats?format=json&filter=total$")
	if err := json.Unmarshal([]byte(text), &x); err != nil || len(x.Stats) != 3 {
		t.Error(err, text)
	}
	if status, _ := do("GET", "/stats?filter=("); status != 400 {
		t.Error(status)
	}
}

func TestTheLogLevelOfAScopeIsChangedAtRunTime(t *testing.T) {
	w, do := newAdmin(t)
	config, proxy := w.log.Scope("config"), w.log.Scope("proxy")
	on := func(l *slog.Logger) bool { return l.Enabled(context.Background(), slog.LevelDebug) }
	if on(config) || on(proxy) {
		t.Fatal("debug is on from the start")
	}
	const levels = "active loggers:\n  app: info\n  config: debug\n  identity: info\n  proxy: info\n  xds: info\n"
	for _, q := range []string{"level=config=debug", "config=debug", "paths=config:debug,proxy:info", "level=debug&paths=app:info,identity:info,proxy:info,xds:info"} {
		if status, text := do("POST", "/logging?"+q); status != 200 || !on(config) || on(proxy) || text != levels {
			t.Errorf("%s: %d %s", q, status, text)
		}
		if status, _ := do("POST", "/logging?reset"); status != 200 || on(config) {
			t.Errorf("%s: a reset leaves the level", q)
		}
	}
	if status, _ := do("POST", "/logging?config=warning&proxy=debug"); status != 200 || !on(proxy) {
		t.Error("two scopes at a time")
	}
	if status, _ := do("POST", "/logging?level=trace"); status != 200 || !on(config) || !on(proxy) {
		t.Error("a level for all leaves a scope out")
	}
	for _, q := range []string{"level=config=loud", "level=loud", "conf=debug", "paths=config"} {
		if status, text := do("POST", "/logging?"+q); status != 400 || !strings.Contains(text, "usage:") {
			t.Errorf("%s: %d %s", q, status, text)
		}
	}
	if status, _ := do("GET", "/logging"); status != 405 {
		t.Error(status)
	}
}

// dumped are the configs of a dump, as Envoy's own messages.
func dumped(t *testing.T, do func(method, target string) (int, string), query string) (out []proto.Message) {
	t.Helper()
	status, text := do("GET", "/config_dump?"+query)
	var d adminv3.ConfigDump
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), &d); err != nil || status != 200 {
		t.Fatalf("%s: status %d, %v in %s", query, status, err, text)
	}
	for _, c := range d.GetConfigs() {
		m, err := c.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

const withRoutes = `{"name": "main_internal", "internal_listener": {}, "filter_chains": [{"name": "c", "filters": [{"name": "hcm", "typed_config": {
 "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "x", "route_config": {"name": "inbound|80"}}}]}]}`

func TestAConfigDumpHasRoutesAndSecretsWithoutKeys(t *testing.T) {
	w, do := newAdmin(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go w.certs.Run(ctx)
	if _, err := w.certs.Fetch(ctx, w.id); err != nil {
		t.Fatal(err)
	}
	take(t, xds.Type[string]{URL: xds.ListenerType, Decode: func(string, []byte) (string, error) { return "", nil }}, keeping[string]{&w.config.rawListeners, accept[string]{}}, "main_internal", "3",
		body(t, &listenerv3.Listener{}, withRoutes))

	routes := dumped(t, do, "mask=dynamic_route_configs,static_route_configs")
	if len(routes) != 1 {
		t.Fatalf("%d configs", len(routes))
	}
	var rc routev3.RouteConfiguration
	if l := routes[0].(*adminv3.RoutesConfigDump).GetStaticRouteConfigs(); len(l) != 1 || l[0].GetRouteConfig().UnmarshalTo(&rc) != nil || rc.GetName() != "inbound|80" {
		t.Errorf("%v", routes)
	}
	secrets := dumped(t, do, "mask=dynamic_active_secrets")
	var names []string
	for _, x := range secrets[0].(*adminv3.SecretsConfigDump).GetDynamicActiveSecrets() {
		var s tlsv3.Secret
		if err := x.GetSecret().UnmarshalTo(&s); err != nil {
			t.Fatal(err)
		}
		names = append(names, s.GetName())
		if c := s.GetTlsCertificate(); c != nil && (!strings.HasPrefix(string(c.GetCertificateChain().GetInlineBytes()), "-----BEGIN CERTIFICATE-----") || string(c.GetPrivateKey().GetInlineBytes()) != "[redacted]") {
			t.Errorf("%v", c)
		}
	}
	if strings.Join(names, " ") != "default ROOTCA" {
		t.Error(names)
	}
	for _, target := range []string{"/config_dump?include_eds", "/certs", "/server_info"} {
		status, text := do("GET", target)
		if status != 200 || strings.Contains(text, "PRIVATE") || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("-----BEGIN EC"))[:16]) {
			t.Errorf("%s: %d", target, status)
		}
		if target == "/certs" {
			var c adminv3.Certificates
			if err := protojson.Unmarshal([]byte(text), &c); err != nil || len(c.GetCertificates()) != 1 || c.GetCertificates()[0].GetCertChain()[0].GetSubjectAltNames()[0].GetUri() != w.id.String() {
				t.Errorf("%v in %s", err, text)
			}
		}
		if target == "/server_info" {
			var i adminv3.ServerInfo
			if err := protojson.Unmarshal([]byte(text), &i); err != nil || i.GetState() != adminv3.ServerInfo_INITIALIZING {
				t.Errorf("%v in %s", err, text)
			}
		}
	}
	if _, text := do("GET", "/listeners"); text != "main_internal::envoy://main_internal/\n" {
		t.Error(text)
	}
}

func TestAPartOfAConfigDumpIsAskedFor(t *testing.T) {
	w, do := newAdmin(t)
	clusters := xds.Type[*cluster.Config]{URL: xds.ClusterType, Decode: cluster.Decode}
	for _, n := range []string{"inbound|80", "outbound|80"} {
		take(t, clusters, keeping[*cluster.Config]{&w.config.rawClusters, accept[*cluster.Config]{}}, n, "7", body(t, &clusterv3.Cluster{}, `{"name": "`+n+`", "type": "STATIC", "connect_timeout": "3s"}`))
	}
	got := dumped(t, do, "resource=dynamic_active_clusters&mask=cluster.name&name_regex=inbound.*")
	var c clusterv3.Cluster
	if len(got) != 1 || got[0].(*adminv3.ClustersConfigDump_DynamicCluster).GetCluster().UnmarshalTo(&c) != nil || c.GetName() != "inbound|80" || c.GetConnectTimeout() != nil {
		t.Errorf("%v", got)
	}
	if got := dumped(t, do, "mask=bootstrap.node.id"); len(got) != 1 || got[0].(*adminv3.BootstrapConfigDump).GetBootstrap().GetNode().GetId() == "" || got[0].(*adminv3.BootstrapConfigDump).GetBootstrap().GetNode().GetCluster() != "" {
		t.Errorf("%v", got)
	}
	if got := dumped(t, do, "resource=static_clusters"); len(got) != 0 {
		t.Errorf("%v", got)
	}
	for q, want := range map[string]int{"mask=x": 400, "mask=bootstrap,x": 400, "resource=nope": 404, "resource=bootstrap": 400, "name_regex=(": 400, "resource=dynamic_active_clusters&mask=nope": 400, "resource=dynamic_endpoint_configs": 404, "include_eds&resource=dynamic_endpoint_configs": 200} {
		if status, text := do("GET", "/config_dump?"+q); status != want {
			t.Errorf("%s: %d %s, want %d", q, status, text, want)
		}
	}
}
