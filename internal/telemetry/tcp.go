package telemetry

import "sync/atomic"

// Reporter says which side of a connection counts it.
type Reporter uint8

// The reporters.
const (
	Source Reporter = iota
	Destination
	Waypoint
	numReporters
)

// String returns the label value.
func (r Reporter) String() string {
	switch r {
	case Destination:
		return "destination"
	case Waypoint:
		return "waypoint"
	}
	return "source"
}

// Security is the label connection_security_policy.
type Security uint8

// The security policies. SameNode is not Istio's: the bytes never left the node, the identity was vouched for by the
// capture, and nothing was encrypted; so it must not be called mutual TLS.
const (
	Plaintext Security = iota
	MutualTLS
	SameNode
)

// String returns the label value.
func (s Security) String() string {
	switch s {
	case MutualTLS:
		return "mutual_tls"
	case SameNode:
		return "same_node"
	}
	return "unknown"
}

// Flag is how a connection ended (section 9.4 of the protocol).
type Flag uint8

// The flags.
const (
	OK            Flag = iota
	Denied             // by policy, at connect or later
	Connect            // upstream could not be reached, refused the tunnel, or failed while copying
	TLSFailure         // our TLS configuration or verification
	H2Handshake        // HTTP/2 error
	NetworkPolicy      // timeout to a tunnel port
	Identity           // certificate unavailable
	Revoked            // certificate revoked
	numFlags
)

var flagNames = [numFlags]string{
	"-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR", "CERT_REVOKED",
}

// String returns the label value.
func (f Flag) String() string { return flagNames[min(f, numFlags-1)] }

// Peer is one end of a connection. Empty fields are shown as "unknown".
type Peer struct {
	Workload          string // name of the owner, for example the Deployment
	Namespace         string
	CanonicalService  string
	CanonicalRevision string
	Principal         string // SPIFFE ID as a URI; at the source only if proven by TLS (M2)
	Cluster           string
	Region, Zone      string
}

// Labels is the label set of a connection, without the flag. It is a comparable key.
type Labels struct {
	Reporter         Reporter
	Security         Security
	Source, Dest     Peer
	Service          string // hostname
	ServiceNamespace string
	ServiceName      string

	// View, if not nil, changes how the metrics are shown; Extra are values for it, with zero bytes between.
	View  *View
	Extra string
}

// TCPSeries counts the connections of one label set. Safe from any goroutine. It is used between Acquire and Release.
type TCPSeries struct {
	labels  Labels
	holders use

	// atomic
	opened   atomic.Uint64
	received atomic.Uint64
	sent     atomic.Uint64
	closed   [numFlags]atomic.Uint64
}

// Opened counts a connection whose route was decided (M3).
func (s *TCPSeries) Opened() { s.opened.Add(1) }

// Received counts bytes from the connection's client to its server, whoever reports (M1).
func (s *TCPSeries) Received(n uint64) {
	if n > 0 {
		s.received.Add(n)
	}
}

// Sent counts bytes from the connection's server to its client (M1).
func (s *TCPSeries) Sent(n uint64) {
	if n > 0 {
		s.sent.Add(n)
	}
}

// Closed counts the end of a connection; with any flag but OK it failed. A forced drain closes with OK (M3).
func (s *TCPSeries) Closed(f Flag) { s.closed[min(f, numFlags-1)].Add(1) }

// Release gives the handle back; it must not be used after.
func (s *TCPSeries) Release() { s.holders.release() }

func (s *TCPSeries) use() *use { return &s.holders }

// tcpTable holds the connection metrics.
type tcpTable struct{ *table[Labels, *TCPSeries] }

func (t *tcpTable) init(maxSeries int, overflows Counter) {
	var over [numReporters]*TCPSeries
	for r := range over {
		over[r] = &TCPSeries{labels: overflowLabels(Reporter(r))}
	}
	t.table = newTable(maxSeries, overflows,
		func(l *Labels) (string, string, string) { return l.Source.Workload, l.Service, l.Dest.Workload },
		func(l *Labels) *TCPSeries { return &TCPSeries{labels: *l} },
		func(l *Labels) *TCPSeries { return over[min(l.Reporter, numReporters-1)] })
	for _, s := range over {
		t.extra = append(t.extra, s)
	}
}

// overflowLabels are those of what is beyond the bound.
func overflowLabels(r Reporter) Labels {
	const o = "overflow"
	p := Peer{Workload: o, Namespace: o, CanonicalService: o, CanonicalRevision: o, Principal: o, Cluster: o}
	return Labels{Reporter: r, Source: p, Dest: p, Service: o, ServiceNamespace: o, ServiceName: o}
}

// TCP returns the series of a label set, for one connection; the connection must Release it. It takes a read lock for the
// time of a map lookup and allocates only for a new set. Above the bound it returns the overflow series.
func (r *Registry) TCP(l *Labels) *TCPSeries { return r.tcp.acquire(l) }
