package kube

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/wire"
	"github.com/ambit-mesh/ambit/internal/netns"
)

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

// TestRootARebootedNodeComesBackCaptured takes the power from each node in turn, of which one has the control plane of the mesh,
// and from both at once.
func TestRootARebootedNodeComesBackCaptured(t *testing.T) {
	requireCluster(t)
	requireBed(t)
	m := newMeshWorld(t)
	m.apply(onlyMesh)
	m.apply(callers)
	must(t, "", "-n", "km-shop", "rollout", "status", "daemonset/caller", "--timeout=60s")
	for _, nodes := range [][]string{{"node2"}, {"node1"}, {"node1", "node2"}} {
		t.Run(strings.Join(nodes, " and "), func(t *testing.T) { m.t = t; m.reboot(t, nodes) })
	}
}

func (m *meshWorld) reboot(t *testing.T, nodes []string) {
	stops := map[string]func() wire.Report{}
	for _, other := range []string{"node1", "node2"} {
		if !slices.Contains(nodes, other) {
			stops["between the nodes"] = tapFabric(t, "kubefab"+strings.TrimPrefix(other, "node"))
		}
	}
	before, old := map[string]map[string]string{}, map[string]uint64{}
	for _, node := range nodes {
		before[node], old[node] = m.started(node), networkOf(node)
	}
	began := time.Now()
	rebooted := make(chan error, 1)
	go func() {
		out, err := exec.CommandContext(t.Context(), "./cluster", append([]string{"reboot"}, nodes...)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		rebooted <- err
	}()
	for _, node := range nodes {
		eventually(t, node+" to have a network again", func() error {
			if now := networkOf(node); now == 0 || now == old[node] {
				return errors.New("none yet")
			}
			return nil
		})
		stops["on "+node] = tapNode(t, node) // before anything runs there
	}
	if err := <-rebooted; err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f s: they have power again", time.Since(began).Seconds())
	eventuallyWithin(t, 4*time.Minute, "all pods to run again", func() error {
		for node, pods := range before {
			for pod, at := range m.started(node) {
				if at == "" || at == pods[pod] {
					return fmt.Errorf("pod %s has not started again", pod)
				}
			}
		}
		_, err := kubectl(t.Context(), "", "-n", "km-shop", "wait", "--for=condition=Ready", "pods", "--all", "--timeout=1s")
		return err
	})
	t.Logf("%.1f s: all pods run", time.Since(began).Seconds())
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
	for where, stop := range stops {
		wantNoPlaintext(t, where, stop())
	}
}

// networkOf is the cookie of a node's network namespace, which no later one has; 0 while there is none.
func networkOf(node string) uint64 {
	ns, err := netns.Open("/run/netns/" + node)
	if err != nil {
		return 0
	}
	defer ns.Close()
	cookie, _ := ns.Cookie()
	return cookie
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

// halfMinute is a pod that asks for half a minute, and ends well if every request was answered.
const halfMinute = `{apiVersion: v1, kind: Pod, metadata: {name: asker, namespace: km-shop, labels: {churn: asker}}, spec: {nodeName: node1, restartPolicy: Never, terminationGracePeriodSeconds: 1,
 containers: [{name: ask, image: IMAGE, args: [echo, client, --fresh, --rate=50, --parallel=32, --duration=30s, --timeout=10s, "http://server.km-shop/` + secret + `"]}]}}`

// TestRootWhatServesANodeMayDie kills the kubelet, the container runtime and capture of a node under load.
func TestRootWhatServesANodeMayDie(t *testing.T) {
	requireCluster(t)
	requireBed(t)
	m := newMeshWorld(t)
	m.apply(onlyMesh)
	eventually(t, "STRICT to refuse the outsider", m.outsiderRefused)
	for _, name := range []string{"kubelet", "containerd", "capture"} {
		t.Run(name, func(t *testing.T) { m.t = t; m.survives(t, name) })
	}
}

// survives crashes what is named on node1, while a pod there asks and others start. No request is lost, and the servers are
// ready again: the kubelet that probes them, also under STRICT, may be another process than before.
func (m *meshWorld) survives(t *testing.T, name string) {
	stop := m.tapNodes(t)
	m.apply(halfMinute)
	m.ready("km-shop", "asker")
	began := time.Now()
	m.apply(requests("before", 5))
	if out, err := exec.CommandContext(t.Context(), "./cluster", "crash", "node1", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.apply(requests("after", 10))
	m.allAnswered(t, "before", 5)
	m.allAnswered(t, "after", 10)
	t.Logf("%.1f s: the pods that came meanwhile were answered", time.Since(began).Seconds())
	m.allAnswered(t, "asker", 1)
	must(t, "", "-n", "km-shop", "delete", "pods", "-l", "churn", "--wait=false")
	m.noneLeft(t, "")
	stop()
	must(t, "", "-n", "km-shop", "wait", "--for=condition=Ready", "pods", "--all", "--timeout=60s")
}
