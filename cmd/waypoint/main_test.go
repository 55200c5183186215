package main

import (
	"io"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/gateway"
)

// TestStartsAsTheControlPlaneDeploysIt gives the program the flags and the environment that the control plane gives the
// container.
func TestStartsAsTheControlPlaneDeploysIt(t *testing.T) {
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "wp"}}
	objects, problems := gateway.Render(g, gateway.Settings{Image: "waypoint", Drain: 20 * time.Second, TrustDomain: "td", ClusterID: "c1", ClusterDomain: "k.local"})
	for _, p := range problems {
		t.Fatal(p.Error())
	}
	var d appsv1.Deployment
	for _, o := range objects {
		if o.GetKind() == "Deployment" {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
				t.Fatal(err)
			}
		}
	}
	pod := map[string]string{
		"metadata.name": "wp-1", "metadata.namespace": "demo", "status.podIP": "10.0.0.1", "status.hostIP": "192.0.2.1",
		"spec.serviceAccountName": "wp", "spec.nodeName": "node-1",
	}
	container := d.Spec.Template.Spec.Containers[0]
	env := map[string]string{}
	for _, e := range container.Env {
		if env[e.Name] = e.Value; e.ValueFrom != nil {
			env[e.Name] = pod[e.ValueFrom.FieldRef.FieldPath]
		}
	}
	c, err := config(container.Args, env, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	const controlPlane = "https://ambit-controlplane.istio-system.svc:15012"
	for _, v := range []struct{ what, got, want string }{
		{"pod", c.PodNamespace + "/" + c.PodName, "demo/wp-1"}, {"account", c.ServiceAccount, "wp"}, {"address", c.InstanceIP, "10.0.0.1"},
		{"gateway", c.Gateway, "wp"}, {"node", c.Node, "node-1"}, {"cluster", c.ClusterID, "c1"}, {"domain", c.ClusterDomain, "k.local"},
		{"trust domain", c.TrustDomain, "td"}, {"xDS", c.XDSAddress, controlPlane}, {"CA", c.CAAddress, controlPlane},
		{"root", c.CARootCA, "/var/run/secrets/istio/root-cert.pem"}, {"token", c.Token, "/var/run/secrets/tokens/istio-token"},
		{"ready", c.ReadyAddress, ":15021"}, {"metrics", c.MetricsAddress, ":15020"}, {"drain", c.DrainTimeout.String(), "20s"},
		{"tunnels", c.ListenAddress.String(), "[::]:15008"},
	} {
		if v.got != v.want {
			t.Errorf("%s: %q, want %q", v.what, v.got, v.want)
		}
	}
	if grace := time.Duration(*d.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second; grace < c.DrainTimeout+10*time.Second {
		t.Errorf("it is killed after %s, while requests may go on for %s", grace, c.DrainTimeout)
	}
}
