package controlplane

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/ca"
	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/status"
)

// workshop is a Cluster in which this replica leads, and that keeps what is made.
type workshop struct {
	mu       sync.Mutex
	applied  []string        // guarded by mu
	statuses []status.Status // guarded by mu
	made     chan struct{}   // cap 1
}

func (w *workshop) Lead(ctx context.Context, lead func(context.Context)) error { lead(ctx); return nil }

func (w *workshop) PublishRoot(context.Context, *kube.Objects, []byte) error { return nil }

func (w *workshop) PublishWebhook(context.Context, string, []byte) error { return nil }

func (w *workshop) Report(context.Context, []kube.Problem) error { return nil }

func (w *workshop) PublishStatus(_ context.Context, list []status.Status) error {
	w.mu.Lock()
	w.statuses = list
	w.mu.Unlock()
	select {
	case w.made <- struct{}{}:
	default:
	}
	return nil
}

func (w *workshop) Find(context.Context, string, string, string) (*unstructured.Unstructured, error) {
	return nil, nil
}

func (w *workshop) Apply(_ context.Context, o *unstructured.Unstructured) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applied = append(w.applied, o.GetKind()+" "+o.GetName())
	return nil
}

func (w *workshop) Delete(context.Context, *unstructured.Unstructured) error {
	return errors.New("nothing is to be deleted")
}

// await waits until what was written satisfies ok.
func (w *workshop) await(t *testing.T, what string, ok func(applied []string, conditions map[string]string) bool) {
	t.Helper()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for {
		w.mu.Lock()
		conditions := map[string]string{}
		for _, s := range w.statuses {
			for _, c := range s.Conditions {
				conditions[s.Object.String()+" "+c.Type] = string(c.Status) + " " + c.Reason
			}
		}
		done, applied := ok(w.applied, conditions), slices.Clone(w.applied)
		w.mu.Unlock()
		if done {
			return
		}
		select {
		case <-w.made:
		case <-limit.C:
			t.Fatalf("not %s: %v, %v", what, applied, conditions)
		}
	}
}

func TestAGatewayBecomesAWaypointInTheCluster(t *testing.T) {
	src := source{snaps: make(chan kube.Snapshot, 4)}
	w := &workshop{made: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{
			Source: src, Authenticator: ca.LabTokens{Key: labKey}, Listen: netip.MustParseAddrPort("127.0.0.1:0"),
			Cluster: w, Waypoint: gateway.Settings{Image: "waypoint:1"},
		})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	g := &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "wp", UID: "u-1"},
		Spec:       gatewayv1.GatewaySpec{GatewayClassName: kube.WaypointClass, Listeners: []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}}},
	}
	objects := kube.NewObjects(g)
	src.snaps <- kube.Snapshot{Objects: objects}
	w.await(t, "made", func(applied []string, conditions map[string]string) bool {
		return slices.Equal(applied, []string{"ServiceAccount wp", "Service wp", "Deployment wp", "GatewayClass istio-waypoint"}) &&
			conditions["Gateway demo/wp Accepted"] == "True Accepted" && conditions["Gateway demo/wp Programmed"] == "False AddressNotAssigned"
	})
	// What the API server and the controllers of Deployments and Services make of it.
	labels := map[string]string{"gateway.istio.io/managed": "istio.io-mesh-controller", "gateway.networking.k8s.io/gateway-name": "wp", "app.kubernetes.io/managed-by": "ambit-controlplane"}
	owner := []metav1.OwnerReference{{APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway", Name: "wp", UID: "u-1"}}
	instance := pod("demo", "wp", "node-1", "10.0.0.7")
	instance.Labels = labels
	objects = objects.With([]kube.Object{
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "wp", Labels: labels, OwnerReferences: owner}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.1.0.1"}}},
		instance,
	}, nil)
	src.snaps <- kube.Snapshot{Objects: objects}
	w.await(t, "programmed", func(_ []string, conditions map[string]string) bool {
		return conditions["Gateway demo/wp Programmed"] == "True Programmed"
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.applied) != 4 {
		t.Errorf("written again: %v", w.applied)
	}
}
