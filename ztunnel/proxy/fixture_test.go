package proxy

import (
	"net/netip"
	"testing"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

type (
	wlOpt  = func(*pb.Workload)
	svcOpt = func(*pb.Service)
)

// wl returns an HBONE pod default/name with service account name, on network "".
func wl(name, ip string, opts ...wlOpt) *pb.Workload {
	w := &pb.Workload{
		Uid: "c//Pod/default/" + name, Name: name, Namespace: "default", ServiceAccount: name,
		TunnelProtocol: pb.TunnelProtocol_HBONE,
	}
	if ip != "" {
		w.Addresses = [][]byte{netip.MustParseAddr(ip).AsSlice()}
	}
	for _, o := range opts {
		o(w)
	}
	return w
}

// svc returns the service default/name.default, port 80 to 8080.
func svc(name, vip string, opts ...svcOpt) *pb.Service {
	s := &pb.Service{
		Name: name, Namespace: "default", Hostname: name + ".default", Ports: ports(80, 8080),
	}
	if vip != "" {
		s.Addresses = []*pb.NetworkAddress{{Address: netip.MustParseAddr(vip).AsSlice()}}
	}
	for _, o := range opts {
		o(s)
	}
	return s
}

func ports(p ...uint32) []*pb.Port {
	var out []*pb.Port
	for i := 0; i+1 < len(p); i += 2 {
		out = append(out, &pb.Port{ServicePort: p[i], TargetPort: p[i+1]})
	}
	return out
}

func in(service string, p ...uint32) wlOpt {
	return func(w *pb.Workload) {
		if w.Services == nil {
			w.Services = map[string]*pb.PortList{}
		}
		w.Services["default/"+service+".default"] = &pb.PortList{Ports: ports(p...)}
	}
}

func onNetwork(n string) wlOpt { return func(w *pb.Workload) { w.Network = n } }
func plain(w *pb.Workload)     { w.TunnelProtocol = pb.TunnelProtocol_NONE }
func hostNet(w *pb.Workload)   { w.NetworkMode = pb.NetworkMode_HOST_NETWORK }
func unhealthy(w *pb.Workload) { w.Status = pb.WorkloadStatus_UNHEALTHY }

func alsoAt(ip string) wlOpt {
	return func(w *pb.Workload) { w.Addresses = append(w.Addresses, netip.MustParseAddr(ip).AsSlice()) }
}

func hostname(h string) wlOpt { return func(w *pb.Workload) { w.Hostname = h } }

func tunnel(p pb.ApplicationTunnel_Protocol, port uint32) wlOpt {
	return func(w *pb.Workload) { w.ApplicationTunnel = &pb.ApplicationTunnel{Protocol: p, Port: port} }
}

func byHost(name string) *pb.GatewayAddress {
	return &pb.GatewayAddress{HboneMtlsPort: 15008, Destination: &pb.GatewayAddress_Hostname{
		Hostname: &pb.NamespacedHostname{Namespace: "default", Hostname: name + ".default"},
	}}
}

func byAddr(network, ip string) *pb.GatewayAddress {
	return &pb.GatewayAddress{HboneMtlsPort: 15008, Destination: &pb.GatewayAddress_Address{
		Address: &pb.NetworkAddress{Network: network, Address: netip.MustParseAddr(ip).AsSlice()},
	}}
}

func wlWaypoint(g *pb.GatewayAddress) wlOpt   { return func(w *pb.Workload) { w.Waypoint = g } }
func svcWaypoint(g *pb.GatewayAddress) svcOpt { return func(s *pb.Service) { s.Waypoint = g } }
func gateway(g *pb.GatewayAddress) wlOpt      { return func(w *pb.Workload) { w.NetworkGateway = g } }
func sans(s ...string) svcOpt                 { return func(p *pb.Service) { p.SubjectAltNames = s } }
func withPorts(p ...uint32) svcOpt            { return func(s *pb.Service) { s.Ports = ports(p...) } }
func families(f pb.IPFamilies) svcOpt         { return func(s *pb.Service) { s.IpFamilies = f } }

func passthrough(s *pb.Service) {
	s.LoadBalancing = &pb.LoadBalancing{
		Mode: pb.LoadBalancing_PASSTHROUGH, HealthPolicy: pb.LoadBalancing_ALLOW_ALL,
	}
}

func weighted(a, b *pb.GatewayAddress, wa, wb uint32) svcOpt {
	return func(s *pb.Service) {
		s.WeightedWaypoints = []*pb.WeightedWaypoint{{Destination: a, Weight: wa}, {Destination: b, Weight: wb}}
	}
}

func view(t testing.TB, msgs ...any) *workload.View {
	t.Helper()
	var up []xds.Resource[workload.Address]
	for _, m := range msgs {
		a := &pb.Address{}
		switch m := m.(type) {
		case *pb.Workload:
			a.Type = &pb.Address_Workload{Workload: m}
		case *pb.Service:
			a.Type = &pb.Address_Service{Service: m}
		}
		v, err := workload.FromProto("test", a)
		if err != nil {
			t.Fatal(err)
		}
		up = append(up, xds.Resource[workload.Address]{Value: v})
	}
	s := workload.NewStore(workload.Config{})
	if err := s.Apply(up, nil); err != nil {
		t.Fatal(err)
	}
	return s.View()
}

func pod(v *workload.View, name string) *workload.Workload { return v.Pod(name, "default", name) }

func id(sa string) string { return "spiffe://cluster.local/ns/default/sa/" + sa }
