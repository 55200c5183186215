package http2

import (
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// ServerConn is a connection of a client. It owns its pipe. Loop only.
type ServerConn struct{ c conn }

// NewServer takes over p, on which a client is to speak HTTP/2 from its connection preface on. h is given the requests, n
// is told of the end; neither is called from here.
func NewServer(p loop.Pipe, cfg ServerConfig, h message.ServerHandler, n message.ConnHandler) *ServerConn {
	sc := &ServerConn{}
	sc.c.handler = h
	sc.c.init(p, false, cfg.Limits, cfg.MaxStreams, n)
	return sc
}

// Drain lets the requests end that the client has sent, and then closes the connection. The client is told by GOAWAY.
func (sc *ServerConn) Drain() { sc.c.drain() }

// Close ends the connection at once. Streams get err by Failed; Closed is called from here, unless there are streams
// without a Taker: then when the last of them has got one or has ended.
func (sc *ServerConn) Close(err error) { sc.c.close(err) }

// Streams is the number of requests under way.
func (sc *ServerConn) Streams() int { return sc.c.table.n }

// onRequest acts on a header block from a client: a request, or a trailer.
func (c *conn) onRequest(id uint32, end bool, p []byte) error {
	if s := c.table.get(id); s != nil {
		return c.onTrailer(s, end, p)
	}
	if id%2 == 0 {
		return connError(codeProtocol, "stream with an even number")
	}
	if id <= c.lastPeer {
		if !c.abandoned.has(id) {
			return connError(codeClosed, "HEADERS on a closed stream")
		}
		return c.skipBlock(p) // the trailer of a request that was answered and reset
	}
	c.lastPeer = id
	if c.lastSent || c.table.n >= c.maxStreams {
		if err := c.skipBlock(p); err != nil {
			return err
		}
		if c.lastSent { // the GOAWAY has said so
			c.abandoned.add(id)
			return nil
		}
		return c.streamFault(id, codeRefused, "")
	}
	s := c.newStream()
	var hd head
	if err := c.decodeHead(p, &s.req.Header, &hd); err != nil {
		s.finish()
		return err
	}
	status, why := hd.request(&s.req, end)
	if why != "" {
		s.finish()
		return c.streamFault(id, codeProtocol, why)
	}
	c.opened(s, id)
	s.recvEnd = end
	if status != 0 {
		return c.refuseRequest(s, status)
	}
	c.control.give(2)
	c.updates += 16
	s.isHead, s.isConnect = s.req.Method == "HEAD", hd.method == "CONNECT"
	if !s.isConnect {
		s.recvLeft = s.req.ContentLength
	}
	c.handler.ServeRequest(s)
	return nil
}

// refuseRequest answers a request that nobody is to see.
func (c *conn) refuseRequest(s *stream, status int) error {
	s.answered = true
	at := c.beginHead()
	*c.out = c.enc.status(c.enc.begin(*c.out), status)
	c.endHead(s, at, true)
	s.ended()
	return c.spend(&c.resets, 10, "requests beyond the limits")
}

// onTrailer acts on a header block on an open stream that has had its head.
func (c *conn) onTrailer(s *stream, end bool, p []byte) error {
	if s.recvEnd {
		if err := c.skipBlock(p); err != nil {
			return err
		}
		return s.fault(codeClosed, "HEADERS behind the end")
	}
	if s.tunnel || !c.client && s.isConnect { // RFC 9113 section 8.5
		if err := c.skipBlock(p); err != nil {
			return err
		}
		return s.fault(codeProtocol, "HEADERS in a tunnel")
	}
	var hd head
	if err := c.decodeHead(p, &s.trailer, &hd); err != nil {
		return err
	}
	why := hd.trailer(&s.trailer)
	switch {
	case why != "":
		return s.fault(codeProtocol, why)
	case !end:
		return s.fault(codeProtocol, "trailer that does not end the stream")
	case hd.tooBig:
		return s.fault(codeCalm, "trailer too large")
	}
	return s.peerEnded()
}

// writeInterim writes a 1xx response.
func (c *conn) writeInterim(s *stream, status int, h *message.Header) {
	if !s.open {
		return
	}
	at := c.beginHead()
	b := c.enc.status(c.enc.begin(*c.out), status)
	if h != nil {
		b = c.enc.fields(b, h)
	}
	*c.out = b
	c.endHead(s, at, false)
	c.last = nil // END_STREAM may not be put on it
}

// writeResponse writes a final head.
func (c *conn) writeResponse(s *stream, r *message.Response, end bool) {
	if !s.open {
		return
	}
	status := r.Status
	if s.isConnect && s.req.Upgrade != "" { // RFC 8441 section 5: 200 is what 101 is in HTTP/1.1, and nothing else may look so
		switch {
		case status == 101:
			status = 200
		case status/100 == 2:
			status = 502
		}
	} else if status == 101 {
		status = 502
	}
	at := c.beginHead()
	b := c.enc.status(c.enc.begin(*c.out), status)
	*c.out = c.enc.fields(b, &r.Header)
	c.endHead(s, at, end)
	s.noBody = s.isHead || status == 204 || status == 304
	s.tunnel = s.isConnect && status/100 == 2 && !end
	if v, ok := r.Header.Lookup("content-length"); ok && !s.noBody && !end && !s.tunnel {
		if n, ok := message.Length(v); ok {
			s.sendLeft = n
		}
	}
}
