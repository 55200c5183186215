package hbone

import (
	"crypto/tls"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// defaultTick is how often a connection without pings looks at itself.
const defaultTick = 10 * time.Second

func (c *conn) startTick() {
	d := c.sh.keepAlive.Interval
	if d < 0 {
		d = defaultTick
	}
	if !c.expires.IsZero() && !c.draining {
		d = min(d, max(time.Until(c.expires), time.Millisecond))
	}
	if c.client && c.peerGone {
		d = min(d, awayWait)
	}
	c.l.Start(&c.tick, d, c)
}

// Expired implements loop.TimerHandler.
func (c *conn) Expired(*loop.Timer) {
	switch {
	case c.lingering:
		c.fd.Close()
	case !c.dead:
		c.lookAround(c.l.Now())
		if !c.dead {
			c.startTick()
		}
	}
}

// lookAround does all that depends on time. It is called every KeepAlive.Interval, or
// sooner while something is due.
func (c *conn) lookAround(now time.Duration) {
	slow := c.sh.limits.SlowHeader
	switch {
	case !c.settled && now-c.born >= slow:
		c.sendAway(connError(CodeSettingsTimeout, "no preface"))
		return
	case c.block.open && now-c.blockSince >= slow:
		c.sendAway(connError(CodeEnhanceYourCalm, "slow header block"))
		return
	}
	if !c.probe(now) {
		return
	}
	c.askElsewhere(now)
	if c.draining && !c.client && now > c.drainAt {
		c.lastGoAway() // whether or not the PING has come back
	}
	if r := c.sh.retireBytes; r > 0 && c.tr.BytesSealed() >= r {
		if c.tr.BytesSealed() >= 2*r { // a stream that goes on and on
			c.writeGoAway(c.lastPeer, CodeNo, "keys are worn")
			c.flush()
			c.die(ErrKeysWorn)
			return
		}
		c.drain()
	}
	if c.expired() {
		c.drain()
	}
	if idle := c.sh.idleTimeout; idle > 0 && len(c.streams) == 0 && now-c.idleSince >= idle {
		c.drain()
	}
}

// expireWith has the connection take no new streams once the peer's certificate has run out: it was checked at the
// handshake only. Streams that are open go on.
func (c *conn) expireWith(cs tls.ConnectionState) {
	if len(cs.PeerCertificates) > 0 {
		c.expires = cs.PeerCertificates[0].NotAfter
		c.startTick()
	}
}

func (c *conn) expired() bool { return !c.expires.IsZero() && !time.Now().Before(c.expires) }

// probe sends a PING if the peer has been silent, and gives it up if it stays so. Whatever arrives counts as life. It
// reports whether the connection lives.
func (c *conn) probe(now time.Duration) bool {
	k := c.sh.keepAlive
	if k.Interval < 0 {
		return true
	}
	if c.pingAt != 0 && c.lastRead > c.pingAt {
		c.pingAt = 0
	}
	switch {
	case c.pingAt != 0 && now-c.pingAt >= k.Timeout:
		if !c.client {
			c.writeGoAway(c.lastPeer, CodeNo, "ping timeout")
			c.flush()
		}
		c.lose(ErrPingTimeout)
		return false
	case c.pingAt == 0 && now-c.lastRead >= k.Interval:
		c.pingAt = now
		c.writePing(pingProbe)
	}
	return true
}
