package proxy

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// peerTunnel is an accepted HBONE connection: to which pod, from whom. Not changed once made.
type peerTunnel struct {
	pod         *Pod
	id          spiffe.ID // the peer's, verified
	peer, local netip.AddrPort
}

// serveTunnel takes a tunnel whose handshake is done. The pod may have gone meanwhile.
func (w *worker) serveTunnel(fd int, conn *looptls.Conn, t *peerTunnel) {
	gone := t.pod.gone.Load()
	if gone == podCut || w.server.Serve(fd, conn, t) != nil {
		unix.Close(fd)
		t.pod.unref()
		return
	}
	if gone == podLeft {
		w.leavePod(t.pod)
	}
}

// acceptTLS does the server's handshake with the pod's certificate and notes who the peer is (I1). Blocks.
func (p *Proxy) acceptTLS(ctx context.Context, t *peerTunnel, fd int) (*looptls.Conn, error) {
	cert, err := p.certificate(ctx, t.pod)
	if err != nil {
		return nil, err
	}
	conn, err := looptls.Server(ctx, fd, svid.ServerConfig(cert, p.cfg.TLS))
	if err != nil {
		return nil, err
	}
	t.id, err = svid.PeerID(conn.State())
	return conn, err
}

// certificate is the pod's current one, after a wait if it is still to come.
func (p *Proxy) certificate(ctx context.Context, pod *Pod) (*svid.SVID, error) {
	w, err := p.awaitRecord(ctx, pod)
	if err != nil {
		return nil, err
	}
	return p.certificateOf(ctx, w.ID)
}

func (p *Proxy) certificateOf(ctx context.Context, id spiffe.ID) (*svid.SVID, error) {
	if s, err := p.cfg.Certs.Current(id); err == nil {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.WorkloadWait)
	defer cancel()
	s, err := p.cfg.Certs.Fetch(ctx, id)
	if err != nil {
		return nil, identityError{id: id, err: err}
	}
	return s, nil
}

// expired says why id may not be used any more, if its certificate ran out: a tunnel that is open already must not
// outlive it. It does not block.
func (p *Proxy) expired(id spiffe.ID) error {
	if _, err := p.cfg.Certs.Current(id); errors.Is(err, svid.ErrExpired) {
		return identityError{id: id, err: err}
	}
	return nil
}

// inboundHandler serves the CONNECTs of a worker's tunnels.
type inboundHandler struct{ w *worker }

// ServeConnect implements hbone.Handler.
func (h inboundHandler) ServeConnect(st *hbone.Stream, req *hbone.Request) {
	t := st.Conn().Tag().(*peerTunnel)
	c := &inbound{st: st, t: t}
	c.authority = req.Authority
	c.claimed, c.hints = hintsOf(req)
	c.peer, c.orig, c.actual = t.peer, t.local, t.local
	c.sourceID, c.security = t.id, mutualTLS
	c.begin(h.w, t.pod, c, inboundDir)
	st.OnReset(c.peerReset)
	c.check()
}

// inbound is one CONNECT stream into a pod.
type inbound struct {
	flow
	st     *hbone.Stream
	t      *peerTunnel
	hints  hints
	wait   loop.Timer
	up     dial   // towards the application
	header []byte // PROXY protocol, sent before the peer's bytes
	watch  guarded
	joined bool
}

// check validates the target, asks the policy and dials the application; it waits for the pod's record first.
func (c *inbound) check() {
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
	c.destinationID = c.destination.ID
	target, err := ResolveTarget(v, TargetQuery{
		Local: c.destination, LocalAddr: c.t.local.Addr(), Peer: c.peer.Addr(), Network: w.p.cfg.Network, Authority: c.authority,
		LoopbackTunnel: w.p.cfg.LoopbackTunnel,
	})
	if err != nil {
		c.fail(err)
		return
	}
	c.actual = target.Upstream
	if target.Proxy {
		c.header = AppendProxyV2(nil, c.peer, target.Tunnelled, c.sourceID.String())
	}
	c.describe(v)
	c.rec.open(&c.flow)
	attrs := rbac.Attributes{Source: c.sourceID, SourceIP: c.peer.Addr(), Dest: c.actual}
	if err := g.admit(&c.watch, attrs, c); err == errPolicyPending {
		w.park(c)
		return
	} else if err != nil {
		c.fail(err)
		return
	}
	if err := w.p.expired(c.destinationID); err != nil {
		c.fail(err)
		return
	}
	fd, err := w.p.sock().App(c.pod, target.Spoof, target.Dial)
	if err != nil {
		c.fail(connectError{addr: target.Dial, err: err})
		return
	}
	c.up.start(w, fd, c)
}

// describe finds out who the source is and which service it meant, for the report: the workload table first, then what
// the peer says of itself (I7, I8).
func (c *inbound) describe(v *workload.View) {
	network := c.w.p.cfg.Network
	if c.hints.network == "" || strings.EqualFold(c.hints.network, network) {
		c.source = v.Workload(network, c.peer.Addr())
	}
	c.service = TargetService(v, c.destination, c.hints.host, c.actual.Port())
}

// hints are what a peer says about the connection, besides its baggage. They are for reports only.
type hints struct {
	host    string // of the service that the client meant
	network string // of the client
}

func hintsOf(req *hbone.Request) (g *Baggage, h hints) {
	g = &Baggage{}
	for _, f := range req.Header {
		switch f.Name {
		case HeaderBaggage:
			g.Parse(f.Value)
		case HeaderForwarded:
			h.host = ForwardedHost(f.Value)
		case HeaderForwardedNetwork:
			h.network = f.Value
		}
	}
	return g, h
}

// retry implements parked.
func (c *inbound) retry() {
	if c.listed { // the retry of another one may have ended it
		c.check()
	}
}

// Expired implements loop.TimerHandler.
func (c *inbound) Expired(*loop.Timer) {
	c.w.unpark(c)
	c.fail(errUnknownWorkload)
}

// dialed implements dialHandler.
func (c *inbound) dialed(err error) {
	if !c.listed {
		c.up.abandon()
		return
	}
	if err != nil {
		c.fail(connectError{addr: c.actual, err: err})
		return
	}
	c.up.fd.ResetOnClose()
	if len(c.header) > 0 {
		if n, err := c.up.fd.Write(c.header); err != nil || n < len(c.header) { // a fresh socket has room for it
			c.fail(connectError{addr: c.actual, err: err})
			return
		}
	}
	var h []hbone.HeaderField
	if c.w.p.cfg.ResponseBaggage {
		baggage := BaggageOf(c.destination)
		h = []hbone.HeaderField{{Name: HeaderBaggage, Value: baggage.String()}}
	}
	c.st.Accept(h)
	c.joined = true
	c.hints = hints{} // they keep the request's text alive
	if c.source != nil {
		c.claimed = nil
	}
	c.st.Join(&c.up.fd, c)
}

// Joined implements hbone.JoinHandler. Seen from the destination, what the application sent is what the client
// received.
func (c *inbound) Joined(r hbone.JoinResult) {
	c.watch.leave()
	c.finish(copyError(r.Err), r.Received, r.Sent)
}

// peerReset is told that the peer gave up before we answered.
func (c *inbound) peerReset(err error) {
	if c.listed && !c.joined {
		c.over(clientGoneError{err})
	}
}

// cut implements cutter.
func (c *inbound) cut(err error) { c.fail(err) }

func (c *inbound) fail(err error) {
	if !c.listed {
		return
	}
	if c.joined {
		c.st.Cut(hbone.CodeCancel, err)
		return
	}
	c.st.Reject(statusOf(err))
	c.over(err)
}

// over releases a stream that was never joined.
func (c *inbound) over(err error) {
	c.w.unpark(c)
	c.wait.Stop()
	c.up.abandon()
	c.watch.leave()
	c.finish(err, 0, 0)
}
