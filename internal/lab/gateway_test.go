package lab

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
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
