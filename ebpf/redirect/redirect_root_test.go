//go:build linux

package redirect

import (
	"testing"
)

func TestRootOutboundConnectionReachesTheProxyWithItsDestination(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	for _, to := range []string{w.c.at4(8080), w.c.at6(8080)} {
		w.a.mustFetch(to, nil)
		s := w.a.proxy.wantLast("outbound", to)
		if got := s.peer.Addr(); got != w.a.addrs()[0] && got != w.a.addrs()[1] {
			t.Errorf("peer of the outbound connection is %v, want the pod's address", got)
		}
	}
}

func TestRootInboundConnectionReachesTheApplicationFromItsClient(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	for i, to := range []string{w.b.at4(8080), w.b.at6(8080)} {
		w.c.mustFetch(to, nil)
		w.b.proxy.wantLast("plaintext", to)
		peers := w.b.app.clients()
		if got, want := peers[len(peers)-1].Addr(), w.c.addrs()[i]; got != want {
			t.Errorf("application sees client %v, want %v", got, want)
		}
	}
}

func TestRootBothPodsCaptured(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.b.capture()
	for _, to := range []string{w.b.at4(8080), w.b.at6(8080)} {
		w.a.mustFetch(to, nil)
		w.a.proxy.wantLast("outbound", to)
		w.b.proxy.wantLast("plaintext", to)
	}
}
