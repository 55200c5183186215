package kube

import (
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// The accepted kinds.
const (
	KindNamespace             Kind = "Namespace"
	KindNode                  Kind = "Node"
	KindServiceAccount        Kind = "ServiceAccount"
	KindPod                   Kind = "Pod"
	KindService               Kind = "Service"
	KindConfigMap             Kind = "ConfigMap"
	KindEndpointSlice         Kind = "EndpointSlice"
	KindDeployment            Kind = "Deployment"
	KindReplicaSet            Kind = "ReplicaSet"
	KindWorkloadEntry         Kind = "WorkloadEntry"
	KindServiceEntry          Kind = "ServiceEntry"
	KindVirtualService        Kind = "VirtualService"
	KindDestinationRule       Kind = "DestinationRule"
	KindPeerAuthentication    Kind = "PeerAuthentication"
	KindAuthorizationPolicy   Kind = "AuthorizationPolicy"
	KindRequestAuthentication Kind = "RequestAuthentication"
	KindTelemetry             Kind = "Telemetry"
	KindEnvoyFilter           Kind = "EnvoyFilter"
	KindGatewayClass          Kind = "GatewayClass"
	KindGateway               Kind = "Gateway"
	KindHTTPRoute             Kind = "HTTPRoute"
	KindGRPCRoute             Kind = "GRPCRoute"
	KindTCPRoute              Kind = "TCPRoute"
	KindTLSRoute              Kind = "TLSRoute"
	KindReferenceGrant        Kind = "ReferenceGrant"
	KindBackendTLSPolicy      Kind = "BackendTLSPolicy"
)

const (
	groupNetworking = "networking.istio.io"
	groupSecurity   = "security.istio.io"
	groupGateway    = "gateway.networking.k8s.io"
)

// kindInfo says how a kind is written and decoded. All accepted versions of a kind have one schema, that of the Go type.
type kindInfo struct {
	kind     Kind
	group    string
	versions []string
	// clusterScoped kinds have no namespace.
	clusterScoped bool
	// istio kinds have a protobuf spec and status, which need protojson to be decoded strictly.
	istio  bool
	create func() Object
}

// kinds is the table of accepted kinds.
var kinds = []kindInfo{
	{kind: KindNamespace, versions: []string{"v1"}, clusterScoped: true, create: func() Object { return &corev1.Namespace{} }},
	{kind: KindNode, versions: []string{"v1"}, clusterScoped: true, create: func() Object { return &corev1.Node{} }},
	{kind: KindServiceAccount, versions: []string{"v1"}, create: func() Object { return &corev1.ServiceAccount{} }},
	{kind: KindPod, versions: []string{"v1"}, create: func() Object { return &corev1.Pod{} }},
	{kind: KindService, versions: []string{"v1"}, create: func() Object { return &corev1.Service{} }},
	{kind: KindConfigMap, versions: []string{"v1"}, create: func() Object { return &corev1.ConfigMap{} }},
	{kind: KindEndpointSlice, group: "discovery.k8s.io", versions: []string{"v1"}, create: func() Object { return &discoveryv1.EndpointSlice{} }},
	{kind: KindDeployment, group: "apps", versions: []string{"v1"}, create: func() Object { return &appsv1.Deployment{} }},
	{kind: KindReplicaSet, group: "apps", versions: []string{"v1"}, create: func() Object { return &appsv1.ReplicaSet{} }},

	{kind: KindWorkloadEntry, group: groupNetworking, versions: istioNetworkingVersions, istio: true, create: func() Object { return &networkingv1.WorkloadEntry{} }},
	{kind: KindServiceEntry, group: groupNetworking, versions: istioNetworkingVersions, istio: true, create: func() Object { return &networkingv1.ServiceEntry{} }},
	{kind: KindVirtualService, group: groupNetworking, versions: istioNetworkingVersions, istio: true, create: func() Object { return &networkingv1.VirtualService{} }},
	{kind: KindDestinationRule, group: groupNetworking, versions: istioNetworkingVersions, istio: true, create: func() Object { return &networkingv1.DestinationRule{} }},
	{kind: KindPeerAuthentication, group: groupSecurity, versions: istioSecurityVersions, istio: true, create: func() Object { return &securityv1.PeerAuthentication{} }},
	{kind: KindAuthorizationPolicy, group: groupSecurity, versions: istioSecurityVersions, istio: true, create: func() Object { return &securityv1.AuthorizationPolicy{} }},
	{kind: KindRequestAuthentication, group: groupSecurity, versions: istioSecurityVersions, istio: true, create: func() Object { return &securityv1.RequestAuthentication{} }},
	{kind: KindTelemetry, group: "telemetry.istio.io", versions: []string{"v1", "v1alpha1"}, istio: true, create: func() Object { return &telemetryv1.Telemetry{} }},

	{kind: KindEnvoyFilter, group: groupNetworking, versions: []string{"v1alpha3"}, istio: true, create: func() Object { return &networkingv1alpha3.EnvoyFilter{} }},

	{kind: KindGatewayClass, group: groupGateway, versions: []string{"v1", "v1beta1"}, clusterScoped: true, create: func() Object { return &gatewayv1.GatewayClass{} }},
	{kind: KindGateway, group: groupGateway, versions: []string{"v1", "v1beta1"}, create: func() Object { return &gatewayv1.Gateway{} }},
	{kind: KindHTTPRoute, group: groupGateway, versions: []string{"v1", "v1beta1"}, create: func() Object { return &gatewayv1.HTTPRoute{} }},
	{kind: KindGRPCRoute, group: groupGateway, versions: []string{"v1"}, create: func() Object { return &gatewayv1.GRPCRoute{} }},
	{kind: KindTCPRoute, group: groupGateway, versions: []string{"v1", "v1alpha2"}, create: func() Object { return &gatewayv1.TCPRoute{} }},
	{kind: KindTLSRoute, group: groupGateway, versions: []string{"v1", "v1alpha3", "v1alpha2"}, create: func() Object { return &gatewayv1.TLSRoute{} }},
	{kind: KindReferenceGrant, group: groupGateway, versions: []string{"v1", "v1beta1"}, create: func() Object { return &gatewayv1.ReferenceGrant{} }},
	{kind: KindBackendTLSPolicy, group: groupGateway, versions: []string{"v1"}, create: func() Object { return &gatewayv1.BackendTLSPolicy{} }},
}

var (
	istioNetworkingVersions = []string{"v1", "v1beta1", "v1alpha3"}
	istioSecurityVersions   = []string{"v1", "v1beta1"}
)

// findKind looks a kind up by its apiVersion and kind. The second result is the kind with another version of the same
// group, when only the version is wrong.
func findKind(apiVersion, kind string) (found, near *kindInfo) {
	for i := range kinds {
		k := &kinds[i]
		if string(k.kind) != kind {
			continue
		}
		if slices.Contains(k.apiVersions(), apiVersion) {
			return k, nil
		}
		if groupOf(apiVersion) == k.group {
			near = k
		}
	}
	return nil, near
}

// apiVersions lists the accepted values of the field apiVersion.
func (k *kindInfo) apiVersions() []string {
	if k.group == "" {
		return k.versions
	}
	out := make([]string, len(k.versions))
	for i, v := range k.versions {
		out[i] = k.group + "/" + v
	}
	return out
}

// groupOf is the part of an apiVersion before the slash.
func groupOf(apiVersion string) string {
	for i := range len(apiVersion) {
		if apiVersion[i] == '/' {
			return apiVersion[:i]
		}
	}
	return ""
}

// kindOf is the kind of a typed object, empty when the type is not accepted.
func kindOf(o any) Kind {
	switch o.(type) {
	case *corev1.Namespace:
		return KindNamespace
	case *corev1.Node:
		return KindNode
	case *corev1.ServiceAccount:
		return KindServiceAccount
	case *corev1.Pod:
		return KindPod
	case *corev1.Service:
		return KindService
	case *corev1.ConfigMap:
		return KindConfigMap
	case *discoveryv1.EndpointSlice:
		return KindEndpointSlice
	case *appsv1.Deployment:
		return KindDeployment
	case *appsv1.ReplicaSet:
		return KindReplicaSet
	case *networkingv1.WorkloadEntry:
		return KindWorkloadEntry
	case *networkingv1.ServiceEntry:
		return KindServiceEntry
	case *networkingv1.VirtualService:
		return KindVirtualService
	case *networkingv1.DestinationRule:
		return KindDestinationRule
	case *securityv1.PeerAuthentication:
		return KindPeerAuthentication
	case *securityv1.AuthorizationPolicy:
		return KindAuthorizationPolicy
	case *securityv1.RequestAuthentication:
		return KindRequestAuthentication
	case *telemetryv1.Telemetry:
		return KindTelemetry
	case *networkingv1alpha3.EnvoyFilter:
		return KindEnvoyFilter
	default:
		return gatewayKindOf(o)
	}
}

// gatewayKindOf is kindOf for the Gateway API.
func gatewayKindOf(o any) Kind {
	switch o.(type) {
	case *gatewayv1.GatewayClass:
		return KindGatewayClass
	case *gatewayv1.Gateway:
		return KindGateway
	case *gatewayv1.HTTPRoute:
		return KindHTTPRoute
	case *gatewayv1.GRPCRoute:
		return KindGRPCRoute
	case *gatewayv1.TCPRoute:
		return KindTCPRoute
	case *gatewayv1.TLSRoute:
		return KindTLSRoute
	case *gatewayv1.ReferenceGrant:
		return KindReferenceGrant
	case *gatewayv1.BackendTLSPolicy:
		return KindBackendTLSPolicy
	}
	return ""
}

// ParentRefs are the parents that a route of the Gateway API names; nil for an object that is no route.
func ParentRefs(o Object) []gatewayv1.ParentReference {
	switch r := o.(type) {
	case *gatewayv1.HTTPRoute:
		return r.Spec.ParentRefs
	case *gatewayv1.GRPCRoute:
		return r.Spec.ParentRefs
	case *gatewayv1.TCPRoute:
		return r.Spec.ParentRefs
	case *gatewayv1.TLSRoute:
		return r.Spec.ParentRefs
	}
	return nil
}
