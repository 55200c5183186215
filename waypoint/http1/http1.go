// Package http1 speaks HTTP/1.1 and 1.0 (RFC 9112) on a loop.Pipe, as a server and as a client.
//
// # Strictness
//
// A message that two readers could take apart in different ways is refused, with 400 and the end of the connection: bare
// CR or LF, folded lines, blanks around names, more than one length, a length beside Transfer-Encoding, any coding but a
// single "chunked". What is passed on is what was understood, and in one form only.
//
// # Order
//
// A connection carries one exchange at a time. Requests that a client sends ahead stay unread in the connection, so their
// answers come in order and nothing is buffered for them.
//
// # Bodies
//
// No body is buffered. Bytes go to the Taker from where they were read; what it does not take is kept, at most one read,
// and the pipe is not read until Resume. What is sent is gathered, at most 64 KiB, and written once at the end of the turn.
package http1

import (
	"time"
)

const (
	// readSize is what one read takes at most, in bytes; it bounds what a connection can have to keep.
	readSize = 64 << 10
	// readAhead is what is read of a client that need not be read now, so that its end is noticed.
	readAhead = 4 << 10
	// readBursts is how often a connection is read in one visit.
	readBursts = 4
	// maxOut is what may wait to be written, in bytes; flushAt is where the turn's end is not waited for.
	maxOut  = 64 << 10
	flushAt = 32 << 10
	// maxDrop is what is read and dropped of a request that was answered before its end.
	maxDrop = 256 << 10
	// maxInterim is how many 1xx responses a server may send before the final one.
	maxInterim = 32
	// maxExtensions is how many bytes of chunk extensions one message may have.
	maxExtensions = 8 << 10
	// linger is how long a connection that was ended here is read on, and the bytes dropped: a close with unread input would
	// take back what the peer has not read yet.
	linger = 2 * time.Second
)

// Limits bound what a peer can cost. Zero is the documented default.
type Limits struct {
	// HeadBytes is the longest head, and the longest trailer, in bytes. Default 60 KiB.
	HeadBytes int
	// Fields is the largest number of fields in either. Default 100.
	Fields int
	// SlowHead is how long a head may take from its first byte to its last. Default 10 s.
	SlowHead time.Duration
	// Idle is how long a connection may be without a request, a body without a byte, and output unread. Default 5 min.
	Idle time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.HeadBytes <= 0 {
		l.HeadBytes = 60 << 10
	}
	if l.Fields <= 0 {
		l.Fields = 100
	}
	if l.SlowHead <= 0 {
		l.SlowHead = 10 * time.Second
	}
	if l.Idle <= 0 {
		l.Idle = 5 * time.Minute
	}
	return l
}

// ServerConfig configures a Server.
type ServerConfig struct{ Limits Limits }

// ClientConfig configures a Client.
type ClientConfig struct{ Limits Limits }
