package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	pb "github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/xds"
)

func resourceOf(a Address) []xds.Resource[Address] { return []xds.Resource[Address]{{Value: a}} }

// assertEmpty fails if anything is left in any index.
func assertEmpty(t *testing.T, v *View) {
	t.Helper()
	sizes := []int{
		v.byUID.size, v.byAddr.winners.size, v.byAddr.shadow.size, v.byPod.winners.size, v.byPod.shadow.size,
		v.byHost.winners.size, v.byHost.shadow.size, v.services.size, v.vips.size, v.hosts.size, len(v.cidrs), v.count,
	}
	for i, n := range sizes {
		if n != 0 {
			t.Errorf("index %d holds %d entries, want 0 (sizes %v)", i, n, sizes)
			return
		}
	}
}

func TestAWorkloadIsFoundByEveryKey(t *testing.T) { // lookup_address, local_client
	v := store(t, wl("a", "10.0.0.1", func(w *pb.Workload) { w.Hostname = "a.example"; w.Network = "n1" })).View()
	for how, got := range map[string]*Workload{
		"uid": v.ByUID("c//Pod/default/a"), "address": v.Workload("n1", ip("10.0.0.1")),
		"pod": v.Pod("a", "default", "a"), "hostname": v.WorkloadByHostname("default", "a.example"),
	} {
		if got == nil || got.Name != "a" {
			t.Errorf("by %s = %v", how, got)
		}
	}
	for how, got := range map[string]*Workload{
		"other network": v.Workload("n2", ip("10.0.0.1")), "other account": v.Pod("a", "default", "b"), // O2
		"other namespace": v.WorkloadByHostname("x", "a.example"),
	} {
		if got != nil {
			t.Errorf("by %s = %v, want nil", how, got)
		}
	}
}

func TestRemovingEverythingLeavesNothing(t *testing.T) { // staged_services_cleanup, cidr_remove_cleanup
	s := store(t, wl("a", "10.0.0.1", member("ns/s.ns", 80, 1), member("ns/never.ns")),
		wl("b", "10.0.0.1", member("ns/s.ns")), svc("ns", "s", []string{"10.1.0.1", "10.2.0.0/16", "fd00::/64"}))
	apply(t, s, []any{svc("ns", "s", []string{"10.2.0.0/16"}), wl("a", "10.0.0.9", member("ns/s.ns"))})
	assertEmpty(t, apply(t, s, nil, "c//Pod/default/a", "c//Pod/default/b", "ns/s.ns", "never/existed"))
}

func TestHostNetworkRecordsAreEndpointsButNotFoundByAddress(t *testing.T) { // O14, O16
	v := store(t, svc("ns", "s", nil), wl("h", "192.168.0.1", member("ns/s.ns"),
		func(w *pb.Workload) { w.NetworkMode = pb.NetworkMode_HOST_NETWORK })).View()
	if got := v.Workload("", ip("192.168.0.1")); got != nil {
		t.Errorf("Workload = %v, want nil", got)
	}
	if got := endpoints(v, "ns/s.ns"); !slices.Equal(got, []string{"h"}) {
		t.Errorf("endpoints = %v", got)
	}
}

func TestTheStrongerClaimToAnAddressWinsInAnyOrder(t *testing.T) { // O14, overlapping_workload_ip
	podHBONE := wl("podh", "10.0.0.1")
	pod := wl("pod", "10.0.0.1", func(w *pb.Workload) { w.TunnelProtocol = pb.TunnelProtocol_NONE })
	hbone := wl("hb", "10.0.0.1", func(w *pb.Workload) { w.Uid = "c/networking.istio.io/WorkloadEntry/d/hb" })
	other := wl("other", "10.0.0.1", func(w *pb.Workload) {
		w.Uid, w.TunnelProtocol = "c/networking.istio.io/WorkloadEntry/d/other", pb.TunnelProtocol_NONE
	})
	order := []any{podHBONE, pod, hbone, other}
	for n := range 24 {
		msgs := slices.Clone(order)
		rand.New(rand.NewPCG(uint64(n), 1)).Shuffle(4, func(i, j int) { msgs[i], msgs[j] = msgs[j], msgs[i] })
		s := NewStore(Config{})
		for _, m := range msgs {
			apply(t, s, []any{m})
		}
		for _, want := range order {
			got := s.View().Workload("", ip("10.0.0.1"))
			if got == nil || got.UID != want.(*pb.Workload).Uid {
				t.Fatalf("Workload = %v, want %v", got, want)
			}
			apply(t, s, nil, got.UID)
		}
		assertEmpty(t, s.View())
	}
}

func TestAReusedAddressGoesToTheHealthyRecordAndBackToNobody(t *testing.T) {
	s := store(t, wl("old", "10.0.0.1"), wl("new", "10.0.0.1"))
	v := apply(t, s, []any{wl("old", "10.0.0.1", unhealthy)})
	if got := v.Workload("", ip("10.0.0.1")); got.Name != "new" {
		t.Errorf("Workload = %q, want new", got.Name)
	}
}

func TestPodsOfTheOwnNodeWinOverNamesakesOfOtherClusters(t *testing.T) {
	far := wl("a", "10.9.0.1", func(w *pb.Workload) { w.Uid, w.Node = "other//Pod/default/a", "elsewhere" })
	for _, msgs := range [][]any{{far, wl("a", "10.0.0.1")}, {wl("a", "10.0.0.1"), far}} {
		if got := store(t, msgs...).View().Pod("a", "default", "a"); got.UID != "c//Pod/default/a" {
			t.Errorf("Pod = %q", got.UID)
		}
	}
}

func TestEndpointsWaitForTheirService(t *testing.T) { // X14, apply_endpoints_stages_and_filters_on_flush, unhealthy_workloads_staged
	s := store(t, wl("a", "10.0.0.1", member("ns/s.ns")), wl("b", "10.0.0.2", member("ns/s.ns"), unhealthy))
	if s.View().ServiceByKey("ns/s.ns") != nil {
		t.Fatal("a staged service is visible")
	}
	if got := s.View().Staged(); len(got) != 1 || len(got["ns/s.ns"]) != 2 {
		t.Errorf("Staged = %v", got)
	}
	v := apply(t, s, []any{svc("ns", "s", nil)})
	if got := endpoints(v, "ns/s.ns"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("endpoints = %v, want [a]", got)
	}
	if len(v.Staged()) != 0 {
		t.Errorf("Staged = %v, want none", v.Staged())
	}
}

func TestStagedEndpointsCanBeRemoved(t *testing.T) { // staged_removals
	s := store(t, wl("a", "10.0.0.1", member("ns/s.ns")), wl("b", "10.0.0.2", member("ns/s.ns")))
	v := apply(t, s, []any{svc("ns", "s", nil)}, "c//Pod/default/a")
	if got := endpoints(v, "ns/s.ns"); !slices.Equal(got, []string{"b"}) {
		t.Errorf("endpoints = %v, want [b]", got)
	}
}

func TestAServiceComesBeforeOrAfterItsWorkloadsInOnePush(t *testing.T) { // batch service_before_workloads
	for _, msgs := range [][]any{
		{svc("ns", "s", nil), wl("a", "10.0.0.1", member("ns/s.ns"))}, {wl("a", "10.0.0.1", member("ns/s.ns")), svc("ns", "s", nil)},
	} {
		if got := endpoints(store(t, msgs...).View(), "ns/s.ns"); !slices.Equal(got, []string{"a"}) {
			t.Errorf("endpoints = %v, want [a]", got)
		}
	}
}

func TestUnhealthyEndpointsAreEvictedUnlessTheServiceTakesAll(t *testing.T) { // O17, present_unhealthy_reinsert_evicts, unhealthy_workloads
	s := store(t, svc("ns", "s", nil), svc("ns", "all", nil, allowAll), wl("a", "10.0.0.1", member("ns/s.ns"), member("ns/all.ns")))
	v := apply(t, s, []any{wl("a", "10.0.0.1", member("ns/s.ns"), member("ns/all.ns"), unhealthy)})
	if got := endpoints(v, "ns/s.ns"); len(got) != 0 {
		t.Errorf("endpoints = %v, want none", got)
	}
	if got := endpoints(v, "ns/all.ns"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("endpoints = %v, want [a]", got)
	}
}

func TestAReplacedServiceFiltersItsEndpointsByTheNewHealthPolicy(t *testing.T) { // X14
	s := store(t, svc("ns", "s", nil), wl("a", "10.0.0.1", member("ns/s.ns")), wl("b", "10.0.0.2", member("ns/s.ns"), unhealthy))
	if got := endpoints(apply(t, s, []any{svc("ns", "s", nil, allowAll)}), "ns/s.ns"); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("endpoints = %v, want [a b]", got)
	}
	if got := endpoints(apply(t, s, []any{svc("ns", "s", nil)}), "ns/s.ns"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("endpoints = %v, want [a]", got)
	}
}

func TestARemovalAndAnUpsertOfOneNameIsAReplacement(t *testing.T) { // present_removal_applied_before_upsert, add_abort_remove
	s := store(t, svc("ns", "s", nil), wl("a", "10.0.0.1", member("ns/s.ns")))
	v := apply(t, s, []any{wl("a", "10.0.0.2", member("ns/s.ns"))}, "c//Pod/default/a")
	if got := endpoints(v, "ns/s.ns"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("endpoints = %v, want [a]", got)
	}
	if v.Workload("", ip("10.0.0.1")) != nil || v.Workload("", ip("10.0.0.2")) == nil {
		t.Error("address index was not moved")
	}
}

func TestAWorkloadThatLeavesAServiceIsNoEndpointAnyMore(t *testing.T) { // remove_drops_endpoint
	s := store(t, svc("ns", "s", nil), wl("a", "10.0.0.1", member("ns/s.ns")))
	if got := endpoints(apply(t, s, []any{wl("a", "10.0.0.1")}), "ns/s.ns"); len(got) != 0 {
		t.Errorf("endpoints = %v, want none", got)
	}
}

func TestAnOldViewDoesNotChange(t *testing.T) {
	s := store(t, svc("ns", "s", []string{"10.1.0.0/16"}), wl("a", "10.0.0.1", member("ns/s.ns")))
	old := s.View()
	apply(t, s, []any{wl("b", "10.0.0.2", member("ns/s.ns"))}, "c//Pod/default/a", "ns/s.ns")
	if got := endpoints(old, "ns/s.ns"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("endpoints = %v, want [a]", got)
	}
	if old.ByUID("c//Pod/default/a") == nil || old.ServiceByVIP("", ip("10.1.2.3"), "x") == nil {
		t.Error("the old view lost something")
	}
}

func TestWatchersSeeWhatChanged(t *testing.T) {
	s := store(t, svc("ns", "s", nil), wl("a", "10.0.0.1"))
	var got []string
	s.Watch(func(c *Change) {
		for _, w := range c.Workloads {
			got = append(got, fmt.Sprintf("%v %v", w.Old != nil, w.New != nil))
		}
		for _, w := range c.Services {
			got = append(got, fmt.Sprintf("%v %v %s", w.Old != nil, w.New != nil, w.key()))
		}
		if c.New != s.View() {
			t.Error("watcher runs before the view is published")
		}
	})
	apply(t, s, []any{wl("b", "10.0.0.2"), svc("ns", "new", nil)})
	apply(t, s, nil, "c//Pod/default/a", "ns/s.ns", "nobody")
	apply(t, s, []any{wl("b", "10.0.0.3")})
	want := []string{"false true", "false true ns/new.ns", "true false", "true false ns/s.ns", "true true"}
	if !slices.Equal(got, want) {
		t.Errorf("changes = %q, want %q", got, want)
	}
}

// TestRandomChangesLeaveTheStateOfAFreshStore is the model test: any history ends in the state that its survivors alone
// would make.
func TestRandomChangesLeaveTheStateOfAFreshStore(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	s := NewStore(Config{})
	live := map[string]any{}
	for range 400 {
		var msgs []any
		var removed []string
		for range 1 + r.IntN(6) {
			name := fmt.Sprint("w", r.IntN(20))
			if r.IntN(3) == 0 {
				removed = append(removed, "c//Pod/default/"+name)
				delete(live, "c//Pod/default/"+name)
				continue
			}
			var m any
			if r.IntN(3) == 0 {
				key := fmt.Sprint("s", r.IntN(5))
				m = svc("ns", key, []string{fmt.Sprintf("10.1.0.%d", r.IntN(3)), fmt.Sprintf("10.%d.0.0/16", 2+r.IntN(3))})
				live["ns/"+key+".ns"] = m
			} else {
				m = wl(name, fmt.Sprintf("10.0.0.%d", r.IntN(8)), member(fmt.Sprintf("ns/s%d.ns", r.IntN(5))))
				live["c//Pod/default/"+name] = m
			}
			msgs = append(msgs, m)
		}
		// A name removed and upserted in one push stays (removals first).
		for _, m := range msgs {
			if w, ok := m.(*pb.Workload); ok {
				live[w.Uid] = m
			}
		}
		apply(t, s, msgs, removed...)
		fresh := NewStore(Config{})
		var all []any
		for _, m := range live {
			all = append(all, m)
		}
		apply(t, fresh, all)
		assertSame(t, s.View(), fresh.View())
	}
}

func assertSame(t *testing.T, a, b *View) {
	t.Helper()
	aw, as := a.Len()
	bw, bs := b.Len()
	if aw != bw || as != bs || a.byAddr.winners.size != b.byAddr.winners.size || a.vips.size != b.vips.size || a.services.size != b.services.size {
		t.Fatalf("sizes differ: %d %d, want %d %d", aw, as, bw, bs)
	}
	for svc := range b.Services() {
		if got, want := endpoints(a, svc.Key), endpoints(b, svc.Key); !slices.Equal(got, want) {
			t.Fatalf("endpoints of %s = %v, want %v", svc.Key, got, want)
		}
	}
	for w := range b.Workloads() {
		if got := a.ByUID(w.UID); got == nil || !slices.Equal(got.Addrs, w.Addrs) {
			t.Fatalf("workload %s = %v, want %v", w.UID, got, w)
		}
	}
	for i := range 8 {
		addr := ip(fmt.Sprintf("10.0.0.%d", i))
		if (a.Workload("", addr) == nil) != (b.Workload("", addr) == nil) {
			t.Fatalf("address %v differs", addr)
		}
	}
	for i := range 6 {
		addr := ip(fmt.Sprintf("10.%d.0.1", i))
		if (a.ServiceByVIP("", addr, "") == nil) != (b.ServiceByVIP("", addr, "") == nil) {
			t.Fatalf("VIP %v differs", addr)
		}
	}
}

func TestReadersNeverSeeAHalfAppliedChange(t *testing.T) { // B4; run with -race
	s := store(t, svc("ns", "s", []string{"10.1.0.1"}), wl("a", "10.0.0.1", member("ns/s.ns")), wl("b", "10.0.0.2", member("ns/s.ns")))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := s.View()
				up, ok := v.Pick(v.ServiceByVIP("", ip("10.1.0.1"), ""), &Pick{Port: 80})
				if !ok || v.ByUID(up.Workload.UID) != up.Workload {
					t.Error("an endpoint is not the workload of its own view")
					return
				}
			}
		})
	}
	for i := range 300 {
		apply(t, s, []any{wl("a", fmt.Sprintf("10.0.1.%d", i%250), member("ns/s.ns"))}, "c//Pod/default/a")
	}
	close(stop)
	readers.Wait()
}

func TestAPortScanDoesNotPushOutTables(t *testing.T) {
	v := store(t, svc("ns", "s", nil), wl("a", "10.0.0.1", member("ns/s.ns"))).View()
	s := v.ServiceByKey("ns/s.ns")
	for p := range uint16(1000) {
		v.Pick(s, &Pick{Port: p})
	}
	if list := v.entry("ns/s.ns").picks.list.Load(); list == nil || len(*list) != 1 {
		t.Errorf("tables = %v, want that of port 80 only", list)
	}
}
