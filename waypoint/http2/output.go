package http2

import (
	"encoding/binary"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// grow extends out by n bytes and returns them.
func (c *conn) grow(n int) []byte {
	if c.out == nil {
		c.out = buffers.Get().(*[]byte)
		c.outAt = 0
		c.wroteAt = c.l.Now()
	}
	c.touch()
	c.last = nil
	b := *c.out
	at := len(b)
	if cap(b) >= at+n {
		b = b[:at+n]
	} else {
		b = append(b, make([]byte, n)...)
	}
	*c.out = b
	return b[at:]
}

// append appends whole frames.
func (c *conn) append(p []byte) { copy(c.grow(len(p)), p) }

// frame appends a frame and returns the place of its payload.
func (c *conn) frame(length int, typ, flags byte, id uint32) []byte {
	b := c.grow(headLen + length)
	putFrameHeader(b, length, typ, flags, id)
	return b[headLen:]
}

// pendingOut is how many bytes wait to be written.
func (c *conn) pendingOut() int {
	if c.out == nil {
		return 0
	}
	return len(*c.out) - c.outAt
}

// room is how many bytes of DATA may be gathered.
func (c *conn) room() int {
	n := c.lim.Output - c.pendingOut() - headLen
	if n < maxFrame/4 && c.p.Writable() {
		c.flush()
		n = c.lim.Output - c.pendingOut() - headLen
	}
	return n
}

// writeData appends DATA of s, to its last frame if nothing has come in between.
func (c *conn) writeData(s *stream, p []byte) {
	s.sendWin -= len(p)
	c.sendWin -= len(p)
	c.updates += 16 + len(p)/128
	if c.last == s {
		b := *c.out
		h := b[c.lastAt:]
		n := len(h) - headLen
		if h[3] == frameData && n+len(p) <= maxFrame {
			at := c.lastAt
			b = append(b, p...)
			*c.out = b
			putFrameHeader(b[at:], n+len(p), frameData, 0, s.id)
			return
		}
	}
	at := 0
	if c.out != nil {
		at = len(*c.out)
	}
	copy(c.frame(len(p), frameData, 0, s.id), p)
	c.last, c.lastAt = s, at
}

// writeEnd ends the stream's direction: with a trailer, or a flag in its last frame if that is still here.
func (c *conn) writeEnd(s *stream, trailer *message.Header) {
	switch {
	case trailer != nil && trailer.Len() > 0:
		at := c.beginHead()
		b := c.enc.begin(*c.out)
		for _, f := range trailer.Fields() {
			if !connectionField(f) {
				b = c.enc.field(b, f.Name, f.Value)
			}
		}
		*c.out = b
		c.endHead(s, at, true)
	case c.last == s:
		(*c.out)[c.lastAt+4] |= flagEndStream
		c.last = nil
	default:
		c.frame(0, frameData, flagEndStream, s.id)
	}
}

// beginHead appends the header of a HEADERS frame, to be filled in by endHead, and returns its place.
func (c *conn) beginHead() int {
	c.grow(headLen)
	return len(*c.out) - headLen
}

// endHead completes a header block that was appended behind its frame header, which begins at at.
func (c *conn) endHead(s *stream, at int, end bool) {
	flags := byte(flagEndHeaders)
	if end {
		flags |= flagEndStream
	}
	b := *c.out
	n := len(b) - at - headLen
	if n <= maxFrame {
		putFrameHeader(b[at:], n, frameHeaders, flags, s.id)
		c.last, c.lastAt = s, at
		return
	}
	block := append([]byte(nil), b[at+headLen:]...) // rare
	*c.out = b[:at]
	typ, flags := byte(frameHeaders), flags&^flagEndHeaders
	for len(block) > 0 {
		k := min(len(block), maxFrame)
		if k == len(block) {
			flags |= flagEndHeaders
		}
		copy(c.frame(k, typ, flags, s.id), block[:k])
		block = block[k:]
		typ, flags = frameContinuation, 0
	}
}

// flush writes what the pipe takes.
func (c *conn) flush() {
	if c.out == nil || c.broken != nil || c.state == gone {
		return
	}
	b := (*c.out)[c.outAt:]
	n, err := 0, error(nil)
	if c.p.Writable() {
		n, err = c.p.Write(b)
	}
	if n > 0 {
		c.wroteAt = c.l.Now()
		c.wroteID = c.nextID - 1
		c.last = nil
	}
	c.outAt += n
	switch {
	case err != nil:
		c.broken = err
		c.touch()
	case n == len(b):
		c.dropOut()
	case len(b)-n > c.lim.Replies:
		c.broken = connError(codeCalm, "peer does not read")
		c.touch()
	default:
		if c.outAt >= c.lim.Output/2 { // make the room at the front usable
			rest := copy(*c.out, (*c.out)[c.outAt:])
			*c.out, c.outAt = (*c.out)[:rest], 0
			c.last = nil
		}
		c.arm(c.lim.Idle)
	}
}

// dropOut gives the buffer back.
func (c *conn) dropOut() {
	if b := c.out; b != nil {
		c.out, c.last = nil, nil
		if cap(*b) <= 256<<10 {
			*b = (*b)[:0]
			buffers.Put(b)
		}
	}
}

// writeReset sends RST_STREAM, and remembers the stream so that what is still on its way is ignored.
func (c *conn) writeReset(id uint32, code message.ErrCode) {
	if c.state != up {
		return
	}
	c.abandoned.add(id)
	binary.BigEndian.PutUint32(c.frame(4, frameRST, 0, id), uint32(code))
}

func (c *conn) writeGoAway(last uint32, code message.ErrCode, reason string) {
	b := c.frame(8+len(reason), frameGoAway, 0, 0)
	binary.BigEndian.PutUint32(b, last)
	binary.BigEndian.PutUint32(b[4:], uint32(code))
	copy(b[8:], reason)
}

// writeSettings sends our SETTINGS, and the WINDOW_UPDATE that makes the connection's window as large as configured.
func (c *conn) writeSettings() {
	var a [36]byte
	b := a[:0]
	set := func(id uint16, v int) {
		b = binary.BigEndian.AppendUint16(b, id)
		b = binary.BigEndian.AppendUint32(b, uint32(v))
	}
	if c.client {
		set(settingEnablePush, 0)
	} else {
		set(settingMaxStreams, c.maxStreams)
		set(settingExtendedConnect, 1)
	}
	set(settingInitialWindow, c.lim.Window)
	set(settingMaxHeaderList, c.lim.HeadBytes)
	copy(c.frame(len(b), frameSettings, 0, 0), b)
	if n := c.lim.ConnWindow - defaultWindow; n > 0 {
		c.writeWindow(0, n)
	}
}

// abandoned remembers the streams that were reset here most recently.
type abandoned struct {
	ids []uint32 // ring
	n   int
}

const keptResets = 256

func (a *abandoned) add(id uint32) {
	if len(a.ids) < keptResets {
		a.ids = append(a.ids, id)
		return
	}
	a.ids[a.n%keptResets] = id
	a.n++
}

func (a *abandoned) has(id uint32) bool {
	for _, x := range a.ids {
		if x == id {
			return true
		}
	}
	return false
}
