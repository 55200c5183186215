package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/ambit-mesh/ambit/internal/envoytest"
)

// backends are HTTP servers on loopback that answer with their number.
func backends(t *testing.T, n int) []string {
	t.Helper()
	var out []string
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, i) })}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
		out = append(out, l.Addr().String())
	}
	return out
}

// scenario is a cluster: a policy and its endpoints, by the number of the backend.
type scenario struct{ name, fields, endpoints string }

// at is an endpoint of a scenario; fields are more fields of it.
func at(n int, fields string) string {
	if fields != "" {
		fields = "," + fields
	}
	return fmt.Sprintf(`{"endpoint":{"address":"ADDR%d"}%s}`, n, fields)
}

var scenarios = func() []scenario {
	const bad, poor = `"health_status":"UNHEALTHY"`, `"health_status":"DEGRADED"`
	four := locality("", at(0, ""), at(1, ""), at(2, ""), at(3, ""))
	weights := locality("", at(0, `"load_balancing_weight":1`), at(1, `"load_balancing_weight":3`))
	half := locality("", at(0, ""), at(1, bad)) + "," + locality(`"priority":1`, at(2, ""), at(3, bad))
	localities := locality(`"locality":{"zone":"a"},"load_balancing_weight":30`, at(0, ""), at(1, bad)) + "," + locality(`"locality":{"zone":"b"},"load_balancing_weight":10`, at(2, ""), at(3, ""))
	const weighted = `,"common_lb_config":{"locality_weighted_lb_config":{}}`
	return []scenario{
		{"round robin", `"lb_policy":"ROUND_ROBIN"`, four},
		{"round robin by weight", `"lb_policy":"ROUND_ROBIN"`, weights},
		{"least request", `"lb_policy":"LEAST_REQUEST"`, four},
		{"least request by weight", `"lb_policy":"LEAST_REQUEST"`, weights},
		{"random", `"lb_policy":"RANDOM"`, four},
		{"random by weight", `"lb_policy":"RANDOM"`, weights},
		{"ring", `"lb_policy":"RING_HASH"`, four},
		{"ring by weight", `"lb_policy":"RING_HASH","ring_hash_lb_config":{"minimum_ring_size":100}`, weights},
		{"Maglev", `"lb_policy":"MAGLEV"`, four},
		{"Maglev by weight", `"lb_policy":"MAGLEV","maglev_lb_config":{"table_size":251}`, weights},
		{"three of four healthy", ``, locality("", at(0, ""), at(1, ""), at(2, ""), at(3, bad)) + "," + locality(`"priority":1`, at(4, ""))},
		{"two of four healthy", ``, locality("", at(0, ""), at(1, ""), at(2, bad), at(3, bad)) + "," + locality(`"priority":1`, at(4, ""))},
		{"one of four healthy", ``, locality("", at(0, ""), at(1, bad), at(2, bad), at(3, bad)) + "," + locality(`"priority":1`, at(4, ""))},
		{"one of four healthy in each priority", ``, locality("", at(0, ""), at(1, bad), at(2, bad), at(3, bad)) + "," + locality(`"priority":1`, at(4, ""), at(5, bad), at(6, bad), at(7, bad))},
		{"half healthy in each priority", ``, half},
		{"half healthy in each priority, no panic", `"common_lb_config":{"healthy_panic_threshold":{"value":0}}`, half},
		{"first priority gone", ``, locality("", at(0, bad)) + "," + locality(`"priority":1`, at(1, ""), at(2, ""))},
		{"panic", ``, locality("", at(0, ""), at(1, bad), at(2, bad))},
		{"no panic", `"common_lb_config":{"healthy_panic_threshold":{"value":0}}`, locality("", at(0, ""), at(1, bad), at(2, bad))},
		{"nobody healthy", ``, locality("", at(0, bad), at(1, bad))},
		{"nobody healthy, no panic", `"common_lb_config":{"healthy_panic_threshold":{"value":0}}`, locality("", at(0, bad), at(1, bad))},
		{"nobody healthy in two priorities", ``, locality("", at(0, bad), at(1, bad)) + "," + locality(`"priority":1`, at(2, bad))},
		{"degraded", ``, locality("", at(0, ""), at(1, poor), at(2, poor))},
		{"degraded, no panic", `"common_lb_config":{"healthy_panic_threshold":{"value":0}}`, locality("", at(0, ""), at(1, poor), at(2, bad), at(3, bad))},
		{"localities by weight", `"lb_policy":"ROUND_ROBIN"` + weighted, localities},
		{"localities without weights", `"lb_policy":"ROUND_ROBIN"`, localities},
		{"localities by weight, least request", `"lb_policy":"LEAST_REQUEST"` + weighted, localities},
		{"localities by weight, ring", `"lb_policy":"RING_HASH"` + weighted, localities},
		{"localities by weight, Maglev", `"lb_policy":"MAGLEV"` + weighted, localities},
	}
}()

// cluster is the scenario's resource, with the backends' addresses.
func (s scenario) cluster(name string, addrs []string) string {
	fields := s.fields
	if fields != "" {
		fields = "," + fields
	}
	j := `{"name":"` + name + `","type":"STATIC","load_assignment":{"cluster_name":"` + name + `","endpoints":[` + s.endpoints + `]}` + fields + `}`
	for i, a := range addrs {
		host, port, _ := net.SplitHostPort(a)
		j = strings.ReplaceAll(j, fmt.Sprintf(`"ADDR%d"`, i), `{"socket_address":{"address":"`+host+`","port_value":`+port+`}}`)
	}
	return j
}

// startEnvoy runs the binary that ENVOY_BIN names, with the scenarios' clusters, and returns a client for it.
func startEnvoy(t *testing.T, addrs []string) *http.Client {
	t.Helper()
	bin := envoytest.Require(t)
	sock := filepath.Join(t.TempDir(), "s")
	var clusters, routes []string
	for i, s := range scenarios {
		clusters = append(clusters, s.cluster(fmt.Sprint(i), addrs))
		routes = append(routes, fmt.Sprintf(`{"match":{"prefix":"/%d/"},"route":{"cluster":"%d","hash_policy":[{"header":{"header_name":"x-user"}}]}}`, i, i))
	}
	conf := `{"static_resources":{"clusters":[` + strings.Join(clusters, ",") + `],"listeners":[{"name":"l","address":{"pipe":{"path":"` + sock + `"}},"filter_chains":[{"filters":[{"name":"hcm","typed_config":{
		` + types + `filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"x","http_filters":[{"name":"router","typed_config":{` + types + `filters.http.router.v3.Router"}}],
		"route_config":{"name":"r","virtual_hosts":[{"name":"v","domains":["*"],"routes":[` + strings.Join(routes, ",") + `]}]}}}]}]}]}}`
	envoytest.Start(t, bin, "envoy.json", []byte(conf), "unix", sock)
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}}
}

func TestEnvoyChoosesAlike(t *testing.T) {
	const requests = 1500
	addrs := backends(t, 8)
	client := startEnvoy(t, addrs)
	number := map[string]int{}
	for i, a := range addrs {
		number[a] = i
	}
	set := NewSet(SetConfig{})
	for i, s := range scenarios {
		cfg, err := compileJSON(t, s.cluster(fmt.Sprint(i), addrs))
		if err != nil {
			t.Fatal(err)
		}
		set.Update([]*Config{cfg}, nil)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i, s := range scenarios {
		c := set.View().Get(fmt.Sprint(i))
		hashing := c.Policy() == RingHash || c.Policy() == Maglev
		ours, theirs := map[int]int{}, map[int]int{}
		wrong := 0
		for k := range requests {
			user := fmt.Sprint("user-", k)
			req, err := http.NewRequest("GET", fmt.Sprintf("http://x/%d/", i), nil)
			if err != nil {
				t.Fatal(err)
			}
			p := Pick{Rand: rnd}
			if hashing {
				req.Header.Set("x-user", user)
				p.Hash, p.HasHash = xxhash.Sum64String(user), true
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			their := -1
			if resp.StatusCode == 200 {
				fmt.Fscan(resp.Body, &their)
			}
			resp.Body.Close()
			our := -1
			if h, err := c.Pick(&p); err == nil {
				our = number[h.String()]
			}
			ours[our]++
			theirs[their]++
			if our != their {
				wrong++
			}
		}
		if hashing && wrong > 0 {
			t.Errorf("%s: %d of %d go elsewhere: ours %v, Envoy's %v", s.name, wrong, requests, ours, theirs)
		}
		for n := -1; n < len(addrs); n++ {
			if !near(ours[n], theirs[n], requests/20) || (ours[n] == 0) != (theirs[n] == 0) {
				t.Errorf("%s: endpoint %d: ours %v, Envoy's %v", s.name, n, ours, theirs)
				break
			}
		}
	}
	t.Logf("%d clusters, %d requests each", len(scenarios), requests)
}
