package gateway

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Waypoint is what one Gateway becomes. Immutable.
type Waypoint struct {
	Gateway *gatewayv1.Gateway
	// Objects are those that are to be, in the order in which they are to be written; none for a Gateway that nothing is
	// made for.
	Objects []*unstructured.Unstructured
	// Refused says that the Gateway cannot be rendered: what was made before stays.
	Refused bool
}

// Plan is what the Gateways of a set of objects become. Immutable.
type Plan struct {
	// Waypoints are in order of namespace and name: those of the class, also those that nothing is made for.
	Waypoints []*Waypoint
	// Problems say why a Gateway does not get what it asks for.
	Problems []kube.Problem
	// Class says whether the set has the object of the class.
	Class bool
	// Gone counts how often something of a waypoint was found gone: the Service, or a pod. What there should be is looked
	// at again then.
	Gone map[kube.Name]int
}

// Planner renders the Gateways of a sequence of sets and keeps what did not change. For one goroutine.
type Planner struct {
	settings Settings
	objects  *kube.Objects
	plan     *Plan
	cache    map[kube.Name]rendered
}

type rendered struct {
	gateway  *gatewayv1.Gateway
	overlays []*corev1.ConfigMap
	waypoint *Waypoint
	problems []kube.Problem
}

// NewPlanner makes a planner. Without an image it plans nothing.
func NewPlanner(s Settings) *Planner {
	return &Planner{settings: s.WithDefaults(), plan: &Plan{}, cache: map[kube.Name]rendered{}}
}

// Update takes in the next set and returns its plan. A Gateway whose Waypoint is the same pointer as before is the same.
func (p *Planner) Update(objects *kube.Objects) *Plan {
	if p.settings.Image == "" {
		return p.plan
	}
	changed := objects.Diff(p.objects)
	gone := p.gone(objects, changed)
	relevant := slices.ContainsFunc(changed, func(k kube.Key) bool {
		switch k.Kind {
		case kube.KindGateway, kube.KindGatewayClass, kube.KindService, kube.KindConfigMap:
			return true
		}
		return false
	})
	p.objects = objects
	if !relevant {
		if len(gone) > 0 {
			next := *p.plan
			next.Gone = sum(next.Gone, gone)
			p.plan = &next
		}
		return p.plan
	}
	next := &Plan{Class: kube.Get[*gatewayv1.GatewayClass](objects, "", kube.WaypointClass) != nil, Gone: sum(p.plan.Gone, gone)}
	defaults := p.defaults(objects)
	cache := map[kube.Name]rendered{}
	for g := range kube.List[*gatewayv1.Gateway](objects) {
		if g.Spec.GatewayClassName != kube.WaypointClass && !made(g, objects) {
			continue
		}
		r := p.render(g, objects, defaults)
		cache[kube.KeyOf(g).Name] = r
		next.Problems = append(next.Problems, r.problems...)
		if problem, ok := occupied(g, objects); ok && len(r.waypoint.Objects) > 0 {
			next.Problems = append(next.Problems, problem)
			next.Waypoints = append(next.Waypoints, &Waypoint{Gateway: g, Refused: true})
			continue
		}
		next.Waypoints = append(next.Waypoints, r.waypoint)
	}
	slices.SortFunc(next.Waypoints, func(a, b *Waypoint) int { return kube.KeyOf(a.Gateway).Compare(kube.KeyOf(b.Gateway)) })
	kube.SortProblems(next.Problems)
	for name := range next.Gone {
		if _, there := cache[name]; !there {
			delete(next.Gone, name)
		}
	}
	p.cache, p.plan = cache, next
	return next
}

// render renders a Gateway, unless it is the one that was rendered before.
func (p *Planner) render(g *gatewayv1.Gateway, objects *kube.Objects, defaults []*corev1.ConfigMap) rendered {
	r := rendered{gateway: g, overlays: slices.Clone(defaults)}
	if !Managed(g) {
		r.waypoint = &Waypoint{Gateway: g}
		if old := p.cache[kube.KeyOf(g).Name]; old.gateway == g {
			return old
		}
		return r
	}
	own, problem := parameters(g, objects)
	if own != nil {
		r.overlays = append(r.overlays, own)
	}
	if old := p.cache[kube.KeyOf(g).Name]; problem == nil && old.gateway == g && slices.Equal(old.overlays, r.overlays) {
		return old
	}
	r.waypoint = &Waypoint{Gateway: g}
	if problem != nil {
		r.overlays, r.problems, r.waypoint.Refused = []*corev1.ConfigMap{nil}, []kube.Problem{*problem}, true
		return r
	}
	r.waypoint.Objects, r.problems = Render(g, p.settings, r.overlays...)
	r.waypoint.Refused = r.waypoint.Objects == nil
	return r
}

// parameters is the ConfigMap that a Gateway names.
func parameters(g *gatewayv1.Gateway, objects *kube.Objects) (*corev1.ConfigMap, *kube.Problem) {
	if g.Spec.Infrastructure == nil || g.Spec.Infrastructure.ParametersRef == nil {
		return nil, nil
	}
	ref := g.Spec.Infrastructure.ParametersRef
	refused := func(field, cause, accepted string) *kube.Problem {
		return &kube.Problem{Object: kube.KeyOf(g), Field: parametersField + field, Cause: cause, Accepted: accepted}
	}
	if ref.Group != "" || ref.Kind != gatewayv1.Kind(kube.KindConfigMap) {
		return nil, refused(".kind", fmt.Sprintf("%q is not served", strings.TrimPrefix(string(ref.Group)+"/"+string(ref.Kind), "/")), "ConfigMap")
	}
	m := kube.Get[*corev1.ConfigMap](objects, g.Namespace, ref.Name)
	if m == nil {
		return nil, refused(".name", fmt.Sprintf("ConfigMap %s/%s does not exist, or has none of the keys", g.Namespace, ref.Name), strings.Join(OverlayKeys, ", "))
	}
	return m, nil
}

// defaults are the ConfigMaps with what holds for the whole class, in order of name.
func (p *Planner) defaults(objects *kube.Objects) []*corev1.ConfigMap {
	var out []*corev1.ConfigMap
	for m := range kube.List[*corev1.ConfigMap](objects) {
		if m.Namespace == p.settings.RootNamespace && m.Labels[labelDefaults] == kube.WaypointClass {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *corev1.ConfigMap) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// made says whether a Service is there that was made for a Gateway when it was of the class.
func made(g *gatewayv1.Gateway, objects *kube.Objects) bool {
	s := kube.Get[*corev1.Service](objects, g.Namespace, g.Name)
	return s != nil && Owns(g, s)
}

// occupied says whether the Service's name is taken by one that is not this Gateway's.
func occupied(g *gatewayv1.Gateway, objects *kube.Objects) (kube.Problem, bool) {
	s := kube.Get[*corev1.Service](objects, g.Namespace, g.Name)
	if s == nil || Owns(g, s) {
		return kube.Problem{}, false
	}
	return foreign(g, kindService), true
}

// foreign is the problem of an object that stands where one of a Gateway should.
func foreign(g *gatewayv1.Gateway, kind string) kube.Problem {
	return kube.Problem{
		Object: kube.KeyOf(g), Field: "metadata.name",
		Cause:    fmt.Sprintf("%s %s/%s was not made for this Gateway and is left as it is: the waypoint is not made", kind, g.Namespace, g.Name),
		Accepted: "a name that no other " + kind + " has",
	}
}

// gone finds Gateways of which a Service or a pod went.
func (p *Planner) gone(objects *kube.Objects, changed []kube.Key) map[kube.Name]int {
	var out map[kube.Name]int
	for _, k := range changed {
		if k.Kind != kube.KindService && k.Kind != kube.KindPod || objects.Lookup(k) != nil {
			continue
		}
		o := p.objects.Lookup(k)
		if o == nil || o.GetLabels()[kube.LabelGateway] == "" {
			continue
		}
		if out == nil {
			out = map[kube.Name]int{}
		}
		out[kube.Name{Namespace: k.Namespace, Name: o.GetLabels()[kube.LabelGateway]}]++
	}
	return out
}

func sum(a, b map[kube.Name]int) map[kube.Name]int {
	out := map[kube.Name]int{}
	for k, n := range a {
		out[k] += n
	}
	for k, n := range b {
		out[k] += n
	}
	return out
}
