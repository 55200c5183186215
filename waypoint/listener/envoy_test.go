package listener

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/envoytest"
)

// tree makes a random matcher by address and port. ports are those that connections go to, beside one that they do not.
func tree(r *rand.Rand, ports []string) string {
	chain := func() string { return action(fmt.Sprint("c", r.IntN(5))) }
	byPort := func() string {
		var es []string
		for _, p := range slices.Concat(ports, []string{"1"}) {
			if r.IntN(2) == 0 {
				es = append(es, entry(p, chain()))
			}
		}
		if es == nil {
			es = append(es, entry("1", chain()))
		}
		none := ""
		if r.IntN(4) == 0 {
			none = chain()
		}
		return nested(match("DestinationPortInput", none, es...))
	}
	ranges := strings.Fields("127.0.0.0/8 127.0.0.0/16 127.0.0.0/24 127.0.1.0/24 127.0.0.1/32 127.0.1.2/32 0.0.0.0/0 fd00::/8")
	r.Shuffle(len(ranges), func(i, j int) { ranges[i], ranges[j] = ranges[j], ranges[i] })
	var es []string
	for _, c := range ranges[:1+r.IntN(4)] {
		on, fields := chain(), ""
		if r.IntN(3) > 0 {
			on = byPort()
		}
		if r.IntN(3) == 0 {
			fields = `,"exclusive":true`
		}
		es = append(es, ipRange(c, on, fields))
	}
	none := ""
	switch r.IntN(4) {
	case 0:
		none = chain()
	case 1:
		none = byPort()
	}
	return ips(none, es...)
}

func TestEnvoyFindsTheSameChains(t *testing.T) {
	bin := envoytest.Require(t)
	const trees = 60
	rnd := rand.New(rand.NewPCG(1, 9))
	var ports []string
	for _, at := range envoytest.Addrs(t, 2*trees) {
		ports = append(ports, fmt.Sprint(at.Port()))
	}
	var chains []string
	for i := range 5 {
		n := fmt.Sprint("c", i)
		chains = append(chains, strings.ReplaceAll(strings.Replace(httpChain(n, ""), `"route":{"cluster":"c"}`, `"direct_response":{"status":200,"body":{"inline_string":"`+n+`"}}`, 1), "\n", ""))
	}
	var ours []*Listener
	var conf []string
	for i := range trees {
		m := tree(rnd, ports[2*i:2*i+2])
		ours = append(ours, mustCompile(t, strings.Join(chains, ","), m))
		for _, p := range ports[2*i : 2*i+2] {
			conf = append(conf, `{"name":"`+p+`","address":{"socket_address":{"address":"0.0.0.0","port_value":`+p+`}},"filter_chains":[`+strings.Join(chains, ",")+`],"filter_chain_matcher":`+m+`}`)
		}
	}
	envoytest.Start(t, bin, "envoy.json", []byte(`{"static_resources":{"listeners":[`+strings.Join(conf, ",")+`]}}`), "tcp", "127.0.0.1:"+ports[len(ports)-1])
	n, found, differ := 0, 0, 0
	for i, l := range ours {
		for _, p := range ports[2*i : 2*i+2] {
			for _, ip := range strings.Fields("127.0.0.1 127.0.0.2 127.0.1.1 127.0.1.2 127.1.1.1") {
				dst := netip.MustParseAddrPort(ip + ":" + p)
				got := "refused"
				if x := l.Lookup(dst); x != nil {
					got = x.HTTP.Chain.Name
					found++
				}
				n++
				if want := ask(t, dst.String()); got != want {
					if differ++; differ < 5 {
						t.Errorf("%v: %s, Envoy's %s by %v", dst, got, want, conf[2*i][strings.Index(conf[2*i], `"filter_chain_matcher"`):])
					}
				}
			}
		}
	}
	t.Logf("%d addresses, %d found a chain, %d differ", n, found, differ)
}

// ask asks Envoy who answers at an address.
func ask(t *testing.T, addr string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nhost: a\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "refused"
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
