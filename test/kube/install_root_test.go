package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRootFromInstallToUninstall goes once through the life of a mesh: make e2e-short.
func TestRootFromInstallToUninstall(t *testing.T) {
	requireCluster(t)
	if out, status := ambit(t, "uninstall", "-y"); status == 0 { // of a run that was cut off
		t.Log(out)
	}
	objects, nodes := clusterObjects(t), nodeTraces(t)
	began := time.Now()
	step := func(name string, f func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, f) {
			t.FailNow()
		}
		t.Logf("%6.1f s: %s", time.Since(began).Seconds(), name)
	}
	step("what is wrong is refused before anything is done", refusedInstalls)
	m := newMeshWorld(t) // installs it, and everything works from then on
	t.Logf("%6.1f s: installed, and an application started", time.Since(began).Seconds())
	step("a second install changes nothing", func(t *testing.T) {
		if out, status := ambit(t, "install"); status != 0 || !strings.Contains(out, " 0 created, 0 changed") {
			t.Errorf("status %d\n%s", status, out)
		}
		if out, status := ambit(t, "install", "-n", "km-other"); status != 1 || !strings.Contains(out, "Ambit is installed in namespace istio-system already") {
			t.Errorf("beside itself: status %d\n%s", status, out)
		}
	})
	step("an upgrade keeps values, and removes what it no longer has", upgrades)
	step("requests cross the nodes in HBONE", func(t *testing.T) {
		m.t = t
		eventually(t, "the client's annotation", m.redirection("km-shop", "client", "enabled"))
		if n := m.ask("km-shop", "client", 20); n != 20 {
			t.Errorf("%d of 20 answered", n)
		}
		eventually(t, "the line at the server's node", m.logged(`src.identity="spiffe://cluster.local/ns/km-shop/sa/default"`, "dst.hbone_addr=", `direction="inbound"`))
	})
	step("a Gateway becomes a waypoint", func(t *testing.T) { m.t = t; m.gateway(t) })
	step("pods are captured before their first packet", func(t *testing.T) { m.t = t; m.churn(t, 30) })
	step("the node proxies are replaced", func(t *testing.T) {
		m.t = t
		must(t, "", "-n", m.system, "rollout", "restart", "daemonset/ztunnel")
		must(t, "", "-n", m.system, "rollout", "status", "daemonset/ztunnel", "--timeout=180s")
		eventually(t, "requests to be answered", func() error {
			if n := m.ask("km-shop", "client", 20); n != 20 {
				return fmt.Errorf("%d of 20", n)
			}
			return nil
		})
		eventually(t, "the client's annotation", m.redirection("km-shop", "client", "enabled"))
	})
	step("uninstall loses no request, and leaves nothing", func(t *testing.T) { m.t = t; m.uninstall(t, objects, nodes) })
}

func refusedInstalls(t *testing.T) {
	for args, want := range map[string]string{
		"--set=image.regsitry=x":        "regsitry",
		"--set=controlPlane.replicas=0": "/controlPlane/replicas",
		"--dry-run=perhaps":             "accepted: none, client, server",
	} {
		if out, status := ambit(t, "install", args); status == 0 || !strings.Contains(out, want) {
			t.Errorf("install %s: status %d, %q is not in\n%s", args, status, want, out)
		}
	}
	if out, status := ambit(t, "upgrade"); status != 1 || !strings.Contains(out, "no mesh was installed here") {
		t.Errorf("upgrade of nothing: status %d\n%s", status, out)
	}
	apply(t, `
{apiVersion: v1, kind: Namespace, metadata: {name: km-istio}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: istiod, namespace: km-istio, labels: {app: istiod}}, spec: {replicas: 0, selector: {matchLabels: {app: istiod}},
 template: {metadata: {labels: {app: istiod}}, spec: {containers: [{name: x, image: x}]}}}}`)
	defer must(t, "", "delete", "namespace", "km-istio")
	out, status := ambit(t, "install")
	if status != 1 || !strings.Contains(out, "deployment/istiod in namespace km-istio: Istio's control plane is installed") || !strings.Contains(out, "istioctl uninstall") {
		t.Errorf("beside Istio: status %d\n%s", status, out)
	}
	if _, err := kubectl(t.Context(), "", "get", "namespace", "istio-system"); err == nil {
		t.Error("a refused install made the namespace")
	}
}

func upgrades(t *testing.T) {
	there := func() bool {
		_, err := kubectl(t.Context(), "", "-n", "istio-system", "get", "poddisruptionbudget", "ambit-controlplane")
		return err == nil
	}
	for _, s := range []struct {
		set  string
		want bool
	}{{"controlPlane.replicas=2", true}, {"mesh.clusterId=Kubernetes", true}, {"controlPlane.replicas=1", false}} {
		if out, status := ambit(t, "upgrade", "--set="+s.set); status != 0 || there() != s.want {
			t.Errorf("upgrade --set=%s: status %d, a PodDisruptionBudget is there: %v\n%s", s.set, status, there(), out)
		}
	}
}

func (m *meshWorld) uninstall(t *testing.T, objects, nodes map[string]string) {
	load := exec.CommandContext(t.Context(), "kubectl", "-n", "km-shop", "exec", "client", "--", "/ambit", "echo", "client", "--json", "--fresh",
		"--timeout=10s", "--rate=50", "--parallel=32", "--duration=25s", "http://server.km-shop/")
	var out, errs bytes.Buffer
	load.Stdout, load.Stderr = &out, &errs
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	text, status := ambit(t, "uninstall", "-y", "--drain-timeout=10s")
	t.Log(text)
	if status != 0 {
		t.Fatalf("status %d", status)
	}
	installedHere = false
	if err := load.Wait(); err != nil {
		t.Fatalf("load: %v: %s", err, &errs)
	}
	var sum struct {
		OK, Failed int
		Errors     map[string]int
	}
	if err := json.Unmarshal(out.Bytes(), &sum); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	t.Logf("%d requests answered during it, %d failed %v", sum.OK, sum.Failed, sum.Errors)
	if sum.Failed > 0 || sum.OK < 500 {
		t.Errorf("%d requests failed, %d were answered", sum.Failed, sum.OK)
	}
	// The namespaces are labelled still, and nobody waits for a mesh.
	m.apply(strings.ReplaceAll(late, "NAMESPACE", "km-shop"))
	m.ready("km-shop", "late")
	if err := m.redirection("km-shop", "client", "")(); err != nil {
		t.Error(err)
	}
	must(t, "", "delete", "namespace", "km-shop", "km-outside")
	if d := cmp.Diff(nodes, nodeTraces(t)); d != "" {
		t.Errorf("left on nodes (-before +after):\n%s", d)
	}
	if d := cmp.Diff(objects, clusterObjects(t)); d != "" {
		t.Errorf("left in the cluster (-before +after):\n%s", d)
	}
}

// clusterObjects are the objects of the cluster by kind, but for what others make and end with time.
func clusterObjects(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	kinds := must(t, "", "api-resources", "--verbs=list", "-o", "name")
	for kind := range strings.FieldsSeq(kinds) {
		if k, _, _ := strings.Cut(kind, "."); slices.Contains([]string{"events", "pods", "replicasets", "endpoints", "endpointslices", "controllerrevisions", "componentstatuses"}, k) {
			continue
		}
		list := must(t, "", "get", kind, "-A", "--ignore-not-found", "-o", "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {end}")
		if list != "" {
			out[kind] = list
		}
	}
	return out
}

// nodeTraces is what a mesh could leave on the nodes, if they are on this machine: its files, BPF objects, rules and routes.
func nodeTraces(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	if _, err := os.Stat("/run/netns/node1"); err != nil {
		t.Log("the nodes are not on this machine: what is left on them is not looked at")
		return out
	}
	for _, node := range []string{"node1", "node2"} {
		for what, command := range map[string]string{
			"files": "find /etc/cni/net.d /opt/cni/bin /run/ambit /run/netns -not -name 'cni-*' | sort",
			"bpf":   "find /sys/fs/bpf/ambit/" + node + " 2>/dev/null | sort",
			"rules": "ip rule; ip -6 rule; ip route show table all | grep -v 'cni0\\|veth' | sort", // the bridge comes with the first pod
			"CNI":   "cat /etc/cni/net.d/*",
		} {
			text, err := exec.CommandContext(t.Context(), "./cluster", "exec", node, "sh", "-c", command).CombinedOutput()
			if err != nil {
				t.Fatalf("%s on %s: %v: %s", command, node, err, text)
			}
			var value any
			if json.Unmarshal(text, &value) == nil { // a configuration may be written another way
				text, _ = json.Marshal(value)
			}
			out[node+" "+what] = string(text)
		}
	}
	return out
}
