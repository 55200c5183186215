package dns

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

var lookup = Lookup{Domain: "cluster.local"}

func service(ns, host string, vips []string, more ...func(*pb.Service)) *pb.Address {
	s := &pb.Service{Name: host, Namespace: ns, Hostname: host}
	for _, v := range vips {
		a := &pb.NetworkAddress{}
		if p, err := netip.ParsePrefix(v); err == nil {
			bits := uint32(p.Bits())
			a.Address, a.Length = p.Addr().AsSlice(), &bits
		} else {
			a.Address = netip.MustParseAddr(v).AsSlice()
		}
		s.Addresses = append(s.Addresses, a)
	}
	for _, f := range more {
		f(s)
	}
	return &pb.Address{Type: &pb.Address_Service{Service: s}}
}

func kube(ns, name string, vips ...string) *pb.Address {
	return service(ns, name+"."+ns+".svc.cluster.local", vips, func(s *pb.Service) { s.Canonical = true })
}

func endpointOf(ns, name, owner, host string, addrs ...string) *pb.Address {
	w := &pb.Workload{
		Uid: "c//Pod/" + ns + "/" + name, Name: name, Namespace: ns, WorkloadName: owner,
		Services: map[string]*pb.PortList{ns + "/" + host: {}},
	}
	for _, a := range addrs {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a).AsSlice())
	}
	return &pb.Address{Type: &pb.Address_Workload{Workload: w}}
}

// fixture is a mesh with a service of every form.
func fixture() []*pb.Address {
	local, far := func(s *pb.Service) { s.Visibility = pb.Service_NAMESPACE }, func(s *pb.Service) { s.Addresses[0].Network = "far" }
	unready := endpointOf("shop", "db-2", "db", "db.shop.svc.cluster.local", "10.1.0.12")
	unready.GetWorkload().Status = pb.WorkloadStatus_UNHEALTHY
	elsewhere := endpointOf("shop", "db-3", "db", "db.shop.svc.cluster.local", "10.1.0.13")
	elsewhere.GetWorkload().Network = "far"
	return []*pb.Address{
		kube("shop", "web", "10.96.0.1"),
		kube("other", "web", "10.96.0.2"),
		kube("other", "api", "10.96.0.3", "fd00::3"),
		kube("shop", "six", "fd00::6"),
		service("shop", "four.shop.svc.cluster.local", []string{"10.96.0.4", "fd00::4"}, func(s *pb.Service) { s.IpFamilies = pb.IPFamilies_IPV4_ONLY }),
		kube("shop", "db"),
		endpointOf("shop", "db-0", "db", "db.shop.svc.cluster.local", "10.1.0.10", "fd00:1::10"),
		endpointOf("shop", "db-1", "db", "db.shop.svc.cluster.local", "10.1.0.11"),
		unready, elsewhere,
		kube("shop", "plain"),
		endpointOf("shop", "plain-5d4c7-x2x2x", "plain-5d4c7", "plain.shop.svc.cluster.local", "10.1.0.20"),
		kube("shop", "empty"),
		kube("shop", "allday"),
		// The name of a pod of db, were it in another place.
		kube("db", "db-7", "10.96.0.77"),
		service("shop", "api.example.com", []string{"240.240.0.1", "2001:2::1"}),
		service("shop", "private.example.com", []string{"240.240.0.2"}, local),
		service("shop", "*.wild.example.com", []string{"240.240.0.3"}),
		service("shop", "range.example.com", []string{"10.200.0.0/16"}),
		service("shop", "none.example.com", nil),
		service("shop", "far.example.com", []string{"240.240.0.4"}, far),
		service("shop", "twice.example.com", []string{"240.240.0.5"}),
		service("other", "twice.example.com", []string{"240.240.0.6"}),
	}
}

func view(t testing.TB, objects ...*pb.Address) *workload.View {
	t.Helper()
	s := workload.NewStore(workload.Config{})
	fill(t, s, objects...)
	return s.View()
}

func fill(t testing.TB, s *workload.Store, objects ...*pb.Address) {
	t.Helper()
	var up []xds.Resource[workload.Address]
	for _, o := range objects {
		a, err := workload.FromProto("test", o)
		if err != nil {
			t.Fatal(err)
		}
		name := ""
		if a.Service != nil {
			name = a.Service.Key
		} else {
			name = a.Workload.UID
		}
		up = append(up, xds.Resource[workload.Address]{Name: name, Value: a})
	}
	if err := s.Apply(up, nil); err != nil {
		t.Fatal(err)
	}
}

// asking makes a query.
func asking(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, qtype)
}

func packed(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpacked(t testing.TB, b []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("unpack %x: %v", b, err)
	}
	return m
}
