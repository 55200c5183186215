package translate

import (
	"fmt"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// world draws objects from a small world, so that edits meet.
type world struct{ *rapid.T }

func (w world) one(label string, values ...string) string {
	return rapid.SampledFrom(values).Draw(w.T, label)
}

func (w world) chance(label string) bool { return rapid.IntRange(0, 2).Draw(w.T, label) == 0 }

func (w world) namespace() string { return w.one("namespace", "a", "b", "istio-system") }

func (w world) labels() map[string]string {
	m := map[string]string{}
	for _, k := range []string{"app", "version"} {
		if v := w.one(k, "", "x", "y"); v != "" {
			m[k] = v
		}
	}
	return m
}

// meta draws names, labels and, now and then, waypoint labels.
func (w world) meta(namespace, prefix string, n int) metav1.ObjectMeta {
	o := metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s%d", prefix, rapid.IntRange(0, n-1).Draw(w.T, "name")), Labels: w.labels()}
	if w.chance("bound") {
		o.Labels[labelUseWaypoint] = w.one("waypoint", "w0", "w1", "none")
		if w.chance("elsewhere") {
			o.Labels[labelUseWaypointNS] = w.one("waypoint namespace", "a", "b")
		}
	}
	if w.chance("canary") {
		o.Labels[labelCanary] = w.one("canary waypoint", "w0", "w1")
		o.Annotations = map[string]string{annotationCanaryWeight: w.one("weight", "0", "20", "bad")}
	}
	return o
}

func (w world) object() kube.Object {
	ns := w.namespace()
	switch w.one("kind", "Pod", "Pod", "Pod", "Service", "Service", "ServiceEntry", "WorkloadEntry", "EndpointSlice", "Namespace", "Node",
		"ReplicaSet", "Gateway", "GatewayClass", "PeerAuthentication", "AuthorizationPolicy", "AuthorizationPolicy") {
	case "Pod":
		return w.pod(ns)
	case "Service":
		return w.service(ns)
	case "ServiceEntry":
		return w.serviceEntry(ns)
	case "WorkloadEntry":
		return &networkingv1.WorkloadEntry{ObjectMeta: w.meta(ns, "w", 2), Spec: networking.WorkloadEntry{
			Address: w.one("address", "192.0.2.1", "vm.example.com"), Labels: w.labels(), Weight: 2,
		}}
	case "EndpointSlice":
		return w.slice(ns)
	case "Namespace":
		o := w.meta("", "", 1)
		o.Name = ns
		if w.chance("network") && w.chance("network again") {
			o.Labels["topology.istio.io/network"] = "net"
		}
		return &corev1.Namespace{ObjectMeta: o}
	case "Node":
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.one("node", "n0", "n1"), Labels: map[string]string{corev1.LabelTopologyZone: w.one("zone", "z0", "z1")}}}
	case "ReplicaSet":
		o := metav1.ObjectMeta{Namespace: ns, Name: "rs-1"}
		if w.chance("owned") {
			o.OwnerReferences = []metav1.OwnerReference{{Kind: "Deployment", Name: "dep", Controller: new(true)}}
		}
		return &appsv1.ReplicaSet{ObjectMeta: o}
	case "Gateway":
		return w.gateway(ns)
	case "GatewayClass":
		return &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "class", Labels: map[string]string{labelWaypointFor: w.one("for", "service", "workload", "all")}}}
	case "PeerAuthentication":
		return w.peerAuthentication(ns)
	default:
		return w.authorizationPolicy(ns)
	}
}

func (w world) pod(ns string) kube.Object {
	p := &corev1.Pod{ObjectMeta: w.meta(ns, "p", 4)}
	p.Spec.NodeName = w.one("node", "n0", "n1", "")
	if w.chance("owned") {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "rs-1", Controller: new(true)}}
	}
	if w.chance("instance") {
		p.Labels[kube.LabelGateway] = w.one("gateway", "w0", "w1")
	}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: w.one("port name", "web", "other"), ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}}
	p.Status.PodIPs = []corev1.PodIP{{IP: w.one("ip", "10.0.0.1", "10.0.0.2", "fd00::1")}}
	p.UID = "u"
	return p
}

func (w world) service(ns string) kube.Object {
	s := &corev1.Service{ObjectMeta: w.meta(ns, "s", 2)}
	s.Spec.Type = corev1.ServiceType(w.one("type", "ClusterIP", "ClusterIP", "ClusterIP", "ExternalName"))
	s.Spec.ClusterIPs = []string{w.one("cluster ip", "10.1.0.1", "None")}
	if !w.chance("no selector") {
		s.Spec.Selector = w.labels()
	}
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web")}, {Name: "tcp", Port: 90, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(90)}}
	s.Spec.PublishNotReadyAddresses = w.chance("not ready")
	return s
}

func (w world) serviceEntry(ns string) kube.Object {
	e := &networkingv1.ServiceEntry{ObjectMeta: w.meta(ns, "e", 3)}
	e.CreationTimestamp = metav1.Unix(int64(rapid.IntRange(1, 2).Draw(w.T, "age")), 0)
	e.Spec.Hosts = []string{w.one("host", "h.example.com", "s0."+ns+".svc.cluster.local", "s0.a.svc.cluster.local", "*.example.com")}
	if w.chance("two hosts") {
		e.Spec.Hosts = append(e.Spec.Hosts, "second.example.com")
	}
	e.Spec.Resolution = networking.ServiceEntry_Resolution(rapid.IntRange(0, 4).Draw(w.T, "resolution"))
	e.Spec.Ports = []*networking.ServicePort{{Number: 80, Name: "web", Protocol: "HTTP"}}
	switch w.one("endpoints", "none", "inline", "selector") {
	case "inline":
		e.Spec.Endpoints = []*networking.WorkloadEntry{{Address: "198.51.100.1"}, {Address: "198.51.100.2", Ports: map[string]uint32{"web": 81}}}
	case "selector":
		e.Spec.WorkloadSelector = &networking.WorkloadSelector{Labels: w.labels()}
	}
	if w.chance("addresses") {
		e.Spec.Addresses = []string{"240.240.1.0/24"}
	}
	return e
}

func (w world) slice(ns string) kube.Object {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: w.one("slice", "sl0", "sl1")}, AddressType: discoveryv1.AddressTypeIPv4}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: w.one("service", "s0", "s1")}
	s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.9.0.1"}}, {
		Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: w.one("target", "p0", "p1")},
	}}
	s.Ports = []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}}
	return s
}

func (w world) gateway(ns string) kube.Object {
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: w.one("gateway", "w0", "w1"), Labels: map[string]string{}}}
	g.Spec.GatewayClassName = "class"
	from := gatewayv1.FromNamespaces(w.one("from", "All", "Same", "Selector"))
	g.Spec.Listeners = []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE", AllowedRoutes: &gatewayv1.AllowedRoutes{
		Namespaces: &gatewayv1.RouteNamespaces{From: &from, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}},
	}}}
	if w.chance("for") {
		g.Labels[labelWaypointFor] = w.one("waypoint for", "service", "workload", "all", "none")
	}
	if !w.chance("unready") {
		g.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Value: "10.2.0.1"}}
	}
	return g
}

func (w world) peerAuthentication(ns string) kube.Object {
	p := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: w.one("pa", "pa0", "pa1")}}
	mode := func() *security.PeerAuthentication_MutualTLS {
		return &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_Mode(rapid.IntRange(0, 3).Draw(w.T, "mode"))}
	}
	p.Spec.Mtls = mode()
	if w.chance("wide") {
		return p
	}
	p.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: w.labels()}
	p.Spec.PortLevelMtls = map[uint32]*security.PeerAuthentication_MutualTLS{80: mode(), 81: mode()}
	return p
}

func (w world) authorizationPolicy(ns string) kube.Object {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: w.one("ap", "ap0", "ap1")}}
	p.Spec.Action = security.AuthorizationPolicy_Action(rapid.IntRange(0, 2).Draw(w.T, "action"))
	if w.chance("selector") {
		p.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: w.labels()}
	}
	r := &security.Rule{From: []*security.Rule_From{{Source: &security.Source{Namespaces: []string{"a"}}}}}
	if w.chance("l7") {
		r.To = []*security.Rule_To{{Operation: &security.Operation{Methods: []string{"GET"}}}}
	}
	p.Spec.Rules = []*security.Rule{r}
	return p
}

// versions maps names to versions.
func versions(m map[string]*Resource) map[string]string {
	out := map[string]string{}
	for n, r := range m {
		out[n] = r.Version
	}
	return out
}

// apply follows a delta.
func apply(t *rapid.T, m map[string]string, d Delta) {
	for _, r := range d.Updated {
		if m[r.Name] == r.Version {
			t.Errorf("unchanged resource %q in delta", r.Name)
		}
		m[r.Name] = r.Version
	}
	for _, n := range d.Removed {
		if _, ok := m[n]; !ok {
			t.Errorf("removal of resource %q that was not there", n)
		}
		delete(m, n)
	}
}

func TestIncrementalEqualsFullRebuild(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := world{rt}
		tr := NewTranslator(Config{})
		objects := kube.NewObjects()
		addresses, policies := map[string]string{}, map[string]string{}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			var put []kube.Object
			var remove []kube.Key
			for range rapid.IntRange(1, 4).Draw(rt, "edits") {
				if keys := objects.Keys(); len(keys) > 0 && w.chance("remove") {
					remove = append(remove, rapid.SampledFrom(keys).Draw(rt, "removed"))
				} else {
					put = append(put, w.object())
				}
			}
			objects = objects.With(put, remove)
			if w.chance("skip") {
				continue // several sets between two updates
			}
			before := tr.Result()
			c := tr.Update(objects)
			got, want := tr.Result(), Build(Config{}, objects)
			if d := cmp.Diff(want, got, cmpopts.IgnoreFields(Resource{}, "Message", "Body"), cmpopts.EquateEmpty()); d != "" {
				for _, k := range objects.Keys() {
					rt.Logf("%s", k)
				}
				rt.Fatalf("incremental differs from full (-full +incremental):\n%s", d)
			}
			reported := !cmp.Equal(before.Problems, got.Problems, cmpopts.EquateEmpty()) || !cmp.Equal(before.Status, got.Status, cmpopts.EquateEmpty())
			if reported != c.Reported {
				rt.Errorf("reported %v, want %v", c.Reported, reported)
			}
			apply(rt, addresses, c.Addresses)
			apply(rt, policies, c.Authorizations)
			if !maps.Equal(addresses, versions(got.Addresses)) || !maps.Equal(policies, versions(got.Authorizations)) {
				rt.Fatal("deltas do not lead to the result")
			}
		}
	})
}

// A Gateway that has no address yet already says, by its class, whether pods of its namespace wait for it: that answer
// follows the class.
func TestPodFollowsTheClassOfAWaypointThatIsNotReady(t *testing.T) {
	class := func(name, takes string) kube.Object {
		return &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelWaypointFor: takes}}}
	}
	gateway := func(class gatewayv1.ObjectName) kube.Object {
		return &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "w"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: class}}
	}
	objects := kube.NewObjects().With([]kube.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{labelUseWaypoint: "w"}}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p", UID: "u"}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}}},
		class("one", forWorkload), class("two", forService), gateway("one"),
	}, nil)
	tr := NewTranslator(Config{})
	for _, step := range []struct {
		name  string
		put   kube.Object
		waits bool
	}{
		{"the class takes workloads", class("one", forWorkload), true},
		{"the class takes services", class("one", forService), false},
		{"the class takes all", class("one", forAll), true},
		{"another class", gateway("two"), false},
	} {
		objects = objects.With([]kube.Object{step.put}, nil)
		tr.Update(objects)
		w := tr.Result().Addresses["Kubernetes//Pod/a/p"].Message.(*workloadpb.Address).GetWorkload()
		if got := w.GetWaypoint() != nil; got != step.waits {
			t.Errorf("%s: the pod waits for the waypoint: %v, want %v", step.name, got, step.waits)
		}
	}
}

// selectorFor selects the pods of an app.
func selectorFor(app string) *typev1beta1.WorkloadSelector {
	return &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": app}}
}
