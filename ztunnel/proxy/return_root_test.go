package proxy

import (
	"io"
	"testing"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
)

func TestRootAPodThatLeftWithConnectionsOpenCanComeBack(t *testing.T) {
	m := newMesh(t, nil)
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	m.serve(b, 8080, tellPeer)
	m.capture(a, b)
	conn, err := m.dial(a, "10.99.0.3:8080")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, len("10.99.0.2\n"))); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*meshPod{a, b} {
		m.nodes[p.node].proxy.StopPod(p.name, true)
		l, err := redirect.Listen(p.space) // as capture does when the pod comes back
		if err != nil {
			t.Errorf("pod %s: %v", p.name, err)
			continue
		}
		l.Close()
	}
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Errorf("the connection ended with the enrolment: %v", err)
	}
}
