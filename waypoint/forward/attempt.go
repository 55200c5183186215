package forward

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// caller is on whose behalf an attempt is made: an exchange, a mirror, a filter's call. It is called on the loop, and
// but for opened never from inside a call of the attempt.
type caller interface {
	// opened: the request's head is on its way, and its body may be sent. It may be called from inside begin.
	opened(t *attempt)
	// interim is a 1xx answer.
	interim(t *attempt, r *message.Response)
	// answer is the final head; end: nothing follows. end is called all the same.
	answer(t *attempt, r *message.Response, end bool)
	data(t *attempt, p []byte) int
	end(t *attempt, trailer *message.Header)
	room(t *attempt)
	// failed is the last call of an attempt that did not come to its end.
	failed(t *attempt, f failure)
}

// failure is why an attempt came to nothing.
type failure struct {
	kind route.Failure
	// reason is Envoy's word for it, such as "connection termination".
	reason string
	// cause is what the transport says, or "".
	cause string
	// unseen says that the endpoint has certainly not acted on the request, reused that this rests on an idle connection
	// having been used again (RFC 9112 section 9.3.1): it does not hold for a method that changes something.
	unseen, reused bool
}

// String is as in Envoy's answers.
func (f failure) String() string {
	if f.cause == "" {
		return f.reason
	}
	return f.reason + ", transport failure reason: " + f.cause
}

// detail is as in %RESPONSE_CODE_DETAILS%.
func (f failure) detail() string {
	s := f.reason
	if f.cause != "" {
		s += "|" + f.cause
	}
	return strings.ReplaceAll(s, " ", "_")
}

// flags are the response flags of the failure.
func (f failure) flags() filter.Flags {
	switch f.kind {
	case route.ConnectFailed:
		return filter.UpstreamFailure
	case route.Overflow:
		return filter.UpstreamOverflow
	case route.TryTimeout:
		return filter.UpstreamTimeout
	}
	switch f.reason {
	case reasonTermination:
		return filter.UpstreamTermination
	case reasonProtocol:
		return filter.UpstreamProtocolError
	}
	return filter.UpstreamReset
}

const (
	reasonConnect     = "remote connection failure"
	reasonTimeout     = "connection timeout"
	reasonTermination = "connection termination"
	reasonReset       = "remote reset"
	reasonRefused     = "remote refused stream reset"
	reasonProtocol    = "protocol error"
	reasonOverflow    = "overflow"
)

// attempt is one try of a request at one endpoint: it waits for a connection, and then is a stream on it.
type attempt struct {
	w       *worker
	by      caller
	cluster *cluster.Cluster
	host    *cluster.Host
	dest    netip.AddrPort // where the client wanted to go
	client  netip.AddrPort // who asks; not valid if it is the waypoint itself
	req     *message.Request
	up      message.ClientStream
	link    *link

	since    time.Duration // when it began
	timer    loop.Timer    // of the policy's timeout for one try
	end      bool          // the request has no body
	open     bool          // up is there
	sentEnd  bool          // the request was sent whole
	bodiless bool          // and nothing follows it
	grpc     bool          // how it ends is in its trailer
	tunnel   bool          // it makes two directions that end each for itself
	counted  bool          // among the cluster's requests
	over     bool
	gen      uint32 // counts the uses of the object
}

// newAttempt makes an attempt; begin begins it.
func (w *worker) newAttempt(by caller, c *cluster.Cluster, h *cluster.Host, dest netip.AddrPort) *attempt {
	var t *attempt
	if n := len(w.spareTries); n > 0 {
		t = w.spareTries[n-1]
		w.spareTries = w.spareTries[:n-1]
	} else {
		t = &attempt{}
	}
	t.w, t.by, t.cluster, t.host, t.dest = w, by, c, h, dest
	t.since = w.loop.Now()
	return t
}

// begin sends the head of req, whose body follows unless end. req must stay as it is until the attempt is over.
func (t *attempt) begin(req *message.Request, end bool) {
	t.req, t.end, t.sentEnd = req, end, end
	if !t.cluster.BeginRequest(t.host) {
		t.failLater(failure{kind: route.Overflow, reason: reasonOverflow})
		return
	}
	t.counted = true
	t.w.ups.want(t)
}

// start opens the stream on a connection that has room.
func (t *attempt) start(l *link) {
	if t.over {
		return
	}
	up, err := l.conn.Open(t.req, t.end, t)
	if err != nil {
		t.fail(failureOf(err))
		return
	}
	t.link, t.up, t.open = l, up, true
	l.begun(t)
	t.by.opened(t)
}

// Interim implements message.ClientHandler.
func (t *attempt) Interim(r *message.Response) {
	if !t.over {
		t.by.interim(t, r)
	}
}

// Head implements message.ClientHandler.
func (t *attempt) Head(r *message.Response, end bool) {
	if t.over {
		return
	}
	t.bodiless = end
	t.tunnel = r.Status == 101 || t.req.Method == "CONNECT" && r.Status/100 == 2
	if t.grpc = r.Status == 200 && route.IsGRPC(t.req); !t.grpc {
		t.host.Answered(r.Status)
	} else if v := r.Header.Get("grpc-status"); v != "" {
		t.grpcEnded(v)
	}
	t.by.answer(t, r, end)
}

// Data implements message.Taker.
func (t *attempt) Data(p []byte) int {
	if t.over {
		return len(p)
	}
	return t.by.data(t, p)
}

// End implements message.Taker.
func (t *attempt) End(trailer *message.Header) {
	if t.over {
		return
	}
	by := t.by
	if t.grpc {
		v := ""
		if trailer != nil {
			v = trailer.Get("grpc-status")
		}
		t.grpcEnded(v)
	}
	if !t.tunnel || t.sentEnd {
		t.close()
	}
	by.end(t, trailer)
}

// grpcEnded tells the endpoint's monitor how a call of gRPC ended: as the HTTP status that stands for the same.
func (t *attempt) grpcEnded(status string) {
	t.grpc = false
	code := 200
	switch status {
	case "1":
		code = 499 // CANCELLED
	case "2", "13", "15":
		code = 500 // UNKNOWN, INTERNAL, DATA_LOSS
	case "4":
		code = 504 // DEADLINE_EXCEEDED
	case "8":
		code = 429 // RESOURCE_EXHAUSTED
	case "12":
		code = 501 // UNIMPLEMENTED
	case "14":
		code = 503 // UNAVAILABLE
	}
	t.host.Answered(code)
}

// Room implements message.Taker.
func (t *attempt) Room() {
	if !t.over {
		t.by.room(t)
	}
}

// Failed implements message.Taker.
func (t *attempt) Failed(err error) { t.fail(failureOf(err)) }

// Expired implements loop.TimerHandler: the try has taken too long.
func (t *attempt) Expired(*loop.Timer) {
	if t.over {
		return
	}
	t.reset(errGivenUp)
	t.fail(failure{kind: route.TryTimeout, reason: "per try timeout"})
}

// fail ends the attempt and tells the caller.
func (t *attempt) fail(f failure) {
	if t.over {
		return
	}
	switch f.kind {
	case route.ConnectFailed:
		t.host.Failed(cluster.ConnectFailure)
	case route.TryTimeout:
		t.host.Failed(cluster.Timeout)
	case route.ResetByPeer:
		t.host.Failed(cluster.Reset)
	}
	by := t.by
	t.close()
	by.failed(t, f)
}

// failLater is fail in the next turn, if the attempt is not over by then.
func (t *attempt) failLater(f failure) {
	gen := t.gen
	t.w.later(func() {
		if t.gen == gen {
			t.fail(f)
		}
	})
}

// drop gives the attempt up; the caller is not told.
func (t *attempt) drop(err error) {
	if !t.over {
		t.reset(err)
		t.close()
	}
}

func (t *attempt) reset(err error) {
	if t.open {
		t.up.Reset(err)
	} else {
		t.w.ups.forget(t)
	}
}

// close ends the attempt; it is used again from the end of the turn on.
func (t *attempt) close() {
	t.over = true
	t.timer.Stop()
	if t.counted {
		t.cluster.EndRequest(t.host)
	}
	if t.link != nil {
		t.link.ended(t)
	}
	t.w.loop.AtTurnEnd(t)
}

// CommitTurn implements loop.Committer.
func (t *attempt) CommitTurn() {
	w := t.w
	*t = attempt{gen: t.gen + 1}
	if len(w.spareTries) < maxSpare {
		w.spareTries = append(w.spareTries, t)
	}
}

// failureOf says what an error of a stream or of a connection means.
func failureOf(err error) failure {
	var d *dialError
	if errors.As(err, &d) {
		f := failure{kind: route.ConnectFailed, reason: reasonConnect, cause: d.Error()}
		if d.timeout {
			f.reason, f.cause = reasonTimeout, ""
		}
		return f
	}
	var s *message.StreamError
	if !errors.As(err, &s) {
		return failure{kind: route.ResetByPeer, reason: reasonTermination}
	}
	f := failure{kind: route.ResetByPeer, reason: reasonReset, unseen: s.Retryable, reused: s.Reused}
	switch {
	case errors.Is(err, message.ErrMalformed), errors.Is(err, message.ErrTooLarge):
		f.reason = reasonProtocol
	case s.Code == message.CodeRefusedStream && s.Remote:
		f.kind, f.reason = route.Refused, reasonRefused
	case errors.Is(err, message.ErrGone):
		f.reason = reasonTermination
	}
	return f
}
