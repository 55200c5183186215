package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/netns"
)

// mart is a client on node-1 and two servers, one on each node. The service far has many ports: a client has about 28,000
// of its own towards each address and port, and each is gone for a minute after use.
func mart() string {
	var ports strings.Builder
	for i := range 16 {
		fmt.Fprintf(&ports, "\n  - {name: p%d, port: %d, targetPort: 8080}", i, 8001+i)
	}
	pod := func(name, node string) string {
		return fmt.Sprintf(`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s, namespace: mart}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: mart, labels: {app: %[1]s}}
spec:
  serviceAccountName: %[1]s
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: ambit/echo
    readinessProbe: {tcpSocket: {port: 8080}}
`, name, node)
	}
	service := func(name string) string {
		return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: mart}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: %[1]s}
  ports:%[2]s
`, name, ports.String())
	}
	return `
apiVersion: v1
kind: Namespace
metadata:
  name: mart
  labels: {istio.io/dataplane-mode: ambient}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: mart}
spec: {mtls: {mode: STRICT}}
` + pod("client", "node-1") + pod("far", "node-2") + pod("near", "node-1") + service("far") + service("near")
}

// generator is a load of the client on both servers, three of four connections on the one of the other node. It waits until
// the mesh carries one of each.
func (m *mesh) generator(rate, held int) *generator {
	m.t.Helper()
	a, err := m.c.Access(m.t.Context(), "mart", "client", "")
	if err != nil {
		m.t.Fatal(err)
	}
	ns, err := netns.Open("/run/netns/" + a.NetNS)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { ns.Close() })
	g := &generator{ns: ns, rate: rate, held: held}
	far, near := m.serviceTargets("mart", "far"), m.serviceTargets("mart", "near")
	for i, x := range far {
		g.targets = append(g.targets, x)
		if i%3 == 2 {
			g.targets = append(g.targets, near[i])
		}
	}
	for _, to := range g.targets {
		m.eventually("an answer of "+to.String(), 20*time.Second, func() bool {
			conn, err := connect(ns, to, time.Now().Add(2*time.Second))
			if err != nil {
				return false
			}
			defer conn.Close()
			_, err = exchange(conn, "ready?\n")
			return err == nil
		})
	}
	return g
}

// A proxy that dies takes the streams in flight with it and nothing else: what its pods and its peers dial while it is away
// waits in the listeners, which capture holds too.
func TestRootSoakAKilledProxyRefusesNothingAndLeaksNothing(t *testing.T) {
	m := start(t, lab.Options{Name: "e2ekill"})
	m.apply(mart())
	g := m.generator(pick(200, 500), 16)
	g.again = true
	before := m.usage()
	stop := m.tap("node-1")
	load := g.start(t.Context())
	var died []window
	kills := pick(4, 20) // ten times each node's
	for i := range kills {
		time.Sleep(pick(1500*time.Millisecond, 3*time.Second))
		node := []string{"node-1", "node-2"}[i%2]
		p := m.proxyOf(node)
		flight := load.open.Load()
		w, err := p.kill()
		if err != nil {
			t.Error(err)
		}
		died = append(died, w)
		t.Logf("%s: killed the proxy of %s, dead within %.1f ms, %d connections in flight", w.from.Format(stamp), node, w.to.Sub(w.from).Seconds()*1000, flight)
	}
	time.Sleep(time.Duration(pick(2, 4)) * time.Second)
	sum := load.end()
	t.Logf("proxies killed %d times: %s", kills, sum.words())
	wantEncrypted(t, "node-1", stop())
	m.settled(before)
	if n := sum.count(refused); n > 0 {
		t.Errorf("%d connections were refused, want none", n)
	}
	flight := sum.count(func(f failure) bool { return f.within(died) })
	t.Logf("of %d failed connections %d were in flight when a proxy died, %d of these were held open", len(sum.failures), flight, sum.count(held))
	ends := 0
	for _, f := range sum.failures {
		if errors.Is(f.err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection of %s hung: %v", f.from.Format(stamp), f)
		}
		if errors.Is(f.err, io.EOF) { // as if the server had ended its answer
			ends++
		}
		if !f.within(died) {
			t.Errorf("a connection of %s that was not in flight failed after %.3f s: %v", f.from.Format(stamp), f.to.Sub(f.from).Seconds(), f)
		}
	}
	if ends > 0 {
		t.Errorf("%d connections that died with a proxy ended with a FIN, want a reset", ends)
	}
}

func TestRootSoakAPlannedRestartOfTheProxyLosesNothing(t *testing.T) {
	m := start(t, lab.Options{Name: "e2eplan"})
	m.apply(mart())
	g := m.generator(pick(200, 500), 0)
	before := m.usage()
	stop := m.tap("node-1")
	load := g.start(t.Context())
	time.Sleep(time.Second)
	restarts := pick(2, 10)
	for i := range restarts {
		m.program("restart", []string{"ztunnel/node-1", "ztunnel/node-2"}[i%2], "proxy")
		time.Sleep(time.Second)
	}
	sum := load.end()
	t.Logf("proxies restarted %d times: %s", restarts, sum.words())
	wantEncrypted(t, "node-1", stop())
	m.settled(before)
	sum.zero(t)
}

// Neither capture nor the control plane is on the path of a byte: connections that are open go on too.
func TestRootSoakKilledCaptureAndControlPlaneLoseNothing(t *testing.T) {
	m := start(t, lab.Options{Name: "e2eside"})
	m.apply(mart())
	for _, c := range []struct {
		name  string
		words [][]string
		pause time.Duration
	}{
		{"capture", [][]string{{"capture", "--node=node-1"}, {"capture", "--node=node-2"}}, 3 * time.Second},
		{"controlplane", [][]string{{"--manifests=/run/ambit-lab/e2eside/manifests"}}, 6 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := m.in(t)
			g := m.generator(pick(200, 500), 20)
			before := m.usage()
			stop := m.tap("node-1")
			load := g.start(t.Context())
			time.Sleep(time.Second)
			kills := pick(2, 10)
			for i := range kills {
				if _, err := m.process(c.words[i%len(c.words)]...).kill(); err != nil {
					t.Error(err)
				}
				time.Sleep(pick(1500*time.Millisecond, c.pause)) // what lived for less than 5 s is not started at once
			}
			sum := load.end()
			t.Logf("%s killed %d times: %s", c.name, kills, sum.words())
			wantEncrypted(t, "node-1", stop())
			m.settled(before)
			sum.zero(t)
		})
	}
}
