package http1

import (
	"errors"
	"io"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// ClientConn is a connection to a server. It carries one request at a time and can be used again when Room is 1; it
// implements message.ClientConn. Loop only.
type ClientConn struct {
	conn
	s        clientStream
	used     bool // it has carried a request
	draining bool
	changed  bool // Room has become 1
}

// NewClient sends requests on p, which it takes over. c is called from later visits, never from here.
func NewClient(p loop.Pipe, cfg ClientConfig, c message.ConnHandler) *ClientConn {
	k := &ClientConn{}
	k.s.c = k
	k.init(p, k, cfg.limits(), c)
	return k
}

// clientStream is the exchange under way.
type clientStream struct {
	c    *ClientConn
	h    message.ClientHandler
	resp message.Response
	f    framing
	asked
}

// asked is how far a request and its answer have come.
type asked struct {
	open     bool
	head     bool // the request is HEAD
	connect  bool // ... CONNECT
	upgrade  string
	reused   bool // the connection has carried another request before
	heard    bool // a byte of the answer has come
	interims int
	headSeen bool // the final head
	keep     bool // the connection may be used again
	early    bool // there were bytes for a tunnel before it was known whether there is one
	tunnel   bool // bytes both ways
	inDone   bool // the tunnel's other direction has ended
	outDone  bool // the request is complete
}

// Room implements message.ClientConn. An idle connection that the server has ended has none, also if that has not been
// noticed before.
func (c *ClientConn) Room() int {
	if c.gone || c.state != reading || c.draining || c.s.open || c.ended || c.stale() {
		return 0
	}
	return 1
}

// Open implements message.ClientConn.
func (c *ClientConn) Open(req *message.Request, end bool, h message.ClientHandler) (message.ClientStream, error) {
	if c.Room() == 0 {
		return nil, &message.StreamError{Code: message.CodeRefusedStream, Retryable: true, Cause: message.ErrNoRoom}
	}
	before := c.buffer()
	b, w, ok := appendRequest(before, req, end)
	if !ok {
		c.setBuffer(before)
		return nil, &message.StreamError{Code: message.CodeInternal, Cause: errUnwritable}
	}
	c.setBuffer(b)
	s := &c.s
	s.h, s.asked = h, asked{open: true, head: req.Method == "HEAD", connect: req.Method == "CONNECT", reused: c.used}
	if req.Upgrade != "" {
		if s.upgrade = "websocket"; req.Upgrade != s.upgrade {
			s.upgrade = strings.Clone(req.Upgrade) // the request is not kept
		}
	}
	s.outDone = end && !s.asksTunnel()
	c.used, c.w, c.taker, c.changed = true, w, h, false
	c.last = c.l.Now()
	return s, nil
}

// stale looks whether the server has ended an idle connection, or sent something on it. It reads only if the pipe says
// that there is something.
func (c *ClientConn) stale() bool {
	if !c.used || !c.p.Readable() {
		return false
	}
	n, err := c.p.Read(c.frame[:1]) // not into the loop's buffer, which our caller may be working on
	switch {
	case n > 0:
		c.die(streamError(errUnasked), true)
	case errors.Is(err, loop.ErrAgain):
		return false
	case errors.Is(err, io.EOF):
		c.ended = true
		c.die(nil, false)
	default:
		c.die(streamError(errors.Join(message.ErrGone, err)), true)
	}
	return true
}

// Drain implements message.ClientConn.
func (c *ClientConn) Drain() {
	if c.draining || c.gone || c.state == dead {
		return
	}
	c.draining = true
	if !c.s.open {
		c.die(message.ErrDrained, false)
	}
}

// Close implements message.ClientConn.
func (c *ClientConn) Close(err error) {
	if c.gone {
		return
	}
	if c.state != dead {
		cut := c.s.open
		c.cease(err)
		if cut {
			c.p.Reset()
		}
	}
	c.shut()
}

// leading implements role.
func (c *ClientConn) leading() bool { return false }

// head implements role.
func (c *ClientConn) head(b []byte) (int, error) {
	s := &c.s
	if !s.open || s.headSeen {
		return 0, errUnasked
	}
	s.heard = true
	r := &s.resp
	r.Reset()
	s.f = framing{}
	own := r.Header.Take(len(b))
	copy(own, b)
	n, err := parseResponse(own, r, c.lim.fields, &s.f)
	switch {
	case err != nil:
		return 0, err
	case n > c.lim.head:
		return 0, errTooLarge
	}
	c.headDone()
	if r.Status < 200 && r.Status != 101 {
		if s.interims++; s.interims > maxInterim {
			return 0, errInterims
		}
		r.Header.Del("content-length")
		r.ContentLength = 0
		s.h.Interim(r)
		return n, nil
	}
	if err := c.final(n < len(b)); err != nil {
		return 0, err
	}
	return n, nil
}

// final acts on the final head: how the body is delimited (RFC 9112 section 6.3) and what becomes of the connection.
func (c *ClientConn) final(more bool) error {
	s := &c.s
	r, kind := &s.resp, noBody
	s.headSeen = true
	s.keep = !s.f.conn.close && (r.Proto == message.HTTP11 || s.f.conn.keepAlive)
	switch {
	case r.Status == 101:
		if s.upgrade == "" || !s.f.conn.upgrade || !message.EqualFold(s.f.upgrade, s.upgrade) {
			return errSwitch
		}
		r.Upgrade = s.upgrade
		s.tunnel = true
	case s.connect && r.Status/100 == 2:
		s.tunnel = true
	case s.head, r.Status == 304:
	case r.Status == 204:
		r.Header.Del("content-length")
		r.ContentLength = 0
	case s.f.chunked:
		kind = chunked
	case r.ContentLength > 0:
		kind = byLength
	case r.ContentLength < 0:
		kind, s.keep = untilClose, false
	}
	if s.tunnel {
		r.Header.Del("content-length")
		r.ContentLength = -1
		kind, s.keep = untilClose, false
		c.w = writer{kind: untilClose}
		if c.fin = s.outDone; c.fin {
			c.touch()
		}
	} else if s.asksTunnel() {
		s.outDone = true // refused: the request was complete with its head
	}
	if s.early {
		c.full = true
		c.touch()
	}
	if kind == noBody {
		c.state, c.extra = holding, more
		s.h.Head(r, true)
		if s.open && !c.gone {
			c.complete(nil)
		}
		return nil
	}
	c.body.start(kind, r.ContentLength)
	c.state, c.blocked = inBody, false
	s.h.Head(r, false)
	return nil
}

// complete implements role.
func (c *ClientConn) complete(trailer *message.Header) {
	s := &c.s
	s.open = false
	c.taker, c.full = nil, false
	switch {
	case !s.outDone:
		c.die(nil, true) // the rest of the request is given up
	case s.keep && !c.draining && !c.extra && !c.ended && !c.sunk:
		c.state = reading
		c.last = c.l.Now()
		c.changed = true
		c.touch()
	case c.draining:
		c.die(message.ErrDrained, false)
	default:
		c.die(nil, false)
	}
	s.h.End(trailer)
}

// eof implements role.
func (c *ClientConn) eof() {
	s := &c.s
	switch {
	case !s.open:
		c.die(nil, false)
	case s.tunnel && c.state == inBody:
		c.state = holding
		s.inDone = true
		s.h.End(nil)
		if s.outDone && s.open {
			s.open = false
			c.die(nil, false)
		}
	case c.state == inBody && c.body.kind == untilClose:
		c.complete(nil)
	default:
		c.failed(&message.StreamError{Code: message.CodeCancel, Remote: true, Cause: errors.Join(message.ErrGone, io.ErrUnexpectedEOF)})
	}
}

// failed implements role.
func (c *ClientConn) failed(err error) {
	e, s := streamError(err), &c.s
	if s.open && s.reused && !s.heard && c.scan.at == 0 && errors.Is(err, message.ErrGone) {
		e = &message.StreamError{Code: e.Code, Remote: true, Retryable: true, Reused: true, Cause: err}
	}
	c.cease(e)
}

// cease ends the exchange under way and begins the end of the connection.
func (c *ClientConn) cease(err error) {
	s := &c.s
	told := s.open
	s.open = false
	c.die(err, told)
	if told {
		s.h.Failed(err)
	}
}

// due implements role.
func (c *ClientConn) due() {}

// turn implements role.
func (c *ClientConn) turn() {
	if c.gone || c.state == dead {
		return
	}
	if ours, ok := c.broken.(*message.StreamError); ok && c.s.open {
		c.cease(ours)
		return
	} // otherwise an answer may have come before the server stopped reading: for a while it is waited for
	if c.changed {
		c.changed = false
		c.notify.Changed()
	}
}

// deadline implements role.
func (c *ClientConn) deadline() time.Duration {
	switch {
	case !c.s.open:
		return c.after(c.lim.idle)
	case c.sunk:
		return c.last + linger
	}
	return 0
}

// expired implements role.
func (c *ClientConn) expired() {
	if c.s.open {
		c.failed(errors.Join(message.ErrGone, c.broken))
		return
	}
	c.die(nil, false)
}

func (s *clientStream) asksTunnel() bool { return s.upgrade != "" || s.connect }

// SendData implements message.ClientStream.
func (s *clientStream) SendData(p []byte) int {
	c := s.c
	switch {
	case !s.open || s.outDone:
		return len(p)
	case s.asksTunnel() && !s.headSeen: // nobody knows yet whether it becomes one
		s.early = true
		return 0
	}
	return c.send(p)
}

// SendEnd implements message.ClientStream.
func (s *clientStream) SendEnd(trailer *message.Header) {
	c := s.c
	if !s.open || s.outDone {
		return
	}
	s.outDone = true
	switch {
	case s.tunnel && s.inDone:
		s.open = false
		c.die(nil, false)
	case s.tunnel:
		c.w = writer{}
		c.fin = true
		c.touch()
	case !s.asksTunnel():
		c.finish(trailer)
	}
}

// Resume implements message.ClientStream.
func (s *clientStream) Resume() {
	if s.open {
		s.c.resume()
	}
}

// Reset implements message.ClientStream.
func (s *clientStream) Reset(err error) {
	if s.open {
		s.open = false
		s.c.die(err, true)
	}
}
