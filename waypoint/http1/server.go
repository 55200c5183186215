package http1

import (
	"io"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// ServerConn is a connection of a client. It serves one request at a time, in order. Loop only.
type ServerConn struct {
	conn
	h         message.ServerHandler
	drainIdle time.Duration

	s        serverStream
	done     bool   // the exchange is over, both ways
	next     bool   // ... and the next request may begin
	overTurn uint64 // the turn of the loop in which the answer was complete
	draining bool
	drainAt  time.Duration
}

// NewServer serves the requests that come from p, which it takes over. h and c are called from later visits, never from
// here.
func NewServer(p loop.Pipe, cfg ServerConfig, h message.ServerHandler, c message.ConnHandler) *ServerConn {
	s := &ServerConn{h: h, drainIdle: duration(cfg.DrainIdle, time.Second)}
	s.s.c = s
	s.init(p, s, cfg.limits(), c)
	return s
}

// Drain ends the connection behind the answer to the request under way, or to the one that comes within DrainIdle: the
// client is told by "connection: close".
func (c *ServerConn) Drain() {
	if c.draining || c.gone || c.state == dead {
		return
	}
	c.draining, c.drainAt = true, c.l.Now()
	if c.drainIdle == 0 && c.idle() {
		c.die(message.ErrDrained, false)
		return
	}
	c.arm()
}

// Close ends the connection at once: in good order if it is idle, with a reset in the middle of an exchange. A request
// under way gets err by Failed. Unlike other methods it calls back before it returns.
func (c *ServerConn) Close(err error) {
	if c.gone {
		return
	}
	if c.state != dead {
		cut := c.s.open
		c.cease(err, cut)
		if cut {
			c.p.Reset()
		}
	}
	c.shut()
}

// idle says that no request is under way, and none has begun to come.
func (c *ServerConn) idle() bool {
	return !c.s.open && (c.next || c.done || c.state == reading) && c.restLen() == 0
}

// serverStream is the exchange under way.
type serverStream struct {
	c   *ServerConn
	req message.Request
	f   framing
	exchange
	late message.Taker // set after the stream failed
	err  error         // with which it did, before there was a taker
}

// exchange is how far a request and its answer have come.
type exchange struct {
	open      bool // handed to the handler, and not over
	keep      bool // the connection may go on after it
	pipelined bool // bytes followed the head at once
	tunnel    bool // bytes both ways
	headSent  bool // the final head
	continued bool // 100 was sent, or need not be
	want100   bool // 100 is to be sent at the end of the turn
	inDone    bool // the request is complete
	endTold   bool // ... and the taker knows
	outDone   bool // the answer is complete
}

// leading implements role.
func (c *ServerConn) leading() bool { return true }

// head implements role.
func (c *ServerConn) head(b []byte) (int, error) {
	s := &c.s
	s.req.Reset()
	s.f = framing{}
	own := s.req.Header.Take(len(b))
	copy(own, b)
	n, err := parseRequest(own, &s.req, c.lim.fields, &s.f)
	switch {
	case err != nil:
		return 0, err
	case n > c.lim.head:
		return 0, errTooLarge
	}
	c.headDone()
	s.exchange = exchange{open: true, pipelined: n < len(b)}
	s.keep = !s.f.conn.close && (s.req.Proto != message.HTTP10 || s.f.conn.keepAlive)
	switch {
	case s.f.chunked:
		c.body.start(chunked, 0)
		c.state = inBody
	case s.req.ContentLength > 0:
		c.body.start(byLength, s.req.ContentLength)
		c.state = inBody
	default:
		c.state = holding
		s.inDone = !s.asksTunnel()
	}
	c.taker, c.blocked = nil, false
	c.h.ServeRequest(s)
	return n, nil
}

func (s *serverStream) asksTunnel() bool { return s.req.Upgrade != "" || s.req.Method == "CONNECT" }

// complete implements role.
func (c *ServerConn) complete(trailer *message.Header) {
	s := &c.s
	c.state = holding
	s.inDone = true
	if !s.open {
		c.done = true
		c.touch()
		return
	}
	s.endTold = true
	c.taker.End(trailer)
}

// eof implements role. A client that ends its direction while it waits for an answer has gone, as Envoy sees it too; only
// tunnels have half-close.
func (c *ServerConn) eof() {
	s := &c.s
	switch {
	case s.open && s.tunnel:
		c.state = holding
		s.inDone, s.endTold = true, true
		c.taker.End(nil)
		if s.outDone && s.open {
			s.over()
		}
	case s.open:
		c.failed(&message.StreamError{Code: message.CodeCancel, Remote: true, Cause: message.ErrGone})
	case c.headFrom != 0:
		c.die(&message.StreamError{Code: message.CodeCancel, Remote: true, Cause: io.ErrUnexpectedEOF}, false)
	default:
		c.die(nil, false)
	}
}

// failed implements role.
func (c *ServerConn) failed(err error) {
	s := &c.s
	status := statusOf(err)
	sinking := !s.open && c.state == inBody
	cut := s.open && (s.headSent || status == 0)
	if status != 0 && !sinking && !cut {
		b := appendStatus(c.buffer(), status, false)
		c.setBuffer(append(b, "content-length: 0\r\nconnection: close\r\n\r\n"...))
	}
	c.cease(streamError(err), cut)
}

// cease ends the exchange under way and begins the end of the connection.
func (c *ServerConn) cease(err error, cut bool) {
	s, t := &c.s, c.taker
	told := s.open
	s.open = false
	c.die(err, cut)
	switch {
	case told && t != nil:
		t.Failed(err)
	case told:
		s.err = err
	}
}

// due implements role: it begins the next request. That is not done in the turn in which the last one ended, because its
// stream is valid until the end of that turn.
func (c *ServerConn) due() {
	if !c.next || c.state != holding {
		return
	}
	if c.l.Stats().Turns == c.overTurn {
		c.p.Wake()
		return
	}
	c.next = false
	c.state = reading
	if c.rest != nil {
		c.reoffer()
	}
}

// turn implements role.
func (c *ServerConn) turn() {
	s := &c.s
	if t := s.late; t != nil {
		s.late = nil
		t.Failed(s.err)
	}
	if c.gone || c.state == dead {
		return
	}
	if c.broken != nil {
		e := &message.StreamError{Code: message.CodeCancel, Remote: true, Cause: c.broken}
		if ours, ok := c.broken.(*message.StreamError); ok {
			e = ours
		}
		c.cease(e, true)
		return
	}
	if s.want100 {
		s.want100 = false
		if s.open && !s.headSent && !s.continued {
			s.continued = true
			if c.restLen() == 0 {
				c.setBuffer(append(c.buffer(), "HTTP/1.1 100 Continue\r\n\r\n"...))
			}
		}
	}
	if s.open && s.inDone && !s.endTold && c.taker != nil {
		s.endTold = true
		c.taker.End(nil)
	}
	if c.done && !c.gone && c.state == holding {
		c.done, c.next = false, true
		c.last = c.l.Now()
		if c.ended {
			c.die(nil, false)
			return
		}
		if c.rest != nil || c.p.Readable() {
			c.p.Wake()
		}
	}
}

// deadline implements role.
func (c *ServerConn) deadline() time.Duration {
	s := &c.s
	switch {
	case c.headFrom != 0 && c.state == reading:
		if c.lim.slowHead == 0 {
			return 0
		}
		return c.headFrom + c.lim.slowHead
	case !s.open && c.state != inBody:
		if c.draining {
			return max(c.drainAt, c.last) + c.drainIdle
		}
		return c.after(c.lim.idle)
	case s.tunnel:
		return 0
	case c.out != nil, c.state == inBody && c.taker != nil && !c.blocked:
		return c.after(c.lim.stalled)
	}
	return 0
}

// expired implements role.
func (c *ServerConn) expired() {
	switch {
	case c.headFrom != 0 && c.state == reading:
		c.failed(errSlowHead)
	case c.s.open:
		c.failed(&message.StreamError{Code: message.CodeCancel, Remote: true, Cause: message.ErrTimeout})
	case c.draining:
		c.die(message.ErrDrained, false)
	default:
		c.die(nil, false)
	}
}

// sink takes the rest of a request that was answered before its end. It is bounded: beyond, the connection ends.
type sink conn

// Data implements message.Taker.
func (k *sink) Data(p []byte) int {
	if k.dropped += len(p); k.dropped > maxDrop {
		(*conn)(k).die(nil, false)
	}
	return len(p)
}

// End implements message.Taker.
func (k *sink) End(*message.Header) {}

// Failed implements message.Taker.
func (k *sink) Failed(error) {}

// Room implements message.Taker.
func (k *sink) Room() {}

// over is called when the answer is complete.
func (s *serverStream) over() {
	c := s.c
	s.open = false
	c.overTurn = c.l.Stats().Turns
	c.taker, c.full = nil, false
	switch {
	case !s.keep:
		var why error
		if c.draining {
			why = message.ErrDrained
		}
		c.die(why, false)
	case c.state == holding:
		c.done = true
	default:
		c.taker, c.dropped = (*sink)(&c.conn), 0
		c.blocked, c.again = false, true
	}
	c.touch()
}

// Request implements message.ServerStream.
func (s *serverStream) Request() *message.Request { return &s.req }

// SetTaker implements message.ServerStream. If the stream has failed before, the taker hears of it.
func (s *serverStream) SetTaker(t message.Taker) {
	c := s.c
	if !s.open {
		if s.err != nil {
			s.late = t
			c.touch()
		}
		return
	}
	c.taker, c.again = t, true
	s.want100 = s.req.Expect100 && !s.continued && !s.headSent && c.state == inBody
	c.touch()
}

// Resume implements message.ServerStream.
func (s *serverStream) Resume() {
	if s.open {
		s.c.resume()
	}
}

// SendInterim implements message.ServerStream.
func (s *serverStream) SendInterim(r *message.Response) {
	if !s.open || s.headSent || s.req.Proto == message.HTTP10 || r.Status < 100 || r.Status > 199 || r.Status == 101 {
		return
	}
	if r.Status == 100 {
		if s.continued {
			return
		}
		s.continued = true
	}
	s.c.setBuffer(appendInterim(s.c.buffer(), r))
}

// SendHead implements message.ServerStream.
func (s *serverStream) SendHead(r *message.Response, end bool) {
	c := s.c
	if !s.open || s.headSent {
		return
	}
	s.want100 = false
	if r.Status == 101 {
		s.switchTo(r)
		return
	}
	a := answering{head: s.req.Method == "HEAD", connect: s.req.Method == "CONNECT", old: s.req.Proto == message.HTTP10}
	a.keep = s.keep && !c.draining && !s.muddled()
	a.said = a.old && s.f.conn.keepAlive
	before := c.buffer()
	b, w, keep, ok := appendResponse(before, r, end, a)
	if !ok {
		c.setBuffer(before)
		s.Reset(&message.StreamError{Code: message.CodeInternal, Cause: errUnwritable})
		return
	}
	c.setBuffer(b)
	s.headSent, s.keep, c.w = true, keep, w
	switch {
	case a.connect && r.Status/100 == 2:
		s.startTunnel()
	case end:
		s.outDone = true
		s.over()
	case s.asksTunnel():
		s.inDone = true // refused: the request was complete with its head
	}
}

// muddled says that what the client sends next could be the body of this request, or bytes of a tunnel that it did not
// get: it is not to be read as a request (B13).
func (s *serverStream) muddled() bool {
	switch {
	case s.req.Method == "CONNECT":
		return true
	case s.req.Upgrade != "":
		return s.pipelined || s.c.restLen() > 0
	}
	return s.req.Expect100 && !s.continued
}

// switchTo sends 101.
func (s *serverStream) switchTo(r *message.Response) {
	if s.req.Upgrade == "" {
		s.Reset(&message.StreamError{Code: message.CodeInternal, Cause: errSwitch})
		return
	}
	proto := s.req.Upgrade
	if r.Upgrade != "" && upgradeToken(r.Upgrade) {
		proto = r.Upgrade
	}
	s.c.setBuffer(appendSwitch(s.c.buffer(), r, proto))
	s.headSent, s.keep = true, false
	s.startTunnel()
}

// startTunnel makes the stream one of bytes.
func (s *serverStream) startTunnel() {
	c := s.c
	s.tunnel = true
	c.w = writer{kind: untilClose}
	c.body.start(untilClose, 0)
	c.state, c.blocked, c.again = inBody, false, true
	c.touch()
}

// SendData implements message.ServerStream.
func (s *serverStream) SendData(p []byte) int {
	if !s.open || !s.headSent || s.outDone {
		return len(p)
	}
	return s.c.send(p)
}

// SendEnd implements message.ServerStream.
func (s *serverStream) SendEnd(trailer *message.Header) {
	if !s.open || !s.headSent || s.outDone {
		return
	}
	c := s.c
	s.outDone = true
	if s.tunnel {
		c.w = writer{}
		if s.inDone {
			s.over()
			return
		}
		c.fin = true
		c.touch()
		return
	}
	c.finish(trailer)
	s.over()
}

// Reset implements message.ServerStream.
func (s *serverStream) Reset(err error) {
	if s.open {
		s.open = false
		s.c.die(err, true)
	}
}
