package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// named gives the rig names: all of *.example are this machine, which only the test lets clients reach, cloud.example is
// the cloud's metadata service, and gone.example is nobody.
func (r *rig) named() *atomic.Int32 {
	asked := &atomic.Int32{}
	r.set = cluster.NewSet(cluster.SetConfig{
		Lookup: func(ctx context.Context, network, host string) ([]netip.Addr, time.Duration, error) {
			asked.Add(1)
			switch {
			case host == "cloud.example":
				return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, 0, nil
			case host == "slow.example":
				<-ctx.Done()
				return nil, 0, ctx.Err()
			case strings.HasSuffix(host, ".example") && host != "gone.example":
				return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, 0, nil
			}
			return nil, 0, errors.New("no such host")
		},
		Forbidden: func(a netip.Addr) bool { return a.IsLinkLocalUnicast() },
	})
	return asked
}

// dynamic sets a cluster whose endpoints are the hosts of requests.
func (r *rig) dynamic(name, more string) {
	r.t.Helper()
	if more != "" {
		more = "," + more
	}
	c, err := cluster.Compile(parse(r.t, &clusterv3.Cluster{}, fmt.Sprintf(`{"name": %q, "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "1s",
	 "cluster_type": {"name": "envoy.clusters.dynamic_forward_proxy", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
	  "dns_cache_config": {"name": "x", "dns_lookup_family": "V4_ONLY"}}}%s}`, name, more)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.set.Update([]*cluster.Config{c}, nil)
}

func portOf(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

func TestAWildcardHostIsReachedByTheNameInTheRequest(t *testing.T) {
	r := newRig(t)
	asked := r.named()
	r.dynamic("any", "")
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "any", "timeout": "0.3s"}}]`)
	port := portOf(backend(t, func(w http.ResponseWriter, q *http.Request) {
		n, _ := io.Copy(io.Discard, q.Body)
		fmt.Fprint(w, q.Host, n)
	}))
	c := r.client()
	for range 3 {
		for _, host := range []string{"a.example:" + port, "b.example:" + port, "A.example:" + port} {
			if body := getFrom(t, c, host); body != host+"0" {
				t.Errorf("%s: %q", host, body)
			}
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("2 names were looked up %d times", n)
	}
	req, _ := http.NewRequest("POST", "http://reviews:9080/", strings.NewReader(strings.Repeat("x", 200_000)))
	req.Host = "new.example:" + port // its body comes while the name is looked up
	if resp, err := c.Do(req); err != nil {
		t.Error(err)
	} else if b, _ := io.ReadAll(resp.Body); string(b) != req.Host+"200000" {
		t.Errorf("%q", b)
	}
	for host, want := range map[string]string{
		"gone.example": "DNS resolution failure", "cloud.example": "not allowed", "169.254.169.254": "not allowed",
		"[fe80::1]:80": "not allowed", "slow.example": "upstream request timeout", "nowhere": "DNS resolution failure",
	} {
		if body := getFrom(t, r.client(), host); !strings.Contains(body, want) {
			t.Errorf("%s: %q, want %q", host, body, want)
		}
	}
}

func TestManyRequestsForANewNameAtOnceAreAllServed(t *testing.T) {
	r := newRig(t)
	r.named()
	r.dynamic("any", "")
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "any"}}]`)
	port := portOf(backend(t, func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, q.Host) }))
	c := r.client2()
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if host := fmt.Sprintf("h%d.example:%s", i%7, port); getFrom(t, c, host) != host {
				t.Error(host)
			}
		})
	}
	wg.Wait()
}

func TestAWildcardHostIsReachedByTLSAndItsCertificateIsChecked(t *testing.T) {
	r := newRig(t)
	r.named()
	a := newAuthority(t)
	port := portOf(secureBackend(t, &tls.Config{Certificates: []tls.Certificate{a.issue("*.wild.example")}}, false, func(w http.ResponseWriter, q *http.Request) {
		io.WriteString(w, q.TLS.ServerName)
	}))
	r.dynamic("any", toTLS("", "file-root:"+a.file, "")+","+fmt.Sprintf(withAuto, explicit1))
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "any"}}]`)
	c := r.client()
	for _, host := range []string{"a.wild.example", "b.wild.example", "a.wild.example"} {
		if body := getFrom(t, c, host+":"+port); body != host {
			t.Errorf("%s: %q", host, body)
		}
	}
	if body := getFrom(t, c, "other.example:"+port); !strings.Contains(body, "valid for *.wild.example, not other.example") {
		t.Errorf("a name that is not the server's: %q", body)
	}
}

func TestTLSGoesToTheServerThatItNamesWithinAWildcard(t *testing.T) {
	r := newRig(t)
	asked := r.named()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, q.TLS.ServerName) }))
	s.Config.ErrorLog = quiet
	s.StartTLS()
	t.Cleanup(s.Close)
	r.dynamic("any", "")
	text := strings.Replace(fmt.Sprintf(namesJSON, vip.Port(), vip.Addr()), `"cluster": "secure"`, `"cluster": "any"`, 1)
	text = strings.Replace(text, `"filters": [`, `"filters": [{"name": "sni", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
	 "dns_cache_config": {"name": "x"}, "port_value": `+portOf(s.Listener.Addr().String())+`}}, `, 1)
	action := `{"action": {"name": "chain", "typed_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "chain"}}}`
	text = strings.Replace(text, `"exact_match_map": {"map": {"a.example": `+action+`}}`, `"custom_match": {"name": "d", "typed_config": {
	 "@type": "type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher", "domain_matchers": [{"domains": ["*.example"], "on_match": `+action+`}]}}`, 1)
	l, err := listener.Compile(parse(t, &listenerv3.Listener{}, text))
	if err != nil {
		t.Fatal(err)
	}
	r.snap.Store(&Snapshot{Listener: l, Clusters: r.set.View()})
	for range 2 {
		for name, good := range map[string]bool{"a.example": true, "b.example": true, "cloud.example": false, "gone.example": false, "a.other": false} {
			c, err := r.dial(t.Context(), vip)
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			tc := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
			err = tc.Handshake()
			if (err == nil) != good {
				t.Errorf("%s: %v", name, err)
			}
			if err == nil {
				io.WriteString(tc, "GET / HTTP/1.0\r\n\r\n")
				if b, _ := io.ReadAll(tc); !strings.HasSuffix(string(b), name) {
					t.Errorf("%s: %q", name, b)
				}
			}
			c.Close()
		}
	}
	if n := asked.Load(); n < 4 || n > 6 { // again for those that come to nothing, if a second has passed
		t.Errorf("looked up %d times", n)
	}
}

func TestAClusterOfNamesFollowsThem(t *testing.T) {
	r := newRig(t)
	r.named()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.set.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	port := portOf(backend(t, func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, "hello") }))
	for _, kind := range []string{"STRICT_DNS", "LOGICAL_DNS"} {
		c, err := cluster.Compile(parse(t, &clusterv3.Cluster{}, fmt.Sprintf(`{"name": "reviews", "type": %q, "connect_timeout": "1s", "dns_lookup_family": "V4_ONLY",
		 "load_assignment": {"cluster_name": "reviews", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "a.example", "port_value": %s}}}}]}]}}`, kind, port)))
		if err != nil {
			t.Fatal(err)
		}
		r.set.Update([]*cluster.Config{c}, nil)
		r.routes(toReviews)
		for len(r.set.View().Get("reviews").Hosts()) == 0 {
			time.Sleep(time.Millisecond) // the set has no word for it but its hosts
		}
		if _, body := get(t, r.client(), "/"); body != "hello" {
			t.Errorf("%s: %q", kind, body)
		}
	}
}
