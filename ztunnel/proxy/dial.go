package proxy

import (
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// dial is one non-blocking connect under way, embedded in the connection that waits for it. Loop only.
type dial struct {
	fd    loop.FD
	timer loop.Timer
	h     dialHandler
}

// dialHandler is told once how a dial ended. On success the connected socket is d.fd; on error it is closed. A handler that
// panics is told again, with loop.ErrPanic.
type dialHandler interface {
	dialed(err error)
}

// start waits until the connecting socket fd, which it takes over, is connected. h is always called later, from the loop.
func (d *dial) start(w *worker, fd int, h dialHandler) {
	d.h = h
	w.p.tune(fd)
	if err := w.loop.Register(&d.fd, fd, d); err != nil {
		unix.Close(fd)
		w.loop.Inject(func() { h.dialed(err) })
		return
	}
	w.loop.Start(&d.timer, w.p.cfg.ConnectTimeout, d)
}

// Ready implements loop.Handler.
func (d *dial) Ready(*loop.FD) {
	switch err := d.fd.ConnectError(); err {
	case nil:
		d.timer.Stop()
		d.h.dialed(nil)
	case loop.ErrAgain:
	default:
		d.fail(err)
	}
}

// Abort implements loop.Aborter: what waits for the dial must end, or it would stay on the list of connections for ever.
func (d *dial) Abort(err error) { d.fail(err) }

// Expired implements loop.TimerHandler.
func (d *dial) Expired(*loop.Timer) { d.fail(unix.ETIMEDOUT) }

func (d *dial) fail(err error) {
	d.abandon()
	d.h.dialed(err)
}

// abandon closes the socket without telling anyone.
func (d *dial) abandon() {
	d.timer.Stop()
	d.fd.Close()
}
