package http2

import (
	"encoding/binary"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Frame types (RFC 9113 section 6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameRST          = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9
)

// Frame flags.
const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings (RFC 9113 section 6.5.2, RFC 8441 section 3).
const (
	settingTableSize       = 0x1
	settingEnablePush      = 0x2
	settingMaxStreams      = 0x3
	settingInitialWindow   = 0x4
	settingMaxFrame        = 0x5
	settingMaxHeaderList   = 0x6
	settingExtendedConnect = 0x8
)

const (
	headLen       = 9 // of a frame's header
	defaultWindow = 65535
	// maxFrame is the largest payload, in bytes: what every peer has to accept, and all that we accept.
	maxFrame    = 16384
	maxWindow   = 1<<31 - 1
	maxStreamID = 1<<31 - 1
	preface     = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	// maxBlock is the longest encoded header block that is accepted, in bytes, maxContinuations the number of frames after the
	// first that may carry it (CVE-2023-45288).
	maxBlock         = 64 << 10
	maxContinuations = 16
)

// The codes that are used most.
const (
	codeNo       = message.CodeNo
	codeProtocol = message.CodeProtocol
	codeFlow     = message.CodeFlowControl
	codeClosed   = message.CodeStreamClosed
	codeSize     = message.CodeFrameSize
	codeRefused  = message.CodeRefusedStream
	codeCalm     = message.CodeEnhanceYourCalm
)

// putFrameHeader writes
//
//	length (24) | type (8) | flags (8) | R (1) stream (31)
func putFrameHeader(b []byte, length int, typ, flags byte, id uint32) {
	_ = b[8]
	b[0], b[1], b[2] = byte(length>>16), byte(length>>8), byte(length)
	b[3], b[4] = typ, flags
	binary.BigEndian.PutUint32(b[5:], id)
}

// parser is the state between two pieces of a connection's byte stream. DATA payload is passed on piece by piece, that of
// other frames gathered only if it does not come whole.
type parser struct {
	preface int // bytes of the client's preface still to come

	head    [headLen]byte
	hn      int  // bytes of head seen
	inFrame bool // the payload is being read
	left    int  // payload still to come

	typ, flags byte
	id         uint32
	skip       bool   // the payload is of no interest
	payload    []byte // gathered so far

	// DATA
	cur     *stream // nil: payload goes nowhere
	pad     int     // padding at the end
	padByte bool    // the Pad Length byte is still to come
}

// start takes a frame header apart.
func (p *parser) start(b []byte) {
	p.left = int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	p.typ, p.flags = b[3], b[4]
	p.id = binary.BigEndian.Uint32(b[5:]) & maxStreamID
	p.inFrame, p.hn, p.skip = true, 0, false
	p.cur, p.pad, p.padByte = nil, 0, false
}

// feed parses a piece of the byte stream.
func (c *conn) feed(b []byte) error {
	p := &c.in
	for c.state == up {
		switch {
		case p.inFrame:
			k := min(p.left, len(b))
			p.left -= k
			if err := c.framePiece(b[:k]); err != nil {
				return err
			}
			b = b[k:]
			if p.left > 0 {
				return nil
			}
			p.inFrame = false
		case len(b) == 0:
			return nil
		case p.preface > 0:
			k := min(p.preface, len(b))
			at := len(preface) - p.preface
			if string(b[:k]) != preface[at:at+k] {
				return connError(codeProtocol, "bad preface")
			}
			p.preface -= k
			b = b[k:]
		case p.hn == 0 && len(b) >= headLen:
			p.start(b)
			b = b[headLen:]
			if err := c.frameStarts(); err != nil {
				return err
			}
		default:
			k := copy(p.head[p.hn:], b)
			p.hn += k
			b = b[k:]
			if p.hn < headLen {
				return nil
			}
			p.start(p.head[:])
			if err := c.frameStarts(); err != nil {
				return err
			}
		}
	}
	return nil
}

// framePiece takes a piece of payload, the last one of the frame if p.left is 0.
func (c *conn) framePiece(b []byte) error {
	p := &c.in
	switch {
	case p.typ == frameData:
		return c.dataPiece(b)
	case p.skip:
		return nil
	case p.left > 0:
		p.payload = append(p.payload, b...)
		return nil
	case len(p.payload) > 0:
		b = append(p.payload, b...)
		p.payload = nil // rare, and it should not stay
	}
	return c.frameEnds(b)
}

// frameStarts checks a frame by its header alone.
func (c *conn) frameStarts() error {
	p := &c.in
	if p.left > maxFrame {
		return connError(codeSize, "frame larger than announced")
	}
	if !c.settled && (p.typ != frameSettings || p.flags&flagAck != 0) {
		return connError(codeProtocol, "the first frame is not SETTINGS")
	}
	if c.block.open && (p.typ != frameContinuation || p.id != c.block.id) {
		return connError(codeProtocol, "header block interrupted")
	}
	switch p.typ {
	case frameData:
		return c.dataStarts()
	case frameHeaders, frameContinuation:
		return c.blockStarts()
	case framePriority:
		return c.fixed(5)
	case frameRST:
		return c.fixed(4)
	case frameWindowUpdate:
		return c.fixed(4)
	case framePing:
		return c.fixed(8)
	case frameSettings:
		if p.id != 0 {
			return connError(codeProtocol, "SETTINGS on a stream")
		}
		if p.left%6 != 0 || p.flags&flagAck != 0 && p.left != 0 || p.left > 6*64 {
			return connError(codeSize, "SETTINGS of odd size")
		}
	case frameGoAway:
		if p.id != 0 {
			return connError(codeProtocol, "GOAWAY on a stream")
		}
		if p.left < 8 {
			return connError(codeSize, "GOAWAY too short")
		}
	case framePushPromise:
		return connError(codeProtocol, "PUSH_PROMISE")
	default:
		p.skip = true
		return c.spend(&c.control, 1, "unknown frames")
	}
	return nil
}

// fixed checks the size of a frame that has only one.
func (c *conn) fixed(n int) error {
	if c.in.left != n {
		return connError(codeSize, "frame of wrong size")
	}
	return nil
}

// frameEnds acts on a whole frame other than DATA.
func (c *conn) frameEnds(b []byte) error {
	switch c.in.typ {
	case frameHeaders:
		return c.onHeaders(b)
	case frameContinuation:
		return c.onContinuation(b)
	case framePriority:
		return c.onPriority(b)
	case frameRST:
		return c.onReset(message.ErrCode(binary.BigEndian.Uint32(b)))
	case frameSettings:
		return c.onSettings(b)
	case framePing:
		return c.onPing(b)
	case frameGoAway:
		return c.onGoAway(b)
	case frameWindowUpdate:
		return c.onWindowUpdate(int(binary.BigEndian.Uint32(b) & maxWindow))
	}
	return nil
}

// block is a header block that is being received.
type block struct {
	open          bool // END_HEADERS is still to come
	id            uint32
	end           bool // END_STREAM
	selfDependent bool
	frames        int
	buf           []byte
}

// blockStarts bounds a header block before any of it is kept.
func (c *conn) blockStarts() error {
	b := &c.block
	if c.in.id == 0 {
		return connError(codeProtocol, "HEADERS on stream 0")
	}
	if c.in.typ == frameHeaders {
		b.frames = 0
	} else if !b.open {
		return connError(codeProtocol, "CONTINUATION without HEADERS")
	} else if b.frames++; b.frames > maxContinuations {
		return connError(codeCalm, "too many CONTINUATION frames")
	}
	if len(b.buf)+c.in.left > maxBlock {
		return connError(codeCalm, "header block too long")
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
			return connError(codeSize, "HEADERS too short")
		}
		pad, p = int(p[0]), p[1:]
	}
	b := &c.block
	b.selfDependent = false
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return connError(codeSize, "HEADERS too short")
		}
		b.selfDependent = binary.BigEndian.Uint32(p)&maxStreamID == c.in.id
		p = p[5:]
	}
	if pad > len(p) {
		return connError(codeProtocol, "padding longer than the frame")
	}
	p = p[:len(p)-pad]
	b.id, b.end = c.in.id, flags&flagEndStream != 0
	if flags&flagEndHeaders != 0 {
		return c.blockEnds(p)
	}
	b.open = true
	b.buf = append(b.buf[:0], p...)
	c.blockSince = c.l.Now()
	c.arm(c.lim.SlowHead)
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
