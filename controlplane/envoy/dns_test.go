package envoy

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	dfpclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
)

func TestNamesAreLookedUpInTheFamiliesOfTheWaypoint(t *testing.T) {
	for addresses, want := range map[string]clusterv3.Cluster_DnsLookupFamily{
		"{type: Hostname, value: waypoint.demo.svc.cluster.local}":                                                                          clusterv3.Cluster_V4_ONLY,
		"{type: Hostname, value: waypoint.demo.svc.cluster.local}, {type: IPAddress, value: 10.0.0.9}":                                      clusterv3.Cluster_V4_ONLY,
		"{type: Hostname, value: waypoint.demo.svc.cluster.local}, {type: IPAddress, value: 'fd00::9'}":                                     clusterv3.Cluster_V6_ONLY,
		"{type: Hostname, value: waypoint.demo.svc.cluster.local}, {type: IPAddress, value: 10.0.0.9}, {type: IPAddress, value: 'fd00::9'}": clusterv3.Cluster_V4_PREFERRED,
	} {
		objects := kubetest.Decode(t, `
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: demo}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}, status: {addresses: [`+addresses+`]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: dns, namespace: demo}, spec: {hosts: [example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: any, namespace: demo}, spec: {hosts: ["*.example.org"], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DYNAMIC_DNS}}`)
		r := testIndex(Config{}, objects).Build(kube.Name{Namespace: "demo", Name: "waypoint"}, nil)
		seen := 0
		for _, c := range r.Clusters {
			if !strings.Contains(c.Name, "|") {
				continue
			}
			seen++
			m := c.Message.(*clusterv3.Cluster)
			got := m.DnsLookupFamily
			if a := m.GetClusterType().GetTypedConfig(); a != nil {
				var d dfpclusterv3.ClusterConfig
				if err := a.UnmarshalTo(&d); err != nil {
					t.Fatal(err)
				}
				got = d.GetDnsCacheConfig().DnsLookupFamily
			}
			if got != want {
				t.Errorf("%s: cluster %s asks for %s, want %s", addresses, c.Name, got, want)
			}
		}
		if seen != 2 {
			t.Errorf("%s: %d clusters, want 2", addresses, seen)
		}
	}
}
