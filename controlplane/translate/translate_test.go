package translate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

func TestDirectoryToResources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("app.yaml", `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: demo, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
status: {podIP: 10.0.0.1, phase: Running, conditions: [{type: Ready, status: "True"}]}
`)
	write("policy.yaml", `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	snapshots := make(chan kube.Snapshot)
	done := make(chan error)
	source := kube.NewDirectory(kube.DirectoryConfig{Path: dir})
	go func() {
		done <- source.Run(ctx, func(s kube.Snapshot) {
			select {
			case snapshots <- s:
			case <-ctx.Done():
			}
		})
	}()
	tr := NewTranslator(Config{})
	c := tr.Update((<-snapshots).Objects)
	if got := []int{len(c.Addresses.Updated), len(c.Authorizations.Updated)}; !slices.Equal(got, []int{2, 1}) {
		t.Errorf("got %v addresses and policies at first", got)
	}
	write("policy.yaml", `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: demo}
spec: {selector: {matchLabels: {app: web}}, rules: [{}]}
`)
	for {
		// A reading may fall between the truncation of the file and its content.
		c := tr.Update((<-snapshots).Objects)
		if len(tr.Result().Authorizations) == 0 {
			continue
		}
		if len(c.Addresses.Updated) != 1 || c.Addresses.Updated[0].Name != "Kubernetes//Pod/demo/web-1" {
			t.Errorf("got addresses %v", c.Addresses)
		}
		w := c.Addresses.Updated[0].Message.(*workloadpb.Address).GetWorkload()
		if !slices.Equal(w.AuthorizationPolicies, []string{"demo/p"}) {
			t.Errorf("got policies %v", w.AuthorizationPolicies)
		}
		break
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUnreadableAddressesFailClosed(t *testing.T) {
	rule := func() []*security.Rule {
		return []*security.Rule{{From: []*security.Rule_From{{Source: &security.Source{IpBlocks: []string{"10.0.0.0/8", "bad"}}}}}}
	}
	tr := NewTranslator(Config{})
	for action, want := range map[security.AuthorizationPolicy_Action]int{security.AuthorizationPolicy_ALLOW: 0, security.AuthorizationPolicy_DENY: 1} {
		o := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "a"}, Spec: security.AuthorizationPolicy{Action: action, Rules: rule()}}
		p := tr.convertPolicy(o)
		if len(p.sent.Rules) != want || p.condition.Status != "False" {
			t.Errorf("%s: got %d rules, want %d; condition %v", action, len(p.sent.Rules), want, p.condition)
		}
		if action == security.AuthorizationPolicy_DENY && len(p.failClosed.GetRules()) != 1 {
			t.Errorf("got no fail-closed policy: %v", p.failClosed)
		}
	}
}

func TestAutomaticAddressesStayWhenWrittenToStatus(t *testing.T) {
	entry := func(name, status string) kube.Object {
		t.Helper()
		objects, problems := kube.Decode(name, fmt.Appendf(nil, "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: %s}, spec: {hosts: [%s.com], resolution: DNS}, status: {%s}}", name, name, status))
		if len(problems) > 0 {
			t.Fatal(problems[0].Error())
		}
		return objects[0]
	}
	alone := Build(Config{}, kube.NewObjects(entry("b", "")))
	address := alone.Status[kube.Key{Kind: kube.KindServiceEntry, Name: kube.Name{Namespace: "default", Name: "b"}}].Addresses[0].Address
	// An older entry asks for the very address.
	r := Build(Config{}, kube.NewObjects(entry("b", "addresses: [{host: b.com, value: "+address+"}]"), entry("a", ""), entry("c", "")))
	if got := r.Addresses["default/b.com"].Aliases; !slices.Equal(got, []string{"/" + address}) {
		t.Errorf("got %v, want %s", got, address)
	}
	seen := map[string]string{}
	for name, r := range r.Addresses {
		for _, a := range r.Aliases {
			if other, ok := seen[a]; ok {
				t.Errorf("%s and %s share %s", name, other, a)
			}
			seen[a] = name
		}
	}
}

func FuzzBuild(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data[slices.Index(data, '\n'):])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, _ := kube.Decode("f.yaml", data)
		Build(Config{}, kube.NewObjects(objects...))
	})
}

// cluster makes 10,000 pods and 1,000 services in 20 namespaces, with policies of all kinds.
func cluster() []kube.Object {
	var out []kube.Object
	for n := range 20 {
		ns := fmt.Sprintf("ns%d", n)
		out = append(out, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
		for s := range 50 {
			app := fmt.Sprintf("app%d", s)
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: app}}
			svc.Spec.ClusterIPs = []string{fmt.Sprintf("10.1.%d.%d", n, s)}
			svc.Spec.Selector = map[string]string{"app": app}
			svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}}
			out = append(out, svc)
			for p := range 10 {
				out = append(out, benchPod(ns, app, n, s, p, true))
			}
			ap := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: app}}
			ap.Spec.Rules = []*security.Rule{{From: []*security.Rule_From{{Source: &security.Source{Principals: []string{"cluster.local/ns/a/sa/b"}}}}}}
			ap.Spec.Selector = selectorFor(app)
			out = append(out, ap)
		}
	}
	return out
}

func benchPod(ns, app string, n, s, p int, ready bool) kube.Object {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("%s-%d", app, p), Labels: map[string]string{"app": app, "tier": "x", "pod-template-hash": "abc"}}}
	pod.Annotations = map[string]string{annotationRedirection: "enabled"}
	pod.Spec.ServiceAccountName, pod.Spec.NodeName = app, fmt.Sprintf("node-%d", p)
	pod.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", 10+n, s, p)}}
	if ready {
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return pod
}

func BenchmarkBuild10000Pods(b *testing.B) {
	objects := kube.NewObjects(cluster()...)
	b.ReportAllocs()
	for b.Loop() {
		if r := Build(Config{}, objects); len(r.Addresses) != 11000 {
			b.Fatal(len(r.Addresses))
		}
	}
}

func BenchmarkOnePodOf10000(b *testing.B) {
	objects := kube.NewObjects(cluster()...)
	tr := NewTranslator(Config{})
	tr.Update(objects)
	ready := false
	b.ReportAllocs()
	for b.Loop() {
		objects = objects.With([]kube.Object{benchPod("ns7", "app7", 7, 7, 7, ready)}, nil)
		if c := tr.Update(objects); len(c.Addresses.Updated) != 1 {
			b.Fatal(c)
		}
		ready = !ready
	}
}

func BenchmarkOneServiceOf1000(b *testing.B) {
	objects := kube.NewObjects(cluster()...)
	tr := NewTranslator(Config{})
	tr.Update(objects)
	port := int32(1)
	b.ReportAllocs()
	for b.Loop() {
		svc := kube.Get[*corev1.Service](objects, "ns7", "app7").DeepCopy()
		svc.Spec.Ports[0].TargetPort.IntVal = port%65535 + 1
		port++
		objects = objects.With([]kube.Object{svc}, nil)
		if c := tr.Update(objects); len(c.Addresses.Updated) != 11 {
			b.Fatal(len(c.Addresses.Updated))
		}
	}
}
