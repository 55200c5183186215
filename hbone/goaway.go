package hbone

import (
	"encoding/binary"
	"time"
)

// Contents of our PINGs: a probe, and those between the two GOAWAY frames of a graceful shutdown (RFC 9113 section 6.8).
const (
	pingProbe = 0x616d626974000001
	pingDrain = 0x616d626974000002
)

func (c *conn) writeGoAway(last uint32, code ErrCode, reason string) {
	b := c.frame(8+len(reason), frameGoAway, 0, 0)
	binary.BigEndian.PutUint32(b, last)
	binary.BigEndian.PutUint32(b[4:], uint32(code))
	copy(b[8:], reason)
}

func (c *conn) writePing(data uint64) {
	binary.BigEndian.PutUint64(c.frame(8, framePing, 0, 0), data)
}

// drainPings is the number of PINGs that come back before the final GOAWAY. After one of them a stream may still be on its
// way: hyper's h2 answers a PING ahead of the HEADERS that it has queued. Those follow at once, and the second answer
// comes behind them.
const drainPings = 2

// drain begins a graceful end: no new streams, and the connection closes when the last one has ended. A client says so and
// opens no more. A server first sends a GOAWAY that refuses nothing, waits for PINGs to come back, so that every stream
// that the peer opened before it heard of this has arrived and is served, and then sends the final GOAWAY.
func (c *conn) drain() {
	if c.draining || c.dead {
		return
	}
	c.draining = true
	c.drainAt = c.l.Now()
	if c.client {
		c.writeGoAway(0, CodeNo, "")
	} else {
		c.writeGoAway(maxStreamID, CodeNo, "")
		c.writePing(pingDrain)
	}
	c.role.changed()
}

// lastGoAway is the second step of a server's drain.
func (c *conn) lastGoAway() {
	if c.lastSent || c.dead {
		return
	}
	c.lastSent = true
	c.lastTaken = c.lastPeer
	c.writeGoAway(c.lastTaken, CodeNo, "")
}

func (c *conn) onPing(b []byte) error {
	if c.in.stream != 0 {
		return connError(CodeProtocol, "PING on a stream")
	}
	if c.in.flags&flagAck == 0 {
		copy(c.frame(8, framePing, flagAck, 0), b)
		return c.spend(&c.limits.control, 1, "PING frames")
	}
	if binary.BigEndian.Uint64(b) == pingDrain && c.draining && !c.client && !c.lastSent {
		if c.drainAcks++; c.drainAcks < drainPings {
			c.writePing(pingDrain)
		} else {
			c.lastGoAway()
		}
	}
	return nil
}

// awayWait is how long a peer that has said GOAWAY may take to answer a request.
const awayWait = time.Second

// askElsewhere gives up the requests that a peer which goes away has not answered, and has them asked again on another
// connection. Istio's ztunnel neither serves nor refuses a stream that met its first GOAWAY on the way (ztunnel.md H9):
// it would hang until the peer is gone, and fail then. No byte of the application is in an unanswered stream.
func (c *conn) askElsewhere(now time.Duration) {
	if !c.client || !c.peerGone || now-c.awayAt < awayWait {
		return
	}
	for _, s := range c.streams {
		if !s.answered {
			c.writeReset(s.id, CodeCancel)
			s.end(errRefused)
		}
	}
}

// onGoAway: streams above the last one were not looked at, and may be tried elsewhere.
func (c *conn) onGoAway(b []byte) error {
	last := binary.BigEndian.Uint32(b) & maxStreamID
	code := ErrCode(binary.BigEndian.Uint32(b[4:]))
	if !c.peerGone {
		c.peerGone, c.awayAt = true, c.l.Now()
		c.startTick()
	}
	if code != CodeNo {
		c.peerErr = &ConnError{Code: code, Remote: true, Reason: string(b[8:min(len(b), 8+256)])}
	}
	if c.client {
		for id, s := range c.streams {
			if id > last {
				s.end(errRefused)
			}
		}
	}
	c.touch()
	c.role.changed()
	return nil
}

// maybeClose closes a connection that is to end and has nothing left to do.
func (c *conn) maybeClose() {
	if !c.draining && !c.peerGone || len(c.streams) > 0 || c.dead || c.tr.Queued() > 0 {
		return
	}
	if !c.client && !c.peerGone && !c.lastSent {
		return // streams may be on their way
	}
	c.bye()
}
