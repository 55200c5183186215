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
	if c.sunk {
		c.dropOut()
		return
	}
	c.touch()
}

// dropOut drops what waits to be written.
func (c *conn) dropOut() {
	if c.out != nil {
		putBuffer(c.out)
		c.out, c.outAt = nil, 0
	}
}

// flush writes what the pipe takes.
func (c *conn) flush() {
	if c.out == nil || c.sunk || c.gone || !c.p.Writable() {
		return
	}
	b := (*c.out)[c.outAt:]
	n, err := c.p.Write(b)
	c.wrote(n, err)
	c.outAt += n
	switch {
	case err != nil:
		c.dropOut()
	case n == len(b):
		c.dropOut()
	case c.outAt >= maxOut/2: // make the room at the front usable
		rest := copy(*c.out, (*c.out)[c.outAt:])
		*c.out, c.outAt = (*c.out)[:rest], 0
	}
}

// wrote accounts for a write. After one that failed all output is dropped; what the peer has sent before is still read.
func (c *conn) wrote(n int, err error) {
	if n > 0 {
		c.last = c.l.Now()
	}
	if err != nil {
		c.broken, c.sunk = err, true
		c.touch()
	}
}

// write writes the turn's output, tells who waits for room, and takes the connection's end on its way.
func (c *conn) write() {
	c.flush()
	if c.full && (c.sunk || c.room() >= maxOut/2) && c.state != dead {
		c.full = false
		if c.taker != nil {
			c.taker.Room()
		}
		if c.gone {
			return
		}
		c.flush()
		if c.full && c.p.Writable() { // the pipe takes more, but others have their turn
			c.p.Wake()
		}
	}
	switch {
	case c.state == dead:
		c.pass()
	case c.fin && c.out == nil:
		c.fin = false
		if !c.sunk {
			c.p.CloseWrite()
		}
	}
	c.arm()
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

// send takes body bytes and returns how many there was room for.
func (c *conn) send(p []byte) int {
	if c.w.kind == noBody || c.sunk || c.gone {
		return len(p)
	}
	if c.w.kind == byLength && int64(len(p)) > c.w.left {
		c.wrote(0, &message.StreamError{Code: message.CodeInternal, Cause: errBodyLength})
		return len(p)
	}
	done := 0
	for done < len(p) && !c.sunk {
		rest := p[done:]
		if len(rest) >= directMin && c.room() > maxOut-directMin && c.p.Writable() {
			done += c.sendDirect(rest[:min(len(rest), maxOut)])
			continue
		}
		room := c.room() - chunkFrame
		if room <= 0 {
			if c.p.Writable() {
				c.flush()
			}
			if c.room() <= chunkFrame {
				c.full = true
				break
			}
			continue
		}
		n := min(room, len(rest))
		b := c.buffer()
		if c.w.kind == chunked {
			b = strconv.AppendInt(b, int64(n), 16)
			b = append(b, "\r\n"...)
			b = append(b, rest[:n]...)
			b = append(b, "\r\n"...)
		} else {
			b = append(b, rest[:n]...)
		}
		c.setBuffer(b)
		done += n
	}
	if c.w.kind == byLength {
		c.w.left -= int64(done)
	}
	if c.sunk {
		return len(p)
	}
	return done
}

var crlf = []byte("\r\n")

// sendDirect writes a large piece from where it is, behind what waits; what the pipe does not take is kept. It takes all.
func (c *conn) sendDirect(p []byte) int {
	q := c.pieces[:0]
	if c.out != nil {
		q = append(q, (*c.out)[c.outAt:])
	}
	if c.w.kind == chunked {
		h := strconv.AppendInt(c.frame[:0], int64(len(p)), 16)
		q = append(q, append(h, "\r\n"...), p, crlf)
	} else {
		q = append(q, p)
	}
	n, err := c.p.Writev(q)
	c.wrote(n, err)
	left := q
	if c.out != nil {
		k := min(n, len(q[0]))
		if c.outAt += k; k == len(q[0]) {
			c.dropOut()
		}
		n -= k
		left = q[1:]
	}
	for _, b := range left {
		k := min(n, len(b))
		n -= k
		if k < len(b) && !c.sunk {
			c.setBuffer(append(c.buffer(), b[k:]...))
		}
	}
	clear(c.pieces[:])
	return len(p)
}

// finish takes the end of the body.
func (c *conn) finish(trailer *message.Header) {
	switch {
	case c.w.kind == chunked:
		c.setBuffer(appendEnd(c.buffer(), trailer))
	case c.w.kind == byLength && c.w.left > 0 && !c.sunk:
		c.wrote(0, &message.StreamError{Code: message.CodeInternal, Cause: errBodyLength})
	}
	c.w = writer{}
}
