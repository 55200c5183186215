package telemetry

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// Reporter says which side of a connection counts it.
type Reporter uint8

// The reporters.
const (
	Source Reporter = iota
	Destination
)

// String returns the label value.
func (r Reporter) String() string {
	if r == Destination {
		return "destination"
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
}

// TCPSeries counts the connections of one label set. Safe from any goroutine. It is used between Acquire and Release.
type TCPSeries struct {
	labels   Labels
	overflow bool

	// atomic
	refs     atomic.Int64 // connections that hold it
	lastUsed atomic.Int64 // unix nanoseconds of the last Release
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
func (s *TCPSeries) Release() {
	s.lastUsed.Store(time.Now().UnixNano())
	s.refs.Add(-1)
}

const tcpShards = 16

type tcpTable struct {
	seed      maphash.Seed
	max       int
	count     atomic.Int64
	overflows Counter
	shards    [tcpShards]struct {
		mu     sync.RWMutex
		series map[Labels]*TCPSeries
	}
	overflow [2]*TCPSeries // by reporter
}

func (t *tcpTable) init(maxSeries int, overflows Counter) {
	t.seed, t.max, t.overflows = maphash.MakeSeed(), maxSeries, overflows
	for i := range t.shards {
		t.shards[i].series = make(map[Labels]*TCPSeries)
	}
	const o = "overflow"
	p := Peer{Workload: o, Namespace: o, CanonicalService: o, CanonicalRevision: o, Principal: o, Cluster: o}
	for _, r := range []Reporter{Source, Destination} {
		t.overflow[r] = &TCPSeries{overflow: true, labels: Labels{
			Reporter: r, Source: p, Dest: p, Service: o, ServiceNamespace: o, ServiceName: o,
		}}
	}
}

// TCP returns the series of a label set, for one connection; the connection must Release it. It takes a read lock for the
// time of a map lookup and allocates only for a new set. Above the bound it returns the overflow series.
func (r *Registry) TCP(l *Labels) *TCPSeries { return r.tcp.acquire(l) }

func (t *tcpTable) acquire(l *Labels) *TCPSeries {
	// Few fields tell most sets apart; equality is checked in full by the map.
	h := maphash.String(t.seed, l.Source.Workload) ^ maphash.String(t.seed, l.Service)*3 ^ maphash.String(t.seed, l.Dest.Workload)*5
	sh := &t.shards[h%tcpShards]
	sh.mu.RLock()
	s := sh.series[*l]
	if s != nil {
		s.refs.Add(1)
	}
	sh.mu.RUnlock()
	if s != nil {
		return s
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s = sh.series[*l]; s == nil {
		if n := t.count.Add(1); t.max >= 0 && n > int64(t.max) {
			t.count.Add(-1)
			t.overflows.Inc()
			s = t.overflow[min(l.Reporter, Destination)]
			s.refs.Add(1)
			return s
		}
		s = &TCPSeries{labels: *l}
		sh.series[*l] = s
	}
	s.refs.Add(1)
	return s
}

// sweep forgets the series that nobody holds and that were last used before t0.
func (t *tcpTable) sweep(t0 time.Time) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for l, s := range sh.series {
			if s.refs.Load() == 0 && s.lastUsed.Load() < t0.UnixNano() {
				delete(sh.series, l)
				t.count.Add(-1)
			}
		}
		sh.mu.Unlock()
	}
}

// snapshot returns all series that exist now.
func (t *tcpTable) snapshot() []*TCPSeries {
	out := make([]*TCPSeries, 0, t.count.Load()+2)
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.RLock()
		for _, s := range sh.series {
			out = append(out, s)
		}
		sh.mu.RUnlock()
	}
	for _, s := range t.overflow {
		if s.opened.Load() > 0 {
			out = append(out, s)
		}
	}
	return out
}
