package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// names answers lookups.
type names struct {
	mu    sync.Mutex
	addrs map[string]string // addresses with blanks between
	ttl   time.Duration
	asked int
}

func (n *names) lookup(_ context.Context, network, host string) (out []netip.Addr, _ time.Duration, _ error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	s, ok := n.addrs[host]
	if !ok {
		return nil, 0, errors.New("no such host")
	}
	for _, f := range strings.Fields(s) {
		a := netip.MustParseAddr(f)
		if network == "ip" || network == "ip4" == a.Is4() {
			out = append(out, a)
		}
	}
	return out, n.ttl, nil
}

// count is how often it was asked.
func (n *names) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

func (n *names) set(host, addrs string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addrs == "" {
		delete(n.addrs, host)
		return
	}
	n.addrs[host] = addrs
}

func dnsJSON(kind, fields string) string {
	return `{"name":"d","type":"` + kind + `","dns_refresh_rate":"60s",` + fields + `"load_assignment":{"cluster_name":"d","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"a.example","port_value":80}}}}]}]}}`
}

// running runs a set with one DNS cluster in a bubble.
func running(t *testing.T, n *names, cluster string, f func(c *Cluster)) {
	synctest.Test(t, func(t *testing.T) {
		set := NewSet(SetConfig{Lookup: n.lookup})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- set.Run(ctx) }()
		cfg, err := compileJSON(t, cluster)
		if err != nil {
			t.Fatal(err)
		}
		set.Update([]*Config{cfg}, nil)
		synctest.Wait()
		f(set.View().Get("d"))
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func hostsOf(c *Cluster) string {
	s := ""
	for _, h := range c.Hosts() {
		s += h.String() + " "
	}
	return s
}

func TestRunResolvesNamesAgainAndAgain(t *testing.T) {
	n := &names{addrs: map[string]string{"a.example": "192.0.2.1"}}
	running(t, n, dnsJSON("STRICT_DNS", `"dns_lookup_family":"V4_ONLY",`), func(c *Cluster) {
		if got := hostsOf(c); got != "192.0.2.1:80 " {
			t.Errorf("at first: %s", got)
		}
		h := c.Hosts()[0]
		n.set("a.example", "192.0.2.1 192.0.2.2")
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if k := n.count(); k != 1 {
			t.Errorf("asked %d times in 59 s", k)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := hostsOf(c); got != "192.0.2.1:80 192.0.2.2:80 " || c.Hosts()[0] != h {
			t.Errorf("after a minute: %s", got)
		}
		n.set("a.example", "")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := hostsOf(c); got != "192.0.2.1:80 192.0.2.2:80 " {
			t.Errorf("when it cannot be resolved: %s", got)
		}
	})
}

func TestTheTTLIsRespectedIfAskedFor(t *testing.T) {
	n := &names{addrs: map[string]string{"a.example": "192.0.2.1"}, ttl: 5 * time.Second}
	running(t, n, dnsJSON("STRICT_DNS", `"respect_dns_ttl":true,`), func(*Cluster) {
		time.Sleep(time.Minute)
		synctest.Wait()
		if k := n.count(); k != 13 {
			t.Errorf("asked %d times in a minute, want 13", k)
		}
	})
}

func TestTheFamilyOfAddressesIsAsConfigured(t *testing.T) {
	for family, want := range map[string]string{
		"AUTO": "[2001:db8::1]:80 ", "V4_ONLY": "192.0.2.1:80 192.0.2.2:80 ", "V6_ONLY": "[2001:db8::1]:80 ", "V4_PREFERRED": "192.0.2.1:80 192.0.2.2:80 ",
		"ALL": "[2001:db8::1]:80 192.0.2.1:80 192.0.2.2:80 ",
	} {
		n := &names{addrs: map[string]string{"a.example": "192.0.2.1 2001:db8::1 192.0.2.2"}}
		running(t, n, dnsJSON("STRICT_DNS", `"dns_lookup_family":"`+family+`",`), func(c *Cluster) {
			if got := hostsOf(c); got != want {
				t.Errorf("%s: %s, want %s", family, got, want)
			}
		})
	}
}

func TestAHostThatARequestNamesIsResolvedOnce(t *testing.T) {
	n := &names{addrs: map[string]string{"a.example": "203.0.113.201", "here": "203.0.113.201 127.0.0.1", "cloud": "169.254.169.254"}}
	k := &clock{time.Unix(1000, 0)}
	set := NewSet(SetConfig{Now: k.now, Lookup: n.lookup})
	cfg, err := compileJSON(t, `{"name":"d","lb_policy":"CLUSTER_PROVIDED","cluster_type":{"name":"envoy.clusters.dynamic_forward_proxy","typed_config":{`+types+`clusters.dynamic_forward_proxy.v3.ClusterConfig","dns_cache_config":{"name":"x","dns_lookup_family":"V4_ONLY"}}}}`)
	if err != nil {
		t.Fatal(err)
	}
	set.Update([]*Config{cfg}, nil)
	c := set.View().Get("d")
	if c.Named("a.example", 443) != nil {
		t.Fatal("known before it was resolved")
	}
	h, err := c.Resolve(t.Context(), "a.example", 443)
	if err != nil {
		t.Fatal(err)
	}
	if e := h.Endpoint(); e.Addr != netip.MustParseAddrPort("203.0.113.201:443") || e.Hostname != "a.example" {
		t.Errorf("endpoint %+v", e)
	}
	if c.Named("a.example", 443) != h || n.count() != 1 {
		t.Errorf("asked %d times", n.count())
	}
	k.t = k.t.Add(time.Hour)
	if c.Named("a.example", 443) != nil {
		t.Error("an answer is good for ever")
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		ip := netip.MustParsePrefix(a.String()).Addr().WithZone("").String()
		if _, err := c.Resolve(t.Context(), ip, 80); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s, which is this machine: %v", ip, err)
		}
	}
	for _, host := range []string{"here", "cloud", "127.0.0.1", "::1", "169.254.169.254", "0.0.0.0"} {
		if h, err := c.Resolve(t.Context(), host, 80); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v %v", host, h, err)
		}
	}
	if _, err := c.Resolve(t.Context(), "nowhere", 80); err == nil || err.Error() != `resolve "nowhere": no such host` {
		t.Errorf("nowhere: %v", err)
	}
}

func TestAFailedLookupOfANamedHostIsRememberedForASecondAndItsLastAddressStays(t *testing.T) {
	n := &names{addrs: map[string]string{"a.example": "203.0.113.201"}}
	k := &clock{time.Unix(1000, 0)}
	set := NewSet(SetConfig{Now: k.now, Lookup: n.lookup})
	cfg, err := compileJSON(t, `{"name":"d","lb_policy":"CLUSTER_PROVIDED","cluster_type":{"name":"envoy.clusters.dynamic_forward_proxy","typed_config":{`+types+`clusters.dynamic_forward_proxy.v3.ClusterConfig","dns_cache_config":{"name":"x"}}}}`)
	if err != nil {
		t.Fatal(err)
	}
	set.Update([]*Config{cfg}, nil)
	c := set.View().Get("d")
	resolve := func(host, want string, asked int) {
		t.Helper()
		h, err := c.Resolve(t.Context(), host, 80)
		got := fmt.Sprint(err)
		if err == nil {
			got = h.String()
		}
		if got != want || n.count() != asked {
			t.Errorf("%s after %d lookups, want %s after %d", got, n.count(), want, asked)
		}
	}
	resolve("gone", `resolve "gone": no such host`, 1)
	resolve("gone", `resolve "gone": no such host`, 1)
	k.t = k.t.Add(time.Second)
	resolve("gone", `resolve "gone": no such host`, 2)
	resolve("a.example", "203.0.113.201:80", 3)
	n.set("a.example", "")
	k.t = k.t.Add(time.Hour)
	resolve("a.example", "203.0.113.201:80", 4)
	resolve("a.example", "203.0.113.201:80", 4)
	n.set("a.example", "127.0.0.1")
	k.t = k.t.Add(time.Second)
	resolve("a.example", `resolve "a.example": 127.0.0.1: the host's address is not allowed`, 5)
	n.set("a.example", "203.0.113.202")
	k.t = k.t.Add(time.Second)
	resolve("a.example", "203.0.113.202:80", 6)
}

// A cluster that has just come, or that was replaced, must not refuse requests for as long as its name is being looked up.
func TestEndpointsAreNotKnownBeforeTheFirstAnswer(t *testing.T) {
	for _, c := range []struct {
		claim string
		addrs string
		want  error
	}{
		{"the name has an address", "10.0.0.1", nil},
		{"there is no such name", "", ErrNoHost},
	} {
		t.Run(c.claim, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &names{addrs: map[string]string{}}
				n.set("a.example", c.addrs)
				set := NewSet(SetConfig{Lookup: func(ctx context.Context, network, host string) ([]netip.Addr, time.Duration, error) {
					time.Sleep(time.Second)
					return n.lookup(ctx, network, host)
				}})
				cfg, err := compileJSON(t, dnsJSON("STRICT_DNS", ""))
				if err != nil {
					t.Fatal(err)
				}
				set.Update([]*Config{cfg}, nil)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- set.Run(ctx) }()
				time.Sleep(900 * time.Millisecond)
				if _, err := set.View().Get("d").Pick(&Pick{}); err != ErrUnknown {
					t.Errorf("while it is looked up: %v", err)
				}
				time.Sleep(200 * time.Millisecond)
				if _, err := set.View().Get("d").Pick(&Pick{}); err != c.want {
					t.Errorf("afterwards: %v, want %v", err, c.want)
				}
				cancel()
				<-done
			})
		})
	}
}
