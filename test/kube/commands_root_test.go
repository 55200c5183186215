package kube

import (
	"archive/tar"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// command is a command of ambit, its exit status, and a part of what it writes.
type command struct {
	args   string
	status int
	want   string
}

// asked are the commands that change nothing, and those that put back what they change, in a mesh in which all is well: an
// application in km-shop with a waypoint.
var asked = []command{
	{"check", 0, "AMB0512"}, // all clients may not be in the mesh yet: it is said, and no error
	{"check --pre", 0, ""},
	{"check -o json", 0, `"kind": "FindingList"`},
	{"status", 0, "km-shop/waypoint: 1 of 1 instances ready"},
	{"status -o yaml", 0, "kind: Status"},
	{"proxies", 0, "SYNCED"},
	{"proxies -n km-shop deploy/server", 0, "waypoint-"},
	{"proxies controlplane", 0, "ambit-controlplane-"},
	{"proxies -n km-shop svc/none", 1, `no service "none" in namespace "km-shop"`},
	{"version", 0, "controlplane ambit-controlplane-"},
	{"version --client", 0, "ambit"},
	{"config workloads -n km-shop svc/server", 0, "server-"},
	{"config services -n km-shop svc/server", 0, "server.km-shop.svc.cluster.local"},
	{"config policies", 0, ""},
	{"config certs -n km-shop client", 0, "spiffe://cluster.local/ns/km-shop/sa/default"},
	{"config connections ztunnel/node1", 0, ""},
	{"config listeners -n km-shop waypoint/waypoint", 0, "main_internal"},
	{"config routes -n km-shop svc/server", 0, "server.km-shop.svc.cluster.local"},
	{"config clusters -n km-shop waypoint/waypoint", 0, "|server.km-shop.svc.cluster.local"},
	{"config endpoints -n km-shop waypoint/waypoint -o json", 0, `"kind": "ConfigList"`},
	{"config bootstrap ztunnel/node1", 0, "mtu"},
	{"config routes ztunnel/node1", 1, "only that has routes"},
	{"config certs -n km-shop pods/client/x", 1, ""},
	{"logs controlplane --tail 3", 0, "msg="},
	{"logs -n km-shop client --tail 2", 0, "client"},
	{"log ztunnel/node1 --level proxy=debug", 0, "debug"},
	{"log ztunnel/node1 --reset", 0, "info"},
	{"cert list -n km-shop client", 0, "Available"},
	{"waypoint list -n km-shop", 0, "waypoint"},
	{"waypoint status -n km-shop", 0, "waypoint"},
	{"waypoint generate -n km-shop", 0, "gatewayClassName: istio-waypoint"},
	{"analyze -n km-shop", 0, ""},
	{"explain -n km-shop client svc/server:80", 0, "km-shop"},
	{"explain AMB0306", 0, "NetworkPolicy"},
	{"explain AMB9999", 2, "is no code"},
	{"enroll km-outside --check", 0, ""},
	{"enroll km-outside", 0, ""},
	{"unenroll km-outside --check", 0, ""},
	{"unenroll km-outside", 0, ""},
	{"completion bash", 0, "ambit"},
	{"statsu", 2, "unknown command"},
	{"status -o wide", 0, "CONNECTIONS"},
	{"status -o name", 0, "waypoint/waypoint"},
	{"proxies -o wide", 0, "CERTS"},
	{"proxies -o jsonpath={.items[*].role}", 0, "ztunnel"},
	{"proxies -n km-shop -l app=server", 0, "ztunnel-"},
	{"config workloads -n km-shop -l app=server -o name", 0, "pod/server-"},
	{"config connections -o name", 2, "accepted: table, wide, json"},
	{"logs -n km-shop -l app=server --tail 1", 0, ""},
	{"cert list -n km-shop -l app=server -o wide", 0, "WHOLE-SERIAL"},
	{"proxies -l a=b=c", 2, "--selector"},
	{"waypoint apply -n km-outside --dry-run=server", 0, "applied (server dry run)"},
	{"waypoint delete -n km-shop --all --dry-run=server", 0, "deleted (server dry run)"},
	{"enroll km-outside --dry-run=server", 0, "(server dry run)"},
	{"status -o table2", 2, "accepted: "},
	{"status --kubeconfig=/nowhere", 3, "the cluster cannot be reached"},
	{"status --as=nobody", 1, "forbidden"},
}

func TestRootCommandsOfEveryDay(t *testing.T) {
	m := newMeshWorld(t)
	run := func(t *testing.T, c command) string {
		t.Helper()
		out, status := ambit(t, strings.Fields(c.args)...)
		if status != c.status || !strings.Contains(out, c.want) {
			t.Errorf("ambit %s: status %d, want %d and %q in\n%s", c.args, status, c.status, c.want, out)
		}
		return out
	}
	eventually(t, "the client's annotation", m.redirection("km-shop", "client", "enabled"))
	run(t, command{"waypoint apply -n km-shop --enroll-namespace", 0, "waypoint"})
	defer run(t, command{"waypoint delete -n km-shop waypoint", 0, "waypoint"})
	eventually(t, "a mesh in which all is well", func() error {
		if n := m.ask("km-shop", "client", 3); n != 3 {
			return fmt.Errorf("%d of 3 answered", n)
		}
		out, status := ambit(t, "status")
		if status != 0 || strings.Contains(out, "✗") {
			return errors.New(out)
		}
		return nil
	})
	for _, c := range asked {
		t.Run(strings.ReplaceAll(c.args, "/", " "), func(t *testing.T) { run(t, c) })
	}
	t.Run("bug-report", func(t *testing.T) { reportWithoutSecrets(t, m) })
	t.Run("what is broken is found by its code", func(t *testing.T) { findBroken(t, m) })
}

// secretPod has secrets where people put them.
const secretPod = `{apiVersion: v1, kind: Pod, metadata: {name: keeper, namespace: km-shop, annotations: {api-token: hunter2-annotation}}, spec: {terminationGracePeriodSeconds: 1,
 containers: [{name: echo, image: IMAGE, args: [echo, "--fail-file=hunter2-argument"], env: [{name: DB_PASSWORD, value: hunter2-variable}]}]}}
---
{apiVersion: v1, kind: Secret, metadata: {name: keeper, namespace: km-shop}, stringData: {key: hunter2-secret}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: keeper, namespace: km-shop}, data: {key: hunter2-configmap}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: keeper, namespace: km-shop}
spec: {hosts: [server], http: [{headers: {request: {set: {authorization: Bearer hunter2-header}}}, route: [{destination: {host: server}}]}]}
`

// reportWithoutSecrets reads every byte of a report: none of the secrets that this test put into the cluster, and neither
// keys nor tokens of the mesh, are in it.
func reportWithoutSecrets(t *testing.T, m *meshWorld) {
	m.apply(secretPod)
	defer must(t, "", "-n", "km-shop", "delete", "virtualservice/keeper", "pod/keeper", "secret/keeper", "configmap/keeper")
	m.ready("km-shop", "keeper")
	secrets := []string{"hunter2", "PRIVATE KEY", "eyJhbGciOi"}
	key := must(t, "", "-n", m.system, "get", "secret", "istio-ca-secret", "-o", `jsonpath={.data.ca-key\.pem}`)
	text, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(text) < 100 {
		t.Fatalf("the authority's key: %v, %d bytes", err, len(text))
	}
	secrets = append(secrets, key[40:80], strings.Split(string(text), "\n")[1][:40])
	path := filepath.Join(t.TempDir(), "report.tar.gz")
	if out, status := ambit(t, "bug-report", "-f", path); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		for _, s := range secrets {
			if i := strings.Index(string(body), s); i >= 0 {
				t.Errorf("%s: %q is in ...%s", h.Name, s, body[max(0, i-100):min(len(body), i+30)])
			}
		}
	}
	for _, want := range []string{"status.txt", "objects.txt", "analysis.json", "config_dump.json", "proxy.log", "capture.log", "syncz.json"} {
		if !slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, want) }) {
			t.Errorf("%s is not in %q", want, names)
		}
	}
}

// broken are objects, and what ambit finds wrong with them.
const broken = `
{apiVersion: v1, kind: Namespace, metadata: {name: km-broken, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: label, namespace: km-broken, labels: {istio.io/dataplane-mode: ambiant}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: sidecar, namespace: km-broken}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: istio-proxy, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: km-broken, labels: {istio.io/dataplane-mode: ambient}}, spec: {terminationGracePeriodSeconds: 1, hostNetwork: true, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: port, namespace: km-broken, labels: {app: port}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo], ports: [{containerPort: 15008}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: unready, namespace: km-broken, labels: {app: unready}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo], readinessProbe: {httpGet: {path: /healthz, port: 9}}}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: in, namespace: km-broken}, spec: {podSelector: {matchLabels: {app: port}}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: out, namespace: km-broken}, spec: {podSelector: {matchLabels: {app: port}}, policyTypes: [Egress], egress: [{ports: [{port: 8080}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: km-broken}, spec: {selector: {app: nobody}, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: unready, namespace: km-broken}, spec: {selector: {app: unready}, ports: [{name: http, port: 80, targetPort: web}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: asks, namespace: km-broken, labels: {istio.io/use-waypoint: none-such}}, spec: {selector: {app: port}, ports: [{name: http, port: 80}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: unused, namespace: km-broken}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nothing, namespace: km-broken}, spec: {selector: {matchLabels: {app: typo}}, rules: [{}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nowhere, namespace: km-broken}, spec: {targetRefs: [{kind: Service, group: "", name: none}], rules: [{}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: l7, namespace: km-broken}, spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: unknown, namespace: km-broken}, spec: {hosts: [none], http: [{route: [{destination: {host: none}}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: a, namespace: km-broken}, spec: {hosts: [a.example.com], addresses: [240.0.9.9], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: b, namespace: km-broken}, spec: {hosts: [b.example.com], addresses: [240.0.9.9], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.2}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: orphan, namespace: km-broken}, spec: {parentRefs: [{kind: Service, group: "", name: none, port: 80}], rules: [{backendRefs: [{name: asks, port: 80}]}]}}
`

// foundBroken are the code and the object of each.
var foundBroken = []string{
	"AMB0301 Pod km-broken/label", "AMB0302 Pod km-broken/sidecar", "AMB0304 Pod km-broken/host", "AMB0307 Pod km-broken/port",
	"AMB0306 NetworkPolicy km-broken/in", "AMB0308 NetworkPolicy km-broken/out", "AMB0401 Service km-broken/asks", "AMB0408 Gateway km-broken/unused",
	"AMB0501 AuthorizationPolicy km-broken/nothing", "AMB0503 AuthorizationPolicy km-broken/nowhere", "AMB0502 AuthorizationPolicy km-broken/l7",
	"AMB0601 Service km-broken/nobody", "AMB0602 Service km-broken/unready", "AMB0610 Service km-broken/unready",
	"AMB0605 VirtualService km-broken/unknown", "AMB0606 HTTPRoute km-broken/orphan", "AMB0612 ServiceEntry km-broken/b",
}

// findings runs a command that finds something and returns "CODE OBJECT" of each, and its exit status.
func findings(t *testing.T, args ...string) ([]string, int) {
	t.Helper()
	out, status := ambit(t, append(args, "-o", "json")...)
	var list struct {
		Items []struct{ Code, Object, Fix string }
	}
	if i := strings.Index(out, "{"); i < 0 || json.NewDecoder(strings.NewReader(out[i:])).Decode(&list) != nil {
		t.Fatalf("ambit %q: status %d\n%s", args, status, out)
	}
	var found []string
	for _, x := range list.Items {
		if x.Fix == "" {
			t.Errorf("%s %s has no fix", x.Code, x.Object)
		}
		found = append(found, x.Code+" "+x.Object)
	}
	return found, status
}

func findBroken(t *testing.T, m *meshWorld) {
	m.apply(broken)
	defer must(t, "", "delete", "namespace", "km-broken")
	eventually(t, "all that is broken", func() error {
		found, status := findings(t, "analyze", "-n", "km-broken")
		if status != 1 {
			return fmt.Errorf("status %d", status)
		}
		for _, want := range foundBroken {
			if !slices.Contains(found, want) {
				return fmt.Errorf("%s is not in %q", want, found)
			}
		}
		return nil
	})
	// What concerns the mesh itself: a second one, and a program that does not run.
	apply(t, `{apiVersion: v1, kind: Namespace, metadata: {name: km-second}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: ambit-controlplane, namespace: km-second}, spec: {replicas: 0, selector: {matchLabels: {app: x}}, template: {metadata: {labels: {app: x}}, spec: {containers: [{name: x, image: x}]}}}}`)
	defer must(t, "", "delete", "namespace", "km-second")
	must(t, "", "-n", m.system, "scale", "deployment/ambit-controlplane", "--replicas=0")
	defer func() {
		must(t, "", "-n", m.system, "scale", "deployment/ambit-controlplane", "--replicas=1")
		must(t, "", "-n", m.system, "rollout", "status", "deployment/ambit-controlplane", "--timeout=90s")
	}()
	eventually(t, "two meshes, and no control plane", func() error {
		found, status := findings(t, "check")
		for _, want := range []string{"AMB0115 mesh", "AMB0102 Deployment istio-system/ambit-controlplane"} {
			if status != 1 || !slices.Contains(found, want) {
				return fmt.Errorf("status %d, %s is not in %q", status, want, found)
			}
		}
		return nil
	})
}
