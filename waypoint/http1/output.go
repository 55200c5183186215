package http1

import (
	"strconv"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// buffer returns what waits to be written, to be appended to and given to setBuffer.
func (c *conn) buffer() []byte {
	if c.out == nil {
		c.out = buffers.Get().(*[]byte)
		c.outAt = 0
	}
	return *c.out
}

func (c *conn) setBuffer(b []byte) {
	*c.out = b
	c.touch()
}

// drop drops what waits to be written.
func (c *conn) dropOut() {
	if c.out != nil {
		putBuffer(c.out)
		c.out = nil
	}
}

// flush writes what the pipe takes.
func (c *conn) flush() {
	if c.out == nil || c.broken != nil || c.gone {
		return
	}
	b := (*c.out)[c.outAt:]
	n, err := c.p.Write(b)
	if n > 0 {
		c.last = c.l.Now()
	}
	c.outAt += n
	switch {
	case err != nil:
		c.broken = err
		c.touch()
	case n == len(b):
		c.dropOut()
	case c.outAt >= maxOut/2: // make the room at the front usable
		rest := copy(*c.out, (*c.out)[c.outAt:])
		*c.out, c.outAt = (*c.out)[:rest], 0
	}
}

// write writes the turn's output, and tells who waits for room.
func (c *conn) write() {
	if c.gone {
		return
	}
	c.flush()
	if c.full && c.broken == nil && c.room() >= maxOut/2 && c.state != dead {
		c.full = false
		if c.taker != nil {
			c.taker.Room()
		}
		c.flush()
		if c.full && c.out == nil && !c.gone { // the pipe takes more, but others have their turn
			c.p.Wake()
			c.touch()
		}
	}
	if c.closing && c.out == nil && !c.gone {
		c.closing = false
		if c.p.CloseWrite() != nil || c.ended {
			c.shut()
		}
	}
}

// room is how many bytes may still be gathered.
func (c *conn) room() int {
	if c.out == nil {
		return maxOut
	}
	return maxOut - (len(*c.out) - c.outAt)
}

// chunkFrame is what a chunk costs besides its data, at most.
const chunkFrame = 12

// send gathers body bytes and returns how many there was room for.
func (c *conn) send(p []byte) int {
	switch c.w.kind {
	case noBody:
		return len(p)
	case byLength:
		if int64(len(p)) > c.w.left {
			c.broken = errLonger
			c.touch()
			return len(p)
		}
	}
	done := 0
	for done < len(p) && c.broken == nil {
		room := c.room() - chunkFrame
		if room <= 0 {
			if c.flush(); c.room() <= chunkFrame {
				c.full = true
				break
			}
			continue
		}
		n := min(room, len(p)-done)
		b := c.buffer()
		if c.w.kind == chunked {
			b = strconv.AppendInt(b, int64(n), 16)
			b = append(b, "\r\n"...)
			b = append(b, p[done:done+n]...)
			b = append(b, "\r\n"...)
		} else {
			b = append(b, p[done:done+n]...)
		}
		c.setBuffer(b)
		done += n
		if len(b)-c.outAt >= flushAt && c.p.Writable() {
			c.flush()
		}
	}
	if c.w.kind == byLength {
		c.w.left -= int64(done)
	}
	if c.broken != nil {
		return len(p)
	}
	return done
}

// finish gathers what ends the body.
func (c *conn) finish(trailer *message.Header) {
	switch c.w.kind {
	case chunked:
		c.setBuffer(appendEnd(c.buffer(), trailer))
	case byLength:
		if c.w.left > 0 {
			c.broken = errShorter
			c.touch()
		}
	}
	c.w = writer{}
}

// errLonger and errShorter are faults of ours.
var (
	errLonger  = &message.StreamError{Code: message.CodeInternal, Cause: errLengthOurs}
	errShorter = errLonger
)

var errLengthOurs = malformed("body is not as long as its Content-Length")

// die ends the connection: at once with a reset, or in good order behind what waits to be written.
func (c *conn) die(err error, reset bool) {
	if c.state == dead || c.gone {
		return
	}
	c.state, c.why, c.taker = dead, err, nil
	c.headFrom = 0
	c.last = c.l.Now()
	if c.rest != nil {
		c.keep(nil)
	}
	if reset {
		c.dropOut()
		c.p.Reset()
		c.shut()
		return
	}
	c.closing = true
	c.touch()
	c.arm(linger)
	if c.p.Readable() {
		c.p.Wake()
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
	c.p.Close()
	c.notify.Closed(c.why)
}

// Abort implements loop.Aborter: a panic of ours costs this connection.
func (c *conn) Abort(err error) {
	if c.state == dead {
		c.shut()
		return
	}
	c.role.failed(&message.StreamError{Code: message.CodeInternal, Cause: err})
}
