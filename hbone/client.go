package hbone

import (
	"strconv"

	"github.com/ambit-mesh/ambit/internal/looptls"
)

// clientConn is a connection of a Pool.
type clientConn struct {
	conn
	pool *Pool
	e    *entry
	tag  any // of the dial
}

func (p *Pool) attach(e *entry, fd int, tc *looptls.Conn, tag any) (*clientConn, error) {
	c := &clientConn{pool: p, e: e, tag: tag}
	f, err := p.l.Add(fd, &c.conn)
	if err != nil {
		return nil, err
	}
	tuneSocket(fd)
	tc.Attach(f)
	c.init(p.l, &p.sh, c, true, tc)
	c.fd, c.tc = f, tc
	c.expireWith(tc.State())
	f.Wake() // input may have come before it was registered
	return c, nil
}

// slots is the number of streams that may still be opened.
func (c *clientConn) slots() int {
	if c.dead || c.draining || c.peerGone || c.expired() || c.nextID > maxStreamID-2 {
		return 0
	}
	return c.limit() - len(c.streams)
}

func (c *clientConn) limit() int { return min(c.pool.streamsPerConn, c.peerStreams) }

// open sends a request.
func (c *clientConn) open(o *Opening) {
	s := newStream(&c.conn, c.nextID, o.req)
	c.nextID += 2
	s.opener = o
	o.s = s
	c.writeHeaders(s.id, false, func(b []byte) []byte { return appendRequest(b, o.req) })
}

// headers implements role: the answer to a request.
func (c *clientConn) headers(id uint32, endStream bool, l *fieldList) error {
	s := c.streams[id]
	if s == nil {
		if c.idle(id) {
			return connError(CodeProtocol, "HEADERS on an idle stream")
		}
		return nil
	}
	if s.answered || s.recvEnd { // RFC 9113 section 8.5: no trailers on a tunnel
		return s.fault(CodeProtocol)
	}
	if l.tooBig {
		return s.fault(CodeEnhanceYourCalm)
	}
	resp, ok := parseResponse(l)
	if !ok {
		return s.fault(CodeProtocol)
	}
	if resp.Status < 200 { // informational
		if endStream {
			return s.fault(CodeProtocol)
		}
		return nil
	}
	s.answered = true
	if resp.Status != 200 {
		c.refused(s, endStream, resp)
		return nil
	}
	s.resp = resp
	if endStream {
		s.peerEnded()
	}
	c.post(s, evOpened)
	return nil
}

// refused ends a stream that was answered with an error.
func (c *clientConn) refused(s *Stream, ended bool, resp *Response) {
	if ended {
		s.recvEnd = true
		s.sendEnd()
	} else {
		c.writeReset(s.id, CodeCancel)
	}
	s.end(&StatusError{Status: resp.Status, Header: resp.Header})
}

func parseResponse(l *fieldList) (*Response, bool) {
	r := &Response{}
	for i, f := range l.fields {
		if f.Name == ":status" {
			n, err := strconv.Atoi(f.Value)
			if i != 0 || err != nil || len(f.Value) != 3 || n < 100 {
				return nil, false
			}
			r.Status = n
			continue
		}
		if !validField(f.Name, f.Value) {
			return nil, false
		}
		r.Header = append(r.Header, HeaderField{f.Name, f.Value})
	}
	return r, r.Status != 0
}

// changed implements role.
func (c *clientConn) changed() { c.pool.serve(c.e) }

// ended implements role.
func (c *clientConn) ended(err error) {
	c.e.drop(c)
	c.pool.serve(c.e)
}
