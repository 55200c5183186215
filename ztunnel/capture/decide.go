package capture

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// Labels and annotations of Istio's ambient mode.
const (
	annotationSidecar = "sidecar.istio.io/status"
	annotationBypass  = "ambient.istio.io/bypass-inbound-capture"
	annotationReroute = "istio.io/reroute-virtual-interfaces"
	annotationDNS     = "ambient.istio.io/dns-capture"
	defaultExcluded   = "kube-system"
	defaultSystem     = "istio-system"
	labelApp          = "app"
	ztunnelApp        = "ztunnel"
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

// Decision is whether a pod is in the mesh.
type Decision struct {
	Enrol bool
	// Reason says why not.
	Reason string
	// Problem says what of its labels and annotations is wrong, and what comes of that.
	Problem string
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
		return Decision{Reason: "no label " + podsock.LabelMode + "=" + podsock.LabelIn, Problem: problem(pod, false)}
	}
	return Decision{Enrol: true, Problem: problem(pod, true), DNS: p.wantsDNS(pod)}
}

// wantsDNS goes by the pod's annotation, and by the node's setting where there is none, or one that says neither.
func (p Policy) wantsDNS(pod *podsock.Pod) bool {
	switch pod.Annotations[annotationDNS] {
	case "true":
		return true
	case "false":
		return false
	}
	return !p.NoDNS
}

// problem says what of a pod's labels and annotations is wrong.
func problem(pod *podsock.Pod, enrolled bool) string {
	var out []string
	for of, labels := range map[string]map[string]string{"pod": pod.Labels, "namespace": pod.NamespaceLabels} {
		if v := labels[podsock.LabelMode]; v != "" && v != podsock.LabelIn && v != podsock.LabelOut {
			out = append(out, fmt.Sprintf("label %s=%q of the %s is neither %s nor %s and counts for nothing", podsock.LabelMode, v, of, podsock.LabelIn, podsock.LabelOut))
		}
	}
	slices.Sort(out)
	if enrolled {
		_, more := wishesOf(pod)
		out = append(out, more...)
	}
	return strings.Join(out, "; ")
}

// wishes are what a pod's annotations ask of its capture.
type wishes struct {
	bypassInbound bool
	reroute       []string // interfaces
}

// maxReroute is how many interfaces a pod may have rerouted.
const maxReroute = 8

// wishesOf reads the annotations. What makes no sense is named in problems and not obeyed: such a pod is captured whole, so
// that its traffic is under the mesh's policy at least as much as it wanted, never less.
func wishesOf(pod *podsock.Pod) (w wishes, problems []string) {
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	switch v, ok := pod.Annotations[annotationBypass]; {
	case v == "true":
		w.bypassInbound = true
	case ok && v != "false":
		add("annotation %s=%q is neither true nor false: inbound connections are captured", annotationBypass, v)
	}
	if v, ok := pod.Annotations[annotationDNS]; ok && v != "true" && v != "false" {
		add("annotation %s=%q is neither true nor false: the node's setting counts", annotationDNS, v)
	}
	for _, name := range strings.Split(pod.Annotations[annotationReroute], ",") {
		switch name = strings.TrimSpace(name); {
		case name == "" || slices.Contains(w.reroute, name):
		case !interfaceName.MatchString(name) || name == "lo" || name == "." || name == "..":
			add("annotation %s: %q is not the name of an interface to machines inside the pod", annotationReroute, name)
		case len(w.reroute) == maxReroute:
			add("annotation %s: %q is left out, no more than %d interfaces are rerouted", annotationReroute, name, maxReroute)
		default:
			w.reroute = append(w.reroute, name)
		}
	}
	return w, problems
}

// interfaceName is what Linux takes for one.
var interfaceName = regexp.MustCompile(`^[^/\s:]{1,15}$`)
