package hbone

import (
	"testing"
	"time"
)

// A certificate is checked at the handshake only, so a tunnel that outlived it would carry new connections for ever (C12).

func TestServerSendsAPeerAwayWhenItsCertificateExpires(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s := r.serve(1)
	r.c.expires = time.Now().Add(time.Hour)
	r.c.lookAround(r.l.Now())
	r.turn()
	r.wantFrames()
	r.c.expires = time.Now().Add(-time.Second)
	r.c.lookAround(r.l.Now())
	r.turn()
	if got := r.frames(); len(got) == 0 || got[0] != "GOAWAY 2147483647 NO_ERROR" {
		t.Errorf("got %q, want a GOAWAY first", got)
	}
	if r.c.dead || s.removed {
		t.Error("the open stream did not survive")
	}
}

func TestPoolOpensNothingOnATunnelWhosePeerCertificateHasExpired(t *testing.T) {
	r := clientRig(t, PoolConfig{})
	r.c.expires = time.Now().Add(time.Hour)
	if r.cc.slots() == 0 {
		t.Error("no room before the expiry")
	}
	r.c.expires = time.Now().Add(-time.Second)
	if r.cc.slots() != 0 { // at once, not only at the next tick
		t.Error("room after the expiry")
	}
}
