package http2

import (
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// quantum is what a stream that has waited for the connection may send before others have their turn, in bytes.
const quantum = 16 << 10

// stream is one request and its answer, of a server or of a client.
//
// It is open as long as the peer knows it (it is in conn.table), live until its user has been told of its end or has ended
// it (it is in conn.live). What is not live any more is recycled in a later turn.
type stream struct {
	c  *conn
	id uint32

	req     message.Request  // client: only while it is held back
	resp    message.Response // client
	trailer message.Header
	upgrade string // client: the protocol asked for, in req's arena

	taker   message.Taker
	handler message.ClientHandler

	// receiving
	queue    loop.Queue // not taken yet
	recvWin  int        // bytes that the peer may send
	taken    int        // bytes whose credit is still to be returned
	recvLeft int64      // of the announced length; -1: not announced
	interims int

	// sending
	sendWin  int   // bytes that may be sent
	quota    int   // bytes that may be sent although others wait
	sendLeft int64 // of the announced length; -1: not announced
	since    time.Duration

	err        error // why it has failed, if the taker does not know yet
	nextWait   *stream
	prev, next *stream // in conn.live
	pending    *stream // in conn.pending

	open       bool
	over       bool
	answered   bool // server: the final head was sent; client: received
	headSent   bool // DATA may be sent
	sentEnd    bool
	recvEnd    bool
	endTold    bool
	queued     bool // in conn.pending
	waiting    bool // in the queue for the connection
	full       bool // SendData took less than it was given
	blocked    bool // the taker has not taken all
	noBody     bool // of the message that is sent: what is given is dropped
	noRecvBody bool // of the message that is received
	isHead     bool // the method is HEAD
	isConnect  bool // ... CONNECT, extended or not
	tunnel     bool // it was agreed to: two directions that end each for itself
	held       bool // client: waits for SETTINGS before it is opened
	heldEnd    bool
}

var streams = sync.Pool{New: func() any { return new(stream) }}

// newStream makes a stream that is live but not open.
func (c *conn) newStream() *stream {
	s := streams.Get().(*stream)
	s.c = c
	s.recvWin, s.sendWin = c.lim.Window, c.peerInitial
	s.recvLeft, s.sendLeft = -1, -1
	s.prev, s.next = nil, c.live
	if c.live != nil {
		c.live.prev = s
	}
	c.live = s
	return s
}

// opened puts s on the wire.
func (c *conn) opened(s *stream, id uint32) {
	s.id, s.open = id, true
	c.table.put(s)
}

// recycle gives s back to the pool, with the memory of its heads.
func (s *stream) recycle() {
	s.req.Reset()
	s.resp.Reset()
	s.trailer.Reset()
	*s = stream{req: s.req, resp: s.resp, trailer: s.trailer}
	streams.Put(s)
}

// close takes s off the wire.
func (s *stream) close() {
	if !s.open {
		return
	}
	s.open = false
	c := s.c
	c.table.del(s)
	if c.in.cur == s {
		c.in.cur = nil
	}
	c.unwait(s)
	if c.table.n == 0 {
		c.idleSince = c.l.Now()
		c.arm(c.lim.Idle)
	}
	c.touch()
	if c.client {
		c.roomChanged = true
	}
}

// finish ends s for its user. It is called once everything has been told.
func (s *stream) finish() {
	if s.over {
		return
	}
	s.close()
	s.over, s.err = true, nil
	s.dropQueue()
	c := s.c
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		c.live = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	}
	c.retire(s)
	c.touch()
}

func (s *stream) dropQueue() {
	if n := s.queue.Len(); n > 0 {
		s.c.buffered -= n
		s.queue.Clear()
		s.c.creditConn()
	}
}

// fail ends s because of err, which is told to the taker now if now is set, and else at the end of the turn. A server's
// stream without a taker is told when it has one.
func (s *stream) fail(err error, now bool) {
	if s.over || s.err != nil {
		return
	}
	s.close()
	s.dropQueue()
	s.err = err
	if now {
		s.deliver()
	} else {
		s.post()
	}
}

// fault resets s because the peer broke a rule.
func (s *stream) fault(code message.ErrCode, why malformed) error {
	c := s.c
	if s.open {
		c.writeReset(s.id, code)
	}
	s.fail(&message.StreamError{Code: code, Cause: why}, true)
	return c.spend(&c.resets, 1, "stream errors")
}

// post has s.deliver called at the end of the turn.
func (s *stream) post() {
	if s.queued {
		return
	}
	s.queued = true
	c := s.c
	if c.pendingTail == nil {
		c.pendingHead = s
	} else {
		c.pendingTail.pending = s
	}
	c.pendingTail = s
	c.touch()
}

// deliver tells the taker what there is to tell.
func (s *stream) deliver() {
	t := s.taker
	if s.over || t == nil {
		return
	}
	if err := s.err; err != nil {
		s.finish()
		t.Failed(err)
		return
	}
	if s.held {
		return
	}
	s.blocked = false
	for s.queue.Len() > 0 {
		p := s.queue.Front()
		n := t.Data(p)
		if s.over || s.err != nil {
			return
		}
		n = min(max(n, 0), len(p))
		s.queue.Discard(n)
		s.c.buffered -= n
		s.taken += n
		if n < len(p) {
			s.blocked = true
			break
		}
	}
	s.returnCredit()
	s.c.creditConn()
	if s.recvEnd {
		s.tellEnd()
		return
	}
	if s.req.Expect100 && !s.c.client && !s.answered && !s.blocked {
		s.req.Expect100 = false
		s.c.writeInterim(s, 100, nil)
	}
}

// received passes on a piece of the body.
func (s *stream) received(p []byte) {
	if s.taker == nil || s.blocked || s.queue.Len() > 0 {
		s.enqueue(p)
		return
	}
	n := s.taker.Data(p)
	n = min(max(n, 0), len(p))
	if s.over || s.err != nil {
		return
	}
	s.taken += n
	if n < len(p) {
		s.blocked = true
		s.enqueue(p[n:])
	}
}

func (s *stream) enqueue(p []byte) {
	s.queue.Append(p)
	s.c.buffered += len(p)
}

// peerEnded is END_STREAM.
func (s *stream) peerEnded() error {
	if s.recvLeft > 0 {
		return s.fault(codeProtocol, "body shorter than its content-length")
	}
	s.recvEnd = true
	if s.sentEnd {
		s.close()
	}
	s.tellEnd()
	return nil
}

// tellEnd tells that the message is complete, when all of it has been taken. That ends a client's stream, unless it is a
// tunnel whose other direction is open.
func (s *stream) tellEnd() {
	if s.taker == nil || s.endTold || s.queue.Len() > 0 {
		return
	}
	s.endTold = true
	t := s.taker
	trailer := &s.trailer
	if trailer.Len() == 0 {
		trailer = nil
	}
	switch {
	case s.tunnel:
		if s.sentEnd {
			s.finish()
		}
	case s.c.client:
		if s.open { // give up the rest of the request
			s.c.writeReset(s.id, codeNo)
		}
		s.finish()
	}
	t.End(trailer)
}

// returnCredit lets the peer send as much again as was taken.
func (s *stream) returnCredit() {
	if s.taken < s.c.lim.Window/4 || s.recvEnd || !s.open {
		return
	}
	s.recvWin += s.taken
	s.c.writeWindow(s.id, s.taken)
	s.taken = 0
}

// Request implements message.ServerStream.
func (s *stream) Request() *message.Request { return &s.req }

// SetTaker implements message.ServerStream.
func (s *stream) SetTaker(t message.Taker) {
	if s.over {
		return
	}
	s.taker = t
	s.post()
}

// Resume implements message.ServerStream and message.ClientStream.
func (s *stream) Resume() {
	if !s.over {
		s.post()
	}
}

// SendInterim implements message.ServerStream.
func (s *stream) SendInterim(r *message.Response) {
	if s.over || s.err != nil || s.answered || r.Status < 100 || r.Status > 199 || r.Status == 101 {
		return
	}
	if r.Status == 100 {
		s.req.Expect100 = false
	}
	s.c.writeInterim(s, r.Status, &r.Header)
}

// SendHead implements message.ServerStream.
func (s *stream) SendHead(r *message.Response, end bool) {
	if s.over || s.answered || s.c.client {
		return
	}
	s.answered, s.headSent = true, true
	if s.err == nil {
		s.c.writeResponse(s, r, end)
	}
	if end {
		s.ended()
	}
}

// SendData implements message.ServerStream and message.ClientStream.
func (s *stream) SendData(p []byte) int {
	if s.over || s.err != nil || s.sentEnd || s.noBody {
		return len(p)
	}
	if !s.headSent { // held back
		s.full = len(p) > 0
		return 0
	}
	if s.sendLeft >= 0 && int64(len(p)) > s.sendLeft {
		s.abort(errLengthOurs)
		return len(p)
	}
	done := 0
	for done < len(p) {
		n := s.c.allow(s, len(p)-done)
		if n == 0 {
			s.full = true
			break
		}
		s.c.writeData(s, p[done:done+n])
		done += n
	}
	if s.sendLeft >= 0 {
		s.sendLeft -= int64(done)
	}
	return done
}

// SendEnd implements message.ServerStream and message.ClientStream.
func (s *stream) SendEnd(trailer *message.Header) {
	if s.over || s.sentEnd {
		return
	}
	if s.err == nil {
		switch {
		case s.held:
			s.heldEnd = true
			return
		case !s.headSent:
			return
		case s.sendLeft > 0:
			s.abort(errLengthOurs)
			return
		}
		if s.open {
			s.c.writeEnd(s, trailer)
		}
	}
	s.ended()
}

// ended notes that this side has ended. That ends a server's stream, unless it is a tunnel.
func (s *stream) ended() {
	s.sentEnd, s.full = true, false
	switch {
	case s.tunnel && s.err == nil:
		if s.recvEnd {
			s.close()
		}
		if s.endTold {
			s.finish()
		}
	case !s.c.client:
		if s.open && !s.recvEnd { // nothing will read it (RFC 9113 section 8.1)
			s.c.writeReset(s.id, codeNo)
		}
		s.finish()
	case s.recvEnd:
		s.close()
	}
}

// Reset implements message.ServerStream and message.ClientStream.
func (s *stream) Reset(err error) {
	if s.over {
		return
	}
	if s.open {
		def := message.CodeCancel
		if !s.c.client {
			def = message.CodeInternal
		}
		s.c.writeReset(s.id, message.CodeOf(err, def))
	}
	s.finish()
}

// abort gives s up for a fault of ours, and tells the taker later.
func (s *stream) abort(err *message.StreamError) {
	if s.open {
		s.c.writeReset(s.id, err.Code)
	}
	s.fail(err, false)
}
