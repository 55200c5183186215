package hbone

import (
	"io"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

const (
	// joinBursts is how often an application is read in one visit, each time at most the loop's buffer.
	joinBursts = 2
	// recordPlain is the plaintext of a TLS record. Frames for peers that want them short are cut so that they fill records.
	recordPlain = 16 << 10
	// maxSlots is the number of frames that one read can fill.
	maxSlots = loop.BufferSize / recordPlain
)

// JoinResult says how a relay ended.
type JoinResult struct {
	// Sent went from the application into the tunnel, Received was taken by the application. Bytes.
	Sent, Received int64
	// Err is nil if both directions ended with FIN and END_STREAM. Else both ends were reset, and Err is the stream's error.
	Err error
}

// JoinHandler is told once, on the loop, that a relay has ended. The application's socket is closed by then.
type JoinHandler interface {
	Joined(r JoinResult)
}

// Join relays between the stream and an application's TCP socket until both directions have ended. It takes over app,
// which must be connected and belong to the stream's loop. END_STREAM becomes FIN and FIN becomes END_STREAM, each leaving
// the other direction open. RST_STREAM, or the end of the connection, becomes RST, behind what was received before it; RST
// becomes RST_STREAM, CANCEL from a client and CONNECT_ERROR from a server. Nothing is sent to the peer before the stream
// has been accepted.
func (s *Stream) Join(app *loop.FD, done JoinHandler) {
	j := &join{s: s, app: app, done: done}
	s.side = j
	s.watch = nil
	s.req, s.resp = nil, nil // a relay may be idle for days
	app.SetHandler(j)
	app.Wake()
	if s.err != nil {
		s.c.post(s, evEnded)
	}
}

// join is one relay.
type join struct {
	s    *Stream
	app  *loop.FD
	done JoinHandler

	received int64
	eof      bool // nothing more is read from the application
	fin      bool // nothing more is written to it
	over     bool
}

// Ready implements loop.Handler.
func (j *join) Ready(*loop.FD) {
	if j.over {
		return
	}
	j.drain()
	j.send()
	j.settle()
}

// take implements side: received data goes straight to the socket if that takes it.
func (j *join) take(pieces [][]byte) {
	if j.over {
		return
	}
	n := 0
	if j.s.queue.Len() == 0 && j.app.Writable() {
		var err error
		if len(pieces) == 1 {
			n, err = j.app.Write(pieces[0])
		} else {
			n, err = j.app.Writev(pieces)
		}
		if err != nil {
			j.fail(err)
			return
		}
	}
	j.received += int64(n)
	j.s.taken += n
	j.s.enqueue(pieces, n)
}

// peerEnded implements side.
func (j *join) peerEnded() {
	if !j.over {
		j.drain()
		j.settle()
	}
}

// resume implements side.
func (j *join) resume() { j.app.Wake() }

// drain writes what is queued, and the FIN behind it.
func (j *join) drain() {
	s := j.s
	if s.queue.Len() > 0 && j.app.Writable() {
		n, err := s.queue.WriteTo(j.app)
		j.received += int64(n)
		s.dequeued(n)
		if err != nil {
			j.fail(err)
			return
		}
	}
	if s.recvEnd && !j.fin && s.queue.Len() == 0 && s.g == nil {
		j.fin = true
		if err := j.app.CloseWrite(); err != nil && err != unix.ENOTCONN {
			j.fail(err)
		}
		s.drained()
	}
}

// send reads the application and writes to the tunnel.
func (j *join) send() {
	s := j.s
	if s.sentEnd { // the peer wants no more
		j.eof = true
	}
	for i := 0; !j.over && !j.eof && j.app.Readable(); i++ {
		room, connWaits := s.maySend()
		if room == 0 {
			if connWaits {
				s.c.enlist(s, i > 0)
			}
			break
		}
		if i == joinBursts {
			j.app.Wake()
			return
		}
		switch err := j.burst(room); err {
		case nil:
		case loop.ErrAgain:
			return
		case io.EOF:
			j.eof = true
			s.sendEnd()
		default:
			j.fail(err)
		}
	}
	if !j.over { // not reading: a reset would go unnoticed
		if err := j.app.Failed(); err != nil {
			j.fail(err)
		}
	}
}

// burst reads once, into the loop's buffer with room left for the frame headers, and sends what it got.
func (j *join) burst(room int) error {
	c := j.s.c
	buf := j.app.Loop().Buffer()
	payload := min(c.peerFrame+frameHeaderLen, len(buf))/recordPlain*recordPlain - frameHeaderLen
	slots := c.sh.slots[:0]
	for at := frameHeaderLen; room > 0 && at+payload <= len(buf); at += frameHeaderLen + payload {
		k := min(room, payload)
		slots = append(slots, buf[at:at+k])
		room -= k
	}
	var n int
	var err error
	if len(slots) == 1 {
		n, err = j.app.Read(slots[0])
	} else {
		n, err = j.app.Readv(slots)
	}
	if err != nil {
		return err
	}
	j.s.spend(n)
	if n < smallFrame {
		copy(c.frame(n, frameData, 0, j.s.id), buf[frameHeaderLen:])
		return nil
	}
	end := 0
	for n > 0 {
		k := min(n, payload)
		putFrameHeader(buf[end:], k, frameData, 0, j.s.id)
		end += frameHeaderLen + k
		n -= k
	}
	c.write(buf[:end])
	return nil
}

// fail is an error of the application's socket.
func (j *join) fail(err error) {
	code := CodeConnect
	if j.s.c.client {
		code = CodeCancel
	}
	j.s.cut(code, err)
	j.close(true)
}

// settle ends the relay when both directions have ended.
func (j *join) settle() {
	if j.eof && j.fin && !j.over {
		j.close(false)
		j.s.c.post(j.s, evJoined)
	}
}

func (j *join) close(reset bool) {
	j.over = true
	if reset {
		j.app.Reset()
	} else {
		j.app.Close()
	}
}

// ended implements side.
func (j *join) ended() {
	if j.s.lost != nil && !j.over && j.app.Unsent() > 0 {
		j.over = true
		j.s.lost.leave(j)
		return
	}
	j.close(true)
	j.joined()
}

// joined implements side.
func (j *join) joined() {
	if j.done == nil {
		return
	}
	d := j.done
	j.done = nil
	d.Joined(JoinResult{Sent: j.s.sent, Received: j.received, Err: j.s.err})
}

// pump implements side.
func (j *join) pump() {}
