package proxy

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"

	"net/netip"
)

// record is what a flow reports: metrics from the moment that its route is decided (M3), one log line at its end.
type record struct {
	series *telemetry.TCPSeries
}

// open counts the flow. Its ends, service and security must be known.
func (r *record) open(f *flow) {
	if r.series != nil {
		return
	}
	l := &f.w.labels
	*l = telemetry.Labels{Security: f.security.label(), Source: f.sourcePeer(), Dest: peerOf(f.destination, f.destinationID)}
	if f.direction == inboundDir {
		l.Reporter = telemetry.Destination
	}
	if f.destination != nil && l.Dest.Principal == "" {
		l.Dest.Principal = principal(f.destination.ID) // M2: from the record even in plaintext
	}
	if s := f.service; s != nil {
		l.Service, l.ServiceName, l.ServiceNamespace = s.Hostname, s.Name, s.Namespace
	}
	r.series = f.w.p.cfg.Metrics.TCP(l)
	r.series.Opened()
}

// restart counts the end of an attempt; open may be called again.
func (r *record) restart(err error) {
	if r.series == nil {
		return
	}
	r.series.Closed(flagOf(err))
	r.series.Release()
	r.series = nil
}

// close counts and logs the end. sent and received are bytes from the connection's client to its server and back.
func (r *record) close(f *flow, err error, fromClient, toClient int64) {
	p := f.w.p
	if r.series == nil {
		p.refused(f, err)
		return
	}
	r.series.Received(uint64(fromClient))
	r.series.Sent(uint64(toClient))
	r.series.Closed(flagOf(err))
	r.series.Release()
	r.series = nil
	if !p.cfg.AccessLog.Enabled(telemetry.Complete, err != nil) {
		return
	}
	rec := telemetry.Record{
		Time: time.Now(), Src: f.peer, Dst: f.reportedDst(), DstHBONE: f.authority,
		Direction: f.direction.String(), Duration: f.w.loop.Now() - f.started,
		BytesSent: uint64(fromClient), BytesRecv: uint64(toClient),
	}
	if f.direction == inboundDir { // seen from the reporter (M6)
		rec.BytesSent, rec.BytesRecv = rec.BytesRecv, rec.BytesSent
	}
	if f.security == sameNode {
		rec.Via = "same-node"
	}
	if err != nil {
		rec.Err = err.Error()
	}
	if w := f.source; w != nil {
		rec.SrcWorkload, rec.SrcNamespace, rec.SrcCluster = w.Name, w.Namespace, w.Cluster
	} else if c := f.claimed; c != nil {
		rec.SrcWorkload, rec.SrcNamespace, rec.SrcCluster = c.WorkloadName, c.Namespace, c.Cluster
	}
	if w := f.destination; w != nil {
		rec.DstWorkload, rec.DstNamespace, rec.DstCluster = w.Name, w.Namespace, w.Cluster
	}
	if f.security != plaintext {
		rec.SrcIdentity, rec.DstIdentity = principal(f.sourceID), principal(f.destinationID)
	}
	if f.service != nil {
		rec.DstService = f.service.Hostname
	}
	p.cfg.AccessLog.Write(&rec)
}

// reportedDst is the address really dialled by the source, and the one connected to at the destination.
func (f *flow) reportedDst() netip.AddrPort {
	if f.direction == inboundDir && f.security == mutualTLS {
		return f.orig
	}
	return f.actual
}

// refused logs a connection that ended before its route was decided.
func (p *Proxy) refused(f *flow, err error) {
	p.earlyDenial(f.direction, f.peer, f.orig, err)
}

// earlyDenial logs a connection that never meant anything: its pod is not known, its handshake failed. Any goroutine.
func (p *Proxy) earlyDenial(d direction, src, dst netip.AddrPort, err error) {
	if !p.cfg.AccessLog.Enabled(telemetry.Refused, true) {
		return
	}
	rec := telemetry.Record{Event: telemetry.Refused, Time: time.Now(), Src: src, Dst: dst, Direction: d.String()}
	if err != nil {
		rec.Err = err.Error()
	}
	p.cfg.AccessLog.Write(&rec)
}

// reportDryRun logs what policies would have done that are not enforced (I11, I19).
func (w *worker) reportDryRun(d rbac.Decision, a *rbac.Attributes) {
	if d.DryRunDeny == nil && d.DryRunAllow == nil && !d.DryRunNoMatch {
		return
	}
	log := w.p.log.Debug
	if w.p.cfg.LogPolicies {
		log = w.p.log.Info
	}
	switch {
	case d.DryRunDeny != nil:
		log("dry run: would be denied", "policy", d.DryRunDeny.Key, "peer", a.SourceIP, "id", a.Source, "dst", a.Dest)
	case d.DryRunAllow != nil:
		log("dry run: would be allowed", "policy", d.DryRunAllow.Key, "peer", a.SourceIP, "id", a.Source, "dst", a.Dest)
	default:
		log("dry run: would be denied, no policy allows it", "peer", a.SourceIP, "id", a.Source, "dst", a.Dest)
	}
}

func (d direction) String() string {
	if d == inboundDir {
		return "inbound"
	}
	return "outbound"
}

func (s security) label() telemetry.Security {
	switch s {
	case mutualTLS:
		return telemetry.MutualTLS
	case sameNode:
		return telemetry.SameNode
	}
	return telemetry.Plaintext
}

func principal(id spiffe.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// sourcePeer describes the source; its principal only where it was proven (M2).
func (f *flow) sourcePeer() telemetry.Peer {
	id := f.sourceID
	if f.security == plaintext {
		id = spiffe.ID{}
	}
	c := f.claimed
	if f.source != nil || c == nil {
		return peerOf(f.source, id)
	}
	return telemetry.Peer{
		Workload: c.WorkloadName, Namespace: c.Namespace, CanonicalService: c.ServiceName, CanonicalRevision: c.Revision,
		Principal: principal(id), Cluster: c.Cluster, Region: c.Region, Zone: c.Zone,
	}
}

func peerOf(w *workload.Workload, id spiffe.ID) telemetry.Peer {
	if w == nil {
		return telemetry.Peer{Principal: principal(id)}
	}
	return telemetry.Peer{
		Workload: w.WorkloadName, Namespace: w.Namespace, CanonicalService: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Principal: principal(id), Cluster: w.Cluster, Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
}
