package proxy

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// outbound is a connection that a pod's application made. Its life: routed (perhaps after a wait for the pod's record),
// then opened as a tunnel stream, a plain connection or a connection into a pod of this node, then joined, then over.
type outbound struct {
	flow
	*attempt // nil once it is joined
	app      loop.FD
	up       *dial  // plain and same-node
	dest     *inPod // same-node: what the destination reports
	join     *loop.Join
	st       *hbone.Stream
}

// attempt is what an outbound connection needs until it is joined. Most connections are idle most of their life: they should
// be small.
type attempt struct {
	wait loop.Timer // for the pod's record
	late bool       // it has not come soon
	// opening is the stream that was asked for and is not there yet.
	opening *hbone.Opening

	decision Decision
	// avoid are the endpoints of the service that could not be reached.
	avoid []*workload.Workload
	asked bool // once more, because a tunnel died
}

// maxElsewhere is the number of further endpoints that are tried.
const maxElsewhere = 2

// takeOutbound begins with an accepted connection. Descriptor fd is taken over.
func (w *worker) takeOutbound(pod *Pod, fd int, peer, orig netip.AddrPort) {
	o := &outbound{attempt: &attempt{}}
	if err := w.loop.Register(&o.app, fd, o); err != nil {
		unix.Close(fd)
		return
	}
	o.app.ResetsOnClose()
	o.peer, o.orig = peer, orig
	o.begin(w, pod, o, outboundDir)
	if o.selfCall() {
		o.fail(routeError(SelfCall, orig.String()))
		return
	}
	o.route()
}

// selfCall tells whether the application dialled the proxy's own port at an address of its pod (P5). Such a connection is
// not redirected, it reaches the listener itself; to carry it on would be to enter the same listener again. The record in
// the workload table does not decide: it may lack an address.
func (o *outbound) selfCall() bool {
	a := o.orig.Addr()
	return IllegalPort(o.orig.Port()) && (a.IsLoopback() || a == o.peer.Addr() || slices.Contains(o.pod.Addrs, a))
}

// route decides where to go, or waits for the pod's record.
func (o *outbound) route() {
	w := o.w
	v, _ := w.views()
	o.source = w.p.record(o.pod, v)
	if o.source == nil && o.late {
		o.source = w.p.standIn(o.pod)
	}
	if o.source == nil {
		w.park(o)
		if !o.wait.Running() {
			w.loop.Start(&o.wait, w.p.cfg.WorkloadWait/soonShare, o)
		}
		return
	}
	o.wait.Stop()
	o.sourceID = o.source.ID
	var err error
	o.decision, err = Route(v, Query{Source: o.source, Peer: o.peer.Addr(), Dst: o.orig, Network: w.p.cfg.Network, Rand: w.rand})
	if err != nil {
		o.fail(err)
		return
	}
	o.destination, o.service = o.decision.Workload, o.decision.Service
	if o.decision.Resolve != "" {
		o.resolve()
		return
	}
	o.open()
}

// open carries the decision out.
func (o *outbound) open() {
	d := &o.decision
	o.actual, o.authority = d.Dial, d.Authority()
	switch d.Protocol {
	case TCP:
		o.security = plaintext
		o.openPlain()
	case HBONE:
		if pod := o.sameNode(); pod != nil {
			o.openSameNode(pod)
			return
		}
		o.security = mutualTLS
		if o.destination != nil {
			o.destinationID = o.destination.ID
		}
		o.openTunnel()
	default:
		o.fail(errUnsupported)
	}
}

// resolve asks DNS for the destination's address on a goroutine (O22) and then goes on.
func (o *outbound) resolve() {
	w, host := o.w, o.decision.Resolve
	ok := w.p.goHelper(func() {
		ip, err := w.p.lookup(host, o.orig.Addr().Is4())
		w.loop.Inject(func() {
			switch {
			case !o.listed:
			case err != nil:
				o.fail(err)
			default:
				o.decision = o.decision.Resolved(ip)
				o.open()
			}
		})
	})
	if !ok {
		o.fail(errDrained)
	}
}

// retry implements parked.
func (o *outbound) retry() {
	switch {
	case !o.listed: // the retry of another one may have ended it
	case o.dest != nil:
		o.enterPod()
	default:
		o.route()
	}
}

// soonShare is the part of Config.WorkloadWait after which a connection goes on without its pod's record, 1 to soonShare.
const soonShare = 5

// Expired implements loop.TimerHandler: the pod's record did not come soon, or not in time.
func (o *outbound) Expired(*loop.Timer) {
	o.w.unpark(o)
	if o.late {
		o.fail(errUnknownWorkload)
		return
	}
	o.late = true
	o.w.loop.Start(&o.wait, o.w.p.cfg.WorkloadWait-o.w.p.cfg.WorkloadWait/soonShare, o)
	o.route()
}

// Ready implements loop.Handler while the application's socket waits for the other side: only a reset counts, what the
// application sent stays in the kernel.
func (o *outbound) Ready(*loop.FD) {
	if err := o.app.Failed(); err != nil {
		o.fail(clientGoneError{err})
	}
}

// openPlain dials the destination without a tunnel.
func (o *outbound) openPlain() {
	o.rec.open(&o.flow)
	fd, err := o.w.p.sock().Upstream(o.pod, o.actual)
	if err != nil {
		o.fail(connectError{addr: o.actual, err: err})
		return
	}
	o.up = &dial{}
	o.up.start(o.w, fd, o)
}

// dialed implements dialHandler.
func (o *outbound) dialed(err error) {
	if !o.listed {
		o.up.abandon()
		return
	}
	if err != nil {
		if err := (connectError{addr: o.actual, err: err}); !o.elsewhere(err) {
			o.fail(err)
		}
		return
	}
	o.up.fd.ResetOnClose()
	o.join = loop.NewJoin(&o.app, &o.up.fd, nil, o)
	o.attempt = nil
}

// Joined implements loop.JoinHandler.
func (o *outbound) Joined(r loop.JoinResult) { o.finishBoth(copyError(r.Err), r.AtoB, r.BtoA) }

// openTunnel opens a stream on a tunnel to the decided peer.
func (o *outbound) openTunnel() {
	o.rec.open(&o.flow)
	if err := o.w.p.expired(o.sourceID); err != nil {
		o.fail(err)
		return
	}
	d := &o.decision
	key := hbone.Key{Source: o.sourceID.String(), Dest: d.Expect.Key, Addr: d.Dial, SourceIP: o.peer.Addr()}
	t := &peerSpec{pod: o.pod, source: o.sourceID, expect: d.Expect.IDs}
	o.opening = o.w.pool.Open(key, t, o.request(), o)
}

// request is the CONNECT (H12, H13).
func (o *outbound) request() *hbone.Request {
	host := ""
	if o.service != nil {
		host = o.service.Hostname
	}
	var buf [256]byte // one value at a time: in one expression both calls would come before the first conversion
	forwarded := string(AppendForwarded(buf[:0], o.peer, host))
	return &hbone.Request{
		Authority: o.authority,
		Header: []hbone.HeaderField{
			{Name: HeaderBaggage, Value: o.pod.baggage(o.source)},
			{Name: HeaderForwarded, Value: forwarded},
			{Name: HeaderTraceparent, Value: string(AppendTraceparent(buf[:0], o.w.rand))},
		},
	}
}

// StreamOpened implements hbone.OpenHandler.
func (o *outbound) StreamOpened(st *hbone.Stream, _ *hbone.Response) {
	o.st = st
	st.Join(&o.app, streamJoin{o})
	o.attempt = nil
}

// StreamFailed implements hbone.OpenHandler.
func (o *outbound) StreamFailed(err error) {
	o.opening = nil
	if o.again(err) {
		return
	}
	if err := (tunnelError{addr: o.actual, err: err}); !o.elsewhere(err) {
		o.fail(err)
	}
}

// again asks once more, if the tunnel has died before the peer answered: a tunnel that was open may lead to a proxy that is
// gone, which shows only when it is used. Nothing that the application sent has left its socket yet.
func (o *outbound) again(err error) bool {
	var answer *hbone.StatusError
	var dial *hbone.DialError
	if o.asked || errors.As(err, &answer) || errors.As(err, &dial) || errors.Is(err, hbone.ErrDraining) || errors.Is(err, loop.ErrPanic) {
		return false
	}
	o.asked = true
	o.open()
	return true
}

// elsewhere begins again with another endpoint of the service, if there is one, after err kept the connection from being
// opened: nothing that the application sent has left its socket yet. A stale endpoint (its address has another pod by
// now, its process is gone) costs time, not the connection. A refusal by policy stays one.
func (o *outbound) elsewhere(err error) bool {
	if !o.listed || o.service == nil || o.decision.Workload == nil || len(o.avoid) == maxElsewhere || statusOf(err) != 503 {
		return false
	}
	var answer *hbone.StatusError
	var own identityError // no certificate of ours: none for another endpoint either
	if errors.As(err, &answer) && answer.Status != 503 || errors.As(err, &own) || errors.Is(err, loop.ErrPanic) {
		return false
	}
	o.avoid = append(o.avoid, o.decision.Workload)
	avoid := func(w *workload.Workload) bool {
		return slices.ContainsFunc(o.avoid, func(a *workload.Workload) bool { return a.UID == w.UID })
	}
	v, _ := o.w.views()
	d, rerr := Route(v, Query{Source: o.source, Peer: o.peer.Addr(), Dst: o.orig, Network: o.w.p.cfg.Network, Rand: o.w.rand, Avoid: avoid})
	if rerr != nil || d.Workload == nil || avoid(d.Workload) || d.Resolve != "" {
		return false
	}
	o.w.p.log.Debug("endpoint cannot be reached, another one is tried", "err", err, "service", o.service.Key, "peer", o.peer)
	if o.dest != nil {
		o.dest.over(err, 0, 0)
		o.dest = nil
	}
	o.rec.restart(err)
	o.decision = d
	o.destination, o.service, o.destinationID = d.Workload, d.Service, spiffe.ID{}
	o.open()
	return true
}

// streamJoin keeps the two kinds of Joined apart.
type streamJoin struct{ o *outbound }

// Joined implements hbone.JoinHandler.
func (s streamJoin) Joined(r hbone.JoinResult) { s.o.finish(copyError(r.Err), r.Sent, r.Received) }

// sameNode is the pod of this node that the connection goes to, if it may be entered directly: the decision names a
// workload of this node and no waypoint is asked for.
func (o *outbound) sameNode() *Pod {
	p, d := o.w.p, &o.decision
	if p.cfg.SameNode != SameNodeDirect || d.Waypoint || d.Workload == nil || d.Workload.Node != p.cfg.Node || d.Workload.Node == "" {
		return nil
	}
	return p.pods.Load().local(d.Workload, d.Target.Addr())
}

// openSameNode checks the destination's policy with the source that this node vouches for, and dials its application.
func (o *outbound) openSameNode(pod *Pod) {
	o.security = sameNode
	o.authority = ""
	o.actual = o.decision.Target
	o.destinationID = o.destination.ID
	if IllegalPort(o.actual.Port()) { // what the destination's side of a tunnel would refuse
		o.fail(routeError(SelfCall, o.actual.String()))
		return
	}
	o.rec.open(&o.flow)
	o.dest = newInPod(o, pod)
	o.enterPod()
}

// enterPod asks the destination's policy, or waits for it.
func (o *outbound) enterPod() {
	attrs := rbac.Attributes{Source: o.sourceID, SourceIP: o.peer.Addr(), Dest: o.actual}
	if err := o.dest.admit(attrs); err == errPolicyPending {
		o.w.park(o)
		return
	} else if err != nil {
		o.fail(err)
		return
	}
	fd, err := o.w.p.sock().App(o.dest.pod, o.peer.Addr(), o.actual)
	if err != nil {
		o.fail(connectError{addr: o.actual, err: err})
		return
	}
	o.up = &dial{}
	o.up.start(o.w, fd, o)
}

// Abort implements loop.Aborter.
func (o *outbound) Abort(err error) { o.fail(err) }

// cut implements cutter.
func (o *outbound) cut(err error) { o.fail(err) }

// fail ends the connection in whatever state it is. The application sees a reset, never a FIN that it could take for
// the end of an answer.
func (o *outbound) fail(err error) {
	if !o.listed {
		return
	}
	switch {
	case o.join != nil:
		o.join.Abort(err)
		return
	case o.st != nil:
		o.st.Cut(hbone.CodeCancel, err)
		return
	}
	if o.opening != nil {
		o.opening.Cancel()
		o.opening = nil
	}
	o.w.unpark(o)
	o.wait.Stop()
	if o.up != nil {
		o.up.abandon()
	}
	o.app.Reset()
	o.finishBoth(err, 0, 0)
}

// finishBoth reports the connection, and for one inside this node its other end too.
func (o *outbound) finishBoth(err error, sent, received int64) {
	if o.finish(err, sent, received) && o.dest != nil {
		o.dest.over(err, sent, received)
	}
}
