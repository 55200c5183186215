package http2

import "encoding/binary"

// dataStarts checks a DATA frame by its header and settles its flow control.
func (c *conn) dataStarts() error {
	p := &c.in
	if p.id == 0 {
		return connError(codeProtocol, "DATA on stream 0")
	}
	if p.flags&flagPadded != 0 {
		if p.left == 0 {
			return connError(codeSize, "no room for the padding length")
		}
		p.padByte = true
	}
	n := p.left
	if c.recvWin -= n; c.recvWin < 0 {
		return connError(codeFlow, "connection window exceeded")
	}
	c.unacked += n
	s := c.table.get(p.id)
	if s == nil {
		return c.dataNowhere()
	}
	if n > 0 {
		c.control.give(1)
	} else if p.flags&flagEndStream == 0 {
		if err := c.spend(&c.control, 1, "empty DATA frames"); err != nil {
			return err
		}
	}
	switch {
	case s.recvEnd:
		return s.fault(codeClosed, "DATA behind the end")
	case c.client && !s.answered:
		return s.fault(codeProtocol, "DATA ahead of the head")
	}
	if s.recvWin -= n; s.recvWin < 0 {
		return s.fault(codeFlow, "stream window exceeded")
	}
	p.cur = s
	return nil
}

// dataNowhere is DATA of a stream that is gone. The connection gets its credit back all the same: the bytes are dropped.
func (c *conn) dataNowhere() error {
	id := c.in.id
	if c.idle(id) {
		return connError(codeProtocol, "DATA on an idle stream")
	}
	if c.abandoned.has(id) { // on its way when the stream was reset
		return nil
	}
	c.writeReset(id, codeClosed)
	return c.spend(&c.resets, 1, "frames for closed streams")
}

// dataPiece takes a piece of a DATA frame's payload, which is padded so:
//
//	pad length (8) | data | padding (pad length)
func (c *conn) dataPiece(b []byte) error {
	p := &c.in
	s := p.cur
	if p.padByte && len(b) > 0 {
		p.padByte, p.pad = false, int(b[0])
		b = b[1:]
		if p.pad > p.left+len(b) {
			return connError(codeProtocol, "padding longer than the frame")
		}
		if s != nil {
			s.taken += 1 + p.pad
		}
	}
	if s == nil {
		return nil
	}
	if data := min(len(b), p.left+len(b)-p.pad); data > 0 {
		if s.noRecvBody {
			return s.fault(codeProtocol, "a body where there is none")
		}
		if s.recvLeft >= 0 {
			if s.recvLeft -= int64(data); s.recvLeft < 0 {
				return s.fault(codeProtocol, "body longer than its content-length")
			}
		}
		s.received(b[:data])
	}
	if p.cur != s || s.over { // given up by a callback
		return nil
	}
	if p.left == 0 && p.flags&flagEndStream != 0 {
		return s.peerEnded()
	}
	s.returnCredit()
	return nil
}

// creditConn returns the connection's credit in large pieces. What takers have not taken beyond the budget is held back.
func (c *conn) creditConn() {
	if c.state != up || c.unacked < c.lim.ConnWindow/4 {
		return
	}
	give := c.unacked - max(0, c.buffered-c.lim.Buffered)
	if give < c.lim.ConnWindow/4 {
		return
	}
	c.unacked -= give
	c.recvWin += give
	c.writeWindow(0, give)
}

func (c *conn) writeWindow(id uint32, n int) {
	binary.BigEndian.PutUint32(c.frame(4, frameWindowUpdate, 0, id), uint32(n))
}

// onWindowUpdate adds to a send window.
func (c *conn) onWindowUpdate(n int) error {
	id := c.in.id
	if c.updates--; c.updates < 0 {
		return connError(codeCalm, "too many WINDOW_UPDATE frames")
	}
	if id == 0 {
		if n == 0 {
			return connError(codeProtocol, "WINDOW_UPDATE of 0")
		}
		if c.sendWin += n; c.sendWin > maxWindow {
			return connError(codeFlow, "connection window overflow")
		}
		if c.waitFirst != nil {
			c.touch()
		}
		return nil
	}
	s := c.table.get(id)
	switch {
	case s == nil && c.idle(id):
		return connError(codeProtocol, "WINDOW_UPDATE on an idle stream")
	case s == nil: // normal for a stream that has just ended
		return nil
	case n == 0:
		return s.fault(codeProtocol, "WINDOW_UPDATE of 0")
	}
	if s.sendWin += n; s.sendWin > maxWindow {
		return s.fault(codeFlow, "stream window overflow")
	}
	if s.full && !s.waiting {
		s.post()
	}
	return nil
}

// allow is how many of n bytes s may send now; at 0 it has been put in the queue, unless it is its own window that it
// waits for.
func (c *conn) allow(s *stream, n int) int {
	if s.sendWin <= 0 {
		if !s.full {
			s.since = c.l.Now()
			c.arm(c.lim.Idle)
		}
		return 0
	}
	n = min(n, s.sendWin, maxFrame)
	if c.waitFirst != nil {
		n = min(n, s.quota)
	}
	if n > 0 && c.sendWin > 0 {
		n = min(n, c.sendWin)
		if room := c.room(); room >= min(n, maxFrame/4) {
			n = min(n, room)
			s.quota = max(0, s.quota-n)
			return n
		}
	}
	c.wait(s)
	return 0
}

// wait puts s in the queue for the connection.
func (c *conn) wait(s *stream) {
	s.quota = 0
	if s.waiting {
		return
	}
	s.waiting, s.nextWait = true, nil
	if c.waitLast == nil {
		c.waitFirst = s
	} else {
		c.waitLast.nextWait = s
	}
	c.waitLast = s
}

// unwait takes s out of the queue.
func (c *conn) unwait(s *stream) {
	if !s.waiting {
		return
	}
	var before *stream
	for x := c.waitFirst; x != s; x = x.nextWait {
		before = x
	}
	if before == nil {
		c.waitFirst = s.nextWait
	} else {
		before.nextWait = s.nextWait
	}
	if c.waitLast == s {
		c.waitLast = before
	}
	s.waiting, s.nextWait = false, nil
}

// wake gives those at the front of the queue leave to send a quantum each, as many as there is room for.
func (c *conn) wake() {
	if c.waitFirst == nil || c.broken != nil || c.sendWin <= 0 || c.room() < c.lim.Output/2 {
		return
	}
	left := min(c.room(), c.sendWin)
	for left > 0 && c.waitFirst != nil && c.state == up {
		s := c.waitFirst
		c.unwait(s)
		if s.sendWin <= 0 { // its own window comes first
			s.since = c.l.Now()
			c.arm(c.lim.Idle)
			continue
		}
		if s.taker == nil { // told when there is one
			continue
		}
		s.quota = quantum
		left -= quantum
		s.full = false
		s.taker.Room()
	}
	c.flush()
	if c.waitFirst != nil && c.out == nil && c.sendWin > 0 && c.state == up { // not everyone made use of it
		c.p.Wake()
	}
}
