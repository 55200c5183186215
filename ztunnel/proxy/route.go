package proxy

import (
	"math/rand/v2"
	"net/netip"
	"strconv"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// The ports that the proxy itself listens on in every pod, and that the mesh's wire protocol fixes (P1, P5).
const (
	PortOutbound  = 15001 // captured outbound connections
	PortPlaintext = 15006 // captured inbound plaintext
	PortHBONE     = 15008 // tunnels
	PortSOCKS     = 15080 // only if SOCKS5 is on
)

// IllegalPort tells whether forwarding to port would let a connection enter the proxy again (P5).
func IllegalPort(port uint16) bool {
	return port == PortOutbound || port == PortPlaintext || port == PortHBONE
}

// Protocol is how a connection is carried to its next hop.
type Protocol uint8

// The protocols of a Decision.
const (
	TCP         Protocol = iota // plain TCP
	HBONE                       // one tunnel
	DoubleHBONE                 // a tunnel inside a tunnel, through another network's gateway (O30, O31)
)

// String returns the name that config_dump shows.
func (p Protocol) String() string {
	switch p {
	case HBONE:
		return "HBONE"
	case DoubleHBONE:
		return "DOUBLEHBONE"
	}
	return "TCP"
}

// Query is one captured connection.
type Query struct {
	Source  *workload.Workload // the pod's own record, found by its ZDS identity (O2); never nil
	Peer    netip.Addr         // the connection's client address
	Dst     netip.AddrPort     // the original destination, not IPv4-mapped
	Network string             // the node's network
	Rand    *rand.Rand         // the loop's; nil uses the runtime's
	// Avoid, if not nil, names endpoints that just refused, to be left out while another one remains.
	Avoid func(*workload.Workload) bool
}

// Decision is where a connection goes and who must answer there. It holds pointers into the View only, no memory of its
// own.
type Decision struct {
	Protocol Protocol
	// Dial is the TCP address of the next hop. Its address is invalid when Resolve is set.
	Dial netip.AddrPort
	// Resolve is a hostname whose address completes Dial, and Target if that has none (O22). See Resolved.
	Resolve string
	// Target and Host are the CONNECT authority: Host with Target's port if Host is set, else Target. Unused for TCP.
	Target netip.AddrPort
	Host   string
	// Expect are the identities accepted at the next hop; nil for TCP.
	Expect *workload.Identities
	// Inner are the identities accepted inside the second tunnel of DoubleHBONE, else nil. An empty set accepts nobody.
	Inner *workload.Identities

	// Workload is the destination as far as it is known here, for telemetry: nil for unknown addresses; behind a
	// waypoint, the waypoint.
	Workload *workload.Workload
	// Service is the service the application meant, or nil.
	Service *workload.Service
	// Waypoint tells that the next hop is a waypoint.
	Waypoint bool
}

// Authority returns the CONNECT authority (H12). It is empty for TCP.
func (d *Decision) Authority() string {
	switch {
	case d.Protocol == TCP:
		return ""
	case d.Host != "":
		return d.Host + ":" + strconv.Itoa(int(d.Target.Port()))
	}
	return d.Target.String()
}

// Resolved returns the decision with the address of the hostname Resolve filled in.
func (d Decision) Resolved(ip netip.Addr) Decision {
	d.Resolve = ""
	d.Dial = netip.AddrPortFrom(ip, d.Dial.Port())
	if !d.Target.Addr().IsValid() && d.Host == "" {
		d.Target = netip.AddrPortFrom(ip, d.Target.Port())
	}
	return d
}

// Route decides where an outbound connection goes (O1-O33). It is a pure function of the view and of the draws from
// q.Rand, and does not block. Every error is a *RouteError.
func Route(v *workload.View, q Query) (Decision, error) {
	if q.Dst.Addr().IsLoopback() && IllegalPort(q.Dst.Port()) {
		return Decision{}, routeError(SelfCall, q.Dst.String())
	}
	r := router{v: v, q: &q}
	// O3: the workload index first, then services. A decides about a service waypoint only.
	var dialled *workload.Service
	if v.Workload(q.Network, q.Dst.Addr()) == nil {
		dialled = v.ServiceByVIP(q.Network, q.Dst.Addr(), q.Source.Namespace)
	}
	if dialled != nil {
		if g := dialled.DrawWaypoint(q.Rand); g != nil {
			return r.serviceWaypoint(dialled, g)
		}
	}
	// O5: here the service comes first.
	svc := v.ServiceByVIP(q.Source.Network, q.Dst.Addr(), q.Source.Namespace)
	if svc != nil {
		return r.service(svc)
	}
	if w := v.Workload(q.Source.Network, q.Dst.Addr()); w != nil {
		return r.workload(w)
	}
	// O6: unknown destinations pass through, services without endpoints do not.
	if dialled != nil && dialled.Mode != workload.ModePassthrough {
		return Decision{}, routeError(NoHealthyUpstream, dialled.Key)
	}
	return Decision{Dial: q.Dst, Service: dialled}, nil
}

// router carries what every step of one Route needs.
type router struct {
	v *workload.View
	q *Query
}

func (r *router) pick() workload.Pick {
	return workload.Pick{Source: r.q.Source, Client: r.q.Peer, Rand: r.q.Rand, Avoid: r.q.Avoid}
}

// serviceWaypoint sends a connection to a service through one of the service's waypoints, with the address that the
// application dialled as authority (O4). An unusable waypoint fails the connection: it never goes around.
func (r *router) serviceWaypoint(s *workload.Service, g *workload.Gateway) (Decision, error) {
	p := r.pick()
	p.Waypoint = true
	up, ok := r.v.Resolve(g, r.q.Source.Namespace, p)
	if !ok {
		return Decision{}, routeError(UnknownWaypoint, g.String())
	}
	if up.Workload.Network != r.q.Source.Network {
		return r.double(up, s)
	}
	return r.waypoint(up, s)
}

// waypoint is the HBONE hop to a resolved waypoint.
func (r *router) waypoint(up workload.Upstream, s *workload.Service) (Decision, error) {
	d := Decision{
		Protocol: HBONE, Target: r.q.Dst, Expect: up.Expect, Workload: up.Workload, Service: s, Waypoint: true,
	}
	// O25: the port is the resolved target port of the waypoint's service, not a constant.
	if !r.dial(&d, up, up.Port) {
		return Decision{}, routeError(NoValidDestination, up.Workload.UID)
	}
	return d, nil
}

// service sends a connection to an endpoint of the service it addressed.
func (r *router) service(s *workload.Service) (Decision, error) {
	if s.Mode == workload.ModePassthrough {
		return Decision{Dial: r.q.Dst, Service: s}, nil
	}
	p := r.pick()
	p.Port = r.q.Dst.Port()
	up, ok := r.v.Pick(s, &p)
	if !ok {
		return Decision{}, routeError(NoHealthyUpstream, s.Key)
	}
	if up.Workload.Network != r.q.Source.Network { // O7
		return r.double(up, s)
	}
	return r.direct(r.meant(up)) // O8: the endpoint's own waypoint does not count here
}

// meant is the pod that has the address of an endpoint without a record of its own by address (O14): somebody wrote the
// endpoint by hand. Without it the pod would get plaintext from a pod of the mesh.
func (r *router) meant(up workload.Upstream) workload.Upstream {
	if !up.Workload.HostNet {
		return up
	}
	if ip, ok := up.Workload.Select(up.Service, r.q.Dst.Addr()); ok {
		if w := r.v.Workload(up.Workload.Network, ip); w != nil {
			up.Workload, up.Expect = w, w.Expect
		}
	}
	return up
}

// workload sends a connection to a workload that was dialled by its own address.
func (r *router) workload(w *workload.Workload) (Decision, error) {
	if w.Waypoint != nil && !r.fromWaypoint(w.Waypoint) {
		p := r.pick()
		p.Waypoint = true
		up, ok := r.v.Resolve(w.Waypoint, r.q.Source.Namespace, p)
		if !ok {
			return Decision{}, routeError(UnknownWaypoint, w.Waypoint.String())
		}
		return r.waypoint(up, nil)
	}
	return r.direct(workload.Upstream{Workload: w, Port: r.q.Dst.Port(), Expect: w.Expect})
}

// fromWaypoint tells whether the client is the waypoint g itself: by identity and by address (O8). One of the two alone
// is not enough: a pod that shares the waypoint's service account must not go around it.
func (r *router) fromWaypoint(g *workload.Gateway) bool {
	return r.v.GatewayHas(g, r.q.Source.Namespace, func(w *workload.Workload) bool {
		return !w.ID.IsZero() && w.ID == r.q.Source.ID && w.Owns(r.q.Peer)
	})
}

// direct is the hop to the workload itself (O9). Same-node destinations are not special here (O10).
func (r *router) direct(up workload.Upstream) (Decision, error) {
	d := Decision{Workload: up.Workload, Service: up.Service}
	port := up.Port
	if up.Workload.Protocol == workload.HBONE {
		d.Protocol, d.Expect, port = HBONE, up.Expect, PortHBONE
	}
	if !r.dial(&d, up, port) {
		return Decision{}, routeError(NoValidDestination, up.Workload.UID)
	}
	if d.Protocol == HBONE {
		d.Target = netip.AddrPortFrom(d.Dial.Addr(), up.Port)
	}
	return d, nil
}

// double reaches a workload of another network through that network's gateway (O29-O31). s is the service that the
// application addressed: it names the destination on the other side.
func (r *router) double(up workload.Upstream, s *workload.Service) (Decision, error) {
	g := up.Workload.NetGateway
	if g == nil {
		return Decision{}, routeError(NoValidDestination, up.Workload.UID)
	}
	gw, ok := r.v.Resolve(g, r.q.Source.Namespace, r.pick())
	if !ok {
		return Decision{}, routeError(UnknownGateway, g.String())
	}
	d := Decision{
		Protocol: DoubleHBONE, Host: s.Hostname, Target: netip.AddrPortFrom(netip.Addr{}, r.q.Dst.Port()),
		Expect: gw.Expect, Inner: noIdentities, Workload: up.Workload, Service: s,
	}
	if up.Service != nil {
		// The concrete workload is not known on this side, so only the service can vouch.
		d.Inner = up.Service.Expect
		d.Waypoint = up.Service != s
	}
	if !r.dial(&d, gw, gw.Port) {
		return Decision{}, routeError(NoValidDestination, gw.Workload.UID)
	}
	return d, nil
}

// noIdentities accepts nobody.
var noIdentities = &workload.Identities{}

// dial fills Dial, or Resolve when only DNS knows the address (O22).
func (r *router) dial(d *Decision, up workload.Upstream, port uint16) bool {
	ip, ok := up.Workload.Select(up.Service, r.q.Dst.Addr())
	if !ok {
		if up.Workload.Hostname == "" {
			return false
		}
		d.Resolve = up.Workload.Hostname
	}
	d.Dial = netip.AddrPortFrom(ip, port)
	return true
}
