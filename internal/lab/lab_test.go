package lab

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// plan is a lab that is never started: enough to apply objects to.
func plan(t *testing.T) *Lab {
	t.Helper()
	l := &Lab{objects: map[key]*object{}, pods: map[key]*pod{}, kick: make(chan struct{}, 1), clusters: newAddresses("dual", serviceV4, serviceV6)}
	l.nodes = []*node{{name: "node-1"}, {name: "node-2"}}
	for _, n := range l.nodes {
		n.addrs = []netip.Addr{netip.MustParseAddr("172.30.0.11")}
		n.podNet = []netip.Prefix{podsV4}
	}
	l.baseObjects()
	return l
}

func applyYAML(t *testing.T, l *Lab, yaml string) ([]Result, error) {
	t.Helper()
	objs, err := manifest.Parse("f.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return l.Apply(objs)
}

func TestApplyTakesAllOrNothing(t *testing.T) {
	l := plan(t)
	_, err := applyYAML(t, l, `
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 1}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: b, namespace: nowhere}, spec: {ports: [{port: 1}]}}
`)
	want := `f.yaml:4: service/nowhere/b: metadata.namespace: namespace "nowhere" does not exist; accepted: default, istio-system`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if l.objects[key{Kind: "Service", Namespace: "default", Name: "a"}] != nil {
		t.Error("the good half of a bad apply was taken")
	}
}

func TestAPodFindsAllServicesInItsHostsFileFromTheStart(t *testing.T) {
	l := plan(t)
	pod := &pod{l: l, key: key{Kind: "Pod", Namespace: "default", Name: "client"}, addrs: []netip.Addr{netip.MustParseAddr("10.244.0.9")}}
	for _, name := range []string{"later", "earlier"} {
		if _, err := applyYAML(t, l, "{apiVersion: v1, kind: Service, metadata: {name: "+name+"}, spec: {clusterIP: None, selector: {app: a}, ports: [{port: 1}]}}"); err != nil {
			t.Fatal(err)
		}
		l.objects[key{Kind: "Service", Namespace: "default", Name: name}].vips = []netip.Addr{netip.MustParseAddr("10.96.0.9")}
	}
	l.objects[key{Kind: "Service", Namespace: "default", Name: "later"}].created = time.Now().Add(time.Minute)
	own := "127.0.0.1 localhost\n::1 localhost\n10.244.0.9 client\n"
	oldestFirst := "10.96.0.9 earlier.default.svc.cluster.local earlier.default.svc earlier.default earlier\n" +
		"10.96.0.9 later.default.svc.cluster.local later.default.svc later.default later\n"
	before := pod.hosts()
	if !strings.HasPrefix(before, own) || !strings.HasSuffix(before, oldestFirst) {
		t.Errorf("the hosts file of a pod that starts is\n%s\nwant\n%s...\n%s", before, own, oldestFirst)
	}
	pod.sandbox = &sandbox{hosts: "f"}
	l.pods[pod.key] = pod
	if after := l.hostFiles()["f"]; after != before {
		t.Errorf("it becomes\n%s\nthough nothing changed; it was\n%s", after, before)
	}
}

func TestApplySaysWhatChanged(t *testing.T) {
	l := plan(t)
	svc := "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {sessionAffinity: ClientIP, ports: [{port: 1}]}}"
	for _, want := range []string{"created", "unchanged"} {
		got, err := applyYAML(t, l, svc)
		if err != nil || got[0].Action != want || got[0].Warning == "" {
			t.Errorf("got %+v, %v, want %s with a warning", got, err, want)
		}
	}
	first := l.objects[key{Kind: "Service", Namespace: "default", Name: "a"}]
	got, err := applyYAML(t, l, strings.Replace(svc, "port: 1", "port: 2", 1))
	if err != nil || got[0].Action != "configured" {
		t.Errorf("got %+v, %v, want configured", got, err)
	}
	second := l.objects[key{Kind: "Service", Namespace: "default", Name: "a"}]
	if first.uid != second.uid || !slices.Equal(first.vips, second.vips) || len(first.vips) != 2 {
		t.Errorf("UID and addresses changed: %v %v, %v %v", first.uid, first.vips, second.uid, second.vips)
	}
}

func TestRefusalsNameWhatIsAccepted(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"node":     {"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: node-9, containers: [{name: c, image: ambit/echo}]}}", `spec.nodeName: no node "node-9"; accepted: node-1, node-2`},
		"selector": {"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeSelector: {disk: ssd}, containers: [{name: c, image: ambit/echo}]}}", "spec.nodeSelector: no node has these labels; accepted: kubernetes.io/hostname: node-1 or node-2"},
		"VIP":      {"{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 10.0.0.1, ports: [{port: 1}]}}", `spec.clusterIP: "10.0.0.1" is no free address of a service; accepted: None, or one in [10.96.0.0/16 fd00:10:96::/112]`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := applyYAML(t, plan(t), c.in); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestThePodsSpecCannotChange(t *testing.T) {
	l := plan(t)
	pod := "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: ambit/echo}]}}"
	if _, err := applyYAML(t, l, pod); err != nil {
		t.Fatal(err)
	}
	if _, err := applyYAML(t, l, strings.Replace(pod, "name: p", "name: p, labels: {a: b}", 1)); err != nil {
		t.Errorf("a label was refused: %v", err)
	}
	if _, err := applyYAML(t, l, strings.Replace(pod, "name: c", "name: d", 1)); err == nil || !strings.Contains(err.Error(), "cannot change") {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestDeletingANamespaceDeletesWhatIsInIt(t *testing.T) {
	l := plan(t)
	if _, err := applyYAML(t, l, "{apiVersion: v1, kind: Namespace, metadata: {name: n}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: n}, spec: {ports: [{port: 1}]}}"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Delete([]key{{Kind: "Namespace", Name: "n"}, {Kind: "Namespace", Name: "m"}}); err == nil || !strings.Contains(err.Error(), "namespace/m: no such object") {
		t.Errorf("got %v, want an error about m only", err)
	}
	if len(l.objects) != 3 || len(l.clusters.used) != 0 {
		t.Errorf("%d objects and addresses %v are left", len(l.objects), l.clusters.used)
	}
}

func TestVariablesAreExpandedAsKubernetesDoes(t *testing.T) {
	vars := map[string]string{"A": "1", "B_b": "2"}
	for in, want := range map[string]string{
		"$(A)": "1", "x$(A)$(B_b)y": "x12y", "$(C)": "$(C)", "$$(A)": "$(A)", "$A": "$A", "$(A": "$(A", "$$$$": "$$",
	} {
		if got := expandVars(in, vars); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestRollingUpdateLimitsAreKubernetes(t *testing.T) {
	pc := func(s string) *intstr.IntOrString { v := intstr.Parse(s); return &v }
	for _, c := range []struct {
		want           int
		surge, unavail *intstr.IntOrString
		s, u           int
	}{
		{4, nil, nil, 1, 1}, {3, nil, nil, 1, 0}, {1, nil, nil, 1, 0}, {10, nil, nil, 3, 2},
		{4, pc("2"), pc("0"), 2, 0}, {4, pc("0"), pc("0"), 0, 1}, {10, pc("50%"), pc("15%"), 5, 1},
	} {
		d := &appsv1.Deployment{}
		if c.surge != nil {
			d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: c.surge, MaxUnavailable: c.unavail}
		}
		if s, u := limits(d, c.want); s != c.s || u != c.u {
			t.Errorf("%d replicas, %v %v: got %d, %d, want %d, %d", c.want, c.surge, c.unavail, s, u, c.s, c.u)
		}
	}
	d := &appsv1.Deployment{}
	d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
	if s, u := limits(d, 3); s != 0 || u != 3 {
		t.Errorf("Recreate: got %d, %d", s, u)
	}
}

func TestAddressesAreUsedAgainLate(t *testing.T) {
	a := newAddresses("dual", netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64"))
	first, err := a.take()
	if err != nil || first[0].String() != "10.1.0.10" || first[1].String() != "fd00::a" {
		t.Fatalf("got %v, %v", first, err)
	}
	a.free(first)
	if second, _ := a.take(); second[0] == first[0] {
		t.Errorf("%v was handed out again at once", first[0])
	}
	for range 243 {
		if _, err := a.take(); err != nil {
			t.Fatal(err)
		}
	}
	if again, err := a.take(); err != nil || again[0] != first[0] {
		t.Errorf("got %v, %v, want the freed address", again, err)
	}
	if _, err := a.take(); err == nil {
		t.Error("an exhausted range hands out addresses")
	}
}

func TestEndpointsAreReadyPodsByNamedPort(t *testing.T) {
	l := plan(t)
	if _, err := applyYAML(t, l, "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {app: x}, ports: [{port: 80, targetPort: web}]}}"); err != nil {
		t.Fatal(err)
	}
	for i, app := range []string{"x", "x", "y"} {
		p := &pod{l: l, key: podKey("default", "p"+itoa(i)), node: l.nodes[0], labels: map[string]string{"app": app}, sandbox: &sandbox{},
			addrs: []netip.Addr{at(podsV4, i+1), at(podsV6, i+1)}}
		p.spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(8080 + i)}}}}
		p.containers = newContainers(p)
		p.containers[0].ready = i != 1
		l.pods[p.key] = p
	}
	got := l.vipPorts()
	if len(got) != 2 || len(got[0].Endpoints) != 1 || got[0].Endpoints[0].String() != "10.244.0.1:8080" || got[1].Endpoints[0].String() != "[fd00:10:244::1]:8080" {
		t.Errorf("got %v, want the one ready pod in both families", got)
	}
}

func TestLabNamesKeepLabsApart(t *testing.T) {
	for name, ok := range map[string]bool{"lab": true, "a1": true, "": false, "a-b": false, "A": false, "abcdefghijklm": false, "../x": false} {
		if err := ValidName(name); (err == nil) != ok {
			t.Errorf("%q: got %v, want ok=%t", name, err, ok)
		}
	}
	p := paths{"x"}
	if a, b := p.podNS("a-b", "c"), p.podNS("a", "b-c"); a == b {
		t.Errorf("two pods have the namespace %s", a)
	}
}

func TestTheTokenIsClaimsAndTheirMAC(t *testing.T) {
	if got, want := Token([]byte("key"), []byte(`{"a":1}`)), "eyJhIjoxfQ."; !strings.HasPrefix(got, want) || len(got) != len(want)+43 {
		t.Errorf("got %q, want %q and 43 letters", got, want)
	}
}
