package proxy

import "testing"

func TestRootATunnelDoesNotOutliveItsPod(t *testing.T) { // S3
	m := newMesh(t, nil)
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	m.serve(b, 8080, tellPeer)
	m.capture(a, b)
	m.wantPeer(a, "10.99.0.3:8080", "10.99.0.2")
	p := m.nodes["n2"].proxy
	pod := p.pods.Load().byUID[b.name]
	if n := tunnels(p); n != 1 {
		t.Fatalf("%d tunnels are open, want 1", n)
	}
	p.StopPod(b.name, false)
	if n := tunnels(p); n != 0 {
		t.Errorf("%d tunnels are open into a pod that is gone", n)
	}
	for _, w := range p.workers { // the end of the tunnel is told by injection
		w.loop.OnLoop(func() {})
	}
	if n := pod.refs.Load(); n != 0 {
		t.Errorf("the pod is still held %d times", n)
	}
}

func tunnels(p *Proxy) (n int) {
	for _, w := range p.workers {
		w.loop.OnLoop(func() { n += w.server.Stats().Conns })
	}
	return n
}

func TestRootATunnelDoesNotOutliveThePodThatItWasDialledFrom(t *testing.T) { // S3, C8
	m := newMesh(t, nil)
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	a.anon = true // istio-cni does not tell addresses
	m.serve(b, 8080, tellPeer)
	m.capture(a, b)
	m.wantPeer(a, "10.99.0.3:8080", "10.99.0.2")
	p := m.nodes["n1"].proxy
	usable := func() (n int) {
		for _, w := range p.workers {
			w.loop.OnLoop(func() {
				st := w.pool.Stats()
				n += st.Conns - st.Draining
			})
		}
		return n
	}
	if n := usable(); n != 1 {
		t.Fatalf("%d tunnels are usable, want 1", n)
	}
	p.StopPod(a.name, false)
	if n := usable(); n != 0 {
		t.Errorf("%d tunnels of a pod that is gone take new connections", n)
	}
}
