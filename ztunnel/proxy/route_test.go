package proxy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// src is the client of most cases: pod "src" at 10.0.0.1 on network "".
func src(opts ...wlOpt) *pb.Workload { return wl("src", "10.0.0.1", opts...) }

// waypointFor returns the service and pod of a waypoint named name; its service maps port 15008 to 15018, so that a
// constant would be noticed (O25).
func waypointFor(name, ip string, opts ...svcOpt) []any {
	return []any{
		svc(name, "", append([]svcOpt{withPorts(15008, 15018), sans(id(name + "-san"))}, opts...)...), wl(name, ip, in(name)),
	}
}

type want struct {
	proto     Protocol
	dial      string
	authority string
	expect    string // joined, without "spiffe://cluster.local/ns/default/sa/"
	inner     string
	err       Reason
	svc       string
	resolve   string
	waypoint  bool
}

func short(s *workload.Identities) string {
	if s == nil {
		return ""
	}
	return strings.ReplaceAll(s.Key, id(""), "")
}

func check(t *testing.T, d Decision, err error, w want) {
	t.Helper()
	if w.err != 0 {
		if !errors.Is(err, w.err) {
			t.Fatalf("Route = %+v, %v; want %v", d, err, w.err)
		}
		return
	}
	if err != nil {
		t.Fatalf("Route: %v", err)
	}
	got := want{
		proto: d.Protocol, authority: d.Authority(), expect: short(d.Expect), inner: short(d.Inner), resolve: d.Resolve,
		waypoint: d.Waypoint, dial: d.Dial.String(),
	}
	if d.Resolve != "" {
		got.dial, got.authority = "", ""
	}
	if d.Service != nil {
		got.svc = d.Service.Name
	}
	if got != w {
		t.Errorf("Route =\n %+v, want\n %+v", got, w)
	}
}

// TestRouteTable is table 2.7 of the protocol: each row by its number.
func TestRouteTable(t *testing.T) {
	with := func(groups ...any) []any {
		out := []any{}
		for _, g := range groups {
			if l, ok := g.([]any); ok {
				out = append(out, l...)
			} else {
				out = append(out, g)
			}
		}
		return out
	}
	remoteGW := with(svc("ewgw", "", withPorts(15008, 15008), sans(id("ewgw-san"))), wl("ewgw", "10.7.0.1", in("ewgw"), onNetwork("n2")))
	tests := map[string]struct {
		msgs []any
		dst  string
		want want
	}{
		"1 unknown address passes through": {with(src()), "1.2.3.4:80", want{dial: "1.2.3.4:80"}},
		"2 VIP, HBONE endpoint, no waypoint": {
			with(src(), svc("s", "10.1.0.1", sans(id("extra"))), wl("a", "10.0.0.2", in("s"))), "10.1.0.1:80",
			want{proto: HBONE, dial: "10.0.0.2:15008", authority: "10.0.0.2:8080", expect: id2("a", "extra"), svc: "s"},
		},
		"3 VIP, endpoint without tunnel": {
			with(src(), svc("s", "10.1.0.1"), wl("a", "10.0.0.2", in("s"), plain)), "10.1.0.1:80",
			want{dial: "10.0.0.2:8080", svc: "s"},
		},
		"3 VIP, hostNetwork endpoint (O16)": {
			with(src(), svc("s", "10.1.0.1"), wl("a", "192.168.0.1", in("s"), plain, hostNet)), "10.1.0.1:80",
			want{dial: "192.168.0.1:8080", svc: "s"},
		},
		"3 an endpoint by hand is the pod that has its address": {
			with(src(), svc("s", "10.1.0.1"), wl("byhand", "10.0.0.2", in("s", 80, 9090), plain, hostNet), wl("a", "10.0.0.2")), "10.1.0.1:80",
			want{proto: HBONE, dial: "10.0.0.2:15008", authority: "10.0.0.2:9090", expect: "a", svc: "s"},
		},
		"3 hostNetwork address itself is unknown (O16)": {
			with(src(), wl("a", "192.168.0.1", hostNet)), "192.168.0.1:80", want{dial: "192.168.0.1:80"},
		},
		"4 pod address, HBONE": {
			with(src(), wl("a", "10.0.0.2")), "10.0.0.2:1234",
			want{proto: HBONE, dial: "10.0.0.2:15008", authority: "10.0.0.2:1234", expect: "a"},
		},
		"4 IPv6 authority has brackets (H12)": {
			with(src(), wl("a", "fd00::2")), "[fd00::2]:1234",
			want{proto: HBONE, dial: "[fd00::2]:15008", authority: "[fd00::2]:1234", expect: "a"},
		},
		"5 pod address, not in mesh": {with(src(), wl("a", "10.0.0.2", plain)), "10.0.0.2:1234", want{dial: "10.0.0.2:1234"}},
		"6 VIP with service waypoint": {
			with(src(), waypointFor("wp", "10.0.0.9"), svc("s", "10.1.0.1", svcWaypoint(byHost("wp")), sans(id("no"))), wl("a", "10.0.0.2", in("s"))),
			"10.1.0.1:80",
			want{proto: HBONE, dial: "10.0.0.9:15018", authority: "10.1.0.1:80", expect: id2("wp", "wp-san"), svc: "s", waypoint: true},
		},
		"6 service waypoint by its VIP (O24)": {
			with(src(), svc("wp", "10.1.0.9", withPorts(15008, 15018)), wl("wp", "10.0.0.9", in("wp")), svc("s", "10.1.0.1", svcWaypoint(byAddr("", "10.1.0.9")))),
			"10.1.0.1:80",
			want{proto: HBONE, dial: "10.0.0.9:15018", authority: "10.1.0.1:80", expect: "wp", svc: "s", waypoint: true},
		},
		"6 service waypoint by workload hostname (O13, O24)": {
			with(src(), wl("wp", "10.0.0.9", hostname("wp.default")), svc("s", "10.1.0.1", svcWaypoint(byHost("wp")))), "10.1.0.1:80",
			want{proto: HBONE, dial: "10.0.0.9:15008", authority: "10.1.0.1:80", expect: "wp", svc: "s", waypoint: true},
		},
		"7 pod address with workload waypoint": {
			with(src(), waypointFor("wp", "10.0.0.9"), wl("a", "10.0.0.2", wlWaypoint(byHost("wp")))), "10.0.0.2:80",
			want{proto: HBONE, dial: "10.0.0.9:15018", authority: "10.0.0.2:80", expect: id2("wp", "wp-san"), waypoint: true},
		},
		"7 workload waypoint by the waypoint's address": {
			with(src(), wl("wp", "10.0.0.9"), wl("a", "10.0.0.2", wlWaypoint(byAddr("", "10.0.0.9")))), "10.0.0.2:80",
			want{proto: HBONE, dial: "10.0.0.9:15008", authority: "10.0.0.2:80", expect: "wp", waypoint: true},
		},
		"8 VIP without service waypoint ignores the endpoint's": {
			with(src(), waypointFor("wp", "10.0.0.9"), svc("s", "10.1.0.1"), wl("a", "10.0.0.2", in("s"), wlWaypoint(byHost("wp")))),
			"10.1.0.1:80", want{proto: HBONE, dial: "10.0.0.2:15008", authority: "10.0.0.2:8080", expect: "a", svc: "s"},
		},
		"9 VIP without endpoint":           {with(src(), svc("s", "10.1.0.1")), "10.1.0.1:80", want{err: NoHealthyUpstream}},
		"9 VIP with an unhealthy endpoint": {with(src(), svc("s", "10.1.0.1"), wl("a", "10.0.0.2", in("s"), unhealthy)), "10.1.0.1:80", want{err: NoHealthyUpstream}},
		"9 VIP, port not declared":         {with(src(), svc("s", "10.1.0.1"), wl("a", "10.0.0.2", in("s"))), "10.1.0.1:99", want{err: NoHealthyUpstream}},
		"10 VIP in PASSTHROUGH mode":       {with(src(), svc("s", "10.1.0.1", passthrough), wl("a", "10.0.0.2", in("s"))), "10.1.0.1:80", want{dial: "10.1.0.1:80", svc: "s"}},
		"11 VIP in PASSTHROUGH mode with waypoint": {
			with(src(), waypointFor("wp", "10.0.0.9"), svc("s", "10.1.0.1", passthrough, svcWaypoint(byHost("wp")))), "10.1.0.1:80",
			want{proto: HBONE, dial: "10.0.0.9:15018", authority: "10.1.0.1:80", expect: id2("wp", "wp-san"), svc: "s", waypoint: true},
		},
		"12 VIP, endpoint of another network": {
			with(src(), remoteGW, svc("s", "10.1.0.1", sans(id("svc-san"))), wl("a", "", in("s"), onNetwork("n2"), gateway(byHost("ewgw")))),
			"10.1.0.1:80",
			want{proto: DoubleHBONE, dial: "10.7.0.1:15008", authority: "s.default:80", expect: id2("ewgw", "ewgw-san"), inner: "svc-san", svc: "s"},
		},
		"12 gateway by address": {
			with(src(), wl("ewgw", "10.7.0.1", onNetwork("n2")), svc("s", "10.1.0.1"), wl("a", "", in("s"), onNetwork("n2"), gateway(byAddr("n2", "10.7.0.1")))),
			"10.1.0.1:80", want{proto: DoubleHBONE, dial: "10.7.0.1:15008", authority: "s.default:80", expect: "ewgw", svc: "s"},
		},
		"13 VIP whose waypoint is on another network": {
			with(src(), remoteGW, svc("wp", "", withPorts(15008, 15018), sans(id("wp-san"))), wl("wp", "", in("wp"), onNetwork("n2"), gateway(byHost("ewgw"))),
				svc("s", "10.1.0.1", svcWaypoint(byHost("wp")), sans(id("svc-san")))),
			"10.1.0.1:80",
			want{proto: DoubleHBONE, dial: "10.7.0.1:15008", authority: "s.default:80", expect: id2("ewgw", "ewgw-san"), inner: "wp-san", svc: "s", waypoint: true},
		},
		"14 pod address known on another network only": {with(src(), wl("a", "10.0.0.2", onNetwork("n2"))), "10.0.0.2:80", want{dial: "10.0.0.2:80"}},
		"15 endpoint of another network without gateway": {
			with(src(), svc("s", "10.1.0.1"), wl("a", "10.0.0.2", in("s"), onNetwork("n2"))), "10.1.0.1:80", want{err: NoValidDestination},
		},
		"15 gateway not found": {
			with(src(), svc("s", "10.1.0.1"), wl("a", "", in("s"), onNetwork("n2"), gateway(byHost("ewgw")))), "10.1.0.1:80", want{err: UnknownGateway},
		},
		"16 endpoint with hostname only, HBONE": {
			with(src(), svc("s", "10.1.0.1"), wl("a", "", in("s"), hostname("a.example"))), "10.1.0.1:80",
			want{proto: HBONE, resolve: "a.example", expect: "a", svc: "s"},
		},
		"16 endpoint with hostname only, plain": {
			with(src(), svc("s", "10.1.0.1"), wl("a", "", in("s"), hostname("a.example"), plain)), "10.1.0.1:80", want{resolve: "a.example", svc: "s"},
		},
		"17 the waypoint itself goes direct": {
			with(svc("wp", "", withPorts(15008, 15018)), wl("src", "10.0.0.1", in("wp")), wl("a", "10.0.0.2", wlWaypoint(byHost("wp")))), "10.0.0.2:80",
			want{proto: HBONE, dial: "10.0.0.2:15008", authority: "10.0.0.2:80", expect: "a"},
		},
		"18 waypoint not found": {
			with(src(), svc("s", "10.1.0.1", svcWaypoint(byHost("wp"))), wl("a", "10.0.0.2", in("s"))), "10.1.0.1:80", want{err: UnknownWaypoint},
		},
		"18 no healthy replica of the waypoint": {
			with(src(), svc("wp", "", withPorts(15008, 15018)), wl("wp", "10.0.0.9", in("wp"), unhealthy), svc("s", "10.1.0.1", svcWaypoint(byHost("wp")))),
			"10.1.0.1:80", want{err: UnknownWaypoint},
		},
		"18 workload waypoint not found": {
			with(src(), wl("a", "10.0.0.2", wlWaypoint(byHost("wp")))), "10.0.0.2:80", want{err: UnknownWaypoint},
		},
		"19 weights 0 and 0 take the primary": {
			with(src(), waypointFor("wp", "10.0.0.9"), svc("s", "10.1.0.1", svcWaypoint(byHost("wp")), weighted(byHost("x"), byHost("y"), 0, 0))),
			"10.1.0.1:80",
			want{proto: HBONE, dial: "10.0.0.9:15018", authority: "10.1.0.1:80", expect: id2("wp", "wp-san"), svc: "s", waypoint: true},
		},
		"19 a weighted waypoint is drawn": {
			with(src(), waypointFor("wp", "10.0.0.9"), svc("s", "10.1.0.1", svcWaypoint(byHost("gone")), weighted(byHost("wp"), byHost("y"), 5, 0))),
			"10.1.0.1:80",
			want{proto: HBONE, dial: "10.0.0.9:15018", authority: "10.1.0.1:80", expect: id2("wp", "wp-san"), svc: "s", waypoint: true},
		},
		"20 VIP served by the caller itself (O15)": {
			with(svc("s", "10.1.0.1"), src(in("s"))), "10.1.0.1:80",
			want{proto: HBONE, dial: "10.0.0.1:15008", authority: "10.0.0.1:8080", expect: "src", svc: "s"},
		},
		"21 dual stack, v6 VIP takes the v6 address": {
			with(src(), svc("s", "fd00:1::1", families(pb.IPFamilies_DUAL)), wl("a", "10.0.0.2", in("s"), alsoAt("fd00::2"))), "[fd00:1::1]:80",
			want{proto: HBONE, dial: "[fd00::2]:15008", authority: "[fd00::2]:8080", expect: "a", svc: "s"},
		},
		"21 v6 VIP of a v4 service takes the v4 address": {
			with(src(), svc("s", "fd00:1::1", families(pb.IPFamilies_IPV4_ONLY)), wl("a", "10.0.0.2", in("s"), alsoAt("fd00::2"))), "[fd00:1::1]:80",
			want{proto: HBONE, dial: "10.0.0.2:15008", authority: "10.0.0.2:8080", expect: "a", svc: "s"},
		},
		"22 loopback and outbound port":        {with(src()), "127.0.0.1:15001", want{err: SelfCall}},
		"22 loopback and plaintext port":       {with(src()), "127.0.0.1:15006", want{err: SelfCall}},
		"22 loopback and tunnel port":          {with(src()), "[::1]:15008", want{err: SelfCall}},
		"22 loopback and another port is fine": {with(src()), "127.0.0.1:80", want{dial: "127.0.0.1:80"}},
		"22 illegal port elsewhere is fine":    {with(src()), "10.5.5.5:15001", want{dial: "10.5.5.5:15001"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			v := view(t, tc.msgs...)
			me := pod(v, "src")
			d, err := Route(v, Query{Source: me, Peer: me.Addrs[0], Dst: netip.MustParseAddrPort(tc.dst)})
			check(t, d, err, tc.want)
		})
	}
}

// id2 joins short names as short does.
func id2(names ...string) string { return strings.Join(names, ",") }

func TestTheWaypointExemptionNeedsIdentityAndAddress(t *testing.T) { // O8, destination_waypoint_mismatch_ip
	wp := []any{svc("wp", "", withPorts(15008, 15018)), wl("wp", "10.0.0.9", in("wp"))}
	dst := wl("a", "10.0.0.2", wlWaypoint(byHost("wp")))
	impostor := wl("imp", "10.0.0.5", func(w *pb.Workload) { w.ServiceAccount = "wp" })
	v := view(t, append(wp, dst, impostor)...)
	through := want{proto: HBONE, dial: "10.0.0.9:15018", authority: "10.0.0.2:80", expect: "wp", waypoint: true}
	direct := want{proto: HBONE, dial: "10.0.0.2:15008", authority: "10.0.0.2:80", expect: "a"}
	for name, tc := range map[string]struct {
		source *workload.Workload
		peer   string
		want   want
	}{
		"same account, other address":  {v.ByUID("c//Pod/default/imp"), "10.0.0.5", through},
		"other account, same address":  {pod(v, "a"), "10.0.0.9", through},
		"same account, its address":    {pod(v, "wp"), "10.0.0.9", direct},
		"same account, foreign client": {pod(v, "wp"), "10.0.0.77", through},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Route(v, Query{Source: tc.source, Peer: netip.MustParseAddr(tc.peer), Dst: netip.MustParseAddrPort("10.0.0.2:80")})
			check(t, d, err, tc.want)
		})
	}
}

func TestASameAddressIsAWorkloadForTheWaypointAndAServiceForTheRest(t *testing.T) { // O3 against O5
	v := view(t, src(), waypointFor("wp", "10.0.0.9")[0], wl("wp", "10.0.0.9", in("wp")),
		svc("s", "10.0.0.2", svcWaypoint(byHost("wp"))), wl("a", "10.0.0.2"), wl("b", "10.0.0.3", in("s")))
	d, err := Route(v, Query{Source: pod(v, "src"), Dst: netip.MustParseAddrPort("10.0.0.2:80")})
	check(t, d, err, want{proto: HBONE, dial: "10.0.0.3:15008", authority: "10.0.0.3:8080", expect: "b", svc: "s"})
}

func TestAServiceOfTheNodesNetworkWithoutRouteIsNotPassedThrough(t *testing.T) { // O6
	v := view(t, src(onNetwork("n1")), svc("s", "10.1.0.1"), svc("p", "10.1.0.2", passthrough))
	me := pod(v, "src")
	d, err := Route(v, Query{Source: me, Dst: netip.MustParseAddrPort("10.1.0.1:80")})
	check(t, d, err, want{err: NoHealthyUpstream})
	d, err = Route(v, Query{Source: me, Dst: netip.MustParseAddrPort("10.1.0.2:80")})
	check(t, d, err, want{dial: "10.1.0.2:80", svc: "p"})
}

func TestFailoverReachesAnotherNetwork(t *testing.T) { // failover_to_remote
	prefer := func(s *pb.Service) {
		s.LoadBalancing = &pb.LoadBalancing{Mode: pb.LoadBalancing_FAILOVER, RoutingPreference: []pb.LoadBalancing_Scope{pb.LoadBalancing_NETWORK}}
	}
	remote := []any{
		src(), svc("s", "10.1.0.1", prefer), wl("ewgw", "10.7.0.1", onNetwork("n2")),
		wl("far", "", in("s"), onNetwork("n2"), gateway(byAddr("n2", "10.7.0.1"))),
	}
	for name, tc := range map[string]struct {
		near wlOpt
		want Protocol
	}{"a near endpoint is taken": {func(*pb.Workload) {}, HBONE}, "the remote one when it fails": {unhealthy, DoubleHBONE}} {
		t.Run(name, func(t *testing.T) {
			v := view(t, append(remote, wl("near", "10.0.0.2", in("s"), tc.near))...)
			d, err := Route(v, Query{Source: pod(v, "src"), Dst: netip.MustParseAddrPort("10.1.0.1:80")})
			if err != nil || d.Protocol != tc.want {
				t.Errorf("Route = %v, %v; want %v", d.Protocol, err, tc.want)
			}
		})
	}
}

func TestResolvedCompletesADecision(t *testing.T) { // O22
	v := view(t, src(), svc("s", "10.1.0.1"), wl("a", "", in("s"), hostname("a.example")))
	d, err := Route(v, Query{Source: pod(v, "src"), Dst: netip.MustParseAddrPort("10.1.0.1:80")})
	if err != nil {
		t.Fatal(err)
	}
	check(t, d.Resolved(netip.MustParseAddr("9.9.9.9")), nil,
		want{proto: HBONE, dial: "9.9.9.9:15008", authority: "9.9.9.9:8080", expect: "a", svc: "s"})
}

func TestRouteAllocatesNothing(t *testing.T) {
	v := view(t, src(), svc("s", "10.1.0.1", sans(id("extra"))), wl("a", "10.0.0.2", in("s")))
	q := Query{Source: pod(v, "src"), Dst: netip.MustParseAddrPort("10.1.0.1:80")}
	if n := testing.AllocsPerRun(100, func() { _, _ = Route(v, q) }); n != 0 {
		t.Errorf("allocations = %v, want 0", n)
	}
}

func BenchmarkRoute(b *testing.B) {
	v := view(b, src(), svc("s", "10.1.0.1"), wl("a", "10.0.0.2", in("s")))
	for name, dst := range map[string]string{"vip": "10.1.0.1:80", "pod": "10.0.0.2:80", "unknown": "1.2.3.4:80"} {
		b.Run(name, func(b *testing.B) {
			q := Query{Source: pod(v, "src"), Dst: netip.MustParseAddrPort(dst)}
			b.ReportAllocs()
			for b.Loop() {
				_, _ = Route(v, q)
			}
		})
	}
}
