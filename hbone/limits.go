package hbone

import "time"

// Limits bound what one peer can cost. The zero value is the documented defaults; there is no "unlimited". A peer that
// goes beyond one gets GOAWAY with ENHANCE_YOUR_CALM, unless said otherwise.
type Limits struct {
	// HeaderListBytes is announced as MAX_HEADER_LIST_SIZE and bounds the decoded header list (names, values, 32 bytes for
	// each field). A request beyond it is answered 431. Default 64 KiB for servers, 16 KiB for clients.
	HeaderListBytes int
	// BufferedBytes is the data of stalled readers of one connection that is held without slowing down the connection's
	// other streams. Beyond it the connection as a whole pushes back; at most 16 MiB more can then arrive. Default 64 MiB.
	BufferedBytes int
	// TotalBufferedBytes is the same for all connections of the Pool or Server. Default 256 MiB.
	TotalBufferedBytes int
	// Resets is how many streams in a row a peer may waste, and ResetsPerSecond how fast that is forgotten: streams that it
	// reset before they were answered, and streams that we reset because it broke a rule (rapid reset, CVE-2023-44487, and
	// "made you reset", CVE-2025-8671). Defaults 1000 and 200.
	Resets, ResetsPerSecond int
	// Control is the same for frames that cost us work and carry nothing: PING, PRIORITY, empty DATA, unknown types, frames
	// for streams that are gone. Defaults 2000 and 200.
	Control, ControlPerSecond int
	// Settings is the same for SETTINGS frames, each of which may touch every stream. Defaults 100 and 10.
	Settings, SettingsPerSecond int
	// ReplyBytes is the ciphertext that may wait for a peer that makes us answer and does not read. Default 4 MiB.
	ReplyBytes int
	// SlowHeader is how long the preface and SETTINGS, or a header block, may take to arrive. Default 10 s.
	SlowHeader time.Duration
}

func (l Limits) withDefaults(headerList int) Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.HeaderListBytes, headerList)
	def(&l.BufferedBytes, 64<<20)
	def(&l.TotalBufferedBytes, 256<<20)
	def(&l.Resets, 1000)
	def(&l.ResetsPerSecond, 200)
	def(&l.Control, 2000)
	def(&l.ControlPerSecond, 200)
	def(&l.Settings, 100)
	def(&l.SettingsPerSecond, 10)
	def(&l.ReplyBytes, 4<<20)
	if l.SlowHeader <= 0 {
		l.SlowHeader = 10 * time.Second
	}
	return l
}

// bucket holds tokens; it fills at rate up to burst.
type bucket struct {
	tokens, burst, rate float64
	last                time.Duration
}

func newBucket(burst, rate int, now time.Duration) bucket {
	return bucket{tokens: float64(burst), burst: float64(burst), rate: float64(rate), last: now}
}

func (b *bucket) take(n int, now time.Duration) bool {
	b.tokens = min(b.burst, b.tokens+b.rate*(now-b.last).Seconds())
	b.last = now
	b.tokens -= float64(n)
	return b.tokens >= 0
}

// buckets are one connection's.
type buckets struct{ resets, control, settings bucket }

func (l *Limits) buckets(now time.Duration) buckets {
	return buckets{
		resets:   newBucket(l.Resets, l.ResetsPerSecond, now),
		control:  newBucket(l.Control, l.ControlPerSecond, now),
		settings: newBucket(l.Settings, l.SettingsPerSecond, now),
	}
}

// spend takes tokens; the error ends the connection.
func (c *conn) spend(b *bucket, n int, what string) error {
	if b.take(n, c.l.Now()) {
		return nil
	}
	return connError(CodeEnhanceYourCalm, "too many "+what)
}
