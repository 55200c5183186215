package proxy

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/workloadpb"
)

// wantNoLoop sends to addr from p and wants it refused at once, by a proxy that did not call itself: a connection that
// enters the proxy again opens another one, without end.
func (m *mesh) wantNoLoop(p *meshPod, addr string) {
	m.t.Helper()
	conn, err := m.dial(p, addr)
	if err != nil {
		return // nobody listens: as good
	}
	defer conn.Close()
	done := make(chan error, 1)
	go func() {
		io.WriteString(conn, "hello world\r\n\r\n")
		_, err := conn.Read(make([]byte, 1))
		done <- err
	}()
	most, deadline := 0, time.After(10*time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err == nil {
				m.t.Errorf("to %s: answered, want it refused", addr)
			}
			return
		case <-deadline:
			m.t.Errorf("to %s: neither answered nor refused", addr)
			return
		case <-tick.C:
		}
		if most = max(most, m.nodes[p.node].proxy.Open()); most > 100 {
			m.t.Fatalf("to %s: one connection became %d: the proxy calls itself", addr, most)
		}
	}
}

// The proxy's own ports lead nowhere, whichever pod's they are (P5, malicious_calls).
func TestRootMeshTheProxysPortsAreRefusedWithoutALoop(t *testing.T) {
	for _, mode := range []SameNode{SameNodeDirect, SameNodeHBONE} {
		for _, to := range []struct{ what, v4, v6 string }{
			{"a pod of the same node", "10.99.0.4", "fd99::4"},
			{"a pod of another node", "10.99.0.3", "fd99::3"},
			{"the pod itself", "10.99.0.2", "fd99::2"},
			{"loopback", "127.0.0.1", "::1"},
		} {
			for _, host := range []string{to.v4, to.v6} {
				t.Run(fmt.Sprintf("%s/%s/%s", mode, to.what, host), func(t *testing.T) {
					m := newMesh(t, func(c *Config) { c.SameNode = mode })
					a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n1", "10.99.0.4", "fd99::4")
					out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
					m.capture(a, b, c)
					for _, port := range []string{"15001", "15006", "15008"} {
						m.wantNoLoop(a, net.JoinHostPort(host, port))
						m.wantNoLoop(out, net.JoinHostPort(host, port))
					}
				})
			}
		}
	}
}

// The record of a pod may not know all of its addresses, and a destination that nobody knows passes through (O6).
func TestRootMeshAPodsOwnAddressThatItsRecordLacksIsRefusedWithoutALoop(t *testing.T) {
	m := newMesh(t, nil)
	a := m.pod("a", "n1", "10.99.0.2", "fd99::2")
	m.capture(a)
	rec := a.record()
	rec.Addresses = rec.Addresses[:1]
	m.tell(&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: rec}})
	for _, port := range []string{"15001", "15006", "15008"} {
		m.wantNoLoop(a, net.JoinHostPort("fd99::2", port))
	}
}
