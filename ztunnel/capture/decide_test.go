package capture

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

func TestDecide(t *testing.T) {
	ambient := map[string]string{podsock.LabelMode: podsock.LabelIn}
	none := map[string]string{podsock.LabelMode: podsock.LabelOut}
	for _, c := range []struct {
		name   string
		pod    podsock.Pod
		policy Policy
		enrol  bool
		reason string
	}{
		{"a pod without labels stays out", podsock.Pod{}, Policy{}, false, "no label"},
		{"the namespace's label enrols", podsock.Pod{NamespaceLabels: ambient}, Policy{}, true, ""},
		{"the pod's label enrols", podsock.Pod{Labels: ambient}, Policy{}, true, ""},
		{"the pod's none beats the namespace", podsock.Pod{Labels: none, NamespaceLabels: ambient}, Policy{}, false, "none"},
		{"the pod's ambient beats the namespace's none", podsock.Pod{Labels: ambient, NamespaceLabels: none}, Policy{}, true, ""},
		{"another value of the pod's label does not beat the namespace", podsock.Pod{Labels: map[string]string{podsock.LabelMode: "x"}, NamespaceLabels: ambient}, Policy{}, true, ""},
		{"host network never", podsock.Pod{Labels: ambient, HostNetwork: true}, Policy{}, false, "host"},
		{"sidecar never", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationSidecar: "{}"}}, Policy{}, false, "sidecar"},
		{"kube-system is excluded", podsock.Pod{Labels: ambient, Namespace: "kube-system"}, Policy{}, false, "excluded"},
		{"kube-system is not, if the list is empty", podsock.Pod{Labels: ambient, Namespace: "kube-system"}, Policy{ExcludeNamespaces: []string{}}, true, ""},
		{"a list is obeyed", podsock.Pod{Labels: ambient, Namespace: "x"}, Policy{ExcludeNamespaces: []string{"y", "x"}}, false, "excluded"},
		{"ztunnel itself never", podsock.Pod{Labels: map[string]string{podsock.LabelMode: podsock.LabelIn, labelApp: ztunnelApp}, Namespace: "istio-system"}, Policy{}, false, "ztunnel"},
		{"app=ztunnel elsewhere is a pod like others", podsock.Pod{Labels: map[string]string{podsock.LabelMode: podsock.LabelIn, labelApp: ztunnelApp}}, Policy{}, true, ""},
		{"bypass is named and the pod captured whole", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationBypass: "true"}}, Policy{}, true, "not supported"},
		{"an annotation for DNS that says nothing is named", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationDNS: "yes"}}, Policy{}, true, "neither"},
		{"reroute is named", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationReroute: "br0"}}, Policy{}, true, "not supported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.policy.Decide(&c.pod)
			if got.Enrol != c.enrol || !strings.Contains(got.Reason, c.reason) || (c.reason == "") != (got.Reason == "") {
				t.Errorf("got %+v, want %v because %q", got, c.enrol, c.reason)
			}
		})
	}
}

func TestThePodsAnnotationDecidesAboutDNSBeforeTheNodesSetting(t *testing.T) {
	for _, c := range []struct {
		annotation string
		policy     Policy
		want       bool
	}{
		{"", Policy{}, true},
		{"false", Policy{}, false},
		{"true", Policy{}, true},
		{"yes", Policy{}, true},
		{"", Policy{NoDNS: true}, false},
		{"true", Policy{NoDNS: true}, true},
		{"yes", Policy{NoDNS: true}, false},
	} {
		p := podsock.Pod{Labels: map[string]string{podsock.LabelMode: podsock.LabelIn}}
		if c.annotation != "" {
			p.Annotations = map[string]string{annotationDNS: c.annotation}
		}
		if got := c.policy.Decide(&p).DNS; got != c.want {
			t.Errorf("annotation %q, policy %+v: got %v", c.annotation, c.policy, got)
		}
	}
}
