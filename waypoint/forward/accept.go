package forward

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/handshake"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
)

const (
	// acceptBudget is the number of connections taken before others have their turn.
	acceptBudget = 64
	// backlog is the length of the queue of the listening socket; the kernel bounds it further.
	backlog = 4096
	// shedPause is how long the listener rests after the process ran out of descriptors.
	shedPause = 50 * time.Millisecond
)

// peer is who is at the other end of a tunnel. Not changed once made.
type peer struct {
	id   spiffe.ID
	name string // id as text
	addr netip.AddrPort
}

// listen opens the socket of the HBONE port.
func listen(addr netip.AddrPort) (int, error) {
	fd, err := unix.Socket(loop.Family(addr), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, loop.Sockaddr(addr))
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// acceptor takes the connections of the HBONE port, or of a plain one, and deals them out to the workers.
type acceptor struct {
	w     *worker
	fd    loop.FD
	pause loop.Timer
	as    netip.AddrPort // of a plain port
}

// startAccepting takes over a listening socket; as is the address that connections to a plain one are for.
func (w *worker) startAccepting(fd int, as netip.AddrPort) error {
	a := &acceptor{w: w, as: as}
	if err := w.loop.Register(&a.fd, fd, a); err != nil {
		unix.Close(fd)
		return err
	}
	w.acceptors = append(w.acceptors, a)
	a.fd.Wake()
	return nil
}

func (w *worker) stopAccepting() {
	for _, a := range w.acceptors {
		a.pause.Stop()
		a.fd.Close()
	}
}

// Ready implements loop.Handler.
func (a *acceptor) Ready(*loop.FD) {
	p := a.w.p
	for range acceptBudget {
		if p.fds.Full(a.fd.Fd()) {
			a.shed(unix.EMFILE)
			return
		}
		fd, addr, err := loop.Accept(a.fd.Fd())
		switch {
		case err == nil:
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL):
			return
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			a.shed(err)
			return
		default: // the peer is gone again: ECONNABORTED and the like
			continue
		}
		p.fds.Accepted(fd)
		if !addr.IsValid() {
			unix.Close(fd)
			continue
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		w := p.assign()
		switch {
		case a.as.IsValid():
			w.loop.Inject(func() { w.takePlain(fd, addr, a.as) })
		case w == a.w:
			w.greet(fd, addr)
		default:
			w.loop.Inject(func() { w.greet(fd, addr) })
		}
	}
	a.fd.Wake()
}

// shed has the listener rest: what comes waits in its queue.
func (a *acceptor) shed(err error) {
	p := a.w.p
	if skipped, ok := p.fds.Warned.Now(a.w.loop.Now()); ok {
		p.log.Warn("out of descriptors or memory, new connections wait", "err", err, "skipped", skipped)
	}
	a.w.loop.Start(&a.pause, shedPause, a)
}

// Expired implements loop.TimerHandler: the pause is over.
func (a *acceptor) Expired(*loop.Timer) { a.fd.Wake() }

// greeting is a connection whose peer has not said anything yet.
type greeting struct {
	w    *worker
	addr netip.AddrPort
}

// greet begins with an accepted connection, which is taken over.
func (w *worker) greet(fd int, addr netip.AddrPort) {
	if w.deaf || w.silent.Add(fd, &greeting{w, addr}) != nil {
		unix.Close(fd)
	}
}

// deafen gives up the connections whose peer has said nothing, and takes no more.
func (w *worker) deafen() {
	w.deaf = true
	w.silent.End(errGivenUp, func(handshake.Peer) bool { return true })
}

// Left implements handshake.Peer.
func (h *greeting) Left(err error) { h.w.refused(h.addr, err) }

// Spoke implements handshake.Peer: the handshake is done on a goroutine, when our certificate is there and it is the
// peer's turn.
func (h *greeting) Spoke(fd int) {
	w, p := h.w, h.w.p
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.ConnectTimeout)
	drop := func(err error) {
		cancel()
		unix.Close(fd)
		w.loop.Inject(func() { w.refused(h.addr, err) })
	}
	shake := func(ctx context.Context) {
		conn, id, err := p.acceptTLS(ctx, fd)
		if err != nil {
			drop(err)
			return
		}
		cancel()
		w.loop.Inject(func() {
			if w.closed || w.server.Serve(fd, conn, &peer{id: id, name: id.String(), addr: h.addr}) != nil {
				unix.Close(fd)
			}
		})
	}
	if _, err := p.cfg.Certs.Current(p.cfg.ID); err == nil {
		p.turns.Take(ctx, h.addr.Addr(), shake, drop)
		return
	}
	select {
	case p.awaiting <- struct{}{}:
	default:
		drop(handshake.ErrBusy)
		return
	}
	p.helpers.Go(func() {
		defer func() { <-p.awaiting }()
		if _, err := p.certificate(ctx); err != nil {
			drop(err)
			return
		}
		p.turns.Take(ctx, h.addr.Addr(), shake, drop)
	})
}

// refused says that a peer was not let in, now and then.
func (w *worker) refused(addr netip.AddrPort, err error) {
	if w.deaf {
		return
	}
	if skipped, ok := w.p.refusals.Now(w.loop.Now()); ok {
		w.p.log.Info("tunnel refused", "peer", addr, "err", err, "skipped", skipped)
	}
}

// acceptTLS does the handshake.
func (p *Proxy) acceptTLS(ctx context.Context, fd int) (*looptls.Conn, spiffe.ID, error) {
	s, err := p.certificate(ctx)
	if err != nil {
		return nil, spiffe.ID{}, err
	}
	conn, err := looptls.Server(ctx, fd, svid.ServerConfig(s, p.cfg.TLS))
	if err != nil {
		return nil, spiffe.ID{}, err
	}
	id, err := svid.PeerID(conn.State())
	return conn, id, err
}

// certificate is our own, after a wait if it is still to come.
func (p *Proxy) certificate(ctx context.Context) (*svid.SVID, error) {
	if s, err := p.cfg.Certs.Current(p.cfg.ID); err == nil {
		return s, nil
	}
	return p.cfg.Certs.Fetch(ctx, p.cfg.ID)
}
