package hbone

import (
	"encoding/binary"
)

// defaultPeerStreams is the number of streams that a server is taken to allow until its SETTINGS have come.
const defaultPeerStreams = 100

// writeSettings sends our SETTINGS, and the WINDOW_UPDATE that makes the connection's window 16 MiB.
func (c *conn) writeSettings() {
	set := func(b []byte, id uint16, v uint32) []byte {
		b = binary.BigEndian.AppendUint16(b, id)
		return binary.BigEndian.AppendUint32(b, v)
	}
	b := make([]byte, 0, 24)
	if c.client {
		b = set(b, settingEnablePush, 0)
	} else {
		b = set(b, settingMaxStreams, uint32(c.sh.maxStreams))
	}
	b = set(b, settingInitialWindow, streamWindow)
	b = set(b, settingMaxFrame, maxFrameSize)
	b = set(b, settingMaxHeaderListSize, uint32(c.sh.limits.HeaderListBytes))
	copy(c.frame(len(b), frameSettings, 0, 0), b)
	c.writeWindow(0, connWindow-defaultWindow)
}

func (c *conn) onSettings(b []byte) error {
	if c.in.flags&flagAck != 0 {
		return nil
	}
	if err := c.spend(&c.limits.settings, 1, "SETTINGS frames"); err != nil {
		return err
	}
	if !c.settled {
		c.settled = true
		c.peerStreams = maxStreamID // unless it says otherwise
	}
	for ; len(b) >= 6; b = b[6:] {
		if err := c.setting(binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[2:])); err != nil {
			return err
		}
	}
	c.frame(0, frameSettings, flagAck, 0)
	c.role.changed()
	return nil
}

// setting applies one of the peer's settings. HEADER_TABLE_SIZE does not concern us: our encoder has no table.
func (c *conn) setting(id uint16, v uint32) error {
	switch id {
	case settingEnablePush:
		if v > 1 || c.client && v != 0 {
			return connError(CodeProtocol, "bad ENABLE_PUSH")
		}
	case settingMaxStreams:
		c.peerStreams = int(min(v, maxStreamID))
	case settingInitialWindow:
		if v > maxWindow {
			return connError(CodeFlowControl, "bad INITIAL_WINDOW_SIZE")
		}
		delta := int(v) - c.peerInitial
		c.peerInitial = int(v)
		for _, s := range c.streams {
			if s.sendWin += delta; s.sendWin > maxWindow {
				return connError(CodeFlowControl, "stream window overflow")
			}
			if s.sendWin > 0 && s.sendWin <= delta {
				s.resume()
			}
		}
	case settingMaxFrame:
		if v < defaultFrame || v > 1<<24-1 {
			return connError(CodeProtocol, "bad MAX_FRAME_SIZE")
		}
		c.peerFrame = int(v)
	}
	return nil
}

// onPriority checks what RFC 9113 section 5.3 has left of it.
func (c *conn) onPriority(b []byte) error {
	id := c.in.stream
	if id == 0 {
		return connError(CodeProtocol, "PRIORITY on stream 0")
	}
	if err := c.spend(&c.limits.control, 1, "PRIORITY frames"); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(b)&maxStreamID == id {
		return c.streamFault(id, CodeProtocol)
	}
	return nil
}

// streamFault resets a stream, which may not exist, for a fault of the peer.
func (c *conn) streamFault(id uint32, code ErrCode) error {
	if s := c.streams[id]; s != nil {
		return s.fault(code)
	}
	c.writeReset(id, code)
	return c.spend(&c.limits.resets, 1, "stream errors")
}

func (c *conn) onReset(code ErrCode) error {
	id := c.in.stream
	if id == 0 {
		return connError(CodeProtocol, "RST_STREAM on stream 0")
	}
	s := c.streams[id]
	if s == nil {
		if c.idle(id) {
			return connError(CodeProtocol, "RST_STREAM on an idle stream")
		}
		return nil
	}
	var err error
	if !c.client && !s.answered {
		err = c.spend(&c.limits.resets, 1, "streams reset before their answer")
	}
	s.peerReset(code)
	return err
}

// blockStarts bounds a header block before any of it is kept.
func (c *conn) blockStarts() error {
	b := &c.block
	if c.in.stream == 0 {
		return connError(CodeProtocol, "HEADERS on stream 0")
	}
	if c.in.typ == frameHeaders {
		b.frames = 0
	} else if b.frames++; b.frames > maxContinuations {
		return connError(CodeEnhanceYourCalm, "too many CONTINUATION frames")
	}
	if len(b.buf)+c.in.left > maxBlock {
		return connError(CodeEnhanceYourCalm, "header block too long")
	}
	return nil
}

// onHeaders takes the first frame of a header block:
//
//	[pad length (8)] [E (1) dependency (31) weight (8)] fragment [padding]
func (c *conn) onHeaders(p []byte) error {
	flags := c.in.flags
	pad := 0
	if flags&flagPadded != 0 {
		if len(p) == 0 {
			return connError(CodeFrameSize, "HEADERS too short")
		}
		pad, p = int(p[0]), p[1:]
	}
	b := &c.block
	b.selfDependent = false
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return connError(CodeFrameSize, "HEADERS too short")
		}
		b.selfDependent = binary.BigEndian.Uint32(p)&maxStreamID == c.in.stream
		p = p[5:]
	}
	if pad > len(p) {
		return connError(CodeProtocol, "padding longer than the frame")
	}
	p = p[:len(p)-pad]
	b.stream, b.endStream = c.in.stream, flags&flagEndStream != 0
	if flags&flagEndHeaders != 0 {
		return c.blockEnds(p)
	}
	b.open = true
	b.buf = append(b.buf[:0], p...)
	c.blockSince = c.l.Now()
	return nil
}

func (c *conn) onContinuation(p []byte) error {
	b := &c.block
	b.buf = append(b.buf, p...)
	if c.in.flags&flagEndHeaders == 0 {
		return nil
	}
	buf := b.buf
	b.open, b.buf = false, nil
	return c.blockEnds(buf)
}

// blockEnds decodes a whole block, which has to be done even for a stream that does not want it.
func (c *conn) blockEnds(p []byte) error {
	list, err := c.dec.decode(p)
	if err != nil {
		return connError(CodeCompression, err.Error())
	}
	id := c.block.stream
	if c.block.selfDependent {
		if !c.client && c.idle(id) && id%2 == 1 {
			c.lastPeer = id
		}
		return c.streamFault(id, CodeProtocol)
	}
	return c.role.headers(id, c.block.endStream, list)
}

// gone remembers the streams that were reset here most recently.
type gone struct {
	ids [128]uint32
	n   int
}

func (g *gone) add(id uint32) {
	g.ids[g.n%len(g.ids)] = id
	g.n++
}

func (g *gone) has(id uint32) bool {
	for _, x := range g.ids {
		if x == id {
			return true
		}
	}
	return false
}
