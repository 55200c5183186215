package forward

import (
	"net"
	"net/http"
	"testing"
	"time"
)

// B7: as many peers as there are turns, and more, all from one address, some of which say nothing and others only begin.
func TestPeersThatStallDoNotKeepOthersFromTheWaypoint(t *testing.T) {
	r := newRig(t)
	r.cluster("reviews", "", backend(t, func(http.ResponseWriter, *http.Request) {}))
	r.routes(toReviews)
	const slow, mute = 300, 50
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for i := range slow + mute {
		c, err := d.DialContext(t.Context(), "tcp", r.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i < slow {
			c.Write([]byte{22, 3, 1})
		}
	}
	w := r.proxy.workers[0]
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		n := 0
		w.loop.OnLoop(func() { n = w.silent.Len() })
		if n == mute && r.proxy.turns.Running() == handshakesPerPeer {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d are silent and %d are under way, want %d and %d", n, r.proxy.turns.Running(), mute, handshakesPerPeer)
		}
	}
	if resp, _ := get(t, r.client(), "/"); resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}
