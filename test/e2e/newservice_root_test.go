package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// A route to a service that is made together with it, in the place of one that is deleted together with it, loses no request: a
// waypoint has the new service's endpoints before the route, and the old service until it has the new route.
func TestRootARouteToANewServiceLosesNothing(t *testing.T) {
	for name, envoy := range map[string]bool{"our waypoint": false, "Envoy": true} {
		t.Run(name, func(t *testing.T) { newServices(t, upWaypoint(t, "e2enew", envoy, "testdata/lossless.yaml")) })
	}
}

func newServices(t *testing.T, m *mesh) {
	generation := func(n int) string { return fmt.Sprintf("generation-%d", n) }
	route := func(n int) string {
		return fmt.Sprintf(`{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: web, namespace: shop}, spec: {parentRefs: [{group: "", kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: %s, port: 80}]}]}}`, generation(n))
	}
	m.apply(losslessGateway(0) + "\n---\n" + service(generation(0), "{app: web}") + "\n---\n" + route(0))
	a, err := m.c.Access(t.Context(), "shop", "client", "")
	netnstest.Must(t, err)
	ns, err := netns.Open("/run/netns/" + a.NetNS)
	netnstest.Must(t, err)
	t.Cleanup(func() { ns.Close() })
	q := &requests{ns: ns, to: netip.AddrPortFrom(m.vips("shop", "web")[0], 80), host: "web.shop", rate: pick(300, 1000)}
	m.await("an answer by the waypoint", 20*time.Second, func() error {
		_, err := q.once(q.client(false))
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	load := make(chan *answers)
	go func() { load <- q.run(ctx) }()
	changes := pick(20, 200)
	for n := 1; n <= changes; n++ {
		netnstest.Must(t, m.c.ApplyYAML(t.Context(), service(generation(n), "{app: web}")+"\n---\n"+route(n)))
		netnstest.Must(t, m.c.DeleteObject(t.Context(), "Service", "shop", generation(n-1)))
		pause(t.Context(), 300*time.Millisecond, time.Second)
	}
	cancel()
	got := <-load
	t.Logf("%d new services: %s", changes, got.words())
	got.zero(t)
	if log := m.log("controlplane", ""); strings.Contains(log, "rejected resources") {
		t.Error("the waypoint rejected resources; see the control plane's log: " + log)
	}
}
