// Package gateway makes waypoints of Gateways: a ServiceAccount, a Service and a Deployment for each Gateway of class
// istio-waypoint, and a HorizontalPodAutoscaler and a PodDisruptionBudget where they are asked for, with the names, labels
// and ports that Istio's have (controlplane.md 5.2).
//
// Render is pure: a Gateway and what it refers to in, objects out. A Planner keeps what was rendered of a sequence of sets
// of objects. A Controller writes it to an API server by server-side apply, and only what follows from it: objects that
// are somebody else's are left and told of. A Gateway that names its addresses itself has a proxy of somebody else's
// behind it and gets nothing.
package gateway

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Names of labels and annotations (5.2).
const (
	labelClass       = "gateway.networking.k8s.io/gateway-class-name"
	labelDefaults    = "gateway.istio.io/defaults-for-class"
	labelMaker       = "app.kubernetes.io/managed-by"
	annotationType   = "networking.istio.io/service-type"
	annotationUser   = "gateway.istio.io/service-account"
	annotationName   = "gateway.istio.io/name-override"
	maker            = "ambit-controlplane"
	parametersField  = "spec.infrastructure.parametersRef"
	annotationsField = "metadata.annotations"
)

// Settings are what is the same for all waypoints. The zero value of a field is the documented default.
type Settings struct {
	// Image of the waypoint. Required: without it no waypoints are made.
	Image string
	// PullPolicy of the image; "" is the cluster's default.
	PullPolicy corev1.PullPolicy
	// ControlPlane is the URL of xDS and certificates. Default https://ambit-controlplane.NAMESPACE.svc:15012 with the
	// root namespace.
	ControlPlane string
	// TrustDomain, ClusterID and ClusterDomain of the mesh. Default cluster.local, Kubernetes, cluster.local.
	TrustDomain, ClusterID, ClusterDomain string
	// RootNamespace has the ConfigMaps with defaults of the class. Default istio-system.
	RootNamespace string
	// Replicas of a waypoint that has no autoscaler. Default 1.
	Replicas int32
	// Resources of the container. Default: requests of 100m and 128Mi, at most 1Gi of memory.
	Resources corev1.ResourceRequirements
	// Drain is how long requests may go on when an instance ends. Default 30 s.
	Drain time.Duration
	// LogLevel of waypoints. Default info.
	LogLevel string
}

// WithDefaults fills in what is not set.
func (s Settings) WithDefaults() Settings {
	set := func(to *string, v string) {
		if *to == "" {
			*to = v
		}
	}
	set(&s.RootNamespace, "istio-system")
	set(&s.ControlPlane, "https://ambit-controlplane."+s.RootNamespace+".svc:15012")
	set(&s.TrustDomain, "cluster.local")
	set(&s.ClusterID, "Kubernetes")
	set(&s.ClusterDomain, "cluster.local")
	set(&s.LogLevel, "info")
	if s.Replicas <= 0 {
		s.Replicas = 1
	}
	if s.Drain <= 0 {
		s.Drain = 30 * time.Second
	}
	if len(s.Resources.Requests)+len(s.Resources.Limits) == 0 {
		s.Resources = defaultResources()
	}
	return s
}

// Managed says whether a Gateway is one that waypoints are made for.
func Managed(g *gatewayv1.Gateway) bool {
	return g.Spec.GatewayClassName == kube.WaypointClass && len(g.Spec.Addresses) == 0 && g.DeletionTimestamp == nil
}

// Owns says whether an object is one that this control plane made for a Gateway: it says so in a label, and the Gateway
// that is there now is its owner. One that Istio made has other labels, one that a user made has no owner.
func Owns(g *gatewayv1.Gateway, o metav1.Object) bool {
	if o.GetLabels()[labelMaker] != maker {
		return false
	}
	for _, r := range o.GetOwnerReferences() {
		group, _, _ := strings.Cut(r.APIVersion, "/")
		if r.Kind == string(kube.KindGateway) && group == gatewayv1.GroupName && r.Name == g.Name && r.UID == g.UID {
			return true
		}
	}
	return false
}

// GatewayClass is the object of the class.
func GatewayClass() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": gatewayv1.GroupVersion.String(), "kind": string(kube.KindGatewayClass),
		"metadata": map[string]any{"name": kube.WaypointClass},
		"spec":     map[string]any{"controllerName": kube.MeshController, "description": "The default Istio waypoint GatewayClass"},
	}}
}
