package forward

import (
	"strconv"
	"time"

	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/accesslog"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/expr"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/stats"
)

// labels makes l the labels of metrics of an exchange.
func (c *inbound) labels(cl *cluster.Cluster, h *cluster.Host, l *telemetry.Labels) {
	p := c.w.p
	view := p.cfg.Workloads.View()
	*l = telemetry.Labels{Reporter: telemetry.Waypoint, Security: telemetry.MutualTLS}
	l.Source = peerOf(view.Workload(p.cfg.Network, c.client.Addr.Addr()))
	l.Source.Principal = c.client.Principal
	if h != nil {
		e := h.Endpoint()
		l.Dest = peerOf(view.Workload(p.cfg.Network, e.Addr.Addr()))
		if l.Dest.Workload == "" {
			l.Dest.Workload, l.Dest.Namespace, l.Dest.Cluster = e.Workload.Name, e.Workload.Namespace, e.Workload.Cluster
			l.Dest.CanonicalService, l.Dest.CanonicalRevision = e.Workload.CanonicalName, e.Workload.CanonicalRevision
		}
	}
	if cl != nil && len(cl.Services) > 0 {
		s := &cl.Services[0]
		l.Service, l.ServiceName, l.ServiceNamespace = s.Host, s.Name, s.Namespace
	}
}

func peerOf(w *workload.Workload) telemetry.Peer {
	if w == nil {
		return telemetry.Peer{}
	}
	return telemetry.Peer{
		Workload: w.WorkloadName, Namespace: w.Namespace, CanonicalService: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Principal: w.ID.String(), Cluster: w.Cluster,
	}
}

// seriesKey is what the labels of a request's metrics follow from, on one connection.
type seriesKey struct {
	cluster *cluster.Cluster
	host    *cluster.Host
	view    *workload.View
	stats   *stats.Config
	flags   filter.Flags
	code    int
	isGRPC  bool
	grpc    string
}

// countedSeries is a series that is held for the next requests.
type countedSeries struct {
	key    seriesKey
	series *telemetry.HTTPSeries
}

// maxCounted is the number of series that a connection holds.
const maxCounted = 4

// counter is the series that counts a request. It is looked up anew only if something has changed: labels are many, and most
// requests of a connection have the same.
func (c *inbound) counter(k *seriesKey, l *telemetry.HTTPLabels) *telemetry.HTTPSeries {
	for i := range c.counted {
		if c.counted[i].key == *k {
			return c.counted[i].series
		}
	}
	c.labels(k.cluster, k.host, &l.Labels)
	l.Protocol, l.Flags, l.Code, l.GRPC = "http", k.flags.String(), k.code, ""
	if k.isGRPC {
		l.Protocol, l.GRPC = "grpc", k.grpc
	}
	if k.stats != nil {
		k.stats.Apply(l, nil)
	}
	s := c.w.p.cfg.Metrics.AcquireHTTP(l)
	if len(c.counted) == maxCounted {
		c.counted[c.nextCounted].series.Release()
		c.counted[c.nextCounted] = countedSeries{*k, s}
		c.nextCounted = (c.nextCounted + 1) % maxCounted
		return s
	}
	c.counted = append(c.counted, countedSeries{*k, s})
	return s
}

// uncount lets the series go.
func (c *inbound) uncount() {
	for _, s := range c.counted {
		s.series.Release()
	}
	c.counted = nil
}

// record counts and logs a request that is over.
func (x *exchange) record() {
	took := x.w.loop.Now() - x.begun
	to := x.cluster
	if a := x.RouteAction(); to == nil && a != nil {
		to = x.snap.Clusters.Get(a.ClusterName(x.Req)) // an answer of ours: the service that was meant
	}
	k := seriesKey{cluster: to, host: x.host, view: x.w.p.cfg.Workloads.View(), stats: x.chain.Stats, flags: x.Flags, isGRPC: x.asked.on}
	if x.Resp != nil {
		k.code = x.Resp.Status
	}
	if k.isGRPC {
		k.grpc = x.grpcAnswer()
	}
	q := telemetry.Request{Duration: took, Received: x.received, Sent: x.sent, Messages: x.asked.n, Answers: x.told.n}
	if k.stats == nil || k.stats.Fixed() {
		x.in.counter(&k, &x.w.labels).Count(&q)
	} else {
		x.countByValues(&k, &q)
	}
	x.endSpan(took)
	if len(x.chain.Logs) > 0 {
		e := &x.w.entry
		*e = accesslog.Entry{Context: x.Context(), Exchange: &x.Exchange, Status: k.code, GRPC: k.grpc, Duration: took, Rand: x.Rand.Uint64()}
		x.in.log(x.chain.Logs, e)
		*e = accesslog.Entry{}
	}
}

// countByValues counts a request with labels that are told from the request itself.
func (x *exchange) countByValues(k *seriesKey, q *telemetry.Request) {
	l := telemetry.HTTPLabels{Protocol: "http", Flags: k.flags.String(), Code: k.code}
	x.in.labels(k.cluster, k.host, &l.Labels)
	if k.isGRPC {
		l.Protocol, l.GRPC = "grpc", k.grpc
	}
	k.stats.Apply(&l, &expr.Env{Exchange: &x.Exchange, Status: k.code, GRPC: k.grpc, Duration: q.Duration})
	x.w.p.cfg.Metrics.HTTP(&l, q)
}

// An open connection's bytes are counted every reportTime, and more seldom while nothing moves, up to Istio's 15 s.
const (
	reportTime = 5 * time.Second
	restTime   = 15 * time.Second
)

// report counts the connection as opened, once its endpoint is known, and what has passed since the last report.
func (s *stream) report() {
	c := s.in
	if s.series == nil {
		var l telemetry.Labels
		c.labels(s.cluster, s.host, &l)
		if m := s.tcp.Stats; m != nil {
			h := telemetry.HTTPLabels{Labels: l}
			m.Apply(&h, &expr.Env{Exchange: &s.Exchange, Duration: c.w.loop.Now() - s.begun})
			l = h.Labels
		}
		s.series = c.w.p.cfg.Metrics.TCP(&l)
		s.series.Opened()
	}
	if s.relay != nil {
		s.received, s.sent = s.relay.a.moved, s.relay.b.moved
	}
	s.series.Received(uint64(s.received - s.toldReceived))
	s.series.Sent(uint64(s.sent - s.toldSent))
	s.toldReceived, s.toldSent = s.received, s.sent
}

type reportDue stream

// Expired implements loop.TimerHandler: it is time for a report.
func (d *reportDue) Expired(t *loop.Timer) {
	s := (*stream)(d)
	if s.in.over {
		return
	}
	before := s.toldReceived + s.toldSent
	s.report()
	s.pace = min(2*s.pace, restTime)
	if s.toldReceived+s.toldSent != before {
		s.pace = reportTime
	}
	s.in.w.loop.Start(t, s.pace, d)
}

// record counts and logs a connection that is over.
func (s *stream) record(error) {
	c := s.in
	s.reports.Stop()
	s.report()
	flag := telemetry.OK
	switch {
	case s.Flags&filter.Unauthorized != 0:
		flag = telemetry.Denied
	case s.Flags != 0:
		flag = telemetry.Connect
	}
	s.series.Closed(flag)
	s.series.Release()
	c.log(s.tcp.Logs, &accesslog.Entry{Context: s.Context(), Exchange: &s.Exchange, Duration: c.w.loop.Now() - s.begun, Rand: s.Rand.Uint64()})
}

// appendHost are the operators about an endpoint.
func appendHost(dst []byte, h *cluster.Host, operator string) ([]byte, bool) {
	e := h.Endpoint()
	switch operator {
	case "UPSTREAM_HOST_NAME":
		if e.Hostname != "" {
			return append(dst, e.Hostname...), true
		}
		return append(dst, h.String()...), true
	case "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		return e.Addr.Addr().AppendTo(dst), e.Addr.IsValid()
	case "UPSTREAM_REMOTE_PORT":
		return strconv.AppendUint(dst, uint64(e.Addr.Port()), 10), e.Addr.IsValid()
	}
	return dst, false
}

// log writes an entry to the logs that want it.
func (c *inbound) log(logs []*accesslog.Log, e *accesslog.Entry) {
	w := c.w
	for _, l := range logs {
		switch {
		case !l.Wants(e):
		case l.Export != nil:
			if o := outboxOf[*logspb.LogRecord](w, l.Export, l.Export, &w.entries); o.room() {
				r := l.Export.Record(e, traceOf(e))
				o.add(r, proto.Size(r))
			}
		default:
			w.line = l.Append(w.line[:0], e)
			out := w.p.cfg.Lines
			if l.Errors && w.p.cfg.ErrorLines != nil {
				out = w.p.cfg.ErrorLines
			}
			out.Line(w.line)
		}
	}
}

// traceOf is the ID of the trace that an entry is of; nil: none.
func traceOf(e *accesslog.Entry) []byte {
	if x, ok := e.Context.Values.(*exchange); ok {
		if c := x.traceContext(); c.Valid() {
			return c.Trace[:]
		}
	}
	return nil
}

// AppendValue implements route.Values for a connection.
func (s *stream) AppendValue(dst []byte, operator, arg string) ([]byte, bool) {
	switch operator {
	case "BYTES_RECEIVED":
		return strconv.AppendInt(dst, s.received, 10), true
	case "BYTES_SENT":
		return strconv.AppendInt(dst, s.sent, 10), true
	case "DURATION":
		return strconv.AppendInt(dst, (s.in.w.loop.Now() - s.begun).Milliseconds(), 10), true
	}
	return s.in.appendValue(dst, &s.Exchange, s.cluster, s.host, operator, arg)
}

// appendValue are the operators that requests and connections share.
func (c *inbound) appendValue(dst []byte, x *filter.Exchange, cl *cluster.Cluster, h *cluster.Host, operator, arg string) ([]byte, bool) {
	switch operator {
	case "START_TIME":
		return appendTime(dst, x.Now, arg), true
	case "EMIT_TIME":
		return appendTime(dst, time.Now(), arg), true
	case "RESPONSE_FLAGS":
		return x.Flags.Append(dst), true
	case "RESPONSE_CODE_DETAILS":
		return appendText(dst, x.Details)
	case "UPSTREAM_TRANSPORT_FAILURE_REASON":
		return appendText(dst, x.Transport)
	case "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW":
		if cl == nil {
			return dst, false
		}
		return append(dst, cl.Name...), true
	case "UPSTREAM_HOST", "UPSTREAM_REMOTE_ADDRESS":
		if h == nil {
			return dst, false
		}
		return append(dst, h.String()...), true
	case "UPSTREAM_HOST_NAME", "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "UPSTREAM_REMOTE_PORT":
		if h == nil {
			return dst, false
		}
		return appendHost(dst, h, operator)
	case "DOWNSTREAM_REMOTE_PORT", "DOWNSTREAM_DIRECT_REMOTE_PORT":
		return strconv.AppendUint(dst, uint64(c.client.Addr.Port()), 10), c.client.Addr.IsValid()
	case "DOWNSTREAM_TLS_VERSION":
		return append(dst, "TLSv1.3"...), true // of tunnels nothing else
	case "ENVIRONMENT":
		v, ok := c.w.p.cfg.Env(arg)
		return append(dst, v...), ok
	case "HOSTNAME":
		return appendText(dst, c.w.p.cfg.Hostname)
	case "DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS":
		return appendAddr(dst, c.client.Addr)
	case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT":
		return c.client.Addr.Addr().AppendTo(dst), true
	case "DOWNSTREAM_LOCAL_ADDRESS":
		return appendAddr(dst, c.dest)
	case "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":
		return c.dest.Addr().AppendTo(dst), true
	case "DOWNSTREAM_LOCAL_PORT":
		return strconv.AppendUint(dst, uint64(c.dest.Port()), 10), true
	case "DOWNSTREAM_PEER_URI_SAN":
		return appendText(dst, c.client.Principal)
	case "DOWNSTREAM_LOCAL_URI_SAN":
		return appendText(dst, c.w.p.principal)
	case "REQUESTED_SERVER_NAME":
		return appendText(dst, c.serverName)
	case "FILTER_STATE":
		return c.appendState(dst, x, h, arg)
	case "DYNAMIC_METADATA":
		return appendMetadata(dst, x, arg)
	}
	return dst, false
}
