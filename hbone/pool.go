package hbone

import (
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
)

// PoolConfig configures a Pool.
type PoolConfig struct {
	// Dial makes a connection for a key: TCP and the TLS handshake. It is called on the loop and must not block; done is to
	// be called exactly once, from any goroutine, with a descriptor and its handshaken connection, or an error. tag is that of
	// the Open that caused it. Required.
	Dial func(key Key, tag any, done func(fd int, c *looptls.Conn, err error))
	// StreamsPerConn is the number of streams on one connection; the peer may allow fewer. Default 100.
	StreamsPerConn int
	// IdleTimeout is how long a connection without streams is kept. Default 5 min; negative: for ever.
	IdleTimeout time.Duration
	// RetireBytes is the plaintext sealed after which a connection takes no new streams. At twice as
	// much it ends with what it carries. Default 128 GiB; negative: never.
	RetireBytes int64
	KeepAlive   KeepAlive
	Limits      Limits
	// Logger gets one debug line per connection. Default: discarded.
	Logger *slog.Logger
}

// PoolStats are a Pool's figures.
type PoolStats struct {
	ConnStats
	// Waiting is the number of Open calls that wait for a connection, Dialing that of dials under way.
	Waiting, Dialing int
	// Dials and DialErrors count since the start.
	Dials, DialErrors int64
}

// OpenHandler is told, once and on the loop, how Open ended.
type OpenHandler interface {
	// StreamOpened: the peer answered 200.
	StreamOpened(s *Stream, resp *Response)
	// StreamFailed: a StatusError (the peer's answer), a DialError, a StreamError, ErrDraining, or the end of the connection.
	StreamFailed(err error)
}

// preopen: another connection is dialled when the best one is this full, in percent.
const preopen = 80

// maxTries is how often a request is sent that the peer says it has not looked at.
const maxTries = 3

// Pool opens streams to many peers, over as few connections as their limits allow. Loop only.
type Pool struct {
	l              *loop.Loop
	dial           func(Key, any, func(int, *looptls.Conn, error))
	streamsPerConn int
	log            *slog.Logger
	sh             shared
	entries        map[Key]*entry
	draining       bool
	stats          PoolStats
}

// entry is what a Pool has for one key.
type entry struct {
	key     Key
	conns   []*clientConn
	waiters []*Opening
	dialing bool
	dialTag any  // of the dial under way
	stale   bool // Retire was called while dialling
	serving bool

	preopenAfter time.Duration // not before this a dial ahead of need
}

// preopenPause is how long after a failed dial none is made ahead of need.
const preopenPause = 5 * time.Second

// NewPool makes a Pool on a loop. It starts nothing.
func NewPool(l *loop.Loop, cfg PoolConfig) *Pool {
	p := &Pool{l: l, dial: cfg.Dial, streamsPerConn: cfg.StreamsPerConn, log: orDiscard(cfg.Logger), entries: make(map[Key]*entry)}
	if p.streamsPerConn <= 0 {
		p.streamsPerConn = 100
	}
	p.sh = shared{
		limits: cfg.Limits.withDefaults(16 << 10), keepAlive: cfg.KeepAlive.withDefaults(),
		idleTimeout: cfg.IdleTimeout, retireBytes: cfg.RetireBytes,
	}
	if p.sh.idleTimeout == 0 {
		p.sh.idleTimeout = 5 * time.Minute
	}
	if p.sh.retireBytes == 0 {
		p.sh.retireBytes = defaultRetireBytes
	}
	return p
}

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// Opening is a request that has not been answered yet.
type Opening struct {
	p     *Pool
	e     *entry
	tag   any
	req   *Request
	h     OpenHandler // nil once it was called, or canceled
	s     *Stream     // nil while waiting for a connection
	tries int
}

// Open asks for a stream. h is called later, never from here. tag goes to Dial, if there is one.
func (p *Pool) Open(key Key, tag any, req *Request, h OpenHandler) *Opening {
	o := &Opening{p: p, tag: tag, req: req, h: h}
	if p.draining {
		p.l.Inject(func() { o.ended(ErrDraining) })
		return o
	}
	e := p.entries[key]
	if e == nil {
		e = &entry{key: key}
		p.entries[key] = e
	}
	o.e = e
	e.waiters = append(e.waiters, o)
	p.serve(e)
	return o
}

// Cancel gives the request up; its handler is not called any more. After the handler was called it does nothing.
func (o *Opening) Cancel() {
	if o.h == nil {
		return
	}
	o.h = nil
	if s := o.s; s != nil {
		o.s, s.opener = nil, nil
		s.cut(CodeCancel, ErrCanceled)
		return
	}
	if o.e == nil {
		return
	}
	for i, w := range o.e.waiters {
		if w == o {
			o.e.waiters = append(o.e.waiters[:i], o.e.waiters[i+1:]...)
			break
		}
	}
	o.p.tidy(o.e)
}

// opened is told by the stream.
func (o *Opening) opened(s *Stream) {
	h := o.h
	o.h, o.s = nil, nil
	if h != nil {
		h.StreamOpened(s, s.resp)
	}
}

// ended is told by the stream, or by a dial that failed. A request that the peer has not looked at is sent again.
func (o *Opening) ended(err error) {
	if o.h == nil {
		return
	}
	var se *StreamError
	if o.s != nil && errors.As(err, &se) && se.Remote && se.Code == CodeRefusedStream && o.tries < maxTries && !o.p.draining {
		o.s = nil
		o.e = o.p.entry(o.e.key)
		o.e.waiters = append(o.e.waiters, o)
		o.p.serve(o.e)
		return
	}
	h := o.h
	o.h, o.s = nil, nil
	h.StreamFailed(err)
}

func (p *Pool) entry(key Key) *entry {
	e := p.entries[key]
	if e == nil {
		e = &entry{key: key}
		p.entries[key] = e
	}
	return e
}

// serve gives waiters their streams, and dials if there are too few connections.
func (p *Pool) serve(e *entry) {
	if e.serving { // opening a stream can end a connection
		return
	}
	e.serving = true
	for len(e.waiters) > 0 {
		c := e.best()
		if c == nil {
			break
		}
		o := e.waiters[0]
		e.waiters[0] = nil
		e.waiters = e.waiters[1:]
		o.tries++
		c.open(o)
	}
	e.serving = false
	if len(e.waiters) == 0 {
		e.waiters = nil
	}
	if !p.draining && (len(e.waiters) > 0 || p.nearlyFull(e)) {
		p.connect(e)
	}
	p.tidy(e)
}

// nearlyFull says that there is room, but so little that another connection should be on its way.
func (p *Pool) nearlyFull(e *entry) bool {
	c := e.best()
	return c != nil && len(c.streams)*100 >= c.limit()*preopen && p.l.Now() >= e.preopenAfter
}

// best is the connection with the fewest streams that has room, or nil.
func (e *entry) best() *clientConn {
	var best *clientConn
	for _, c := range e.conns {
		if c.slots() > 0 && (best == nil || len(c.streams) < len(best.streams)) {
			best = c
		}
	}
	return best
}

func (e *entry) drop(c *clientConn) {
	for i, x := range e.conns {
		if x == c {
			e.conns = append(e.conns[:i], e.conns[i+1:]...)
			return
		}
	}
}

// tidy forgets a key of which nothing is left.
func (p *Pool) tidy(e *entry) {
	if len(e.conns) == 0 && len(e.waiters) == 0 && !e.dialing && p.entries[e.key] == e {
		delete(p.entries, e.key)
	}
}

// connect dials, unless that is under way.
func (p *Pool) connect(e *entry) {
	if e.dialing {
		return
	}
	e.dialing, e.stale = true, false
	p.stats.Dials++
	p.stats.Dialing++
	if len(e.waiters) > 0 {
		e.dialTag = e.waiters[0].tag
	} else { // ahead of need: as the connection that is nearly full
		e.dialTag = e.best().tag
	}
	p.dial(e.key, e.dialTag, func(fd int, c *looptls.Conn, err error) {
		p.l.Inject(func() { p.dialed(e, fd, c, err) })
	})
}

// dialed is the outcome of a dial. A failure goes to all who wait, at once.
func (p *Pool) dialed(e *entry, fd int, tc *looptls.Conn, err error) {
	tag := e.dialTag
	e.dialing, e.dialTag = false, nil
	p.stats.Dialing--
	if err == nil && (p.draining || e.stale) {
		unix.Close(fd)
		p.serve(e)
		return
	}
	var c *clientConn
	if err == nil {
		if c, err = p.attach(e, fd, tc, tag); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		p.stats.DialErrors++
		e.preopenAfter = p.l.Now() + preopenPause
		p.log.Debug("no connection", "peer", e.key.Addr, "err", err)
		failed := e.waiters
		e.waiters = nil
		p.tidy(e)
		for _, o := range failed {
			o.ended(&DialError{Key: e.key, Err: err})
		}
		return
	}
	p.log.Debug("connected", "peer", e.key.Addr)
	e.conns = append(e.conns, c)
	p.serve(e)
}

// Retire lets the connections that match take no new streams; those that they carry go on. match is given the key and the
// tag of the dial. New connections are made when they are needed.
func (p *Pool) Retire(match func(key Key, tag any) bool) {
	p.each(match, func(c *clientConn) { c.drain() })
}

// Cut ends the connections that match, as for Retire, and their streams, at once. Streams end with err.
func (p *Pool) Cut(match func(key Key, tag any) bool, err error) {
	p.each(match, func(c *clientConn) { c.die(err) })
}

func (p *Pool) each(match func(Key, any) bool, f func(*clientConn)) {
	for k, e := range p.entries {
		if e.dialing && match(k, e.dialTag) {
			e.stale = true
		}
		for _, c := range append([]*clientConn(nil), e.conns...) {
			if match(k, c.tag) {
				f(c)
			}
		}
	}
}

func all(Key, any) bool { return true }

// Drain refuses new streams from now on, with ErrDraining, and closes each connection when its last stream has ended.
func (p *Pool) Drain() {
	if p.draining {
		return
	}
	p.draining = true
	for _, e := range p.entries {
		failed := e.waiters
		e.waiters = nil
		for _, o := range failed {
			p.l.Inject(func() { o.ended(ErrDraining) })
		}
	}
	p.Retire(all)
}

// Close ends all connections at once.
func (p *Pool) Close() {
	p.Drain()
	p.Cut(all, ErrDraining)
}

// Stats returns the Pool's figures. It looks at every connection.
func (p *Pool) Stats() PoolStats {
	s := p.stats
	for _, e := range p.entries {
		s.Waiting += len(e.waiters)
		for _, c := range e.conns {
			s.add(&c.conn)
		}
	}
	return s
}

func (s *ConnStats) add(c *conn) {
	s.Conns++
	s.Streams += len(c.streams)
	s.Buffered += c.buffered
	s.Queued += c.tr.Queued()
	if c.draining || c.peerGone {
		s.Draining++
	}
}

// notSentLowat is the data that the kernel accepts ahead of what it can send, in bytes. Beyond that it would only make
// small messages wait behind a bulk stream.
const notSentLowat = 256 << 10

func tuneSocket(fd int) {
	// both only matter for speed, and fail on what is not TCP
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat)
}
