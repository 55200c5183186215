package diagnose

import (
	"strings"
	"testing"
)

// envoyDump is what an Envoy of Istio's build says, shortened.
const envoyDump = `{"configs": [
 {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": {"id": "waypoint~10.0.0.1~wp.shop~shop.svc.cluster.local", "metadata": {"ISTIO_VERSION": "1.30.0"}}, "admin": {}}},
 {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "static_clusters": [{"cluster": {"name": "xds-grpc", "load_assignment": {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "./etc/istio/proxy/XDS"}}}}]}]}}}],
  "dynamic_active_clusters": [{"cluster": {"name": "inbound-vip|80|http|web.shop.svc.cluster.local", "type": "EDS"}}, {"cluster": {"name": "main_internal"}}]},
 {"@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump", "dynamic_endpoint_configs": [{"endpoint_config": {"cluster_name": "inbound-vip|80|http|web.shop.svc.cluster.local",
  "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": "inner_connect_originate", "endpoint_id": "10.1.0.5:8080"}}}, "health_status": "HEALTHY"},
   {"endpoint": {"address": {"socket_address": {"address": "10.1.0.6", "port_value": 8080}}}, "health_status": "UNHEALTHY"}]}]}}]},
 {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": [{"name": "main_internal", "active_state": {"listener": {"name": "main_internal", "filter_chains": [
  {"name": "inbound-vip|80|http|web.shop.svc.cluster.local-http", "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {"@type": "t", "http_filters": [{"name": "envoy.filters.http.rbac"}, {"name": "envoy.filters.http.router"}],
   "route_config": {"virtual_hosts": [{"name": "inbound|http|80", "routes": [{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a"}, {"name": "b"}]}}}, {"match": {"safe_regex": {"regex": "/x.*"}}, "direct_response": {"status": 503}}]}]}}}]},
  {"name": "direct", "filters": [{"name": "envoy.filters.network.rbac"}, {"name": "envoy.filters.network.tcp_proxy", "typed_config": {"cluster": "inbound-vip|90|tcp|db.shop.svc.cluster.local"}}]}]}}}]}
]}`

func TestAnEnvoysDumpIsReadAsOurOwn(t *testing.T) {
	d, err := ReadDump([]byte(envoyDump))
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Role: Waypoint, Namespace: "shop", Name: "wp", Dump: d}
	if got := p.version(); got != "1.30.0" || !d.Envoy {
		t.Errorf("version %q", got)
	}
	for kind, want := range map[string]string{
		"clusters": `
inbound-vip|80|http|web.shop.svc.cluster.local 2 1 wp
main_internal 0 0 wp
xds-grpc 1 1 wp`,
		"endpoints": `
inbound-vip|80|http|web.shop.svc.cluster.local 10.1.0.5:8080  healthy 0 0 wp
inbound-vip|80|http|web.shop.svc.cluster.local 10.1.0.6:8080  unhealthy 0 0 wp
xds-grpc ./etc/istio/proxy/XDS  healthy 0 0 wp`,
		"listeners": `
main_internal direct tcp envoy.filters.network.rbac,envoy.filters.network.tcp_proxy wp
main_internal inbound-vip|80|http|web.shop.svc.cluster.local-http http envoy.filters.http.rbac,envoy.filters.http.router wp`,
		"routes": `
main_internal direct tcp -> inbound-vip|90|tcp|db.shop.svc.cluster.local wp
main_internal inbound-vip|80|http|web.shop.svc.cluster.local-http inbound|http|80: prefix / -> a, b wp
main_internal inbound-vip|80|http|web.shop.svc.cluster.local-http inbound|http|80: regex /x.* -> status 503 wp`,
		"bootstrap": `
admin {} wp
node {"id":"waypoint~10.0.0.1~wp.shop~shop.svc.cluster.local","metadata":{"ISTIO_VERSION":"1.30.0"}} wp`,
	} {
		table, _, err := Config(kind, nil, "", []*Proxy{p})
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		got := ""
		for _, row := range table.Narrow().Rows {
			got += "\n" + strings.Join(row, " ")
		}
		if got != want {
			t.Errorf("%s: got%s\nwant%s", kind, got, want)
		}
	}
	if _, _, err := Config("routes", nil, "", []*Proxy{{Role: Waypoint, Name: "x", Dump: &Dump{}}}); err == nil || !strings.Contains(err.Error(), "no Envoy's") {
		t.Errorf("a dump of neither: %v", err)
	}
}

// FuzzReadDump: what a proxy says cannot end the program.
func FuzzReadDump(f *testing.F) {
	f.Add(envoyDump)
	f.Add(`{"configs": [{"@type": 1}, [], {"@type": "x.SecretsConfigDump", "static_secrets": [{"secret": {"tls_certificate": {"certificate_chain": {"inline_bytes": 7}}}}]}]}`)
	f.Add(`{"workloads": [], "version": {"version": "v"}}`)
	rust, _ := rustDump(f)
	f.Add(string(rust))
	f.Add(`{"workloads": [{"workloadIps": ["10.1.0.5"], "name": "a", "namespace": "b", "locality": {}}], "services": [{"ports": {"80": 8080}, "loadBalancer": {}}], "policies": [{"rules": [[[{}]]]}],
 "certificates": [{"certChain": [], "rootCerts": []}], "workloadState": {"u": {"state": "Pending", "info": {"name": "late"}}}, "config": {"localNode": null, "adminAddr": {"Localhost": [true, 15000]}}}`)
	f.Fuzz(func(t *testing.T, body string) {
		d, err := ReadDump([]byte(body))
		if err != nil {
			return
		}
		for _, kind := range Kinds() {
			for _, role := range Roles(kind) {
				_, _, _ = Config(kind, nil, "", []*Proxy{{Role: role, Dump: d}})
			}
		}
	})
}
