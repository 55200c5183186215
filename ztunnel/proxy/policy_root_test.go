package proxy

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/api/workloadpb"
)

// list has a pod's record list policies.
func (m *mesh) list(p *meshPod, policies ...string) {
	m.t.Helper()
	m.tell(&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: p.record(policies...)}})
}

// forget takes a policy back.
func (m *mesh) forget(key string) {
	for _, n := range m.nodes {
		n.pol.Apply(nil, []string{key})
	}
}

// allowAccount is an ALLOW policy for those that list it.
func allowAccount(name, id string) *securitypb.Authorization {
	p := denyPrincipal(id)
	p.Name, p.Scope, p.Action = name, securitypb.Scope_WORKLOAD_SELECTOR, securitypb.Action_ALLOW
	return p
}

// greeted connects and reads the greeting of tellPeer.
func (m *mesh) greeted(from *meshPod, to string) *net.TCPConn {
	m.t.Helper()
	c, err := m.dial(from, to)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len(from.v4.String())+1)); err != nil {
		m.t.Fatalf("from %s to %s: %v", from.name, to, err)
	}
	return c
}

func (m *mesh) wantEcho(what string, c *net.TCPConn) {
	m.t.Helper()
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		m.t.Errorf("%s: %v", what, err)
	}
}

func TestRootMeshRefusesUntilEveryListedPolicyHasArrived(t *testing.T) { // B49; style 20: unknown policy = deny
	m := newMesh(t, func(c *Config) { c.WorkloadWait = 400 * time.Millisecond })
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n1", "10.99.0.4", "fd99::4")
	out := m.pod("out", "n2", "10.99.0.9", "fd99::9")
	for _, p := range []*meshPod{b, c} {
		m.serve(p, 8080, tellPeer)
	}
	m.capture(a, b, c)
	m.list(b, "shop/allow")
	m.list(c, "shop/allow")
	const text = "policy shop/allow applies, but the control plane has not delivered it"
	t.Run("by a tunnel", func(t *testing.T) { m.wantRefused(a, "10.99.0.3:8080") })
	t.Run("inside the node", func(t *testing.T) { m.wantRefused(a, "10.99.0.4:8080") })
	t.Run("in plaintext", func(t *testing.T) { m.wantRefused(out, "10.99.0.3:8080") })
	m.line(`direction="inbound"`, `dst.workload="b"`, `src.identity="spiffe://cluster.local/ns/shop/sa/a-sa"`, text)
	m.line(`via="same-node"`, `direction="inbound"`, text)
	m.line(`direction="inbound"`, "src.addr=10.99.0.9", text)
	m.line("level=WARN", "policy=shop/allow", "pod=b")

	m.policy(allowAccount("allow", "cluster.local/ns/shop/sa/a-sa"))
	m.wantPeer(a, "10.99.0.3:8080", "10.99.0.2")
	m.wantPeer(a, "10.99.0.4:8080", "10.99.0.2")
	m.wantRefused(out, "10.99.0.3:8080")
}

func TestRootMeshAPolicyThatIsLateIsWaitedForAndOneThatGoesCutsNobody(t *testing.T) {
	m := newMesh(t, func(c *Config) { c.WorkloadWait = 5 * time.Second })
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n1", "10.99.0.4", "fd99::4")
	for _, p := range []*meshPod{b, c} {
		m.serve(p, 8080, tellPeer)
	}
	m.capture(a, b, c)
	pods := []string{"10.99.0.3:8080", "10.99.0.4:8080"}
	var live []*net.TCPConn
	for _, to := range pods {
		live = append(live, m.greeted(a, to))
	}
	m.list(b, "shop/allow") // the order in which istiod pushes: addresses first
	m.list(c, "shop/allow")
	var waiting []*net.TCPConn
	for _, to := range pods {
		conn, err := m.dial(a, to)
		if err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, conn)
		conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: a new connection was served under a policy that is not there", to)
		}
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	}
	for _, conn := range live {
		m.wantEcho("a live connection, while the policy is awaited", conn)
	}
	m.policy(allowAccount("allow", "cluster.local/ns/shop/sa/a-sa"))
	for _, conn := range waiting {
		if _, err := io.ReadFull(conn, make([]byte, len("10.99.0.2\n"))); err != nil {
			t.Errorf("a connection that waited for the policy: %v", err)
		}
	}
	live = append(live, waiting...)
	m.forget("shop/allow") // the record still lists it
	for _, to := range pods {
		m.wantPeer(a, to, "10.99.0.2")
	}
	for _, conn := range live {
		m.wantEcho("a live connection, after its policy was removed", conn)
	}
	if strings.Contains(m.logs.String(), "has not delivered") {
		t.Error("a removed policy was taken for one that never came")
	}
}
