package proxy

import (
	"net/netip"
	"testing"
	"testing/synctest"
)

func TestAHandshakeWithoutACertificateHoldsUpNobody(t *testing.T) { // C7
	w := idleWorker(t)
	synctest.Test(t, func(t *testing.T) {
		// of the bubble: what the handshakes of a running proxy share
		p := &Proxy{cfg: w.p.cfg, log: w.p.log, accepting: make(chan struct{}, 1), connecting: make(chan struct{}, 1), ctx: t.Context()}
		changes := make(chan struct{})
		p.changes.Store(&changes)
		go func() {
			tunnel := &peerTunnel{pod: &Pod{Name: "unknown"}, peer: netip.MustParseAddrPort("10.0.0.2:1")}
			if _, err := p.acceptTLS(tunnel, -1); err != errUnknownWorkload {
				t.Errorf("handshake ended with %v", err)
			}
		}()
		synctest.Wait()
		if n := len(p.accepting); n != 0 {
			t.Errorf("a handshake that waits for its pod's record holds %d turns", n)
		}
	})
}
