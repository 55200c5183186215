package envoy

import (
	"maps"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// builder makes the resources of one waypoint.
type builder struct {
	*Index
	gateway   kube.Name
	object    *gatewayv1.Gateway
	services  []*service
	workloads []*workloadpb.Workload
	serves    map[*service]bool
	// others are the services that are not bound and yet needed: targets of routes, providers.
	others   map[*service]bool
	clusters map[string]*clusterv3.Cluster
	eds      []edsCluster
	problems []kube.Problem
	reported map[string]bool
	// bad are the chains with something that a client would refuse; last is what the waypoint had before.
	bad  map[string]bool
	last *Resources
	// filters are the EnvoyFilters that are in force, good those to keep for the next time; applied are the patches that
	// found something to change.
	filters []*patchSet
	good    map[kube.Key]*patchSet
	applied map[*patch]bool
	// ruleSets and virtualOf remember what was found for a service.
	ruleSets  map[*service]*ruleSet
	virtualOf map[*service]*networkingv1.VirtualService
}

// Build makes the resources of the waypoint of a Gateway. A Gateway that is not there has what every waypoint has. last are
// the resources that it had, nil for none: where an object cannot be served, they stay in force for the cluster or the port
// that it concerns.
func (x *Index) Build(gateway kube.Name, last *Resources) *Resources {
	b := &builder{
		Index: x, gateway: gateway, object: kube.Get[*gatewayv1.Gateway](x.objects, gateway.Namespace, gateway.Name),
		serves: map[*service]bool{}, others: map[*service]bool{}, clusters: map[string]*clusterv3.Cluster{}, reported: map[string]bool{},
		bad: map[string]bool{}, last: last,
		good: map[kube.Key]*patchSet{}, applied: map[*patch]bool{},
		ruleSets: map[*service]*ruleSet{}, virtualOf: map[*service]*networkingv1.VirtualService{},
	}
	b.problems = append(b.problems, x.mesh.flaws...)
	b.services, b.workloads = x.bound(gateway)
	for _, s := range b.services {
		b.serves[s] = true
	}
	b.chooseFilters()
	for _, c := range b.plumbingClusters() {
		b.clusters[c.Name] = c
	}
	for _, s := range b.services {
		b.inboundClusters(s)
	}
	listeners := b.listeners() // may need other services
	for _, host := range b.mesh.hosts() {
		if s := b.service(host, b.cfg.RootNamespace); s != nil && !b.serves[s] {
			b.others[s] = true
		}
	}
	for s := range b.others {
		b.outboundClusters(s)
	}
	b.patchClusters()
	b.idlePatches()
	b.checkClusters()
	r := &Resources{index: x, eds: b.eds, Problems: b.problems, filters: b.good}
	for _, name := range slices.Sorted(maps.Keys(b.clusters)) {
		r.Clusters = append(r.Clusters, NewResource(name, b.clusters[name]))
	}
	for _, l := range listeners {
		r.Listeners = append(r.Listeners, NewResource(l.Name, l))
	}
	slices.SortFunc(r.Listeners, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
	return r
}

func (b *builder) listeners() []*listenerv3.Listener {
	return []*listenerv3.Listener{b.connectTerminate(), connectOriginate(), innerOriginate(), outerOriginate(), b.mainInternal()}
}

// checkClusters keeps the last good one of a cluster that a client would refuse; without one requests to it fail.
func (b *builder) checkClusters() {
	for _, name := range slices.Sorted(maps.Keys(b.clusters)) {
		if !strings.Contains(name, "|") {
			continue // what every waypoint has
		}
		err := flaw(b.clusters[name])
		if err == nil {
			continue
		}
		object, field := kube.Key{}, ""
		for s, set := range b.ruleSets {
			if set != nil && set.first != nil && strings.HasSuffix(name, "|"+s.host()) {
				object, field = kube.KeyOf(set.first), "spec.trafficPolicy"
			}
		}
		b.problem(kube.Rejected, object, field, err.Error()+": the last good settings of cluster "+name+" stay in force; without any, requests to it fail", "values that Envoy's clusters accept")
		if c := b.last.cluster(name); c != nil {
			b.clusters[name] = c
			continue
		}
		delete(b.clusters, name)
		b.eds = slices.DeleteFunc(b.eds, func(e edsCluster) bool { return e.name == name })
	}
}

// cluster is a cluster by name, nil when there is none.
func (r *Resources) cluster(name string) *clusterv3.Cluster {
	if r == nil {
		return nil
	}
	for _, c := range r.Clusters {
		if c.Name == name {
			return c.Message.(*clusterv3.Cluster)
		}
	}
	return nil
}

// chain is a chain of main_internal by name, nil when there is none.
func (r *Resources) chain(name string) *listenerv3.FilterChain {
	if r == nil {
		return nil
	}
	for _, l := range r.Listeners {
		if l.Name != nameMainInternal {
			continue
		}
		for _, c := range l.Message.(*listenerv3.Listener).FilterChains {
			if c.Name == name {
				return c
			}
		}
	}
	return nil
}

// problem reports something about an object, once per waypoint.
func (b *builder) problem(severity kube.Severity, object kube.Key, field, cause, accepted string) {
	p := kube.Problem{Severity: severity, Object: object, Field: field, Cause: cause, Accepted: accepted}
	if text := p.Error(); !b.reported[text] {
		b.reported[text] = true
		b.problems = append(b.problems, p)
	}
}

// kindsOf says as what a port is served.
func kindsOf(p protocol) []string {
	switch {
	case p.http():
		return []string{kindHTTP}
	case p == protoAuto:
		return []string{kindHTTP, kindTCP}
	}
	return []string{kindTCP}
}

// destination is where a route may lead.
type destination struct {
	service *service
	port    port
	subset  string
	cluster string
	rule    *ruleSet
}

// destination finds the cluster of a host as a rule of a namespace names it. Without a port it is the only one of the
// service, or the one that the rule is served on. kind is what the rule makes of the traffic.
func (b *builder) destination(host, subset string, number uint32, namespace, kind string, via uint32) (destination, string) {
	full := b.resolveHost(host, namespace)
	s := b.Index.service(full, namespace)
	if s == nil {
		return destination{cluster: nameUnknownService}, "no Service or ServiceEntry has the host " + full
	}
	if number == 0 {
		number = via
		if len(s.ports) == 1 {
			number = s.ports[0].number
		}
	}
	p, ok := s.port(number)
	if !ok {
		return destination{cluster: nameUnknownService, service: s}, full + " has no port " + portText(number)
	}
	d := destination{service: s, port: p, subset: subset, rule: b.ruleFor(s)}
	if subset != "" && d.rule.subset(subset) == nil {
		return destination{cluster: nameUnknownService, service: s}, "no DestinationRule of the namespaces of the waypoint or of the service has a subset " + subset + " for " + full
	}
	if !b.serves[s] {
		b.others[s] = true
		d.cluster = outboundName(number, subset, full)
		return d, ""
	}
	kinds := kindsOf(p.protocol)
	if !slices.Contains(kinds, kind) {
		kind = kinds[0]
	}
	d.cluster = inboundName(number, kind, subset, full)
	return d, ""
}
