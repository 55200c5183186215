package cluster

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func TestAnUnchangedClusterStaysTheSameObject(t *testing.T) {
	b := newBed(t, "")
	c := b.cluster()
	if b.update("") != c {
		t.Error("the same resource made another cluster")
	}
	x := b.update(`"connect_timeout":"3s"`)
	if x == c || !c.Gone() || x.Gone() {
		t.Error("a changed resource did not")
	}
	b.set.Update(nil, []string{"c", "unknown"})
	if b.cluster() != nil || !x.Gone() {
		t.Error("still there after it was removed")
	}
}

func TestAChangedClusterHasTheEndpointsThatAreKnown(t *testing.T) {
	b := newBed(t, "")
	if _, err := b.cluster().Pick(&Pick{}); err != ErrUnknown || b.cluster().Known() {
		t.Errorf("before EDS: %v", err)
	}
	b.endpoints(locality("", plain(2)...))
	h := b.host(1)
	b.update(`"lb_policy":"RANDOM"`)
	if got := b.count(10, Pick{}); got[1]+got[2] != 10 {
		t.Errorf("shares %v", got)
	}
	if !h.Gone() || b.host(1) == h {
		t.Error("connections of the old configuration would be used")
	}
}

func TestAnUnchangedEndpointKeepsItsHost(t *testing.T) {
	b := newBed(t, "")
	b.endpoints(locality("", plain(2)...))
	one, two := b.host(1), b.host(2)
	b.endpoints(locality("", endpoint(1, `"load_balancing_weight":7`), endpoint(3, "")), locality(`"priority":1`, endpoint(2, `"health_status":"UNHEALTHY"`)))
	if b.host(1) != one || b.host(2) != two || one.Gone() {
		t.Error("weight, health or priority made another host")
	}
	if e := one.Endpoint(); e.Weight != 7 {
		t.Errorf("weight %d", e.Weight)
	}
	if e := two.Endpoint(); e.Priority != 1 || e.Health != Unhealthy || two.Available() {
		t.Errorf("endpoint %+v", e)
	}
	b.endpoints(locality(`"locality":{"zone":"z"}`, plain(1)...))
	if b.host(1) == one || !one.Gone() || !two.Gone() {
		t.Error("another locality is another host, and the rest is gone")
	}
}

func TestTheSameAddressTwiceCountsOnce(t *testing.T) {
	b := newBed(t, "")
	b.endpoints(locality("", endpoint(1, ""), endpoint(1, ""), endpoint(2, "")))
	if got := b.count(100, Pick{}); got[1] != 50 {
		t.Errorf("shares %v", got)
	}
}

func TestARemovedServiceHasNoEndpoints(t *testing.T) {
	b := newBed(t, "")
	b.endpoints(locality("", plain(1)...))
	h := b.host(1)
	b.set.UpdateEndpoints(nil, []string{"s"})
	if _, err := b.cluster().Pick(&Pick{}); err != ErrNoHost || !h.Gone() {
		t.Errorf("stale endpoint is used: %v", err)
	}
}

func TestServicesAreTheNamesToSubscribeTo(t *testing.T) {
	b := newBed(t, "")
	c, err := compileJSON(t, `{"name":"b","type":"EDS","eds_cluster_config":{}}`)
	if err != nil {
		t.Fatal(err)
	}
	d, err := compileJSON(t, `{"name":"d","type":"STATIC"}`)
	if err != nil {
		t.Fatal(err)
	}
	b.set.Update([]*Config{c, d}, nil)
	if got := fmt.Sprint(b.set.View().Services()); got != "[b s]" {
		t.Errorf("services %s", got)
	}
	if got := len(b.set.View().All()); got != 3 {
		t.Errorf("%d clusters", got)
	}
}

func TestAViewDoesNotChange(t *testing.T) {
	b := newBed(t, "")
	v := b.set.View()
	b.set.Update(nil, []string{"c"})
	if v.Get("c") == nil || b.set.View().Get("c") != nil {
		t.Error("the old view changed, or the new one did not")
	}
}

func TestClustersAreUsedAndUpdatedAtTheSameTime(t *testing.T) {
	b := newBed(t, `"lb_policy":"LEAST_REQUEST",`+fmt.Sprintf(outlier, ""))
	b.endpoints(locality("", plain(4)...))
	c := b.cluster()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 2000 {
				h, err := c.Pick(&Pick{Rand: r})
				if err != nil {
					continue
				}
				if c.BeginRequest(h) {
					h.Answered(200 + 300*r.IntN(2))
					c.EndRequest(h)
				}
			}
		})
	}
	for i := range 50 {
		b.endpoints(locality("", plain(2+i%3)...))
		b.set.tick(time.Unix(int64(2000+i), 0))
	}
	wg.Wait()
	if u := c.Usage(); u != (Usage{}) {
		t.Errorf("still counted: %+v", u)
	}
	out := 0
	for _, h := range c.Hosts() {
		if h.Ejected() {
			out++
		}
		if h.Active() != 0 {
			t.Errorf("%v: %d active", h, h.Active())
		}
	}
	if c.ejected != out {
		t.Errorf("%d ejected, counted %d", out, c.ejected)
	}
}

func TestCircuitBreakersBoundWhatIsUnderWay(t *testing.T) {
	b := newBed(t, `"circuit_breakers":{"thresholds":[{"max_connections":1,"max_pending_requests":2,"max_requests":3,"max_retries":1}],"per_host_thresholds":[{"max_connections":2}]}`)
	c := b.endpoints(locality("", plain(1)...))
	h := b.host(1)
	for name, x := range map[string]struct {
		begin func() bool
		end   func()
		max   int
	}{
		"connections":      {c.BeginConnection, c.EndConnection, 1},
		"pending":          {c.BeginPending, c.EndPending, 2},
		"requests":         {func() bool { return c.BeginRequest(h) }, func() { c.EndRequest(h) }, 3},
		"retries":          {c.BeginRetry, c.EndRetry, 1},
		"host connections": {func() bool { return c.BeginHostConnection(h) }, func() { c.EndHostConnection(h) }, 2},
	} {
		n := 0
		for x.begin() {
			if n++; n > 10 {
				break
			}
		}
		if n != x.max {
			t.Errorf("%s: %d at once, want %d", name, n, x.max)
		}
		x.end()
		if !x.begin() || x.begin() {
			t.Errorf("%s: room for one after one ended", name)
		}
	}
	if n := c.Stats().Overflows.Load(); n != 10 {
		t.Errorf("%d overflows, want 10", n)
	}
}

func TestTheGreatestThresholdMeansNone(t *testing.T) {
	b := newBed(t, `"circuit_breakers":{"thresholds":[{"max_retries":4294967295}]}`)
	for range 5000 {
		if !b.cluster().BeginRetry() {
			t.Fatal("refused")
		}
	}
}

func TestTheRetryBudgetGrowsWithRequests(t *testing.T) {
	b := newBed(t, `"circuit_breakers":{"thresholds":[{"retry_budget":{"budget_percent":{"value":25},"min_retry_concurrency":2}}]}`)
	c := b.endpoints(locality("", plain(1)...))
	count := func() (n int) {
		for c.BeginRetry() {
			n++
		}
		for range n {
			c.EndRetry()
		}
		return n
	}
	if n := count(); n != 2 {
		t.Errorf("%d retries without requests, want 2", n)
	}
	for range 40 {
		c.BeginRequest(b.host(1))
	}
	if n := count(); n != 10 {
		t.Errorf("%d retries with 40 requests, want 10", n)
	}
}

func TestNamesBecomeEndpointsWhenTheyAreResolved(t *testing.T) {
	set := NewSet(SetConfig{})
	for _, kind := range []string{"STRICT_DNS", "LOGICAL_DNS"} {
		cfg, err := compileJSON(t, `{"name":"`+kind+`","type":"`+kind+`","dns_lookup_family":"V4_ONLY","dns_refresh_rate":"60s","respect_dns_ttl":true,
			"load_assignment":{"cluster_name":"x","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"example.com","port_value":443}}}}]}]}}`)
		if err != nil {
			t.Fatal(err)
		}
		if cfg.DNS != (DNS{Refresh: time.Minute, RespectTTL: true, Family: OnlyV4}) {
			t.Errorf("DNS %+v", cfg.DNS)
		}
		set.Update([]*Config{cfg}, nil)
		c := set.View().Get(kind)
		if got := fmt.Sprint(c.Names()); got != "[example.com]" {
			t.Fatalf("names %s", got)
		}
		if _, err := c.Pick(&Pick{}); err != ErrUnknown {
			t.Errorf("%s: before the answer: %v", kind, err)
		}
		a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		c.Resolved("example.com", []netip.Addr{a, b})
		want := 2
		if kind == "LOGICAL_DNS" {
			want = 1
		}
		hosts := c.Hosts()
		if len(hosts) != want || hosts[0].Endpoint().Addr != netip.AddrPortFrom(a, 443) || hosts[0].Endpoint().Hostname != "example.com" {
			t.Errorf("%s: hosts %v", kind, hosts)
		}
		c.Resolved("example.com", []netip.Addr{b})
		if again := c.Hosts(); len(again) != 1 || !hosts[0].Gone() || want == 2 && again[0] != hosts[1] {
			t.Errorf("%s: hosts %v", kind, again)
		}
	}
}

func TestEndpointsThatRequestsNameAreKeptWhileTheyAreUsed(t *testing.T) {
	k := &clock{time.Unix(1000, 0)}
	set := NewSet(SetConfig{Now: k.now})
	cfg, err := compileJSON(t, `{"name":"o","type":"ORIGINAL_DST","lb_policy":"CLUSTER_PROVIDED","cleanup_interval":"60s","original_dst_lb_config":{"upstream_port_override":15008}}`)
	if err != nil {
		t.Fatal(err)
	}
	set.Update([]*Config{cfg}, nil)
	c := set.View().Get("o")
	h := c.At(netip.MustParseAddrPort("10.0.0.1:80"), "")
	if h != c.At(netip.MustParseAddrPort("10.0.0.1:90"), "") || h.String() != "10.0.0.1:15008" {
		t.Errorf("host %v", h)
	}
	if _, err := c.Pick(&Pick{}); err != ErrNoHost {
		t.Errorf("chose without a request: %v", err)
	}
	c.BeginRequest(h)
	k.t = k.t.Add(time.Hour)
	set.tick(k.now())
	if h.Gone() {
		t.Error("gone with a request under way")
	}
	c.EndRequest(h)
	k.t = k.t.Add(time.Minute)
	set.tick(k.now())
	if !h.Gone() || len(c.Hosts()) != 0 {
		t.Error("still there after a minute")
	}
}
