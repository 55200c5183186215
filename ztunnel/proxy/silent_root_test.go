package proxy

import (
	"net"
	"runtime"
	"testing"
	"time"
)

func TestRootMeshPeersThatSayNothingCostNoGoroutineAndKeepNobodyOut(t *testing.T) { // B7
	m := newMesh(t, nil)
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
	m.serve(b, 8080, tellPeer)
	m.capture(a, b)
	open := func(n int, first string) {
		err := out.space.Do(func() error {
			for range n {
				c, err := net.DialTimeout("tcp", "10.99.0.3:15008", 5*time.Second)
				if err != nil {
					return err
				}
				t.Cleanup(func() { c.Close() })
				c.Write([]byte(first))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	before := runtime.NumGoroutine()
	open(2*maxHandshakes, "") // silent
	w := m.nodes["n2"].proxy.workers[0]
	waiting := func() (n int) { w.loop.OnLoop(func() { n = w.hellos.Len() }); return n }
	for end := time.Now().Add(5 * time.Second); waiting() < 2*maxHandshakes; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections were accepted", waiting())
		}
	}
	if n := runtime.NumGoroutine() - before; n > 20 {
		t.Errorf("%d silent peers cost %d goroutines", 2*maxHandshakes, n)
	}
	open(2*maxHandshakes, "\x16\x03\x01\x02\x00") // begin a handshake and stop
	start := time.Now()
	m.wantPeer(a, "10.99.0.3:8080", "10.99.0.2")
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("an honest peer waited %v for its handshake", d)
	}
	if n := runtime.NumGoroutine() - before; n > 2*handshakesPerPeer+20 {
		t.Errorf("peers that stop inside the handshake cost %d goroutines", n)
	}
	m.nodes["n2"].proxy.StopPod(b.name, false)
	if n := waiting(); n != 0 {
		t.Errorf("%d silent peers of a pod that is gone are left", n)
	}
}
