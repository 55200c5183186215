package proxy

import (
	"context"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/handshake"
)

// hello is an accepted connection on 15008 whose peer has not said anything yet.
type hello struct {
	w *worker
	t *peerTunnel
}

// takeTunnel begins with an accepted connection on 15008. Descriptor fd is taken over.
func (w *worker) takeTunnel(pod *Pod, fd int, peer, local netip.AddrPort) {
	pod.ref() // the tunnel's, until it is closed
	if w.hellos.Add(fd, &hello{w, &peerTunnel{pod: pod, peer: peer, local: local}}) != nil {
		unix.Close(fd)
		pod.unref()
	}
}

// Spoke implements handshake.Peer.
func (h *hello) Spoke(fd int) { h.w.shake(h.t, fd) }

// Left implements handshake.Peer.
func (h *hello) Left(err error) {
	var gone *handshake.GoneError
	switch {
	case errors.As(err, &gone):
		err = clientGoneError{gone.Err}
	case errors.Is(err, handshake.ErrSilent):
		err = handshakeError{unix.ETIMEDOUT}
	}
	h.t.pod.unref()
	h.w.p.earlyDenial(inboundDir, h.t.peer, h.t.local, err)
}

// endHellos gives up those that match.
func (w *worker) endHellos(err error, match func(*Pod) bool) {
	w.hellos.End(err, func(p handshake.Peer) bool { return match(p.(*hello).t.pod) })
}

// shake has the handshake done on a goroutine, when the pod's certificate is there and it is the peer's turn.
func (w *worker) shake(t *peerTunnel, fd int) {
	p := w.p
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.ConnectTimeout)
	drop := func(err error) {
		if errors.Is(err, handshake.ErrLate) {
			err = errDrained
		}
		cancel()
		unix.Close(fd)
		t.pod.unref()
		p.earlyDenial(inboundDir, t.peer, t.local, err)
	}
	run := func(ctx context.Context) {
		conn, err := p.acceptTLS(ctx, t, fd)
		if err != nil {
			drop(err)
			return
		}
		cancel()
		w.loop.Inject(func() { w.serveTunnel(fd, conn, t) })
	}
	if p.certified(t.pod) {
		p.accepting.Take(ctx, t.peer.Addr(), run, drop)
		return
	}
	// Before the turn: one pod's missing certificate must not hold up the others.
	select {
	case p.awaiting <- struct{}{}:
	default:
		drop(handshake.ErrBusy)
		return
	}
	await := func() {
		defer func() { <-p.awaiting }()
		_, err := p.certificate(ctx, t.pod)
		if err != nil {
			drop(err)
			return
		}
		p.accepting.Take(ctx, t.peer.Addr(), run, drop)
	}
	if !p.goHelper(await) {
		<-p.awaiting
		drop(errDrained)
	}
}

// certified tells whether the pod's certificate can be had without a wait.
func (p *Proxy) certified(pod *Pod) bool {
	rec := pod.record(p.cfg.Workloads.View())
	if rec == nil {
		return false
	}
	_, err := p.cfg.Certs.Current(rec.ID)
	return err == nil
}
