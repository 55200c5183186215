package manifest

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

// Kind says how objects of one kind are named and checked.
type Kind struct {
	// Name is as in a manifest; Plural and Short are what `get` takes as well.
	Name, Plural string
	Short        []string
	// Groups are the API groups it may come from, "" is the core group.
	Groups []string
	// Cluster is set for kinds without a namespace.
	Cluster bool
	check   func(c *checker, n *yaml.Node)
}

// Matches tells whether word is a name of the kind as typed on a command line, in any case.
func (k *Kind) Matches(word string) bool {
	w := strings.ToLower(word)
	return w == strings.ToLower(k.Name) || w == k.Plural || slices.Contains(k.Short, w)
}

// Lookup finds a kind by any of its names; nil if there is none.
func Lookup(word string) *Kind {
	for _, k := range kinds {
		if k.Matches(word) {
			return k
		}
	}
	return nil
}

// Names lists the kinds a manifest may hold.
func Names() []string {
	var out []string
	for _, k := range kinds {
		out = append(out, k.Name)
	}
	return out
}

var istioNet, istioSec = []string{"networking.istio.io"}, []string{"security.istio.io"}
var gatewayAPI = []string{"gateway.networking.k8s.io"}

// kinds is in the order in which `get all` and an apply go: what others refer to comes first.
var kinds = []*Kind{
	{Name: "Namespace", Plural: "namespaces", Short: []string{"ns"}, Groups: []string{""}, Cluster: true, check: goType[corev1.Namespace]},
	{Name: "Node", Plural: "nodes", Short: []string{"no"}, Groups: []string{""}, Cluster: true, check: refuseNode},
	{Name: "ServiceAccount", Plural: "serviceaccounts", Short: []string{"sa"}, Groups: []string{""}, check: goType[corev1.ServiceAccount]},
	{Name: "ConfigMap", Plural: "configmaps", Short: []string{"cm"}, Groups: []string{""}, check: goType[corev1.ConfigMap]},
	{Name: "Service", Plural: "services", Short: []string{"svc"}, Groups: []string{""}, check: checkService},
	{Name: "Deployment", Plural: "deployments", Short: []string{"deploy"}, Groups: []string{"apps"}, check: checkDeployment},
	{Name: "Pod", Plural: "pods", Short: []string{"po"}, Groups: []string{""}, check: checkPod},
	{Name: "ServiceEntry", Plural: "serviceentries", Short: []string{"se"}, Groups: istioNet, check: protoSpec(&networking.ServiceEntry{})},
	{Name: "WorkloadEntry", Plural: "workloadentries", Short: []string{"we"}, Groups: istioNet, check: protoSpec(&networking.WorkloadEntry{})},
	{Name: "PeerAuthentication", Plural: "peerauthentications", Short: []string{"pa"}, Groups: istioSec, check: protoSpec(&security.PeerAuthentication{})},
	{Name: "AuthorizationPolicy", Plural: "authorizationpolicies", Short: []string{"ap", "authz"}, Groups: istioSec, check: protoSpec(&security.AuthorizationPolicy{})},
	{Name: "RequestAuthentication", Plural: "requestauthentications", Short: []string{"ra"}, Groups: istioSec, check: protoSpec(&security.RequestAuthentication{})},
	{Name: "VirtualService", Plural: "virtualservices", Short: []string{"vs"}, Groups: istioNet, check: protoSpec(&networking.VirtualService{})},
	{Name: "DestinationRule", Plural: "destinationrules", Short: []string{"dr"}, Groups: istioNet, check: protoSpec(&networking.DestinationRule{})},
	{Name: "Telemetry", Plural: "telemetries", Short: []string{"telemetry"}, Groups: []string{"telemetry.istio.io"}, check: protoSpec(&telemetry.Telemetry{})},
	{Name: "EnvoyFilter", Plural: "envoyfilters", Groups: istioNet, check: protoSpec(&networking.EnvoyFilter{})},
	{Name: "GatewayClass", Plural: "gatewayclasses", Short: []string{"gc"}, Groups: gatewayAPI, Cluster: true},
	{Name: "Gateway", Plural: "gateways", Short: []string{"gtw"}, Groups: gatewayAPI},
	{Name: "HTTPRoute", Plural: "httproutes", Groups: gatewayAPI},
	{Name: "GRPCRoute", Plural: "grpcroutes", Groups: gatewayAPI},
	{Name: "TCPRoute", Plural: "tcproutes", Groups: gatewayAPI},
	{Name: "TLSRoute", Plural: "tlsroutes", Groups: gatewayAPI},
	{Name: "ReferenceGrant", Plural: "referencegrants", Short: []string{"refgrant"}, Groups: gatewayAPI},
	{Name: "BackendTLSPolicy", Plural: "backendtlspolicies", Groups: gatewayAPI},
}

func protoSpec(m protoreflect.ProtoMessage) func(c *checker, n *yaml.Node) {
	desc := m.ProtoReflect().Descriptor()
	return func(c *checker, n *yaml.Node) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			switch k.Value {
			case "apiVersion", "kind", "metadata", "status":
			case "spec":
				c.message("spec", v, desc)
			default:
				c.add(k, k.Value, "unknown field", "apiVersion, kind, metadata, spec")
			}
		}
	}
}

func refuseNode(c *checker, n *yaml.Node) {
	c.add(n, "kind", "the lab makes its own Node objects", "the number of nodes with --nodes")
}
