package install

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/ztunnel/capture/nodepods"
)

// world is a cluster with a mesh, as a fake. Its node proxies leave when they are asked, unless they are stuck.
type world struct {
	*Cluster
	client     *fake.FakeDynamicClient
	stuck      string // node that does not leave
	unprepared bool   // nor is the stuck one prepared
	did        []string
	said       strings.Builder
}

const mesh = `
{apiVersion: v1, kind: Namespace, metadata: {name: mesh, labels: {app.kubernetes.io/part-of: ambit, app.kubernetes.io/managed-by: ambit}}}
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: ztunnel, namespace: mesh, labels: {app.kubernetes.io/part-of: ambit}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ztunnel-a, namespace: mesh, labels: {app: ztunnel}}, spec: {nodeName: a}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ztunnel-b, namespace: mesh, labels: {app: ztunnel}}, spec: {nodeName: b}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: ambit-controlplane, namespace: mesh, labels: {app.kubernetes.io/part-of: ambit}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: ztunnel, namespace: mesh, labels: {app.kubernetes.io/part-of: ambit}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: waypoint, namespace: shop, labels: {app.kubernetes.io/part-of: ambit, app.kubernetes.io/managed-by: ambit-controlplane}}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: istio-ca-root-cert, namespace: shop, labels: {istio.io/config: "true"}}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: mine, namespace: shop, labels: {istio.io/config: "true"}}}
---
{apiVersion: v1, kind: Secret, metadata: {name: istio-ca-secret, namespace: mesh}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: istio-waypoint}, spec: {controllerName: istio.io/mesh-controller}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: other}, spec: {controllerName: example.org/other}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: shop}}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{}
	mapper := meta.NewDefaultRESTMapper(nil)
	scheme, lists := runtime.NewScheme(), map[schema.GroupVersionResource]string{}
	for _, k := range append(slices.Clone(kinds), append(append([]schema.GroupVersionKind{
		{Version: "v1", Kind: "Namespace"}, {Version: "v1", Kind: "Pod"}, {Version: "v1", Kind: "Secret"},
		{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}, gatewayKind("GatewayClass"),
	}, waypointKinds...), gatewayKind("Gateway"))...) {
		scope := meta.RESTScopeNamespace
		if strings.HasPrefix(k.Kind, "Cluster") || k.Kind == "Namespace" || k.Kind == "GatewayClass" || strings.HasSuffix(k.Kind, "WebhookConfiguration") {
			scope = meta.RESTScopeRoot
		}
		mapper.Add(k, scope)
		m, err := mapper.RESTMapping(k.GroupKind(), k.Version)
		if err != nil {
			t.Fatal(err)
		}
		lists[m.Resource] = k.Kind + "List"
	}
	var objects []runtime.Object
	for doc := range strings.SplitSeq(mesh, "---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	w.client = fake.NewSimpleDynamicClientWithCustomListKinds(scheme, lists, objects...)
	w.client.PrependReactor("delete", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		d := a.(clienttesting.DeleteAction)
		w.did = append(w.did, "delete "+d.GetResource().Resource+"/"+d.GetName())
		if d.GetName() == "ztunnel" && d.GetResource() == daemonSets {
			for _, p := range []string{"ztunnel-a", "ztunnel-b"} {
				if err := w.client.Tracker().Delete(pods, "mesh", p); err != nil {
					t.Error(err)
				}
			}
		}
		return false, nil, nil
	})
	w.client.PrependReactor("patch", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		p := a.(clienttesting.PatchAction)
		var asked struct {
			Metadata struct{ Annotations map[string]string }
		}
		if err := json.Unmarshal(p.GetPatch(), &asked); err != nil {
			t.Error(err)
		}
		wish := asked.Metadata.Annotations[nodepods.AnnotationLeave]
		w.did = append(w.did, "ask "+p.GetName()+" "+wish)
		if strings.HasSuffix(p.GetName(), w.stuck) && w.stuck != "" && (wish == nodepods.LeaveNow || w.unprepared) {
			return false, nil, nil
		}
		o, err := w.client.Tracker().Get(pods, "mesh", p.GetName())
		if err != nil {
			t.Error(err)
		}
		u := o.(*unstructured.Unstructured).DeepCopy()
		u.SetAnnotations(map[string]string{nodepods.AnnotationLeave: wish, nodepods.AnnotationLeft: map[string]string{nodepods.LeavePrepare: nodepods.LeftPrepared, nodepods.LeaveNow: "0"}[wish]})
		return true, u, w.client.Tracker().Update(pods, u, "mesh")
	})
	w.Cluster = &Cluster{dynamic: w.client, mapper: mapper}
	return w
}

func (w *world) uninstall(t *testing.T, change func(*Removal)) error {
	r := Removal{Cluster: w.Cluster, Namespace: "mesh", Wait: 5 * time.Second, Progress: &w.said}
	if change != nil {
		change(&r)
	}
	return Uninstall(t.Context(), r)
}

func TestNodesLeaveBeforeAnythingThatTheyNeedIsDeleted(t *testing.T) {
	w := newWorld(t)
	if err := w.uninstall(t, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ask ztunnel-a prepare", "ask ztunnel-b prepare", "ask ztunnel-a now", "ask ztunnel-b now", "delete daemonsets/ztunnel", "delete deployments/ambit-controlplane", "delete deployments/waypoint",
		"delete leases/ambit-controlplane", "delete secrets/istio-ca-secret", "delete configmaps/istio-ca-root-cert", "delete gatewayclasses/istio-waypoint",
		"delete serviceaccounts/ztunnel", "delete configmaps/ambit-install", "delete namespaces/mesh",
	}
	if d := cmp.Diff(want, w.did); d != "" {
		t.Errorf("what was done (-want +got):\n%s", d)
	}
	if !strings.Contains(w.said.String(), "left, because they are yours, and without effect now: 1 Gateway") {
		t.Errorf("said:\n%s", &w.said)
	}
	if err := w.uninstall(t, nil); err == nil || !strings.Contains(err.Error(), "no mesh is installed here") {
		t.Errorf("again: %v", err)
	}
}

func TestANodeThatDoesNotLeaveKeepsTheMesh(t *testing.T) {
	w := newWorld(t)
	w.stuck = "b"
	short := func(r *Removal) { r.Wait = time.Second }
	err := w.uninstall(t, short)
	if err == nil || !strings.Contains(err.Error(), "node b to leave the mesh (pod ztunnel-b)") || !strings.Contains(err.Error(), "--force") {
		t.Errorf("got %v", err)
	}
	if slices.ContainsFunc(w.did, func(s string) bool { return strings.HasPrefix(s, "delete") }) {
		t.Errorf("did %q", w.did)
	}
	if err := w.uninstall(t, func(r *Removal) { short(r); r.Force = true }); err != nil {
		t.Error(err)
	}
	if !strings.Contains(w.said.String(), "ztunnel unload") {
		t.Errorf("said:\n%s", &w.said)
	}
}

// TestNoNodeLeavesBeforeAllArePrepared: and those that were go back to their policies.
func TestNoNodeLeavesBeforeAllArePrepared(t *testing.T) {
	w := newWorld(t)
	w.stuck, w.unprepared = "b", true
	err := w.uninstall(t, func(r *Removal) { r.Wait = time.Second })
	if err == nil || !strings.Contains(err.Error(), "node b to be prepared for the end of the mesh (pod ztunnel-b)") {
		t.Errorf("got %v", err)
	}
	if d := cmp.Diff([]string{"ask ztunnel-a prepare", "ask ztunnel-b prepare", "ask ztunnel-a ", "ask ztunnel-b "}, w.did); d != "" {
		t.Errorf("what was done (-want +got):\n%s", d)
	}
}

func TestWhatOthersHaveInTheMeshsNamespaceKeepsIt(t *testing.T) {
	w := newWorld(t)
	mine := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "istio", "namespace": "mesh"}}}
	if _, err := w.client.Resource(configMaps).Namespace("mesh").Create(t.Context(), mine, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.uninstall(t, func(r *Removal) { r.KeepCA = true }); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(w.said.String(), "namespace/mesh stays: others have objects in it (configmap/istio, secret/istio-ca-secret)") {
		t.Errorf("said:\n%s", &w.said)
	}
}

func TestADryRunDeletesNothing(t *testing.T) {
	w := newWorld(t)
	w.client.PrependReactor("delete", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if o := a.(clienttesting.DeleteActionImpl).DeleteOptions; len(o.DryRun) != 1 {
			t.Errorf("%s was deleted", a.(clienttesting.DeleteAction).GetName())
		}
		return true, nil, nil
	})
	if err := w.uninstall(t, func(r *Removal) { r.DryRun = true }); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(w.said.String(), "would delete daemonset/ztunnel in mesh") || len(w.did) > 0 {
		t.Errorf("did %q, said:\n%s", w.did, &w.said)
	}
}
