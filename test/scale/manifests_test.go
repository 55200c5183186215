package scale

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// manifests is a directory of manifests as the lab writes it: a file per object.
type manifests struct {
	t              testing.TB
	dir            string
	pods, services int
}

// nodes is the number of nodes that pods are spread over.
const nodes = 100

// writeManifests writes pods that are Ready and services that each select pods/services of them.
func writeManifests(t testing.TB, pods, services int) *manifests {
	t.Helper()
	m := &manifests{t: t, dir: t.TempDir(), pods: pods, services: services}
	for ns := range 10 {
		m.write(fmt.Sprintf("namespace_ns-%d", ns), fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: ns-%d\n  labels: {istio.io/dataplane-mode: ambient}\n", ns))
	}
	for n := range nodes {
		m.write(fmt.Sprintf("node_node-%d", n), fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata:\n  name: node-%d\n  labels: {topology.kubernetes.io/region: eu-west, topology.kubernetes.io/zone: eu-west-%d}\n", n, n%3))
	}
	for s := range services {
		m.write(fmt.Sprintf("service_ns-%d_svc-%d", s%10, s), fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: svc-%d\n  namespace: ns-%d\nspec:\n  clusterIP: 10.200.%d.%d\n  selector: {app: app-%d}\n  ports: [{name: http, port: 80, targetPort: 8080}]\n",
			s, s%10, s/250, s%250+1, s))
	}
	for i := range pods {
		m.setReady(i, true)
	}
	return m
}

func (m *manifests) write(name, text string) {
	path := filepath.Join(m.dir, name+".yaml")
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		m.t.Fatal(err)
	}
}

func (m *manifests) namespace(pod int) string { return fmt.Sprintf("ns-%d", pod%m.services%10) }

func (m *manifests) file(pod int) string {
	return fmt.Sprintf("pod_%s_%s", m.namespace(pod), podName(pod))
}

func podName(pod int) string { return fmt.Sprintf("app-6d4cf56db6-%05d", pod) }

// uid is the name of the pod's workload.
func (m *manifests) uid(pod int) string {
	return "Kubernetes//Pod/" + m.namespace(pod) + "/" + podName(pod)
}

// setReady writes a pod with the condition Ready or without.
func (m *manifests) setReady(pod int, ready bool) {
	app, status := fmt.Sprintf("app-%d", pod%m.services), "False"
	if ready {
		status = "True"
	}
	m.write(m.file(pod), fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: %s
  uid: 00000000-0000-4000-8000-%012d
  labels: {app: %s, version: v1, pod-template-hash: 6d4cf56db6}
  annotations: {ambient.istio.io/redirection: enabled}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: %s-6d4cf56db6, uid: 00000000-0000-4000-8001-%012d, controller: true}]
spec:
  serviceAccountName: %s
  nodeName: node-%d
  containers:
  - name: main
    image: example/app:1
    ports: [{name: http, containerPort: 8080}]
status:
  phase: Running
  podIP: 10.%d.%d.%d
  podIPs: [{ip: 10.%d.%d.%d}]
  conditions: [{type: Ready, status: "%s"}]
`, podName(pod), m.namespace(pod), pod, app, app, pod, app, pod%nodes,
		pod/62500, pod/250%250, pod%250+1, pod/62500, pod/250%250, pod%250+1, status))
}

// remove takes a pod away.
func (m *manifests) remove(pod int) {
	if err := os.Remove(filepath.Join(m.dir, m.file(pod)+".yaml")); err != nil {
		m.t.Fatal(err)
	}
}
