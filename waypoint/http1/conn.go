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

// role is what differs between server and client.
type role interface {
	// head acts on a whole head.
	head(b []byte) error
	// complete acts on the end of a body.
	complete(trailer *message.Header)
	// failed ends the exchange under way, and after it the connection, for err: a fault of the peer, or the connection's
	// end.
	failed(err error)
	// eof acts on the end of the peer's direction.
	eof()
	// turn is called at the end of a turn in which touch was called, before output is written.
	turn()
	// timeout is how long the connection may stay as it is, from the time given, 0 for ever.
	timeout() (since, d time.Duration)
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, maxOut+4<<10); return &b }}

// conn is one connection. Loop only.
type conn struct {
	l      *loop.Loop
	p      loop.Pipe
	role   role
	lim    Limits
	notify message.ConnHandler

	// reading
	state    state
	rest     *[]byte // received, not consumed; nil if empty
	scan     scanner
	body     reader
	taker    message.Taker
	blocked  bool          // the taker has not taken all
	again    bool          // rest is to be offered again
	headFrom time.Duration // since when a head is incomplete; 0: it is not
	ended    bool          // the peer has ended its direction
	early    bool          // a head that has not come whole is waited for
	dropped  int           // of a body that nobody wants

	// writing
	out    *[]byte // what waits to be written; nil if empty
	outAt  int     // written already
	w      writer
	full   bool  // SendData took less than it was given
	broken error // a write failed

	// end of life
	timer   loop.Timer
	armed   time.Duration // when it expires
	last    time.Duration // of progress
	inTurn  bool
	closing bool // the connection ends when out is written
	gone    bool // closed
	why     error
}

func (c *conn) init(p loop.Pipe, r role, lim Limits, notify message.ConnHandler) {
	c.p, c.l, c.role, c.lim, c.notify = p, p.Loop(), r, lim.withDefaults(), notify
	c.last = c.l.Now()
	p.SetHandler(c)
	c.arm(c.lim.Idle)
	p.Wake()
}

// arm sees to it that the timer expires in d at the latest.
func (c *conn) arm(d time.Duration) {
	at := c.l.Now() + d
	if !c.timer.Running() || c.armed > at {
		c.armed = at
		c.l.Start(&c.timer, d, c)
	}
}

// Expired implements loop.TimerHandler. The timer is not set anew for each byte: what is due is found out here.
func (c *conn) Expired(*loop.Timer) {
	if c.gone {
		return
	}
	since, d := c.timeoutNow()
	if d == 0 {
		c.arm(c.lim.Idle)
		return
	}
	if left := since + d - c.l.Now(); left > 0 {
		c.arm(left)
		return
	}
	if c.state == dead {
		c.shut()
		return
	}
	c.role.failed(&message.StreamError{Code: message.CodeCancel, Remote: true, Cause: message.ErrTimeout})
}

func (c *conn) timeoutNow() (since, d time.Duration) {
	if c.state == dead {
		return c.last, linger
	}
	if c.headFrom != 0 {
		return c.headFrom, c.lim.SlowHead
	}
	if c.out != nil {
		return c.last, c.lim.Idle
	}
	return c.role.timeout()
}

// PipeReady implements loop.PipeHandler.
func (c *conn) PipeReady() {
	if c.gone {
		return
	}
	if c.out != nil && c.p.Writable() {
		c.touch()
	}
	for i := 0; !c.gone && c.p.Readable() && c.wants(); i++ {
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
		return c.taker != nil && !c.blocked && (c.restLen() == 0 || !c.again)
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
		c.last = c.l.Now()
		used := c.consume(buf[:k+n])
		c.keep(buf[used : k+n])
		return true
	}
	switch {
	case errors.Is(err, loop.ErrAgain):
	case errors.Is(err, io.EOF):
		c.ended = true
		if c.state == dead {
			c.shut()
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
	if c.state == dead {
		c.shut()
		return
	}
	c.role.failed(&message.StreamError{Code: message.CodeCancel, Remote: true, Cause: errors.Join(message.ErrGone, err)})
}

// keep makes b, which may lie in rest, what is left.
func (c *conn) keep(b []byte) {
	if len(b) == 0 || c.gone || c.state == dead {
		if c.rest != nil {
			*c.rest = (*c.rest)[:0]
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
	c.again = false
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

func (c *conn) readHead(b []byte) (n int, more bool, err error) {
	if c.scan.at == 0 && len(b) >= 2 && b[0] == '\r' && b[1] == '\n' && !c.early {
		c.early = true // one empty line before a head is let pass (RFC 9112 section 2.2)
		return 2, true, nil
	}
	if len(b) == 0 || len(b) == 1 && b[0] == '\r' && !c.early {
		return 0, false, nil
	}
	n, err = c.scan.next(b, c.lim.HeadBytes)
	if err != nil {
		return 0, false, err
	}
	if n == 0 {
		if c.headFrom == 0 {
			c.headFrom = c.l.Now()
			c.arm(c.lim.SlowHead)
		}
		return 0, false, nil
	}
	c.headFrom, c.early = 0, false
	return n, true, c.role.head(b[:n])
}

// readBody hands a piece of a body to the taker.
func (c *conn) readBody(b []byte) (n int, more bool, err error) {
	if c.taker == nil {
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
		c.role.complete(t)
		return skip, true, nil
	case data == 0:
		return skip, skip > 0, nil
	}
	took := c.taker.Data(b[skip : skip+data])
	if c.state != inBody { // the taker has given up
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
	c.blocked, c.again = false, true
	c.touch()
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
	if c.gone {
		return
	}
	if c.broken != nil {
		c.lost(c.broken)
		return
	}
	c.role.turn()
	if c.again && !c.gone && c.state != holding {
		c.reoffer()
		if !c.gone && c.p.Readable() && c.wants() {
			c.p.Wake()
		}
	}
	c.write()
}
