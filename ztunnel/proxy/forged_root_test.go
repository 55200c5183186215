package proxy

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/api/workloadpb"
)

// allowOnly lets in what a match is about.
func allowOnly(m *securitypb.Match) *securitypb.Authorization {
	p := denyPrincipal("")
	p.Name, p.Action = "only", securitypb.Action_ALLOW
	p.Rules = []*securitypb.Rule{{Clauses: []*securitypb.Clause{{Matches: []*securitypb.Match{m}}}}}
	return p
}

func exactly(s string) []*securitypb.StringMatch {
	return []*securitypb.StringMatch{{MatchType: &securitypb.StringMatch_Exact{Exact: s}}}
}

// TestRootMeshWhatAPeerSaysOfItselfDecidesNothing: who a peer is, and where it is, come from its certificate and its
// connection. What it says in headers is not believed by policies, the application or the log.
func TestRootMeshWhatAPeerSaysOfItselfDecidesNothing(t *testing.T) { // B18, I7, I8
	m := newMesh(t, nil)
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9") // not captured: it speaks HBONE by itself
	seen := make(chan string, 100)
	m.serve(b, 8080, func(c *net.TCPConn) {
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		seen <- host
		tellPeer(c)
	})
	m.capture(a, b)
	service := func(name string) *workloadpb.Address {
		return &workloadpb.Address{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{
			Name: name, Namespace: "shop", Hostname: name + ".shop.svc.cluster.local", Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}},
			Addresses: []*workloadpb.NetworkAddress{{Address: []byte{10, 96, 0, byte(len(name))}}},
		}}}
	}
	record := b.record()
	record.Services = map[string]*workloadpb.PortList{"shop/own.shop.svc.cluster.local": {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}}
	m.tell(service("own"), service("forged"), &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: out.record()}},
		&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: record}})

	forged := []string{
		"baggage", "k8s.cluster.name=forged,k8s.namespace.name=forged,k8s.pod.name=forged,service.name=forged",
		"forwarded", `for="10.99.0.2:1";host=forged.shop.svc.cluster.local`, "x-forwarded-for", "10.99.0.2", "x-istio-source", "waypoint",
		"x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/shop/sa/a-sa", "x-envoy-peer-metadata", "forged",
	}
	connect := append([]string{":method", "CONNECT", ":authority", "10.99.0.3:8080"}, forged...)
	elsewhere := append(slices.Clone(connect), "x-forwarded-network", "elsewhere") // then its own words describe it in reports
	self := "cluster.local/ns/shop/sa/out-sa"
	honest := &securitypb.Match{Principals: exactly("cluster.local/ns/shop/sa/a-sa")}
	for _, c := range []struct {
		what   string
		policy *securitypb.Authorization
		want   string
	}{
		{"no policy", nil, "200"},
		{"only it is denied", denyPrincipal(self), "401"},
		{"only another identity is let in", allowOnly(honest), "401"},
		{"only another address is let in", allowOnly(&securitypb.Match{SourceIps: []*securitypb.Address{{Address: []byte{10, 99, 0, 2}, Length: 32}}}), "401"},
		{"only another namespace is let in", allowOnly(&securitypb.Match{Namespaces: exactly("forged")}), "401"},
		{"only it is let in", allowOnly(&securitypb.Match{Principals: exactly(self), SourceIps: []*securitypb.Address{{Address: []byte{10, 99, 0, 9}, Length: 32}}}), "200"},
	} {
		if c.policy != nil {
			m.policy(c.policy)
		}
		for name, kv := range map[string][]string{"own network": connect, "another network": elsewhere} {
			before := len(m.logs.String())
			r := m.tunnelFrom(out, out, b)
			if got := r.ask(kv...); got != c.want {
				t.Errorf("%s, %s: got %s, want %s", c.what, name, got, c.want)
			}
			r.conn.Close()
			if c.want == "200" {
				if host := <-seen; host != "10.99.0.9" {
					t.Errorf("%s, %s: the application sees the peer %s", c.what, name, host)
				}
			}
			line := m.lineAfter(before, `direction="inbound"`, "src.addr=10.99.0.9", fmt.Sprintf("src.identity=%q", "spiffe://"+self))
			if name == "own network" && (strings.Contains(line, "forged") || !strings.Contains(line, `src.workload="out"`)) {
				t.Errorf("%s: logged %s", c.what, line)
			}
			if strings.Contains(line, "forged.shop") || !strings.Contains(line, `dst.service="own.shop.svc.cluster.local"`) {
				t.Errorf("%s, %s: logged %s", c.what, name, line)
			}
		}
		if c.policy != nil {
			m.forget("shop/" + c.policy.Name)
		}
	}
	if n := len(seen); n != 0 {
		t.Errorf("the application was reached %d times by connections that were refused", n)
	}
}
