// Package workload is what a node proxy knows of the mesh: workloads, services and how to choose among endpoints.
//
// It holds what the control plane sends as istio.workload.Address (WDS): [DecodeAddress] turns bytes into immutable
// structs, [Store] keeps them, and [View] is one consistent state behind one atomic pointer. Everything reachable from a
// View is immutable and may be read by any goroutine without a lock for as long as it likes; applying a push builds a new
// View that shares what did not change.
package workload

import (
	"net/netip"
	"sort"
	"strings"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// The names of extensions of our own, which have no content; what does not know them does as Istio does.
const (
	// ExtensionClientAffinity marks a Service whose clients stay at one endpoint each, by their address.
	ExtensionClientAffinity = "ambit.client-affinity"
	// ExtensionTerminating marks an unhealthy Workload that is ready and about to end: it serves when there is no other.
	ExtensionTerminating = "ambit.terminating"
)

// TunnelProtocol is what a workload accepts on the mesh side.
type TunnelProtocol uint8

// The tunnel protocols. A LEGACY_ISTIO_MTLS workload is rejected when decoded (O27).
const (
	TCP   TunnelProtocol = iota // plain TCP, no tunnel
	HBONE                       // HTTP/2 CONNECT over mutual TLS, port 15008
)

// String returns the name that config_dump shows.
func (p TunnelProtocol) String() string {
	if p == HBONE {
		return "HBONE"
	}
	return "TCP"
}

// Type is the kind of the object that owns a workload; it chooses the baggage key (H15).
type Type uint8

// The workload types, numbered as in the protocol.
const (
	Deployment Type = iota
	CronJob
	Pod
	Job
)

// String returns the name used in baggage keys and config_dump: "deployment", "cronjob", "pod" or "job".
func (t Type) String() string {
	switch t {
	case CronJob:
		return "cronjob"
	case Pod:
		return "pod"
	case Job:
		return "job"
	}
	return "deployment"
}

// Locality is where a workload runs; the parts narrow from left to right. Empty means unknown.
type Locality struct{ Region, Zone, Subzone string }

// Port maps a service port to a target port; target 0 is a named port (each endpoint says its own number).
type Port struct{ Service, Target uint16 }

// Membership says that a workload is an endpoint of a service.
type Membership struct {
	Service string // "namespace/hostname"
	Ports   []Port // sorted by Service; the endpoint's own map, which wins over the service's (O21)
}

// Target returns this endpoint's own target for a service port, or 0.
func (m *Membership) Target(port uint16) uint16 {
	t, _ := target(m.Ports, port)
	return t
}

// target searches ports, which are sorted.
func target(ports []Port, port uint16) (uint16, bool) {
	i := sort.Search(len(ports), func(i int) bool { return ports[i].Service >= port })
	if i == len(ports) || ports[i].Service != port {
		return 0, false
	}
	return ports[i].Target, true
}

// Gateway names a waypoint or a network gateway: by hostname (Hostname not empty) or by address.
type Gateway struct {
	Namespace, Hostname string
	Network             string
	Addr                netip.Addr
	Port                uint16 // the HBONE port, usually 15008
}

// String returns "namespace/hostname" or "network/address", as config_dump does.
func (g *Gateway) String() string {
	if g.Hostname != "" {
		return g.Namespace + "/" + g.Hostname
	}
	return g.Network + "/" + g.Addr.String()
}

// AppTunnel is how a terminated stream is handed to the application (O28).
type AppTunnel struct {
	ProxyProtocol bool   // write a PROXY v2 header first
	Port          uint16 // replaces the port; 0 keeps it
}

// Workload is one instance: a pod, a WorkloadEntry, an endpoint of a ServiceEntry, a gateway. Immutable.
type Workload struct {
	UID       string // primary key
	Name      string
	Namespace string
	Addrs     []netip.Addr // never IPv4-mapped
	Hostname  string       // set instead of Addrs when DNS must be asked
	Network   string
	Protocol  TunnelProtocol
	Type      Type
	HostNet   bool // shares the node's address (O14)
	Unhealthy bool
	// Terminating is an unhealthy endpoint that is about to end and serves until then.
	Terminating bool
	Native      bool   // speaks HBONE itself (only prefetch cares, O26)
	Capacity    uint32 // load balancing weight; 0 takes no traffic
	Waypoint    *Gateway
	NetGateway  *Gateway
	Tunnel      *AppTunnel

	TrustDomain    string // never empty
	ServiceAccount string // never empty
	Node           string
	Cluster        string // never empty
	Locality       Locality

	CanonicalName     string
	CanonicalRevision string
	WorkloadName      string

	Services []Membership // sorted by Service
	Policies []string     // "namespace/name" of selector policies, in order

	// ID is the SPIFFE ID, zero when the record has no usable one (a gateway without namespace): then no peer can
	// prove to be this workload.
	ID spiffe.ID
	// Expect is the set {ID}.
	Expect *Identities
}

// Owns tells whether ip is one of the workload's addresses.
func (w *Workload) Owns(ip netip.Addr) bool {
	for _, a := range w.Addrs {
		if a == ip {
			return true
		}
	}
	return false
}

// Member returns the workload's membership in the service "namespace/hostname", or nil.
func (w *Workload) Member(service string) *Membership {
	i := sort.Search(len(w.Services), func(i int) bool { return w.Services[i].Service >= service })
	if i == len(w.Services) || w.Services[i].Service != service {
		return nil
	}
	return &w.Services[i]
}

// strength ranks records that claim one address (O14): a pod beats others, then HBONE beats TCP.
func (w *Workload) strength() int {
	n := 0
	if strings.Contains(w.UID, "//Pod/") {
		n += 2
	}
	if w.Protocol == HBONE {
		n++
	}
	return n
}

// Families says which address families of its endpoints a service uses.
type Families uint8

// The family gates, numbered as in the protocol.
const (
	FamiliesAutomatic Families = iota
	FamiliesIPv4
	FamiliesIPv6
	FamiliesDual
)

// Allows tells whether ip may be used.
func (f Families) Allows(ip netip.Addr) bool {
	switch f {
	case FamiliesIPv4:
		return ip.Is4()
	case FamiliesIPv6:
		return ip.Is6()
	}
	return true
}

// Scope is one routing preference.
type Scope uint8

// The scopes, numbered as in the protocol.
const (
	ScopeRegion Scope = iota + 1
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// Mode says what routing preferences do (O19).
type Mode uint8

// The modes, numbered as in the protocol.
const (
	ModeAny         Mode = iota // preferences do not restrict
	ModeStrict                  // only endpoints that match all preferences
	ModeFailover                // only endpoints of the best rank present
	ModePassthrough             // the dialled address itself
)

// VIP is a virtual address, or a range of them when Prefix is shorter than the address.
type VIP struct {
	Network string
	Prefix  netip.Prefix
}

// WeightedGateway is one choice of a canary among waypoints (O4).
type WeightedGateway struct {
	Gateway *Gateway
	Weight  uint32
}

// Service is a named set of workloads. Immutable.
type Service struct {
	Key            string // "namespace/hostname"
	Name           string
	Namespace      string
	Hostname       string
	VIPs           []VIP
	Ports          []Port   // sorted by Service
	SANs           []string // as received, in order
	Waypoint       *Gateway
	Weighted       []WeightedGateway
	Mode           Mode
	Preferences    []Scope
	AllowUnhealthy bool // publishNotReadyAddresses (O17)
	// ClientAffinity keeps the connections of a client address at one endpoint.
	ClientAffinity    bool
	Families          Families
	Canonical         bool
	NamespaceOnly     bool // visible to clients of its own namespace only (O11)
	IngressToWaypoint bool

	// Expect are the identities of SANs; never nil, may be empty. Strings that are no SPIFFE ID are left out (H4).
	Expect *Identities
	// BadSANs are those that were left out, for a warning.
	BadSANs []string
}

// Port returns the target port of a service port (0 for a named port) and whether the service declares it.
func (s *Service) Port(port uint16) (uint16, bool) { return target(s.Ports, port) }

// VisibleTo tells whether a client of namespace ns may see the service.
func (s *Service) VisibleTo(ns string) bool { return !s.NamespaceOnly || s.Namespace == ns }

// Identities is a set of accepted SPIFFE IDs. Immutable; sets of the same members made by one Store are usually, not
// always, the same pointer: compare Key.
type Identities struct {
	IDs []spiffe.ID // sorted by their string, no duplicates
	// Key is the canonical form: the URIs joined by ','. It can be a pool key.
	Key string
}

// Contains tells whether id is in the set. The zero ID never is.
func (s *Identities) Contains(id spiffe.ID) bool {
	if id.IsZero() {
		return false
	}
	for _, i := range s.IDs {
		if i == id {
			return true
		}
	}
	return false
}

// Address is one decoded resource: exactly one field is set.
type Address struct {
	Workload *Workload
	Service  *Service
}
