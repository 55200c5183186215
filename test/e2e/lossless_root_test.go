package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// losslessGateway has its waypoints replaced when the generation changes.
func losslessGateway(generation int) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {annotations: {generation: "%d"}, parametersRef: {group: "", kind: ConfigMap, name: wp}}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`, generation)
}

// losslessBackend is the part of the backend that is replaced when the generation changes.
func losslessBackend(generation int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web, steady: "no"}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web, steady: "no"}, annotations: {generation: "%d"}}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 20
      containers: [{name: c, image: ambit/echo, args: ["--drain=3s"], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]
`, generation)
}

// losslessRoute is the route of the service that is asked.
func losslessRoute(rules string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules: %s
`, rules)
}

// webLoad is a load of the client's requests to the service, once the waypoint answers.
func (m *mesh) webLoad(rate int) *requests {
	m.t.Helper()
	a, err := m.c.Access(m.t.Context(), "shop", "client", "")
	netnstest.Must(m.t, err)
	ns, err := netns.Open("/run/netns/" + a.NetNS)
	netnstest.Must(m.t, err)
	m.t.Cleanup(func() { ns.Close() })
	q := &requests{ns: ns, to: netip.AddrPortFrom(m.vips("shop", "web")[0], 80), host: "web.shop", rate: rate}
	m.await("an answer by the waypoint", 20*time.Second, func() error {
		_, err := q.once(q.client(false))
		return err
	})
	return q
}

// change is the i-th change of the configuration: routes, weights, endpoints and clusters in turn. None of them leaves a
// request without a place to go.
func (m *mesh) change(ctx context.Context, i int) error {
	switch n := i / 4; i % 4 {
	case 0: // weights
		return m.c.ApplyYAML(ctx, losslessRoute(fmt.Sprintf(`[{backendRefs: [{name: one, port: 80, weight: %d}, {name: two, port: 80, weight: %d}]}]`, 1+n%9, 9-n%9)))
	case 1: // routes
		return m.c.ApplyYAML(ctx, losslessRoute(fmt.Sprintf(`[{matches: [{headers: [{name: x-number, value: "%d"}]}], backendRefs: [{name: one, port: 80}]},
		 {backendRefs: [{name: two, port: 80}, {name: web, port: 80}]}]`, n)))
	case 2: // endpoints: all pods, or those that are not replaced
		selector := []string{"{app: web}", "{app: web, steady: \"yes\"}"}[n%2]
		return m.c.ApplyYAML(ctx, service("one", selector))
	default: // clusters: those that are there change, and others come and go, before and after there is a route to them
		if n > extras/2 {
			if err := m.c.DeleteObject(ctx, "Service", "shop", extra(n-2)); err != nil {
				return err
			}
		}
		return m.c.ApplyYAML(ctx, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: two, namespace: shop}
spec:
  host: two.shop.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: %d}}, loadBalancer: {simple: %s}}
---
%s
---
`, 1000+n%50, []string{"LEAST_REQUEST", "ROUND_ROBIN", "RANDOM"}[n%3], service(extra(n+extras/2), "{app: web}"))+
			losslessRoute(fmt.Sprintf(`[{backendRefs: [{name: %s, port: 80}, {name: two, port: 80}]}]`, extra(n))))
	}
}

// extras is the number of services that come and go.
const extras = 8

func extra(n int) string { return fmt.Sprintf("extra-%d", n%extras) }

func service(name, selector string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: shop}, spec: {selector: %s, ports: [{name: http, port: 80, targetPort: 8080}]}}",
		name, selector)
}

// No request is lost while routes, weights, endpoints and clusters change all the time, the waypoint's replicas are replaced,
// and the backend is replaced pod by pod.
func TestRootSoakNoRequestIsLostWhileEverythingChanges(t *testing.T) {
	m := start(t, lab.Options{Name: "e2elossless", Programs: lab.Programs{Waypoint: program(t, "waypoint")}})
	m.files("testdata/lossless.yaml")
	base := losslessGateway(0) + "\n---\n" + losslessBackend(0)
	for n := range extras {
		base += "\n---\n" + service(extra(n), "{app: web}")
	}
	m.apply(base)
	q := m.webLoad(pick(300, 2000))
	perSecond, length := pick(10, 50), pick(8*time.Second, time.Minute)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load *answers
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { load = q.run(ctx) })
	changes := 0
	wg.Go(func() { // changes, which catch up when they are late
		for begin := time.Now(); ctx.Err() == nil; changes++ {
			due := begin.Add(time.Duration(changes) * time.Second / time.Duration(perSecond))
			if pause(ctx, time.Until(due), time.Minute); ctx.Err() != nil {
				return
			}
			if err := m.change(ctx, changes); err != nil && ctx.Err() == nil {
				t.Errorf("change %d: %v", changes, err)
			}
		}
	})
	begin := time.Now()
	rolls := 0
	for time.Since(begin) < length {
		rolls++
		netnstest.Must(t, m.c.ApplyYAML(ctx, losslessBackend(rolls)))
		netnstest.Must(t, m.c.ApplyYAML(ctx, losslessGateway(rolls)))
		m.ready()
		pause(ctx, time.Until(begin.Add(length)), 10*time.Second)
	}
	cancel()
	wg.Wait()
	t.Logf("%d changes in %.0f s, everything replaced %d times: %s", changes, time.Since(begin).Seconds(), rolls, load.words())
	load.zero(t)
	if log := m.log("controlplane", ""); strings.Contains(log, "rejected resources") {
		t.Error("the waypoint rejected resources; see the control plane's log: " + log)
	}
}

// pause waits for the lesser of two times, or until ctx ends.
func pause(ctx context.Context, a, b time.Duration) {
	t := time.NewTimer(min(a, b))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
