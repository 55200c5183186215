// Package http1 speaks HTTP/1.1 and 1.0 (RFC 9112) on a loop.Pipe, as a server and as a client.
//
// # Strictness
//
// A message that two readers could take apart in different ways is refused, with 400 and the end of the connection: bare
// CR or LF, folded lines, blanks around names, more than one length, a length beside Transfer-Encoding, any coding but a
// single "chunked" (ecosystem.md B9 to B13). What is passed on is what was understood, in one form only: names in lower
// case, one host, one framing, no field that belongs to the connection.
//
// # Order
//
// A connection carries one exchange at a time. Requests that a client sends ahead stay unread in the connection, so their
// answers come in order and nothing is buffered for them.
//
// # Bodies
//
// No body is buffered. Bytes go to the Taker from where they were read; what it does not take is kept, at most one read,
// and the pipe is not read until Resume. What is sent is gathered, at most 64 KiB, and written once at the end of the
// turn; large pieces are written at once from where they are, together with what waits.
//
// # Files
//
// parse.go, fields.go: heads. body.go: bodies that come in. write.go: heads and ends that go out. conn.go: reading, and a
// connection's life. output.go: writing. server.go, client.go: the two roles.
package http1

import "time"

const (
	// readSize is what one read takes at most, in bytes; it bounds what a connection can have to keep.
	readSize = 64 << 10
	// readAhead is what is read of a peer that need not be read now, so that its end is noticed.
	readAhead = 4 << 10
	// readBursts is how often a connection is read in one visit.
	readBursts = 4
	// maxOut is what may wait to be written, in bytes.
	maxOut = 64 << 10
	// directMin is the size of a piece that is worth a write of its own, in bytes.
	directMin = 16 << 10
	// maxDrop is what is read and dropped of a request that was answered before its end.
	maxDrop = 256 << 10
	// maxInterim is how many 1xx responses a server may send before the final one (B34).
	maxInterim = 32
	// maxExtensions is how many bytes of chunk extensions one message may have (B10).
	maxExtensions = 8 << 10
	// maxHead is the largest MaxHead: a head and a read have to fit into the loop's buffer.
	maxHead = 128 << 10
	// linger is how long a connection that was ended here is read on, and the bytes dropped: a close with unread input would
	// take back what the peer has not read yet.
	linger = 2 * time.Second
	// flushTimeout is how long a connection that ends here waits for a peer that reads nothing.
	flushTimeout = 30 * time.Second
)

// ServerConfig configures a ServerConn. Zero is the documented default; a negative duration means never.
type ServerConfig struct {
	// MaxHead is the longest head, and the longest trailer, in bytes. Default 60 KiB, at most 128 KiB.
	MaxHead int
	// MaxFields is the largest number of fields in either. Default 100.
	MaxFields int
	// HeadTimeout is how long a head may take from its first byte to its last; then the client gets 408. Default 10 s.
	HeadTimeout time.Duration
	// IdleTimeout is how long the connection may be without a request. Default 5 min.
	IdleTimeout time.Duration
	// StallTimeout is how long a body that is waited for may be without a byte, and an answer unread. Tunnels are exempt.
	// Default 5 min.
	StallTimeout time.Duration
	// DrainIdle is how long an idle connection waits, when it is drained, for one more request: one may be under way, and
	// would be lost with the connection. Default 1 s.
	DrainIdle time.Duration
}

// ClientConfig configures a ClientConn. Zero is the documented default; a negative duration means never.
type ClientConfig struct {
	// MaxHead is the longest head, and the longest trailer, in bytes. Default 60 KiB, at most 128 KiB.
	MaxHead int
	// MaxFields is the largest number of fields in either. Default 100.
	MaxFields int
	// IdleTimeout is how long the connection is kept without a request. Default 1 h.
	IdleTimeout time.Duration
}

// limits are what both roles have in common, with the defaults filled in. A duration of 0 means never.
type limits struct {
	head, fields            int
	slowHead, idle, stalled time.Duration
}

func count(n, def, most int) int {
	if n <= 0 {
		return def
	}
	return min(n, most)
}

func duration(d, def time.Duration) time.Duration {
	switch {
	case d < 0:
		return 0
	case d == 0:
		return def
	}
	return d
}

func (c *ServerConfig) limits() limits {
	return limits{
		head: count(c.MaxHead, 60<<10, maxHead), fields: count(c.MaxFields, 100, 1<<16),
		slowHead: duration(c.HeadTimeout, 10*time.Second), idle: duration(c.IdleTimeout, 5*time.Minute),
		stalled: duration(c.StallTimeout, 5*time.Minute),
	}
}

func (c *ClientConfig) limits() limits {
	return limits{
		head: count(c.MaxHead, 60<<10, maxHead), fields: count(c.MaxFields, 100, 1<<16),
		idle: duration(c.IdleTimeout, time.Hour),
	}
}
