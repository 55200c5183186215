package proxy

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
)

func TestRootLeavingTheMeshTakesAllThatWaits(t *testing.T) { // Z6: un-enrolled with a long queue
	m := newMesh(t, nil)
	a, out := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("out", "n1", "10.99.0.9", "fd99::9")
	m.serve(out, 8080, tellPeer)
	m.capture(a)
	p := m.nodes["n1"].proxy
	pod := p.pods.Load().byUID[a.name]
	for _, w := range p.workers {
		w.loop.OnLoop(func() { w.stopAcceptingAll() })
	}
	const waiting = acceptBudget + 20
	var conns []*net.TCPConn
	for range waiting {
		c, err := m.dial(a, "10.99.0.9:8080")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	w := p.workers[0]
	w.loop.OnLoop(func() {
		if err := w.startAccepting(pod); err != nil {
			t.Error(err)
		}
		w.acceptRest(pod)
		w.stopAccepting(pod)
	})
	for i, c := range conns {
		c.SetReadDeadline(time.Now().Add(3 * time.Second))
		var host string
		if _, err := fmt.Fscanln(c, &host); err != nil || host != a.v4.String() {
			t.Fatalf("connection %d of %d: %q, %v", i, waiting, host, err)
		}
	}
}

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
