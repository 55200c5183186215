package envoy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

// TestWhatIsAboutToEndServesOnlyWhereNothingElseDoes, as with kube-proxy.
func TestWhatIsAboutToEndServesOnlyWhereNothingElseDoes(t *testing.T) {
	pod := func(name, ip, more string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: demo, labels: {app: web}%s}, spec: {containers: [{name: c, image: i}]}, status: {phase: Running, podIP: %s}}\n---\n", name, more, ip)
	}
	const ending = `, deletionTimestamp: "2026-01-01T00:00:00Z", deletionGracePeriodSeconds: 30`
	const service = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: demo}, spec: {clusterIPs: [10.96.0.1], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}}\n---\n"
	for _, c := range []struct{ name, pods, want string }{
		{"one of two ends", pod("a", "10.0.0.1", "") + pod("b", "10.0.0.2", ending), "10.0.0.1:8080"},
		{"all end", pod("a", "10.0.0.1", ending) + pod("b", "10.0.0.2", ending), "10.0.0.1:8080 10.0.0.2:8080"},
		{"there are none", "", ""},
	} {
		r := buildYAML(t, service+c.pods, nil)
		var got []string
		for _, e := range r.Endpoints(Place{}) {
			for _, l := range e.Message.(*endpointv3.ClusterLoadAssignment).Endpoints {
				for _, end := range l.LbEndpoints {
					if end.HealthStatus != corev3.HealthStatus_HEALTHY {
						t.Errorf("%s: %v", c.name, end)
					}
					got = append(got, end.GetEndpoint().GetAddress().GetEnvoyInternalAddress().GetEndpointId())
				}
			}
		}
		if slices.Sort(got); strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}
