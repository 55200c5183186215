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

// A new proxy counts through the source ports from the beginning, where the connections of the old one may be: more of them, one
// beside the other, than it has tries.
func TestRootManyOpenConnectionsDoNotKeepANewProxyFromTheApplication(t *testing.T) {
	m := newMesh(t, nil)
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	m.serve(b, 8080, tellPeer)
	m.capture(a, b)
	connect := func() error {
		conn, err := m.dial(a, "10.99.0.3:8080")
		if err != nil {
			return err
		}
		t.Cleanup(func() { conn.Close() })
		_, err = io.ReadFull(conn, make([]byte, len("10.99.0.2\n")))
		return err
	}
	for range 3 * appTries {
		if err := connect(); err != nil {
			t.Fatal(err)
		}
	}
	m.nodes[b.node].proxy.StopPod(b.name, true)
	m.capture(b)
	for range appTries {
		if err := connect(); err != nil {
			t.Fatalf("beside %d open connections: %v", 3*appTries, err)
		}
	}
}
