package capture

import (
	"slices"
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
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.policy.Decide(&c.pod)
			if got.Enrol != c.enrol || !strings.Contains(got.Reason, c.reason) || (c.reason == "") != (got.Reason == "") {
				t.Errorf("got %+v, want %v because %q", got, c.enrol, c.reason)
			}
		})
	}
}

func TestASettingThatMakesNoSenseIsNamedAndNotObeyed(t *testing.T) {
	ambient := map[string]string{podsock.LabelMode: podsock.LabelIn}
	for _, c := range []struct {
		name    string
		pod     podsock.Pod
		enrol   bool
		want    wishes
		problem string
	}{
		{"nothing said", podsock.Pod{Labels: ambient}, true, wishes{}, ""},
		{"bypass", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationBypass: "true"}}, true, wishes{bypassInbound: true}, ""},
		{"no bypass", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationBypass: "false"}}, true, wishes{}, ""},
		{"a wrong bypass", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationBypass: "yes"}}, true, wishes{}, `"yes" is neither true nor false: inbound connections are captured`},
		{"an empty bypass", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationBypass: ""}}, true, wishes{}, "neither"},
		{"an annotation for DNS that says nothing", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationDNS: "yes"}}, true, wishes{}, `"yes" is neither true nor false: the node's setting counts`},
		{"interfaces", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationReroute: "k6t-eth0, docker0,,docker0"}}, true, wishes{reroute: []string{"k6t-eth0", "docker0"}}, ""},
		{"a wrong interface among good ones", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationReroute: "br0,a/b,lo,sixteen-letters-"}}, true, wishes{reroute: []string{"br0"}}, `"a/b" is not the name`},
		{"too many interfaces", podsock.Pod{Labels: ambient, Annotations: map[string]string{annotationReroute: "a,b,c,d,e,f,g,h,i"}}, true, wishes{reroute: []string{"a", "b", "c", "d", "e", "f", "g", "h"}}, `"i" is left out`},
		{"a wrong label of the pod", podsock.Pod{Labels: map[string]string{podsock.LabelMode: "ambeint"}}, false, wishes{}, `"ambeint" of the pod is neither ambient nor none`},
		{"a wrong label of the namespace", podsock.Pod{NamespaceLabels: map[string]string{podsock.LabelMode: "true"}}, false, wishes{}, `"true" of the namespace is neither`},
		{"a wrong label that counts for nothing", podsock.Pod{Labels: map[string]string{podsock.LabelMode: "x"}, NamespaceLabels: ambient}, true, wishes{}, `counts for nothing`},
		{"annotations of a pod outside", podsock.Pod{Annotations: map[string]string{annotationBypass: "x"}}, false, wishes{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Policy{}.Decide(&c.pod)
			if d.Enrol != c.enrol || !strings.Contains(d.Problem, c.problem) || (c.problem == "") != (d.Problem == "") {
				t.Errorf("got %+v, want %v with problem %q", d, c.enrol, c.problem)
			}
			if w, _ := wishesOf(&c.pod); d.Enrol && (w.bypassInbound != c.want.bypassInbound || !slices.Equal(w.reroute, c.want.reroute)) {
				t.Errorf("got wishes %+v, want %+v", w, c.want)
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
