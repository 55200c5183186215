package http1

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// state is what the next byte that was received belongs to.
type state uint8

const (
	reading state = iota // a head
	inBody               // a body
	holding              // nothing now: it waits until the exchange is over
	dead                 // nobody: it is dropped
)

// ending is how a connection that is dead goes.
type ending uint8

const (
	alive    ending = iota
	flushing        // behind what waits to be written
	lingers         // it was ended here, and the peer has not yet
	abrupt          // at once, so that the peer knows
)

// role is what differs between server and client. Its methods may call back, and so end the connection.
type role interface {
	// head parses the head at the beginning of b and acts on it: its length, or errPartial.
	head(b []byte) (int, error)
	// leading says that an empty line may be skipped before a head.
	leading() bool
	// complete acts on the end of a body.
	complete(trailer *message.Header)
	// failed ends the exchange under way, and with it the connection, for err: a fault of the peer, or the connection's end.
	failed(err error)
	// eof acts on the end of the peer's direction.
	eof()
	// due is called in a visit of the pipe, before it is read.
	due()
	// turn is called at the end of a turn in which touch was called, before output is written.
	turn()
	// deadline is when the connection has stayed too long as it is, in the loop's time; 0: never.
	deadline() time.Duration
	// expired acts on that.
	expired()
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, maxOut+4<<10); return &b }}

// conn is one connection. Loop only.
type conn struct {
	// immutable
	l      *loop.Loop
	p      loop.Pipe
	role   role
	lim    limits
	notify message.ConnHandler

	// what comes in
	state    state
	blocked  bool    // the taker has not taken all
	again    bool    // rest is to be offered again
	offering bool    // the taker is being called
	ended    bool    // the peer has ended its direction
	skipped  bool    // an empty line before a head
	extra    bool    // bytes follow what is being acted on
	rest     *[]byte // received, not consumed; nil if empty
	scan     scanner
	body     reader
	taker    message.Taker
	headFrom time.Duration // since when a head is incomplete; 0: it is not
	dropped  int           // of a body that nobody wants

	// what goes out
	out    *[]byte // what waits to be written; nil if empty
	outAt  int     // written already
	w      writer
	full   bool // SendData took less than it was given
	fin    bool // our direction is to be ended behind out
	sunk   bool // a write failed: what is sent is dropped
	broken error
	frame  [20]byte  // of a chunk
	pieces [4][]byte // of a write

	// its life
	timer  loop.Timer
	armed  time.Duration // when it expires
	last   time.Duration // of progress
	inTurn bool
	end    ending
	gone   bool // closed
	why    error
}

func (c *conn) init(p loop.Pipe, r role, lim limits, notify message.ConnHandler) {
	c.p, c.l, c.role, c.lim, c.notify = p, p.Loop(), r, lim, notify
	c.last = c.l.Now()
	p.SetHandler(c)
	c.arm()
	p.Wake()
}

// arm sees to it that the timer expires when something is due, at the latest.
func (c *conn) arm() {
	at := c.deadline()
	if at != 0 && (!c.timer.Running() || c.armed > at) {
		c.armed = at
		c.l.Start(&c.timer, at-c.l.Now(), c)
	}
}

func (c *conn) deadline() time.Duration {
	switch {
	case c.gone:
		return 0
	case c.state == dead && c.end == flushing:
		return c.last + flushTimeout
	case c.state == dead:
		return c.last + linger
	}
	return c.role.deadline()
}

// after is d after the last progress, or 0 for never.
func (c *conn) after(d time.Duration) time.Duration {
	if d == 0 {
		return 0
	}
	return c.last + d
}

// Expired implements loop.TimerHandler. The timer is not set anew for each byte: what is due is found out here.
func (c *conn) Expired(*loop.Timer) {
	switch at := c.deadline(); {
	case at == 0:
	case at > c.l.Now():
		c.arm()
	case c.state == dead:
		c.shut()
	default:
		c.role.expired()
	}
}

// PipeReady implements loop.PipeHandler.
func (c *conn) PipeReady() {
	if c.gone {
		return
	}
	if (c.out != nil || c.full) && c.p.Writable() {
		c.touch()
	}
	c.role.due()
	for i := 0; !c.gone && c.wants() && c.p.Readable(); i++ {
		if i == readBursts {
			c.p.Wake()
			return
		}
		if !c.read() {
			return
		}
	}
}

// wants says whether the pipe should be read now.
func (c *conn) wants() bool {
	switch {
	case c.ended:
		return false
	case c.state == holding:
		return c.restLen() < readAhead
	case c.state == inBody:
		return c.taker != nil && !c.blocked && !c.again
	}
	return true
}

func (c *conn) restLen() int {
	if c.rest == nil {
		return 0
	}
	return len(*c.rest)
}

// read reads once and acts on it; false: there is no more now.
func (c *conn) read() bool {
	buf := c.l.Buffer()
	k := 0
	if c.rest != nil {
		k = copy(buf, *c.rest)
	}
	size := readSize
	if c.state == holding {
		size = readAhead
	}
	n, err := c.p.Read(buf[k:min(k+size, len(buf))])
	if n > 0 {
		if c.state != dead {
			c.last = c.l.Now()
		}
		used := c.consume(buf[:k+n])
		c.keep(buf[used : k+n])
		return true
	}
	switch {
	case errors.Is(err, loop.ErrAgain):
	case errors.Is(err, io.EOF):
		c.ended = true
		if c.state == dead {
			c.shutIfDone()
		} else {
			c.role.eof()
		}
	case err != nil:
		c.lost(err)
	}
	return false
}

// lost ends the connection because its pipe has.
func (c *conn) lost(err error) {
	if c.state != dead {
		c.role.failed(&message.StreamError{Code: message.CodeCancel, Remote: true, Cause: errors.Join(message.ErrGone, err)})
	}
	c.shut()
}

// keep makes b, which may lie in rest, what is left.
func (c *conn) keep(b []byte) {
	if len(b) == 0 || c.gone || c.state == dead {
		if c.rest != nil {
			putBuffer(c.rest)
			c.rest = nil
		}
		return
	}
	if c.rest == nil {
		c.rest = buffers.Get().(*[]byte)
	}
	*c.rest = append((*c.rest)[:0], b...)
}

func putBuffer(b *[]byte) {
	if cap(*b) <= 2*maxOut {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

// reoffer acts on what was kept.
func (c *conn) reoffer() {
	c.again, c.blocked = false, false
	if c.state == holding {
		return
	}
	if c.rest == nil {
		c.consume(nil)
		return
	}
	b := *c.rest
	used := c.consume(b)
	if c.rest != nil {
		c.keep(b[used:])
	}
}

// consume acts on what was received and returns how much of it is done with.
func (c *conn) consume(b []byte) (used int) {
	for !c.gone {
		var n int
		var err error
		more := false
		switch c.state {
		case reading:
			n, more, err = c.readHead(b)
		case inBody:
			n, more, err = c.readBody(b)
		case holding:
			return used
		case dead:
			return used + len(b)
		}
		used += n
		b = b[n:]
		if err != nil {
			c.role.failed(err)
			continue
		}
		if !more {
			return used
		}
	}
	return used + len(b)
}

// atOnceMax is how many bytes are copied to be parsed before it is known whether they hold a whole head.
const atOnceMax = 4 << 10

func (c *conn) readHead(b []byte) (n int, more bool, err error) {
	if len(b) == 0 {
		return 0, false, nil
	}
	if c.scan.at == 0 {
		if b[0] == '\r' && !c.skipped && c.role.leading() { // RFC 9112 section 2.2
			if len(b) > 1 && b[1] == '\n' {
				c.skipped = true
				return 2, true, nil
			}
			if len(b) == 1 {
				c.incomplete()
				return 0, false, nil
			}
		}
		if len(b) <= atOnceMax {
			if n, err = c.role.head(b); err != errPartial {
				return n, true, err
			}
		}
	}
	if n, err = c.scan.next(b, c.lim.head); err != nil {
		return 0, false, err
	}
	if n == 0 {
		c.incomplete()
		return 0, false, nil
	}
	if n, err = c.role.head(b[:n]); err == errPartial {
		err = errLine
	}
	return n, true, err
}

// incomplete has the head's time run.
func (c *conn) incomplete() {
	if c.headFrom == 0 {
		c.headFrom = max(c.l.Now(), 1)
		c.arm()
	}
}

// headDone is called by the roles when a head was parsed.
func (c *conn) headDone() { c.headFrom, c.skipped = 0, false }

// readBody hands a piece of a body to the taker.
func (c *conn) readBody(b []byte) (n int, more bool, err error) {
	if c.taker == nil || c.blocked {
		return 0, false, nil
	}
	skip, data, done, err := c.body.step(b, &c.lim)
	switch {
	case err != nil:
		return skip, false, err
	case done:
		t := &c.body.trailer
		if t.Len() == 0 {
			t = nil
		}
		c.extra = skip < len(b)
		c.role.complete(t)
		return skip, true, nil
	case data == 0:
		return skip, skip > 0, nil
	}
	c.offering = true
	took := c.taker.Data(b[skip : skip+data])
	c.offering = false
	if c.state != inBody || c.gone { // the taker has given up
		return skip + data, true, nil
	}
	c.body.took(took)
	if took < data {
		c.blocked = true
		return skip + took, false, nil
	}
	return skip + took, true, nil
}

// resume has what was kept offered again at the end of the turn.
func (c *conn) resume() {
	if c.state == inBody && (c.blocked || c.offering) {
		c.again = true
		c.touch()
	}
}

// touch sees to it that CommitTurn is called in this turn.
func (c *conn) touch() {
	if !c.inTurn {
		c.inTurn = true
		c.l.AtTurnEnd(c)
	}
}

// CommitTurn implements loop.Committer.
func (c *conn) CommitTurn() {
	c.inTurn = false
	c.role.turn()
	if c.gone {
		return
	}
	if c.again {
		c.reoffer()
		if !c.gone && c.wants() && c.p.Readable() {
			c.p.Wake()
		}
	}
	c.write()
}

// die begins the connection's end: at once with a reset, or in good order behind what waits to be written. It does not
// call back; CommitTurn goes on from here.
func (c *conn) die(err error, reset bool) {
	if c.state == dead || c.gone {
		return
	}
	c.state, c.why, c.taker = dead, err, nil
	c.headFrom = 0
	c.last = c.l.Now()
	c.blocked, c.again, c.full = false, false, false
	c.end = flushing
	if reset {
		c.end = abrupt
		c.dropOut()
	}
	c.touch()
}

// pass takes a dead connection on its way; it is called at the end of a turn.
func (c *conn) pass() {
	switch c.end {
	case abrupt:
		c.p.Reset()
		c.shut()
	case flushing:
		if c.out != nil {
			return
		}
		if c.ended || c.p.CloseWrite() != nil {
			c.shut()
			return
		}
		c.end, c.last = lingers, c.l.Now()
		c.keep(nil)
		if c.p.Readable() {
			c.p.Wake()
		}
	}
}

// shutIfDone closes a dead connection whose peer has ended too, if nothing waits to be written.
func (c *conn) shutIfDone() {
	if c.out == nil {
		c.shut()
	}
}

// shut closes the pipe and says so.
func (c *conn) shut() {
	if c.gone {
		return
	}
	c.gone, c.state = true, dead
	c.timer.Stop()
	c.dropOut()
	c.keep(nil)
	c.taker = nil
	c.p.Close()
	c.notify.Closed(c.why)
}

// Abort implements loop.Aborter: a panic of ours costs this connection.
func (c *conn) Abort(err error) {
	if c.state != dead {
		c.role.failed(&message.StreamError{Code: message.CodeInternal, Cause: err})
	}
	c.shut()
}
