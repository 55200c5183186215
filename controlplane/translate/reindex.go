package translate

import (
	"maps"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// as is a type assertion that gives nil for an object that is not there.
func as[T kube.Object](o kube.Object) T {
	v, _ := o.(T)
	return v
}

// reindex brings the index up to date with one changed object and marks the items that the change may concern. Selectors
// may be matched while other objects of the same update are not yet entered: those are marked on their own account.
func (t *Translator) reindex(k kube.Key, old, now kube.Object) {
	switch k.Kind {
	case kube.KindPod, kube.KindWorkloadEntry:
		t.mark(k)
		if now == nil {
			t.workloads.remove(k)
		} else {
			t.workloads.put(k, workloadLabels(now))
		}
	case kube.KindService, kube.KindServiceEntry:
		t.reindexService(k, old, now)
	case kube.KindEndpointSlice:
		t.reindexSlice(k, as[*discoveryv1.EndpointSlice](old), as[*discoveryv1.EndpointSlice](now))
	case kube.KindNode:
		if localityOf(as[*corev1.Node](old)) != localityOf(as[*corev1.Node](now)) {
			t.markReaders(k)
		}
	case kube.KindNamespace, kube.KindReplicaSet:
		t.markReaders(k)
	case kube.KindGateway:
		t.reindexGateway(k, as[*gatewayv1.Gateway](old), as[*gatewayv1.Gateway](now))
	case kube.KindGatewayClass:
		for g := range t.gateways[k.Name.Name] {
			t.reviseWaypoint(g, kube.Get[*gatewayv1.Gateway](t.objects, g.Namespace, g.Name.Name))
		}
	case kube.KindPeerAuthentication:
		t.reindexPeerAuthentication(k, as[*securityv1.PeerAuthentication](old), as[*securityv1.PeerAuthentication](now))
	case kube.KindRequestAuthentication, kube.KindTelemetry, kube.KindEnvoyFilter:
		t.mark(k)
	case kube.KindAuthorizationPolicy:
		t.reindexPolicy(k, as[*securityv1.AuthorizationPolicy](now))
	}
}

// workloadLabels are the labels by which a pod or a WorkloadEntry is selected.
func workloadLabels(o kube.Object) map[string]string {
	w, ok := o.(*networkingv1.WorkloadEntry)
	if !ok || len(w.Spec.Labels) == 0 {
		return o.GetLabels()
	}
	labels := maps.Clone(w.Spec.Labels)
	maps.Copy(labels, w.Labels)
	return labels
}

func (t *Translator) reindexService(k kube.Key, old, now kube.Object) {
	t.mark(k)
	t.markReaders(k) // policies that have it as their target
	if k.Kind == kube.KindServiceEntry {
		t.entriesTouched = true
	}
	for _, h := range t.hostsOf(old) {
		t.hosts[h].remove(k.Namespace, k)
		t.hostsTouched[h] = struct{}{}
		t.markRivals(k, h)
	}
	for _, h := range t.hostsOf(now) {
		if t.hosts[h] == nil {
			t.hosts[h] = multimap[string]{}
		}
		t.hosts[h].add(k.Namespace, k)
		t.hostsTouched[h] = struct{}{}
		t.markRivals(k, h)
	}
	t.markMembers(old)
	t.markMembers(now)
	if now == nil {
		t.services.remove(k)
	} else {
		t.services.put(k, k.Namespace, selectorOf(now))
	}
}

// markRivals marks what depends on the other objects of a namespace that define a host: which of them counts may change.
func (t *Translator) markRivals(k kube.Key, host string) {
	for r := range t.hosts[host][k.Namespace] {
		if r != k {
			t.markMembers(t.objects.Lookup(r))
		}
	}
}

// shareHosts marks all objects that define a host of which one changed: which is canonical may change.
func (t *Translator) shareHosts() {
	for h := range t.hostsTouched {
		for _, keys := range t.hosts[h] {
			for k := range keys {
				t.mark(k)
			}
		}
		if len(t.hosts[h]) == 0 {
			delete(t.hosts, h)
		}
	}
}

// hostsOf lists the host names that a Service or ServiceEntry defines.
func (t *Translator) hostsOf(o kube.Object) []string {
	switch o := o.(type) {
	case *corev1.Service:
		if o.Spec.Type != corev1.ServiceTypeExternalName {
			return []string{t.serviceHost(o)}
		}
	case *networkingv1.ServiceEntry:
		return o.Spec.Hosts
	}
	return nil
}

// selectorOf is the selector by which a Service or ServiceEntry selects workloads.
func selectorOf(o kube.Object) map[string]string {
	switch o := o.(type) {
	case *corev1.Service:
		if o.Spec.Type != corev1.ServiceTypeExternalName {
			return o.Spec.Selector
		}
	case *networkingv1.ServiceEntry:
		return o.Spec.GetWorkloadSelector().GetLabels()
	}
	return nil
}

// markMembers marks the workloads that belong, or belonged, to a Service or ServiceEntry.
func (t *Translator) markMembers(o kube.Object) {
	if o == nil {
		return
	}
	if s := selectorOf(o); len(s) > 0 {
		t.workloads.selected(o.GetNamespace(), s, t.mark)
	}
	if svc, ok := o.(*corev1.Service); ok {
		for s := range t.slices[kube.Name{Namespace: svc.Namespace, Name: svc.Name}] {
			t.mark(s)
			t.markTargets(kube.Get[*discoveryv1.EndpointSlice](t.objects, s.Namespace, s.Name.Name))
		}
	}
	if se, ok := o.(*networkingv1.ServiceEntry); ok {
		t.mark(kube.KeyOf(se))
	}
}

func (t *Translator) reindexSlice(k kube.Key, old, now *discoveryv1.EndpointSlice) {
	t.mark(k)
	if old != nil {
		t.slices.remove(sliceService(old), k)
		for _, p := range slicePods(old) {
			t.podSlices.remove(p, k)
		}
		t.markTargets(old)
	}
	if now != nil {
		t.slices.add(sliceService(now), k)
		for _, p := range slicePods(now) {
			t.podSlices.add(p, k)
		}
		t.markTargets(now)
	}
}

// markTargets marks the pods that a slice names. A Service with a selector needs no slice to find its pods, so that the
// usual churn of slices costs nothing.
func (t *Translator) markTargets(s *discoveryv1.EndpointSlice) {
	if s == nil {
		return
	}
	name := sliceService(s)
	hasSelector := func(o *kube.Objects) bool {
		svc := kube.Get[*corev1.Service](o, name.Namespace, name.Name)
		return svc != nil && len(svc.Spec.Selector) > 0
	}
	if hasSelector(t.previous) && hasSelector(t.objects) {
		return
	}
	for _, p := range slicePods(s) {
		t.mark(kube.Key{Kind: kube.KindPod, Name: p})
	}
}

func (t *Translator) reindexGateway(k kube.Key, old, now *gatewayv1.Gateway) {
	t.mark(k)
	if old != nil {
		t.gateways.remove(string(old.Spec.GatewayClassName), k)
	}
	if now != nil {
		t.gateways.add(string(now.Spec.GatewayClassName), k)
	}
	t.reviseWaypoint(k, now)
}

// reviseWaypoint makes the waypoint of a Gateway anew and marks its users when it differs.
func (t *Translator) reviseWaypoint(k kube.Key, now *gatewayv1.Gateway) {
	before, after := t.waypoints[k.Name], t.makeWaypoint(now)
	if before.equal(after) {
		return
	}
	if after == nil {
		delete(t.waypoints, k.Name)
	} else {
		t.waypoints[k.Name] = after
	}
	t.markReaders(k)
}

func (t *Translator) reindexPeerAuthentication(k kube.Key, old, now *securityv1.PeerAuthentication) {
	t.mark(k)
	t.mark(staticKey)
	for _, p := range []*securityv1.PeerAuthentication{old, now} {
		if p == nil {
			continue
		}
		if s := p.Spec.GetSelector().GetMatchLabels(); len(s) > 0 {
			t.workloads.selected(p.Namespace, s, t.mark)
			t.markEntries(p.Namespace, s)
			continue
		}
		ns := p.Namespace
		if ns == t.cfg.RootNamespace {
			ns = ""
		}
		t.markWorkloads(ns)
		for n, keys := range t.portMTLS {
			if ns == "" || n == ns {
				for q := range keys {
					t.mark(q)
				}
			}
		}
	}
	if old != nil {
		t.mtlsCount--
		t.wideMTLS.remove(k.Namespace, k)
		t.portMTLS.remove(k.Namespace, k)
		t.peerAuths.remove(k)
	}
	if now != nil {
		t.mtlsCount++
		if s := now.Spec.GetSelector().GetMatchLabels(); len(s) > 0 {
			t.peerAuths.put(k, k.Namespace, s)
			t.portMTLS.add(k.Namespace, k)
		} else {
			t.wideMTLS.add(k.Namespace, k)
		}
	}
}

// markWorkloads marks all workloads of a namespace, of all when it is empty: pods, WorkloadEntries and the endpoints of
// ServiceEntries.
func (t *Translator) markWorkloads(namespace string) {
	t.workloads.selected(namespace, nil, t.mark)
	for e := range kube.List[*networkingv1.ServiceEntry](t.objects) {
		if namespace == "" || e.Namespace == namespace {
			t.mark(kube.KeyOf(e))
		}
	}
}

func (t *Translator) reindexPolicy(k kube.Key, now *securityv1.AuthorizationPolicy) {
	t.mark(k)
	old := t.authz[k]
	delete(t.authz, k)
	t.policies.remove(k)
	t.l7Deny.remove(k.Namespace, k)
	var p *policy
	if now != nil {
		p = t.convertPolicy(now)
		t.authz[k] = p
		if len(p.selector) > 0 {
			t.policies.put(k, p.reach, p.selector)
		} else if p.failClosed != nil {
			t.l7Deny.add(k.Namespace, k)
		}
	}
	for _, p := range []*policy{old, p} {
		switch {
		case p == nil:
		case len(p.selector) > 0:
			t.workloads.selected(p.reach, p.selector, t.mark)
			t.markEntries(p.reach, p.selector)
		case p.failClosed != nil:
			t.markWorkloads(p.reach)
		}
	}
}

// markEntries marks the ServiceEntries whose endpoints a policy selects: by the labels of the entry (controlplane.md 1.4).
func (t *Translator) markEntries(namespace string, selector map[string]string) {
	for e := range kube.List[*networkingv1.ServiceEntry](t.objects) {
		if (namespace == "" || e.Namespace == namespace) && selects(selector, e.Labels) {
			t.mark(kube.KeyOf(e))
		}
	}
}

// checkNetwork marks everything when the name of the local network changed.
func (t *Translator) checkNetwork() {
	network := ""
	if ns := kube.Get[*corev1.Namespace](t.objects, "", t.cfg.SystemNamespace); ns != nil {
		network = ns.Labels["topology.istio.io/network"]
	}
	if network == t.network {
		return
	}
	t.network = network
	for _, k := range t.objects.Keys() {
		if k.Kind == kube.KindGateway {
			t.reviseWaypoint(k, kube.Get[*gatewayv1.Gateway](t.objects, k.Namespace, k.Name.Name))
		}
		t.mark(k)
	}
}
