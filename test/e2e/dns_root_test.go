package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// dnsObjects are a headless service, a host outside of Kubernetes, and a pod that keeps its queries to itself.
const dnsObjects = `
{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: shop}, spec: {clusterIP: None, selector: {app: server}, ports: [{name: http, port: 8080}]}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop}
spec:
  hosts: [api.outside.example]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: server}}
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
---
{apiVersion: v1, kind: Pod, metadata: {name: shy, namespace: shop, annotations: {ambient.istio.io/dns-capture: "false"}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: ambit/echo}]}}
`

// resolve asks as any program does, but not /etc/hosts.
func (m *mesh) resolve(pod, name string) ([]netip.Addr, error) {
	out, err := m.c.Run(m.t.Context(), "shop", pod, "getent", "-s", "dns", "ahosts", name)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "STREAM" {
			a, err := netip.ParseAddr(f[0])
			if err != nil {
				return nil, err
			}
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

func (m *mesh) resolves(name string, want ...netip.Addr) {
	m.t.Helper()
	m.await(name+" to be resolved", 10*time.Second, func() error {
		got, err := m.resolve("client", name)
		if err != nil {
			return err
		}
		for _, a := range want {
			if !strings.Contains(fmt.Sprint(got), a.String()) {
				return fmt.Errorf("%s means %v, want %v", name, got, want)
			}
		}
		return nil
	})
}

func TestRootPodsOfTheMeshResolveItsNames(t *testing.T) {
	m := up(t, lab.Options{Name: "e2edns"})
	m.apply(dnsObjects)
	vips, pods := m.vips("shop", "server"), m.addrs("shop", "server")
	for _, name := range []string{"server", "server.shop", "server.shop.svc", "server.shop.svc.cluster.local", "server.shop.svc.cluster.local."} {
		m.resolves(name, vips...)
	}
	m.resolves("headless", pods...)
	m.resolves("api.outside.example")
	got, err := m.resolve("client", "api.outside.example")
	ranges := []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")}
	if err != nil || len(got) != 2 || !ranges[0].Contains(got[0]) && !ranges[1].Contains(got[0]) {
		t.Errorf("automatic addresses: got %v, %v", got, err)
	}
	m.await("a request by the name", 10*time.Second, func() error {
		if sum := m.from("shop", "client", "--count=1", "http://api.outside.example/"); sum.OK != 1 {
			return fmt.Errorf("got %+v", sum)
		}
		return nil
	})
	if got, err := m.resolve("client", "nobody.example"); err == nil {
		t.Errorf("a name that nobody knows: %v", got)
	}
	if got, err := m.resolve("shy", "server"); err == nil {
		t.Errorf("the pod whose queries are its own: %v", got)
	}
	for _, part := range []string{"proxy", "capture"} {
		m.program("restart", "ztunnel/node-1", part)
		m.resolves("server", vips...)
	}
}
