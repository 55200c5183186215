package diagnose

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Subject is an object of a user, or several, with the pods and Services that it stands for.
type Subject struct {
	// Namespace is that of the object, "" when there may be several.
	Namespace string
	Pods      []*corev1.Pod
	Services  []*corev1.Service

	waypoints map[kube.Name]bool
	selected  bool // by labels: of several namespaces perhaps
}

// Select finds the pods that have the labels of a selector, their Services, and the Services that have such labels; of all
// namespaces when namespace is "". There may be none.
func Select(w *World, namespace string, selector labels.Selector) *Subject {
	s := &Subject{Namespace: namespace, waypoints: map[kube.Name]bool{}, selected: true}
	chosen := func(o kube.Object) bool {
		return (namespace == "" || o.GetNamespace() == namespace) && selector.Matches(labels.Set(o.GetLabels()))
	}
	for _, p := range sorted[*corev1.Pod](w.Objects) {
		if chosen(p) {
			s.Pods = append(s.Pods, p)
		}
	}
	for _, svc := range sorted[*corev1.Service](w.Objects) {
		if chosen(svc) {
			s.Services = append(s.Services, svc)
		}
	}
	s.around(w)
	return s
}

// Find finds a pod, a Deployment, a Service or a namespace. An error names those that there are.
func Find(w *World, kind kube.Kind, namespace, name string) (*Subject, error) {
	if namespace == "" {
		namespace = "default"
	}
	s := &Subject{Namespace: namespace, waypoints: map[kube.Name]bool{}}
	var want func(*corev1.Pod) bool
	switch kind {
	case kube.KindPod:
		want = func(p *corev1.Pod) bool { return p.Name == name }
	case kube.KindDeployment:
		d := kube.Get[*appsv1.Deployment](w.Objects, namespace, name)
		if d == nil || d.Spec.Selector == nil {
			return nil, missing[*appsv1.Deployment](w, kind, namespace, name)
		}
		want = func(p *corev1.Pod) bool { return selects(d.Spec.Selector.MatchLabels, p.Labels) }
	case kube.KindService:
		svc := kube.Get[*corev1.Service](w.Objects, namespace, name)
		if svc == nil {
			return nil, missing[*corev1.Service](w, kind, namespace, name)
		}
		s.Services = append(s.Services, svc)
		want = func(p *corev1.Pod) bool { return selects(svc.Spec.Selector, p.Labels) }
	case kube.KindNamespace:
		s.Namespace = name
		want = func(*corev1.Pod) bool { return true }
	default:
		return nil, fmt.Errorf("%s is no object that traffic belongs to", kind)
	}
	for _, p := range sorted[*corev1.Pod](w.Objects) {
		if p.Namespace == s.Namespace && want(p) {
			s.Pods = append(s.Pods, p)
		}
	}
	if kind == kube.KindPod && len(s.Pods) == 0 {
		return nil, missing[*corev1.Pod](w, kind, namespace, name)
	}
	if kind == kube.KindService {
		s.findWaypoints(w)
		return s, nil
	}
	s.around(w)
	return s, nil
}

// around finds the Services of the pods, and the waypoints of all.
func (s *Subject) around(w *World) {
	for _, svc := range sorted[*corev1.Service](w.Objects) {
		of := func(p *corev1.Pod) bool { return p.Namespace == svc.Namespace && selects(svc.Spec.Selector, p.Labels) }
		if !slices.Contains(s.Services, svc) && slices.ContainsFunc(s.Pods, of) {
			s.Services = append(s.Services, svc)
		}
	}
	s.findWaypoints(w)
}

func (s *Subject) findWaypoints(w *World) {
	ask := func(o kube.Object) {
		from := o.GetLabels()
		if _, own := from[labelUseWaypoint]; !own {
			ns := kube.Get[*corev1.Namespace](w.Objects, "", o.GetNamespace())
			if ns == nil {
				return
			}
			from = ns.Labels
		}
		if name, namespace := waypointOf(from, o.GetNamespace()); name != "" {
			s.waypoints[kube.Name{Namespace: namespace, Name: name}] = true
		}
	}
	for _, p := range s.Pods {
		ask(p)
	}
	for _, svc := range s.Services {
		ask(svc)
	}
}

// missing says that an object does not exist, and which do.
func missing[T kube.Object](w *World, kind kube.Kind, namespace, name string) error {
	var names []string
	for _, o := range sorted[T](w.Objects) {
		if o.GetNamespace() == namespace {
			names = append(names, o.GetName())
		}
	}
	if len(names) > 8 {
		names = append(names[:8], "...")
	}
	return fmt.Errorf("no %s %q in namespace %q; there are: %s", strings.ToLower(string(kind)), name, namespace, strings.Join(names, ", "))
}

// Served says whether a program carries traffic of the subject: the ztunnel of a pod's node, or a waypoint of it.
func (s *Subject) Served(p *Proxy) bool {
	switch p.Role {
	case Ztunnel:
		return slices.ContainsFunc(s.Pods, func(x *corev1.Pod) bool { return x.Spec.NodeName == p.Node })
	case Waypoint:
		return s.waypoints[kube.Name{Namespace: p.Namespace, Name: p.Gateway}]
	}
	return false
}

// Programs are the programs of the mesh that its pods are, nil when not all of them are programs. Pods that end are neither.
func (s *Subject) Programs(w *World) (out []*Proxy) {
	for _, pod := range s.Pods {
		if pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		i := slices.IndexFunc(w.Proxies, func(p Proxy) bool { return p.Namespace == pod.Namespace && p.Name == pod.Name })
		if i < 0 {
			return nil
		}
		out = append(out, &w.Proxies[i])
	}
	return out
}

// in says whether something of the subject is in a namespace.
func (s *Subject) in(namespace string) bool {
	if !s.selected {
		return namespace == s.Namespace
	}
	return slices.ContainsFunc(s.Pods, func(p *corev1.Pod) bool { return p.Namespace == namespace })
}

// pod says whether a pod is one of the subject's; of no subject every one is.
func (s *Subject) pod(namespace, name string) bool {
	return s == nil || slices.ContainsFunc(s.Pods, func(p *corev1.Pod) bool { return p.Namespace == namespace && p.Name == name })
}

// service is pod for Services, by namespace and name.
func (s *Subject) service(namespace, name string) bool {
	return s == nil || slices.ContainsFunc(s.Services, func(x *corev1.Service) bool { return x.Namespace == namespace && x.Name == name })
}

// identity is pod for SPIFFE identities.
func (s *Subject) identity(id string) bool {
	return s == nil || slices.ContainsFunc(s.Pods, func(p *corev1.Pod) bool {
		account := p.Spec.ServiceAccountName
		if account == "" {
			account = "default"
		}
		return strings.HasSuffix(id, "/ns/"+p.Namespace+"/sa/"+account)
	})
}

// mentions says whether a name of a route or a cluster has a Service of the subject in it.
func (s *Subject) mentions(text string) bool {
	return s == nil || slices.ContainsFunc(s.Services, func(x *corev1.Service) bool {
		return strings.Contains(text, x.Name+"."+x.Namespace+".svc")
	})
}
