package gateway

import (
	"fmt"
	"maps"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Ports of a waypoint.
const (
	portMesh    = 15008
	portMetrics = 15020
	portReady   = 15021
)

const (
	// user is the account inside the container, as Istio's.
	user = 1337
	// tokenLife is how long a token for the control plane is valid; the kubelet renews it at 80 %.
	tokenLife = 43200 * time.Second
	// endAfterDrain is what an instance may take beyond the time for open requests before it is killed.
	endAfterDrain = 15 * time.Second

	tokenDir = "/var/run/secrets/tokens"
	rootDir  = "/var/run/secrets/istio"
)

// Kinds of the objects, in the order in which they are written: what a Deployment's pods need comes first.
const (
	kindAccount    = "ServiceAccount"
	kindService    = "Service"
	kindDeployment = "Deployment"
	kindAutoscaler = "HorizontalPodAutoscaler"
	kindBudget     = "PodDisruptionBudget"
)

// renderer renders one Gateway.
type renderer struct {
	g        *gatewayv1.Gateway
	s        Settings
	overlays []*corev1.ConfigMap
	problems []kube.Problem
	out      []*unstructured.Unstructured
}

// Render is what a Gateway becomes, in the order in which it is to be written. Overlays are the ConfigMaps of the class
// and of the Gateway, in this order. When there is a problem with severity Rejected there are no objects, and what was
// made before should stay.
func Render(g *gatewayv1.Gateway, s Settings, overlays ...*corev1.ConfigMap) ([]*unstructured.Unstructured, []kube.Problem) {
	r := &renderer{g: g, s: s.WithDefaults(), overlays: overlays}
	if texts := validation.IsDNS1035Label(g.Name); len(texts) > 0 {
		r.refuse("metadata.name", "no Service can have this name: "+texts[0], "letters, digits and hyphens, a letter first, at most 63")
		return nil, r.problems
	}
	if g.Annotations[annotationName] != "" {
		r.refuse(annotationsField, annotationName+" is not served", "the Gateway's own name")
	}
	account := g.Annotations[annotationUser]
	if account == "" {
		account = g.Name
		r.add(kindAccount, "serviceAccount", &corev1.ServiceAccount{TypeMeta: meta("v1", kindAccount), ObjectMeta: r.meta(nil)})
	}
	r.add(kindService, "service", r.service())
	scaled := r.asked("horizontalPodAutoscaler")
	r.add(kindDeployment, "deployment", r.deployment(account, !scaled))
	if scaled {
		r.add(kindAutoscaler, "horizontalPodAutoscaler", r.autoscaler())
	}
	if r.asked("podDisruptionBudget") {
		r.add(kindBudget, "podDisruptionBudget", r.budget())
	}
	for _, p := range r.problems {
		if p.Severity == kube.Rejected {
			return nil, r.problems
		}
	}
	return r.out, r.problems
}

func (r *renderer) refuse(field, cause, accepted string) {
	r.problems = append(r.problems, kube.Problem{Object: kube.KeyOf(r.g), Field: field, Cause: cause, Accepted: accepted})
}

func meta(version, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: version, Kind: kind}
}

// identity are the labels that say whose an object is.
func (r *renderer) identity() map[string]string {
	return map[string]string{kube.LabelManaged: kube.ManagedByMesh, kube.LabelGateway: r.g.Name, labelClass: kube.WaypointClass, labelMaker: maker}
}

func (r *renderer) selector() map[string]string {
	return map[string]string{kube.LabelGateway: r.g.Name}
}

// labels are those of the Gateway, of its infrastructure, and ours, later ones before earlier ones.
func (r *renderer) labels() map[string]string {
	out := maps.Clone(r.g.Labels)
	if out == nil {
		out = map[string]string{}
	}
	if i := r.g.Spec.Infrastructure; i != nil {
		for k, v := range i.Labels {
			out[string(k)] = string(v)
		}
	}
	maps.Copy(out, r.identity())
	return out
}

func (r *renderer) annotations(more map[string]string) map[string]string {
	out := map[string]string{}
	if i := r.g.Spec.Infrastructure; i != nil {
		for k, v := range i.Annotations {
			out[string(k)] = string(v)
		}
	}
	maps.Copy(out, more)
	return out
}

func (r *renderer) meta(annotations map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: r.g.Name, Namespace: r.g.Namespace, Labels: r.labels(), Annotations: r.annotations(annotations), OwnerReferences: r.owners(),
	}
}

func (r *renderer) owners() []metav1.OwnerReference {
	return []metav1.OwnerReference{{APIVersion: gatewayv1.GroupVersion.String(), Kind: string(kube.KindGateway), Name: r.g.Name, UID: r.g.UID}}
}

func (r *renderer) service() *corev1.Service {
	kind := corev1.ServiceTypeClusterIP
	switch t := corev1.ServiceType(r.g.Annotations[annotationType]); t {
	case "":
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		kind = t
	default:
		r.refuse(annotationsField, fmt.Sprintf("%s is %q", annotationType, t), "ClusterIP, NodePort or LoadBalancer")
	}
	port := func(name string, n int32, protocol string) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: n, TargetPort: intstr.FromInt32(n), Protocol: corev1.ProtocolTCP, AppProtocol: &protocol}
	}
	return &corev1.Service{
		TypeMeta:   meta("v1", kindService),
		ObjectMeta: r.meta(map[string]string{"networking.istio.io/traffic-distribution": "PreferClose"}),
		Spec: corev1.ServiceSpec{
			Type: kind, Selector: r.selector(), IPFamilyPolicy: new(corev1.IPFamilyPolicyPreferDualStack),
			Ports: []corev1.ServicePort{port("status-port", portReady, "tcp"), port("mesh", portMesh, "hbone")},
		},
	}
}

func (r *renderer) deployment(account string, counted bool) *appsv1.Deployment {
	labels := r.labels()
	maps.Copy(labels, map[string]string{
		// Its own connections are tunnels already.
		"istio.io/dataplane-mode": "none", "sidecar.istio.io/inject": "false",
		"service.istio.io/canonical-name": r.g.Name, "service.istio.io/canonical-revision": "latest",
	})
	d := &appsv1.Deployment{
		TypeMeta: meta("apps/v1", kindDeployment), ObjectMeta: r.meta(nil),
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: r.selector()},
			// An instance goes after its successor is ready: no request is lost.
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: new(intstr.FromInt32(0)), MaxSurge: new(intstr.FromInt32(1))},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: r.annotations(map[string]string{
					"prometheus.io/scrape": "true", "prometheus.io/port": strconv.Itoa(portMetrics), "prometheus.io/path": "/stats/prometheus",
				})},
				Spec: r.pod(account),
			},
		},
	}
	if counted {
		d.Spec.Replicas = &r.s.Replicas
	}
	return d
}

func (r *renderer) pod(account string) corev1.PodSpec {
	return corev1.PodSpec{
		ServiceAccountName: account,
		// It asks nothing of the API server; its token is for the control plane.
		AutomountServiceAccountToken:  new(false),
		TerminationGracePeriodSeconds: new(int64((r.s.Drain + endAfterDrain) / time.Second)),
		SecurityContext:               &corev1.PodSecurityContext{FSGroup: new(int64(user))}, // to read the token
		Containers:                    []corev1.Container{r.container()},
		Volumes: []corev1.Volume{
			{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
				ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "istio-token", Audience: "istio-ca", ExpirationSeconds: new(int64(tokenLife / time.Second))},
			}}}}},
			{Name: "root-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: "istio-ca-root-cert"},
			}}},
		},
	}
}

// container has the flags of cmd/waypoint and the environment of Istio's template, which an overlay with another image
// relies on (5.4).
func (r *renderer) container() corev1.Container {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	port := func(name string, n int32) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, ContainerPort: n, Protocol: corev1.ProtocolTCP}
	}
	ready := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(portReady)}}
	return corev1.Container{
		Name: "istio-proxy", Image: r.s.Image, ImagePullPolicy: r.s.PullPolicy,
		Args: []string{
			"--xds-address=" + r.s.ControlPlane,
			"--root-ca=" + rootDir + "/root-cert.pem", "--token=" + tokenDir + "/istio-token",
			"--cluster-domain=" + r.s.ClusterDomain,
			"--admin-address=127.0.0.1:15000",
			fmt.Sprintf("--metrics-address=:%d", portMetrics), fmt.Sprintf("--ready-address=:%d", portReady),
			"--drain-timeout=" + r.s.Drain.String(), "--log-level=" + r.s.LogLevel,
		},
		Env: []corev1.EnvVar{
			field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"), field("INSTANCE_IP", "status.podIP"),
			field("SERVICE_ACCOUNT", "spec.serviceAccountName"), field("HOST_IP", "status.hostIP"),
			field("ISTIO_META_NODE_NAME", "spec.nodeName"), {Name: "ISTIO_META_GATEWAY_NAME", Value: r.g.Name},
			{Name: "ISTIO_META_CLUSTER_ID", Value: r.s.ClusterID}, {Name: "TRUST_DOMAIN", Value: r.s.TrustDomain},
			{Name: "CA_ADDRESS", Value: r.s.ControlPlane},
		},
		Ports:          []corev1.ContainerPort{port("mesh", portMesh), port("metrics", portMetrics), port("status-port", portReady)},
		StartupProbe:   &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 120},
		ReadinessProbe: &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 2, TimeoutSeconds: 2, FailureThreshold: 3},
		Resources:      r.s.Resources,
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot: new(true), RunAsUser: new(int64(user)), RunAsGroup: new(int64(user)), Privileged: new(false),
			AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "token", MountPath: tokenDir, ReadOnly: true}, {Name: "root-cert", MountPath: rootDir, ReadOnly: true},
		},
	}
}

// autoscaler and budget have what an overlay cannot know; the rest comes from it.
func (r *renderer) autoscaler() *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta: meta("autoscaling/v2", kindAutoscaler), ObjectMeta: r.meta(nil),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: kindDeployment, Name: r.g.Name},
		},
	}
}

func (r *renderer) budget() *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		TypeMeta: meta("policy/v1", kindBudget), ObjectMeta: r.meta(nil),
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: r.selector()}},
	}
}

func defaultResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
	}
}
