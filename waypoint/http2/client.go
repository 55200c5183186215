package http2

import (
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// ClientConn is a connection to a server; it implements message.ClientConn. It owns its pipe. Loop only.
type ClientConn struct{ c conn }

var _ message.ClientConn = (*ClientConn)(nil)

// maxInterim is how many 1xx responses a server may send before the final one.
const maxInterim = 32

// NewClient takes over p, and speaks HTTP/2 on it from the connection preface on. Requests may be opened at once. n is not
// called from here.
func NewClient(p loop.Pipe, cfg ClientConfig, n message.ConnHandler) *ClientConn {
	cc := &ClientConn{}
	cc.c.init(p, true, cfg.Limits, cfg.MaxStreams, n)
	return cc
}

// Room implements message.ClientConn. Until the server has said how many it takes that is at most 100.
func (cc *ClientConn) Room() int {
	c := &cc.c
	if c.state != up || c.draining || c.peerGone || c.broken != nil || c.nextID > maxStreamID-2 {
		return 0
	}
	return max(0, min(c.peerStreams, c.maxStreams)-c.table.n-c.held)
}

// Streams is the number of requests under way.
func (cc *ClientConn) Streams() int { return cc.c.table.n + cc.c.held }

// Drain implements message.ClientConn.
func (cc *ClientConn) Drain() { cc.c.drain() }

// Close implements message.ClientConn.
func (cc *ClientConn) Close(err error) { cc.c.close(err) }

// Open implements message.ClientConn. A request for an upgrade needs extended CONNECT: it waits for the server's SETTINGS,
// and fails with HTTP_1_1_REQUIRED if they do not allow it.
func (cc *ClientConn) Open(req *message.Request, end bool, h message.ClientHandler) (message.ClientStream, error) {
	c := &cc.c
	if cc.Room() <= 0 {
		return nil, errNoRoom
	}
	if req.Upgrade != "" && c.settled && !c.extended {
		return nil, errNoConnect
	}
	s := c.newStream()
	s.taker, s.handler = h, h
	if req.Upgrade != "" {
		s.upgrade = s.trailer.Hold(req.Upgrade)
	}
	if req.Upgrade != "" && !c.settled {
		s.req.Copy(req)
		s.held, s.heldEnd = true, end
		c.held++
		return s, nil
	}
	c.openStream(s, req, end)
	return s, nil
}

// openHeld opens what waited for the first SETTINGS.
func (c *conn) openHeld() {
	for s := c.live; s != nil && c.held > 0; s = s.next {
		if !s.held {
			continue
		}
		s.held = false
		c.held--
		if !c.extended || c.table.n >= c.peerStreams {
			err := errNoConnect
			if c.extended {
				err = errNoRoom
			}
			s.fail(err, false)
			continue
		}
		c.openStream(s, &s.req, s.heldEnd)
		s.post() // it may have asked for room
	}
}

// openStream writes a request's head.
func (c *conn) openStream(s *stream, r *message.Request, end bool) {
	c.opened(s, c.nextID)
	c.nextID += 2
	s.isHead = r.Method == "HEAD"
	s.isConnect = r.Method == "CONNECT" || r.Upgrade != ""
	at := c.beginHead()
	*c.out = c.enc.request(c.enc.begin(*c.out), r, end)
	c.endHead(s, at, end)
	s.headSent, s.sentEnd = true, end
	c.updates += 16
	c.roomChanged = true
	if v, ok := r.Header.Lookup("content-length"); ok && !end && !s.isConnect {
		if n, ok := message.Length(v); ok {
			s.sendLeft = n
		}
	}
}

// onResponse acts on a header block from a server: an interim or the final head, or a trailer.
func (c *conn) onResponse(id uint32, end bool, p []byte) error {
	s := c.table.get(id)
	if s == nil {
		switch {
		case c.idle(id):
			return connError(codeProtocol, "HEADERS on an idle stream")
		case !c.abandoned.has(id):
			return connError(codeClosed, "HEADERS on a closed stream")
		}
		return c.skipBlock(p)
	}
	if s.answered {
		return c.onTrailer(s, end, p)
	}
	var hd head
	s.resp.Reset()
	if err := c.decodeHead(p, &s.resp.Header, &hd); err != nil {
		return err
	}
	why := hd.response(&s.resp, s, end)
	switch {
	case why != "":
		return s.fault(codeProtocol, why)
	case hd.tooBig:
		s.abort(errHeadTooBig)
		return nil
	case s.resp.Status < 200:
		if s.interims++; s.interims > maxInterim {
			return s.fault(codeCalm, "too many interim responses")
		}
		s.handler.Interim(&s.resp)
		return nil
	}
	s.answered = true
	s.noRecvBody = s.isHead || s.resp.Status == 204 || s.resp.Status == 304
	s.tunnel = s.isConnect && s.resp.Status/100 == 2 && !end
	if !s.noRecvBody && !s.tunnel {
		s.recvLeft = s.resp.ContentLength
	}
	if s.upgrade != "" && s.resp.Status/100 == 2 {
		s.resp.Status, s.resp.Upgrade = 101, s.upgrade
	}
	s.handler.Head(&s.resp, end)
	if end && !s.over && s.err == nil {
		return s.peerEnded()
	}
	return nil
}
