package hbone

import (
	"crypto/tls"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
)

// Handler is given the streams that a Server accepts.
type Handler interface {
	// ServeConnect is called on the loop, with a request that is well-formed HTTP; its authority has not been looked at. It
	// must not block, and answers now or later by Stream.Accept, Reject or Reset. Bytes that the peer sends meanwhile are
	// held, at most 4 MiB.
	ServeConnect(s *Stream, req *Request)
}

// ServerConfig configures a Server.
type ServerConfig struct {
	// Handler is required.
	Handler Handler
	// MaxStreams is announced as MAX_CONCURRENT_STREAMS. Default 200.
	MaxStreams int
	// RetireBytes is the plaintext sealed after which a connection is drained. At twice as
	// much it ends with what it carries. Default 128 GiB; negative: never.
	RetireBytes int64
	KeepAlive   KeepAlive
	Limits      Limits
	// OnClose is told when a connection has ended, and why. May be nil.
	OnClose func(c *ServerConn, err error)
	// Logger gets one debug line per connection. Default: discarded.
	Logger *slog.Logger
}

// Server accepts streams on many connections. Loop only.
type Server struct {
	l        *loop.Loop
	handler  Handler
	onClose  func(*ServerConn, error)
	log      *slog.Logger
	sh       shared
	conns    map[*ServerConn]struct{}
	draining bool
}

// NewServer makes a Server on a loop. It starts nothing.
func NewServer(l *loop.Loop, cfg ServerConfig) *Server {
	s := &Server{l: l, handler: cfg.Handler, onClose: cfg.OnClose, log: orDiscard(cfg.Logger), conns: make(map[*ServerConn]struct{})}
	s.sh = shared{limits: cfg.Limits.withDefaults(64 << 10), keepAlive: cfg.KeepAlive.withDefaults(), maxStreams: cfg.MaxStreams, retireBytes: cfg.RetireBytes}
	if s.sh.maxStreams <= 0 {
		s.sh.maxStreams = 200
	}
	if s.sh.retireBytes == 0 {
		s.sh.retireBytes = defaultRetireBytes
	}
	return s
}

// ServerConn is one connection of a Server. Loop only.
type ServerConn struct {
	conn
	srv    *Server
	tag    any
	local  netip.AddrPort
	remote netip.AddrPort
}

// Serve takes a connection whose handshake is done. On error fd stays the caller's. A Server that drains serves it too,
// and tells it to go.
func (s *Server) Serve(fd int, tc *looptls.Conn, tag any) error {
	c := &ServerConn{srv: s, tag: tag}
	c.local, _ = loop.LocalAddr(fd)
	c.remote, _ = loop.PeerAddr(fd)
	f, err := s.l.Add(fd, &c.conn)
	if err != nil {
		return err
	}
	tuneSocket(fd)
	tc.Attach(f)
	c.init(s.l, &s.sh, c, false, tc)
	c.fd, c.tc = f, tc
	c.expireWith(tc.State())
	s.conns[c] = struct{}{}
	f.Wake() // input may have come before it was registered
	s.log.Debug("connection accepted", "peer", c.remote)
	if s.draining {
		c.drain()
	}
	return nil
}

// Drain tells every peer to open no more streams and closes each connection when its last one has ended.
func (s *Server) Drain() {
	s.draining = true
	for c := range s.conns {
		c.drain()
	}
}

// Close ends all connections at once.
func (s *Server) Close() {
	s.draining = true
	for c := range s.conns {
		c.die(ErrDraining)
	}
}

// Each calls f for every connection. f may end it.
func (s *Server) Each(f func(*ServerConn)) {
	for c := range s.conns {
		f(c)
	}
}

// Stats returns the Server's figures. It looks at every connection.
func (s *Server) Stats() ConnStats {
	var st ConnStats
	for c := range s.conns {
		st.add(&c.conn)
	}
	return st
}

// Conn is the connection of a server's stream; nil for a client's.
func (s *Stream) Conn() *ServerConn {
	c, _ := s.c.role.(*ServerConn)
	return c
}

// TLS describes the connection's TLS session.
func (c *ServerConn) TLS() tls.ConnectionState { return c.tc.State() }

// Tag is what was given to Serve.
func (c *ServerConn) Tag() any { return c.tag }

// LocalAddr is the socket's own address.
func (c *ServerConn) LocalAddr() netip.AddrPort { return c.local }

// RemoteAddr is the peer's address.
func (c *ServerConn) RemoteAddr() netip.AddrPort { return c.remote }

// Drain lets the connection take no new streams; it closes when the last one has ended.
func (c *ServerConn) Drain() { c.drain() }

// Cut ends the connection and its streams at once, after a GOAWAY with NO_ERROR. Streams end with err.
func (c *ServerConn) Cut(err error) {
	if c.dead {
		return
	}
	c.writeGoAway(c.lastPeer, CodeNo, "")
	c.flush()
	c.die(err)
}

func (c *ServerConn) serve(s *Stream) { c.srv.handler.ServeConnect(s, s.req) }

// changed implements role.
func (c *ServerConn) changed() {}

// ended implements role.
func (c *ServerConn) ended(err error) {
	delete(c.srv.conns, c)
	c.srv.log.Debug("connection ended", "peer", c.remote, "err", err)
	if c.srv.onClose != nil {
		c.srv.l.Inject(func() { c.srv.onClose(c, err) })
	}
}

// headers implements role: a request.
func (c *ServerConn) headers(id uint32, endStream bool, l *fieldList) error {
	if s := c.streams[id]; s != nil {
		return s.trailers(endStream, l)
	}
	if id%2 == 0 {
		return connError(CodeProtocol, "stream with an even number")
	}
	if id <= c.lastPeer {
		if c.gone.has(id) { // trailers of a stream that we have answered and reset
			return nil
		}
		return connError(CodeStreamClosed, "HEADERS on a closed stream")
	}
	c.lastPeer = id
	if c.draining && c.lastSent { // after the final GOAWAY
		c.writeReset(id, CodeRefusedStream)
		return nil
	}
	if len(c.streams) >= c.sh.maxStreams {
		return c.streamFault(id, CodeRefusedStream)
	}
	if l.tooBig {
		s := newStream(&c.conn, id, nil)
		s.recvEnd = endStream
		s.Reject(431)
		return c.spend(&c.limits.resets, 100, "oversized header lists")
	}
	req, status := parseRequest(l)
	if status == 0 {
		return c.streamFault(id, CodeProtocol)
	}
	s := newStream(&c.conn, id, req)
	if status != 200 {
		s.refusal = status
	} else {
		c.post(s, evServe)
	}
	if endStream {
		s.peerEnded()
	}
	return nil
}

// trailers are for a request that is going to be refused only: a tunnel has none (RFC 9113 section 8.5).
func (s *Stream) trailers(endStream bool, l *fieldList) error {
	if s.recvEnd {
		return s.fault(CodeStreamClosed)
	}
	if s.refusal == 0 || !endStream || len(l.fields) > 0 && strings.HasPrefix(l.fields[0].Name, ":") {
		return s.fault(CodeProtocol)
	}
	s.peerEnded()
	return nil
}

// parseRequest checks a header list. The status is 200 for a CONNECT request, 0 for a malformed one, else what to answer.
func parseRequest(l *fieldList) (*Request, int) {
	var method, authority, scheme, path, protocol *string
	r := &Request{}
	for i := range l.fields {
		f := &l.fields[i]
		if strings.HasPrefix(f.Name, ":") {
			var p **string
			switch f.Name {
			case ":method":
				p = &method
			case ":authority":
				p = &authority
			case ":scheme":
				p = &scheme
			case ":path":
				p = &path
			case ":protocol":
				p = &protocol
			}
			if p == nil || *p != nil || len(r.Header) > 0 || !validValue(f.Value) {
				return nil, 0
			}
			*p = &f.Value
			continue
		}
		if r.Header == nil {
			r.Header = make([]HeaderField, 0, len(l.fields)-i)
		}
		if !validField(f.Name, f.Value) {
			return nil, 0
		}
		r.Header = append(r.Header, HeaderField{f.Name, f.Value})
	}
	if method == nil {
		return nil, 0
	}
	if *method != "CONNECT" {
		if scheme == nil || path == nil || *path == "" || protocol != nil {
			return nil, 0
		}
		return nil, 400
	}
	if authority == nil || *authority == "" || scheme != nil || path != nil || protocol != nil { // RFC 9113 section 8.5, H12
		return nil, 0
	}
	r.Authority = *authority
	return r, 200
}

// connectionFields may not occur in HTTP/2 (RFC 9113 section 8.2.2).
var connectionFields = map[string]bool{"connection": true, "proxy-connection": true, "keep-alive": true, "transfer-encoding": true, "upgrade": true}

// validField checks a field that is not a pseudo-header field.
func validField(name, value string) bool {
	if name == "" || connectionFields[name] || name == "te" && value != "trailers" {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if c <= ' ' || c >= 0x7f || 'A' <= c && c <= 'Z' || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return validValue(value)
}

func validValue(v string) bool { return !strings.ContainsAny(v, "\x00\r\n") }
