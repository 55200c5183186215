// Package translate turns Kubernetes objects into what node proxies are told: istio.workload.Address resources for
// workloads and services, istio.security.Authorization resources for policies, and what the user is told: problems and
// status conditions. It has no client, clock, lock or logger.
//
// Build is the pure function: one set of objects in, one Result out. Translator gives the same answer for a sequence of
// sets and costs what changed. A source object is an item; translating an item reads others through the index, which
// writes down what was read, so that a later change dirties exactly the items that read it. Selectors are matched
// through label indexes in both directions, never object by object.
//
// # Deny rules with L7 attributes
//
// A node proxy sees connections, not requests. Istio drops the L7 attributes from a rule of a DENY policy; what
// remains of a rule with L7 attributes only is a match that never fires (I12, I16), so that the user's denial silently
// has no effect. Here nothing is open by accident: such a rule fails closed.
//
//   - The policy itself is sent exactly as Istio sends it. A match that keeps an L4 attribute thus denies more than is
//     written, one without any never fires.
//   - For each rule that would be weakened so, a second policy ns/converted_l7_deny_<name> has the rule with its
//     unseen conditions taken as true: it denies all connections that the rule's L4 part matches, or all when there is
//     no L4 part. It is attached to the workloads that the policy selects and that no waypoint serves: neither the
//     workload itself nor a service it belongs to is bound to one.
//   - Workloads behind a waypoint do not get the second policy: their L7 traffic is the waypoint's to judge, with
//     targetRefs on the policy. The condition ZtunnelAccepted says all of this by name, with reason UnsupportedValue.
//
// ALLOW policies lose each rule with an L7 attribute, as Istio's do: they allow less than is written.
package translate

import (
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Config is what the translation depends on besides the objects.
type Config struct {
	// ClusterID begins the uid of each workload. Default "Kubernetes".
	ClusterID string
	// TrustDomain of the mesh. Default "cluster.local", which is not written into workloads.
	TrustDomain string
	// TrustDomainAliases are the same as the trust domain, for policies. Default: none.
	TrustDomainAliases []string
	// ClusterDomain ends the host names of Services. Default "cluster.local".
	ClusterDomain string
	// RootNamespace is where mesh-wide policies live. Default "istio-system".
	RootNamespace string
	// SystemNamespace is the namespace whose label topology.istio.io/network names the local network. Default: the root
	// namespace.
	SystemNamespace string
	// DryRunPolicies sends policies that carry istio.io/dry-run, marked as such, to node proxies that know the field.
	// Default: they are not sent.
	DryRunPolicies bool
}

// withDefaults fills in the defaults.
func (c Config) withDefaults() Config {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&c.ClusterID, "Kubernetes")
	set(&c.TrustDomain, "cluster.local")
	set(&c.ClusterDomain, "cluster.local")
	set(&c.RootNamespace, "istio-system")
	set(&c.SystemNamespace, c.RootNamespace)
	return c
}

// Resource is one xDS resource. It never changes; a changed resource is another Resource.
type Resource struct {
	// Name as in controlplane.md 1.2: a workload's uid, "namespace/hostname" or a policy's "namespace/name".
	Name string
	// Version is the hex form of the xxhash64 of Body: the same content has the same version in every replica.
	Version string
	// Aliases are the other names that an address can be asked for, "network/ip" or "network/ip/length". A policy has
	// none.
	Aliases []string
	// Message is an *workloadpb.Address or an *securitypb.Authorization. Read only.
	Message proto.Message
	// Body is the message in wire format.
	Body []byte
}

// newResource marshals a message.
func newResource(name string, m proto.Message, aliases ...string) *Resource {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// Only a string that is not UTF-8 can do this, and the decoder lets none in.
		panic("marshal " + name + ": " + err.Error())
	}
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], xxhash.Sum64(body))
	return &Resource{Name: name, Version: hex.EncodeToString(sum[:]), Aliases: aliases, Message: m, Body: body}
}

// Condition is a status condition of an object.
type Condition struct {
	// Type and Reason are Istio's, so that istioctl and dashboards understand them (controlplane.md 1.10).
	Type, Reason string
	// Status is True or False.
	Status string
	// Message is for people.
	Message string
}

// HostAddress is an address that was allocated for a host of a ServiceEntry.
type HostAddress struct {
	Host, Address string
}

// Status is what should be written to the status of an object.
type Status struct {
	Conditions []Condition
	// Addresses are the automatic addresses of a ServiceEntry that its status does not hold yet. Written back, they stay
	// the same whatever other entries come and go.
	Addresses []HostAddress
}

// Result is the translation of one set of objects.
type Result struct {
	// Addresses and Authorizations are by resource name.
	Addresses, Authorizations map[string]*Resource
	// Problems are in order of object.
	Problems []kube.Problem
	// Status has an entry for each object that should carry conditions or addresses.
	Status map[kube.Key]Status
}

// Build translates one set of objects.
func Build(cfg Config, objects *kube.Objects) Result {
	t := NewTranslator(cfg)
	t.Update(objects)
	return t.Result()
}

// Delta is what an update changed in one type of resources, each list in order of name.
type Delta struct {
	Updated []*Resource
	Removed []string
}

// Change is what an update changed.
type Change struct {
	Addresses, Authorizations Delta
	// Reported says whether problems or status changed.
	Reported bool
}

// store holds the resources of one type and remembers what an update did to them.
type store struct {
	byName map[string]*Resource
	// before has, for each name touched by the running update, the resource from before it, nil for none.
	before map[string]*Resource
}

func newStore() store {
	return store{byName: map[string]*Resource{}, before: map[string]*Resource{}}
}

func (s *store) touch(name string) {
	if _, ok := s.before[name]; !ok {
		s.before[name] = s.byName[name]
	}
}

// replace takes the resources of an item out and puts its new ones in. A name that another item took over since stays.
func (s *store) replace(old, now []*Resource) {
	for _, r := range old {
		if s.byName[r.Name] == r {
			s.touch(r.Name)
			delete(s.byName, r.Name)
		}
	}
	for _, r := range now {
		s.touch(r.Name)
		s.byName[r.Name] = r
	}
}

// delta ends an update.
func (s *store) delta() Delta {
	var d Delta
	for _, name := range slices.Sorted(maps.Keys(s.before)) {
		old, now := s.before[name], s.byName[name]
		switch {
		case now == nil && old != nil:
			d.Removed = append(d.Removed, name)
		case now != nil && (old == nil || old.Version != now.Version):
			d.Updated = append(d.Updated, now)
		}
	}
	clear(s.before)
	return d
}
