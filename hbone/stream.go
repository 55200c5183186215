package hbone

import (
	"crypto/tls"
	"sync"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// event is what a stream has to tell at the end of the turn.
type event uint8

const (
	evServe  event = 1 << iota // a request has come (server)
	evOpened                   // the answer has come (client)
	evEnded                    // the stream was reset, or its connection is gone
	evJoined                   // a relay has ended
	evPump                     // a side wants to send
)

// side is what a stream is connected with: a relay or a net.Conn. Its methods are called on the loop, also while bytes
// are being parsed: they must not call back into user code or use the loop's buffer.
type side interface {
	// take is given received bytes, valid during the call; what it does not use it passes to Stream.enqueue.
	take(pieces [][]byte)
	// peerEnded tells that nothing more will be received (what is queued is still to be read).
	peerEnded()
	// resume tells that sending may go on.
	resume()
	// ended tells, at the end of a turn, that the stream was cut (Stream.err).
	ended()
	// pump is called at the end of the turn in which the side posted evPump; joined for evJoined.
	pump()
	joined()
}

// gather collects the pieces that one burst brings for one stream.
type gather struct {
	pieces [64][]byte
	n      int
}

var gathers = sync.Pool{New: func() any { return new(gather) }}

// Stream is one CONNECT stream. Loop only, except where said otherwise.
type Stream struct {
	c  *conn
	id uint32

	req    *Request
	resp   *Response
	opener *Opening // client, until answered
	side   side
	watch  func(error)

	sendWin int
	recvWin int
	taken   int // taken by the application, credit not yet returned
	queue   loop.Queue
	g       *gather

	sent, received int64
	refusal        int // status to answer when the peer has ended; its data is dropped
	err            error
	lost           *loss // the peer's end of the stream is gone; what it had sent may still wait for the application
	events         event

	answered bool // response headers sent (server) or received (client)
	sentEnd  bool
	recvEnd  bool
	endTold  bool
	removed  bool // not in c.streams any more
	blocked  bool // in c.starved or c.waiting
}

func newStream(c *conn, id uint32, req *Request) *Stream {
	s := &Stream{c: c, id: id, req: req, sendWin: c.peerInitial, recvWin: streamWindow}
	c.streams[id] = s
	return s
}

// TLS describes the TLS session that carries the stream, with the peer's certificates.
func (s *Stream) TLS() tls.ConnectionState { return s.c.tc.State() }

// ID is the stream's number on its connection.
func (s *Stream) ID() uint32 { return s.id }

// Request is the request that opened the stream; nil after Join.
func (s *Stream) Request() *Request { return s.req }

// Err is nil while the stream is usable, else the reason why it is not: a StreamError, a ConnError, ErrPingTimeout or
// another end of the connection. What the peer had sent before that is delivered first, unless the stream was cut here. A stream that both sides have ended in good order has none.
func (s *Stream) Err() error { return s.err }

// Counts are the payload bytes sent to and received from the peer.
func (s *Stream) Counts() (sent, received int64) { return s.sent, s.received }

// OnReset has f called, on the loop, if the stream is cut before it is given to Join or NetConn: the peer gave it up, or
// the connection has ended. If it was cut already, f is called at the end of this turn.
func (s *Stream) OnReset(f func(err error)) {
	s.watch = f
	if s.err != nil {
		s.c.post(s, evEnded)
	}
}

// Accept answers 200. The tunnel is open then. After Reject, Reset or the stream's end it does nothing.
func (s *Stream) Accept(h []HeaderField) {
	if s.err != nil || s.answered || s.c.client {
		return
	}
	s.answered = true
	s.c.writeHeaders(s.id, false, func(b []byte) []byte { return appendResponse(b, 200, h) })
	s.resume()
}

// Reject answers with a status other than 200 and ends the stream.
func (s *Stream) Reject(status int) {
	if s.err != nil || s.answered || s.c.client {
		return
	}
	s.answered = true
	s.c.writeHeaders(s.id, true, func(b []byte) []byte { return appendResponse(b, status, nil) })
	s.sentEnd = true
	if !s.recvEnd { // nothing will read it (RFC 9113 section 8.1)
		s.c.writeReset(s.id, CodeNo)
	}
	s.finish(&StatusError{Status: status})
}

// Reset ends the stream with RST_STREAM. Callbacks see ErrCanceled.
func (s *Stream) Reset(code ErrCode) { s.cut(code, ErrCanceled) }

// Cut ends the stream with RST_STREAM for a reason of the caller's: callbacks see a StreamError around it.
func (s *Stream) Cut(code ErrCode, cause error) { s.cut(code, cause) }

// cut resets the stream for a reason of ours.
func (s *Stream) cut(code ErrCode, cause error) {
	if s.err != nil {
		return
	}
	if !s.removed {
		s.c.writeReset(s.id, code)
	}
	if s.lost != nil {
		s.lost.timer.Stop()
		s.lost = nil
	}
	s.end(&StreamError{Code: code, Cause: cause})
}

// fault resets the stream because the peer broke a rule.
func (s *Stream) fault(code ErrCode) error {
	s.c.writeReset(s.id, code)
	s.end(&StreamError{Code: code})
	return s.c.spend(&s.c.limits.resets, 1, "stream errors")
}

// peerReset is the peer's RST_STREAM.
func (s *Stream) peerReset(code ErrCode) {
	if code == CodeNo && s.recvEnd { // "I have said all, stop sending": what it said is still to be delivered
		s.sentEnd = true
		s.c.remove(s)
		s.resume()
		return
	}
	s.lose(&StreamError{Code: code, Remote: true})
}

// end takes the stream down on this side only.
func (s *Stream) end(err error) {
	if s.err != nil {
		return
	}
	s.finish(err)
	if s.opener != nil || s.side != nil || s.watch != nil {
		s.c.post(s, evEnded)
	}
}

// finish drops what the stream holds.
func (s *Stream) finish(err error) {
	s.err = err
	if s.lost != nil {
		s.lost.timer.Stop()
	}
	s.dropGather()
	s.c.buffer(-s.queue.Len())
	s.queue.Clear()
	s.c.remove(s)
}

// peerEnded is END_STREAM; it is passed on behind the data of this burst.
func (s *Stream) peerEnded() {
	s.recvEnd = true
	s.c.dirty = append(s.c.dirty, s)
	if s.sentEnd {
		s.c.remove(s)
	}
}

// gather notes a piece of data to be delivered at the end of the burst.
func (s *Stream) gather(p []byte) {
	if s.g == nil {
		s.g = gathers.Get().(*gather)
		s.c.dirty = append(s.c.dirty, s)
	}
	s.g.pieces[s.g.n] = p
	s.g.n++
	s.received += int64(len(p))
	if s.g.n == len(s.g.pieces) {
		s.deliver()
	}
}

// deliver hands what was gathered to the side, or queues it until there is one.
func (s *Stream) deliver() {
	g := s.g
	if g == nil {
		return
	}
	s.g = nil
	pieces := g.pieces[:g.n]
	if s.side != nil {
		s.side.take(pieces)
	} else {
		s.enqueue(pieces, 0)
	}
	s.returnCredit()
	clear(pieces)
	g.n = 0
	gathers.Put(g)
}

func (s *Stream) dropGather() {
	if g := s.g; g != nil {
		s.g = nil
		clear(g.pieces[:g.n])
		g.n = 0
		gathers.Put(g)
	}
}

// enqueue copies what the application has not taken, all but the first skip bytes.
func (s *Stream) enqueue(pieces [][]byte, skip int) {
	before := s.queue.Len()
	for _, p := range pieces {
		if skip >= len(p) {
			skip -= len(p)
			continue
		}
		s.queue.Append(p[skip:])
		skip = 0
	}
	s.c.buffer(s.queue.Len() - before)
}

// dequeued accounts for n bytes that the application has taken from the queue.
func (s *Stream) dequeued(n int) {
	if n == 0 {
		return
	}
	s.c.buffer(-n)
	s.taken += n
	s.returnCredit()
	s.c.creditConn()
	if !s.recvEnd {
		s.drained()
	}
}

// returnCredit lets the peer send as much again as was taken.
func (s *Stream) returnCredit() {
	if s.taken < streamWindow/4 || s.recvEnd || s.removed {
		return
	}
	s.recvWin += s.taken
	s.c.writeWindow(s.id, s.taken)
	s.taken = 0
}

// resume tells the side that it may send.
func (s *Stream) resume() {
	if s.side != nil && s.err == nil {
		s.side.resume()
	}
}

// maySend is the number of bytes that flow control lets the stream send now; 0 also while the connection has enough to
// do. connWaits then says that it is the connection that is waited for.
func (s *Stream) maySend() (n int, connWaits bool) {
	c := s.c
	if s.err != nil || s.sentEnd || c.dead || !s.answered {
		return 0, false
	}
	if s.sendWin <= 0 {
		return 0, false
	}
	if c.sendWin <= 0 || c.congested() {
		return 0, true
	}
	return min(s.sendWin, c.sendWin), false
}

// spend accounts for n bytes sent.
func (s *Stream) spend(n int) {
	s.sendWin -= n
	s.c.sendWin -= n
	s.sent += int64(n)
}

// sendEnd ends this direction.
func (s *Stream) sendEnd() {
	if s.sentEnd || s.err != nil || s.c.dead {
		return
	}
	s.sentEnd = true
	s.c.frame(0, frameData, flagEndStream, s.id)
	if s.recvEnd {
		s.c.remove(s)
	}
}

// tell makes the callbacks that are due.
func (s *Stream) tell() {
	ev := s.events
	s.events = 0
	if ev&evServe != 0 && s.err == nil {
		s.c.role.(*ServerConn).serve(s)
	}
	if ev&evOpened != 0 && s.opener != nil && s.err == nil {
		o := s.opener
		s.opener = nil
		o.opened(s)
	}
	if ev&evPump != 0 && s.side != nil && s.err == nil {
		s.side.pump()
	}
	if ev&evEnded != 0 {
		s.tellEnd()
	}
	if ev&evJoined != 0 && s.side != nil {
		s.side.joined()
	}
}

func (s *Stream) tellEnd() {
	switch {
	case s.opener != nil:
		o := s.opener
		s.opener = nil
		o.ended(s.err)
	case s.side != nil:
		s.side.ended()
	case s.watch != nil:
		f := s.watch
		s.watch = nil
		f(s.err)
	}
}
