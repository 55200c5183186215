package diagnose

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// meshPorts are those that the proxy has in each pod.
var meshPorts = []int32{15001, 15006, 15008}

const portHBONE = 15008

// enrolment is whether pods can be in the mesh that ask for it.
func (a *analysis) enrolment() {
	for _, ns := range sorted[*corev1.Namespace](a.objects) {
		a.modeLabel("Namespace "+ns.Name, ns.Labels)
		if ns.Labels[labelMode] == modeAmbient && (ns.Labels["istio-injection"] == "enabled" || ns.Labels["istio.io/rev"] != "" && ns.Labels["istio-injection"] != "disabled") {
			a.add("AMB0305", "Namespace "+ns.Name, "it has both %s=%s and a label for the injection of sidecars", labelMode, modeAmbient)
		}
	}
	for _, p := range a.sortedPods() {
		a.modeLabel(kube.KeyOf(p).String(), p.Labels)
		if a.mode(p) == modeAmbient && !a.outside(p) {
			a.enrolled(p, kube.KeyOf(p).String())
		}
	}
	for i := range a.NetworkPolicies {
		a.networkPolicy(&a.NetworkPolicies[i])
	}
	a.captured()
}

func (a *analysis) modeLabel(object string, labels map[string]string) {
	if v, ok := labels[labelMode]; ok && v != modeAmbient && v != modeNone {
		a.add("AMB0301", object, "label %s has the value %q (accepted: %s, %s)", labelMode, v, modeAmbient, modeNone)
	}
}

// enrolled looks at one pod that asks for the mesh.
func (a *analysis) enrolled(p *corev1.Pod, object string) {
	if p.Spec.HostNetwork {
		a.add("AMB0304", object, "it asks for the mesh and uses the host's network")
		return
	}
	if hasSidecar(p) {
		a.add("AMB0302", object, "it has a sidecar")
	}
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if slices.Contains(meshPorts, port.ContainerPort) {
				a.add("AMB0307", object, "container %s has port %d, which is the mesh's", c.Name, port.ContainerPort)
			}
		}
	}
}

func hasSidecar(p *corev1.Pod) bool {
	_, ok := p.Annotations[sidecarStatus]
	return ok || slices.ContainsFunc(slices.Concat(p.Spec.Containers, p.Spec.InitContainers), func(c corev1.Container) bool { return c.Name == "istio-proxy" })
}

// captured finds running pods that ask for the mesh and are not in it.
func (a *analysis) captured() {
	if a.Manifests {
		return
	}
	for _, p := range a.sortedPods() {
		if p.Status.Phase != corev1.PodRunning || p.Spec.HostNetwork || hasSidecar(p) || a.outside(p) || a.mode(p) != modeAmbient {
			continue
		}
		switch v := p.Annotations[redirection]; v {
		case "enabled":
		case "pending":
			a.add("AMB0303", kube.KeyOf(p).String(), "capture of node %s has not managed it yet", p.Spec.NodeName)
		default:
			a.add("AMB0303", kube.KeyOf(p).String(), "it runs on node %s without annotation %s", p.Spec.NodeName, redirection)
		}
	}
}

// networkPolicy looks whether one keeps the tunnels' port from pods of the mesh, or them from it.
func (a *analysis) networkPolicy(n *networkv1.NetworkPolicy) {
	for _, way := range []struct {
		kind       networkv1.PolicyType
		code, text string
	}{
		{networkv1.PolicyTypeIngress, "AMB0306", "it selects pods of the mesh (%s) and lets nobody in to TCP port %d"},
		{networkv1.PolicyTypeEgress, "AMB0308", "it selects pods of the mesh (%s) and lets them out to nobody's TCP port %d"},
	} {
		for _, p := range a.pods[n.Namespace] {
			if a.mode(p) == modeAmbient && !p.Spec.HostNetwork && selected(n, p, way.kind) && !a.lets(p, way.kind) {
				a.add(way.code, "NetworkPolicy "+n.Namespace+"/"+n.Name, way.text, p.Name, portHBONE)
				break
			}
		}
	}
}

// lets says whether the tunnels' port is open to somebody for a pod that policies select: what one lets through, none of the
// others keeps out.
func (a *analysis) lets(p *corev1.Pod, kind networkv1.PolicyType) bool {
	return slices.ContainsFunc(a.NetworkPolicies, func(n networkv1.NetworkPolicy) bool {
		if !selected(&n, p, kind) {
			return false
		}
		if kind == networkv1.PolicyTypeIngress {
			return slices.ContainsFunc(n.Spec.Ingress, func(r networkv1.NetworkPolicyIngressRule) bool { return opens(r.Ports) })
		}
		return slices.ContainsFunc(n.Spec.Egress, func(r networkv1.NetworkPolicyEgressRule) bool { return opens(r.Ports) })
	})
}

// selected says whether a policy is about what comes in to a pod, or what goes out.
func selected(n *networkv1.NetworkPolicy, p *corev1.Pod, kind networkv1.PolicyType) bool {
	about := slices.Contains(n.Spec.PolicyTypes, kind)
	if len(n.Spec.PolicyTypes) == 0 { // the API's default
		about = kind == networkv1.PolicyTypeIngress || len(n.Spec.Egress) > 0
	}
	selector, err := metav1.LabelSelectorAsSelector(&n.Spec.PodSelector)
	return err == nil && about && n.Namespace == p.Namespace && selector.Matches(labels.Set(p.Labels))
}

// opens says whether ports of a rule, none of them being all, have the tunnels' among them.
func opens(ports []networkv1.NetworkPolicyPort) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkv1.NetworkPolicyPort) bool {
		switch {
		case p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP:
			return false
		case p.Port == nil, p.Port.IntVal == portHBONE:
			return true
		}
		return p.EndPort != nil && p.Port.IntVal <= portHBONE && *p.EndPort >= portHBONE
	})
}

// Enrol says what would be wrong when the namespace, or one pod of it if named, were in the mesh: what Analyze finds about
// it then and does not find now. With off it is taken out.
func Enrol(w *World, namespace, pod string, off bool) []Finding {
	mode := modeAmbient
	if off {
		mode = modeNone
	}
	after := *w
	after.Manifests = false
	var put []kube.Object
	if pod == "" {
		ns := kube.Get[*corev1.Namespace](w.Objects, "", namespace)
		if ns == nil {
			return nil
		}
		put = append(put, withLabel(ns.DeepCopy(), mode))
	}
	for _, p := range sorted[*corev1.Pod](w.Objects) {
		if p.Namespace != namespace || pod != "" && p.Name != pod || p.Spec.HostNetwork || hasSidecar(p) {
			continue
		}
		p = p.DeepCopy()
		if pod != "" {
			withLabel(p, mode)
		}
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[redirection] = "enabled"
		if off {
			delete(p.Annotations, redirection)
		}
		put = append(put, p)
	}
	after.Objects = w.Objects.With(put, nil)
	before := map[Finding]bool{}
	for _, f := range Analyze(w) {
		before[f] = true
	}
	return slices.DeleteFunc(Analyze(&after), func(f Finding) bool { return before[f] })
}

func withLabel[T kube.Object](o T, mode string) T {
	l := o.GetLabels()
	if l == nil {
		l = map[string]string{}
	}
	l[labelMode] = mode
	o.SetLabels(l)
	return o
}

// ports are the numbers and names of a pod's TCP ports.
func ports(p *corev1.Pod) (out []string) {
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for _, port := range c.Ports {
			out = append(out, fmt.Sprint(port.ContainerPort))
			if port.Name != "" {
				out = append(out, port.Name)
			}
		}
	}
	return out
}
