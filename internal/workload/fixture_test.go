package workload

import (
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// wl returns a healthy HBONE pod default/name at ip on network "".
func wl(name, ip string, opts ...func(*pb.Workload)) *pb.Workload {
	w := &pb.Workload{
		Uid: "c//Pod/default/" + name, Name: name, Namespace: "default", TunnelProtocol: pb.TunnelProtocol_HBONE,
		ServiceAccount: name, Node: "node1",
	}
	if ip != "" {
		w.Addresses = [][]byte{netip.MustParseAddr(ip).AsSlice()}
	}
	for _, o := range opts {
		o(w)
	}
	return w
}

func member(key string, ports ...uint32) func(*pb.Workload) {
	return func(w *pb.Workload) {
		if w.Services == nil {
			w.Services = map[string]*pb.PortList{}
		}
		w.Services[key] = portList(ports...)
	}
}

func at(region, zone, subzone string) func(*pb.Workload) {
	return func(w *pb.Workload) { w.Locality = &pb.Locality{Region: region, Zone: zone, Subzone: subzone} }
}

func onNetwork(n string) func(*pb.Workload) { return func(w *pb.Workload) { w.Network = n } }

func capacity(n uint32) func(*pb.Workload) {
	return func(w *pb.Workload) { w.Capacity = wrapperspb.UInt32(n) }
}

func unhealthy(w *pb.Workload) { w.Status = pb.WorkloadStatus_UNHEALTHY }

func portList(ports ...uint32) *pb.PortList {
	l := &pb.PortList{}
	for i := 0; i+1 < len(ports); i += 2 {
		l.Ports = append(l.Ports, &pb.Port{ServicePort: ports[i], TargetPort: ports[i+1]})
	}
	return l
}

// svc returns the service ns/name.ns with port 80 to 8080 and the given VIPs (addresses or CIDRs) on network "".
func svc(ns, name string, vips []string, opts ...func(*pb.Service)) *pb.Service {
	s := &pb.Service{Name: name, Namespace: ns, Hostname: name + "." + ns, Ports: portList(80, 8080).Ports}
	for _, v := range vips {
		s.Addresses = append(s.Addresses, vip("", v))
	}
	for _, o := range opts {
		o(s)
	}
	return s
}

func vip(network, v string) *pb.NetworkAddress {
	if p, err := netip.ParsePrefix(v); err == nil {
		bits := uint32(p.Bits())
		return &pb.NetworkAddress{Network: network, Address: p.Addr().AsSlice(), Length: &bits}
	}
	return &pb.NetworkAddress{Network: network, Address: netip.MustParseAddr(v).AsSlice()}
}

func canonical(s *pb.Service)     { s.Canonical = true }
func namespaceOnly(s *pb.Service) { s.Visibility = pb.Service_NAMESPACE }

func balanced(mode pb.LoadBalancing_Mode, scopes ...pb.LoadBalancing_Scope) func(*pb.Service) {
	return func(s *pb.Service) { s.LoadBalancing = &pb.LoadBalancing{Mode: mode, RoutingPreference: scopes} }
}

func allowAll(s *pb.Service) {
	s.LoadBalancing = &pb.LoadBalancing{HealthPolicy: pb.LoadBalancing_ALLOW_ALL}
}

// apply sends messages and removals as one push.
func apply(t testing.TB, s *Store, msgs []any, removed ...string) *View {
	t.Helper()
	var up []xds.Resource[Address]
	for _, m := range msgs {
		up = append(up, resource(t, m))
	}
	if err := s.Apply(up, removed); err != nil {
		t.Fatal(err)
	}
	return s.View()
}

func resource(t testing.TB, m any) xds.Resource[Address] {
	t.Helper()
	a := &pb.Address{}
	switch m := m.(type) {
	case *pb.Workload:
		a.Type = &pb.Address_Workload{Workload: m}
	case *pb.Service:
		a.Type = &pb.Address_Service{Service: m}
	}
	v, err := FromProto("test", a)
	if err != nil {
		t.Fatal(err)
	}
	return xds.Resource[Address]{Value: v}
}

func store(t testing.TB, msgs ...any) *Store {
	s := NewStore(Config{Node: "node1"})
	apply(t, s, msgs)
	return s
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// endpoints returns the names of a service's usable endpoints.
func endpoints(v *View, key string) []string {
	s := v.ServiceByKey(key)
	if s == nil {
		return nil
	}
	var out []string
	for w := range v.Endpoints(s) {
		out = append(out, w.Name)
	}
	return out
}

// reachableFrom returns the names that Pick can draw for a source.
func reachableFrom(v *View, key string, src *Workload, port uint16) []string {
	p := &Pick{Source: src, Port: port}
	e := v.entry(key)
	if e == nil || e.svc == nil {
		return nil
	}
	var out []string
	for _, u := range e.table(p).ups {
		out = append(out, u.Workload.Name)
	}
	slices.Sort(out)
	return out
}

type ipAddr = netip.Addr
