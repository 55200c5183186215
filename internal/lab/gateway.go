package lab

import (
	"fmt"
	"maps"
	"net"
	"reflect"
	"strings"

	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// The lab plays the Gateway controller: for each Gateway of class istio-waypoint it keeps a ServiceAccount, a Deployment
// and a Service of the Gateway's name, with the labels that Istio gives them (controlplane.md 5.2), and writes the
// Gateway's status. A Gateway that names its addresses itself is left alone.
const (
	waypointClass    = "istio-waypoint"
	labelGateway     = "gateway.networking.k8s.io/gateway-name"
	labelClass       = "gateway.networking.k8s.io/gateway-class-name"
	labelManaged     = "gateway.istio.io/managed"
	managedByMesh    = "istio.io-mesh-controller"
	waypointPort     = 15008
	waypointReady    = 15021
	waypointMetrics  = 15020
	waypointsGrace   = 10 // seconds for open streams to end
	waypointListen   = "[::]:15008"
	meshController   = "istio.io/mesh-controller"
	dirVariable      = "AMBIT_LAB_DIR" // a directory of the pod on the machine, where its token is
	listenerProtocol = "HBONE"
)

// followGateways makes the objects behind waypoints follow the Gateways. With Lab.mu held.
func (l *Lab) followGateways() {
	want := map[key]*manifest.Object{}
	owner := map[key]key{}
	for _, o := range l.sorted("Gateway") {
		g := &gatewayv1.Gateway{}
		if o.m.Decode(g) != nil || g.Spec.GatewayClassName != waypointClass || len(g.Spec.Addresses) > 0 {
			continue
		}
		for _, m := range l.waypointObjects(g) {
			want[m.Key()], owner[m.Key()] = m, o.m.Key()
		}
	}
	for k, o := range l.objects {
		if o.gateway != (key{}) && want[k] == nil {
			l.forget(k)
		}
	}
	for k, m := range want {
		old := l.objects[k]
		switch {
		case old != nil && old.gateway == (key{}):
			l.warnOnce(k.String(), "the gateway does not own this object and leaves it as it is", "gateway", owner[k].String())
			continue
		case old != nil && reflect.DeepEqual(old.m.Data, m.Data):
			continue
		}
		o, err := l.admit(m, nil)
		if err != nil {
			l.warnOnce(k.String(), "object of a gateway was not made", "err", err)
			continue
		}
		o.gateway = owner[k]
		l.objects[k] = o
	}
}

// warnOnce logs about a thing the first time only. With Lab.mu held.
func (l *Lab) warnOnce(thing, message string, args ...any) {
	if !l.warned[thing+message] {
		l.warned[thing+message] = true
		l.log.Warn(message, append([]any{"object", thing}, args...)...)
	}
}

// waypointObjects are what a Gateway becomes.
func (l *Lab) waypointObjects(g *gatewayv1.Gateway) []*manifest.Object {
	labels := map[string]any{labelManaged: managedByMesh, labelGateway: g.Name, labelClass: waypointClass}
	for k, v := range g.Labels {
		labels[k] = v
	}
	annotations := map[string]any{}
	if i := g.Spec.Infrastructure; i != nil {
		for k, v := range i.Labels {
			labels[string(k)] = string(v)
		}
		for k, v := range i.Annotations {
			annotations[string(k)] = string(v)
		}
	}
	meta := func(more map[string]any) map[string]any {
		a := maps.Clone(annotations)
		maps.Copy(a, more)
		return map[string]any{"labels": labels, "annotations": a}
	}
	account := manifest.New("ServiceAccount", g.Namespace, g.Name, meta(nil))
	service := manifest.New("Service", g.Namespace, g.Name, meta(map[string]any{"networking.istio.io/traffic-distribution": "PreferClose"}))
	service.Data["spec"] = map[string]any{
		"type": "ClusterIP", "selector": map[string]any{labelGateway: g.Name},
		"ports": []any{
			map[string]any{"name": "status-port", "port": float64(waypointReady), "protocol": "TCP", "appProtocol": "tcp"},
			map[string]any{"name": "mesh", "port": float64(waypointPort), "protocol": "TCP", "appProtocol": "hbone"},
		},
	}
	deployment := manifest.New("Deployment", g.Namespace, g.Name, meta(nil))
	podLabels := maps.Clone(labels)
	maps.Copy(podLabels, map[string]any{
		"istio.io/dataplane-mode": "none", "sidecar.istio.io/inject": "false",
		"service.istio.io/canonical-name": g.Name, "service.istio.io/canonical-revision": "latest",
	})
	podAnnotations := maps.Clone(annotations)
	maps.Copy(podAnnotations, map[string]any{
		"prometheus.io/scrape": "true", "prometheus.io/port": fmt.Sprint(waypointMetrics), "prometheus.io/path": "/stats/prometheus",
	})
	deployment.Data["spec"] = map[string]any{
		"replicas": float64(l.waypointReplicas(g)),
		"selector": map[string]any{"matchLabels": map[string]any{labelGateway: g.Name}},
		"template": map[string]any{
			"metadata": map[string]any{"labels": podLabels, "annotations": podAnnotations},
			"spec": map[string]any{
				"serviceAccountName": g.Name, "terminationGracePeriodSeconds": float64(waypointsGrace),
				"containers": []any{l.waypointContainer(g)},
			},
		},
	}
	return []*manifest.Object{account, service, deployment}
}

// waypointContainer is the waypoint program, or an agent that runs an Envoy in its place. Both have the environment
// that Istio injects and the same flags.
func (l *Lab) waypointContainer(g *gatewayv1.Gateway) map[string]any {
	cp := "https://" + net.JoinHostPort(l.controlAddress(), "15012")
	command := []any{l.opts.Programs.Waypoint}
	if l.opts.Programs.Envoy != "" {
		command = nil
		for _, a := range l.opts.Programs.EnvoyAgent {
			command = append(command, a)
		}
		command = append(command, "--envoy="+l.opts.Programs.Envoy, "--run-dir=$("+dirVariable+")")
	}
	command = append(command,
		"--xds-address="+cp, "--ca-address="+cp, "--root-ca="+l.paths.rootCA(), "--token=$("+dirVariable+")/token",
		"--admin-address="+adminAddress, fmt.Sprintf("--metrics-address=:%d", waypointMetrics),
		fmt.Sprintf("--ready-address=:%d", waypointReady), "--listen="+waypointListen)
	for _, a := range l.opts.Programs.WaypointArgs {
		command = append(command, a)
	}
	field := func(name, path string) any {
		return map[string]any{"name": name, "valueFrom": map[string]any{"fieldRef": map[string]any{"fieldPath": path}}}
	}
	value := func(name, v string) any { return map[string]any{"name": name, "value": v} }
	return map[string]any{
		"name": "istio-proxy", "image": "ambit/waypoint", "command": command,
		"env": []any{
			field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"), field("INSTANCE_IP", "status.podIP"),
			field("SERVICE_ACCOUNT", "spec.serviceAccountName"), field("HOST_IP", "status.hostIP"), field("ISTIO_META_NODE_NAME", "spec.nodeName"),
			value("ISTIO_META_GATEWAY_NAME", g.Name), value("ISTIO_META_NETWORK", ""), value("ISTIO_META_CLUSTER_ID", "Kubernetes"),
			value("TRUST_DOMAIN", "cluster.local"),
		},
		"ports": []any{
			map[string]any{"name": "metrics", "containerPort": float64(waypointMetrics), "protocol": "TCP"},
			map[string]any{"name": "status-port", "containerPort": float64(waypointReady), "protocol": "TCP"},
		},
		"readinessProbe": map[string]any{
			"httpGet": map[string]any{"path": "/healthz/ready", "port": float64(waypointReady)}, "periodSeconds": float64(1),
		},
	}
}

// waypointReplicas is what the ConfigMap that spec.infrastructure.parametersRef names asks for under the key
// "deployment", as with Istio; else one.
func (l *Lab) waypointReplicas(g *gatewayv1.Gateway) int {
	if g.Spec.Infrastructure == nil || g.Spec.Infrastructure.ParametersRef == nil {
		return 1
	}
	ref := g.Spec.Infrastructure.ParametersRef
	o := l.objects[key{Kind: "ConfigMap", Namespace: g.Namespace, Name: ref.Name}]
	if ref.Kind != "ConfigMap" || o == nil {
		l.warnOnce("gateway/"+g.Namespace+"/"+g.Name, "spec.infrastructure.parametersRef does not name a ConfigMap of the namespace",
			"kind", string(ref.Kind), "name", ref.Name)
		return 1
	}
	var cm corev1.ConfigMap
	var overlay struct {
		Spec struct {
			Replicas *int `json:"replicas"`
		} `json:"spec"`
	}
	err := o.m.Decode(&cm)
	if err == nil {
		err = yaml.Unmarshal([]byte(cm.Data["deployment"]), &overlay)
	}
	if err != nil {
		l.warnOnce(o.m.Key().String(), "data.deployment is no Deployment", "err", err)
	}
	if overlay.Spec.Replicas == nil || *overlay.Spec.Replicas < 0 {
		return 1
	}
	return *overlay.Spec.Replicas
}

// renderGateway is a Gateway with its status (5.3): the addresses are there as soon as the Service is, Programmed is
// true once it has a ready endpoint. With Lab.mu held.
func (l *Lab) renderGateway(o *object) []byte {
	g := &gatewayv1.Gateway{}
	svc := l.objects[key{Kind: "Service", Namespace: o.m.Namespace, Name: o.m.Name}]
	if o.m.Decode(g) != nil || g.Spec.GatewayClassName != waypointClass || svc == nil || svc.gateway != o.m.Key() {
		return o.data
	}
	ip, hostname := gatewayv1.IPAddressType, gatewayv1.HostnameAddressType
	g.Status = gatewayv1.GatewayStatus{}
	for _, vip := range svc.vips {
		g.Status.Addresses = append(g.Status.Addresses, gatewayv1.GatewayStatusAddress{Type: &ip, Value: vip.String()})
	}
	g.Status.Addresses = append(g.Status.Addresses, gatewayv1.GatewayStatusAddress{
		Type: &hostname, Value: o.m.Name + "." + o.m.Namespace + ".svc.cluster.local",
	})
	programmed := metav1.Condition{Type: "Programmed", Status: metav1.ConditionTrue, Reason: "Programmed", Message: "Resource programmed"}
	if len(l.endpoints(svc)) == 0 {
		programmed.Status, programmed.Reason = metav1.ConditionFalse, "AddressNotAssigned"
		programmed.Message = "no instance of the waypoint is ready"
	}
	g.Status.Conditions = []metav1.Condition{
		{Type: "Accepted", Status: metav1.ConditionTrue, Reason: "Accepted", Message: "Resource accepted"}, programmed,
	}
	for _, ls := range g.Spec.Listeners {
		g.Status.Listeners = append(g.Status.Listeners, gatewayv1.ListenerStatus{Name: ls.Name, SupportedKinds: []gatewayv1.RouteGroupKind{}, Conditions: []metav1.Condition{}})
	}
	for i := range g.Status.Conditions {
		g.Status.Conditions[i].LastTransitionTime = metav1.NewTime(o.created)
	}
	g.UID, g.CreationTimestamp = types.UID(o.uid), metav1.NewTime(o.created)
	return encode(g)
}

// waypointWarning says what in a Gateway is not served by the lab.
func waypointWarning(o *object) string {
	g := &gatewayv1.Gateway{}
	if o.m.Decode(g) != nil {
		return ""
	}
	if g.Spec.GatewayClassName != waypointClass {
		return fmt.Sprintf("gateway class %q is not served; accepted: %s", g.Spec.GatewayClassName, waypointClass)
	}
	for _, ls := range g.Spec.Listeners {
		if ls.Port == waypointPort && strings.EqualFold(string(ls.Protocol), listenerProtocol) {
			return ""
		}
	}
	return fmt.Sprintf("no listener with port %d and protocol %s: nothing will use this waypoint", waypointPort, listenerProtocol)
}
