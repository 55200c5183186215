package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/wire"
)

// secret is in what the callers of a test send: it must never be seen between the nodes.
const secret = "AMBIT-KUBE-SECRET-77d0b1"

// callers are pods on each node that ask the servers from their first moment on, each time over a new connection.
const callers = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: caller, namespace: km-shop}
spec:
  selector: {matchLabels: {app: caller}}
  template:
    metadata: {labels: {app: caller}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: ask, image: IMAGE, args: [echo, client, --fresh, --rate=50, --duration=1h, --timeout=2s, --data=` + secret + `, "tcp://server.km-shop:80"]}]
`

// TestRootARebootedNodeComesBackCaptured takes the power from each node in turn: that of the control plane is one of them.
func TestRootARebootedNodeComesBackCaptured(t *testing.T) {
	requireCluster(t)
	requireBed(t)
	m := newMeshWorld(t)
	m.apply(onlyMesh)
	m.apply(callers)
	must(t, "", "-n", "km-shop", "rollout", "status", "daemonset/caller", "--timeout=60s")
	for _, node := range []string{"node2", "node1"} {
		t.Run(node, func(t *testing.T) { m.t = t; m.reboot(t, node) })
	}
}

// requireBed skips a test whose nodes must be on this machine.
func requireBed(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/run/netns/node1"); err != nil {
		t.Skip("the nodes are not on this machine (make kube-up)")
	}
}

func (m *meshWorld) reboot(t *testing.T, node string) {
	other := map[string]string{"node1": "node2", "node2": "node1"}[node]
	stop := tapFabric(t, "kubefab"+strings.TrimPrefix(other, "node"))
	before := m.started(node)
	began := time.Now()
	if out, err := exec.CommandContext(t.Context(), "./cluster", "reboot", node).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%.1f s: the node has power again", time.Since(began).Seconds())
	eventuallyWithin(t, 4*time.Minute, "all pods of the node to run again", func() error {
		for pod, at := range m.started(node) {
			if at == "" || at == before[pod] {
				return fmt.Errorf("pod %s has not started again", pod)
			}
		}
		_, err := kubectl(t.Context(), "", "-n", "km-shop", "wait", "--for=condition=Ready", "pods", "--all", "--timeout=1s")
		return err
	})
	t.Logf("%.1f s: its pods run", time.Since(began).Seconds())
	callers := strings.Fields(must(t, "", "-n", "km-shop", "get", "pods", "-l", "app=caller", "-o", "jsonpath={.items[*].metadata.name}"))
	for _, pod := range append(callers, "client") {
		eventuallyWithin(t, 2*time.Minute, pod+" to be answered by both servers, in the mesh alone", func() error {
			if n := m.ask("km-shop", pod, 20); n != 20 {
				return fmt.Errorf("%d of 20", n)
			}
			return m.redirection("km-shop", pod, "enabled")()
		})
	}
	t.Logf("%.1f s: everything is answered", time.Since(began).Seconds())
	r := stop()
	tunnels := r.Count(func(f *wire.Flow) bool { return f.Server.Port() == 15008 && f.TLS13() })
	t.Logf("between the nodes: %d packets of pods, %d connections, %d of them HBONE, the callers' text %d times, %d packets missed", r.Packets, len(r.Flows), tunnels, r.Markers(), r.Dropped)
	if tunnels == 0 {
		t.Error("nothing was tunnelled: the capture proves nothing")
	}
	if n := r.Markers(); n > 0 {
		t.Errorf("the callers' text was on the wire %d times", n)
	}
	for _, f := range r.Flows {
		if f.Bytes > 0 && f.Server.Port() != 15008 {
			t.Errorf("%s to %s is not HBONE: first bytes %q", f.Client, f.Server, f.First)
		}
	}
}

// started is when the containers of a node's pods, by namespace and name, have started; "" if they do not all run.
func (m *meshWorld) started(node string) map[string]string {
	m.t.Helper()
	out := map[string]string{}
	list := must(m.t, "", "get", "pods", "-A", "--field-selector=spec.nodeName="+node, "-o",
		`jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{"="}{.status.containerStatuses[*].state.running.startedAt}{"\n"}{end}`)
	for line := range strings.Lines(list) {
		pod, at, _ := strings.Cut(strings.TrimSpace(line), "=")
		out[pod] = at
	}
	return out
}

// tapFabric captures what pods say to each other on a link between the nodes, but for xDS, until stop is called.
func tapFabric(t *testing.T, link string) (stop func() wire.Report) {
	t.Helper()
	pods := netip.MustParsePrefix("10.244.0.0/16")
	c, err := wire.Open(wire.Config{Link: link, Marker: []byte(secret), Filter: func(s wire.Segment) bool {
		return pods.Contains(s.Src.Addr()) && pods.Contains(s.Dst.Addr()) && s.Src.Port() != 15012 && s.Dst.Port() != 15012
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	ended := false
	end := func() wire.Report {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			_ = c.Close()
		}
		return c.Report()
	}
	t.Cleanup(func() { end() })
	return end
}
