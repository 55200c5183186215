package proxy

import (
	"net"
	"sync/atomic"
	"testing"

	"github.com/ambit-mesh/ambit/api/workloadpb"
)

// backends is a service of shop with these pods behind port 80.
func (m *mesh) backends(vip []byte, pods ...*meshPod) {
	m.t.Helper()
	m.tell(&workloadpb.Address{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{
		Name: "s", Namespace: "shop", Hostname: "s.shop.svc.cluster.local", Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}},
		Addresses: []*workloadpb.NetworkAddress{{Address: vip}},
	}}})
	for _, p := range pods {
		rec := p.record()
		rec.Services = map[string]*workloadpb.PortList{"shop/s.shop.svc.cluster.local": {}}
		m.tell(&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: rec}})
	}
}

func TestRootMeshAnAddressThatAnotherPodHasByNowIsNeverDeliveredTo(t *testing.T) { // B50
	m := newMesh(t, nil)
	a, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("c", "n2", "10.99.0.4", "fd99::4")
	thief := m.pod("thief", "n2", "10.99.0.3", "fd99::3") // has the address that b had a moment ago
	b := &meshPod{name: "b", node: "n2", ns: "shop", sa: "b-sa", v4: thief.v4, v6: thief.v6}
	var stolen atomic.Int32
	m.serve(thief, 8080, func(conn *net.TCPConn) { stolen.Add(1); conn.Close() })
	m.serve(c, 8080, tellPeer)
	m.capture(a, c, thief)
	m.nodes["n1"].wl.Apply(nil, []string{"c//Pod/shop/thief"}) // the news have not come to node 1
	m.backends([]byte{10, 96, 0, 1}, b, c)
	t.Run("by its address it is refused", func(t *testing.T) {
		m.wantRefused(a, "10.99.0.3:8080")
		m.line(`direction="outbound"`, "want spiffe://cluster.local/ns/shop/sa/b-sa", "got spiffe://cluster.local/ns/shop/sa/thief-sa")
	})
	t.Run("by a service the connection goes to another endpoint", func(t *testing.T) {
		for range 20 {
			m.wantPeer(a, "10.96.0.1:80", "10.99.0.2")
		}
	})
	if n := stolen.Load(); n != 0 {
		t.Errorf("%d connections were delivered to another identity", n)
	}
}

func TestRootMeshAnEndpointThatRefusesIsAvoidedIfThereIsAnother(t *testing.T) { // B37: connect-refused is retried
	m := newMesh(t, nil)
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n1", "10.99.0.4", "fd99::4")
	d, e := m.pod("d", "n2", "10.99.0.5", "fd99::5"), m.pod("e", "n1", "10.99.0.6", "fd99::6")
	m.serve(d, 8080, tellPeer)
	m.capture(a, b, c, d)
	m.backends([]byte{10, 96, 0, 1}, b, c, d) // another node, the own one; neither listens
	for range 30 {
		m.wantPeer(a, "10.96.0.1:80", "10.99.0.2")
	}
	t.Run("but not one that denies", func(t *testing.T) {
		m.list(d, "shop/none")
		m.policy(allowAccount("none", "nobody"))
		m.wantRefused(a, "10.99.0.5:8080")
		m.line("http status: 401")
	})
	t.Run("and when all refuse, so do we", func(t *testing.T) {
		m.backends([]byte{10, 96, 0, 2}, b, c, e)
		m.wantRefused(a, "10.96.0.2:80")
	})
}
