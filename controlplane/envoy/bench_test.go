package envoy

import (
	"fmt"
	"testing"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// large is a namespace of n services with ten pods each behind one waypoint, and a VirtualService for each tenth.
func large(tb testing.TB, n int) (*kube.Objects, []*workloadpb.Address) {
	tb.Helper()
	text := "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: demo}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n" +
		"status: {addresses: [{type: Hostname, value: waypoint.demo.svc.cluster.local}]}\n"
	waypoint := &workloadpb.GatewayAddress{Destination: &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "demo", Hostname: "waypoint.demo.svc.cluster.local"}}}
	var addresses []*workloadpb.Address
	for i := range n {
		text += fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d, namespace: demo}\nspec: {clusterIPs: [10.%d.%d.1], selector: {app: s%d}, ports: [{name: http, port: 80, targetPort: 8080}]}\n", i, 96+i/250, i%250, i)
		if i%10 == 0 {
			text += fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: s%d, namespace: demo}\nspec: {hosts: [s%d], http: [{timeout: 1s, route: [{destination: {host: s%d}}]}]}\n", i, i, i)
		}
		host := fmt.Sprintf("s%d.demo.svc.cluster.local", i)
		addresses = append(addresses, &workloadpb.Address{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{
			Name: fmt.Sprintf("s%d", i), Namespace: "demo", Hostname: host, Waypoint: waypoint,
			Addresses: []*workloadpb.NetworkAddress{{Address: []byte{10, byte(96 + i/250), byte(i % 250), 1}}},
		}}})
		for j := range 10 {
			addresses = append(addresses, &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: &workloadpb.Workload{
				Uid: fmt.Sprintf("Kubernetes//Pod/demo/s%d-%d", i, j), Name: fmt.Sprintf("s%d-%d", i, j), Namespace: "demo", TunnelProtocol: workloadpb.TunnelProtocol_HBONE,
				Addresses: [][]byte{{10, byte(100 + i/100), byte(i % 100), byte(j)}},
				Services:  map[string]*workloadpb.PortList{"demo/" + host: {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}},
			}}})
		}
	}
	objects, problems := kube.Decode("large.yaml", []byte(text))
	if len(problems) > 0 {
		tb.Fatal(problems[0].Error())
	}
	return kube.NewObjects(objects...), addresses
}

// BenchmarkBuild is what a change costs: index, resources and endpoints of 1,000 services and 10,000 pods.
func BenchmarkBuild(b *testing.B) {
	set, addresses := large(b, 1000)
	gateway := kube.Name{Namespace: "demo", Name: "waypoint"}
	b.ReportAllocs()
	for b.Loop() {
		r := NewIndex(Config{}, set, addresses).Build(gateway, nil)
		if len(r.Clusters) != 1005 || len(r.Endpoints(Place{})) != 1000 {
			b.Fatal("wrong number of resources")
		}
	}
}
