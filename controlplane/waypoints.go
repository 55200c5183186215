package controlplane

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/discovery"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// view is one waypoint as a kind of client at a place sees it.
type view struct {
	gateway kube.Name
	// plain clients do not know the filters of Istio's build of Envoy.
	plain bool
	// node is where the instance runs, "" = not known.
	node string
}

// config and endpoints are the scopes of its sets: endpoints depend on the place, and clusters and listeners on the kind.
func (v view) config() string {
	if v.plain {
		return v.gateway.String() + " plain"
	}
	return v.gateway.String()
}

func (v view) endpoints() string { return v.gateway.String() + "@" + v.node }

// waypoints makes the resources of waypoints and publishes those that some client has asked for. Safe for any goroutine.
type waypoints struct {
	cfg envoy.Config
	srv *discovery.Server

	mu        sync.Mutex
	objects   *kube.Objects
	addresses map[string]*workloadpb.Address // by resource name
	built     map[kube.Name]*envoy.Resources // nil before the first set of objects
	index     *envoy.Index                   // nil until it is needed
	views     map[view]bool                  // that somebody asked for
}

func newWaypoints(cfg envoy.Config) *waypoints {
	return &waypoints{cfg: cfg, addresses: map[string]*workloadpb.Address{}, views: map[view]bool{}}
}

// update takes in a new set of objects and what translate changed, and publishes the result.
func (w *waypoints) update(objects *kube.Objects, change translate.Delta) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.built == nil
	quiet := !first && len(change.Updated)+len(change.Removed) == 0 && len(objects.Diff(w.objects)) == 0
	w.objects = objects
	apply(w.addresses, change)
	if quiet {
		return
	}
	last := w.built
	w.built, w.index = map[kube.Name]*envoy.Resources{}, nil
	if len(w.views) == 0 && !hasGateway(objects) {
		return // a mesh without waypoints pays nothing for them
	}
	for _, name := range w.indexLocked().Waypoints() {
		w.built[name] = w.indexLocked().Build(name, last[name])
	}
	var all []discovery.Contents // together: waypoints of one Gateway share clusters and listeners, and have endpoints of their nodes
	for v := range w.views {
		all = append(all, w.contentsLocked(v)...)
	}
	w.srv.PublishTogether(all)
}

// apply puts a change into addresses.
func apply(addresses map[string]*workloadpb.Address, change translate.Delta) {
	for _, r := range change.Updated {
		addresses[r.Name] = r.Message.(*workloadpb.Address)
	}
	for _, name := range change.Removed {
		delete(addresses, name)
	}
}

func hasGateway(objects *kube.Objects) bool {
	for range kube.List[*gatewayv1.Gateway](objects) {
		return true
	}
	return false
}

func hasRoute(objects *kube.Objects) bool {
	for range kube.List[*gatewayv1.HTTPRoute](objects) {
		return true
	}
	for range kube.List[*gatewayv1.GRPCRoute](objects) {
		return true
	}
	for range kube.List[*gatewayv1.TCPRoute](objects) {
		return true
	}
	for range kube.List[*gatewayv1.TLSRoute](objects) {
		return true
	}
	return false
}

// indexLocked is the index of the current objects, made when it is first needed.
func (w *waypoints) indexLocked() *envoy.Index {
	if w.index == nil {
		w.index = envoy.NewIndex(w.cfg, w.objects, slices.Collect(maps.Values(w.addresses)))
	}
	return w.index
}

// problems lists what of the objects is not served as written, each once and in order.
func (w *waypoints) problems() []kube.Problem {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []kube.Problem
	for _, r := range w.built {
		all = append(all, r.Problems...)
	}
	kube.SortProblems(all)
	return slices.Compact(all)
}

// routeParents is what becomes of the routes at each of their parents, for their statuses.
func (w *waypoints) routeParents() []envoy.RouteParent {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.objects == nil || !hasRoute(w.objects) {
		return nil
	}
	return w.indexLocked().RouteParents()
}

// want makes sure that a view is published from now on.
func (w *waypoints) want(v view) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.views[v] {
		w.views[v] = true
		w.srv.PublishTogether(w.contentsLocked(v))
	}
}

// contentsLocked are the sets of a view.
func (w *waypoints) contentsLocked(v view) []discovery.Contents {
	if w.built == nil {
		return nil // the first set of objects is still to come
	}
	r := w.built[v.gateway]
	if r == nil {
		r = w.indexLocked().Build(v.gateway, nil) // the Gateway is gone: what every waypoint has
	}
	clusters, listeners := r.Clusters, r.Listeners
	if v.plain {
		clusters, listeners = envoy.Plain(clusters), envoy.Plain(listeners)
	}
	list := []discovery.Contents{
		{Set: discovery.Set{TypeURL: xds.ClusterType, Scope: v.config()}, Resources: published(clusters)},
		{Set: discovery.Set{TypeURL: xds.EndpointType, Scope: v.endpoints()}, Resources: published(r.Endpoints(w.place(v.node)))},
		{Set: discovery.Set{TypeURL: xds.ListenerType, Scope: v.config()}, Resources: published(listeners)},
	}
	for _, url := range []string{xds.RouteType, xds.ExtensionType, xds.SecretType} {
		list = append(list, discovery.Contents{Set: discovery.Set{TypeURL: url, Scope: v.config()}})
	}
	return list
}

// place is where a node is.
func (w *waypoints) place(node string) envoy.Place {
	p := envoy.Place{Node: node}
	if n := kube.Get[*corev1.Node](w.objects, "", node); n != nil {
		p.Region, p.Zone = n.Labels[corev1.LabelTopologyRegion], n.Labels[corev1.LabelTopologyZone]
		p.Subzone = n.Labels["topology.istio.io/subzone"]
	}
	return p
}

func published(list []envoy.Resource) []discovery.Resource {
	out := make([]discovery.Resource, len(list))
	for i, r := range list {
		out[i] = discovery.Resource{Name: r.Name, Version: r.Version, Body: r.Body}
	}
	return out
}

// scope answers discovery: which set a waypoint gets for a type. A waypoint is known by the label of its pod, or, when
// there is no such pod, by the label that it says it has (4.1); its namespace has been checked before.
func (w *waypoints) scope(c discovery.Client, typeURL string) (string, error) {
	w.mu.Lock()
	objects := w.objects
	w.mu.Unlock()
	labels, node := c.Labels, c.Caller.Node
	if node == "" {
		node = c.Metadata["NODE_NAME"]
	}
	if pod := kube.Get[*corev1.Pod](objects, c.Caller.Namespace, podName(c)); pod != nil {
		labels, node = pod.Labels, pod.Spec.NodeName
	}
	name := labels[kube.LabelGateway]
	if name == "" {
		return "", fmt.Errorf("%s/%s is no waypoint: neither its pod nor its metadata has a label %s", c.Caller.Namespace, podName(c), kube.LabelGateway)
	}
	v := view{gateway: kube.Name{Namespace: c.Caller.Namespace, Name: name}, node: node, plain: c.Metadata["ISTIO_VERSION"] == ""}
	w.want(v)
	if typeURL == xds.EndpointType {
		return v.endpoints(), nil
	}
	return v.config(), nil
}

// podName is that of the token, else that of the node's id: type~ip~pod.namespace~domain.
func podName(c discovery.Client) string {
	if c.Caller.Pod != "" {
		return c.Caller.Pod
	}
	if parts := strings.Split(c.NodeID, "~"); len(parts) == 4 {
		name, _, _ := strings.Cut(parts[2], ".")
		return name
	}
	return ""
}
