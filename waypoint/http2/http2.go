// Package http2 speaks HTTP/2 (RFC 9113) on a loop.Pipe, as a server and as a client: in cleartext with prior knowledge, or
// on whatever byte stream the Pipe is. WebSocket and other protocols come by extended CONNECT (RFC 8441). There is no server
// push, and priorities are ignored.
//
// # Writing
//
// Frames are gathered in one buffer, at most Limits.Output bytes of DATA, and written once at the end of the turn. A
// stream whose SendData took less than it was given is told of room in its turn: those that wait for the connection stand in
// a queue, and each gets 16 KiB at a time. Nothing is buffered for a stream that the peer does not let send.
//
// # Reading
//
// Body bytes go to the Taker from where they were read. What it does not take is queued, within the stream's window, which
// opens again only by what was taken. The connection's window opens by all that was received, so that a stalled stream does
// not stall the others, until Limits.Buffered bytes are queued.
//
// # Memory
//
// Streams, with the heads that they hold, come from a pool and go back to it in a turn after the one in which they ended. A
// connection without streams holds no buffers, and no tables until a header block has used them.
package http2

import "time"

// Limits bound what one peer can cost; zero is the documented default, and there is no "unlimited". A peer that goes beyond
// one gets GOAWAY with ENHANCE_YOUR_CALM, unless said otherwise.
type Limits struct {
	// HeadBytes bounds a head and a trailer: names, values, and 32 bytes for each field. It is announced as
	// MAX_HEADER_LIST_SIZE. Fields is the largest number of fields in either. A request beyond them is answered 431, a
	// response is a stream error. Defaults 60 KiB and 100.
	HeadBytes, Fields int
	// Window is how many bytes of one stream are received ahead of its taker, ConnWindow of all. Defaults 256 KiB and 1 MiB.
	Window, ConnWindow int
	// Buffered is how many bytes that takers have not taken are held without slowing down the connection as a whole. Default
	// 4 MiB.
	Buffered int
	// Output is how many bytes are gathered before streams have to wait, in bytes. Default 64 KiB. Replies is how many may be
	// there, with the answers that the peer has made us give, while it does not read. Default 4 MiB.
	Output, Replies int
	// Resets is how many streams in a row a peer may waste, and ResetsPerSecond how fast that is forgotten: streams that it
	// reset before they were answered, and streams that were reset here because it broke a rule (rapid reset,
	// CVE-2023-44487, and "made you reset", CVE-2025-8671). Defaults 1000 and 200.
	Resets, ResetsPerSecond int
	// Control is the same for frames that cost work and carry nothing: PING, PRIORITY, empty DATA, unknown types, frames of
	// streams that are gone. Streams and DATA give some of it back. Defaults 2000 and 200.
	Control, ControlPerSecond int
	// Settings is the same for SETTINGS frames, each of which may touch every stream. Defaults 100 and 10.
	Settings, SettingsPerSecond int
	// SlowHead is how long the preface with SETTINGS, and a header block, may take to come. Default 10 s.
	SlowHead time.Duration
	// Idle is how long a connection may be without streams before it is drained, output unread, and a stream without the
	// peer's permission to send (it is reset then). Default 5 min.
	Idle time.Duration
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.HeadBytes, 60<<10)
	def(&l.Fields, 100)
	def(&l.Window, 256<<10)
	def(&l.ConnWindow, 1<<20)
	l.Window, l.ConnWindow = min(l.Window, maxWindow), min(max(l.ConnWindow, defaultWindow), maxWindow)
	def(&l.Buffered, 4<<20)
	def(&l.Output, 64<<10)
	def(&l.Replies, 4<<20)
	def(&l.Resets, 1000)
	def(&l.ResetsPerSecond, 200)
	def(&l.Control, 2000)
	def(&l.ControlPerSecond, 200)
	def(&l.Settings, 100)
	def(&l.SettingsPerSecond, 10)
	if l.SlowHead <= 0 {
		l.SlowHead = 10 * time.Second
	}
	if l.Idle <= 0 {
		l.Idle = 5 * time.Minute
	}
	return l
}

// ServerConfig configures a ServerConn.
type ServerConfig struct {
	// MaxStreams is how many requests of one connection are served at a time; more are refused. Default 1024.
	MaxStreams uint32
	// Limits bound the peer.
	Limits Limits
}

// ClientConfig configures a ClientConn.
type ClientConfig struct {
	// MaxStreams is how many requests one connection carries at a time, if the server allows as many. Default 1024.
	MaxStreams uint32
	// Limits bound the peer.
	Limits Limits
}

const defaultMaxStreams = 1024

// bucket holds tokens; it fills at rate up to burst.
type bucket struct {
	tokens, burst, rate float64
	last                time.Duration
}

func newBucket(burst, rate int, now time.Duration) bucket {
	return bucket{tokens: float64(burst), burst: float64(burst), rate: float64(rate), last: now}
}

func (b *bucket) take(n int, now time.Duration) bool {
	b.give(b.rate * (now - b.last).Seconds())
	b.last = now
	b.tokens -= float64(n)
	return b.tokens >= 0
}

func (b *bucket) give(n float64) { b.tokens = min(b.burst, b.tokens+n) }

// spend takes tokens; the error ends the connection.
func (c *conn) spend(b *bucket, n int, what string) error {
	if b.take(n, c.l.Now()) {
		return nil
	}
	return connError(codeCalm, "too many "+what)
}
