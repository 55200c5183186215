package workload

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
)

func decode(t *testing.T, m any) (Address, error) {
	t.Helper()
	a := &pb.Address{}
	switch m := m.(type) {
	case *pb.Workload:
		a.Type = &pb.Address_Workload{Workload: m}
	case *pb.Service:
		a.Type = &pb.Address_Service{Service: m}
	}
	b, err := proto.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return DecodeAddress("res", b)
}

func TestDecodeRejectsWhatItDoesNotUnderstand(t *testing.T) {
	set := func(f func(*pb.Workload)) *pb.Workload { return wl("a", "10.0.0.1", f) }
	lb := func(l *pb.LoadBalancing) *pb.Service {
		return svc("ns", "s", nil, func(s *pb.Service) { s.LoadBalancing = l })
	}
	tests := map[string]struct {
		msg  any
		want string
	}{
		"an address that is neither":   {nil, "neither workload nor service"},
		"address of 3 bytes":           {set(func(w *pb.Workload) { w.Addresses = [][]byte{{1, 2, 3}} }), "address of 3 bytes"},
		"address of 0 bytes":           {set(func(w *pb.Workload) { w.Addresses = [][]byte{{}} }), "address of 0 bytes"},
		"LEGACY_ISTIO_MTLS (O27)":      {set(func(w *pb.Workload) { w.TunnelProtocol = pb.TunnelProtocol_LEGACY_ISTIO_MTLS }), "tunnel protocol"},
		"unknown tunnel protocol":      {set(func(w *pb.Workload) { w.TunnelProtocol = 9 }), "tunnel protocol"},
		"unknown network mode":         {set(func(w *pb.Workload) { w.NetworkMode = 9 }), "network mode"},
		"unknown status":               {set(func(w *pb.Workload) { w.Status = 9 }), "status"},
		"unknown workload type":        {set(func(w *pb.Workload) { w.WorkloadType = 9 }), "workload type"},
		"unknown application tunnel":   {set(func(w *pb.Workload) { w.ApplicationTunnel = &pb.ApplicationTunnel{Protocol: 7} }), "application tunnel"},
		"empty uid":                    {set(func(w *pb.Workload) { w.Uid = "" }), "uid is empty"},
		"waypoint without destination": {set(func(w *pb.Workload) { w.Waypoint = &pb.GatewayAddress{HboneMtlsPort: 15008} }), "no destination"},
		"network gateway of 5 bytes":   {set(func(w *pb.Workload) { w.NetworkGateway = gatewayBytes(5) }), "address of 5 bytes"},
		"service VIP of 2 bytes":       {svc("ns", "s", nil, func(s *pb.Service) { s.Addresses = []*pb.NetworkAddress{{Address: []byte{1, 2}}} }), "address of 2 bytes"},
		"service CIDR longer than the address": {svc("ns", "s", nil, func(s *pb.Service) {
			l := uint32(33)
			s.Addresses = []*pb.NetworkAddress{{Address: []byte{1, 2, 3, 4}, Length: &l}}
		}), "prefix length 33"},
		"service without hostname":         {svc("ns", "s", nil, func(s *pb.Service) { s.Hostname = "" }), "hostname is empty"},
		"weighted waypoint no destination": {svc("ns", "s", nil, func(s *pb.Service) { s.WeightedWaypoints = []*pb.WeightedWaypoint{{Weight: 1}} }), "no destination"},
		"scope 0":                          {lb(&pb.LoadBalancing{RoutingPreference: []pb.LoadBalancing_Scope{0}}), "routing preference"},
		"unknown scope":                    {lb(&pb.LoadBalancing{RoutingPreference: []pb.LoadBalancing_Scope{7}}), "routing preference"},
		"unknown mode":                     {lb(&pb.LoadBalancing{Mode: 4}), "load balancing mode"},
		"unknown health policy":            {lb(&pb.LoadBalancing{HealthPolicy: 2}), "health policy"},
		"unknown families":                 {svc("ns", "s", nil, func(s *pb.Service) { s.IpFamilies = 4 }), "IP families"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			a, err := decode(t, tc.msg)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("decode = %+v, %v; want an error with %q", a, err, tc.want)
			}
		})
	}
	if _, err := DecodeAddress("x", []byte{0xff}); err == nil {
		t.Error("garbage was accepted")
	}
}

func gatewayBytes(n int) *pb.GatewayAddress {
	return &pb.GatewayAddress{Destination: &pb.GatewayAddress_Address{Address: &pb.NetworkAddress{Address: make([]byte, n)}}}
}

func TestDecodeFillsDefaultsOfEmptyFields(t *testing.T) {
	a, err := decode(t, &pb.Workload{Uid: "u", Namespace: "ns", Addresses: [][]byte{ip("::ffff:10.0.0.1").AsSlice()}})
	if err != nil {
		t.Fatal(err)
	}
	w := a.Workload
	if got, want := w.ID.String(), "spiffe://cluster.local/ns/ns/sa/default"; got != want {
		t.Errorf("ID = %q, want %q", got, want)
	}
	if w.Cluster != "Kubernetes" || w.Capacity != 1 || w.Protocol != TCP {
		t.Errorf("cluster, capacity, protocol = %q, %d, %v", w.Cluster, w.Capacity, w.Protocol)
	}
	if !w.Owns(ip("10.0.0.1")) {
		t.Errorf("mapped address was not unmapped: %v", w.Addrs)
	}
}

func TestDecodeKeepsAWorkloadWithoutIdentityThatNobodyCanProve(t *testing.T) {
	a, err := decode(t, &pb.Workload{Uid: "NetworkGateway/n/1.2.3.4/15008"})
	if err != nil {
		t.Fatal(err)
	}
	if !a.Workload.ID.IsZero() || len(a.Workload.Expect.IDs) != 0 {
		t.Errorf("ID = %v, Expect = %+v; want none", a.Workload.ID, a.Workload.Expect)
	}
}

func TestDecodeTreatsUnknownVisibilityAsPublic(t *testing.T) {
	a, err := decode(t, svc("ns", "s", nil, func(s *pb.Service) { s.Visibility = 9 }))
	if err != nil || a.Service.NamespaceOnly {
		t.Fatalf("decode = %+v, %v; want a public service", a.Service, err)
	}
}

func TestDecodeSkipsSANsThatAreNoSPIFFEID(t *testing.T) {
	a, err := decode(t, svc("ns", "s", nil, func(s *pb.Service) {
		s.SubjectAltNames = []string{"spiffe://td/ns/b/sa/b", "https://x", "spiffe://td/ns/a/sa/a", "spiffe://td/ns/b/sa/b"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.Service.Expect.Key, "spiffe://td/ns/a/sa/a,spiffe://td/ns/b/sa/b"; got != want {
		t.Errorf("Key = %q, want %q", got, want)
	}
	if len(a.Service.BadSANs) != 1 || a.Service.BadSANs[0] != "https://x" {
		t.Errorf("BadSANs = %q", a.Service.BadSANs)
	}
}

func TestDecodeTruncatesPortsTo16Bits(t *testing.T) {
	a, err := decode(t, svc("ns", "s", nil, func(s *pb.Service) { s.Ports = portList(65536+80, 65536+8080).Ports }))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := a.Service.Port(80); !ok || got != 8080 {
		t.Errorf("Port(80) = %d, %v", got, ok)
	}
}

func TestAWorkloadOfAWaypointsSubscriptionIsTheSameAsAnAddress(t *testing.T) {
	m := wl("a", "10.0.0.1", member("ns/s.ns", 80, 8080))
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeWorkload("a", b)
	if err != nil {
		t.Fatal(err)
	}
	want, err := decode(t, m)
	if err != nil {
		t.Fatal(err)
	}
	if got.Workload.UID != want.Workload.UID || got.Workload.ID != want.Workload.ID || got.Service != nil || !slices.Equal(got.Workload.Addrs, want.Workload.Addrs) {
		t.Errorf("got %+v, want %+v", got.Workload, want.Workload)
	}
	if _, err := DecodeWorkload("b", []byte{0xff}); err == nil {
		t.Error("what is no message was accepted")
	}
}

func FuzzDecodeAddress(f *testing.F) {
	for _, m := range []any{
		wl("a", "10.0.0.1", member("ns/s.ns", 80, 8080)), svc("ns", "s", []string{"10.1.0.1", "10.2.0.0/16"}),
	} {
		a := &pb.Address{}
		switch m := m.(type) {
		case *pb.Workload:
			a.Type = &pb.Address_Workload{Workload: m}
		case *pb.Service:
			a.Type = &pb.Address_Service{Service: m}
		}
		b, _ := proto.Marshal(a)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := DecodeAddress("x", b)
		if err != nil {
			return
		}
		if (a.Workload == nil) == (a.Service == nil) {
			t.Fatal("want exactly one of workload and service")
		}
		s := NewStore(Config{})
		r := resourceOf(a)
		if err := s.Apply(r, nil); err != nil {
			t.Fatal(err)
		}
		if a.Workload != nil {
			if s.View().ByUID(a.Workload.UID) == nil {
				t.Fatal("applied workload is not found")
			}
			_ = s.Apply(nil, []string{a.Workload.UID})
		} else {
			if s.View().ServiceByKey(a.Service.Key) == nil {
				t.Fatal("applied service is not found")
			}
			_ = s.Apply(nil, []string{a.Service.Key})
		}
		assertEmpty(t, s.View())
	})
}

func TestOfTwoEntriesForOnePortTheLastWins(t *testing.T) {
	a, err := decode(t, svc("ns", "s", nil, func(s *pb.Service) { s.Ports = portList(81, 1, 80, 2, 81, 3, 80, 4, 79, 5).Ports }))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.Service.Ports, []Port{{79, 5}, {80, 4}, {81, 3}}; !slices.Equal(got, want) {
		t.Errorf("Ports = %v, want %v", got, want)
	}
}
