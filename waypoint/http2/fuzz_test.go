package http2

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// user is somebody who has a stream and does one of several things with it. It minds the rules of message, so that what it
// is told has to be in order too.
type user struct {
	t      *testing.T
	kind   int
	s      message.ClientStream // also a server's
	down   message.ServerStream
	owed   int  // bytes that it wants to send
	over   bool // the stream must not be used any more
	ended  bool
	sent   bool // SendEnd was called
	client bool
	method string
	tunnel bool
}

// sendEnd ends its direction.
func (u *user) sendEnd(h *message.Header) {
	u.sent = true
	if u.tunnel {
		u.over = u.over || u.ended
	} else {
		u.over = !u.client
	}
	u.s.SendEnd(h)
}

func (u *user) Data(p []byte) int {
	u.alive("Data")
	if u.ended {
		u.t.Error("Data behind the end")
	}
	switch u.kind {
	case 0:
		return u.s.SendData(p)
	case 1:
		return len(p) / 2
	case 2:
		return 0
	case 3:
		u.over = true
		u.s.Reset(errors.New("enough"))
		return len(p)
	}
	return len(p)
}

func (u *user) End(h *message.Header) {
	u.alive("End")
	if u.ended {
		u.t.Error("End twice")
	}
	u.ended = true
	if u.tunnel {
		u.over = u.sent
		if u.kind == 0 && !u.sent {
			u.sendEnd(nil)
		}
		return
	}
	if u.client {
		u.over = true
		return
	}
	switch u.kind {
	case 0:
		u.sendEnd(h)
	case 4:
		u.over = true
		u.down.SendHead(response(200, "a", "b"), true)
	}
}

func (u *user) Failed(err error) {
	u.alive("Failed")
	if err == nil {
		u.t.Error("failed without a reason")
	}
	u.over = true
}

func (u *user) Room() {
	u.alive("Room")
	if u.kind == 0 || u.kind == 1 {
		u.s.Resume()
		return
	}
	u.send()
}

func (u *user) send() {
	if u.owed -= u.s.SendData(zeros[:min(len(zeros), u.owed)]); u.owed <= 0 && !u.over && !u.sent {
		u.sendEnd(nil)
	}
}

func (u *user) Interim(*message.Response) { u.alive("Interim") }
func (u *user) Head(r *message.Response, end bool) {
	u.alive("Head")
	if r.Status < 200 && (r.Status != 101 || r.Upgrade == "") || r.Status > 599 {
		u.t.Errorf("status %d", r.Status)
	}
	dump(&r.Header)
	u.tunnel = !end && (r.Status == 101 || u.method == "CONNECT" && r.Status/100 == 2)
}

func (u *user) alive(what string) {
	if u.over {
		u.t.Errorf("%s for a stream that is over", what)
	}
}

// crowd is the users of a connection.
type crowd struct {
	t      *testing.T
	users  []*user
	parked []message.ServerStream
	closed int
}

func (c *crowd) Closed(error) { c.closed++ }
func (c *crowd) Changed()     {}

func (c *crowd) ServeRequest(s message.ServerStream) {
	dump(&s.Request().Header)
	u := &user{t: c.t, kind: len(c.users) % 8, s: s.(message.ClientStream), down: s, owed: 200_000}
	c.users = append(c.users, u)
	switch u.kind {
	case 0:
		status := 200
		if s.Request().Upgrade != "" {
			status = 101
		}
		u.tunnel = status == 101 || s.Request().Method == "CONNECT"
		s.SendHead(response(status, "kind", "0"), false)
	case 5: // answered at once
		u.over = true
		s.SendHead(response(404), true)
		return
	case 6: // parked; play finds it another user
		u.over = true
		c.parked = append(c.parked, s)
		return
	case 7:
		s.SendInterim(response(103))
		u.tunnel = s.Request().Method == "CONNECT"
		s.SendHead(response(200), false)
		s.SetTaker(u)
		u.send()
		return
	}
	s.SetTaker(u)
}

// check looks for accounts that do not add up. On the loop.
func check(t *testing.T, c *conn) {
	held, open, waiting := 0, 0, 0
	for s := c.live; s != nil; s = s.next {
		held += s.queue.Len()
		if s.open {
			open++
			if c.table.get(s.id) != s {
				t.Errorf("stream %d is not in the table", s.id)
			}
		}
		if s.waiting {
			waiting++
		}
		coming := 0 // of the DATA frame that is being read
		if c.in.inFrame && c.in.cur == s {
			coming = max(0, c.in.left-c.in.pad) // padding is credited as soon as it is announced
		}
		if n := s.recvWin + s.taken + s.queue.Len() + coming; s.open && n != c.lim.Window {
			t.Errorf("stream %d: window %d + taken %d + queued %d + coming %d", s.id, s.recvWin, s.taken, s.queue.Len(), coming)
		}
		if s.over || s.recvWin < 0 || s.queue.Len() > c.lim.Window || s.c != c {
			t.Errorf("stream %d: over %v, window %d, queue %d", s.id, s.over, s.recvWin, s.queue.Len())
		}
	}
	for s := c.waitFirst; s != nil; s = s.nextWait {
		waiting--
	}
	if held != c.buffered || open != c.table.n || waiting != 0 || (c.waitFirst == nil) != (c.waitLast == nil) {
		t.Errorf("held %d, counted %d; open %d, counted %d; waiting %d", held, c.buffered, open, c.table.n, waiting)
	}
	if c.state == up && c.recvWin+c.unacked != c.lim.ConnWindow {
		t.Errorf("window %d + %d", c.recvWin, c.unacked)
	}
	if c.pendingOut() > c.lim.Output+c.lim.Replies+(1<<20) || len(c.block.buf) > maxBlock || len(c.in.payload) > maxFrame {
		t.Errorf("gathered %d, block of %d, payload of %d", c.pendingOut(), len(c.block.buf), len(c.in.payload))
	}
}

// play gives bytes to a connection, cut in pieces, and ends it.
func (r *rig) play(t *testing.T, in []byte, cut uint8, cr *crowd) {
	for dead := false; len(in) > 0 && !dead; {
		k := len(in)
		if cut > 0 {
			k = min(k, int(cut))
		}
		b := bytes.Clone(in[:k])
		in = in[k:]
		r.l.OnLoop(func() {
			check(t, r.c)
			if dead = r.p.closed; dead {
				return
			}
			if cut%3 == 1 {
				r.p.full += int(cut) * 50
			}
			r.p.in = append(r.p.in, b...)
			r.p.h.PipeReady()
		})
	}
	r.settle()
	r.l.OnLoop(func() { check(t, r.c) })
	r.l.OnLoop(func() { r.p.limited = false })
	r.hangUp(io.EOF)
	r.do(func() {
		for i, s := range cr.parked {
			if i%2 == 0 {
				s.SendHead(response(503), true)
			} else {
				u := &user{t: t, kind: 4, down: s}
				cr.users = append(cr.users, u)
				s.SetTaker(u)
			}
		}
		for _, u := range cr.users { // complete answers, still to be taken
			if !u.over && u.kind < 3 {
				u.kind = 4
				u.s.Resume()
			}
		}
	})
	r.l.OnLoop(func() {
		for i, u := range cr.users {
			if !u.over {
				t.Errorf("user %d of kind %d has not been told", i, u.kind)
			}
		}
		if cr.closed != 1 || r.c.live != nil || r.c.table.n != 0 || r.c.state != gone || r.c.buffered != 0 {
			t.Errorf("closed %d times, streams %v, %d open, state %d, held %d", cr.closed, r.c.live != nil, r.c.table.n, r.c.state, r.c.buffered)
		}
		if n := r.l.Stats().Panics; n > 0 {
			t.Fatalf("%d panics", n)
		}
	})
}

// start makes the connection, and a client's requests.
func (cr *crowd) start(r *rig, client bool) {
	lim := Limits{Window: 20_000, Buffered: 50_000}
	if !client {
		r.sc = NewServer(r.p, ServerConfig{MaxStreams: 16, Limits: lim}, cr, cr)
		r.c = &r.sc.c
		return
	}
	r.cc = NewClient(r.p, ClientConfig{Limits: lim}, cr)
	r.c = &r.cc.c
	for i := range 10 {
		u := &user{t: cr.t, kind: i % 5, client: true, owed: 100_000}
		u.method = []string{"GET", "HEAD", "CONNECT"}[i%3]
		q := &message.Request{Method: u.method, Path: "/", Authority: "a:1"}
		if i == 6 {
			q.Upgrade = "websocket"
		}
		var err error
		if u.s, err = r.cc.Open(q, i%4 == 3, u); err != nil {
			cr.t.Fatal(err)
		}
		cr.users = append(cr.users, u)
		if i%4 == 2 {
			u.send()
		}
	}
}

func FuzzServerConn(f *testing.F) {
	seed := func(script func(r *rig)) {
		r := newRig(f, &loop.Loop{})
		script(r)
		for _, cut := range []uint8{0, 1, 7, 100} {
			f.Add(bytes.Clone(r.wbuf.Bytes()), cut)
		}
	}
	seed(func(r *rig) {
		for i := range uint32(10) {
			r.request(2*i+1, "POST", false, "x", "y")
			r.wr.WriteData(2*i+1, false, []byte("hello"))
			r.wr.WriteDataPadded(2*i+1, i%2 == 0, []byte("bye"), make([]byte, 3))
			r.headers(2*i+1, true, "a", "b")
			r.wr.WriteWindowUpdate(0, 100_000)
			r.wr.WriteWindowUpdate(2*i+1, 1000)
		}
	})
	seed(func(r *rig) {
		for i := range uint32(9) {
			r.request(2*i+1, "GET", i%2 == 0, "content-length", "5")
		}
		r.wr.WriteSettings(http2.Setting{ID: 4, Val: 10}, http2.Setting{ID: 1, Val: 0})
		r.wr.WriteRSTStream(15, http2.ErrCodeCancel)
		r.wr.WriteSettings(http2.Setting{ID: 4, Val: 200_000})
		r.wr.WriteGoAway(0, http2.ErrCodeNo, []byte("x"))
	})
	seed(func(r *rig) {
		r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(":method", "CONNECT"), PadLength: 4, Priority: http2.PriorityParam{StreamDep: 3}})
		r.wr.WriteContinuation(1, true, r.block(":authority", "x:1", ":protocol", "websocket", ":path", "/", ":scheme", "http"))
		r.wr.WritePing(false, [8]byte{})
		r.wr.WriteRawFrame(0x42, 0xff, 9, []byte("x"))
		r.wr.WritePriority(1, http2.PriorityParam{StreamDep: 1})
	})
	l := running(f)
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		r := newRig(t, l)
		cr := &crowd{t: t}
		r.p.null, r.p.limited = true, cut%3 == 1
		r.do(func() { cr.start(r, false) })
		r.play(t, append([]byte(preface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), in...), cut, cr)
	})
}

func FuzzClientConn(f *testing.F) {
	r := newRig(f, &loop.Loop{})
	r.headers(1, false, ":status", "200")
	r.headers(3, true, ":status", "503")
	r.headers(5, false, ":status", "100")
	r.wr.WriteData(1, true, []byte("x"))
	r.wr.WriteRSTStream(5, http2.ErrCodeRefusedStream)
	r.headers(7, false, ":status", "200", "content-length", "8")
	r.wr.WriteDataPadded(7, false, make([]byte, 8), make([]byte, 100))
	r.headers(7, true, "grpc-status", "0")
	r.wr.WriteWindowUpdate(0, 1<<20)
	r.wr.WriteWindowUpdate(9, 1<<20)
	r.wr.WriteGoAway(9, http2.ErrCodeNo, nil)
	r.headers(9, false, ":status", "200")
	r.wr.WriteData(9, true, make([]byte, 8))
	for _, cut := range []uint8{0, 1, 3, 100} {
		f.Add(bytes.Clone(r.wbuf.Bytes()), cut)
	}
	l := running(f)
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		r := newRig(t, l)
		cr := &crowd{t: t}
		r.p.null, r.p.limited = true, cut%3 == 1
		r.do(func() { cr.start(r, true) })
		r.play(t, append([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00"), in...), cut, cr)
	})
}

// talk makes frames of bytes, most of them as they should be: two bytes are one step.
func (r *rig) talk(script []byte) {
	next := uint32(1) // of the next request, mostly
	for i := 0; i+1 < len(script) && i < 400; i += 2 {
		op, arg := script[i], uint32(script[i+1])
		id := 2*(arg%12) + 1
		end := arg&0x10 != 0
		if op%20 < 5 && arg < 240 {
			id = next
			next += 2
		}
		switch op % 20 {
		case 0, 1:
			r.request(id, []string{"GET", "POST", "HEAD"}[arg%3], end)
		case 2:
			r.request(id, "POST", end, "content-length", []string{"0", "5", "20"}[arg%3], "x", string(rune('a'+arg%26)))
		case 3:
			r.headers(id, false, ":method", "CONNECT", ":authority", "a:1")
		case 4:
			r.request(id, "CONNECT", end, ":protocol", "websocket")
		case 5:
			r.headers(id, end, ":status", []string{"200", "100", "304", "503"}[arg%4])
		case 6:
			r.headers(id, end, ":status", "200", "content-length", "5")
		case 7:
			r.headers(id, true, "grpc-status", "0")
		case 8, 9:
			r.wr.WriteData(id, end, make([]byte, 5))
		case 10:
			r.wr.WriteData(id, end, make([]byte, 1+arg*60))
		case 11:
			r.wr.WriteDataPadded(id, end, make([]byte, arg%20), make([]byte, arg))
		case 12:
			r.wr.WriteWindowUpdate(id, 1+arg*500)
		case 13:
			r.wr.WriteWindowUpdate(0, 1+arg*1000)
		case 14:
			r.wr.WriteRSTStream(id, http2.ErrCode(arg%14))
		case 15:
			r.wr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: arg * arg * 8})
		case 16:
			r.wr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: arg * 20}, http2.Setting{ID: settingExtendedConnect, Val: 1})
		case 17:
			if arg < 16 {
				r.wr.WriteGoAway(arg, http2.ErrCode(arg%2), nil)
			}
		case 18:
			r.wr.WritePing(arg%2 == 0, [8]byte{})
		case 19:
			r.headers(id, end, "x", "y", "z", "w")
		}
	}
}

// FuzzTalk has a peer that knows how to write frames, but not when.
func FuzzTalk(f *testing.F) {
	f.Add([]byte{0, 1, 8, 1, 8, 0x11, 2, 2, 10, 0xf2, 13, 200, 12, 100, 7, 2}, uint8(50), false)
	f.Add([]byte{5, 0, 8, 0, 7, 0, 6, 1, 8, 0x11, 14, 3, 5, 4, 10, 0x24, 13, 200}, uint8(0), true)
	f.Add([]byte{3, 0, 8, 0, 4, 1, 8, 1, 14, 0, 15, 0, 15, 200, 17, 3}, uint8(100), false)
	l := running(f)
	f.Fuzz(func(t *testing.T, script []byte, cut uint8, client bool) {
		r := newRig(t, l)
		if client {
			r.wr.WriteSettings(http2.Setting{ID: settingExtendedConnect, Val: 1})
		} else {
			r.wbuf.WriteString(preface)
			r.wr.WriteSettings()
		}
		r.talk(script)
		cr := &crowd{t: t}
		r.p.null, r.p.limited = true, cut%3 == 1
		r.do(func() { cr.start(r, client) })
		if cut > 0 && cut < 20 {
			cut = 20
		}
		r.play(t, r.wbuf.Bytes(), cut, cr)
	})
}
