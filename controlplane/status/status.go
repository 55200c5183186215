// Package status says what is to be written into the status of objects: conditions of routes, Gateways, services and
// policies, with the types and reasons of the Gateway API and of Istio (controlplane.md 1.10, 5.3).
//
// It is pure. Compute takes a set of objects and what translate and envoy found out about them; Status.Render puts the
// result into a status that is there already, and keeps what belongs to others. Times are the writer's: a condition's
// changes when its status does.
package status

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
)

// Controller is the name under which routes are answered for, as istiod's.
const Controller gatewayv1.GatewayController = "istio.io/gateway-controller"

// Input is all that statuses come from.
type Input struct {
	Objects *kube.Objects
	// Translated is translate's, by object.
	Translated map[kube.Key]translate.Status
	// Routes are envoy's.
	Routes []envoy.RouteParent
	// Problems are those of translation and waypoints.
	Problems []kube.Problem
	// ClusterDomain ends the host names of Services.
	ClusterDomain string
}

// Status is what the status of one object is to say. Fields that are empty are left alone, but for Conditions: those of ours
// that are not there are taken away.
type Status struct {
	Object kube.Key
	// Conditions have no time, and no generation where the object has none.
	Conditions []metav1.Condition
	// Parents are those of a route that this controller answers for.
	Parents []gatewayv1.RouteParentStatus
	// Addresses and Listeners are those of a Gateway.
	Addresses []gatewayv1.GatewayStatusAddress
	Listeners []gatewayv1.ListenerStatus
	// Hosts are automatic addresses of a ServiceEntry that its status does not have yet.
	Hosts []translate.HostAddress
}

// Compute says what the statuses of a set of objects are to be, in order of object.
func Compute(in Input) []Status {
	c := &computer{Input: in, byObject: map[kube.Key]*Status{}, problems: map[kube.Key][]kube.Problem{}}
	for _, p := range in.Problems {
		c.problems[p.Object] = append(c.problems[p.Object], p)
	}
	for k, s := range in.Translated {
		c.translated(k, s)
	}
	for _, r := range in.Routes {
		c.route(r)
	}
	for g := range kube.List[*gatewayv1.Gateway](in.Objects) {
		c.gateway(g)
	}
	for g := range kube.List[*gatewayv1.GatewayClass](in.Objects) {
		c.class(g)
	}
	out := make([]Status, 0, len(c.byObject))
	for _, s := range c.byObject {
		slices.SortFunc(s.Hosts, func(a, b translate.HostAddress) int {
			return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.Address, b.Address))
		})
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Status) int { return a.Object.Compare(b.Object) })
	return out
}

type computer struct {
	Input
	byObject  map[kube.Key]*Status
	problems  map[kube.Key][]kube.Problem
	instances map[kube.Name]bool // Gateways that have a ready pod; nil until one is asked for
}

func (c *computer) of(k kube.Key) *Status {
	if c.byObject[k] == nil {
		c.byObject[k] = &Status{Object: k}
	}
	return c.byObject[k]
}

// translated are the conditions of Istio's kinds. An object that its waypoints do not serve as written is not accepted,
// whatever its targets are.
func (c *computer) translated(k kube.Key, s translate.Status) {
	out := c.of(k)
	out.Hosts = slices.Clone(s.Addresses)
	for _, d := range s.Conditions {
		m := metav1.Condition{Type: d.Type, Status: metav1.ConditionStatus(d.Status), Reason: d.Reason, Message: d.Message}
		if d.Type == typeWaypointAccepted && m.Status == metav1.ConditionTrue {
			if texts, refused := c.flaws(k, nil); len(texts) > 0 {
				m.Status, m.Reason, m.Message = metav1.ConditionFalse, "PartiallyInvalid", strings.Join(texts, "; ")
				if refused {
					m.Reason = "Invalid"
				}
			}
		}
		out.Conditions = append(out.Conditions, m)
	}
}

// Types of conditions.
const (
	typeWaypointAccepted = "WaypointAccepted"
	typeAccepted         = "Accepted"
	typeProgrammed       = "Programmed"
	typeResolvedRefs     = "ResolvedRefs"
)

// ours are the types that this controller sets, and takes away when they no longer hold.
var ours = []string{
	typeAccepted, typeProgrammed, typeResolvedRefs, typeWaypointAccepted, "ZtunnelAccepted",
	"istio.io/WaypointBound", "istio.io/WaypointMissing",
}

// flaws are the texts of an object's problems, and whether one of them means that it has no effect.
func (c *computer) flaws(k kube.Key, leave func(kube.Problem) bool) (texts []string, refused bool) {
	for _, p := range c.problems[k] {
		if leave != nil && leave(p) {
			continue
		}
		p.Object = kube.Key{}
		texts = append(texts, p.Error())
		refused = refused || p.Severity == kube.Rejected
	}
	slices.Sort(texts)
	return slices.Compact(texts), refused
}

func condition(kind string, v envoy.Verdict, generation int64) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: v.Reason, Message: v.Message, ObservedGeneration: generation}
	if !v.OK {
		c.Status = metav1.ConditionFalse
	}
	return c
}

// route adds what is to be said of a parent of a route.
func (c *computer) route(r envoy.RouteParent) {
	k, generation := kube.KeyOf(r.Route), r.Route.GetGeneration()
	p := gatewayv1.RouteParentStatus{ParentRef: r.Parent, ControllerName: Controller, Conditions: []metav1.Condition{
		condition(typeAccepted, r.Accepted, generation), condition(typeResolvedRefs, r.Refs, generation),
	}}
	// What is wrong with parents and back ends is in the two already.
	texts, _ := c.flaws(k, func(p kube.Problem) bool {
		return strings.Contains(p.Field, ".backendRefs") || strings.HasPrefix(p.Field, "spec.parentRefs") || strings.Contains(p.Field, ".filters") && strings.Contains(p.Cause, "nothing is mirrored")
	})
	if r.Accepted.OK && len(texts) > 0 {
		p.Conditions = append(p.Conditions, condition(string(gatewayv1.RouteConditionPartiallyInvalid), envoy.Verdict{
			OK: true, Reason: string(gatewayv1.RouteReasonUnsupportedValue), Message: strings.Join(texts, "; "),
		}, generation))
	}
	s := c.of(k)
	s.Parents = append(s.Parents, p)
}

// Render puts a status into the one that an object has (JSON of .status, nil for none), at a time. It returns the new
// .status, and whether it is another one.
func (s Status) Render(old []byte, now time.Time) ([]byte, bool, error) {
	before := map[string]any{}
	if len(bytes.TrimSpace(old)) > 0 {
		if err := json.Unmarshal(old, &before); err != nil {
			return nil, false, fmt.Errorf("read status of %s: %w", s.Object, err)
		}
	}
	after := maps.Clone(before)
	if after == nil { // "null"
		after = map[string]any{}
	}
	at := metav1.NewTime(now.UTC().Truncate(time.Second))
	conditions := merged(s.Conditions, before["conditions"], at, func(kind string) bool { return !slices.Contains(ours, kind) })
	set(after, "conditions", conditions)
	if len(s.Parents) > 0 || before["parents"] != nil {
		after["parents"] = s.parents(before["parents"], at)
	}
	if len(s.Addresses) > 0 {
		after["addresses"] = s.Addresses
	}
	if len(s.Hosts) > 0 {
		list := slices.Clone(asList(before["addresses"]))
		for _, h := range s.Hosts {
			if !slices.ContainsFunc(list, func(v any) bool { return asMap(v)["host"] == h.Host && asMap(v)["value"] == h.Address }) {
				list = append(list, map[string]any{"host": h.Host, "value": h.Address})
			}
		}
		after["addresses"] = list
	}
	if len(s.Listeners) > 0 {
		after["listeners"] = s.listeners(before["listeners"], at)
	}
	body, err := json.Marshal(after)
	if err != nil {
		return nil, false, fmt.Errorf("write status of %s: %w", s.Object, err)
	}
	same, err := json.Marshal(before)
	return body, !bytes.Equal(body, same), err
}

// set sets a list, and takes an empty one away.
func set(m map[string]any, name string, list []any) {
	if delete(m, name); len(list) > 0 {
		m[name] = list
	}
}

// generic is a value as encoding/json reads it.
func generic(v any) any {
	body, err := json.Marshal(v)
	if err != nil {
		panic("marshal status: " + err.Error()) // the Gateway API's own types always encode
	}
	var out any
	if err := json.Unmarshal(body, &out); err != nil {
		panic("read status: " + err.Error())
	}
	return out
}

func asMap(v any) map[string]any { m, _ := v.(map[string]any); return m }
func asList(v any) []any         { l, _ := v.([]any); return l }

// merged are conditions with their times: that of the old condition where the status is the same. Conditions for which
// keep holds are somebody else's.
func merged(list []metav1.Condition, old any, at metav1.Time, keep func(kind string) bool) []any {
	var out []any
	for _, o := range asList(old) {
		if kind, _ := asMap(o)["type"].(string); keep != nil && keep(kind) && !slices.ContainsFunc(list, func(c metav1.Condition) bool { return c.Type == kind }) {
			out = append(out, o)
		}
	}
	for _, c := range list {
		c.LastTransitionTime = at
		m := asMap(generic(c))
		for _, o := range asList(old) {
			if b := asMap(o); b["type"] == c.Type && b["status"] == string(c.Status) && b["lastTransitionTime"] != nil {
				m["lastTransitionTime"] = b["lastTransitionTime"]
			}
		}
		out = append(out, m)
	}
	return out
}

// parents keeps those of other controllers.
func (s Status) parents(old any, at metav1.Time) []any {
	out := []any{}
	for _, o := range asList(old) {
		if asMap(o)["controllerName"] != string(Controller) {
			out = append(out, o)
		}
	}
	for _, p := range s.Parents {
		m := asMap(generic(p))
		var before any
		for _, o := range asList(old) {
			if b := asMap(o); b["controllerName"] == string(Controller) && equal(b["parentRef"], m["parentRef"]) {
				before = b["conditions"]
			}
		}
		m["conditions"] = merged(p.Conditions, before, at, nil)
		out = append(out, m)
	}
	return out
}

func (s Status) listeners(old any, at metav1.Time) []any {
	var out []any
	for _, l := range s.Listeners {
		m := asMap(generic(l))
		var before any
		for _, o := range asList(old) {
			if b := asMap(o); b["name"] == m["name"] {
				before = b["conditions"]
			}
		}
		m["conditions"] = merged(l.Conditions, before, at, nil)
		out = append(out, m)
	}
	return out
}

func equal(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return bytes.Equal(x, y)
}
