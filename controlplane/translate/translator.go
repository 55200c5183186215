package translate

import (
	"maps"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// kindStatic is the kind of the item that makes the static strict policy, which belongs to no object.
const kindStatic kube.Kind = "static"

var staticKey = kube.Key{Kind: kindStatic}

// Translator translates a sequence of sets of objects. One goroutine at a time; what it returns is never changed.
type Translator struct {
	cfg Config
	// objects is the set that is being or was translated, previous the one before it during an update.
	objects, previous *kube.Objects

	// index of the objects
	workloads labelIndex    // pods and WorkloadEntries
	services  selectorIndex // Services and ServiceEntries, by what they select
	policies  selectorIndex // AuthorizationPolicies with a selector
	peerAuths selectorIndex // PeerAuthentications with a selector
	authz     map[kube.Key]*policy
	l7Deny    multimap[string] // AuthorizationPolicies without selector that need a second policy, by namespace
	wideMTLS  multimap[string] // PeerAuthentications without selector, by namespace
	portMTLS  multimap[string] // PeerAuthentications with selector, by namespace
	mtlsCount int
	hosts     map[string]multimap[string] // Services and ServiceEntries by host and namespace
	slices    multimap[kube.Name]         // EndpointSlices by Service
	podSlices multimap[kube.Name]         // EndpointSlices by the pods they name
	gateways  multimap[string]            // Gateways by class
	waypoints map[kube.Name]*waypoint
	vips      map[kube.Key]map[string][]vip
	network   string

	// what was translated
	items          map[kube.Key]*item
	readers        multimap[kube.Key] // items by what they read
	addresses      store
	authorizations store

	// work of the running update
	dirty          keySet
	hostsTouched   map[string]struct{}
	entriesTouched bool
}

// item is the translation of one source object.
type item struct {
	key                       kube.Key
	addresses, authorizations []*Resource
	problems                  []kube.Problem
	status                    Status
	reads                     keySet
}

// empty says whether the item has nothing to keep.
func (i *item) empty() bool {
	return len(i.addresses)+len(i.authorizations)+len(i.problems)+len(i.status.Conditions)+len(i.status.Addresses)+len(i.reads) == 0
}

// read notes that the item depends on an object.
func (i *item) read(k kube.Key) { i.reads[k] = struct{}{} }

// problem notes a finding about the item's object.
func (i *item) problem(severity kube.Severity, field, cause, accepted string) {
	i.problems = append(i.problems, kube.Problem{Severity: severity, Object: i.key, Field: field, Cause: cause, Accepted: accepted})
}

// NewTranslator makes a translator that has translated the empty set.
func NewTranslator(cfg Config) *Translator {
	return &Translator{
		cfg:       cfg.withDefaults(),
		workloads: newLabelIndex(), services: newSelectorIndex(), policies: newSelectorIndex(), peerAuths: newSelectorIndex(),
		authz: map[kube.Key]*policy{}, l7Deny: multimap[string]{}, wideMTLS: multimap[string]{}, portMTLS: multimap[string]{},
		hosts: map[string]multimap[string]{}, slices: multimap[kube.Name]{}, podSlices: multimap[kube.Name]{},
		gateways: multimap[string]{}, waypoints: map[kube.Name]*waypoint{}, vips: map[kube.Key]map[string][]vip{},
		items: map[kube.Key]*item{}, readers: multimap[kube.Key]{},
		addresses: newStore(), authorizations: newStore(),
	}
}

// Update translates a set of objects and says what differs from the one before.
func (t *Translator) Update(objects *kube.Objects) Change {
	old := t.objects
	changed := objects.Diff(old)
	t.objects, t.previous = objects, old
	t.dirty, t.hostsTouched, t.entriesTouched = keySet{}, map[string]struct{}{}, false
	for _, k := range changed {
		t.reindex(k, old.Lookup(k), objects.Lookup(k))
	}
	t.shareHosts()
	if t.entriesTouched {
		t.allocate()
	}
	t.checkNetwork()

	var c Change
	for k := range t.dirty {
		if t.retranslate(k) {
			c.Reported = true
		}
	}
	c.Addresses, c.Authorizations = t.addresses.delta(), t.authorizations.delta()
	t.dirty, t.hostsTouched, t.previous = nil, nil, nil
	return c
}

// retranslate translates one item and says whether its problems or status changed.
func (t *Translator) retranslate(k kube.Key) bool {
	old := t.items[k]
	if old == nil {
		old = &item{}
	}
	now := &item{key: k, reads: keySet{}}
	t.translate(k, now)
	t.addresses.replace(old.addresses, now.addresses)
	t.authorizations.replace(old.authorizations, now.authorizations)
	for d := range old.reads {
		if _, still := now.reads[d]; !still {
			t.readers.remove(d, k)
		}
	}
	for d := range now.reads {
		if _, before := old.reads[d]; !before {
			t.readers.add(d, k)
		}
	}
	if now.empty() {
		delete(t.items, k)
	} else {
		t.items[k] = now
	}
	return !slices.Equal(old.problems, now.problems) || !slices.Equal(old.status.Conditions, now.status.Conditions) ||
		!slices.Equal(old.status.Addresses, now.status.Addresses)
}

// translate fills in the item of a key; when the object is gone the item stays empty.
func (t *Translator) translate(k kube.Key, it *item) {
	if k == staticKey {
		t.staticStrict(it)
		return
	}
	switch o := t.objects.Lookup(k).(type) {
	case *corev1.Pod:
		t.pod(o, it)
	case *corev1.Service:
		t.service(o, it)
	case *networkingv1.WorkloadEntry:
		t.workloadEntry(o, it)
	case *networkingv1.ServiceEntry:
		t.serviceEntry(o, it)
	case *securityv1.PeerAuthentication:
		t.peerAuthentication(o, it)
	case *securityv1.AuthorizationPolicy:
		t.authorizationPolicy(it)
	case *securityv1.RequestAuthentication:
		t.targeted(o.Spec.TargetRef, o.Spec.TargetRefs, it)
	case *telemetryv1.Telemetry:
		t.targeted(o.Spec.TargetRef, o.Spec.TargetRefs, it)
	case *networkingv1alpha3.EnvoyFilter:
		t.targeted(nil, o.Spec.TargetRefs, it)
	case *gatewayv1.Gateway:
		t.gateway(o, it)
	default:
		if k.Kind == kube.KindEndpointSlice {
			t.endpointSlice(it)
		}
	}
}

// Problems lists what is wrong with an object.
func (t *Translator) Problems(k kube.Key) []kube.Problem {
	if it := t.items[k]; it != nil {
		return it.problems
	}
	return nil
}

// mark makes an item dirty.
func (t *Translator) mark(k kube.Key) { t.dirty[k] = struct{}{} }

// markReaders makes the items dirty that read an object.
func (t *Translator) markReaders(k kube.Key) {
	for r := range t.readers[k] {
		t.mark(r)
	}
}

// Result is the whole state.
func (t *Translator) Result() Result {
	r := Result{
		Addresses: maps.Clone(t.addresses.byName), Authorizations: maps.Clone(t.authorizations.byName),
		Status: map[kube.Key]Status{},
	}
	for _, k := range slices.SortedFunc(maps.Keys(t.items), kube.Key.Compare) {
		it := t.items[k]
		r.Problems = append(r.Problems, it.problems...)
		if len(it.status.Conditions)+len(it.status.Addresses) > 0 {
			r.Status[k] = it.status
		}
	}
	return r
}
