package forward

import (
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/trace"
)

const (
	// maxSpans is how many spans a worker holds for a collector; more are dropped, and counted.
	maxSpans = 4096
	// spanBatch is how many spans a call carries at most.
	spanBatch = 512
	// spanDelay is how long a span waits for others.
	spanDelay = time.Second
	// warnSpans is the least time between two lines about a collector that does not answer.
	warnSpans = 10 * time.Second
)

// spanState is an exchange's place in a trace.
type spanState struct {
	ctx    trace.Context
	parent [8]byte
	on     bool // there is a collector: ctx is ours, and endpoints are told
}

// beginSpan finds out which trace the request is of, and has endpoints be told.
func (x *exchange) beginSpan() {
	if t := x.chain.Tracing; t != nil && t.Sink != nil {
		x.span.ctx, x.span.parent = t.Begin(&x.Req.Header, x.chain.SampleByRequestID, x.Rand.Uint64)
		x.span.on = true
	}
}

// endSpan tells the collector.
func (x *exchange) endSpan(took time.Duration) {
	if !x.span.on || !x.span.ctx.Sampled {
		return
	}
	t := x.chain.Tracing
	out := x.w.outbox(t)
	if !out.room() {
		return
	}
	s := &trace.Span{Context: x.span.ctx, Parent: x.span.parent, Name: "ingress", Start: x.Now, End: x.Now.Add(took)}
	s.State = strings.Clone(s.State)
	if r := x.Route(); r != nil && r.Operation != "" {
		s.Name = r.Operation
	}
	p := x.w.p
	s.Add("node_id", p.cfg.Node)
	t.Describe(s, &x.Exchange, p.cfg.Env)
	name := "-"
	if x.cluster != nil {
		name = x.cluster.Name
	}
	s.Add("upstream_cluster", name)
	s.Add("upstream_cluster.name", name)
	if x.host != nil {
		s.Add("upstream_address", x.host.String())
	}
	s.Add("request_size", strconv.FormatInt(x.received, 10))
	s.Add("response_size", strconv.FormatInt(x.sent, 10))
	if v := x.grpcAnswer(); v != "" {
		s.Add("grpc.status_code", strings.Clone(v))
		s.Failed = s.Failed || failedGRPC(v)
	}
	out.add(s)
}

// failedGRPC says that a status is the server's failure, as OpenTelemetry's conventions have it.
func failedGRPC(status string) bool {
	switch status {
	case "2", "4", "12", "13", "14", "15":
		return true
	}
	return false
}

// appendTrace appends the ID of the request's trace: ours, or the caller's if there is no collector.
func (x *exchange) appendTrace(dst []byte) ([]byte, bool) {
	c := x.span.ctx
	if !x.span.on {
		c, _ = trace.Extract(&x.Req.Header, trace.W3C)
	}
	if !c.Valid() {
		return dst, false
	}
	return c.AppendTrace(dst), true
}

// outbox holds a worker's spans for one collector. One call at a time is under way; requests never wait for it.
type outbox struct {
	w     *worker
	cfg   *trace.Config
	spans []*trace.Span
	timer loop.Timer
	busy  bool
}

// outbox is the one for the collector of t.
func (w *worker) outbox(t *trace.Config) *outbox {
	o := w.outboxes[t]
	if o == nil {
		o = &outbox{w: w, cfg: t}
		if w.outboxes == nil {
			w.outboxes = map[*trace.Config]*outbox{}
		}
		w.outboxes[t] = o
	}
	return o
}

func (o *outbox) room() bool {
	if len(o.spans) < maxSpans {
		return true
	}
	o.w.p.spans.WithLabelValues("dropped").Inc()
	return false
}

func (o *outbox) add(s *trace.Span) {
	o.spans = append(o.spans, s)
	switch {
	case o.busy:
	case len(o.spans) >= spanBatch || o.w.draining:
		o.send()
	case len(o.spans) == 1:
		o.w.loop.Start(&o.timer, spanDelay, o)
	}
}

// Expired implements loop.TimerHandler.
func (o *outbox) Expired(*loop.Timer) {
	if !o.busy {
		o.send()
	}
}

// send tells the collector of what there is. An outbox that is empty is forgotten: its configuration may be gone.
func (o *outbox) send() {
	w := o.w
	o.timer.Stop()
	if len(o.spans) == 0 {
		delete(w.outboxes, o.cfg)
		return
	}
	n := min(len(o.spans), spanBatch)
	c, err := o.cfg.Sink.Call(o.spans[:n])
	o.spans = append(o.spans[:0:0], o.spans[n:]...)
	if err != nil {
		o.failed(n, err)
		return
	}
	o.busy = true
	w.open.Add(1) // a waypoint that drains waits for it
	w.call(w.p.cfg.Snapshot.Load(), c, func(a *filter.CallAnswer, err error) {
		w.open.Add(-1)
		o.busy = false
		if err == nil {
			err = o.cfg.Sink.Check(a)
		}
		if err != nil {
			o.failed(n, err)
		} else {
			w.p.spans.WithLabelValues("sent").Add(float64(n))
		}
		if len(o.spans) > 0 && len(o.spans) < spanBatch && !w.draining {
			w.loop.Start(&o.timer, spanDelay, o)
			return
		}
		o.send()
	})
}

func (o *outbox) failed(n int, err error) {
	o.w.p.spans.WithLabelValues("failed").Add(float64(n))
	if now := o.w.loop.Now(); o.w.warnedSpans == 0 || now-o.w.warnedSpans > warnSpans {
		o.w.warnedSpans = now
		o.w.p.log.Warn("spans lost: the collector did not take them", "spans", n, "error", err)
	}
}

// flushSpans sends what is held back.
func (w *worker) flushSpans() {
	w.draining = true
	for _, o := range w.outboxes {
		if !o.busy {
			o.send()
		}
	}
}
