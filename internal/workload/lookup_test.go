package workload

import (
	"fmt"
	"testing"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
)

func TestServiceByVIP(t *testing.T) {
	type look struct{ network, ip, ns, want string }
	onNet := func(n string, vips ...string) func(*pb.Service) {
		return func(s *pb.Service) {
			for _, v := range vips {
				s.Addresses = append(s.Addresses, vip(n, v))
			}
		}
	}
	tests := map[string]struct { // the names are those of the behaviour list
		services []any
		looks    []look
	}{
		"shared_vip_different_namespaces (O11)": {
			[]any{svc("a", "s", []string{"10.1.0.1"}), svc("b", "s", []string{"10.1.0.1"}, canonical), svc("c", "s", []string{"10.1.0.1"})},
			[]look{{"", "10.1.0.1", "a", "a"}, {"", "10.1.0.1", "b", "b"}, {"", "10.1.0.1", "c", "c"}, {"", "10.1.0.1", "x", "b"}},
		},
		"the first inserted wins among equals (O11)": {
			[]any{svc("b", "s", []string{"10.1.0.1"}), svc("a", "s", []string{"10.1.0.1"})},
			[]look{{"", "10.1.0.1", "x", "b"}},
		},
		"namespace_visibility_vip": {
			[]any{svc("a", "s", []string{"10.1.0.1"}, namespaceOnly, canonical), svc("b", "s", []string{"10.1.0.1"})},
			[]look{{"", "10.1.0.1", "a", "a"}, {"", "10.1.0.1", "x", "b"}},
		},
		"an invisible service is not found": {
			[]any{svc("a", "s", []string{"10.1.0.1"}, namespaceOnly)},
			[]look{{"", "10.1.0.1", "x", ""}},
		},
		"visibility_filtered_exact_vip_falls_through_to_cidr (O12)": {
			[]any{svc("a", "s", []string{"10.1.0.1"}, namespaceOnly), svc("b", "s", []string{"10.1.0.0/16"})},
			[]look{{"", "10.1.0.1", "x", "b"}, {"", "10.1.0.1", "a", "a"}},
		},
		"cidr_match_v4": {
			[]any{svc("a", "s", []string{"10.1.0.0/16"})},
			[]look{{"", "10.1.255.255", "x", "a"}, {"", "10.2.0.0", "x", ""}, {"", "10.0.255.255", "x", ""}},
		},
		"cidr_match_v6": {
			[]any{svc("a", "s", []string{"fd00:1::/64"})},
			[]look{{"", "fd00:1::7", "x", "a"}, {"", "fd00:1:0:1::7", "x", ""}},
		},
		"longest_prefix_match_v4": {
			[]any{svc("a", "s", []string{"10.1.0.0/16"}), svc("b", "s", []string{"10.1.2.0/24"}), svc("c", "s", []string{"0.0.0.0/0"})},
			[]look{{"", "10.1.2.3", "x", "b"}, {"", "10.1.3.3", "x", "a"}, {"", "8.8.8.8", "x", "c"}},
		},
		"longest_prefix_match_v6": {
			[]any{svc("a", "s", []string{"fd00::/16"}), svc("b", "s", []string{"fd00:1::/32"})},
			[]look{{"", "fd00:1::1", "x", "b"}, {"", "fd00:2::1", "x", "a"}},
		},
		"dual_stack_cidr": {
			[]any{svc("a", "s", []string{"10.1.0.0/16", "fd00::/16"})},
			[]look{{"", "10.1.2.3", "x", "a"}, {"", "fd00::1", "x", "a"}},
		},
		"cidr_family_mismatch": {
			[]any{svc("a", "s", []string{"0.0.0.0/0"})},
			[]look{{"", "::1", "x", ""}},
		},
		"exact_v4_with_cidr_v6": {
			[]any{svc("a", "s", []string{"10.1.0.1", "fd00::/16"})},
			[]look{{"", "10.1.0.1", "x", "a"}, {"", "fd00::2", "x", "a"}, {"", "10.1.0.2", "x", ""}},
		},
		"exact_match_priority_over_cidr_v4": {
			[]any{svc("a", "s", []string{"10.1.0.0/16"}, canonical), svc("b", "s", []string{"10.1.0.1"})},
			[]look{{"", "10.1.0.1", "a", "b"}},
		},
		"exact_match_priority_over_cidr_v6": {
			[]any{svc("a", "s", []string{"fd00::/16"}), svc("b", "s", []string{"fd00::1"})},
			[]look{{"", "fd00::1", "a", "b"}},
		},
		"a full length counts as exact (O12)": {
			[]any{svc("a", "s", []string{"10.1.0.1/32"}), svc("b", "s", []string{"10.1.0.0/31"})},
			[]look{{"", "10.1.0.1", "b", "a"}},
		},
		"cidr_network_scoping": {
			[]any{svc("a", "s", nil, onNet("n1", "10.1.0.0/16")), svc("b", "s", nil, onNet("n2", "10.1.0.0/16"))},
			[]look{{"n1", "10.1.0.1", "x", "a"}, {"n2", "10.1.0.1", "x", "b"}, {"", "10.1.0.1", "x", ""}},
		},
		"overlapping_cidr_different_namespaces": {
			[]any{svc("a", "s", []string{"10.1.0.0/16"}), svc("b", "s", []string{"10.1.0.0/16"}, canonical)},
			[]look{{"", "10.1.0.1", "a", "a"}, {"", "10.1.0.1", "b", "b"}, {"", "10.1.0.1", "x", "b"}},
		},
		"cidr_namespace_preferred_over_cidr_specificity (O12)": {
			[]any{svc("a", "s", []string{"10.1.0.0/16"}), svc("b", "s", []string{"10.1.2.0/24"}, canonical)},
			[]look{{"", "10.1.2.3", "a", "a"}, {"", "10.1.2.3", "x", "b"}},
		},
		"unmasked ranges are masked": {
			[]any{svc("a", "s", []string{"10.1.2.3/16"})},
			[]look{{"", "10.1.9.9", "x", "a"}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			v := NewStore(Config{})
			for _, s := range tc.services {
				apply(t, v, []any{s})
			}
			for _, l := range tc.looks {
				got := ""
				if s := v.View().ServiceByVIP(l.network, ip(l.ip), l.ns); s != nil {
					got = s.Namespace
				}
				if got != l.want {
					t.Errorf("ServiceByVIP(%q, %s, %q) = %q, want %q", l.network, l.ip, l.ns, got, l.want)
				}
			}
		})
	}
}

func TestServiceByHostname(t *testing.T) { // namespace_visibility_host, D5
	same := func(s *pb.Service) { s.Hostname = "shared.example" }
	s := NewStore(Config{})
	for _, m := range []any{
		svc("first", "s", nil, same), svc("hidden", "s", nil, same, namespaceOnly), svc("liked", "s", nil, same),
	} {
		apply(t, s, []any{m})
	}
	look := func(ns, prefer, want string) {
		t.Helper()
		if got := s.View().ServiceByHostname("shared.example", ns, prefer); got == nil || got.Namespace != want {
			t.Errorf("ServiceByHostname(%q, %q) = %+v, want %q", ns, prefer, got, want)
		}
	}
	look("x", "", "first")
	look("hidden", "", "hidden")
	look("x", "liked", "liked")
	look("hidden", "liked", "hidden")
	apply(t, s, []any{svc("can", "s", nil, same, canonical)})
	look("x", "", "can")
	look("x", "liked", "can")
	look("liked", "", "liked")
}

func TestEndpointUpdatesLeaveTheServiceOfARangeAlone(t *testing.T) { // X17
	s := store(t, svc("ns", "s", []string{"10.1.0.0/16"}))
	for i := range 50 {
		apply(t, s, []any{wl("a", fmt.Sprintf("10.0.0.%d", i), member("ns/s.ns"))})
	}
	v := apply(t, s, []any{svc("ns", "s", []string{"10.1.0.0/16"})})
	list, _ := v.cidrs[""].Lookup(ip("10.1.0.1"))
	if len(list) != 1 {
		t.Errorf("range holds %d services, want 1", len(list))
	}
	up, ok := v.Pick(v.ServiceByVIP("", ip("10.1.0.1"), ""), &Pick{Port: 80})
	if !ok || !up.Workload.Owns(ip("10.0.0.49")) {
		t.Errorf("Pick = %+v, %v; want the newest endpoint", up, ok)
	}
}
