package hbone

import "encoding/binary"

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

// Settings (RFC 9113 section 6.5.2).
const (
	settingEnablePush        = 0x2
	settingMaxStreams        = 0x3
	settingInitialWindow     = 0x4
	settingMaxFrame          = 0x5
	settingMaxHeaderListSize = 0x6
)

const (
	frameHeaderLen = 9
	defaultWindow  = 65535
	defaultFrame   = 16384
	maxWindow      = 1<<31 - 1
	maxStreamID    = 1<<31 - 1
	clientPreface  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// putFrameHeader writes
//
//	length (24) | type (8) | flags (8) | R (1) stream (31)
func putFrameHeader(b []byte, length int, typ, flags byte, stream uint32) {
	_ = b[8]
	b[0], b[1], b[2] = byte(length>>16), byte(length>>8), byte(length)
	b[3], b[4] = typ, flags
	binary.BigEndian.PutUint32(b[5:], stream)
}

// parser is the state between two pieces of a connection's byte stream. A frame's header may arrive in pieces; DATA
// payload is passed on piece by piece, that of other frames gathered only if it does not come whole.
type parser struct {
	preface int // bytes of the client's preface still to come

	head [frameHeaderLen]byte
	hn   int // bytes of head seen; frameHeaderLen while a payload is being read
	left int // payload still to come

	typ, flags byte
	stream     uint32
	skip       bool   // the payload is of no interest
	payload    []byte // gathered so far

	// DATA
	cur     *Stream // nil: payload goes nowhere
	pad     int     // padding at the end
	padByte bool    // the Pad Length byte is still to come
}

// start takes the frame header apart.
func (p *parser) start() {
	p.left = int(p.head[0])<<16 | int(p.head[1])<<8 | int(p.head[2])
	p.typ, p.flags = p.head[3], p.head[4]
	p.stream = binary.BigEndian.Uint32(p.head[5:]) & maxStreamID
	p.skip, p.payload = false, p.payload[:0]
	p.cur, p.pad, p.padByte = nil, 0, false
}

// feed parses a piece of the byte stream. It is the fn of ReadRecords.
func (c *conn) feed(seg []byte) error {
	p := &c.in
	c.lastRead = c.l.Now()
	// a frame without payload has nothing to wait for, even if it ends the piece
	for len(seg) > 0 || (p.hn == frameHeaderLen && p.left == 0) {
		if p.preface > 0 {
			k := min(p.preface, len(seg))
			at := len(clientPreface) - p.preface
			if string(seg[:k]) != clientPreface[at:at+k] {
				return connError(CodeProtocol, "bad preface")
			}
			p.preface -= k
			seg = seg[k:]
			continue
		}
		if p.hn < frameHeaderLen {
			k := copy(p.head[p.hn:], seg)
			p.hn += k
			seg = seg[k:]
			if p.hn < frameHeaderLen {
				return nil
			}
			p.start()
			if err := c.frameStarts(); err != nil {
				return err
			}
		}
		k := min(p.left, len(seg))
		piece := seg[:k]
		seg = seg[k:]
		p.left -= k
		if err := c.framePiece(piece); err != nil {
			return err
		}
		if c.dead {
			return errConnClosed
		}
		if p.left == 0 {
			p.hn = 0
		}
	}
	return nil
}

// framePiece takes a piece of payload, the last one of the frame if p.left is 0.
func (c *conn) framePiece(piece []byte) error {
	p := &c.in
	switch {
	case p.typ == frameData:
		return c.dataPiece(piece)
	case p.skip:
		return nil
	case p.left > 0:
		p.payload = append(p.payload, piece...)
		return nil
	case len(p.payload) > 0:
		piece = append(p.payload, piece...)
		p.payload = nil // rare, and it should not stay
	}
	return c.frameEnds(piece)
}

// frameStarts checks a frame by its header alone.
func (c *conn) frameStarts() error {
	p := &c.in
	if p.left > maxFrameSize {
		return connError(CodeFrameSize, "frame larger than announced")
	}
	if !c.settled && (p.typ != frameSettings || p.flags&flagAck != 0) {
		return connError(CodeProtocol, "the first frame is not SETTINGS")
	}
	if c.block.open && (p.typ != frameContinuation || p.stream != c.block.stream) {
		return connError(CodeProtocol, "header block interrupted")
	}
	switch p.typ {
	case frameData:
		return c.dataStarts()
	case frameHeaders, frameContinuation:
		if p.typ == frameContinuation && !c.block.open {
			return connError(CodeProtocol, "CONTINUATION without HEADERS")
		}
		return c.blockStarts()
	case framePriority:
		return c.fixed(5, CodeFrameSize)
	case frameRST, frameWindowUpdate:
		return c.fixed(4, CodeFrameSize)
	case framePing:
		return c.fixed(8, CodeFrameSize)
	case frameSettings:
		if p.stream != 0 {
			return connError(CodeProtocol, "SETTINGS on a stream")
		}
		if p.left%6 != 0 || p.flags&flagAck != 0 && p.left != 0 || p.left > 6*64 {
			return connError(CodeFrameSize, "SETTINGS of odd size")
		}
	case frameGoAway:
		if p.stream != 0 {
			return connError(CodeProtocol, "GOAWAY on a stream")
		}
		if p.left < 8 {
			return connError(CodeFrameSize, "GOAWAY too short")
		}
		if p.left > maxGoAway {
			return connError(CodeEnhanceYourCalm, "GOAWAY too long")
		}
	case framePushPromise:
		return connError(CodeProtocol, "PUSH_PROMISE")
	default:
		p.skip = true
		return c.spend(&c.limits.control, 1, "unknown frames")
	}
	return nil
}

// maxGoAway bounds the debug data that is listened to, in bytes.
const maxGoAway = 16 << 10

func (c *conn) fixed(n int, code ErrCode) error {
	if c.in.left != n {
		return connError(code, "frame of wrong size")
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
		return c.onReset(ErrCode(binary.BigEndian.Uint32(b)))
	case frameSettings:
		return c.onSettings(b)
	case framePing:
		return c.onPing(b)
	case frameGoAway:
		return c.onGoAway(b)
	case frameWindowUpdate:
		return c.onWindowUpdate(binary.BigEndian.Uint32(b) & maxWindow)
	}
	return nil
}
