package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

const (
	// originalDst is the endpoint metadata that names what is behind a tunnel (controlplane.md 3.7).
	originalDst = "envoy.filters.listener.original_dst"
	// connectOriginate is the listener by which Envoy makes tunnels.
	connectOriginate = "connect_originate"
	// maxEndpoints is the number of endpoints that a resource may have.
	maxEndpoints = 1 << 20
)

// Via is how an endpoint is reached.
type Via uint8

// The ways.
const (
	// Direct: a TCP connection to Addr.
	Direct Via = iota
	// HBONE: a tunnel to the pod of Tunnel, or to the waypoint in front of it, in which Tunnel is asked for.
	HBONE
	// DoubleHBONE: a tunnel to the gateway Addr, and in it one to Target.
	DoubleHBONE
	// Internal: one of the listeners of this process, which is not a real endpoint.
	Internal
)

// Health is what the control plane says of an endpoint.
type Health uint8

// The states.
const (
	Healthy Health = iota
	Degraded
	// Draining endpoints get no new requests, and keep their connections.
	Draining
	Unhealthy
)

// String is the state as in /clusters.
func (h Health) String() string {
	return [...]string{"healthy", "degraded", "draining", "unhealthy"}[h]
}

// Locality is where an endpoint is.
type Locality struct{ Region, Zone, SubZone string }

// Workload is who an endpoint is, by the name that the control plane gives (controlplane.md 3.7). It is a name for
// statistics, not an identity.
type Workload struct{ Name, Namespace, CanonicalName, CanonicalRevision, Cluster string }

// Endpoint is one compiled endpoint. It is immutable.
type Endpoint struct {
	// Addr is where the application listens, or of DoubleHBONE the gateway. Not valid of a name that is to be resolved, and
	// of a tunnel without destination: then it is the client's (the cluster "encap").
	Addr netip.AddrPort
	// Name and Port are of a name that is to be resolved; "" of all others.
	Name string
	Port uint16
	Via  Via
	// Tunnel is what HBONE asks for: Addr. Not valid for the other ways.
	Tunnel netip.AddrPort
	// Waypoint is dialled instead of the pod if it is valid.
	Waypoint netip.AddrPort
	// Target is what DoubleHBONE asks for behind the gateway, "host:port".
	Target string
	// Listener is the internal listener that was named, "" of Direct.
	Listener string
	// Hostname is for auto_host_rewrite.
	Hostname string
	Weight   uint32
	Health   Health
	Priority int
	// Locality and Workload are never nil. They are shared by endpoints.
	Locality *Locality
	Workload *Workload

	// match is the metadata by which a transport is chosen; nil: none.
	match *structpb.Struct
	// key is what makes it the same endpoint in another update.
	key string
	// group is the index of the list of endpoints that it was in: a locality of a priority.
	group int
}

// String is where the endpoint is.
func (e *Endpoint) String() string {
	switch {
	case e.Name != "":
		return fmt.Sprintf("%s:%d", e.Name, e.Port)
	case e.Addr.IsValid():
		return e.Addr.String()
	}
	return e.Listener
}

// Internal is the internal listener that the configuration names for the endpoint, and the ID that it gives the endpoint there.
func (e *Endpoint) Internal() (listener, id string, ok bool) {
	rest, ok := strings.CutPrefix(e.key, internalScheme)
	if !ok {
		return "", "", false
	}
	listener, id, _ = strings.Cut(rest, "/")
	return listener, id, true
}

// EnvoyAddress is where the endpoint is, in the form that Envoy's admin interface has.
func (e *Endpoint) EnvoyAddress() string {
	if strings.HasPrefix(e.key, internalScheme) {
		return e.key
	}
	return e.String()
}

const internalScheme = "envoy://"

// sameWay says whether connections to e are as good as connections to o.
func (e *Endpoint) sameWay(o *Endpoint) bool {
	return e.Addr == o.Addr && e.Via == o.Via && e.Waypoint == o.Waypoint && e.Target == o.Target && *e.Locality == *o.Locality
}

// group is a locality of a priority.
type group struct {
	locality Locality
	priority int
	weight   uint32 // 0: the locality gets nothing if localities are weighted
}

// Drop is a share of requests that is to be refused.
type Drop struct {
	Category               string
	Numerator, Denominator uint64
}

// Assignment is a compiled ClusterLoadAssignment. It is immutable.
type Assignment struct {
	// Name is the cluster's, or its EDS service name.
	Name      string
	Endpoints []*Endpoint
	Drops     []Drop

	groups        []group
	workloads     map[string]*Workload // while it is compiled
	priorities    int
	overprovision uint32 // percent
	byWeight      bool   // the health of a priority is that of its weights
}

// DecodeEndpoints reads and compiles a resource; it has the form that package xds asks for.
func DecodeEndpoints(_ string, body []byte) (*Assignment, error) {
	var c endpointv3.ClusterLoadAssignment
	if err := proto.Unmarshal(body, &c); err != nil {
		return nil, err
	}
	return CompileEndpoints(&c)
}

// CompileEndpoints compiles an EDS resource.
func CompileEndpoints(p *endpointv3.ClusterLoadAssignment) (*Assignment, error) {
	if p.GetClusterName() == "" {
		return nil, field.Errorf("cluster_name", "required")
	}
	return compileAssignment(p, false)
}

func compileAssignment(p *endpointv3.ClusterLoadAssignment, names bool) (*Assignment, error) {
	a := &Assignment{Name: p.GetClusterName(), overprovision: 140, byWeight: p.GetPolicy().GetWeightedPriorityHealth()}
	if o := p.GetPolicy().GetOverprovisioningFactor(); o != nil {
		if a.overprovision = o.GetValue(); a.overprovision == 0 {
			return nil, field.Errorf("policy.overprovisioning_factor", "must be more than 0")
		}
	}
	if len(p.GetNamedEndpoints()) > 0 {
		return nil, field.Errorf("named_endpoints", "unsupported")
	}
	for i, d := range p.GetPolicy().GetDropOverloads() {
		if err := a.addDrop(d); err != nil {
			return nil, field.At(field.Index(err, "drop_overloads", i), "policy")
		}
	}
	seen := make([]bool, 0, 4)
	for i, l := range p.GetEndpoints() {
		if err := a.addLocality(l, names); err != nil {
			return nil, field.Index(err, "endpoints", i)
		}
		for len(seen) <= int(l.GetPriority()) {
			seen = append(seen, false)
		}
		seen[l.GetPriority()] = true
	}
	for i, ok := range seen {
		if !ok { // Envoy refuses this too
			return nil, field.Errorf("endpoints", "priority %d is empty and there is a lower one", i)
		}
	}
	a.priorities = len(seen)
	a.workloads = nil
	return a, nil
}

func (a *Assignment) addDrop(d *endpointv3.ClusterLoadAssignment_Policy_DropOverload) error {
	x := Drop{Category: d.GetCategory(), Numerator: uint64(d.GetDropPercentage().GetNumerator()), Denominator: 100}
	switch n := int32(d.GetDropPercentage().GetDenominator()); n {
	case 0:
	case 1:
		x.Denominator = 10_000
	case 2:
		x.Denominator = 1_000_000
	default:
		return field.Errorf("drop_percentage.denominator", "unknown value %d", n)
	}
	a.Drops = append(a.Drops, x)
	return nil
}

// maxPriority is the greatest priority that Envoy allows.
const maxPriority = 128

func (a *Assignment) addLocality(l *endpointv3.LocalityLbEndpoints, names bool) error {
	switch {
	case l.GetPriority() > maxPriority:
		return field.Errorf("priority", "%d is more than %d", l.GetPriority(), maxPriority)
	case l.GetLbConfig() != nil:
		return field.Unsupported(l, "lb_config")
	case len(a.Endpoints)+len(l.GetLbEndpoints()) > maxEndpoints:
		return fmt.Errorf("more than %d endpoints", maxEndpoints)
	}
	g := group{
		locality: Locality{l.GetLocality().GetRegion(), l.GetLocality().GetZone(), l.GetLocality().GetSubZone()},
		priority: int(l.GetPriority()), weight: l.GetLoadBalancingWeight().GetValue(),
	}
	a.groups = append(a.groups, g)
	at := g.locality
	for i, p := range l.GetLbEndpoints() {
		e, err := compileEndpoint(p, names)
		if err != nil {
			return field.Index(err, "lb_endpoints", i)
		}
		e.Priority, e.Locality, e.group = g.priority, &at, len(a.groups)-1
		e.Workload = a.workload(p.GetMetadata().GetFilterMetadata()["istio"].GetFields()["workload"].GetStringValue())
		a.Endpoints = append(a.Endpoints, e)
	}
	return nil
}

func compileEndpoint(p *endpointv3.LbEndpoint, names bool) (*Endpoint, error) {
	if p.GetEndpoint() == nil {
		return nil, field.Errorf("endpoint", "required")
	}
	e := &Endpoint{Weight: 1, match: p.GetMetadata().GetFilterMetadata()[socketMatch], Hostname: p.GetEndpoint().GetHostname()}
	if w := p.GetLoadBalancingWeight(); w != nil {
		if e.Weight = w.GetValue(); e.Weight == 0 {
			return nil, field.Errorf("load_balancing_weight", "must be more than 0")
		}
	}
	switch p.GetHealthStatus() {
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
	case corev3.HealthStatus_DEGRADED:
		e.Health = Degraded
	case corev3.HealthStatus_DRAINING:
		e.Health = Draining
	case corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_TIMEOUT:
		e.Health = Unhealthy
	default:
		return nil, field.Errorf("health_status", "unknown value %d", p.GetHealthStatus())
	}
	if err := e.compileAddress(p.GetEndpoint().GetAddress(), p.GetMetadata(), names); err != nil {
		return nil, field.At(err, "endpoint.address")
	}
	return e, nil
}

// workload reads who an endpoint is; the endpoints of a workload share it.
func (a *Assignment) workload(s string) *Workload {
	if w := a.workloads[s]; w != nil {
		return w
	}
	var f [5]string
	copy(f[:], strings.Split(s, ";"))
	w := &Workload{f[0], f[1], f[2], f[3], f[4]}
	if a.workloads == nil {
		a.workloads = map[string]*Workload{}
	}
	a.workloads[s] = w
	return w
}

func (e *Endpoint) compileAddress(a *corev3.Address, md *corev3.Metadata, names bool) (err error) {
	switch x := a.GetAddress().(type) {
	case *corev3.Address_SocketAddress:
		if x.SocketAddress.GetProtocol() != corev3.SocketAddress_TCP {
			return field.Errorf("socket_address.protocol", "unsupported %v", x.SocketAddress.GetProtocol())
		}
		if e.Addr, err = field.Addr(x.SocketAddress); err != nil {
			if !names || x.SocketAddress.GetAddress() == "" {
				return field.At(err, "socket_address")
			}
			e.Name, e.Addr = x.SocketAddress.GetAddress(), netip.AddrPort{}
			e.Port, err = field.Port(x.SocketAddress)
		}
		e.key = e.String()
		return field.At(err, "socket_address")
	case *corev3.Address_EnvoyInternalAddress:
		return field.At(e.compileInternal(x.EnvoyInternalAddress, md.GetFilterMetadata()), "envoy_internal_address")
	case nil:
		return errors.New("required")
	default:
		return field.Unsupported(a, "address")
	}
}

// compileInternal reads what an internal listener of Envoy would do with a connection to it (controlplane.md 3.2, 3.7).
func (e *Endpoint) compileInternal(a *corev3.EnvoyInternalAddress, all map[string]*structpb.Struct) error {
	e.Listener = a.GetServerListenerName()
	e.key = internalScheme + e.Listener + "/" + a.GetEndpointId()
	if e.Listener == connectOriginate {
		e.Listener = connectOriginate // not one string for each endpoint
	}
	md := all[originalDst].GetFields()
	local := md["local"].GetStringValue()
	var err error
	switch e.Listener {
	case "":
		return field.Errorf("server_listener_name", "required")
	case connectOriginate:
		e.Via = HBONE
		if local == "" { // "encap": to where the client wanted to go
			return nil
		}
		if e.Addr, err = netip.ParseAddrPort(local); err != nil {
			return fmt.Errorf("metadata %s: local: %q is not an address with port", originalDst, local)
		}
		e.Tunnel = e.Addr
		if w := md["waypoint"].GetStringValue(); w != "" {
			if e.Waypoint, err = netip.ParseAddrPort(w); err != nil {
				return fmt.Errorf("metadata %s: waypoint: %q is not an address with port", originalDst, w)
			}
		}
	case "inner_connect_originate":
		e.Via = DoubleHBONE
		if e.Addr, err = netip.ParseAddrPort(local); err != nil {
			return fmt.Errorf("metadata %s: local: %q is not an address with port", originalDst, local)
		}
		double := all["istio"].GetFields()["double_hbone"].GetStructValue()
		if e.Target = double.GetFields()["hbone_target_address"].GetStringValue(); e.Target == "" {
			return errors.New("metadata istio: double_hbone.hbone_target_address is required")
		}
	default:
		e.Via = Internal
	}
	return nil
}
