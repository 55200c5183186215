package workload

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Defaults of empty fields (section 5.1 of the protocol).
const (
	defaultTrustDomain    = "cluster.local"
	defaultServiceAccount = "default"
	defaultCluster        = "Kubernetes"
)

// DecodeAddress decodes and checks the body of one istio.workload.Address; name is the resource's name and is used in
// errors only. A resource with anything in it that we do not understand and that decides where traffic goes is rejected
// whole: better the last good state than half of a new one. It fits xds.Type.Decode.
func DecodeAddress(name string, body []byte) (Address, error) {
	var pb workloadpb.Address
	if err := proto.Unmarshal(body, &pb); err != nil {
		return Address{}, fmt.Errorf("decode address %q: %w", name, err)
	}
	return FromProto(name, &pb)
}

// DecodeWorkload is DecodeAddress of an istio.workload.Workload, the form in which waypoints get workloads.
func DecodeWorkload(name string, body []byte) (Address, error) {
	var pb workloadpb.Workload
	if err := proto.Unmarshal(body, &pb); err != nil {
		return Address{}, fmt.Errorf("decode workload %q: %w", name, err)
	}
	return FromProto(name, &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: &pb}})
}

// FromProto is DecodeAddress of an already parsed message; it keeps nothing of pb but its strings.
func FromProto(name string, pb *workloadpb.Address) (Address, error) {
	switch t := pb.GetType().(type) {
	case *workloadpb.Address_Workload:
		w, err := decodeWorkload(t.Workload)
		if err != nil {
			return Address{}, fmt.Errorf("workload %q: %w", name, err)
		}
		return Address{Workload: w}, nil
	case *workloadpb.Address_Service:
		s, err := decodeService(t.Service)
		if err != nil {
			return Address{}, fmt.Errorf("service %q: %w", name, err)
		}
		return Address{Service: s}, nil
	}
	return Address{}, fmt.Errorf("address %q: neither workload nor service", name)
}

func decodeWorkload(pb *workloadpb.Workload) (*Workload, error) {
	w := &Workload{
		UID:               pb.GetUid(),
		Name:              pb.GetName(),
		Namespace:         pb.GetNamespace(),
		Hostname:          pb.GetHostname(),
		Network:           pb.GetNetwork(),
		Native:            pb.GetNativeTunnel(),
		Capacity:          1,
		TrustDomain:       cmp.Or(pb.GetTrustDomain(), defaultTrustDomain),
		ServiceAccount:    cmp.Or(pb.GetServiceAccount(), defaultServiceAccount),
		Node:              pb.GetNode(),
		Cluster:           cmp.Or(pb.GetClusterId(), defaultCluster),
		CanonicalName:     pb.GetCanonicalName(),
		CanonicalRevision: pb.GetCanonicalRevision(),
		WorkloadName:      pb.GetWorkloadName(),
		Policies:          pb.GetAuthorizationPolicies(),
		Terminating:       Extended(pb.GetExtensions(), ExtensionTerminating),
	}
	if w.UID == "" {
		return nil, errors.New("uid is empty")
	}
	if l := pb.GetLocality(); l != nil {
		w.Locality = Locality{Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubzone()}
	}
	if c := pb.GetCapacity(); c != nil {
		w.Capacity = c.GetValue()
	}
	if err := decodeWorkloadEnums(w, pb); err != nil {
		return nil, err
	}
	for _, b := range pb.GetAddresses() {
		ip, err := decodeIP(b)
		if err != nil {
			return nil, err
		}
		w.Addrs = append(w.Addrs, ip)
	}
	var err error
	if w.Waypoint, err = decodeGateway(pb.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	if w.NetGateway, err = decodeGateway(pb.GetNetworkGateway()); err != nil {
		return nil, fmt.Errorf("network gateway: %w", err)
	}
	w.Services = decodeMemberships(pb.GetServices())
	// A record without usable identity stays: it can receive plaintext, but nothing can prove to be it.
	w.ID, _ = spiffe.New(w.TrustDomain, w.Namespace, w.ServiceAccount)
	w.Expect = newIdentities(w.ID)
	return w, nil
}

// Extended says whether an extension is among others, which mean nothing to us.
func Extended(all []*workloadpb.Extension, name string) bool {
	return slices.ContainsFunc(all, func(e *workloadpb.Extension) bool { return e.GetName() == name })
}

func decodeWorkloadEnums(w *Workload, pb *workloadpb.Workload) error {
	switch p := pb.GetTunnelProtocol(); p {
	case workloadpb.TunnelProtocol_NONE:
	case workloadpb.TunnelProtocol_HBONE:
		w.Protocol = HBONE
	default:
		return fmt.Errorf("unsupported tunnel protocol %v", p)
	}
	switch n := pb.GetNetworkMode(); n {
	case workloadpb.NetworkMode_STANDARD:
	case workloadpb.NetworkMode_HOST_NETWORK:
		w.HostNet = true
	default:
		return fmt.Errorf("unknown network mode %v", n)
	}
	switch s := pb.GetStatus(); s {
	case workloadpb.WorkloadStatus_HEALTHY:
	case workloadpb.WorkloadStatus_UNHEALTHY:
		w.Unhealthy = true
	default:
		return fmt.Errorf("unknown status %v", s)
	}
	switch t := pb.GetWorkloadType(); t {
	case workloadpb.WorkloadType_DEPLOYMENT, workloadpb.WorkloadType_CRONJOB, workloadpb.WorkloadType_POD, workloadpb.WorkloadType_JOB:
		w.Type = Type(t)
	default:
		return fmt.Errorf("unknown workload type %v", t)
	}
	if t := pb.GetApplicationTunnel(); t != nil {
		w.Tunnel = &AppTunnel{Port: uint16(t.GetPort())}
		switch p := t.GetProtocol(); p {
		case workloadpb.ApplicationTunnel_NONE:
		case workloadpb.ApplicationTunnel_PROXY:
			w.Tunnel.ProxyProtocol = true
		default:
			return fmt.Errorf("unknown application tunnel protocol %v", p)
		}
	}
	return nil
}

func decodeMemberships(in map[string]*workloadpb.PortList) []Membership {
	if len(in) == 0 {
		return nil
	}
	out := make([]Membership, 0, len(in))
	for key, ports := range in {
		out = append(out, Membership{Service: key, Ports: decodePorts(ports.GetPorts())})
	}
	slices.SortFunc(out, func(a, b Membership) int { return strings.Compare(a.Service, b.Service) })
	return out
}

// decodePorts keeps the low 16 bits of each port, as peers do; of two entries for one service port the last wins.
func decodePorts(in []*workloadpb.Port) []Port {
	if len(in) == 0 {
		return nil
	}
	out := make([]Port, 0, len(in))
	for _, p := range in {
		out = append(out, Port{Service: uint16(p.GetServicePort()), Target: uint16(p.GetTargetPort())})
	}
	slices.SortStableFunc(out, func(a, b Port) int { return cmp.Compare(a.Service, b.Service) })
	kept := out[:0]
	for i, p := range out {
		if i+1 == len(out) || out[i+1].Service != p.Service {
			kept = append(kept, p)
		}
	}
	return slices.Clip(kept)
}

func decodeService(pb *workloadpb.Service) (*Service, error) {
	s := &Service{
		Key:               pb.GetNamespace() + "/" + pb.GetHostname(),
		Name:              pb.GetName(),
		Namespace:         pb.GetNamespace(),
		Hostname:          pb.GetHostname(),
		Ports:             decodePorts(pb.GetPorts()),
		SANs:              pb.GetSubjectAltNames(),
		Canonical:         pb.GetCanonical(),
		IngressToWaypoint: pb.GetIngressUseWaypoint(),
		ClientAffinity:    Extended(pb.GetExtensions(), ExtensionClientAffinity),
		// An unknown visibility is PUBLIC, as peers read it.
		NamespaceOnly: pb.GetVisibility() == workloadpb.Service_NAMESPACE,
	}
	if s.Hostname == "" {
		return nil, errors.New("hostname is empty")
	}
	switch f := pb.GetIpFamilies(); f {
	case workloadpb.IPFamilies_AUTOMATIC, workloadpb.IPFamilies_IPV4_ONLY, workloadpb.IPFamilies_IPV6_ONLY, workloadpb.IPFamilies_DUAL:
		s.Families = Families(f)
	default:
		return nil, fmt.Errorf("unknown IP families %v", f)
	}
	if err := decodeVIPs(s, pb.GetAddresses()); err != nil {
		return nil, err
	}
	if err := decodeBalancing(s, pb.GetLoadBalancing()); err != nil {
		return nil, err
	}
	var err error
	if s.Waypoint, err = decodeGateway(pb.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	for _, ww := range pb.GetWeightedWaypoints() {
		g, err := decodeGateway(ww.GetDestination())
		if err != nil {
			return nil, fmt.Errorf("weighted waypoint: %w", err)
		}
		if g == nil {
			return nil, errors.New("weighted waypoint: no destination")
		}
		s.Weighted = append(s.Weighted, WeightedGateway{Gateway: g, Weight: ww.GetWeight()})
	}
	ids := make([]spiffe.ID, 0, len(s.SANs))
	for _, san := range s.SANs {
		id, err := spiffe.Parse(san)
		if err != nil {
			s.BadSANs = append(s.BadSANs, san)
			continue
		}
		ids = append(ids, id)
	}
	s.Expect = newIdentities(ids...)
	return s, nil
}

func decodeVIPs(s *Service, in []*workloadpb.NetworkAddress) error {
	for _, a := range in {
		ip, err := decodeIP(a.GetAddress())
		if err != nil {
			return err
		}
		bits := ip.BitLen()
		if a.Length != nil {
			// A length counted in IPv6 bits of a mapped address has no meaning after unmapping.
			if len(a.GetAddress())*8 != bits || a.GetLength() > uint32(bits) {
				return fmt.Errorf("prefix length %d of address %v is out of range", a.GetLength(), ip)
			}
			bits = int(a.GetLength())
		}
		s.VIPs = append(s.VIPs, VIP{Network: a.GetNetwork(), Prefix: netip.PrefixFrom(ip, bits).Masked()})
	}
	return nil
}

func decodeBalancing(s *Service, lb *workloadpb.LoadBalancing) error {
	for _, p := range lb.GetRoutingPreference() {
		if p < workloadpb.LoadBalancing_REGION || p > workloadpb.LoadBalancing_NETWORK {
			return fmt.Errorf("unsupported routing preference %v", p)
		}
		s.Preferences = append(s.Preferences, Scope(p))
	}
	switch m := lb.GetMode(); m {
	case workloadpb.LoadBalancing_UNSPECIFIED_MODE, workloadpb.LoadBalancing_STRICT, workloadpb.LoadBalancing_FAILOVER, workloadpb.LoadBalancing_PASSTHROUGH:
		s.Mode = Mode(m)
	default:
		return fmt.Errorf("unknown load balancing mode %v", m)
	}
	switch h := lb.GetHealthPolicy(); h {
	case workloadpb.LoadBalancing_ONLY_HEALTHY:
	case workloadpb.LoadBalancing_ALLOW_ALL:
		s.AllowUnhealthy = true
	default:
		return fmt.Errorf("unknown health policy %v", h)
	}
	return nil
}

// decodeGateway returns nil for an absent gateway; a present one must have a destination.
func decodeGateway(pb *workloadpb.GatewayAddress) (*Gateway, error) {
	if pb == nil {
		return nil, nil
	}
	g := &Gateway{Port: uint16(pb.GetHboneMtlsPort())}
	switch d := pb.GetDestination().(type) {
	case *workloadpb.GatewayAddress_Hostname:
		g.Namespace, g.Hostname = d.Hostname.GetNamespace(), d.Hostname.GetHostname()
		if g.Hostname == "" {
			return nil, errors.New("hostname is empty")
		}
	case *workloadpb.GatewayAddress_Address:
		ip, err := decodeIP(d.Address.GetAddress())
		if err != nil {
			return nil, err
		}
		g.Network, g.Addr = d.Address.GetNetwork(), ip
	default:
		return nil, errors.New("no destination")
	}
	return g, nil
}

func decodeIP(b []byte) (netip.Addr, error) {
	ip, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes: want 4 or 16", len(b))
	}
	return ip.Unmap(), nil
}

// newIdentities builds a set; zero IDs are left out.
func newIdentities(ids ...spiffe.ID) *Identities {
	set := &Identities{}
	keys := make([]string, 0, len(ids))
	for _, id := range ids {
		if id.IsZero() {
			continue
		}
		uri := id.String()
		i, found := slices.BinarySearch(keys, uri)
		if found {
			continue
		}
		keys = slices.Insert(keys, i, uri)
		set.IDs = slices.Insert(set.IDs, i, id)
	}
	set.Key = strings.Join(keys, ",")
	return set
}
