package proxy

import (
	"fmt"
	"net"
	"testing"
	"time"
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
