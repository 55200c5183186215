package proxy

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/rbac"
)

// inboundPlain is a connection to a captured pod from a peer that does not use the mesh (I20). It has no identity;
// policy sees its address only.
type inboundPlain struct {
	flow
	app   loop.FD // the peer's socket
	wait  loop.Timer
	up    dial // towards the application
	watch guarded
	join  *loop.Join
}

// takePlaintext begins with an accepted connection. Descriptor fd is taken over.
func (w *worker) takePlaintext(pod *Pod, fd int, peer, orig netip.AddrPort) {
	c := &inboundPlain{}
	if err := w.loop.Register(&c.app, fd, c); err != nil {
		unix.Close(fd)
		return
	}
	c.app.ResetsOnClose()
	c.peer, c.orig, c.actual = peer, orig, orig
	c.begin(w, pod, c, inboundDir)
	if IllegalPort(orig.Port()) {
		c.fail(routeError(SelfCall, orig.String())) // P5
		return
	}
	c.check()
}

// check asks the pod's policy, or waits for the pod's record.
func (c *inboundPlain) check() {
	w := c.w
	g := w.guard(c.pod)
	if g.record == nil {
		w.park(c)
		if !c.wait.Running() {
			w.loop.Start(&c.wait, w.p.cfg.WorkloadWait, c)
		}
		return
	}
	c.wait.Stop()
	v, _ := w.views()
	c.destination = g.record
	c.source = v.Workload(w.p.cfg.Network, c.peer.Addr())
	c.service = TargetService(v, c.destination, "", c.orig.Port())
	c.destinationID = c.destination.ID
	c.rec.open(&c.flow)
	err := g.admit(&c.watch, rbac.Attributes{SourceIP: c.peer.Addr(), Dest: c.orig}, c)
	if err == errPolicyPending {
		w.park(c)
		return
	} else if err != nil {
		c.fail(err)
		return
	}
	fd, err := w.p.sock().App(c.pod, c.peer.Addr(), c.actual)
	if err != nil {
		c.fail(connectError{addr: c.actual, err: err})
		return
	}
	c.up.start(w, fd, c)
}

// retry implements parked.
func (c *inboundPlain) retry() {
	if c.listed { // the retry of another one may have ended it
		c.check()
	}
}

// Expired implements loop.TimerHandler.
func (c *inboundPlain) Expired(*loop.Timer) {
	c.w.unpark(c)
	c.fail(errUnknownWorkload)
}

// Ready implements loop.Handler until the sockets are joined.
func (c *inboundPlain) Ready(*loop.FD) {
	if err := c.app.Failed(); err != nil {
		c.fail(clientGoneError{err})
	}
}

// dialed implements dialHandler.
func (c *inboundPlain) dialed(err error) {
	if !c.listed {
		c.up.abandon()
		return
	}
	if err != nil {
		c.fail(connectError{addr: c.actual, err: err})
		return
	}
	c.up.fd.ResetOnClose()
	c.join = loop.NewJoin(&c.app, &c.up.fd, nil, c)
}

// Joined implements loop.JoinHandler.
func (c *inboundPlain) Joined(r loop.JoinResult) {
	c.watch.leave()
	c.finish(copyError(r.Err), r.AtoB, r.BtoA)
}

// Abort implements loop.Aborter.
func (c *inboundPlain) Abort(err error) { c.fail(err) }

// cut implements cutter.
func (c *inboundPlain) cut(err error) { c.fail(err) }

func (c *inboundPlain) fail(err error) {
	if !c.listed {
		return
	}
	if c.join != nil {
		c.join.Abort(err)
		return
	}
	c.w.unpark(c)
	c.wait.Stop()
	c.up.abandon()
	c.app.Reset()
	c.watch.leave()
	c.finish(err, 0, 0)
}
