package hbone

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
)

const (
	// readBursts is how often a connection is read in one visit, each time at most the loop's buffer.
	readBursts = 4
	// maxQueued is the ciphertext waiting for the socket above which applications are not read any more; below resumeAt
	// they are again. Bytes.
	maxQueued = 256 << 10
	resumeAt  = 128 << 10
	// smallFrame is the payload below which a DATA frame joins the turn's batch instead of being sealed on its own.
	smallFrame = 8 << 10
	// maxBatch is the size at which a batch is written before the turn's end.
	maxBatch = 64 << 10
	// A connection that we end is read on for a while, and the bytes dropped: a close with unread input, or input that comes
	// after it, would have the kernel send a RST and forget what it has not delivered yet. lingerBad is for peers that broke a
	// rule, lingerGood for those whose last stream's data may still be on its way.
	lingerBad  = time.Second
	lingerGood = 15 * time.Second
)

var batches = sync.Pool{New: func() any { b := make([]byte, 0, maxBatch+smallFrame+frameHeaderLen); return &b }}

// transport is what a connection runs on: looptls.Conn, or a fake in tests.
type transport interface {
	ReadRecords(budget int, fn func(plain []byte) error) error
	Write(p []byte) error
	Flush() error
	Queued() int
	BytesSealed() int64
	CloseNotify()
}

// role is what differs between client and server.
type role interface {
	// headers acts on the header list of a stream; l is valid during the call.
	headers(stream uint32, endStream bool, l *fieldList) error
	// changed tells that a stream has ended or that the peer allows more or fewer.
	changed()
	// ended tells that the connection is gone, after its streams have been ended.
	ended(err error)
}

// shared is what the connections of a Pool or Server have in common.
type shared struct {
	limits      Limits
	keepAlive   KeepAlive
	maxStreams  int // that the peer may open; clients: 0
	retireBytes int64
	idleTimeout time.Duration // clients; 0 = never

	// loop only
	buffered int // bytes that wait for stalled applications
	slots    [maxSlots][]byte
}

// conn is one HTTP/2 connection. Loop only.
type conn struct {
	l      *loop.Loop
	sh     *shared
	role   role
	client bool
	fd     *loop.FD
	tr     transport
	tc     *looptls.Conn      // tr, but for tests
	feeder func([]byte) error // c.feed

	// reading
	in      parser
	block   block
	dec     *headerDecoder
	limits  buckets
	settled bool // the peer's first SETTINGS have come

	// streams
	streams  map[uint32]*Stream
	lastPeer uint32 // highest stream that the peer has opened
	nextID   uint32 // of the next stream opened here
	gone     gone

	// flow control
	sendWin     int // bytes that may be sent
	recvWin     int // bytes that the peer may send
	unacked     int // received, credit not yet returned
	buffered    int // received and waiting for stalled applications
	peerInitial int // INITIAL_WINDOW_SIZE
	peerFrame   int // MAX_FRAME_SIZE
	peerStreams int // MAX_CONCURRENT_STREAMS

	// writing
	batch   *[]byte   // frames of this turn; nil if there are none
	inTurn  bool      // CommitTurn will be called
	later   []*Stream // have something to tell
	dirty   []*Stream // have data or an end to pass on, after this burst
	starved []*Stream // wait to send, and have sent nothing since they were last woken
	waiting []*Stream // wait to send
	revisit []*Stream // pipes that asked for a visit in the next turn

	// end of life
	tick       loop.Timer
	born       time.Duration
	lastRead   time.Duration
	pingAt     time.Duration // 0: no ping is under way
	blockSince time.Duration
	idleSince  time.Duration
	drainAt    time.Duration
	expires    time.Time // of the peer's certificate; zero: never
	draining   bool      // we have sent GOAWAY
	drainAcks  uint8     // answers to the PINGs behind it
	lastSent   bool      // ... with the final stream id (servers)
	lastTaken  uint32    // that id
	peerGone   bool      // the peer has sent GOAWAY
	awayAt     time.Duration
	peerErr    *ConnError
	dead       bool // streams and callbacks are over
	lingering  bool // dead, but the descriptor is still being read
}

// init starts the connection on a registered descriptor.
func (c *conn) init(l *loop.Loop, sh *shared, r role, client bool, tr transport) {
	now := l.Now()
	*c = conn{
		l: l, sh: sh, role: r, client: client, tr: tr,
		streams: make(map[uint32]*Stream), nextID: 1, limits: sh.limits.buckets(now),
		sendWin: defaultWindow, recvWin: connWindow, peerInitial: defaultWindow, peerFrame: defaultFrame, peerStreams: defaultPeerStreams,
		dec:  newHeaderDecoder(sh.limits.HeaderListBytes),
		born: now, lastRead: now, idleSince: now,
	}
	c.feeder = c.feed
	if client {
		c.append([]byte(clientPreface))
	} else {
		c.in.preface = len(clientPreface)
	}
	c.writeSettings()
	c.startTick()
}

// Ready implements loop.Handler.
func (c *conn) Ready(f *loop.FD) {
	if c.lingering {
		c.discard()
		return
	}
	if c.tr.Queued() > 0 && f.Writable() {
		if err := c.tr.Flush(); err != nil {
			c.lose(err)
			return
		}
		c.resume()
		c.touch() // a drained connection may be waiting to close
	}
	for i, s := range c.revisit {
		c.revisit[i] = nil
		c.post(s, evPump)
	}
	c.revisit = c.revisit[:0]
	for i := 0; f.Readable() && !c.dead; i++ {
		if i == readBursts {
			f.Wake()
			break
		}
		err := c.tr.ReadRecords(loop.BufferSize, c.feeder)
		c.flushDirty()
		if err != nil && err != loop.ErrAgain {
			c.readFailed(err)
			break
		}
	}
}

func (c *conn) readFailed(err error) {
	var ce *ConnError
	if errors.As(err, &ce) && !ce.Remote {
		c.sendAway(ce)
		return
	}
	if c.peerErr != nil { // the peer had said why
		err = c.peerErr
	}
	if err == io.EOF { // the connection's, in good order; to a stream that is open still it is none
		err = io.ErrUnexpectedEOF
	}
	c.lose(err)
}

// touch sees to it that CommitTurn is called in this turn.
func (c *conn) touch() {
	if !c.inTurn {
		c.inTurn = true
		c.l.AtTurnEnd(c)
	}
}

// CommitTurn implements loop.Committer: callbacks, then one write of all that the turn has gathered.
func (c *conn) CommitTurn() {
	for i := 0; i < len(c.later); i++ { // a callback may append
		s := c.later[i]
		c.later[i] = nil
		s.tell()
	}
	c.later = c.later[:0]
	c.inTurn = false
	if c.dead {
		return
	}
	c.flush()
	c.maybeClose()
}

// frame appends a frame to the batch and returns the place of its payload.
func (c *conn) frame(length int, typ, flags byte, stream uint32) []byte {
	b := c.room(frameHeaderLen + length)
	putFrameHeader(b, length, typ, flags, stream)
	return b[frameHeaderLen:]
}

// append appends whole frames to the batch.
func (c *conn) append(p []byte) { copy(c.room(len(p)), p) }

// room extends the batch by n bytes.
func (c *conn) room(n int) []byte {
	if c.batch != nil && len(*c.batch)+n > maxBatch {
		c.flush()
	}
	if c.batch == nil {
		c.batch = batches.Get().(*[]byte)
	}
	c.touch()
	b := *c.batch
	at := len(b)
	if cap(b) >= at+n {
		b = b[:at+n]
	} else {
		b = append(b, make([]byte, n)...)
	}
	*c.batch = b
	return b[at:]
}

// flush writes the batch.
func (c *conn) flush() {
	b := c.batch
	if b == nil {
		return
	}
	c.batch = nil
	if !c.dead {
		err := c.tr.Write(*b)
		if err == nil && c.tr.Queued() > c.sh.limits.ReplyBytes {
			err = connError(CodeEnhanceYourCalm, "peer does not read")
		}
		if err != nil {
			c.lose(err)
		}
	}
	if cap(*b) <= 2*maxBatch {
		*b = (*b)[:0]
		batches.Put(b)
	}
}

// write sends whole frames at once, behind the batch.
func (c *conn) write(p []byte) {
	c.flush()
	if c.dead {
		return
	}
	if err := c.tr.Write(p); err != nil {
		c.lose(err)
	}
}

// congested says that applications should not be read.
func (c *conn) congested() bool { return c.tr.Queued() > maxQueued }

// post has s.tell called at the end of the turn.
func (c *conn) post(s *Stream, ev event) {
	if s.events == 0 {
		c.later = append(c.later, s)
	}
	s.events |= ev
	c.touch()
}

// writeHeaders sends a header block, in several frames if the peer wants them short. encode appends it.
func (c *conn) writeHeaders(stream uint32, endStream bool, encode func([]byte) []byte) {
	buf := batches.Get().(*[]byte)
	b := encode((*buf)[:0])
	typ, flags := byte(frameHeaders), byte(0)
	if endStream {
		flags = flagEndStream
	}
	for {
		n := min(len(b), defaultFrame)
		if n == len(b) {
			flags |= flagEndHeaders
		}
		copy(c.frame(n, typ, flags, stream), b)
		if b = b[n:]; len(b) == 0 {
			break
		}
		typ, flags = frameContinuation, 0
	}
	batches.Put(buf)
}

// writeReset sends RST_STREAM, and remembers the stream so that what is still on its way is ignored.
func (c *conn) writeReset(stream uint32, code ErrCode) {
	if c.dead {
		return
	}
	c.gone.add(stream)
	binary.BigEndian.PutUint32(c.frame(4, frameRST, 0, stream), uint32(code))
}

// idle says that a stream has not been opened yet.
func (c *conn) idle(id uint32) bool {
	if id%2 == 0 { // only a server's pushes have even numbers, and there are none
		return true
	}
	if c.client {
		return id >= c.nextID
	}
	return id > c.lastPeer
}

// remove takes a stream out.
func (c *conn) remove(s *Stream) {
	if s.removed {
		return
	}
	s.removed = true
	delete(c.streams, s.id)
	if c.in.cur == s {
		c.in.cur = nil
	}
	if len(c.streams) == 0 {
		c.idleSince = c.l.Now()
	}
	c.touch()
	if !c.dead {
		c.role.changed()
	}
}

// Abort implements loop.Aborter: a panic of ours costs this connection.
func (c *conn) Abort(err error) { c.die(err) }

// die ends the connection without a word, and with it at once all that its streams hold.
func (c *conn) die(err error) { c.down(err, (*Stream).end) }

// lose is die when it is not our doing: what has been received is still delivered.
func (c *conn) lose(err error) { c.down(err, (*Stream).lose) }

func (c *conn) down(err error, each func(*Stream, error)) {
	if c.dead {
		return
	}
	c.dead = true
	c.tick.Stop()
	c.fd.Close()
	c.endStreams(err, each)
}

func (c *conn) endStreams(err error, each func(*Stream, error)) {
	if b := c.batch; b != nil {
		c.batch = nil
		*b = (*b)[:0]
		batches.Put(b)
	}
	for _, s := range c.streams {
		each(s, err)
	}
	c.starved, c.waiting = nil, nil
	c.role.ended(err)
}

// sendAway ends the connection for a fault of the peer: GOAWAY, then no more writing; reading goes on for a moment.
func (c *conn) sendAway(e *ConnError) {
	if c.dead {
		return
	}
	c.writeGoAway(c.lastPeer, e.Code, e.Reason)
	c.flush()
	if c.dead {
		return
	}
	c.linger(e, lingerBad)
}

// linger ends the connection with close_notify and FIN, and reads it until the peer closes too or the time is over.
func (c *conn) linger(err error, d time.Duration) {
	c.tr.CloseNotify()
	c.dead = true
	if c.tr.Queued() > 0 || c.fd.CloseWrite() != nil {
		c.tick.Stop()
		c.fd.Close()
	} else {
		c.lingering = true
		c.l.Start(&c.tick, d, c)
		c.fd.Wake()
	}
	c.endStreams(err, (*Stream).end)
}

// discard drops what still arrives.
func (c *conn) discard() {
	for range readBursts {
		if _, err := c.fd.Read(c.l.Buffer()); err != nil {
			if err != loop.ErrAgain {
				c.tick.Stop()
				c.fd.Close()
			}
			return
		}
	}
	c.fd.Wake()
}

// bye ends the connection in good order, when nothing is queued.
func (c *conn) bye() {
	c.flush()
	if !c.dead {
		c.linger(errConnClosed, lingerGood)
	}
}
