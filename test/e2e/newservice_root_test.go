package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

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
		return losslessRoute(fmt.Sprintf("[{backendRefs: [{name: %s, port: 80}]}]", generation(n)))
	}
	m.apply(losslessGateway(0) + "\n---\n" + service(generation(0), "{app: web}") + "\n---\n" + route(0))
	q := m.webLoad(pick(300, 1000))
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
