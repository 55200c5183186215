package proxy

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// acceptBudget is the number of connections taken from one listener before others have their turn.
const acceptBudget = 64

// shedPause is how long a listener rests after the process ran out of descriptors.
const shedPause = 50 * time.Millisecond

// acceptor takes the connections of one listener of one pod.
type acceptor struct {
	w     *worker
	pod   *Pod
	fd    loop.FD
	pause loop.Timer
	kind  listenerKind
	take  func(*worker, accepted)
	// tuned says that the queue holds only connections that have the options of the listener.
	tuned bool
}

// listenerKind is one of a pod's listeners.
type listenerKind uint8

const (
	outboundListener listenerKind = iota
	plaintextListener
	tunnelListener
)

// accepted is a connection to one of them.
type accepted struct {
	pod         *Pod
	kind        listenerKind
	fd          int
	peer, local netip.AddrPort
}

// take begins with an accepted connection, whose descriptor it takes over.
func (w *worker) take(c accepted) {
	switch c.kind {
	case outboundListener:
		w.takeOutbound(c.pod, c.fd, c.peer, c.local)
	case plaintextListener:
		w.takePlaintext(c.pod, c.fd, c.peer, c.local)
	default:
		w.takeTunnel(c.pod, c.fd, c.peer, c.local)
	}
}

// startAccepting registers the pod's listeners. The loop works on duplicates, so that they stay the pod's.
func (w *worker) startAccepting(pod *Pod) error {
	for kind, listener := range [...]int{outboundListener: pod.outbound, plaintextListener: pod.plaintext, tunnelListener: pod.hbone} {
		a := &acceptor{w: w, pod: pod, kind: listenerKind(kind), take: (*worker).take}
		fd, err := unix.FcntlInt(uintptr(listener), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			err = unix.SetNonblock(fd, true)
			if err == nil {
				w.p.tuneAccepted(fd, a.kind)
				err = w.loop.RegisterListener(&a.fd, fd, a)
			}
			if err != nil {
				unix.Close(fd)
			}
		}
		if err != nil {
			w.stopAccepting(pod)
			return err
		}
		w.acceptors[pod] = append(w.acceptors[pod], a)
		a.fd.Wake() // what came before is in the queue already
	}
	return nil
}

// maxRest bounds what acceptRest takes from one listener: the longest queue that a kernel is commonly set to.
const maxRest = 65536

// acceptRest takes what waits in the pod's queues now.
func (w *worker) acceptRest(pod *Pod) {
	for _, a := range w.acceptors[pod] {
		for taken := 0; taken < maxRest && a.accept(); taken += acceptBudget {
		}
	}
}

// stopAccepting leaves the pod's queues to others.
func (w *worker) stopAccepting(pod *Pod) {
	for _, a := range w.acceptors[pod] {
		a.pause.Stop()
		a.fd.Close()
	}
	delete(w.acceptors, pod)
}

// Ready implements loop.Handler.
func (a *acceptor) Ready(*loop.FD) {
	if a.accept() {
		a.fd.Wake()
	}
}

// Abort implements loop.Aborter: the loop closes the listener's duplicate after a panic. The connection that met the bug is
// lost; the pod's next ones are not.
func (a *acceptor) Abort(error) {
	w, pod := a.w, a.pod
	w.loop.Inject(func() {
		if len(w.acceptors[pod]) == 0 { // stopped meanwhile
			return
		}
		w.stopAccepting(pod)
		if err := w.startAccepting(pod); err != nil {
			w.p.log.Error("accept connections of a pod again", "err", err, "pod", pod.Name, "namespace", pod.Namespace)
		}
	})
}

// accept takes up to acceptBudget connections and reports whether more may be waiting.
func (a *acceptor) accept() bool {
	for range acceptBudget {
		if a.w.p.fds.Full(a.fd.Fd()) {
			a.shed(unix.EMFILE)
			return false
		}
		fd, peer, err := loop.Accept(a.fd.Fd())
		switch {
		case err == nil:
		case errors.Is(err, unix.EAGAIN):
			a.tuned = true
			return false
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL): // not a listener any more: asking again would not end
			a.w.p.log.Warn("a pod's listener is closed", "err", err, "pod", a.pod.Name, "namespace", a.pod.Namespace)
			return false
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			a.shed(err)
			return false
		default: // the peer is gone again: ECONNABORTED and the like
			continue
		}
		a.w.p.fds.Accepted(fd)
		local, err := loop.LocalAddr(fd) // with our redirection, the original destination
		if err != nil || !peer.IsValid() {
			unix.Close(fd)
			continue
		}
		if !a.tuned {
			a.w.p.tuneAccepted(fd, a.kind)
		}
		c := accepted{pod: a.pod, kind: a.kind, fd: fd, peer: peer, local: local}
		if w := a.w.p.assign(a.w, a.kind); w == a.w {
			a.take(w, c)
		} else {
			take := a.take
			w.coming.Add(1)
			w.loop.Inject(func() { w.coming.Add(-1); take(w, c) })
		}
	}
	return true
}

// shed has the listener rest: what comes waits in its queue.
func (a *acceptor) shed(err error) {
	if skipped, ok := a.w.p.fds.Warned.Now(a.w.loop.Now()); ok {
		a.w.p.log.Warn("out of descriptors or memory, new connections wait", "err", err, "pod", a.pod.Name, "namespace", a.pod.Namespace, "skipped", skipped)
	}
	a.w.loop.Start(&a.pause, shedPause, a)
}

// Expired implements loop.TimerHandler: the pause is over.
func (a *acceptor) Expired(*loop.Timer) { a.fd.Wake() }

// tuneAccepted sets the options of accepted connections, on one of them or on the listener, from which they have them.
// Tunnels end with a FIN, what carries an application's bytes with a RST unless its end is in order.
func (p *Proxy) tuneAccepted(fd int, kind listenerKind) {
	p.tune(fd)
	if kind != tunnelListener {
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
}

// tune sets what every connection has: no delay, and keepalive unless it is off (1.3).
func (p *Proxy) tune(fd int) {
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if k := int(p.cfg.Keepalive / time.Second); k > 0 {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, k)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, k)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9)
	}
}
