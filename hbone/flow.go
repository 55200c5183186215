package hbone

import "encoding/binary"

// dataStarts checks a DATA frame by its header and settles the connection's side of its flow control.
func (c *conn) dataStarts() error {
	p := &c.in
	if p.stream == 0 {
		return connError(CodeProtocol, "DATA on stream 0")
	}
	if p.flags&flagPadded != 0 {
		if p.left == 0 {
			return connError(CodeFrameSize, "no room for the padding length")
		}
		p.padByte = true
	}
	n := p.left
	if c.recvWin -= n; c.recvWin < 0 {
		return connError(CodeFlowControl, "connection window exceeded")
	}
	c.unacked += n
	s := c.streams[p.stream]
	if s == nil {
		return c.dataNowhere()
	}
	if n == 0 && p.flags&flagEndStream == 0 {
		if err := c.spend(&c.limits.control, 1, "empty DATA frames"); err != nil {
			return err
		}
	}
	switch {
	case s.recvEnd:
		return s.fault(CodeStreamClosed)
	case c.client && !s.answered:
		return s.fault(CodeProtocol)
	}
	if s.recvWin -= n; s.recvWin < 0 {
		return s.fault(CodeFlowControl)
	}
	p.cur = s
	return nil
}

// dataNowhere is DATA of a stream that is gone. The connection gets its credit back all the same: the bytes are dropped.
func (c *conn) dataNowhere() error {
	id := c.in.stream
	if c.idle(id) {
		return connError(CodeProtocol, "DATA on an idle stream")
	}
	c.creditConn()
	if c.gone.has(id) { // on its way when we reset the stream
		return nil
	}
	c.writeReset(id, CodeStreamClosed)
	return c.spend(&c.limits.resets, 1, "frames for closed streams")
}

// dataPiece takes a piece of a DATA frame's payload, which is padded so:
//
//	pad length (8) | data | padding (pad length)
func (c *conn) dataPiece(piece []byte) error {
	p := &c.in
	if p.padByte && len(piece) > 0 {
		p.padByte, p.pad = false, int(piece[0])
		piece = piece[1:]
		if p.pad > p.left+len(piece) {
			return connError(CodeProtocol, "padding longer than the frame")
		}
		if p.cur != nil {
			p.cur.taken += 1 + p.pad
			p.cur.returnCredit()
		}
	}
	s := p.cur
	if s == nil {
		return nil
	}
	if data := min(len(piece), p.left+len(piece)-p.pad); data > 0 {
		if s.refusal != 0 {
			s.taken += data
			s.returnCredit()
		} else {
			s.gather(piece[:data])
		}
	}
	if p.left == 0 && p.flags&flagEndStream != 0 {
		s.peerEnded()
	}
	return nil
}

// flushDirty passes on what a burst has brought.
func (c *conn) flushDirty() {
	for i, s := range c.dirty {
		c.dirty[i] = nil
		s.deliver()
		if s.recvEnd && !s.endTold && s.err == nil {
			s.endTold = true
			switch {
			case s.side != nil:
				s.side.peerEnded()
			case s.refusal != 0:
				s.Reject(s.refusal)
			}
		}
	}
	c.dirty = c.dirty[:0]
	c.creditConn()
}

// creditConn returns the connection's credit in large pieces. What stalled applications hold beyond the budget is held
// back.
func (c *conn) creditConn() {
	if c.dead {
		return
	}
	give := c.unacked
	if give < connWindow/4 {
		return
	}
	if c.sh.buffered > c.sh.limits.TotalBufferedBytes {
		give -= c.buffered
	} else {
		give -= max(0, c.buffered-c.sh.limits.BufferedBytes)
	}
	if give < connWindow/4 {
		return
	}
	c.unacked -= give
	c.recvWin += give
	c.writeWindow(0, give)
}

func (c *conn) writeWindow(stream uint32, n int) {
	binary.BigEndian.PutUint32(c.frame(4, frameWindowUpdate, 0, stream), uint32(n))
}

// buffer accounts for n bytes put into (or, negative, out of) a stream's queue.
func (c *conn) buffer(n int) {
	c.buffered += n
	c.sh.buffered += n
}

// onWindowUpdate adds to a send window.
func (c *conn) onWindowUpdate(n uint32) error {
	id := c.in.stream
	if id == 0 {
		if n == 0 {
			return connError(CodeProtocol, "WINDOW_UPDATE of 0")
		}
		if c.sendWin += int(n); c.sendWin > maxWindow {
			return connError(CodeFlowControl, "connection window overflow")
		}
		c.resume()
		return nil
	}
	s := c.streams[id]
	switch {
	case s == nil && c.idle(id):
		return connError(CodeProtocol, "WINDOW_UPDATE on an idle stream")
	case s == nil: // normal for a stream that has just ended
		return nil
	case n == 0:
		return s.fault(CodeProtocol)
	}
	if s.sendWin += int(n); s.sendWin > maxWindow {
		return s.fault(CodeFlowControl)
	}
	if s.sendWin > 0 && s.sendWin <= int(n) {
		s.resume()
	}
	return nil
}

// enlist puts s on the list of those that wait for the connection. Those that got nothing since they were last woken go
// first the next time, so that everyone has its turn.
func (c *conn) enlist(s *Stream, progressed bool) {
	if s.blocked {
		return
	}
	s.blocked = true
	if progressed {
		c.waiting = append(c.waiting, s)
	} else {
		c.starved = append(c.starved, s)
	}
}

// resume wakes the waiting if they may send.
func (c *conn) resume() {
	if c.sendWin <= 0 || c.tr.Queued() > resumeAt {
		return
	}
	c.starved = wakeAll(c.starved)
	c.waiting = wakeAll(c.waiting)
}

func wakeAll(list []*Stream) []*Stream {
	for i, s := range list {
		list[i] = nil
		s.blocked = false
		s.resume()
	}
	return list[:0]
}
