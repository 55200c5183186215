package proxy

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
)

// TestResolveTarget has the cases of find_inbound_upstream and build_inbound_request (I3-I5): how the traffic was
// addressed, and through which waypoint.
func TestResolveTarget(t *testing.T) {
	app := tunnel(pb.ApplicationTunnel_PROXY, 15088)
	msgs := []any{
		wl("app", "10.0.0.1", in("app")), svc("app", "10.1.0.1"),
		wl("named", "10.0.0.2", in("named", 80, 7777)), svc("named", "10.1.0.2", withPorts(80, 0, 81, 0)),
		wl("wp", "10.0.0.9", in("wp")), svc("wp", "10.1.0.9", withPorts(15008, 15008)),
		wl("sandwich", "10.0.0.8", in("sandwich"), app), svc("sandwich", "10.1.0.8", withPorts(15008, 15008)),
		wl("notready", "10.0.0.7", in("wp"), unhealthy),
		wl("byhost", "10.0.0.20", wlWaypoint(byHost("wp"))), wl("byvip", "10.0.0.21", wlWaypoint(byAddr("", "10.1.0.9"))),
		wl("bypod", "10.0.0.22", wlWaypoint(byAddr("", "10.0.0.9"))), wl("other", "10.0.0.23", wlWaypoint(byHost("sandwich"))),
		wl("dangling", "10.0.0.24", wlWaypoint(byHost("nobody"))), wl("none", "10.0.0.25"),
		svc("byhost", "10.1.0.20", svcWaypoint(byHost("wp"))), svc("byvip", "10.1.0.21", svcWaypoint(byAddr("", "10.1.0.9"))),
		svc("bypod", "10.1.0.22", svcWaypoint(byAddr("", "10.0.0.9"))), svc("other", "10.1.0.23", svcWaypoint(byHost("sandwich"))),
		svc("none", "10.1.0.25"), svc("weighted", "10.1.0.26", weighted(byHost("wp"), byHost("sandwich"), 1, 0)),
		wl("fixed", "10.0.0.30", in("app"), tunnel(pb.ApplicationTunnel_NONE, 9999)),
	}
	tests := map[string]struct {
		local, authority string
		dial             string
		err              Reason
	}{
		"to the workload, no waypoint":                    {"app", "10.0.0.1:80", "10.0.0.1:80", 0},
		"to the service's hostname, no waypoint":          {"app", "app.default:80", "10.0.0.1:8080", 0},
		"to a named port by hostname":                     {"named", "named.default:80", "10.0.0.2:7777", 0},
		"to a named port the pod lacks":                   {"named", "named.default:81", "", NoValidPort},
		"to a hostname's undeclared port":                 {"app", "app.default:99", "", NoValidPort},
		"to an unknown hostname":                          {"app", "nobody.default:80", "", UnknownService},
		"workload with waypoint, by hostname":             {"wp", "10.0.0.20:80", "10.0.0.9:80", 0},
		"workload with waypoint, by vip":                  {"wp", "10.0.0.21:80", "10.0.0.9:80", 0},
		"workload with waypoint, by pod":                  {"wp", "10.0.0.22:80", "10.0.0.9:80", 0},
		"service with waypoint, by hostname":              {"wp", "10.1.0.20:80", "10.0.0.9:80", 0},
		"service with waypoint, by vip":                   {"wp", "10.1.0.21:80", "10.0.0.9:80", 0},
		"service with waypoint, by pod":                   {"wp", "10.1.0.22:80", "10.0.0.9:80", 0},
		"service with a weighted waypoint":                {"wp", "10.1.0.26:80", "10.0.0.9:80", 0},
		"a replica that is not ready is still one":        {"notready", "10.1.0.20:80", "10.0.0.7:80", 0},
		"workload through app tunnel":                     {"sandwich", "10.0.0.23:80", "127.0.0.1:15088", 0},
		"service through app tunnel":                      {"sandwich", "10.1.0.23:80", "127.0.0.1:15088", 0},
		"app tunnel takes any address":                    {"sandwich", "9.9.9.9:80", "127.0.0.1:15088", 0},
		"app tunnel without PROXY stays on the address":   {"fixed", "10.0.0.30:80", "10.0.0.30:9999", 0},
		"app tunnel replaces the port of a hostname":      {"fixed", "app.default:99", "10.0.0.30:9999", 0},
		"server address mismatch":                         {"app", "10.0.0.2:80", "", AddressMismatch},
		"workload via a waypoint it is not attached to":   {"wp", "10.0.0.23:80", "", AddressMismatch},
		"service via a waypoint it is not attached to":    {"wp", "10.1.0.23:80", "", AddressMismatch},
		"workload without waypoint via a waypoint":        {"wp", "10.0.0.25:80", "", AddressMismatch},
		"service without waypoint via a waypoint":         {"wp", "10.1.0.25:80", "", AddressMismatch},
		"workload whose waypoint does not exist":          {"wp", "10.0.0.24:80", "", AddressMismatch},
		"unknown address":                                 {"wp", "9.9.9.9:80", "", AddressMismatch},
		"illegal port 15001":                              {"app", "10.0.0.1:15001", "", SelfCall},
		"illegal port 15006":                              {"app", "10.0.0.1:15006", "", SelfCall},
		"illegal port 15008":                              {"app", "10.0.0.1:15008", "", SelfCall},
		"illegal port behind a service port":              {"wp", "wp.default:15008", "", SelfCall},
		"no port":                                         {"app", "10.0.0.1", "", BadAuthority},
		"port 0":                                          {"app", "10.0.0.1:0", "", BadAuthority},
		"port too large":                                  {"app", "10.0.0.1:65536", "", BadAuthority},
		"IPv6 without brackets":                           {"app", "fd00::1:80", "", BadAuthority},
		"a space in the host":                             {"app", "a b:80", "", BadAuthority},
		"empty":                                           {"app", "", "", BadAuthority},
		"IPv4-mapped IPv6 is the IPv4 address":            {"app", "[::ffff:10.0.0.1]:80", "10.0.0.1:80", 0},
		"a hostname does not have to be of this workload": {"none", "app.default:80", "10.0.0.25:8080", 0},
	}
	v := view(t, msgs...)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			local := v.ByUID("c//Pod/default/" + tc.local)
			q := TargetQuery{
				Local: local, LocalAddr: local.Addrs[0], Peer: netip.MustParseAddr("10.0.0.99"), Authority: tc.authority, LoopbackTunnel: true,
			}
			got, err := ResolveTarget(v, q)
			if tc.err != 0 {
				if !errors.Is(err, tc.err) {
					t.Fatalf("ResolveTarget = %+v, %v; want %v", got, err, tc.err)
				}
				return
			}
			if err != nil || got.Dial.String() != tc.dial {
				t.Fatalf("ResolveTarget = %v, %v; want %v", got.Dial, err, tc.dial)
			}
		})
	}
}

func TestReasonsMapToStatuses(t *testing.T) { // section 3.4
	for r, want := range map[Reason]int{
		BadAuthority: 400, AddressMismatch: 400, UnknownService: 503, NoValidPort: 503, SelfCall: 503,
	} {
		if got := r.Status(); got != want {
			t.Errorf("Status(%v) = %d, want %d", r, got, want)
		}
	}
}

func TestTheClientAddressIsSpoofedUnlessItIsTheTarget(t *testing.T) { // P10, O15
	v := view(t, wl("app", "10.0.0.1"))
	q := TargetQuery{Local: pod(v, "app"), LocalAddr: netip.MustParseAddr("10.0.0.1"), Authority: "10.0.0.1:80"}
	for peer, want := range map[string]string{"10.0.0.2": "10.0.0.2", "10.0.0.1": "invalid IP"} {
		q.Peer = netip.MustParseAddr(peer)
		if got, err := ResolveTarget(v, q); err != nil || got.Spoof.String() != want {
			t.Errorf("Spoof for %s = %v, %v; want %s", peer, got.Spoof, err, want)
		}
	}
}

func TestAppTunnelsCarryTheMeantDestination(t *testing.T) { // I5, P11
	app := tunnel(pb.ApplicationTunnel_PROXY, 15088)
	twoNets := func(s *pb.Service) {
		s.Addresses = []*pb.NetworkAddress{
			{Network: "n2", Address: []byte{10, 2, 0, 1}}, {Address: netip.MustParseAddr("fd00::1").AsSlice()}, {Address: []byte{10, 1, 0, 1}},
		}
	}
	v := view(t, wl("wp", "10.0.0.9", app), svc("s", "", twoNets), svc("headless", ""))
	for authority, want := range map[string]string{
		"10.5.0.1:80": "10.5.0.1:80", "s.default:80": "10.1.0.1:80", "headless.default:80": "invalid AddrPort",
	} {
		q := TargetQuery{Local: pod(v, "wp"), LocalAddr: netip.MustParseAddr("10.0.0.9"), Authority: authority, Peer: netip.MustParseAddr("10.0.0.3")}
		got, err := ResolveTarget(v, q)
		if err != nil || !got.Proxy || got.Upstream.String() != "10.0.0.9:15088" || got.Dial != got.Upstream || got.Spoof != q.Peer {
			t.Errorf("ResolveTarget(%s) = %+v, %v", authority, got, err)
		}
		if s := got.Tunnelled.String(); s != want && !strings.HasPrefix(s, "invalid") {
			t.Errorf("Tunnelled of %s = %s, want %s", authority, s, want)
		}
		q.LoopbackTunnel = true
		if got, err := ResolveTarget(v, q); err != nil || got.Dial.String() != "127.0.0.1:15088" || got.Spoof.String() != "127.0.0.1" {
			t.Errorf("loopback target of %s = %v from %v, %v", authority, got.Dial, got.Spoof, err)
		}
	}
}

func TestTargetService(t *testing.T) { // I8
	v := view(t, wl("a", "10.0.0.1", in("one"), in("two", 80, 9090)), svc("one", "10.1.0.1"), svc("two", "10.1.0.2"), svc("not", "10.1.0.3"))
	for name, tc := range map[string]struct {
		host string
		port uint16
		want string
	}{
		"the hostname decides":        {"two.default", 8080, "two"},
		"a foreign hostname does not": {"not.default", 8080, "one"},
		"the service's target port":   {"", 8080, "one"},
		"the endpoint's target port":  {"", 9090, "two"},
		"no service has the port":     {"", 1, ""},
	} {
		got := ""
		if s := TargetService(v, pod(v, "a"), tc.host, tc.port); s != nil {
			got = s.Name
		}
		if got != tc.want {
			t.Errorf("%s: TargetService = %q, want %q", name, got, tc.want)
		}
	}
}

func TestProxyHeaderBytes(t *testing.T) { // section 3.8, I9
	ap := netip.MustParseAddrPort
	sig := "0d0a0d0a000d0a515549540a"
	idHex := hex.EncodeToString([]byte("spiffe://td/ns/n/sa/s"))
	for name, tc := range map[string]struct {
		src, dst netip.AddrPort
		id, want string
	}{
		"TCP4 with identity": {ap("10.0.0.1:4660"), ap("10.0.0.2:80"), "spiffe://td/ns/n/sa/s", "2111" + "0024" + "0a0000010a000002" + "12340050" + "d00015" + idHex},
		"TCP4 without":       {ap("10.0.0.1:4660"), ap("10.0.0.2:80"), "", "2111" + "000c" + "0a0000010a000002" + "12340050"},
		"TCP6": {
			ap("[fd00::1]:4660"), ap("[fd00::2]:80"), "",
			"2121" + "0024" + "fd000000000000000000000000000001" + "fd000000000000000000000000000002" + "12340050",
		},
		"mixed families are IPv6": {
			ap("10.0.0.1:4660"), ap("[fd00::2]:80"), "",
			"2121" + "0024" + "00000000000000000000ffff0a000001" + "fd000000000000000000000000000002" + "12340050",
		},
		"no destination": {ap("10.0.0.1:4660"), netip.AddrPortFrom(netip.Addr{}, 80), "", "2111" + "000c" + "0a00000100000000" + "12340050"},
	} {
		if got := hex.EncodeToString(AppendProxyV2(nil, tc.src, tc.dst, tc.id)); got != sig+tc.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, sig+tc.want)
		}
	}
}

func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[fd00::1]:80", "a.b:1", ":1", "[", "[]:1", "[::1%eth0]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, addr, err := parseAuthority(s)
		if err != nil {
			if !errors.Is(err, BadAuthority) {
				t.Fatalf("error %v has no reason", err)
			}
			return
		}
		if addr.Port() == 0 || (host == "") != addr.Addr().IsValid() || addr.Addr().Is4In6() {
			t.Fatalf("parseAuthority(%q) = %q, %v", s, host, addr)
		}
	})
}
