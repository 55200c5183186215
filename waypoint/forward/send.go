package forward

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// errGivenUp ends streams whose other side is gone, or not wanted any more.
var errGivenUp = &message.StreamError{Code: message.CodeCancel, Cause: errors.New("the exchange is over")}

// forward sends the request where its route says.
func (x *exchange) forward() {
	r := x.Route()
	switch {
	case r == nil:
		x.fail(404, "", "route_not_found", filter.NoRoute)
		return
	case r.Redirect != nil:
		x.Answered(r.Redirect.Status, "", "direct_response", 0)
		x.Reply.Header = append(x.Reply.Header, message.Field{Name: "location", Value: r.Redirect.Location(x.Req)})
		x.reply()
		return
	case r.Direct != nil:
		x.fail(r.Direct.Status, r.Direct.Body, "direct_response", 0)
		return
	}
	a := x.RouteAction()
	if up := x.Req.Upgrade; up != "" && !x.upgradable(a, up) {
		x.fail(403, "", "upgrade_failed", 0)
		return
	}
	x.keyWebSocket()
	c := x.snap.Clusters.Get(a.ClusterName(x.Req))
	if c == nil {
		x.fail(a.NotFoundStatus, "", "cluster_not_found", filter.NoCluster)
		return
	}
	x.mirror(a)
	r.ChangeRequest(a, x.Context())
	x.stage = waiting
	x.keep = a.Retry.For(x.Req)
	x.startTimeout()
	if d := a.MaxStreamDuration; d > 0 {
		x.w.loop.Start(&x.limit, d, (*limitEnd)(x))
	}
	if a.HasIdle {
		x.setIdle(a.IdleTimeout)
	}
	x.attempt(c)
}

func (x *exchange) upgradable(a *route.Action, protocol string) bool {
	if allowed, set := a.Upgrade(protocol); set {
		return allowed
	}
	return x.chain.Upgrades[protocol]
}

const (
	// unknownTime is how long a request waits for the endpoints of a cluster that has just come, unknownPause how often it
	// looks.
	unknownTime  = 5 * time.Second
	unknownPause = 10 * time.Millisecond
)

// attempt sends the request to an endpoint of the cluster.
func (x *exchange) attempt(c *cluster.Cluster) {
	c = x.w.p.newest(c)
	a := x.RouteAction()
	x.tries++
	if a.AttemptCount {
		x.Req.Header.Set("x-envoy-attempt-count", x.holdInt(int64(x.tries)))
	}
	x.expect(a)
	x.cluster = c
	if c.Discovery == cluster.Dynamic {
		x.attemptNamed(c)
		return
	}
	h, err := x.pick(c, a)
	if errors.Is(err, cluster.ErrUnknown) && x.w.loop.Now()-x.begun < unknownTime { // Envoy would not know the cluster yet
		x.tries--
		x.w.waits.Add(1)
		x.wait(unknownPause, func() { x.attempt(c) })
		return
	}
	if err != nil {
		x.fail(503, "no healthy upstream", "no_healthy_upstream", filter.NoHealthyUpstream)
		return
	}
	x.send(h)
}

// newest is the cluster of the same name in force if c is not any more: who tries again asks the endpoints of today.
func (p *Proxy) newest(c *cluster.Cluster) *cluster.Cluster {
	if c.Gone() {
		if s := p.cfg.Snapshot.Load(); s != nil {
			if n := s.Clusters.Get(c.Name); n != nil {
				return n
			}
		}
	}
	return c
}

// send sends the request to an endpoint of the cluster that was chosen.
func (x *exchange) send(h *cluster.Host) {
	a, c := x.RouteAction(), x.cluster
	x.host = h
	x.passed = 0
	t := x.w.newAttempt(x, c, h, x.Dest)
	t.client = x.Client.Addr
	x.try = t
	if a.Retry != nil && a.Retry.PerTry > 0 {
		x.w.loop.Start(&t.timer, a.Retry.PerTry, t)
	}
	t.begin(x.Req, x.bodiless() || x.ended && len(x.kept) == 0 && !x.trailed)
}

// bodiless says that nothing follows the request's head, though its end may not have been told yet.
func (x *exchange) bodiless() bool {
	return x.Req.ContentLength == 0 && x.Req.Upgrade == "" && x.Req.Method != "CONNECT"
}

// pick chooses the endpoint.
func (x *exchange) pick(c *cluster.Cluster, a *route.Action) (*cluster.Host, error) {
	p := cluster.Pick{Rand: x.Rand}
	if by := c.Policy(); a.HasHash() && (by == cluster.RingHash || by == cluster.Maglev) {
		var cookie string
		p.Hash, p.HasHash, cookie = a.Hash(&route.HashInput{Req: x.Req, Source: x.Client.Addr, Local: x.Dest, State: x.FilterState})
		if cookie != "" {
			x.cookie = cookie
		}
	}
	if r := a.Retry; r != nil && r.SkipPrevious && len(x.used) > 0 {
		p.Avoid, p.Attempts = x.wasUsed, r.HostAttempts
	}
	h, err := x.w.choose(c, &p, x.Dest)
	if err == nil && a.Retry != nil && a.Retry.SkipPrevious {
		x.used = append(x.used, h)
	}
	return h, err
}

// choose chooses an endpoint of a cluster, or makes one for where the client wanted to go.
func (w *worker) choose(c *cluster.Cluster, p *cluster.Pick, dest netip.AddrPort) (*cluster.Host, error) {
	if c.Discovery == cluster.OriginalDst {
		return c.At(dest, ""), nil
	}
	return c.Pick(p)
}

func (x *exchange) wasUsed(h *cluster.Host) bool { return slices.Contains(x.used, h) }

// opened implements caller: the attempt has its stream.
func (x *exchange) opened(t *attempt) {
	if len(x.kept) > 0 || x.ended {
		x.push()
		return
	}
	x.down.Resume()
}

// interim implements caller.
func (x *exchange) interim(_ *attempt, r *message.Response) {
	if x.stage == waiting && r.Status != 100 {
		x.down.SendInterim(r)
	}
}

// answer implements caller: an endpoint's answer begins.
func (x *exchange) answer(t *attempt, r *message.Response, end bool) {
	a := x.RouteAction()
	if x.mayRetry(a) && a.Retry.OnResponse(r) {
		wait, ok := a.Retry.ResetAfter(r, time.Now())
		if !ok {
			wait = a.Retry.BackOff(x.tries, x.Rand.Uint64())
		}
		if x.retry(t.cluster, wait) {
			return
		}
	} else if a.Retry.For(x.Req) && a.Retry.OnResponse(r) && x.tries > a.Retry.Max {
		x.Flags |= filter.UpstreamRetryLimit
	}
	t.timer.Stop()
	x.endRetry()
	x.stage, x.upstream = answering, true
	x.headAt = x.w.loop.Now()
	x.Details = "via_upstream"
	x.keep = false
	x.forgetBody()
	if r.Status == 101 {
		x.total.Stop()
		x.acceptWebSocket(r)
	}
	h := &r.Header
	h.Set("x-envoy-upstream-service-time", x.holdInt((x.w.loop.Now() - t.since).Milliseconds()))
	if a.AttemptCountInResponse {
		h.Set("x-envoy-attempt-count", x.holdInt(int64(x.tries)))
	}
	if x.cookie != "" {
		h.Add("set-cookie", x.cookie)
	}
	x.head(r, end)
}

// data implements caller.
func (x *exchange) data(_ *attempt, p []byte) int {
	n := x.down.SendData(p)
	x.moved = x.w.loop.Now()
	x.sent += int64(n)
	x.told.count(p[:n])
	return n
}

// end implements caller: the answer is complete.
func (x *exchange) end(t *attempt, trailer *message.Header) {
	if trailer != nil {
		x.noteTrailer(trailer)
	}
	if !t.bodiless {
		x.down.SendEnd(trailer)
	}
	x.answered = true
	x.settle()
}

// room implements caller.
func (x *exchange) room(*attempt) { x.push() }

// failed implements caller: the attempt came to nothing, or broke off.
func (x *exchange) failed(t *attempt, f failure) {
	x.try = nil
	if x.stage == answering {
		x.Flags |= filter.UpstreamTermination
		x.Details = "upstream_reset_after_response_started{" + f.detail() + "}"
		x.finish(false)
		return
	}
	if x.resend(t, f) {
		return
	}
	a := x.RouteAction()
	if x.mayRetry(a) && a.Retry.OnFailure(f.kind, t.open) && x.retry(t.cluster, a.Retry.BackOff(x.tries, x.Rand.Uint64())) {
		return
	}
	if a.Retry.For(x.Req) && x.tries > a.Retry.Max && a.Retry.OnFailure(f.kind, t.open) {
		x.Flags |= filter.UpstreamRetryLimit
	}
	x.Transport = f.cause
	if f.kind == route.TryTimeout {
		x.fail(504, "upstream request timeout", "upstream_per_try_timeout", f.flags())
		return
	}
	x.failWith(f)
}

// maxResends is how often a request is sent again because a connection was gone before the endpoint saw it.
const maxResends = 3

// resend sends a request again that no endpoint has seen. That is not a retry: no policy has to allow it.
func (x *exchange) resend(t *attempt, f failure) bool {
	if !f.unseen || x.stage != waiting || x.resends == maxResends || x.fed && !x.keep || f.reused && !idempotent(x.Req.Method) {
		return false
	}
	x.resends++
	x.tries--
	c := t.cluster
	x.wait(0, func() { x.attempt(c) })
	return true
}

// idempotent says that doing it twice is doing it once (RFC 9110 section 9.2.2).
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// failWith answers with Envoy's words for a failure.
func (x *exchange) failWith(f failure) {
	text := "upstream connect error or disconnect/reset before headers. "
	if x.tries > 1 {
		text += "retried and the latest "
	}
	text += "reset reason: " + f.String()
	status := 503
	if f.reason == reasonProtocol {
		status = 502
	}
	x.Answered(status, text, "upstream_reset_before_response_started{"+f.detail()+"}", f.flags())
	if f.kind == route.Overflow {
		x.Reply.Header = append(x.Reply.Header, message.Field{Name: "x-envoy-overloaded", Value: "true"})
	}
	x.reply()
}

// mayRetry says whether the request can be sent once more.
func (x *exchange) mayRetry(a *route.Action) bool {
	return x.stage == waiting && x.keep && x.tries <= a.Retry.Max
}

// retry begins another attempt after a pause, unless the cluster has too many retries under way.
func (x *exchange) retry(c *cluster.Cluster, wait time.Duration) bool {
	if !c.BeginRetry() {
		x.Flags |= filter.UpstreamOverflow
		return false
	}
	x.endRetry()
	x.retrying = c
	x.dropTry(errGivenUp)
	x.wait(wait, func() { x.attempt(c) })
	return true
}

// endRetry gives back the place among the cluster's retries.
func (x *exchange) endRetry() {
	if c := x.retrying; c != nil {
		x.retrying = nil
		c.EndRetry()
	}
}

// dropTry gives the attempt under way up.
func (x *exchange) dropTry(err error) {
	if t := x.try; t != nil {
		x.try = nil
		t.drop(err)
	}
}
