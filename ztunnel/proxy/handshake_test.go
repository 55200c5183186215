package proxy

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAHandshakeWithoutACertificateHoldsUpNobody(t *testing.T) { // C7
	w := idleWorker(t)
	pod := &Pod{UID: "u", Name: "unknown"}
	pod.refs.Store(10)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	w.shake(&peerTunnel{pod: pod, peer: netip.MustParseAddrPort("10.0.0.2:1")}, pair[0])
	if n := w.p.accepting.Running(); n != 0 {
		t.Errorf("a handshake that waits for its pod's record holds %d turns", n)
	}
	w.p.cancel()
	w.p.endHelpers()
	if n := pod.refs.Load(); n != 9 {
		t.Errorf("after the end the pod is held %d times, want 9: one less", n)
	}
}

func TestNothingBeginsBehindTheEndOfTheHelpers(t *testing.T) { // the loops are gone then
	w := idleWorker(t)
	pod := &Pod{UID: "u", Name: "unknown"}
	pod.refs.Store(10)
	w.p.endHelpers()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	w.shake(&peerTunnel{pod: pod, peer: netip.MustParseAddrPort("10.0.0.2:1")}, pair[0])
	if n := pod.refs.Load(); n != 9 {
		t.Errorf("the pod is held %d times, want 9: one less", n)
	}
	if n, err := unix.Read(pair[1], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the connection is still open: %d, %v", n, err)
	}
	if w.p.goHelper(func() { t.Error("a helper ran") }) {
		t.Error("a helper was taken")
	}
}
