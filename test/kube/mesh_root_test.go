package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// shop is an application on both nodes: two servers, a client, and an outsider in a namespace of its own.
const shop = `
{apiVersion: v1, kind: Namespace, metadata: {name: km-shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: km-outside}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: km-shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: server}}}]
      containers: [{name: echo, image: IMAGE, args: [echo], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}]
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: km-shop}, spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: km-shop}, spec: {nodeName: node1, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: outsider, namespace: km-outside}, spec: {nodeName: node2, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
`

// late is a pod that is created while a node's capture is away.
const late = `{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: NAMESPACE}, spec: {nodeName: node1, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}`

// waypoint is a waypoint for the servers, and a policy that only it can enforce.
const waypoint = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: km-shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete, namespace: km-shop}
spec: {targetRefs: [{kind: Service, group: "", name: server}], action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}
`

// meshWorld is an application in a cluster with the mesh in it.
type meshWorld struct {
	t      *testing.T
	system string // namespace of the mesh
	image  string
}

func newMeshWorld(t *testing.T) *meshWorld {
	m := newMesh(t, "km-shop", "km-outside")
	m.apply(shop)
	m.ready("km-shop", "client")
	m.ready("km-outside", "outsider")
	must(t, "", "-n", "km-shop", "rollout", "status", "deployment/server", "--timeout=60s")
	return m
}

// newMesh is a cluster with the mesh in it. The namespaces, which a test makes, are deleted at its end.
func newMesh(t *testing.T, namespaces ...string) *meshWorld {
	t.Helper()
	requireCluster(t)
	m := &meshWorld{t: t, system: "istio-system", image: image()}
	m.install()
	t.Cleanup(func() {
		if _, err := kubectl(context.WithoutCancel(t.Context()), "", append([]string{"delete", "--ignore-not-found", "--wait=true", "namespace"}, namespaces...)...); err != nil {
			t.Log(err)
		}
	})
	return m
}

// image is the one of the application.
func image() string { return cmp.Or(os.Getenv("AMBIT_IMAGE"), "localhost/ambit-ambit:dev") }

// installedHere says that a test has installed the mesh, so that the last one takes it out again.
var installedHere bool

func TestMain(m *testing.M) {
	scanIfAsked()
	status := m.Run()
	if installedHere {
		if out, err := exec.Command(ambitPath, "uninstall", "-y").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "ambit uninstall: %v\n%s", err, out)
			status = 1
		}
	}
	os.Exit(status)
}

// ambitPath is the command line's, once a test has used it.
var ambitPath string

func ambitProgram(t *testing.T) string {
	t.Helper()
	if ambitPath == "" {
		ambitPath = program(t, "ambit")
	}
	return ambitPath
}

// ambit runs the command line and returns what it wrote, and its exit status.
func ambit(t *testing.T, args ...string) (string, int) {
	t.Helper()
	c := exec.CommandContext(t.Context(), ambitProgram(t), args...)
	out, err := c.CombinedOutput()
	if c.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), c.ProcessState.ExitCode()
}

// install installs the mesh, unless it is there.
func (m *meshWorld) install() {
	m.t.Helper()
	if _, err := kubectl(m.t.Context(), "", "-n", m.system, "get", "daemonset", "ztunnel"); err == nil {
		return
	}
	installedHere = true
	if out, status := ambit(m.t, "install", "--timeout=3m"); status != 0 {
		m.t.Fatalf("ambit install: status %d\n%s", status, out)
	}
}

func (m *meshWorld) apply(manifest string) {
	m.t.Helper()
	apply(m.t, strings.ReplaceAll(manifest, "IMAGE", m.image))
}

func (m *meshWorld) ready(namespace, pod string) {
	m.t.Helper()
	must(m.t, "", "-n", namespace, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=60s")
}

// ask makes n connections from a pod to the servers and returns how many were answered.
func (m *meshWorld) ask(namespace, pod string, n int) int {
	m.t.Helper()
	out := must(m.t, "", "-n", namespace, "exec", pod, "--", "/ambit", "echo", "client", "--json", "--fresh", "--timeout=5s", fmt.Sprintf("--count=%d", n), "http://server.km-shop/")
	var sum struct{ OK int }
	if err := json.Unmarshal([]byte(out), &sum); err != nil {
		m.t.Fatalf("%v: %s", err, out)
	}
	return sum.OK
}

// redirection is the annotation by which capture says what it did.
func (m *meshWorld) redirection(namespace, pod, want string) func() error {
	return func() error {
		got, err := kubectl(m.t.Context(), "", "-n", namespace, "get", "pod", pod, "-o", `jsonpath={.metadata.annotations.ambient\.istio\.io/redirection}`)
		if err != nil || got != want {
			return fmt.Errorf("redirection of %s/%s is %q, want %q (err=%v)", namespace, pod, got, want, err)
		}
		return nil
	}
}

// logged waits for a connection's line that has all the words, in the log of any node's proxy.
func (m *meshWorld) logged(words ...string) func() error {
	return func() error {
		out, err := kubectl(m.t.Context(), "", "-n", m.system, "logs", "-l", "app=ztunnel", "-c", "proxy", "--tail=200")
		if err != nil {
			return err
		}
	next:
		for line := range strings.Lines(out) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue next
				}
			}
			return nil
		}
		return fmt.Errorf("no line with %q", words)
	}
}

func TestRootAMeshInKubernetes(t *testing.T) {
	m := newMeshWorld(t)
	t.Run("pods of an enrolled namespace are captured when they start", func(t *testing.T) {
		eventually(t, "the client's annotation", m.redirection("km-shop", "client", "enabled"))
	})
	t.Run("requests cross the nodes in HBONE under the pods' identities", func(t *testing.T) {
		if n := m.ask("km-shop", "client", 20); n != 20 {
			t.Errorf("%d of 20 answered", n)
		}
		eventually(t, "the line at the server's node", m.logged(`src.identity="spiffe://cluster.local/ns/km-shop/sa/default"`, "dst.hbone_addr=", `src.workload="client"`, `direction="inbound"`))
	})
	t.Run("a Gateway becomes a waypoint that enforces policy on requests", m.gateway)
	t.Run("a running pod is captured when its namespace is labelled, and let go again", func(t *testing.T) {
		must(t, "", "label", "namespace", "km-outside", "istio.io/dataplane-mode=ambient")
		eventually(t, "the outsider's annotation", m.redirection("km-outside", "outsider", "enabled"))
		if n := m.ask("km-outside", "outsider", 5); n != 5 {
			t.Errorf("%d of 5 answered", n)
		}
		eventually(t, "the outsider's identity", m.logged(`src.identity="spiffe://cluster.local/ns/km-outside/sa/default"`))
		must(t, "", "label", "namespace", "km-outside", "istio.io/dataplane-mode-")
		eventually(t, "no annotation", m.redirection("km-outside", "outsider", ""))
		if n := m.ask("km-outside", "outsider", 5); n != 5 {
			t.Errorf("outside again %d of 5 answered", n)
		}
	})
	t.Run("open connections go on when both their pods leave the mesh and come back", m.leaveAndReturn)
	t.Run("while a node has no capture pods of the mesh wait and say why, others start", m.captureAway)
}

func (m *meshWorld) gateway(t *testing.T) {
	m.apply(waypoint)
	must(t, "", "-n", "km-shop", "wait", "--for=condition=Programmed", "gateway/waypoint", "--timeout=90s")
	must(t, "", "-n", "km-shop", "label", "service", "server", "istio.io/use-waypoint=waypoint")
	eventually(t, "DELETE to be refused by the waypoint", func() error {
		out, err := kubectl(t.Context(), "", "-n", "km-shop", "exec", "client", "--", "/ambit", "echo", "client", "--json", "--fresh", "--method=DELETE", "--timeout=5s", "http://server.km-shop/")
		if !strings.Contains(out, "status 403") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if n := m.ask("km-shop", "client", 20); n != 20 {
		t.Errorf("%d of 20 GETs answered", n)
	}
	must(t, "", "-n", "km-shop", "label", "service", "server", "istio.io/use-waypoint-")
}

// leaveAndReturn holds one TCP connection across the nodes meanwhile; a second one would be a failure of the first.
func (m *meshWorld) leaveAndReturn(t *testing.T) {
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := kubectl(t.Context(), "", "-n", "km-shop", "exec", "client", "--", "/ambit", "echo", "client", "--json",
			"--duration=15s", "--rate=20", "--timeout=5s", "--data=still here", "tcp://server.km-shop:80")
		done <- result{out, err}
	}()
	eventually(t, "the connection", func() error {
		out := must(t, "", "-n", "km-shop", "logs", "-l", "app=server", "--tail=-1")
		if !strings.Contains(out, "msg=tcp") {
			return errors.New("no server has it in its log")
		}
		return nil
	})
	pods := append([]string{"client"}, strings.Fields(must(t, "", "-n", "km-shop", "get", "pods", "-l", "app=server", "-o", "jsonpath={.items[*].metadata.name}"))...)
	for _, x := range []struct{ label, annotation string }{{"istio.io/dataplane-mode=none", ""}, {"istio.io/dataplane-mode-", "enabled"}} {
		must(t, "", append(append([]string{"-n", "km-shop", "label", "pods"}, pods...), x.label)...)
		for _, pod := range pods {
			eventually(t, pod+" with "+x.label, m.redirection("km-shop", pod, x.annotation))
		}
	}
	r := <-done
	var sum struct {
		OK, Failed int
		Errors     map[string]int
	}
	if err := json.Unmarshal([]byte(r.out), &sum); err != nil || r.err != nil || sum.Failed != 0 || sum.OK == 0 {
		t.Errorf("got %+v, %v, %v, want no failure", sum, err, r.err)
	}
	if n := m.ask("km-shop", "client", 5); n != 5 {
		t.Errorf("%d of 5 answered afterwards", n)
	}
}

func (m *meshWorld) captureAway(t *testing.T) {
	pods := must(t, "", "-n", m.system, "get", "pods", "-l", "app=ztunnel", "--field-selector=spec.nodeName=node1", "-o", "name")
	patch := func(text string) error {
		_, err := kubectl(context.WithoutCancel(t.Context()), "", "-n", m.system, "patch", "daemonset", "ztunnel", "-p", text)
		return err
	}
	// The DaemonSet leaves the node, and nothing changes on others. (Kubernetes sets labels such as kubernetes.io/os back.)
	if err := patch(`{"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}, "template": {"spec": {"affinity": {"nodeAffinity":
		{"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["node1"]}]}]}}}}}}}`); err != nil {
		t.Fatal(err)
	}
	back := func() {
		if err := patch(`{"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}, "template": {"spec": {"affinity": null}}}}`); err != nil {
			t.Error(err)
		}
	}
	defer back()
	must(t, "", "-n", m.system, "wait", "--for=delete", pods, "--timeout=90s")
	for _, ns := range []string{"km-shop", "km-outside"} {
		m.apply(strings.ReplaceAll(late, "NAMESPACE", ns))
	}
	m.ready("km-outside", "late")
	eventually(t, "an event", func() error {
		out, err := kubectl(t.Context(), "", "-n", "km-shop", "get", "events", "--field-selector=involvedObject.name=late", "-o", "jsonpath={.items[*].message}")
		if err != nil || !strings.Contains(out, "pod km-shop/late waits for ambit's capture on this node") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if phase := must(t, "", "-n", "km-shop", "get", "pod", "late", "-o", "jsonpath={.status.phase}"); phase != "Pending" {
		t.Errorf("the pod of the mesh is %s without capture", phase)
	}
	// One that runs is labelled meanwhile: it is found, and said to have run before.
	must(t, "", "-n", "km-outside", "label", "pod", "late", "istio.io/dataplane-mode=ambient")
	back()
	must(t, "", "-n", "km-shop", "wait", "--for=condition=Ready", "pod/late", "--timeout=120s")
	eventually(t, "the pod's annotation", m.redirection("km-shop", "late", "enabled"))
	eventually(t, "the other's annotation", m.redirection("km-outside", "late", "enabled"))
	eventually(t, "its event", func() error {
		out, err := kubectl(t.Context(), "", "-n", "km-outside", "get", "events", "--field-selector=involvedObject.name=late", "-o", "jsonpath={.items[*].reason}")
		if err != nil || !strings.Contains(out, "StartedBeforeCapture") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
