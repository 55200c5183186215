// Package hbone carries TCP connections as CONNECT streams of HTTP/2 connections over mutual TLS: Istio's HBONE, as
// spoken by ztunnel and Envoy. A Pool opens streams, a Server accepts them.
//
// # Ownership
//
// A Pool or Server, its connections and all of their streams belong to one loop (internal/loop). Unless a comment says
// "any goroutine", everything here may be called only on that loop, and nothing blocks. Programs use one Pool and one
// Server per loop; they share nothing. What needs a goroutine (dialling, handshakes, code that wants a net.Conn) comes in
// by closures: PoolConfig.Dial answers from any goroutine, and Stream.NetConn gives a connection for goroutines.
//
// Close the Pool and the Server before their loop ends: streams are told only by a loop that runs.
//
// Callbacks (Handler, OpenHandler, JoinHandler) are never made from inside the call that caused them, nor while bytes of
// a connection are being parsed: a connection gathers what it has to tell and tells it at the end of the turn. So a
// callback may call anything.
//
// # The pieces
//
//   - frames.go, hpack.go: the codec. Frames are parsed as they come, DATA payload is never gathered.
//   - conn.go, control.go: one HTTP/2 connection, either role: reading, control frames, the batch that is written once
//     per turn (group commit).
//   - stream.go, flow.go: the state of a stream and the two levels of flow control.
//   - join.go, pipe.go, netconn.go: the three faces of a stream, a relay and a byte stream that stay on the loop and a
//     net.Conn.
//   - pool.go, client.go and server.go: the roles. keepalive.go: pings, idle time, retirement. goaway.go: drain.
//   - limits.go: what a peer may do before it is sent away.
//
// # Flow control
//
// Windows are ztunnel's: 4 MiB for a stream, 16 MiB for a connection. A stream's credit is returned only for bytes that
// its application has taken, so that a stalled reader stops its own sender and holds at most 4 MiB. The connection's
// credit is returned also for bytes that wait for a stalled reader, up to a budget of memory (Limits.BufferedBytes), and
// at once for bytes of streams that no longer exist: so one slow stream never uses up the window that the others share.
// Only when the budget is spent does the connection as a whole push back.
package hbone

import (
	"net/netip"
	"time"
)

// Windows and sizes that are announced to every peer, in bytes (as ztunnel does).
const (
	streamWindow = 4 << 20
	connWindow   = 16 << 20
	maxFrameSize = 1 << 20
)

// Key says which connections a stream may share. It is comparable.
type Key struct {
	// Source is the identity that the connection is opened with.
	Source string
	// Dest is the canonical form of the identities expected from the peer.
	Dest string
	// Addr is what is dialled.
	Addr netip.AddrPort
	// SourceIP is the address that is dialled from, if it matters.
	SourceIP netip.Addr
}

// HeaderField is one header. Names are lower case.
type HeaderField struct{ Name, Value string }

// Request is a CONNECT request. It is not changed after it was passed on.
type Request struct {
	// Authority is the target, host:port (ParseAuthority).
	Authority string
	// Header are the other fields, in order.
	Header []HeaderField
}

// Get returns the value of the first field of a name, or "".
func (r *Request) Get(name string) string { return get(r.Header, name) }

// Response is the answer to a CONNECT request.
type Response struct {
	// Status is the HTTP status; 200 opens the tunnel.
	Status int
	// Header are the other fields, in order.
	Header []HeaderField
}

// Get returns the value of the first field of a name, or "".
func (r *Response) Get(name string) string { return get(r.Header, name) }

func get(h []HeaderField, name string) string {
	for i := range h {
		if h[i].Name == name {
			return h[i].Value
		}
	}
	return ""
}

// KeepAlive says how a silent peer is found out. The zero value is ztunnel's.
type KeepAlive struct {
	// Interval is how long nothing must have arrived before a PING is sent. Default 10 s; negative: no pings.
	Interval time.Duration
	// Timeout is how long nothing at all arrives after a PING before the peer is taken for dead. Default 20 s.
	Timeout time.Duration
}

func (k KeepAlive) withDefaults() KeepAlive {
	if k.Interval == 0 {
		k.Interval = 10 * time.Second
	}
	if k.Timeout <= 0 {
		k.Timeout = 20 * time.Second
	}
	return k
}

// defaultRetireBytes is the plaintext sealed after which a connection is replaced. crypto/tls (1.26) answers a peer's
// KeyUpdate and never begins one, and AES-GCM is safe for about three times as much (2^24.5 full records, RFC 8446 section
// 5.5). At twice the figure the connection ends with the streams that are still on it.
const defaultRetireBytes = 128 << 30

// ConnStats are figures of the connections of a Pool or Server.
type ConnStats struct {
	// Conns and Streams are open now.
	Conns, Streams int
	// Draining is the number of those connections that take no new streams.
	Draining int
	// Buffered is received and not yet taken by an application; Queued is ciphertext that a peer has not taken. Bytes.
	Buffered, Queued int
}
