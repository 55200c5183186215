package workload

import (
	"encoding/json"
	"flag"
	"os"
	"testing"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
)

var update = flag.Bool("update", false, "write the golden files")

func TestDumpIsGolden(t *testing.T) { // 9.2, A1
	gw := &pb.GatewayAddress{HboneMtlsPort: 15008, Destination: &pb.GatewayAddress_Hostname{Hostname: &pb.NamespacedHostname{Namespace: "ns", Hostname: "wp.ns"}}}
	byIP := &pb.GatewayAddress{HboneMtlsPort: 15008, Destination: &pb.GatewayAddress_Address{Address: vip("", "10.9.9.9")}}
	v := store(t,
		wl("z", "10.0.0.1", member("ns/s.ns", 80, 8081), at("r", "z", ""), capacity(3), onNetwork("n1"), func(w *pb.Workload) {
			w.Waypoint, w.NetworkGateway, w.NativeTunnel = gw, byIP, true
			w.ApplicationTunnel = &pb.ApplicationTunnel{Protocol: pb.ApplicationTunnel_PROXY, Port: 15088}
			w.AuthorizationPolicies, w.WorkloadName, w.CanonicalName, w.CanonicalRevision = []string{"ns/p"}, "z", "z", "v1"
		}),
		wl("a", "", unhealthy, member("ns/staged.ns"), func(w *pb.Workload) {
			w.Hostname, w.NetworkMode, w.TunnelProtocol = "a.example", pb.NetworkMode_HOST_NETWORK, pb.TunnelProtocol_NONE
		}),
		svc("ns", "s", []string{"10.1.0.1", "10.2.0.0/16"}, canonical, namespaceOnly, balanced(pb.LoadBalancing_FAILOVER, network, region), func(s *pb.Service) {
			s.Waypoint, s.SubjectAltNames, s.IpFamilies = byIP, []string{"spiffe://td/ns/a/sa/b"}, pb.IPFamilies_DUAL
			s.WeightedWaypoints = []*pb.WeightedWaypoint{{Destination: gw, Weight: 5}}
		}),
		svc("ns", "plain", nil),
	).View()
	dump := map[string]any{"stagedServices": v.DumpStaged()}
	for key, seq := range map[string]func(func(any) bool){"workloads": v.DumpWorkloads(), "services": v.DumpServices()} {
		list := []any{}
		for x := range seq {
			list = append(list, x)
		}
		dump[key] = list
	}
	got, err := json.MarshalIndent(dump, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile("testdata/dump.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/dump.json")
	if err != nil || string(want) != string(got) {
		t.Errorf("testdata/dump.json differs (%v); got\n%s", err, got)
	}
}
