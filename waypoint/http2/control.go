package http2

import (
	"encoding/binary"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

const (
	// pingDrain is the content of the PINGs between the two GOAWAY frames of a graceful end (RFC 9113 section 6.8).
	pingDrain = 0x616d626974000002
	// drainPings is how many of them come back before the final GOAWAY. After one a stream may still be on its way: hyper's
	// h2 answers a PING ahead of the HEADERS that it has queued.
	drainPings = 2
	// drainWait is how long they are waited for.
	drainWait = 5 * time.Second
)

// idle says that a stream has not been opened yet.
func (c *conn) idle(id uint32) bool {
	if id%2 == 0 { // only a server's pushes have even numbers, and there are none
		return true
	}
	if c.client {
		return id >= c.nextID
	}
	return id > c.lastPeer
}

func (c *conn) onSettings(b []byte) error {
	if c.in.flags&flagAck != 0 {
		return nil
	}
	if err := c.spend(&c.settings, 1, "SETTINGS frames"); err != nil {
		return err
	}
	first := !c.settled
	if first {
		c.settled = true
		c.peerStreams = maxStreamID // unless it says otherwise
	}
	for ; len(b) >= 6; b = b[6:] {
		if err := c.setting(binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[2:])); err != nil {
			return err
		}
	}
	c.frame(0, frameSettings, flagAck, 0)
	if c.client {
		c.roomChanged = true
		c.touch()
		if first {
			c.openHeld()
		}
	}
	return nil
}

// setting applies one of the peer's settings.
func (c *conn) setting(id uint16, v uint32) error {
	switch id {
	case settingTableSize:
		c.enc.setMax(v)
	case settingEnablePush:
		if v > 1 || c.client && v != 0 {
			return connError(codeProtocol, "bad ENABLE_PUSH")
		}
	case settingMaxStreams:
		c.peerStreams = int(min(v, maxStreamID))
	case settingInitialWindow:
		if v > maxWindow {
			return connError(codeFlow, "bad INITIAL_WINDOW_SIZE")
		}
		delta := int(v) - c.peerInitial
		c.peerInitial = int(v)
		for s := c.live; s != nil; s = s.next {
			if s.sendWin += delta; s.sendWin > maxWindow {
				return connError(codeFlow, "stream window overflow")
			}
			if s.full && !s.waiting && s.sendWin > 0 {
				s.post()
			}
		}
	case settingMaxFrame:
		if v < maxFrame || v > 1<<24-1 {
			return connError(codeProtocol, "bad MAX_FRAME_SIZE")
		}
	case settingExtendedConnect:
		if v > 1 || v == 0 && c.extended {
			return connError(codeProtocol, "bad ENABLE_CONNECT_PROTOCOL")
		}
		c.extended = v == 1
	}
	return nil
}

// onPriority checks what RFC 9113 section 5.3 has left of it.
func (c *conn) onPriority(b []byte) error {
	id := c.in.id
	if id == 0 {
		return connError(codeProtocol, "PRIORITY on stream 0")
	}
	if err := c.spend(&c.control, 1, "PRIORITY frames"); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(b)&maxStreamID == id {
		return c.streamFault(id, codeProtocol, "stream that depends on itself")
	}
	return nil
}

// streamFault resets a stream, which may not exist, for a fault of the peer.
func (c *conn) streamFault(id uint32, code message.ErrCode, why malformed) error {
	if s := c.table.get(id); s != nil {
		return s.fault(code, why)
	}
	c.writeReset(id, code)
	return c.spend(&c.resets, 1, "stream errors")
}

func (c *conn) onReset(code message.ErrCode) error {
	id := c.in.id
	if id == 0 {
		return connError(codeProtocol, "RST_STREAM on stream 0")
	}
	s := c.table.get(id)
	if s == nil {
		if c.idle(id) {
			return connError(codeProtocol, "RST_STREAM on an idle stream")
		}
		return nil
	}
	var err error
	switch {
	case !c.client && !s.answered:
		err = c.spend(&c.resets, 1, "streams reset before their answer")
	case c.client && code == codeNo && s.recvEnd: // "stop sending": what it said is still to be delivered
		s.sentEnd, s.noBody = !s.tunnel, true
		s.close()
		if s.full {
			s.post()
		}
		return nil
	}
	s.fail(&message.StreamError{Code: code, Remote: true, Retryable: c.client && code == codeRefused}, true)
	return err
}

func (c *conn) onPing(b []byte) error {
	if c.in.id != 0 {
		return connError(codeProtocol, "PING on a stream")
	}
	if c.in.flags&flagAck == 0 {
		copy(c.frame(8, framePing, flagAck, 0), b)
		return c.spend(&c.control, 1, "PING frames")
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

func (c *conn) writePing(data uint64) {
	binary.BigEndian.PutUint64(c.frame(8, framePing, 0, 0), data)
}

// drain begins a graceful end: no new streams, and the connection closes when the last one has ended. A client opens no
// more. A server first sends a GOAWAY that refuses nothing, waits for PINGs to come back, so that every stream that the peer
// opened before it heard of this has arrived and is served, and then sends the final GOAWAY.
func (c *conn) drain() {
	if c.draining || c.state != up {
		return
	}
	c.draining = true
	c.touch()
	if c.client {
		c.roomChanged = true
		return
	}
	c.drainAt = c.l.Now()
	c.arm(drainWait)
	c.writeGoAway(maxStreamID, codeNo, "")
	c.writePing(pingDrain)
}

// lastGoAway is the second step of a server's drain.
func (c *conn) lastGoAway() {
	if c.lastSent || c.state != up {
		return
	}
	c.lastSent = true
	c.writeGoAway(c.lastPeer, codeNo, "")
	c.touch()
}

// onGoAway: streams above the last one were not looked at, and may be tried elsewhere.
func (c *conn) onGoAway(b []byte) error {
	last := binary.BigEndian.Uint32(b) & maxStreamID
	code := message.ErrCode(binary.BigEndian.Uint32(b[4:]))
	if err := c.spend(&c.control, 1, "GOAWAY frames"); err != nil {
		return err
	}
	c.peerGone, c.roomChanged = true, c.client
	c.touch()
	if code != codeNo {
		c.peerErr = &ConnError{Code: code, Remote: true, Reason: string(b[8:min(len(b), 8+256)])}
	}
	if !c.client {
		return nil
	}
	for s := c.live; s != nil; {
		next := s.next
		if s.open && s.id > last || s.held {
			if s.held {
				s.held, c.held = false, c.held-1
			}
			s.fail(errRefused, true)
		}
		if next != nil && next.over {
			next = c.live
		}
		s = next
	}
	return nil
}

// blockEnds decodes a whole block, which has to be done even for a stream that does not want it.
func (c *conn) blockEnds(p []byte) error {
	id, end := c.block.id, c.block.end
	if c.block.selfDependent {
		if err := c.skipBlock(p); err != nil {
			return err
		}
		if !c.client && c.idle(id) && id%2 == 1 {
			c.lastPeer = id
		}
		return c.streamFault(id, codeProtocol, "stream that depends on itself")
	}
	if c.client {
		return c.onResponse(id, end, p)
	}
	return c.onRequest(id, end, p)
}
