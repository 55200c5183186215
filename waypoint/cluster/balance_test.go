package cluster

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
)

// clock is a time that tests set.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

// bed is a set with one EDS cluster "c".
type bed struct {
	t     testing.TB
	set   *Set
	clock *clock
}

// newBed makes the cluster with more fields in proto JSON, such as `"lb_policy":"RANDOM"`.
func newBed(t testing.TB, fields string) *bed {
	t.Helper()
	b := &bed{t: t, clock: &clock{time.Unix(1000, 0)}}
	b.set = NewSet(SetConfig{Now: b.clock.now})
	b.update(fields)
	return b
}

func compileJSON(t testing.TB, s string) (*Config, error) {
	t.Helper()
	var p clusterv3.Cluster
	if err := dumptest.Unmarshal([]byte(s), &p); err != nil {
		t.Fatalf("%v in %s", err, s)
	}
	return Compile(&p)
}

func edsJSON(fields string) string {
	if fields != "" {
		fields = "," + fields
	}
	return `{"name":"c","type":"EDS","eds_cluster_config":{"service_name":"s","eds_config":{"ads":{}}}` + fields + `}`
}

func (b *bed) update(fields string) *Cluster {
	b.t.Helper()
	c, err := compileJSON(b.t, edsJSON(fields))
	if err != nil {
		b.t.Fatal(err)
	}
	b.set.Update([]*Config{c}, nil)
	return b.cluster()
}

func (b *bed) cluster() *Cluster { return b.set.View().Get("c") }

// locality is a list of endpoints in proto JSON; fields are more fields of it, such as `"priority":1`.
func locality(fields string, endpoints ...string) string {
	if fields != "" {
		fields += ","
	}
	return `{` + fields + `"lb_endpoints":[` + strings.Join(endpoints, ",") + `]}`
}

// endpoint is an endpoint at 10.0.0.N.
func endpoint(n int, fields string) string {
	if fields != "" {
		fields = "," + fields
	}
	return fmt.Sprintf(`{"endpoint":{"address":{"socket_address":{"address":"10.0.0.%d","port_value":80}}}%s}`, n, fields)
}

// plain are n endpoints from 10.0.0.1 on.
func plain(n int) []string {
	var out []string
	for i := range n {
		out = append(out, endpoint(i+1, ""))
	}
	return out
}

func (b *bed) endpoints(localities ...string) *Cluster {
	b.t.Helper()
	var p endpointv3.ClusterLoadAssignment
	if err := dumptest.Unmarshal([]byte(`{"cluster_name":"s","endpoints":[`+strings.Join(localities, ",")+`]}`), &p); err != nil {
		b.t.Fatal(err)
	}
	a, err := CompileEndpoints(&p)
	if err != nil {
		b.t.Fatal(err)
	}
	b.set.UpdateEndpoints([]*Assignment{a}, nil)
	return b.cluster()
}

// count chooses n times and counts by the last number of the address.
func (b *bed) count(n int, p Pick) map[int]int {
	b.t.Helper()
	if p.Rand == nil {
		p.Rand = rand.New(rand.NewPCG(1, 2))
	}
	got := map[int]int{}
	for range n {
		h, err := b.cluster().Pick(&p)
		if err != nil {
			b.t.Fatal(err)
		}
		got[number(h)]++
	}
	return got
}

func number(h *Host) int { return int(h.Endpoint().Addr.Addr().As4()[3]) }

func (b *bed) host(n int) *Host {
	b.t.Helper()
	for _, h := range b.cluster().Hosts() {
		if number(h) == n {
			return h
		}
	}
	b.t.Fatalf("no endpoint %d", n)
	return nil
}

func near(got, want, by int) bool { return got >= want-by && got <= want+by }

func TestEveryPolicySharesEvenlyAmongEqualEndpoints(t *testing.T) {
	for _, policy := range []string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"} {
		t.Run(policy, func(t *testing.T) {
			b := newBed(t, `"lb_policy":"`+policy+`"`)
			b.endpoints(locality("", plain(4)...))
			got := b.count(4000, Pick{})
			for i := 1; i <= 4; i++ {
				by := 120
				switch policy {
				case "ROUND_ROBIN":
					by = 0
				case "RING_HASH": // a ring of 1024 points is not even
					by = 250
				}
				if !near(got[i], 1000, by) {
					t.Errorf("endpoint %d: %d of 4000 (%v)", i, got[i], got)
				}
			}
		})
	}
}

func TestWeightsCountForThePoliciesThatHaveThem(t *testing.T) {
	for policy, by := range map[string]int{"ROUND_ROBIN": 0, "LEAST_REQUEST": 120, "RING_HASH": 200, "MAGLEV": 120} {
		t.Run(policy, func(t *testing.T) {
			b := newBed(t, `"lb_policy":"`+policy+`"`)
			b.endpoints(locality("", endpoint(1, `"load_balancing_weight":1`), endpoint(2, `"load_balancing_weight":3`)))
			if got := b.count(4000, Pick{}); !near(got[1], 1000, by) {
				t.Errorf("shares %v, want 1000 and 3000", got)
			}
		})
	}
}

func TestAScheduleSpreadsTurnsEvenly(t *testing.T) {
	if got := fmt.Sprint(schedule([]float64{1, 3})); got != "[1 0 1 1]" && got != "[1 1 0 1]" {
		t.Errorf("1:3 gives %s", got)
	}
	if n := len(schedule([]float64{1000, 2000, 3000})); n != 6 {
		t.Errorf("%d turns for 1000:2000:3000, want 6", n)
	}
	s := schedule([]float64{0.5, 1.7})
	n := 0
	for _, i := range s {
		if i == 0 {
			n++
		}
	}
	if share := float64(n) / float64(len(s)); math.Abs(share-0.5/2.2) > 0.001 {
		t.Errorf("share %v", share)
	}
}

func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	b := newBed(t, `"lb_policy":"LEAST_REQUEST"`)
	c := b.endpoints(locality("", plain(2)...))
	for range 10 {
		c.BeginRequest(b.host(1))
	}
	got := b.count(1000, Pick{})
	if !near(got[1], 250, 60) { // both draws fall on the busy one in a quarter of cases
		t.Errorf("the busy one got %d of 1000, want a quarter", got[1])
	}
	for range 10 {
		c.EndRequest(b.host(1))
	}
	if b.host(1).Active() != 0 {
		t.Errorf("%d active", b.host(1).Active())
	}
}

func TestTheSameHashChoosesTheSameEndpointAndMostStayWhenOneGoes(t *testing.T) {
	for _, policy := range []string{"RING_HASH", "MAGLEV"} {
		t.Run(policy, func(t *testing.T) {
			b := newBed(t, `"lb_policy":"`+policy+`"`)
			b.endpoints(locality("", plain(5)...))
			r := rand.New(rand.NewPCG(3, 4))
			before := map[uint64]int{}
			for range 2000 {
				h := r.Uint64()
				x, _ := b.cluster().Pick(&Pick{Hash: h, HasHash: true})
				y, _ := b.cluster().Pick(&Pick{Hash: h, HasHash: true})
				if x != y {
					t.Fatalf("hash %x: %v, then %v", h, x, y)
				}
				before[h] = number(x)
			}
			b.endpoints(locality("", plain(4)...))
			moved := 0
			for h, n := range before {
				x, _ := b.cluster().Pick(&Pick{Hash: h, HasHash: true})
				if n != 5 && number(x) != n {
					moved++
				}
			}
			if moved > 300 { // a ring of another size has points of its own
				t.Errorf("%d of 2000 hashes moved between endpoints that stayed", moved)
			}
		})
	}
}

func TestARetryAvoidsEndpointsThatWereTried(t *testing.T) {
	for _, policy := range []string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"} {
		b := newBed(t, `"lb_policy":"`+policy+`"`)
		b.endpoints(locality("", plain(3)...))
		tried := b.host(2)
		got := b.count(300, Pick{Hash: 7, HasHash: true, Avoid: func(h *Host) bool { return h == tried }, Attempts: 40})
		if got[2] != 0 {
			t.Errorf("%s: the endpoint that was tried came %d times", policy, got[2])
		}
	}
	b := newBed(t, "")
	b.endpoints(locality("", plain(1)...))
	if _, err := b.cluster().Pick(&Pick{Avoid: func(*Host) bool { return true }, Attempts: 5}); err != nil {
		t.Errorf("the only endpoint is better than none: %v", err)
	}
}

func TestUnhealthyAndDrainingEndpointsGetNothing(t *testing.T) {
	b := newBed(t, `"common_lb_config":{"healthy_panic_threshold":{"value":0}}`)
	b.endpoints(locality("", endpoint(1, `"health_status":"UNHEALTHY"`), endpoint(2, `"health_status":"DRAINING"`), endpoint(3, `"health_status":"HEALTHY"`)))
	if got := b.count(100, Pick{}); got[3] != 100 {
		t.Errorf("shares %v", got)
	}
	b.endpoints(locality("", endpoint(1, `"health_status":"UNHEALTHY"`)))
	if _, err := b.cluster().Pick(&Pick{}); err != ErrNoHost {
		t.Errorf("chose an unhealthy one: %v", err)
	}
}

func TestBelowThePanicThresholdHealthDoesNotCount(t *testing.T) {
	b := newBed(t, "")
	unhealthy := `"health_status":"UNHEALTHY"`
	b.endpoints(locality("", endpoint(1, ""), endpoint(2, unhealthy), endpoint(3, unhealthy)))
	if got := b.count(300, Pick{}); got[1] != 100 || got[2] != 100 || got[3] != 100 {
		t.Errorf("a third is healthy, the threshold is half: shares %v", got)
	}
	b.endpoints(locality("", endpoint(1, ""), endpoint(2, ""), endpoint(3, unhealthy)))
	if got := b.count(300, Pick{}); got[3] != 0 {
		t.Errorf("two thirds are healthy: shares %v", got)
	}
}

func TestLoadFailsOverToTheNextPriority(t *testing.T) {
	unhealthy := `"health_status":"UNHEALTHY"`
	for name, c := range map[string]struct {
		first []string
		want  int // percent for the second priority
	}{
		"all healthy":                  {plain(4), 0},
		"three quarters is enough":     {[]string{endpoint(1, ""), endpoint(2, ""), endpoint(3, ""), endpoint(4, unhealthy)}, 0},
		"half carries 70 percent":      {[]string{endpoint(1, ""), endpoint(2, ""), endpoint(3, unhealthy), endpoint(4, unhealthy)}, 30},
		"a quarter carries 35 percent": {[]string{endpoint(1, ""), endpoint(2, unhealthy), endpoint(3, unhealthy), endpoint(4, unhealthy)}, 65},
		"none":                         {[]string{endpoint(1, unhealthy)}, 100},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, "")
			b.endpoints(locality("", c.first...), locality(`"priority":1`, endpoint(101, "")))
			if got := b.count(10_000, Pick{}); !near(got[101], c.want*100, 150) {
				t.Errorf("the second priority got %d of 10000, want %d percent", got[101], c.want)
			}
		})
	}
}

func TestDegradedEndpointsCarryWhatHealthyOnesCannot(t *testing.T) {
	b := newBed(t, `"common_lb_config":{"healthy_panic_threshold":{"value":0}}`)
	b.endpoints(locality("", endpoint(1, ""), endpoint(2, `"health_status":"DEGRADED"`)))
	if got := b.count(10_000, Pick{}); !near(got[2], 3000, 200) {
		t.Errorf("the degraded one got %d of 10000, want 30 percent", got[2])
	}
}

func TestARetryLeavesOutPrioritiesThatFailed(t *testing.T) {
	b := newBed(t, "")
	b.endpoints(locality("", plain(2)...), locality(`"priority":1`, endpoint(101, "")))
	if got := b.count(100, Pick{Failed: 1}); got[101] != 100 {
		t.Errorf("shares %v", got)
	}
	if got := b.count(100, Pick{Failed: 3}); got[101] != 0 {
		t.Errorf("all failed: start again, shares %v", got)
	}
}

func TestLocalitiesShareByWeight(t *testing.T) {
	b := newBed(t, `"common_lb_config":{"locality_weighted_lb_config":{}}`)
	b.endpoints(
		locality(`"locality":{"zone":"a"},"load_balancing_weight":80`, plain(1)...),
		locality(`"locality":{"zone":"b"},"load_balancing_weight":20`, endpoint(101, ""), endpoint(102, "")),
		locality(`"locality":{"zone":"c"}`, endpoint(103, "")))
	got := b.count(1000, Pick{})
	if got[1] != 800 || got[101] != 100 || got[102] != 100 || got[103] != 0 {
		t.Errorf("shares %v", got)
	}
}

func TestLocalityWeightsDoNotCountUnlessAskedFor(t *testing.T) {
	b := newBed(t, "")
	b.endpoints(locality(`"locality":{"zone":"a"},"load_balancing_weight":80`, plain(1)...), locality(`"locality":{"zone":"b"},"load_balancing_weight":20`, endpoint(101, "")))
	if got := b.count(1000, Pick{}); got[1] != 500 {
		t.Errorf("shares %v", got)
	}
}

func TestANewEndpointStartsSlowly(t *testing.T) {
	b := newBed(t, `"lb_policy":"ROUND_ROBIN","round_robin_lb_config":{"slow_start_config":{"slow_start_window":"100s","min_weight_percent":{"value":10}}}`)
	b.endpoints(locality("", plain(1)...))
	if got := b.count(100, Pick{}); got[1] != 100 {
		t.Fatalf("shares %v", got)
	}
	b.endpoints(locality("", plain(2)...))
	for _, step := range []struct {
		after time.Duration
		want  int // of 1100
	}{{0, 100}, {50 * time.Second, 367}, {100 * time.Second, 550}} {
		b.clock.t = time.Unix(1000, 0).Add(step.after)
		b.set.tick(b.clock.now())
		if got := b.count(1100, Pick{}); !near(got[2], step.want, 6) {
			t.Errorf("after %v the new endpoint got %d of 1100, want %d", step.after, got[2], step.want)
		}
	}
}

func TestDropsAreRefused(t *testing.T) {
	b := newBed(t, "")
	var p endpointv3.ClusterLoadAssignment
	if err := dumptest.Unmarshal([]byte(`{"cluster_name":"s","policy":{"drop_overloads":[{"category":"x","drop_percentage":{"numerator":30}}]},"endpoints":[`+locality("", plain(1)...)+`]}`), &p); err != nil {
		t.Fatal(err)
	}
	a, err := CompileEndpoints(&p)
	if err != nil {
		t.Fatal(err)
	}
	b.set.UpdateEndpoints([]*Assignment{a}, nil)
	r := rand.New(rand.NewPCG(1, 2))
	n := 0
	for range 1000 {
		if _, err := b.cluster().Pick(&Pick{Rand: r}); err == ErrDropped {
			n++
		}
	}
	if !near(n, 300, 50) {
		t.Errorf("%d of 1000 dropped, want 30 percent", n)
	}
}

func TestChoosingDoesNotAllocate(t *testing.T) {
	for _, policy := range []string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"} {
		b := newBed(t, `"lb_policy":"`+policy+`"`)
		c := b.endpoints(locality("", endpoint(1, `"load_balancing_weight":2`), endpoint(2, "")))
		r := rand.New(rand.NewPCG(1, 2))
		h := b.host(1)
		avoid := func(x *Host) bool { return x == h }
		if n := testing.AllocsPerRun(100, func() {
			p := Pick{Rand: r, Avoid: avoid, Attempts: 3}
			h, err := c.Pick(&p)
			if err != nil || !c.BeginRequest(h) {
				t.Fatal(err)
			}
			h.Answered(200)
			c.EndRequest(h)
		}); n != 0 {
			t.Errorf("%s: %v allocations", policy, n)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, policy := range []string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"} {
		b.Run(policy, func(b *testing.B) {
			x := newBed(b, `"lb_policy":"`+policy+`"`)
			c := x.endpoints(locality("", plain(100)...))
			r := rand.New(rand.NewPCG(1, 2))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Pick(&Pick{Rand: r}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRebuild(b *testing.B) {
	for _, policy := range []string{"ROUND_ROBIN", "LEAST_REQUEST", "RING_HASH", "MAGLEV"} {
		b.Run(policy, func(b *testing.B) {
			x := newBed(b, `"lb_policy":"`+policy+`"`)
			es := plain(200)
			for i := range es {
				es[i] = endpoint(i+1, fmt.Sprintf(`"load_balancing_weight":%d`, 1+i%7))
			}
			c := x.endpoints(locality("", es...))
			b.ReportAllocs()
			for b.Loop() {
				c.rebuild()
			}
		})
	}
}
