package capture

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// Labels and annotations of Istio's ambient mode.
const (
	annotationSidecar  = "sidecar.istio.io/status"
	annotationBypass   = "ambient.istio.io/bypass-inbound-capture"
	annotationReroute  = "istio.io/reroute-virtual-interfaces"
	annotationDNS      = "ambient.istio.io/dns-capture"
	defaultExcluded    = "kube-system"
	defaultSystem      = "istio-system"
	labelApp           = "app"
	ztunnelApp         = "ztunnel"
	annotationTrueText = "true"
)

// Policy says which pods are never captured, whatever their labels.
type Policy struct {
	// ExcludeNamespaces are never captured. nil means kube-system.
	ExcludeNamespaces []string
	// NoDNS leaves the DNS queries of pods alone whose annotation does not ask for their capture; without it those are
	// left alone whose annotation asks for that.
	NoDNS bool
	// SystemNamespace is where pods with the label app=ztunnel are proxies of the mesh themselves. "" means istio-system.
	SystemNamespace string
}

// Decision is whether a pod is in the mesh, and why not, or what of its wishes is not met.
type Decision struct {
	Enrol  bool
	Reason string
	// DNS is whether the pod's DNS queries are captured as well.
	DNS bool
}

// Decide applies Istio's rules: host network and sidecars never, then excluded namespaces and our own pods, then the
// labels of the pod and of its namespace.
func (p Policy) Decide(pod *podsock.Pod) Decision {
	if _, ok := pod.Annotations[annotationSidecar]; ok {
		return Decision{Reason: "pod has a sidecar"}
	}
	if pod.HostNetwork {
		return Decision{Reason: "pod uses the host's network"}
	}
	excluded := p.ExcludeNamespaces
	if excluded == nil {
		excluded = []string{defaultExcluded}
	}
	for _, ns := range excluded {
		if ns == pod.Namespace {
			return Decision{Reason: "namespace " + ns + " is excluded"}
		}
	}
	system := p.SystemNamespace
	if system == "" {
		system = defaultSystem
	}
	if pod.Namespace == system && pod.Labels[labelApp] == ztunnelApp {
		return Decision{Reason: "pod is a ztunnel"}
	}
	switch {
	case pod.WantsMesh():
	case pod.Labels[podsock.LabelMode] == podsock.LabelOut:
		return Decision{Reason: "label " + podsock.LabelMode + "=" + podsock.LabelOut}
	default:
		return Decision{Reason: "no label " + podsock.LabelMode + "=" + podsock.LabelIn}
	}
	return Decision{Enrol: true, Reason: unsupported(pod), DNS: p.wantsDNS(pod)}
}

// wantsDNS goes by the pod's annotation, and by the node's setting where there is none, or one that says neither.
func (p Policy) wantsDNS(pod *podsock.Pod) bool {
	switch pod.Annotations[annotationDNS] {
	case annotationTrueText:
		return true
	case "false":
		return false
	}
	return !p.NoDNS
}

// unsupported names the annotations that ask for less capture than there is. Such a pod is captured whole: its traffic
// is under the mesh's policy at least as much as it wanted, never less.
func unsupported(pod *podsock.Pod) string {
	var s []string
	if pod.Annotations[annotationBypass] == annotationTrueText {
		s = append(s, annotationBypass+" is not supported: inbound traffic is captured too")
	}
	if pod.Annotations[annotationReroute] != "" {
		s = append(s, annotationReroute+" is not supported: traffic that enters by other interfaces of the pod is not captured as outbound")
	}
	if v, ok := pod.Annotations[annotationDNS]; ok && v != annotationTrueText && v != "false" {
		s = append(s, fmt.Sprintf("%s is %q, neither true nor false: the node's setting counts", annotationDNS, v))
	}
	return strings.Join(s, "; ")
}
