package proxy

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// hello is an accepted connection on 15008 whose peer has not said anything yet. It costs a descriptor and no goroutine.
// Loop only.
type hello struct {
	w     *worker
	t     *peerTunnel
	fd    loop.FD
	timer loop.Timer
	since time.Duration // of the loop's clock
}

// takeTunnel begins with an accepted connection on 15008. Descriptor fd is taken over.
func (w *worker) takeTunnel(pod *Pod, fd int, peer, local netip.AddrPort) {
	h := &hello{w: w, since: w.loop.Now(), t: &peerTunnel{pod: pod, peer: peer, local: local}}
	if err := w.loop.Register(&h.fd, fd, h); err != nil {
		unix.Close(fd)
		return
	}
	pod.ref() // the tunnel's, until it is closed
	w.hellos[h] = struct{}{}
	w.loop.Start(&h.timer, w.p.cfg.ConnectTimeout, h)
	h.fd.Wake()
}

// Ready implements loop.Handler.
func (h *hello) Ready(*loop.FD) {
	var b [1]byte
	n, _, err := unix.Recvfrom(h.fd.Fd(), b[:], unix.MSG_PEEK)
	switch {
	case err == unix.EAGAIN, err == unix.EINTR:
	case err != nil:
		h.end(clientGoneError{err})
	case n == 0:
		h.end(clientGoneError{unix.ECONNRESET})
	default:
		h.leave()
		h.w.shake(h.t, h.fd.Detach())
	}
}

// Expired implements loop.TimerHandler.
func (h *hello) Expired(*loop.Timer) { h.end(handshakeError{unix.ETIMEDOUT}) }

// Abort implements loop.Aborter.
func (h *hello) Abort(err error) { h.end(err) }

func (h *hello) leave() {
	h.timer.Stop()
	delete(h.w.hellos, h)
}

// end gives the connection up.
func (h *hello) end(err error) {
	if h.fd.Closed() {
		return
	}
	h.leave()
	h.fd.Close()
	h.t.pod.unref()
	h.w.p.earlyDenial(inboundDir, h.t.peer, h.t.local, err)
}

// beginning is the number of peers that have been silent for a moment only.
func (w *worker) beginning() (n int) {
	for h := range w.hellos {
		if w.loop.Now()-h.since < slowHandshake {
			n++
		}
	}
	return n
}

// endHellos gives up those that match.
func (w *worker) endHellos(err error, match func(*Pod) bool) {
	for h := range w.hellos {
		if match(h.t.pod) {
			h.end(err)
		}
	}
}

// shake has the handshake done on a goroutine, when the pod's certificate is there and it is the peer's turn.
func (w *worker) shake(t *peerTunnel, fd int) {
	p := w.p
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.ConnectTimeout)
	drop := func(err error) {
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
		p.accepting.take(ctx, t.peer.Addr(), run, drop)
		return
	}
	// Before the turn: one pod's missing certificate must not hold up the others.
	select {
	case p.awaiting <- struct{}{}:
	default:
		drop(errBusy)
		return
	}
	await := func() {
		defer func() { <-p.awaiting }()
		_, err := p.certificate(ctx, t.pod)
		if err != nil {
			drop(err)
			return
		}
		p.accepting.take(ctx, t.peer.Addr(), run, drop)
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
