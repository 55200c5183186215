package forward

import (
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// startTimeout starts the route's timeout once the request is complete and on its way.
func (x *exchange) startTimeout() {
	if x.stage != waiting || !x.ended || x.timed {
		return
	}
	x.timed = true
	if d := x.RouteAction().TimeoutFor(x.Req); d > 0 {
		x.w.loop.Start(&x.total, d, (*totalEnd)(x))
	}
}

// maxGRPCDigits is the length of the longest number in a grpc-timeout.
const maxGRPCDigits = 8

// expect tells the endpoint how long its answer is waited for: the policy's time for one try, or what is left of the
// route's timeout.
func (x *exchange) expect(a *route.Action) {
	d := a.TimeoutFor(x.Req)
	if d > 0 && x.timed {
		d = max(d-(x.w.loop.Now()-x.begun), time.Millisecond)
	}
	if r := a.Retry; r != nil && r.PerTry > 0 && (d <= 0 || r.PerTry < d) {
		d = r.PerTry
	}
	if d > 0 {
		ms := x.holdInt(d.Milliseconds())
		x.Req.Header.Set("x-envoy-expected-rq-timeout-ms", ms)
		if a.LimitsGRPC() && route.IsGRPC(x.Req) && len(ms) <= maxGRPCDigits {
			x.Req.Header.Set("grpc-timeout", x.Req.Header.Hold(ms+"m"))
		}
	}
}

// holdInt is a number as text in the request's memory.
func (x *exchange) holdInt(n int64) string {
	var b [20]byte
	return x.Req.Header.HoldBytes(strconv.AppendInt(b[:0], n, 10))
}

type totalEnd exchange

// Expired implements loop.TimerHandler: the route's timeout is over.
func (t *totalEnd) Expired(*loop.Timer) {
	x := (*exchange)(t)
	if x.stage < answering && x.try != nil {
		x.try.host.Failed(cluster.Timeout)
	}
	x.expire(504, "upstream request timeout", "response_timeout", filter.UpstreamTimeout)
}

type limitEnd exchange

// Expired implements loop.TimerHandler: the longest time of a stream is over.
func (t *limitEnd) Expired(*loop.Timer) {
	(*exchange)(t).expire(408, "downstream duration timeout", "max_duration_timeout", filter.MaxDuration)
}

type wholeEnd exchange

// Expired implements loop.TimerHandler: the request has not come whole in its time.
func (t *wholeEnd) Expired(*loop.Timer) {
	(*exchange)(t).expire(408, "request timeout", "request_overall_timeout", filter.DownstreamReset)
}

// setIdle bounds the time in which nothing moves; 0: no bound.
func (x *exchange) setIdle(d time.Duration) {
	x.idleFor, x.moved = d, x.w.loop.Now()
	if d > 0 {
		x.w.loop.Start(&x.idle, d, (*idleEnd)(x))
		return
	}
	x.idle.Stop()
}

type idleEnd exchange

// Expired implements loop.TimerHandler. The timer is not set anew for each byte: what is due is found out here.
func (t *idleEnd) Expired(*loop.Timer) {
	x := (*exchange)(t)
	if rest := x.moved + x.idleFor - x.w.loop.Now(); rest > 0 {
		x.w.loop.Start(&x.idle, rest, t)
		return
	}
	x.expire(408, "stream timeout", "stream_idle_timeout", filter.StreamIdleTimeout)
}

// expire ends an exchange that has taken too long: by an answer, or if that has begun by a reset.
func (x *exchange) expire(status int, body, details string, flags filter.Flags) {
	if x.stage < answering {
		x.fail(status, body, details, flags)
		return
	}
	x.Flags |= flags
	x.Details = details
	x.finish(false)
}
