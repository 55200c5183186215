package lab

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/gateway"
)

const gatewayYAML = `
{apiVersion: v1, kind: ConfigMap, metadata: {name: params}, data: {deployment: "{spec: {replicas: 3}}"}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: wp, labels: {istio.io/waypoint-for: all}}, spec: {gatewayClassName: istio-waypoint,
  infrastructure: {parametersRef: {group: "", kind: ConfigMap, name: params}}, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
`

func gatewayPlan(t *testing.T) *Lab {
	t.Helper()
	l := plan(t)
	l.warned, l.log = map[string]bool{}, slog.New(slog.DiscardHandler)
	l.opts.Programs.Waypoint = "/bin/waypoint"
	if _, err := applyYAML(t, l, gatewayYAML); err != nil {
		t.Fatal(err)
	}
	l.followGateways()
	return l
}

func TestGatewayBecomesWaypoint(t *testing.T) {
	l := gatewayPlan(t)
	deploy := l.objects[key{Kind: "Deployment", Namespace: "default", Name: "wp"}]
	svc := l.objects[key{Kind: "Service", Namespace: "default", Name: "wp"}]
	if deploy == nil || svc == nil || l.objects[key{Kind: "ServiceAccount", Namespace: "default", Name: "wp"}] == nil {
		t.Fatal("want ServiceAccount, Service and Deployment of the gateway's name")
	}
	spec := deploy.deploy.Spec
	c := spec.Template.Spec.Containers[0]
	if *spec.Replicas != 3 || spec.Template.Labels[labelGateway] != "wp" || spec.Template.Labels["istio.io/waypoint-for"] != "all" ||
		c.Command[0] != "/bin/waypoint" || !slices.Contains(c.Command, "--listen=[::]:15008") {
		t.Errorf("got replicas %d, labels %v, command %v", *spec.Replicas, spec.Template.Labels, c.Command)
	}
	if svc.svc.Spec.Selector[labelGateway] != "wp" || svc.svc.Spec.Ports[1].Port != 15008 || len(svc.vips) == 0 {
		t.Errorf("got service %+v with addresses %v", svc.svc.Spec, svc.vips)
	}
	var g gatewayv1.Gateway
	if err := yaml.Unmarshal(l.render()[key{Kind: "Gateway", Namespace: "default", Name: "wp"}], &g); err != nil {
		t.Fatal(err)
	}
	n := len(g.Status.Addresses)
	if n != 3 || g.Status.Addresses[n-1].Value != "wp.default.svc.cluster.local" || g.Status.Conditions[1].Reason != "AddressNotAssigned" {
		t.Errorf("got status %+v", g.Status)
	}
}

// TestGatewayBecomesWhatItBecomesInACluster holds the lab's objects against those of the control plane: what a Gateway
// is to ztunnel, to routes and to whoever looks must be the same.
func TestGatewayBecomesWhatItBecomesInACluster(t *testing.T) {
	l := gatewayPlan(t)
	g := &gatewayv1.Gateway{}
	if err := l.objects[key{Kind: "Gateway", Namespace: "default", Name: "wp"}].m.Decode(g); err != nil {
		t.Fatal(err)
	}
	g.Spec.Infrastructure.ParametersRef = nil // the number of replicas
	want, problems := gateway.Render(g, gateway.Settings{Image: "waypoint"})
	for _, p := range problems {
		t.Fatal(p.Error())
	}
	for _, u := range want {
		o := l.objects[key{Kind: u.GetKind(), Namespace: "default", Name: "wp"}]
		if o == nil {
			t.Errorf("no %s", u.GetKind())
			continue
		}
		contains(t, u.GetKind()+" labels", labelsOf(o.m.Data), labelsOf(u.Object), "app.kubernetes.io/managed-by")
		switch u.GetKind() {
		case "Service":
			var s corev1.Service
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &s); err != nil {
				t.Fatal(err)
			}
			for i, p := range s.Spec.Ports {
				if got := o.svc.Spec.Ports[i]; got.Name != p.Name || got.Port != p.Port || *got.AppProtocol != *p.AppProtocol {
					t.Errorf("port %+v, want %+v", got, p)
				}
			}
			contains(t, "selector", o.svc.Spec.Selector, s.Spec.Selector)
		case "Deployment":
			var d appsv1.Deployment
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &d); err != nil {
				t.Fatal(err)
			}
			got := o.deploy.Spec.Template
			contains(t, "labels of pods", got.Labels, d.Spec.Template.Labels, "app.kubernetes.io/managed-by")
			contains(t, "annotations of pods", got.Annotations, d.Spec.Template.Annotations)
			env := map[string]bool{}
			for _, e := range got.Spec.Containers[0].Env {
				env[e.Name] = true
			}
			for _, e := range d.Spec.Template.Spec.Containers[0].Env {
				if !env[e.Name] && e.Name != "CA_ADDRESS" { // which is a flag in the lab
					t.Errorf("no variable %s", e.Name)
				}
			}
		}
	}
}

func labelsOf(o map[string]any) map[string]string {
	u := unstructured.Unstructured{Object: o}
	return u.GetLabels()
}

// contains checks that a map has all of another but for some keys.
func contains(t *testing.T, what string, got, want map[string]string, but ...string) {
	t.Helper()
	for k, v := range want {
		if got[k] != v && !slices.Contains(but, k) {
			t.Errorf("%s: %s is %q, want %q", what, k, got[k], v)
		}
	}
}

func TestGatewayObjectsGoWithTheGateway(t *testing.T) {
	l := gatewayPlan(t)
	if _, err := l.Delete([]key{{Kind: "Gateway", Namespace: "default", Name: "wp"}}); err != nil {
		t.Fatal(err)
	}
	l.followGateways()
	for k := range l.objects {
		if k.Name == "wp" {
			t.Errorf("%s is left", k)
		}
	}
}

func TestGatewayLeavesForeignObjectsAlone(t *testing.T) {
	l := plan(t)
	l.warned, l.log = map[string]bool{}, slog.New(slog.DiscardHandler)
	_, err := applyYAML(t, l, "{apiVersion: v1, kind: Service, metadata: {name: wp}, spec: {ports: [{port: 1}]}}\n---\n"+strings.TrimPrefix(gatewayYAML, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	l.followGateways()
	svc := l.objects[key{Kind: "Service", Namespace: "default", Name: "wp"}]
	if svc.svc.Spec.Ports[0].Port != 1 {
		t.Error("the gateway took over a user's service")
	}
	var g gatewayv1.Gateway
	if err := yaml.Unmarshal(l.render()[key{Kind: "Gateway", Namespace: "default", Name: "wp"}], &g); err != nil || len(g.Status.Addresses) != 0 {
		t.Errorf("got addresses %v, %v, want none", g.Status.Addresses, err)
	}
}

func TestGatewayWarnsOfWhatIsNotServed(t *testing.T) {
	l := plan(t)
	for in, want := range map[string]string{
		"{gatewayClassName: istio, listeners: []}":                                                    `gateway class "istio" is not served; accepted: istio-waypoint`,
		"{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HTTP}]}":  "no listener with port 15008 and protocol HBONE: nothing will use this waypoint",
		"{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}": "",
	} {
		got, err := applyYAML(t, l, "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: g}, spec: "+in+"}")
		if err != nil || got[0].Warning != want {
			t.Errorf("got %+v, %v, want warning %q", got, err, want)
		}
	}
}
