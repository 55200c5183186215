package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// world is what the test makes in the cluster: a system namespace of its own, a ztunnel that is only a pod with the
// right account, and an application on another node. Nothing needs to run but what the API server knows.
const world = `
apiVersion: v1
kind: Namespace
metadata: {name: kt-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: kt-app}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: ztunnel, namespace: kt-system}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: kt-app}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: db, namespace: kt-app}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ztunnel-1, namespace: kt-system}, spec: {serviceAccountName: ztunnel, nodeName: node1, terminationGracePeriodSeconds: 0, containers: [{name: c, image: "localhost/pause:1", imagePullPolicy: Never}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: kt-app, labels: {app: web}}, spec: {serviceAccountName: web, nodeName: node1, terminationGracePeriodSeconds: 0, containers: [{name: c, image: "localhost/pause:1", imagePullPolicy: Never, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: kt-app, labels: {app: db}}, spec: {serviceAccountName: db, nodeName: node2, terminationGracePeriodSeconds: 0, containers: [{name: c, image: "localhost/pause:1", imagePullPolicy: Never}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: kt-app}, spec: {selector: {app: web}, ports: [{name: http, port: 80}]}}
`

// definition is Istio's PeerAuthentication without its schema, for a cluster that has none. The label says that it is
// the test's, which takes away no other.
const definition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: peerauthentications.security.istio.io, labels: {test: ambit-kube}}
spec:
  group: security.istio.io
  scope: Namespaced
  names: {kind: PeerAuthentication, listKind: PeerAuthenticationList, plural: peerauthentications, singular: peerauthentication}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`

// names collects the names of the resources that a proxy has.
type names struct {
	mu   sync.Mutex
	have map[string]bool
}

func (n *names) Apply(up []xds.Resource[struct{}], removed []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range up {
		n.have[r.Name] = true
	}
	for _, name := range removed {
		delete(n.have, name)
	}
	return nil
}

func (n *names) want(name string, there bool) func() error {
	return func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.have[name] != there {
			return fmt.Errorf("%s: got %t, want %t of %v", name, n.have[name], there, maps.Clone(n.have))
		}
		return nil
	}
}

// ztunnel is a node proxy's side of a control plane.
type ztunnel struct {
	addresses, policies *names
	ca                  *svid.GRPCClient
}

// connect subscribes with a token until the test ends.
func connect(t *testing.T, r *replica, rootFile, token string) *ztunnel {
	t.Helper()
	show := func() (string, error) { return token, nil }
	transport, err := xds.NewTransport(xds.TransportConfig{Address: "https://" + r.xds, RootCA: rootFile, Token: show, ClusterID: "Kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	client := xds.NewClient(xds.Config{Transport: transport, Node: xds.Node{
		ID: "ztunnel~10.0.0.1~ztunnel-1.kt-system~kt-system.svc.cluster.local", Metadata: map[string]string{"NAMESPACE": "kt-system", "NODE_NAME": "node1"},
	}})
	z := &ztunnel{addresses: &names{have: map[string]bool{}}, policies: &names{have: map[string]bool{}}}
	decode := func(string, []byte) (struct{}, error) { return struct{}{}, nil }
	xds.Subscribe(client, xds.Type[struct{}]{URL: xds.AddressType, Decode: decode}, z.addresses, xds.Options{})
	xds.Subscribe(client, xds.Type[struct{}]{URL: xds.AuthorizationType, Decode: decode}, z.policies, xds.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	if z.ca, err = svid.NewCAClient(svid.CAClientConfig{Address: "https://" + r.xds, RootCA: rootFile, Token: show, ClusterID: "Kubernetes"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); <-done; _ = z.ca.Close() })
	return z
}

// fetch asks for the certificate of an account of kt-app.
func (z *ztunnel) fetch(t *testing.T, account string) error {
	t.Helper()
	id, err := spiffe.New("cluster.local", "kt-app", account)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	m := svid.NewManager(svid.Config{CA: z.ca})
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- m.Run(running) }()
	defer func() { stop(); <-done }()
	_, err = m.Fetch(ctx, id)
	return err
}

func TestRootControlPlaneOfAnAPIServer(t *testing.T) {
	requireCluster(t)
	if installedHere {
		if out, status := ambit(t, "uninstall", "-y"); status != 0 {
			t.Fatalf("ambit uninstall: status %d\n%s", status, out)
		}
		installedHere = false
	}
	if _, err := kubectl(t.Context(), "", "-n", "istio-system", "get", "deployment", "ambit-controlplane"); err == nil {
		t.Skip("the cluster has a mesh, whose root certificates are in every namespace: this test brings one of its own (run it before make kube-mesh)")
	}
	clean := func() {
		_, _ = kubectl(context.Background(), "", "delete", "namespace", "kt-system", "kt-app", "--ignore-not-found", "--timeout=60s")
		_, _ = kubectl(context.Background(), "", "delete", "crd", "-l", "test=ambit-kube", "--timeout=30s")
	}
	clean()
	const policies = "peerauthentications.security.istio.io"
	_, err := kubectl(t.Context(), "", "get", "crd", policies)
	defined := err == nil
	if defined && onBed() {
		takeAway(t, policies)
		defined = false
	}
	t.Cleanup(clean)
	apply(t, world)
	must(t, "", "-n", "kt-app", "wait", "pods", "--all", "--for=condition=Ready", "--timeout=60s")
	bin := program(t, "controlplane")
	first, second := startReplica(t, bin, "first", "kt-system"), startReplica(t, bin, "second", "kt-system")

	rootFile := filepath.Join(t.TempDir(), "root.pem")
	rootOf := func(namespace string) error {
		out, err := kubectl(t.Context(), "", "-n", namespace, "get", "configmap", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)
		if err == nil && !strings.Contains(out, "BEGIN CERTIFICATE") {
			err = errors.New("no certificate")
		}
		if err == nil {
			err = os.WriteFile(rootFile, []byte(out+"\n"), 0o600)
		}
		return err
	}
	t.Run("replicas share one root, and every namespace has it", func(t *testing.T) {
		eventually(t, "kube-system", func() error { return rootOf("kube-system") })
		eventually(t, "kt-app", func() error { return rootOf("kt-app") })
		one, err1 := first.get("/debug/ca")
		two, err2 := second.get("/debug/ca")
		root, err := os.ReadFile(rootFile)
		if line := strings.Split(string(root), "\n")[1]; err1 != nil || err2 != nil || err != nil || !strings.Contains(one, line) || !strings.Contains(two, line) {
			t.Errorf("%v, %v, %v: %s and %s", err1, err2, err, one, two)
		}
	})

	token := func(audience string) string {
		return must(t, "", "-n", "kt-system", "create", "token", "ztunnel", "--audience="+audience, "--bound-object-kind=Pod", "--bound-object-name=ztunnel-1")
	}
	z := connect(t, second, rootFile, token("istio-ca"))
	t.Run("a ztunnel gets the pods and services of the cluster", func(t *testing.T) {
		for _, name := range []string{"Kubernetes//Pod/kt-app/web", "Kubernetes//Pod/kt-app/db", "kt-app/web.kt-app.svc.cluster.local"} {
			eventually(t, "address", z.addresses.want(name, true))
		}
		must(t, "", "-n", "kt-app", "delete", "service", "web")
		eventually(t, "after its deletion", z.addresses.want("kt-app/web.kt-app.svc.cluster.local", false))
	})
	t.Run("a ztunnel gets the certificates of its node's pods alone", func(t *testing.T) {
		if err := z.fetch(t, "web"); err != nil {
			t.Errorf("a pod on its node: %v", err)
		}
		if err := z.fetch(t, "db"); err == nil || !strings.Contains(err.Error(), "no running pod of kt-app/db on node node1") {
			t.Errorf("a pod on another node: %v", err)
		}
	})
	t.Run("a token for somebody else is refused", func(t *testing.T) {
		if err := connect(t, first, rootFile, token("vault")).fetch(t, "web"); err == nil || !strings.Contains(err.Error(), "authenticated") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("policies work once their definition is installed", func(t *testing.T) {
		if defined {
			t.Skip("the cluster has PeerAuthentications of its own")
		}
		apply(t, definition)
		must(t, "", "wait", "crd/peerauthentications.security.istio.io", "--for=condition=Established", "--timeout=20s")
		apply(t, "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: kt-app}, spec: {mtls: {mode: STRICT}}}")
		eventually(t, "policy", z.policies.want("kt-system/istio_converted_static_strict", true))
	})
	t.Run("a wrong object has an event", func(t *testing.T) {
		if defined {
			t.Skip("the cluster has PeerAuthentications of its own, which it checks")
		}
		apply(t, "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: wrong, namespace: kt-app}, spec: {mtls: {mode: STRICTT}}}")
		eventually(t, "event", func() error {
			out, err := kubectl(t.Context(), "", "-n", "kt-app", "describe", "peerauthentication", "wrong")
			if err == nil && !strings.Contains(out, `invalid value for enum field mode: "STRICTT"`) {
				err = errors.New(out)
			}
			return err
		})
	})
	t.Run("a service says what is wrong with its waypoint", func(t *testing.T) {
		apply(t, "{apiVersion: v1, kind: Service, metadata: {name: api, namespace: kt-app, labels: {istio.io/use-waypoint: none-such}}, spec: {ports: [{port: 80}]}}")
		const path = `jsonpath={.status.conditions[?(@.type=="istio.io/WaypointBound")].reason}`
		eventually(t, "condition", func() error {
			out, err := kubectl(t.Context(), "", "-n", "kt-app", "get", "service", "api", "-o", path)
			if err == nil && out != "WaypointIsNotReady" {
				err = fmt.Errorf("got %q", out)
			}
			return err
		})
		must(t, "", "-n", "kt-app", "label", "service", "api", "istio.io/use-waypoint-")
		eventually(t, "its end", func() error {
			out, err := kubectl(t.Context(), "", "-n", "kt-app", "get", "service", "api", "-o", path)
			if err == nil && out != "" {
				err = fmt.Errorf("got %q", out)
			}
			return err
		})
	})
	t.Run("a token ends with its pod", func(t *testing.T) {
		old := token("istio-ca")
		if err := connect(t, first, rootFile, old).fetch(t, "web"); err != nil {
			t.Fatal(err)
		}
		must(t, "", "-n", "kt-system", "delete", "pod", "ztunnel-1", "--force", "--grace-period=0")
		eventually(t, "refusal", func() error {
			if err := connect(t, first, rootFile, old).fetch(t, "web"); err == nil {
				return errors.New("a certificate for a pod that is gone")
			}
			return nil
		})
	})
	t.Run("another replica takes over from a leader that died", func(t *testing.T) {
		leader := must(t, "", "-n", "kt-system", "get", "lease", "ambit-controlplane", "-o", "jsonpath={.spec.holderIdentity}")
		map[string]*replica{"first": first, "second": second}[leader].kill()
		must(t, "", "-n", "kt-app", "delete", "configmap", "istio-ca-root-cert")
		eventually(t, "the root comes back", func() error { return rootOf("kt-app") })
		if now := must(t, "", "-n", "kt-system", "get", "lease", "ambit-controlplane", "-o", "jsonpath={.spec.holderIdentity}"); now == leader {
			t.Errorf("%s leads still", now)
		}
	})
}
