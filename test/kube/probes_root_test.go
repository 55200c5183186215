package kube

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// strict is a namespace that admits no plaintext, and a client outside.
const strict = `
{apiVersion: v1, kind: Namespace, metadata: {name: km-strict, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: km-outside}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: km-strict}
spec: {mtls: {mode: STRICT}}
---
{apiVersion: v1, kind: Pod, metadata: {name: outsider, namespace: km-outside}, spec: {nodeName: node2, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: strict, namespace: km-strict}, spec: {type: NodePort, selector: {probe: http}, ports: [{name: http, port: 80, targetPort: 8080}]}}
`

// probes are the kinds of probes, each by the name of a pod that has it.
var probes = map[string]string{
	"http":    `readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}`,
	"tcp":     `readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}`,
	"grpc":    `readinessProbe: {grpc: {port: 8080}, periodSeconds: 1}`,
	"exec":    `readinessProbe: {exec: {command: [/ambit, echo, --help]}, periodSeconds: 2, timeoutSeconds: 5}`,
	"named":   `readinessProbe: {httpGet: {path: /healthz, port: web}, periodSeconds: 1}`,
	"startup": `startupProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 5}`,
	"live":    `livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 2}`,
}

// onNode runs a command in a node's network and mount namespaces. It needs a cluster of ours.
func onNode(t *testing.T, node string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "./cluster", append([]string{"exec", node}, args...)...).CombinedOutput()
	return string(out), err
}

func requireOurCluster(t *testing.T) {
	t.Helper()
	env, err := exec.CommandContext(t.Context(), "./cluster", "env").Output()
	if err != nil || !strings.Contains(string(env), "KUBECONFIG="+os.Getenv("KUBECONFIG")+"\n") {
		t.Skip("the cluster is not one of test/kube/cluster: commands cannot be run on its nodes")
	}
}

// strictWorld are pods with probes, of every kind on node1 and of some on node2, whose kubelet has a cgroup of its own.
type strictWorld struct {
	*meshWorld
	addr map[string]string // by pod
}

func newStrictWorld(t *testing.T) *strictWorld {
	m := &strictWorld{newMesh(t, "km-strict", "km-outside"), map[string]string{}}
	manifest := strict
	add := func(name, node, probe string) {
		m.addr[name] = ""
		manifest += fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: km-strict, labels: {probe: %s}}, spec: {nodeName: %s, terminationGracePeriodSeconds: 1, "+
			"containers: [{name: echo, image: IMAGE, args: [echo], ports: [{name: web, containerPort: 8080}], %s}]}}\n", name, name, node, probe)
	}
	for name, probe := range probes {
		add(name, "node1", probe)
	}
	for _, name := range []string{"http", "tcp", "grpc"} {
		add("far-"+name, "node2", probes[name])
	}
	m.apply(manifest)
	m.ready("km-outside", "outsider")
	for name := range m.addr {
		m.ready("km-strict", name)
		eventually(t, "the annotation of "+name, m.redirection("km-strict", name, "enabled"))
		m.addr[name] = must(t, "", "-n", "km-strict", "get", "pod", name, "-o", "jsonpath={.status.podIP}")
	}
	return m
}

func TestRootProbesOfTheKubeletReachStrictPods(t *testing.T) {
	requireCluster(t)
	requireOurCluster(t)
	m := newStrictWorld(t)
	t.Run("each node knows its kubelet", func(t *testing.T) {
		for node, how := range map[string]string{"node1": "by=process", "node2": "by=cgroup"} {
			pod := must(t, "", "-n", m.system, "get", "pods", "-l", "app=ztunnel", "--field-selector=spec.nodeName="+node, "-o", "name")
			if out := must(t, "", "-n", m.system, "logs", pod, "-c", "capture", "--tail=-1"); !strings.Contains(out, "kubelet is recognised") || !strings.Contains(out, how) {
				t.Errorf("%s: the log has no kubelet %s", node, how)
			}
		}
	})
	t.Run("the node's other processes are refused", func(t *testing.T) {
		ambit := program(t, "ambit")
		eventually(t, "the policy to be known to the node's proxy", func() error {
			for name, ip := range m.addr {
				node := "node1"
				if strings.HasPrefix(name, "far-") {
					node = "node2"
				}
				if out, err := onNode(t, node, ambit, "echo", "client", "--timeout=5s", "http://"+ip+":8080/plain"); err == nil {
					return fmt.Errorf("%s answered: %s", name, out)
				}
			}
			return nil
		})
	})
	t.Run("so is who comes from the node's address by a node port", func(t *testing.T) {
		port := must(t, "", "-n", "km-strict", "get", "service", "strict", "-o", "jsonpath={.spec.ports[0].nodePort}")
		node := must(t, "", "get", "node", "node1", "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
		if out, err := kubectl(t.Context(), "", "-n", "km-outside", "exec", "outsider", "--", "/ambit", "echo", "client", "--fresh", "--timeout=5s", "http://"+node+":"+port+"/plain"); err == nil {
			t.Errorf("answered: %s", out)
		}
	})
	t.Run("the pods stay ready, and the proxy carries no probe", func(t *testing.T) {
		before, carried := map[string]int{}, m.carried(t)
		for _, name := range []string{"http", "named", "live", "far-http"} {
			before[name] = m.probed(t, name)
		}
		eventually(t, "more probes than would make a pod fail", func() error {
			for name, n := range before {
				if now := m.probed(t, name); now < n+5 {
					return fmt.Errorf("%s: %d probes", name, now-n)
				}
			}
			return nil
		})
		m.wantWell(t)
		if now := m.carried(t); now != carried {
			t.Errorf("the proxy carried or refused %d connections to the pods meanwhile", now-carried)
		}
	})
}

// carried is how many lines of the proxies' logs are about connections to the pods.
func (m *strictWorld) carried(t *testing.T) (n int) {
	t.Helper()
	out := must(t, "", "-n", m.system, "logs", "-l", "app=ztunnel", "-c", "proxy", "--tail=-1")
	for _, ip := range m.addr {
		n += strings.Count(out, "dst.addr="+ip+":")
	}
	return n
}

// probed is how many requests of probes the application of a pod has answered.
func (m *strictWorld) probed(t *testing.T, pod string) int {
	t.Helper()
	return strings.Count(must(t, "", "-n", "km-strict", "logs", pod, "--tail=-1"), "path=/healthz")
}

// wantWell checks that all pods are ready and none was restarted.
func (m *strictWorld) wantWell(t *testing.T) {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				ContainerStatuses []struct {
					Ready        bool
					RestartCount int
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(must(t, "", "-n", "km-strict", "get", "pods", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != len(m.addr) {
		t.Errorf("%d pods, want %d", len(list.Items), len(m.addr))
	}
	for _, p := range list.Items {
		for _, c := range p.Status.ContainerStatuses {
			if !c.Ready || c.RestartCount != 0 {
				t.Errorf("%s: ready %v, %d restarts", p.Metadata.Name, c.Ready, c.RestartCount)
			}
		}
	}
}
