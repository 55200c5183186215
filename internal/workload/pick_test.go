package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
)

const (
	region  = pb.LoadBalancing_REGION
	zone    = pb.LoadBalancing_ZONE
	subzone = pb.LoadBalancing_SUBZONE
	node    = pb.LoadBalancing_NODE
	cluster = pb.LoadBalancing_CLUSTER
	network = pb.LoadBalancing_NETWORK
)

func TestPreferencesChooseTheEndpoints(t *testing.T) { // load_balance (all modes, locality, network first), O19, O23
	in := member("ns/s.ns")
	elsewhere := func(w *pb.Workload) { w.Node, w.ClusterId = "node9", "far" }
	all := map[string]*pb.Workload{
		"r":     wl("r", "10.0.0.1", in, at("r1", "z9", "s9"), elsewhere),
		"rz":    wl("rz", "10.0.0.2", in, at("r1", "z1", "s9"), elsewhere),
		"rzs":   wl("rzs", "10.0.0.3", in, at("r1", "z1", "s1"), elsewhere),
		"rzsn":  wl("rzsn", "10.0.0.4", in, at("r1", "z1", "s1")),
		"z":     wl("z", "10.0.0.5", in, at("r9", "z1", "s9"), elsewhere),
		"none":  wl("none", "10.0.0.6", in, at("r9", "z9", "s9"), elsewhere),
		"net":   wl("net", "10.0.0.7", in, at("r1", "z1", "s1"), elsewhere, onNetwork("n2")),
		"clust": wl("clust", "10.0.0.8", in, at("r9", "z9", "s9"), func(w *pb.Workload) { w.Node = "node9" }),
		"gone":  wl("gone", "10.0.0.9", in, at("r1", "z1", "s1"), unhealthy),
	}
	fail, strict := pb.LoadBalancing_FAILOVER, pb.LoadBalancing_STRICT
	tests := map[string]struct {
		lb   func(*pb.Service)
		have []string
		want []string
	}{
		"unspecified takes all healthy": {balanced(0, region, zone), []string{"r", "rz", "none", "gone"}, []string{"none", "r", "rz"}},
		"failover takes the best rank":  {balanced(fail, region, zone), []string{"r", "rz", "rzs", "none"}, []string{"rz", "rzs"}},
		"failover goes down":            {balanced(fail, region, zone), []string{"r", "none"}, []string{"r"}},
		"failover to none":              {balanced(fail, region, zone), []string{"none"}, []string{"none"}},
		"failover stops at a mismatch":  {balanced(fail, region, zone), []string{"z", "none"}, []string{"none", "z"}},
		"failover by node":              {balanced(fail, region, zone, subzone, node), []string{"rzs", "rzsn"}, []string{"rzsn"}},
		"strict node":                   {balanced(strict, node), []string{"r", "rzsn"}, []string{"rzsn"}},
		"strict without match":          {balanced(strict, node), []string{"r", "rz"}, nil},
		"strict cluster":                {balanced(strict, cluster), []string{"r", "clust"}, []string{"clust"}},
		"strict needs all":              {balanced(strict, region, zone), []string{"r", "rz", "z"}, []string{"rz"}},
		"failover without scopes":       {balanced(fail), []string{"r", "none"}, []string{"none", "r"}},
		"network first beats locality":  {balanced(fail, network, region, zone), []string{"net", "none"}, []string{"none"}},
		"network first then region":     {balanced(fail, network, region, zone), []string{"net", "none", "r"}, []string{"r"}},
		"an unhealthy one never counts": {balanced(fail, region), []string{"gone", "none"}, []string{"none"}},
		"other network ranks by region": {balanced(fail, network, region, zone), []string{"net"}, []string{"net"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			msgs := []any{svc("ns", "s", nil, tc.lb), wl("src", "10.9.0.1", at("r1", "z1", "s1"))}
			for _, n := range tc.have {
				msgs = append(msgs, all[n])
			}
			v := store(t, msgs...).View()
			got := reachableFrom(v, "ns/s.ns", v.Pod("src", "default", "src"), 80)
			if !slices.Equal(got, tc.want) {
				t.Errorf("endpoints = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestNetworkFirstRanksAsSpecified(t *testing.T) { // O19: n+r+z = 5, n+r = 4, n = 3, r+z = 2, r = 1, none = 0
	s := &Service{Mode: ModeFailover, Preferences: []Scope{ScopeNetwork, ScopeRegion, ScopeZone}}
	k := &pickKey{network: "n", locality: Locality{Region: "r", Zone: "z"}}
	for _, tc := range []struct {
		w    Workload
		want int
	}{
		{Workload{Network: "n", Locality: Locality{"r", "z", ""}}, 5}, {Workload{Network: "n", Locality: Locality{"r", "", ""}}, 4},
		{Workload{Network: "n"}, 3}, {Workload{Locality: Locality{"r", "z", ""}}, 2}, {Workload{Locality: Locality{"r", "", ""}}, 1},
		{Workload{}, 0}, {Workload{Network: "n", Locality: Locality{"", "z", ""}}, 3},
	} {
		if got, ok := rank(s, &tc.w, k); !ok || got != tc.want {
			t.Errorf("rank(%+v) = %d, %v; want %d", tc.w.Locality, got, ok, tc.want)
		}
	}
}

func TestCapacityIsTheWeightOfADraw(t *testing.T) { // O20
	v := store(t, svc("ns", "s", nil), wl("one", "10.0.0.1", member("ns/s.ns")), wl("nine", "10.0.0.2", member("ns/s.ns"), capacity(9)),
		wl("zero", "10.0.0.3", member("ns/s.ns"), capacity(0))).View()
	got := map[string]int{}
	r := rand.New(rand.NewPCG(7, 7))
	for range 10000 {
		up, ok := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: 80, Rand: r})
		if !ok {
			t.Fatal("nothing was picked")
		}
		got[up.Workload.Name]++
	}
	if got["zero"] != 0 || got["one"] < 850 || got["one"] > 1150 {
		t.Errorf("draws = %v, want about 1 to 9 to 0", got)
	}
}

func TestCapacitiesAreSummedIn64Bits(t *testing.T) { // O20
	v := store(t, svc("ns", "s", nil), wl("a", "10.0.0.1", member("ns/s.ns"), capacity(1<<32-1)),
		wl("b", "10.0.0.2", member("ns/s.ns"), capacity(1<<32-2))).View()
	got := map[string]int{}
	for i := range 1000 {
		up, _ := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: 80, Rand: rand.New(rand.NewPCG(uint64(i), 3))})
		got[up.Workload.Name]++
	}
	if got["a"] < 400 || got["b"] < 400 {
		t.Errorf("draws = %v, want halves", got)
	}
}

func TestAllCapacityZeroMeansNoEndpoint(t *testing.T) {
	v := store(t, svc("ns", "s", nil), wl("a", "10.0.0.1", member("ns/s.ns"), capacity(0))).View()
	if up, ok := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: 80}); ok {
		t.Errorf("Pick = %+v, want none", up)
	}
}

func TestEveryEndpointIsDrawn(t *testing.T) {
	for _, weights := range [][]uint32{{1, 1, 1}, {1, 2, 3}} {
		msgs := []any{svc("ns", "s", nil)}
		for i, c := range weights {
			msgs = append(msgs, wl(fmt.Sprint("w", i), fmt.Sprintf("10.0.0.%d", i), member("ns/s.ns"), capacity(c)))
		}
		v := store(t, msgs...).View()
		got := map[string]bool{}
		r := rand.New(rand.NewPCG(1, 1))
		for range 200 {
			up, _ := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: 80, Rand: r})
			got[up.Workload.Name] = true
		}
		if len(got) != len(weights) {
			t.Errorf("drawn = %v, want %d names", got, len(weights))
		}
	}
}

func TestAvoidedEndpointsComeOnlyWhenNothingElseIsLeft(t *testing.T) { // B5
	v := store(t, svc("ns", "s", nil), wl("a", "10.0.0.1", member("ns/s.ns")), wl("b", "10.0.0.2", member("ns/s.ns")),
		wl("z", "10.0.0.3", member("ns/s.ns"), capacity(0))).View()
	for range 50 {
		up, ok := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: 80, Avoid: func(w *Workload) bool { return w.Name == "a" }})
		if !ok || up.Workload.Name != "b" {
			t.Fatalf("Pick = %v, %v; want b", up.Workload, ok)
		}
	}
	if _, ok := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: 80, Avoid: func(*Workload) bool { return true }}); !ok {
		t.Error("Pick found nothing although all are only to be avoided")
	}
}

func TestAClientStaysAtOneEndpointWhereTheServiceSaysSo(t *testing.T) { // sessionAffinity: ClientIP
	in := member("ns/s.ns")
	all := []any{svc("ns", "s", nil, func(s *pb.Service) { s.Extensions = []*pb.Extension{{Name: ExtensionClientAffinity}} })}
	for i := range 8 {
		all = append(all, wl(string(rune('a'+i)), fmt.Sprintf("10.0.0.%d", i+1), in))
	}
	all = append(all, wl("z", "10.0.1.1", in, capacity(0)), wl("sick", "10.0.1.2", in, unhealthy))
	s := store(t, all...)
	pick := func(client string, avoid func(*Workload) bool) string {
		v := s.View()
		up, ok := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: 80, Client: ip(client), Avoid: avoid})
		if !ok {
			t.Fatal("no endpoint")
		}
		return up.Workload.Name
	}
	first, used := map[string]string{}, map[string]int{}
	for i := range 400 {
		client := fmt.Sprintf("10.9.%d.%d", i/200, i%200)
		first[client] = pick(client, nil)
		used[first[client]]++
		for range 3 {
			if again := pick(client, nil); again != first[client] {
				t.Fatalf("%s went to %s and then to %s", client, first[client], again)
			}
		}
		if other := pick(client, func(w *Workload) bool { return w.Name == first[client] }); other == first[client] || other == "z" {
			t.Fatalf("%s went to %s, which is to be avoided or takes nothing", client, other)
		}
	}
	for name, n := range used {
		if len(used) != 8 || n < 20 || n > 100 {
			t.Errorf("%s has %d of 400 clients, of 8 endpoints %d have some", name, n, len(used))
		}
	}
	apply(t, s, nil, "c//Pod/default/a")
	for client, was := range first {
		if now := pick(client, nil); now != was && was != "a" {
			t.Errorf("%s moved from %s to %s when a went away", client, was, now)
		}
	}
}

func TestTerminatingEndpointsServeWhenThereIsNoOther(t *testing.T) { // as kube-proxy has it, KEP-1669
	in, terminating := member("ns/s.ns"), func(w *pb.Workload) {
		unhealthy(w)
		w.Extensions = []*pb.Extension{{Name: ExtensionTerminating}}
	}
	all := []any{svc("ns", "s", nil), wl("going", "10.0.0.1", in, terminating), wl("sick", "10.0.0.2", in, unhealthy)}
	for want, more := range map[string][]any{"going": nil, "up": {wl("up", "10.0.0.3", in)}} {
		v := store(t, append(slices.Clone(all), more...)...).View()
		if got := reachableFrom(v, "ns/s.ns", nil, 80); !slices.Equal(got, []string{want}) {
			t.Errorf("endpoints = %v, want %s", got, want)
		}
	}
	v := store(t, append(slices.Clone(all), svc("ns", "s", nil, balanced(pb.LoadBalancing_STRICT, node)), wl("up", "10.0.0.3", in, func(w *pb.Workload) { w.Node = "far" }))...).View()
	if got := reachableFrom(v, "ns/s.ns", &Workload{Node: "node1"}, 80); !slices.Equal(got, []string{"going"}) {
		t.Errorf("of the node: %v, want going", got)
	}
}

func TestTargetPorts(t *testing.T) { // O18, O21, find_upstream_port_mappings {endpoint, service, app tunnel}
	named := func(s *pb.Service) { s.Ports = portList(80, 0, 81, 8081).Ports }
	tunnel := func(port uint32) func(*pb.Workload) {
		return func(w *pb.Workload) { w.ApplicationTunnel = &pb.ApplicationTunnel{Port: port} }
	}
	tests := map[string]struct {
		w        *pb.Workload
		svc      *pb.Service
		port     uint16
		waypoint bool
		want     uint16
	}{
		"the service's map":                   {wl("a", "10.0.0.1", member("ns/s.ns")), svc("ns", "s", nil), 80, false, 8080},
		"the endpoint's map wins":             {wl("a", "10.0.0.1", member("ns/s.ns", 80, 9090)), svc("ns", "s", nil), 80, false, 9090},
		"a named port needs the endpoint's":   {wl("a", "10.0.0.1", member("ns/s.ns", 80, 7070)), svc("ns", "s", nil, named), 80, false, 7070},
		"a named port unknown to it":          {wl("a", "10.0.0.1", member("ns/s.ns")), svc("ns", "s", nil, named), 80, false, 0},
		"an undeclared port":                  {wl("a", "10.0.0.1", member("ns/s.ns", 99, 9)), svc("ns", "s", nil), 99, false, 0},
		"undeclared, even with app tunnel":    {wl("a", "10.0.0.1", member("ns/s.ns"), tunnel(15088)), svc("ns", "s", nil), 99, false, 0},
		"waypoint undeclared with app tunnel": {wl("a", "10.0.0.1", member("ns/s.ns"), tunnel(15088)), svc("ns", "s", nil), 15008, true, 15008},
		"waypoint undeclared without":         {wl("a", "10.0.0.1", member("ns/s.ns")), svc("ns", "s", nil), 15008, true, 0},
		"waypoint declared":                   {wl("a", "10.0.0.1", member("ns/s.ns")), svc("ns", "s", nil), 80, true, 8080},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			v := store(t, tc.w, tc.svc).View()
			up, ok := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: tc.port, Waypoint: tc.waypoint})
			if ok != (tc.want != 0) || up.Port != tc.want {
				t.Errorf("Pick = port %d, %v; want %d", up.Port, ok, tc.want)
			}
		})
	}
}

func TestAnEndpointWithoutAddressNeedsAGatewayAndAnotherNetwork(t *testing.T) { // O18
	gw := func(w *pb.Workload) { w.NetworkGateway = gatewayBytes(4) }
	tests := map[string]struct {
		w    *pb.Workload
		want bool
	}{
		"gateway, other network": {wl("a", "", member("ns/s.ns"), gw, onNetwork("n2")), true},
		"gateway, same network":  {wl("a", "", member("ns/s.ns"), gw), false},
		"no gateway":             {wl("a", "", member("ns/s.ns"), onNetwork("n2")), false},
		"hostname":               {wl("a", "", member("ns/s.ns"), func(w *pb.Workload) { w.Hostname = "h" }), true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			v := store(t, tc.w, svc("ns", "s", nil), wl("src", "10.9.0.1")).View()
			if got := reachableFrom(v, "ns/s.ns", v.Pod("src", "default", "src"), 80); (len(got) > 0) != tc.want {
				t.Errorf("endpoints = %v, want some: %v", got, tc.want)
			}
		})
	}
}

func TestSelectChoosesTheAddress(t *testing.T) { // O22, multiple_address_workload, service_ip_families
	four, six, six2 := ip("10.0.0.1"), ip("fd00::1"), ip("fd00::2")
	dual := &Workload{Addrs: []ipAddr{four, six, six2}}
	tests := map[string]struct {
		families Families
		want     ipAddr
		result   ipAddr
		w        *Workload
	}{
		"its own address":             {FamiliesIPv4, six2, six2, dual},
		"the family of the request":   {FamiliesAutomatic, ip("fd00::99"), six, dual},
		"v4 by default":               {FamiliesDual, ip("10.9.9.9"), four, dual},
		"only v6 allowed":             {FamiliesIPv6, ip("10.9.9.9"), six, dual},
		"only v4 allowed":             {FamiliesIPv4, ip("fd00::99"), four, dual},
		"other family when only that": {FamiliesAutomatic, ip("10.9.9.9"), six, &Workload{Addrs: []ipAddr{six}}},
		"nothing allowed":             {FamiliesIPv4, ip("10.9.9.9"), ipAddr{}, &Workload{Addrs: []ipAddr{six}}},
		"nothing at all":              {FamiliesAutomatic, ip("10.9.9.9"), ipAddr{}, &Workload{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok := tc.w.Select(&Service{Families: tc.families}, tc.want)
			if got != tc.result || ok != tc.result.IsValid() {
				t.Errorf("Select = %v, %v; want %v", got, ok, tc.result)
			}
		})
	}
}

func TestDrawWaypoint(t *testing.T) { // O4, sample_weighted_waypoint
	a, b, c := &Gateway{Hostname: "a"}, &Gateway{Hostname: "b"}, &Gateway{Hostname: "c"}
	count := func(s *Service) map[*Gateway]int {
		got := map[*Gateway]int{}
		r := rand.New(rand.NewPCG(3, 3))
		for range 10000 {
			got[s.DrawWaypoint(r)]++
		}
		return got
	}
	got := count(&Service{Waypoint: c, Weighted: []WeightedGateway{{a, 9}, {b, 1}}})
	if got[c] != 0 || got[b] < 850 || got[b] > 1150 {
		t.Errorf("draws = %v, want 9 to 1", got)
	}
	if got := count(&Service{Waypoint: c, Weighted: []WeightedGateway{{a, 0}, {b, 0}}}); got[c] != 10000 {
		t.Errorf("draws = %v, want the primary", got)
	}
	if got := count(&Service{Weighted: []WeightedGateway{{a, 1<<32 - 1}, {b, 1<<32 - 1}}}); got[a] < 4500 || got[b] < 4500 {
		t.Errorf("draws = %v, want halves", got)
	}
}

func TestTablesFollowChangesAndStayWarm(t *testing.T) {
	s := store(t, svc("ns", "s", nil), wl("a", "10.0.0.1", member("ns/s.ns")))
	draw := func() string {
		v := s.View()
		up, _ := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: 80})
		return up.Workload.Name
	}
	if got := draw(); got != "a" {
		t.Fatalf("Pick = %q, want a", got)
	}
	v := apply(t, s, []any{wl("b", "10.0.0.2", member("ns/s.ns"))}, "c//Pod/default/a")
	if list := v.entry("ns/s.ns").picks.list.Load(); list == nil || len(*list) != 1 {
		t.Error("the table in use was not rebuilt with the change")
	}
	if got := draw(); got != "b" {
		t.Errorf("Pick = %q, want b", got)
	}
	apply(t, s, []any{svc("ns", "s", nil, func(s *pb.Service) { s.Ports = portList(80, 1).Ports })})
	v = s.View()
	if up, _ := v.Pick(v.ServiceByKey("ns/s.ns"), &Pick{Port: 80}); up.Port != 1 {
		t.Errorf("Pick = port %d, want 1", up.Port)
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	v := store(t, svc("ns", "s", []string{"10.1.0.1"}), wl("a", "10.0.0.1", member("ns/s.ns"))).View()
	s := v.ServiceByKey("ns/s.ns")
	src := v.Pod("a", "default", "a")
	addr := ip("10.1.0.1")
	if n := testing.AllocsPerRun(100, func() {
		p := Pick{Source: src, Port: 80}
		_, _ = v.Pick(s, &p)
		_ = v.ServiceByVIP("", addr, "default")
		_ = v.Workload("", addr)
	}); n != 0 {
		t.Errorf("allocations = %v, want 0", n)
	}
}
