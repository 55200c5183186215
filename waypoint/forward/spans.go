package forward

import (
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/trace"
)

// spanState is an exchange's place in a trace.
type spanState struct {
	ctx    trace.Context
	parent [8]byte
	on     bool // there is a collector: ctx is ours, and endpoints are told
}

// beginSpan finds out which trace the request is of, and has endpoints be told.
func (x *exchange) beginSpan() {
	switch t := x.chain.Tracing; {
	case t == nil:
	case t.Sink == nil:
		t.Hide(&x.Req.Header)
	default:
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
	out := outboxOf[*trace.Span](x.w, t, t.Sink, &x.w.spans)
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
	out.add(s, s.Size())
}

// failedGRPC says that a status is the server's failure, as OpenTelemetry's conventions have it.
func failedGRPC(status string) bool {
	switch status {
	case "2", "4", "12", "13", "14", "15":
		return true
	}
	return false
}

// traceContext is the request's place in a trace: ours, or the caller's if there is no collector.
func (x *exchange) traceContext() trace.Context {
	if x.span.on {
		return x.span.ctx
	}
	c, _ := trace.Extract(&x.Req.Header, trace.W3C)
	return c
}

// appendTrace appends the ID of the request's trace.
func (x *exchange) appendTrace(dst []byte) ([]byte, bool) {
	c := x.traceContext()
	if !c.Valid() {
		return dst, false
	}
	return c.AppendTrace(dst), true
}
