package controlplane

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/discovery"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// waypointObjects are a Gateway with a pod on node-1, and a service that uses it.
func waypointObjects() []kube.Object {
	hostname := gatewayv1.HostnameAddressType
	instance := pod("demo", "wp-1", "node-1", "10.0.0.1")
	instance.Labels = map[string]string{kube.LabelGateway: "wp"}
	web := pod("demo", "web", "node-1", "10.0.0.2")
	web.Labels = map[string]string{"app": "web"}
	return []kube.Object{
		&gatewayv1.Gateway{
			ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "wp"},
			Spec:       gatewayv1.GatewaySpec{GatewayClassName: "istio-waypoint", Listeners: []gatewayv1.Listener{{Port: 15008, Protocol: "HBONE"}}},
			Status:     gatewayv1.GatewayStatus{Addresses: []gatewayv1.GatewayStatusAddress{{Type: &hostname, Value: "wp.demo.svc.cluster.local"}}},
		},
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "web", Labels: map[string]string{"istio.io/use-waypoint": "wp"}},
			Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": "web"},
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
		},
		instance, web,
	}
}

func newTestWaypoints(t *testing.T) (*waypoints, *translate.Translator) {
	t.Helper()
	w := newWaypoints(envoy.Config{})
	w.srv = discovery.NewServer(discovery.Config{})
	return w, translate.NewTranslator(translate.Config{})
}

func client(pod string, metadata, labels map[string]string) discovery.Client {
	return discovery.Client{Caller: discovery.Caller{Namespace: "demo", ServiceAccount: "wp", Pod: pod}, Metadata: metadata, Labels: labels}
}

func TestWaypointIsKnownByItsPod(t *testing.T) {
	w, tr := newTestWaypoints(t)
	set := kube.NewObjects(waypointObjects()...)
	w.update(set, tr.Update(set).Addresses)
	for name, c := range map[string]struct {
		client    discovery.Client
		url, want string
	}{
		"Istio's build":         {client("wp-1", map[string]string{"ISTIO_VERSION": "1.32.0"}, nil), xds.ClusterType, "demo/wp"},
		"a plain Envoy":         {client("wp-1", nil, nil), xds.ListenerType, "demo/wp plain"},
		"endpoints by the node": {client("wp-1", nil, nil), xds.EndpointType, "demo/wp@node-1"},
		"a pod not known yet":   {client("wp-2", map[string]string{"NODE_NAME": "node-2"}, map[string]string{kube.LabelGateway: "wp"}), xds.EndpointType, "demo/wp@node-2"},
	} {
		got, err := w.scope(c.client, c.url)
		if err != nil || got != c.want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, c.want)
		}
	}
	// What its pod says counts, not what it says of itself.
	if _, err := w.scope(client("web", nil, map[string]string{kube.LabelGateway: "wp"}), xds.ClusterType); err == nil {
		t.Error("a pod that is no waypoint was served as one")
	}
}

func TestWhatSomebodyAskedForFollowsTheObjects(t *testing.T) {
	w, tr := newTestWaypoints(t)
	c := client("wp-1", nil, map[string]string{kube.LabelGateway: "wp"})
	if _, err := w.scope(c, xds.ClusterType); err != nil { // before any object is known
		t.Fatal(err)
	}
	objects := waypointObjects()
	set := kube.NewObjects(objects...)
	w.update(set, tr.Update(set).Addresses)
	sizes := func() (clusters int) {
		for key, n := range w.srv.Stats().Sets {
			if key.TypeURL == xds.ClusterType && strings.HasPrefix(key.Scope, "demo/wp") {
				clusters = n
			}
		}
		return clusters
	}
	before := sizes()
	set = kube.NewObjects(objects[0], objects[2], objects[3]) // the service is gone
	w.update(set, tr.Update(set).Addresses)
	if after := sizes(); before != 6 || after != 5 {
		t.Errorf("got %d and then %d clusters, want 6 with the service's and 5 without", before, after)
	}
}
