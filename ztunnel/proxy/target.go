package proxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// TargetQuery is one CONNECT that arrived at a pod's tunnel port.
type TargetQuery struct {
	Local     *workload.Workload // the pod's own record; never nil
	LocalAddr netip.Addr         // address at which the tunnel's connection was accepted, not IPv4-mapped
	Peer      netip.Addr         // the tunnel's client
	Network   string             // the node's network
	Authority string             // of the request
	// LoopbackTunnel hands streams of an application tunnel with PROXY protocol over on loopback (P11).
	LoopbackTunnel bool
}

// Target is where an inbound stream goes.
type Target struct {
	// Upstream is the real destination in the pod; policies are checked against it (I10).
	Upstream netip.AddrPort
	// Dial is what to connect to: Upstream, or loopback (P11).
	Dial netip.AddrPort
	// Spoof is the address to connect from (P10); invalid for none.
	Spoof netip.Addr
	// Proxy tells to write a PROXY v2 header first, with Tunnelled as its destination (I9).
	Proxy     bool
	Tunnelled netip.AddrPort
	// Service is the service of a hostname authority, else nil; see TargetService for telemetry.
	Service *workload.Service
}

// ResolveTarget checks that a CONNECT target is this pod's business and finds the port that serves it (I3-I5). It is a
// pure function of the view. Every error is a *RouteError whose Reason has the HTTP status of the refusal.
func ResolveTarget(v *workload.View, q TargetQuery) (Target, error) {
	host, addr, err := parseAuthority(q.Authority)
	if err != nil {
		return Target{}, err
	}
	t := Target{Tunnelled: addr}
	port := addr.Port()
	if host != "" {
		if port, err = t.resolveHost(v, &q, host, port); err != nil {
			return Target{}, err
		}
	} else if !addressedHere(v, &q, addr.Addr()) {
		return Target{}, routeError(AddressMismatch, q.Authority)
	}
	if app := q.Local.Tunnel; app != nil {
		if app.Port != 0 {
			port = app.Port
		}
		t.Proxy = app.ProxyProtocol
	}
	if port == 0 {
		return Target{}, routeError(NoValidPort, q.Authority)
	}
	if IllegalPort(port) {
		return Target{}, routeError(SelfCall, q.Authority)
	}
	t.Upstream = netip.AddrPortFrom(q.LocalAddr, port)
	t.Dial = t.Upstream
	switch {
	case t.Proxy && q.LoopbackTunnel:
		// P11: the true addresses travel in the header.
		lo := netip.IPv6Loopback()
		if q.LocalAddr.Is4() {
			lo = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		t.Dial, t.Spoof = netip.AddrPortFrom(lo, port), lo
	case q.Peer != q.LocalAddr:
		t.Spoof = q.Peer
	}
	return t, nil
}

// resolveHost finds the service of a hostname authority, the port that the pod serves it on, and the address that the
// PROXY header shows (I4, I5).
func (t *Target) resolveHost(v *workload.View, q *TargetQuery, host string, port uint16) (uint16, error) {
	s := v.ServiceByHostname(host, q.Local.Namespace, "")
	if s == nil {
		return 0, routeError(UnknownService, host)
	}
	t.Service = s
	t.Tunnelled = netip.AddrPortFrom(serviceAddr(s, q.Network), port)
	if m := q.Local.Member(s.Key); m != nil {
		if p := m.Target(port); p != 0 {
			return p, nil
		}
	}
	if p, _ := s.Port(port); p != 0 {
		return p, nil
	}
	if app := q.Local.Tunnel; app != nil && app.Port != 0 {
		return port, nil // replaced by the tunnel's port
	}
	return 0, routeError(NoValidPort, q.Authority)
}

// serviceAddr returns a virtual address of s: of the network if it has one there, and IPv4 first. Invalid if it has none.
func serviceAddr(s *workload.Service, network string) netip.Addr {
	var best netip.Addr
	score := -1
	for _, vip := range s.VIPs {
		if !vip.Prefix.IsSingleIP() {
			continue
		}
		n := 0
		if vip.Network == network {
			n += 2
		}
		if vip.Prefix.Addr().Is4() {
			n++
		}
		if n > score {
			best, score = vip.Prefix.Addr(), n
		}
	}
	return best
}

// addressedHere tells whether ip may be the target of a CONNECT to this pod (I3): the pod's own address, anything if the
// pod has an application tunnel, or an address whose waypoint the pod is.
func addressedHere(v *workload.View, q *TargetQuery, ip netip.Addr) bool {
	if ip == q.LocalAddr || q.Local.Tunnel != nil {
		return true
	}
	own := func(w *workload.Workload) bool { return w == q.Local || w.UID == q.Local.UID }
	match := func(g *workload.Gateway) bool {
		return g != nil && v.GatewayHas(g, q.Local.Namespace, func(w *workload.Workload) bool {
			return own(w) || w.Owns(q.LocalAddr)
		})
	}
	if w := v.Workload(q.Network, ip); w != nil {
		return match(w.Waypoint)
	}
	s := v.ServiceByVIP(q.Network, ip, q.Local.Namespace)
	if s == nil {
		return false
	}
	if match(s.Waypoint) {
		return true
	}
	// The client draws among the weighted waypoints (O4), so each of them is a valid receiver.
	for _, w := range s.Weighted {
		if w.Weight > 0 && match(w.Gateway) {
			return true
		}
	}
	return false
}

// TargetService returns the service that an inbound connection means, for telemetry (I8): the one that the forwarded
// header named, if the pod belongs to it, else the pod's first service with this target port. forwardedHost may be empty.
func TargetService(v *workload.View, w *workload.Workload, forwardedHost string, port uint16) *workload.Service {
	var first *workload.Service
	for i := range w.Services {
		s := v.ServiceByKey(w.Services[i].Service)
		if s == nil {
			continue
		}
		if forwardedHost != "" && s.Hostname == forwardedHost {
			return s
		}
		if first == nil && servesOn(s, &w.Services[i], port) {
			first = s
		}
	}
	return first
}

func servesOn(s *workload.Service, m *workload.Membership, port uint16) bool {
	for _, p := range m.Ports {
		if p.Target == port {
			return true
		}
	}
	for _, p := range s.Ports {
		if p.Target == port {
			return true
		}
	}
	return false
}

// parseAuthority splits "host:port", "1.2.3.4:port" or "[v6]:port" (H12). The port is mandatory.
func parseAuthority(s string) (host string, addr netip.AddrPort, err error) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 || len(s) > 300 {
		return "", addr, routeError(BadAuthority, truncate(s))
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || port == 0 || s[i+1] == '+' {
		return "", addr, routeError(BadAuthority, truncate(s))
	}
	h := s[:i]
	if h[0] == '[' {
		ip, err := netip.ParseAddr(strings.TrimSuffix(h[1:], "]"))
		if err != nil || h[len(h)-1] != ']' || !ip.Is6() || ip.Zone() != "" {
			return "", addr, routeError(BadAuthority, truncate(s))
		}
		return "", netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
	}
	if ip, err := netip.ParseAddr(h); err == nil && ip.Is4() {
		return "", netip.AddrPortFrom(ip, uint16(port)), nil
	}
	if !validHostname(h) {
		return "", addr, routeError(BadAuthority, truncate(s))
	}
	return h, netip.AddrPortFrom(netip.Addr{}, uint16(port)), nil
}

func validHostname(h string) bool {
	for i := range len(h) {
		c := h[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' && c != '*' {
			return false
		}
	}
	return len(h) <= 253
}

func truncate(s string) string { return fmt.Sprintf("%.300q", s) }

// The PROXY protocol version 2 as far as it is written here (I9).
const (
	proxySignature   = "\r\n\r\n\x00\r\nQUIT\n"
	proxyVersion     = 0x21 // version 2, command PROXY
	proxyTCP4        = 0x11
	proxyTCP6        = 0x21
	proxyTLVIdentity = 0xD0 // Istio's: the client's SPIFFE ID
)

// AppendProxyV2 appends a PROXY v2 header for a connection from src to dst. identity is the client's SPIFFE ID as a URI,
// or empty. If only one of the addresses is IPv4, it is written IPv4-mapped. An invalid dst (a service without virtual
// address) is written as the unspecified address of src's family.
//
//	 0      12     13     14       16                                    16+addresses
//	+------+------+------+--------+-----------------+-----------------+------+--------+-----------+
//	| sig. | 0x21 | fam. | length | src and dst IP  | src and dst port| 0xD0 | length | SPIFFE ID |
//	+------+------+------+--------+-----------------+-----------------+------+--------+-----------+
func AppendProxyV2(b []byte, src, dst netip.AddrPort, identity string) []byte {
	b = append(b, proxySignature...)
	b = append(b, proxyVersion)
	to := dst.Addr()
	if !to.IsValid() {
		to = netip.IPv6Unspecified()
		if src.Addr().Is4() {
			to = netip.IPv4Unspecified()
		}
	}
	size := 36
	if src.Addr().Is4() && to.Is4() {
		size = 12
	}
	tlv := 0
	if identity != "" {
		tlv = 3 + len(identity)
	}
	if size == 12 {
		b = append(b, proxyTCP4)
		b = binary.BigEndian.AppendUint16(b, uint16(size+tlv))
		s, d := src.Addr().As4(), to.As4()
		b = append(append(b, s[:]...), d[:]...)
	} else {
		b = append(b, proxyTCP6)
		b = binary.BigEndian.AppendUint16(b, uint16(size+tlv))
		s, d := src.Addr().As16(), to.As16()
		b = append(append(b, s[:]...), d[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	if identity != "" {
		b = append(b, proxyTLVIdentity)
		b = binary.BigEndian.AppendUint16(b, uint16(len(identity)))
		b = append(b, identity...)
	}
	return b
}
