package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
)

// shelf is an API server of a few objects that notes what is done.
type shelf struct {
	objects map[string]*unstructured.Unstructured
	done    []string
	fail    error
}

func (s *shelf) Find(_ context.Context, kind, namespace, name string) (*unstructured.Unstructured, error) {
	return s.objects[kind+" "+namespace+"/"+name], nil
}

func (s *shelf) Apply(_ context.Context, o *unstructured.Unstructured) error {
	if s.fail != nil {
		s.done = append(s.done, "failed "+o.GetKind())
		return s.fail
	}
	s.objects[o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName()] = o
	s.done = append(s.done, "apply "+o.GetKind())
	return nil
}

func (s *shelf) Delete(_ context.Context, o *unstructured.Unstructured) error {
	delete(s.objects, o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName())
	s.done = append(s.done, "delete "+o.GetKind())
	return nil
}

// did is what was done since the last call.
func (s *shelf) did() string {
	out := strings.Join(s.done, ", ")
	s.done = nil
	return out
}

const (
	class   = "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: istio-waypoint}, spec: {controllerName: istio.io/mesh-controller}}\n---\n"
	gate    = "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: wp, namespace: demo, uid: u-1}, spec: {gatewayClassName: %s, listeners: [{name: mesh, port: 15008, protocol: HBONE}]%s}}\n"
	options = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: options, namespace: demo}, data: {%s}}\n"
	refers  = `, infrastructure: {parametersRef: {group: "", kind: ConfigMap, name: options}}`
	budget  = `podDisruptionBudget: "spec: {minAvailable: 1}"`
)

func TestObjectsFollowTheirGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{objects: map[string]*unstructured.Unstructured{}}
		p, c := NewPlanner(Settings{Image: "wp:1"}), NewController(s)
		objects := kube.NewObjects()
		step := func(what, manifests, want string) {
			t.Helper()
			if manifests != "" {
				objects = kubetest.Decode(t, manifests)
			}
			if problems, err := c.Reconcile(t.Context(), p.Update(objects)); err != nil || len(problems) > 0 {
				t.Errorf("%s: %v, %v", what, err, problems)
			}
			if got := s.did(); got != want {
				t.Errorf("%s:\ngot  %s\nwant %s", what, got, want)
			}
		}
		plain := fmt.Sprintf(gate, kube.WaypointClass, "")
		step("first", plain, "apply ServiceAccount, apply Service, apply Deployment, apply GatewayClass")
		step("nothing changed", "", "")
		with := class + fmt.Sprintf(gate, kube.WaypointClass, refers) + fmt.Sprintf(options, budget)
		step("a budget", with, "apply ServiceAccount, apply Service, apply Deployment, apply PodDisruptionBudget")
		objects = objects.With([]kube.Object{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "other"}}}, nil)
		step("another pod", "", "")
		step("no budget any more", class+fmt.Sprintf(gate, kube.WaypointClass, refers)+fmt.Sprintf(options, ""), "apply ServiceAccount, apply Service, apply Deployment, delete PodDisruptionBudget")
		time.Sleep(resync)
		step("after a while", "", "apply ServiceAccount, apply Service, apply Deployment")
		c.Forget()
		step("leading again", "", "apply ServiceAccount, apply Service, apply Deployment")
		step("somebody else's proxy", class+fmt.Sprintf(gate, kube.WaypointClass, ", addresses: [{type: Hostname, value: x.demo.svc.cluster.local}]"), "delete Deployment, delete Service, delete ServiceAccount")
	})
}

func TestAServiceOrPodThatGoesIsLookedAt(t *testing.T) {
	s := &shelf{objects: map[string]*unstructured.Unstructured{}}
	p, c := NewPlanner(Settings{Image: "wp:1"}), NewController(s)
	pod := "---\n{apiVersion: v1, kind: Pod, metadata: {name: wp-1, namespace: demo, labels: {gateway.networking.k8s.io/gateway-name: wp}}, spec: {containers: [{name: c, image: i}]}}\n"
	objects := kubetest.Decode(t, class+fmt.Sprintf(gate, kube.WaypointClass, "")+pod)
	if _, err := c.Reconcile(t.Context(), p.Update(objects)); err != nil {
		t.Fatal(err)
	}
	s.did()
	objects = objects.With(nil, []kube.Key{{Kind: kube.KindPod, Name: kube.Name{Namespace: "demo", Name: "wp-1"}}})
	if _, err := c.Reconcile(t.Context(), p.Update(objects)); err != nil {
		t.Fatal(err)
	}
	if got, want := s.did(), "apply ServiceAccount, apply Service, apply Deployment"; got != want {
		t.Errorf("after the pod went: %q, want %q", got, want)
	}
}

func TestWhatIsSomebodyElsesIsLeft(t *testing.T) {
	for _, owner := range []string{
		`{}`, // a user's
		`{"labels": {"gateway.istio.io/managed": "istio.io-mesh-controller"}, "ownerReferences": [{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "wp", "uid": "u-1"}]}`,  // Istio's
		`{"labels": {"app.kubernetes.io/managed-by": "ambit-controlplane"}, "ownerReferences": [{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "wp", "uid": "u-0"}]}`,    // of a Gateway that is gone
		`{"labels": {"app.kubernetes.io/managed-by": "ambit-controlplane"}, "ownerReferences": [{"apiVersion": "gateway.example.com/v1", "kind": "Gateway", "name": "wp", "uid": "u-1"}]}`,          // of another kind
		`{"labels": {"app.kubernetes.io/managed-by": "ambit-controlplane"}, "ownerReferences": [{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "other", "uid": "u-1"}]}`, // of another one
	} {
		d := &unstructured.Unstructured{}
		if err := d.UnmarshalJSON([]byte(`{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": ` + owner + `}`)); err != nil {
			t.Fatal(err)
		}
		s := &shelf{objects: map[string]*unstructured.Unstructured{"Deployment demo/wp": d}}
		problems, err := NewController(s).Reconcile(t.Context(), NewPlanner(Settings{Image: "wp:1"}).Update(kubetest.Decode(t, class+fmt.Sprintf(gate, kube.WaypointClass, ""))))
		if err == nil || len(problems) != 1 || !strings.Contains(problems[0].Error(), "Gateway demo/wp: metadata.name: Deployment demo/wp was not made for this Gateway and is left as it is") {
			t.Errorf("%s: %v, %v", owner, err, problems)
		}
		if got := s.did(); got != "" {
			t.Errorf("%s: %s", owner, got)
		}
		// Nor is it deleted when the Gateway asks for nothing.
		plan := NewPlanner(Settings{Image: "wp:1"}).Update(kubetest.Decode(t, class+fmt.Sprintf(gate, kube.WaypointClass, ", addresses: [{type: Hostname, value: x.demo.svc.cluster.local}]")))
		if _, err := NewController(s).Reconcile(t.Context(), plan); err != nil || s.did() != "" {
			t.Errorf("%s: touched, %v", owner, err)
		}
	}
}

func TestAFailureIsTriedAgainLaterAndLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{objects: map[string]*unstructured.Unstructured{}, fail: errors.New("no")}
		p, c := NewPlanner(Settings{Image: "wp:1"}), NewController(s)
		objects := kubetest.Decode(t, class+fmt.Sprintf(gate, kube.WaypointClass, ""))
		start := time.Now()
		var tries []time.Duration
		for range 60 {
			if _, err := c.Reconcile(t.Context(), p.Update(objects)); err == nil || !strings.Contains(err.Error(), "waypoint demo/wp: apply ServiceAccount: no") {
				t.Fatalf("error: %v", err)
			}
			if s.did() != "" {
				tries = append(tries, time.Since(start).Round(time.Second))
			}
			time.Sleep(5 * time.Second)
		}
		if want := []time.Duration{0, 5 * time.Second, 15 * time.Second, 35 * time.Second, 75 * time.Second, 155 * time.Second}; !slices.Equal(tries, want) {
			t.Errorf("tries at %v, want %v", tries, want)
		}
		s.fail = nil
		if _, err := c.Reconcile(t.Context(), p.Update(kubetest.Decode(t, class+fmt.Sprintf(gate, kube.WaypointClass, ", infrastructure: {labels: {a: b}}")))); err != nil {
			t.Errorf("a Gateway that changed waits: %v", err)
		}
	})
}

func TestWithoutAnImageNothingIsMade(t *testing.T) {
	if plan := NewPlanner(Settings{}).Update(kubetest.Decode(t, fmt.Sprintf(gate, kube.WaypointClass, ""))); len(plan.Waypoints) > 0 {
		t.Errorf("planned: %v", plan.Waypoints)
	}
}
