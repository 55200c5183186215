package scale

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// addWaypoint has a waypoint in ns-0 stand before the services of all namespaces.
func (m *manifests) addWaypoint() {
	for ns := range 10 {
		m.write(fmt.Sprintf("namespace_ns-%d", ns), fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: ns-%d\n  labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: ns-0}\n", ns))
	}
	const labels = `{gateway.networking.k8s.io/gateway-name: wp, gateway.networking.k8s.io/gateway-class-name: istio-waypoint, gateway.istio.io/managed: istio.io-mesh-controller, istio.io/waypoint-for: service}`
	m.write("gateway_ns-0_wp", `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: ns-0, uid: 00000000-0000-4000-8002-000000000001, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]
status:
  addresses: [{type: IPAddress, value: 10.200.100.1}, {type: Hostname, value: wp.ns-0.svc.cluster.local}]
`)
	m.write("service_ns-0_wp", `apiVersion: v1
kind: Service
metadata: {name: wp, namespace: ns-0, labels: `+labels+`}
spec:
  clusterIP: 10.200.100.1
  selector: {gateway.networking.k8s.io/gateway-name: wp}
  ports: [{name: mesh, port: 15008, appProtocol: hbone}]
`)
	m.write("pod_ns-0_wp-1", `apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: ns-0, uid: uid-wp-1, labels: `+labels+`}
spec:
  serviceAccountName: wp
  nodeName: node-0
  containers: [{name: istio-proxy, image: example/waypoint}]
status:
  phase: Running
  podIP: 10.250.0.1
  podIPs: [{ip: 10.250.0.1}]
  conditions: [{type: Ready, status: "True"}]
`)
}

// startWaypoint starts the real waypoint.
func startWaypoint(t testing.TB, c *controlPlane) (p *program, admin string) {
	t.Helper()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(c.sign(map[string]any{"namespace": "ns-0", "serviceAccount": "wp", "pod": "wp-1", "uid": "uid-wp-1", "node": "node-0"})), 0o600); err != nil {
		t.Fatal(err)
	}
	admin = freePort(t)
	p = startProgram(t, filepath.Join(dir, "log"), filepath.Join(binDir, "waypoint"), "--pod-name=wp-1", "--pod-namespace=ns-0", "--service-account=wp",
		"--instance-ip=10.250.0.1", "--gateway=wp", "--node=node-0", "--xds-address=https://"+c.listen, "--root-ca="+c.rootCA(), "--token="+token,
		"--listen="+freePort(t), "--admin-address="+admin, "--metrics-address="+freePort(t), "--ready-address="+freePort(t))
	return p, admin
}

// TestSoakWaypointMemory measures the real waypoint with nothing to do, and with 1,000 services and 10,000 endpoints.
func TestSoakWaypointMemory(t *testing.T) {
	sizes := []struct{ pods, services int }{{100, 10}, {amount(1000, manyPods), amount(100, manyServices)}}
	for _, size := range sizes {
		t.Run(fmt.Sprint(size.pods), func(t *testing.T) {
			m := writeManifests(t, size.pods, size.services)
			m.addWaypoint()
			c := startControlPlane(t, m)
			p, admin := startWaypoint(t, c)
			waitFor(t, "waypoint ready", func() bool { return httpGet("http://"+admin+"/ready") != nil })
			var clusters struct {
				Statuses []struct {
					Name     string            `json:"name"`
					Statuses []json.RawMessage `json:"host_statuses"`
				} `json:"cluster_statuses"`
			}
			endpoints := func() (n int) {
				_ = json.Unmarshal(httpGet("http://"+admin+"/clusters?format=json"), &clusters)
				for _, c := range clusters.Statuses {
					n += len(c.Statuses)
				}
				return n
			}
			waitFor(t, "all endpoints", func() bool { return endpoints() >= size.pods })
			cpu := p.cpu()
			settleWaypoint(t)
			all, anon := p.rss()
			t.Logf("%d services, %d endpoints: %.1f MB (%.1f without files), %v CPU", size.services, size.pods, all, anon, cpu)
			if limit := 60.0; anon > limit && !soak() {
				t.Errorf("more than %.0f MB", limit)
			}
		})
	}
}

// settleWaypoint waits until the waypoint has given back what it needed for the start, in the long form.
func settleWaypoint(t *testing.T) { settle(t, 4e9, 15e9) }
