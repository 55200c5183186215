package apiserver

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

const (
	podWeb = `{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, uid: u1, labels: {app: web}, resourceVersion: "1"},
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: c, image: web, ports: [{containerPort: 80}]}], volumes: [{name: v, emptyDir: {}}]},
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], hostIP: 172.30.0.11, conditions: [{type: Ready, status: "True", lastTransitionTime: "2026-01-01T00:00:00Z"}, {type: Initialized, status: "True"}]}}`
	namespaceShop = `{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`
	strict        = `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: shop}, spec: {mtls: {mode: STRICT}}}`
	definition    = `{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: peerauthentications.security.istio.io}}`
)

// settle waits until a change has been delivered.
func settle() { time.Sleep(time.Second); synctest.Wait() }

func TestObjectsAreMirrored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake(t, podWeb, namespaceShop)
		w := follow(t, s)
		settle()
		expect(t, "first state", w.state(), "Namespace shop\nPod shop/web")
		pod := kube.Get[*corev1.Pod](w.snaps[0].Objects, "shop", "web")
		expect(t, "port", pod.Spec.Containers[0].Ports[0].Protocol, corev1.ProtocolTCP) // defaults as for manifests
		expect(t, "volumes", len(pod.Spec.Volumes), 0)
		s.create(t, pods, `{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop}, spec: {containers: [{name: c, image: x}]}}`)
		settle()
		expect(t, "after a creation", w.state(), "Namespace shop\nPod shop/db\nPod shop/web")
		s.remove(t, pods, "shop", "db")
		settle()
		expect(t, "after a removal", w.state(), "Namespace shop\nPod shop/web")
		if now := kube.Get[*corev1.Pod](w.snaps[2].Objects, "shop", "web"); now != pod {
			t.Error("an object that did not change is another one")
		}
	})
}

func TestOnlyWhatIsReadIsAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake(t, podWeb, `{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {a: b}}}`)
		w := follow(t, s)
		settle()
		for name, change := range map[string]func(o map[string]any){
			"resourceVersion": func(o map[string]any) { at(o, "metadata")["resourceVersion"] = "99" },
			"managedFields":   func(o map[string]any) { at(o, "metadata")["managedFields"] = []any{map[string]any{"manager": "x"}} },
			"a condition that is not read": func(o map[string]any) {
				list := at(o, "status")["conditions"].([]any)
				at(o, "status")["conditions"] = append(list, map[string]any{"type": "ContainersReady", "status": "True"})
			},
			"the time of a condition": func(o map[string]any) {
				at(o, "status")["conditions"].([]any)[0].(map[string]any)["lastTransitionTime"] = "2026-02-02T00:00:00Z"
			},
		} {
			s.update(t, pods, "shop", "web", change)
			settle()
			expect(t, "states after "+name, len(w.snaps), 1)
		}
		nodes := pods
		nodes.Resource = "nodes"
		s.update(t, nodes, "", "n1", func(o map[string]any) { o["status"] = map[string]any{"images": []any{}} })
		settle()
		expect(t, "states after a node's heartbeat", len(w.snaps), 1)
		s.update(t, pods, "shop", "web", func(o map[string]any) { at(at(o, "metadata"), "labels")["app"] = "other" })
		settle()
		expect(t, "states after a label", len(w.snaps), 2)
		expect(t, "changes", len(w.snaps[1].Objects.Diff(w.snaps[0].Objects)), 1)
	})
}

func TestDefinitionsMayComeLaterAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake(t, namespaceShop)
		w := follow(t, s)
		settle()
		expect(t, "without definitions", w.state(), "Namespace shop")
		s.create(t, definitions, definition)
		s.serve(peerAuthentications, "PeerAuthentication")
		s.create(t, peerAuthentications, strict)
		time.Sleep(5 * time.Second)
		settle()
		expect(t, "with a definition", w.state(), "Namespace shop\nPeerAuthentication shop/strict")

		// A server that has just started may not know its definitions yet. Policies must not go for that.
		s.serve(peerAuthentications, "")
		time.Sleep(time.Minute)
		settle()
		expect(t, "while discovery has forgotten it", w.state(), "Namespace shop\nPeerAuthentication shop/strict")
		s.remove(t, definitions, "", "peerauthentications.security.istio.io")
		time.Sleep(5 * time.Second)
		settle()
		expect(t, "after the definition was deleted", w.state(), "Namespace shop")
	})
}

func TestKindsOfKubernetesItselfDoNotGo(t *testing.T) {
	// Discovery of a server that has just started names some groups some seconds later than others.
	synctest.Test(t, func(t *testing.T) {
		slices := schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
		s := newFake(t, `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a, namespace: shop}, addressType: IPv4}`)
		w := follow(t, s)
		settle()
		expect(t, "at first", w.state(), "EndpointSlice shop/a")
		s.serve(slices, "")
		time.Sleep(time.Minute)
		settle()
		expect(t, "while discovery does not name it", w.state(), "EndpointSlice shop/a")
	})
}

func TestTheLastStateStaysWhileTheServerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake(t, podWeb)
		s.fail("pods", errors.New("too busy"))
		s.fail("", errors.New("connection refused"))
		w := follow(t, s)
		time.Sleep(time.Minute)
		settle()
		expect(t, "before anything was listed", w.state(), "nothing")
		s.fail("", nil)
		time.Sleep(time.Minute)
		settle()
		expect(t, "while one kind cannot be listed", w.state(), "nothing")
		if !strings.Contains(w.log.String(), "too busy") || !strings.Contains(w.log.String(), "connection refused") {
			t.Errorf("the log does not say why:\n%s", w.log)
		}
		s.fail("pods", nil)
		time.Sleep(2 * time.Minute) // the reflector has backed off
		settle()
		if expect(t, "afterwards", w.state(), "Pod shop/web"); t.Failed() {
			t.Fatal(w.log)
		}
		objects := w.snaps[len(w.snaps)-1].Objects

		s.fail("", errors.New("connection refused"))
		time.Sleep(time.Minute)
		settle()
		if !strings.HasPrefix(w.state(), "Pod shop/web\n! API server: get /apis: connection refused") {
			t.Errorf("while the server is away: %s", w.state())
		}
		if w.snaps[len(w.snaps)-1].Objects != objects {
			t.Error("the objects are others")
		}
	})
}

func TestRejectedObjectsAreExplainedAsInManifests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake(t, definition, strict)
		s.serve(peerAuthentications, "PeerAuthentication")
		w := follow(t, s)
		settle()
		good := w.snaps[0].Objects
		s.update(t, peerAuthentications, "shop", "strict", func(o map[string]any) { at(at(o, "spec"), "mtls")["mode"] = "STRICTT" })
		settle()
		expect(t, "state", w.state(), "PeerAuthentication shop/strict\n! PeerAuthentication shop/strict: spec.mtls.mode: "+
			`invalid value for enum field mode: "STRICTT"; the object's last good content stays in force (accepted: UNSET, DISABLE, PERMISSIVE, STRICT)`)
		if w.snaps[1].Objects != good {
			t.Error("the last good content is gone")
		}
		s.update(t, peerAuthentications, "shop", "strict", func(o map[string]any) { at(at(o, "spec"), "mtls")["mode"] = "PERMISSIVE" })
		settle()
		expect(t, "after the correction", w.state(), "PeerAuthentication shop/strict")
	})
}
