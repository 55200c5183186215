package http2

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

const (
	// readBursts is how often a connection is read in one visit, each time at most the loop's buffer.
	readBursts = 4
	// A connection that is ended here is read on for a while, and the bytes dropped: a close with unread input would take
	// back what the peer has not read yet.
	linger = 2 * time.Second
	// spareAfter is how long streams that have ended may stay with their connection.
	spareAfter = time.Second
)

// state is how far a connection has come.
type state uint8

const (
	up      state = iota
	closing       // its streams are over; what is gathered is still to be written, and the peer's end to be seen
	gone          // the pipe is closed
)

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 72<<10); return &b }}

// conn is one connection. Loop only.
type conn struct {
	// immutable
	l          *loop.Loop
	p          loop.Pipe
	client     bool
	lim        Limits
	maxStreams int // server: that the peer may open; client: that it opens
	handler    message.ServerHandler
	notify     message.ConnHandler

	state  state
	why    error // of the end
	told   bool  // notify has been told
	broken error // a write failed
	inTurn bool  // CommitTurn will be called

	// reading
	in                        parser
	block                     block
	dec                       decoder
	settled                   bool // the peer's first SETTINGS have come
	resets, control, settings bucket
	updates                   int // WINDOW_UPDATE frames that are still let pass

	// streams
	table       table
	live        *stream
	lastPeer    uint32 // highest stream that the peer has opened
	nextID      uint32 // of the next stream opened here
	wroteID     uint32 // client: streams above it have not been written at all
	abandoned   abandoned
	pendingHead *stream // have something to be told
	pendingTail *stream
	held        int     // client: streams that wait for SETTINGS
	retired     *stream // linked by nextWait
	retiredAt   time.Duration
	roomChanged bool
	extended    bool // client: the server takes extended CONNECT

	// flow control
	sendWin     int // bytes that may be sent
	recvWin     int // bytes that the peer may send
	unacked     int // received, credit not yet returned
	buffered    int // queued in streams
	peerInitial int // INITIAL_WINDOW_SIZE
	peerStreams int // MAX_CONCURRENT_STREAMS

	// writing
	enc       encoder
	out       *[]byte // frames; nil if there are none
	outAt     int     // written already
	last      *stream // the last frame in out is DATA or HEADERS of this stream ...
	lastAt    int     // ... and begins here
	waitFirst *stream // queue for the connection's window, and for room in out
	waitLast  *stream

	// end of life
	timer      loop.Timer
	armed      time.Duration // when it expires
	born       time.Duration
	blockSince time.Duration
	idleSince  time.Duration
	wroteAt    time.Duration // when the pipe last took something
	drainAt    time.Duration
	endAt      time.Duration // closing: when the peer is not waited for any more
	draining   bool          // GOAWAY was sent, or will be (client)
	drainAcks  uint8         // answers to the PINGs behind it
	lastSent   bool          // ... with the final stream id (server)
	wroteEnd   bool          // closing: the pipe's direction was ended
	peerGone   bool          // the peer has sent GOAWAY
	peerErr    error         // ... with this code
}

func (c *conn) init(p loop.Pipe, client bool, lim Limits, maxStreams uint32, notify message.ConnHandler) {
	if maxStreams == 0 {
		maxStreams = defaultMaxStreams
	}
	l := p.Loop()
	now := l.Now()
	c.l, c.p, c.client, c.lim, c.notify = l, p, client, lim.withDefaults(), notify
	c.maxStreams = int(min(maxStreams, maxStreamID))
	c.nextID = 1
	c.sendWin, c.recvWin, c.peerInitial, c.peerStreams = defaultWindow, c.lim.ConnWindow, defaultWindow, 100
	c.born, c.idleSince, c.wroteAt = now, now, now
	c.resets = newBucket(c.lim.Resets, c.lim.ResetsPerSecond, now)
	c.control = newBucket(c.lim.Control, c.lim.ControlPerSecond, now)
	c.settings = newBucket(c.lim.Settings, c.lim.SettingsPerSecond, now)
	c.updates = c.lim.Control
	c.dec.init()
	c.enc.init()
	if client {
		c.append([]byte(preface))
	} else {
		c.in.preface = len(preface)
	}
	c.writeSettings()
	p.SetHandler(c)
	p.Wake()
	c.arm(min(c.lim.SlowHead, c.lim.Idle))
}

// PipeReady implements loop.PipeHandler.
func (c *conn) PipeReady() {
	c.release()
	if c.state == gone {
		return
	}
	if (c.out != nil || c.waitFirst != nil) && c.p.Writable() {
		c.touch()
	}
	for i := 0; c.state != gone && c.p.Readable(); i++ {
		if i == readBursts {
			c.p.Wake()
			break
		}
		if !c.read() {
			break
		}
	}
}

// read reads once and acts on it; false: there is no more now.
func (c *conn) read() bool {
	buf := c.l.Buffer()
	n, err := c.p.Read(buf)
	if n > 0 {
		if c.state != up {
			return true
		}
		err := c.feed(buf[:n])
		if err == nil {
			c.creditConn()
			return true
		}
		var ce *ConnError
		if errors.As(err, &ce) {
			c.refuse(ce)
		} else {
			c.lost(err)
		}
		return true
	}
	switch {
	case err == nil || errors.Is(err, loop.ErrAgain):
	case c.state != up:
		c.shut()
	default:
		c.lost(err)
	}
	return false
}

// touch sees to it that CommitTurn is called in this turn.
func (c *conn) touch() {
	if !c.inTurn {
		c.inTurn = true
		c.l.AtTurnEnd(c)
	}
}

// CommitTurn implements loop.Committer: what is to be told, then one write of all that the turn has gathered, then those
// who wait for room.
func (c *conn) CommitTurn() {
	c.inTurn = false
	c.release()
	for c.pendingHead != nil {
		s := c.pendingHead
		if c.pendingHead = s.pending; c.pendingHead == nil {
			c.pendingTail = nil
		}
		s.pending, s.queued = nil, false
		s.deliver()
		if s.full && !s.waiting && !s.over && s.err == nil && s.taker != nil && (s.sendWin > 0 && s.open || s.noBody) {
			s.full = false
			s.taker.Room()
		}
	}
	if c.state != gone {
		c.flush()
		c.wake()
		if c.broken != nil {
			c.lost(c.broken)
		} else {
			c.maybeClose()
		}
	}
	if c.state == gone {
		c.tellClosed()
	}
	if c.roomChanged && !c.told {
		c.roomChanged = false
		c.notify.Changed()
	}
}

// tellClosed makes the last call, once every stream has been told.
func (c *conn) tellClosed() {
	if c.told || c.live != nil {
		return
	}
	c.told = true
	c.notify.Closed(c.why)
}

// retire keeps a stream that is over until the turn has ended.
func (c *conn) retire(s *stream) {
	c.release()
	s.nextWait, c.retired = c.retired, s
	c.retiredAt = c.l.Now()
	if c.state == up {
		c.arm(spareAfter)
	}
}

// release recycles the streams that ended in an earlier turn.
func (c *conn) release() {
	if c.retired == nil || c.retiredAt == c.l.Now() {
		return
	}
	for s := c.retired; s != nil; {
		next := s.nextWait
		s.recycle()
		s = next
	}
	c.retired = nil
}

// failAll ends the streams, but for those whose answer has come whole: it is still told.
func (c *conn) failAll(code message.ErrCode, cause error, remote bool) {
	var unsent, sent error
	for s := c.live; s != nil; {
		next := s.next
		if c.client && s.recvEnd && s.err == nil && (s.sentEnd || !s.tunnel) {
			s.close()
			s.sentEnd = true
			s.post()
		} else {
			err := &sent
			retryable := remote && c.client && (!s.open || s.id > c.wroteID)
			if retryable {
				err = &unsent
			}
			if *err == nil {
				*err = &message.StreamError{Code: code, Remote: remote, Retryable: retryable, Cause: cause}
			}
			s.fail(*err, true)
		}
		if next != nil && next.over { // a callback has ended it
			next = c.live
		}
		s = next
	}
}

// lost ends the connection because its pipe has failed, or ended.
func (c *conn) lost(err error) {
	switch {
	case c.state == gone:
		return
	case c.state == closing:
		c.shut()
		return
	case c.peerErr != nil: // the peer had said why
		err = c.peerErr
	case errors.Is(err, io.EOF):
		err = message.ErrGone
	}
	c.end(err)
	cause := err
	if !errors.Is(err, message.ErrGone) {
		cause = errors.Join(message.ErrGone, err)
	}
	c.failAll(message.CodeCancel, cause, true)
	c.tellClosed()
}

// refuse ends the connection for a fault of the peer.
func (c *conn) refuse(e *ConnError) {
	if c.state != up {
		return
	}
	c.writeGoAway(c.lastPeer, e.Code, e.Reason)
	c.toClosing(e)
	c.failAll(e.Code, e, false)
}

// toClosing begins an end in good order.
func (c *conn) toClosing(err error) {
	c.state, c.why, c.roomChanged = closing, err, c.client
	c.endAt = c.l.Now() + linger
	c.arm(linger)
	c.touch()
	if c.p.Readable() {
		c.p.Wake()
	}
}

// end closes the pipe.
func (c *conn) end(err error) {
	if c.state == gone {
		return
	}
	c.state = gone
	if c.why == nil {
		c.why = err
	}
	c.timer.Stop()
	c.dropOut()
	c.block.buf, c.in.payload = nil, nil
	c.p.Close()
	if c.live != nil {
		c.roomChanged = c.client
		c.touch()
	}
}

// shut closes the pipe of a connection whose end had begun.
func (c *conn) shut() {
	c.end(c.why)
	c.tellClosed()
}

// close ends the connection at once, and tells everyone from here.
func (c *conn) close(err error) {
	if c.state == gone {
		return
	}
	if err == nil {
		err = message.ErrDrained
	}
	if c.state == up {
		c.writeGoAway(c.lastPeer, codeNo, "")
		c.flush()
	}
	c.why = err
	c.end(err)
	c.failAll(message.CodeOf(err, message.CodeCancel), err, false)
	c.tellClosed()
}

// Abort implements loop.Aborter: a panic of ours costs this connection.
func (c *conn) Abort(err error) { c.close(err) }

// maybeClose ends a connection that is to end and has nothing left to do.
func (c *conn) maybeClose() {
	if c.state == closing {
		if c.out == nil && !c.wroteEnd {
			c.wroteEnd = true
			if c.p.CloseWrite() != nil {
				c.shut()
			}
		}
		return
	}
	if !c.draining && !c.peerGone || c.live != nil || c.held > 0 {
		return
	}
	if !c.client && !c.peerGone && !c.lastSent {
		return // streams may be on their way
	}
	if c.client || !c.lastSent {
		c.writeGoAway(c.lastPeer, codeNo, "")
	}
	err := c.peerErr
	if err == nil {
		err = message.ErrDrained
	}
	c.toClosing(err)
}

// arm sees to it that the timer expires in d at the latest.
func (c *conn) arm(d time.Duration) {
	at := c.l.Now() + d
	if c.state != gone && (!c.timer.Running() || c.armed > at) {
		c.armed = at
		c.l.Start(&c.timer, d, c)
	}
}

// Expired implements loop.TimerHandler. The timer is not set anew for each event: what is due is found out here.
func (c *conn) Expired(*loop.Timer) {
	if c.state == gone {
		return
	}
	c.release()
	now := c.l.Now()
	next := c.lim.Idle
	due := func(at time.Duration) bool {
		if at <= now {
			return true
		}
		next = min(next, at-now)
		return false
	}
	switch {
	case c.state == closing:
		if due(c.endAt) {
			c.shut()
			return
		}
	case !c.settled && due(c.born+c.lim.SlowHead):
		c.refuse(connError(message.CodeSettingsTimeout, "no preface"))
	case c.block.open && due(c.blockSince+c.lim.SlowHead):
		c.refuse(connError(codeCalm, "slow header block"))
	case c.out != nil && due(c.wroteAt+c.lim.Idle):
		c.lost(message.ErrTimeout)
		return
	case c.draining && !c.client && !c.lastSent && due(c.drainAt+drainWait):
		c.lastGoAway()
	case c.table.n == 0 && !c.draining && due(c.idleSince+c.lim.Idle):
		c.drain()
	default:
		if at := c.resetStalled(now); at > 0 {
			due(at)
		}
	}
	c.arm(next)
}

// resetStalled resets the streams that the peer has not let send for too long, and returns when to look again.
func (c *conn) resetStalled(now time.Duration) (at time.Duration) {
	for s := c.live; s != nil; {
		next := s.next
		if s.full && s.open && s.sendWin <= 0 {
			if due := s.since + c.lim.Idle; due > now {
				if at == 0 || due < at {
					at = due
				}
			} else {
				s.abort(errStalled)
			}
		}
		s = next
	}
	return at
}
