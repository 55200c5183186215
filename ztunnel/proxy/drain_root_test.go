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

func TestRootADrainCarriesOutWhatWasAccepted(t *testing.T) { // S5: in the order of stop accepting, finish, cut
	m := newMesh(t, func(c *Config) { c.DrainTimeout, c.Workers = 10*time.Second, 2 })
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	m.serve(b, 8080, tellPeer)
	m.capture(a, b)
	n1 := m.nodes["n1"]
	n1.wl.Apply(nil, []string{"c//Pod/shop/a"}) // connections of a are accepted, on both workers, and wait for its record
	var conns []*net.TCPConn
	for range 10 {
		c, err := m.dial(a, "10.99.0.3:8080")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	wait(t, "the connections to be accepted", func() bool { return n1.proxy.Open() == len(conns) })
	stopped := make(chan struct{})
	go func() { n1.stop(); close(stopped) }()
	wait(t, "the drain", n1.proxy.draining.Load)
	for _, w := range n1.proxy.workers {
		w.loop.OnLoop(func() {}) // has stopped accepting, or does so now
	}
	m.list(a)
	for i, c := range conns {
		var host string
		if _, err := fmt.Fscanln(c, &host); err != nil || host != a.v4.String() {
			t.Errorf("connection %d, accepted before the drain: %q, %v", i, host, err)
		}
		c.Close()
	}
	select {
	case <-stopped:
	case <-time.After(5 * time.Second):
		t.Error("the drain goes on though all connections have ended")
	}
}

func TestRootADrainServesATunnelWhosePeerIsInTheMiddleOfItsHandshake(t *testing.T) { // H9
	m := newMesh(t, func(c *Config) { c.DrainTimeout = 10 * time.Second })
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
	m.serve(b, 8080, tellPeer)
	m.capture(a, b)
	m.wantPeer(a, "10.99.0.3:8080", "10.99.0.2") // b has its certificate: the end of the node ends those who get it, too
	n2 := m.nodes["n2"]
	conn, err := m.dial(out, "10.99.0.3:15008")
	if err != nil {
		t.Fatal(err)
	}
	w := n2.proxy.workers[0]
	wait(t, "the tunnel to be accepted", func() (ok bool) {
		w.loop.OnLoop(func() { ok = w.hellos.Len() == 1 })
		return ok
	})
	go n2.stop()
	wait(t, "the drain", n2.proxy.draining.Load)
	r := m.tunnelOn(conn, a)
	if got := r.ask(":method", "CONNECT", ":authority", "10.99.0.3:8080"); got != "200" {
		t.Errorf("got %s, want the stream served", got)
	}
}

// wait waits until f returns true.
func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestRootAPanicOverOneConnectionDoesNotCloseThePodsListener(t *testing.T) {
	m := newMesh(t, nil)
	a, out := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("out", "n1", "10.99.0.9", "fd99::9")
	m.serve(out, 8080, tellPeer)
	m.capture(a)
	p := m.nodes["n1"].proxy
	for _, w := range p.workers {
		w.loop.OnLoop(func() {
			for _, acc := range w.acceptors[p.pods.Load().byUID[a.name]] {
				acc.take = func(*worker, accepted) { panic("a bug of ours") }
			}
		})
	}
	if c, err := m.dial(a, "10.99.0.9:8080"); err == nil {
		c.Close()
	}
	m.line("panic on the loop")
	m.wantPeer(a, "10.99.0.9:8080", "10.99.0.2")
}
