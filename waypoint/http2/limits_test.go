package http2

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// flood sends bursts of frames, twenty at a time, until the connection ends, and returns how many that took, at most limit.
func flood(r *rig, limit int, burst func(i int)) int {
	for i := range limit {
		if burst(i); i%20 != 19 && i != limit-1 {
			continue
		}
		r.send()
		if r.c.state != up {
			return i + 1
		}
		r.p.out.Reset()
	}
	r.t.Errorf("%d bursts were put up with", limit)
	return limit
}

func TestFloodsEndTheConnection(t *testing.T) {
	id := func(i int) uint32 { return uint32(2*i + 1) }
	many := strings.Split(strings.Repeat("a b ", 110), " ")[:220]
	ten := func(f func()) {
		for range 10 {
			f()
		}
	}
	for name, c := range map[string]struct {
		burst func(r *rig, i int)
		most  int
	}{
		"rapid reset (B1)": {func(r *rig, i int) {
			r.request(id(i), "GET", true)
			r.wr.WriteRSTStream(id(i), http2.ErrCodeCancel)
		}, 3000},
		"made you reset by WINDOW_UPDATE (B2)": {func(r *rig, i int) {
			r.request(id(i), "GET", false)
			r.wr.WriteRawFrame(frameWindowUpdate, 0, id(i), u32(0))
		}, 3000},
		"made you reset by PRIORITY (B2)": {func(r *rig, i int) {
			r.request(id(i), "GET", false)
			r.wr.WriteRawFrame(framePriority, 0, id(i), append(u32(id(i)), 0))
		}, 3000},
		"malformed requests":        {func(r *rig, i int) { r.request(id(i), "GET", true, "X", "y") }, 3000},
		"SETTINGS (B5)":             {func(r *rig, i int) { r.wr.WriteSettings() }, 300},
		"initial window (B5)":       {func(r *rig, i int) { r.wr.WriteSettings(http2.Setting{ID: 4, Val: uint32(i % 2)}) }, 300},
		"PING (B5)":                 {func(r *rig, i int) { ten(func() { r.wr.WritePing(false, [8]byte{}) }) }, 300},
		"PRIORITY (B5)":             {func(r *rig, i int) { ten(func() { r.wr.WritePriority(id(i), http2.PriorityParam{}) }) }, 300},
		"unknown frames":            {func(r *rig, i int) { ten(func() { r.wr.WriteRawFrame(0xbe, 0, 0, []byte("x")) }) }, 300},
		"WINDOW_UPDATE":             {func(r *rig, i int) { ten(func() { r.wr.WriteWindowUpdate(0, 1) }) }, 300},
		"streams beyond the limit":  {func(r *rig, i int) { r.request(id(i), "GET", false) }, 3000},
		"GOAWAY":                    {func(r *rig, i int) { goAways(r, i) }, 300},
		"heads beyond the limit":    {func(r *rig, i int) { r.request(id(i), "GET", true, many...) }, 300},
		"endless CONTINUATION (B3)": {func(r *rig, i int) { continuation(r, i, 1000) }, 20},
		"empty CONTINUATION (B3)":   {func(r *rig, i int) { continuation(r, i, 0) }, 20},
		"large CONTINUATION (B3)":   {func(r *rig, i int) { continuation(r, i, 16000) }, 6},
		"table size updates (B4)": {func(r *rig, i int) {
			r.wr.WriteRawFrame(frameHeaders, flagEndHeaders, id(i), bytes.Repeat([]byte{0x20}, 1000))
		}, 1},
		"empty DATA frames (B5)":     {func(r *rig, i int) { emptyData(r, i) }, 300},
		"DATA for closed streams":    {func(r *rig, i int) { closedData(r, i) }, 5000},
		"HEADERS behind the request": {func(r *rig, i int) { r.request(id(i), "GET", true); r.headers(id(i), true, "a", "b") }, 3000},
	} {
		t.Run(name, func(t *testing.T) {
			r := serverRig(t, ServerConfig{MaxStreams: 100})
			r.onServe = func(s message.ServerStream) { s.SetTaker(&taker{r: r, limit: -1}) }
			n := flood(r, c.most, func(i int) { c.burst(r, i) })
			t.Logf("after %d", n)
			got := r.frames()
			if len(got) == 0 || !strings.HasPrefix(got[len(got)-1], "GOAWAY") ||
				!strings.Contains(got[len(got)-1], "ENHANCE_YOUR_CALM") && !strings.Contains(got[len(got)-1], "COMPRESSION_ERROR") {
				t.Errorf("frames %q", got)
			}
			var ce *ConnError
			r.hangUp(io.EOF)
			if !errors.As(r.closed, &ce) || r.closes != 1 {
				t.Errorf("closed %d times with %v", r.closes, r.closed)
			}
		})
	}
}

func continuation(r *rig, i, size int) {
	typ := http2.FrameContinuation
	if i == 0 {
		typ = http2.FrameHeaders
	}
	r.wr.WriteRawFrame(typ, 0, 1, bytes.Repeat([]byte{0x82}, size))
}

func emptyData(r *rig, i int) {
	if i == 0 {
		r.request(1, "POST", false)
	}
	for range 10 {
		r.wr.WriteData(1, false, nil)
	}
}

func goAways(r *rig, i int) {
	if i == 0 {
		r.request(1, "POST", false)
	}
	for range 10 {
		r.wr.WriteGoAway(0, 0, nil)
	}
}

func closedData(r *rig, i int) {
	if i == 0 {
		r.request(1, "POST", true)
		r.wr.WriteRSTStream(1, 0)
		for id := range uint32(300) { // so that the reset of 1 is forgotten
			r.request(2*id+3, "GET", true)
			r.wr.WriteRSTStream(2*id+3, 0)
		}
	}
	r.wr.WriteData(uint32(2*(i%300)+1), false, []byte("x"))
}

func TestPingsThatGoWithDataAreNotAFlood(t *testing.T) { // as gRPC's to find the bandwidth
	r := serverRig(t, ServerConfig{})
	_, k := r.serve(1, "POST", false)
	for i := range 8000 {
		r.wr.WriteData(1, false, []byte("0123456789"))
		r.wr.WritePing(false, [8]byte{})
		if i%100 == 99 {
			r.send()
			r.p.out.Reset()
		}
	}
	if r.c.state != up || k.got.Len() != 80_000 {
		t.Errorf("%d bytes arrived, closed with %v", k.got.Len(), r.closed)
	}
}

func TestManySmallWindowUpdatesForManyBytesAreNotAFlood(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, k := r.serve(1, "GET", true)
	r.do(func() { s.SendHead(response(200), false) })
	r.p.null = true
	k.onRoom = func() { s.SendData(zeros) }
	r.do(func() { s.SendData(zeros) })
	for range 20_000 / 50 {
		for range 50 {
			r.wr.WriteWindowUpdate(1, 512)
			r.wr.WriteWindowUpdate(0, 512)
		}
		r.send()
	}
	if r.c.state != up {
		t.Errorf("closed with %v", r.closed)
	}
}

func TestAnHPACKBombIsDefused(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.request(1, "GET", true, "cookie-like", strings.Repeat("x", 4000)) // fills the table
	r.send()
	r.frames()
	b := append(r.block(":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"), bytes.Repeat([]byte{0xbf}, 10_000)...)
	r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: b, EndHeaders: true, EndStream: true})
	r.send()
	r.wantFrames("HEADERS[3] :status=431 END")
	if len(r.requests) != 1 {
		t.Errorf("served %d", len(r.requests))
	}
	r.serve(5, "GET", true) // the table is as it should be
}

func TestTooManyFieldsAreRefused(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	var kv []string
	for range 102 {
		kv = append(kv, "a", "b")
	}
	r.request(1, "GET", false, kv...)
	r.send()
	r.wantFrames("HEADERS[1] :status=431 END", "RST[1] NO_ERROR")
	r.serve(3, "GET", true, kv[:190]...)
}

func TestStreamsBeyondTheLimitAreRefused(t *testing.T) {
	r := serverRig(t, ServerConfig{MaxStreams: 2})
	s, _ := r.serve(1, "GET", true)
	r.serve(3, "GET", true)
	r.request(5, "GET", true)
	r.send()
	r.wantFrames("RST[5] REFUSED_STREAM")
	r.do(func() { s.SendHead(response(200), true) })
	r.frames()
	r.serve(7, "GET", true)
}

func TestAPeerThatDoesNotReadCannotMakeUsRemember(t *testing.T) {
	r := serverRig(t, ServerConfig{Limits: Limits{Replies: 10_000, Control: 100_000}})
	r.do(func() { r.p.limited = true })
	for i := range 2000 {
		r.wr.WritePing(false, [8]byte{})
		if i%100 == 0 {
			r.send()
		}
	}
	r.send()
	if r.c.state != gone || r.closes != 1 {
		t.Errorf("state %d, closed %d times", r.c.state, r.closes)
	}
}

func TestALargeTrailerIsRefused(t *testing.T) { // B6
	r := serverRig(t, ServerConfig{})
	_, k := r.serve(1, "POST", false)
	b := r.block("a", strings.Repeat("!", 61_500)) // not shorter in Huffman's code
	for i := 0; i < len(b); i += maxFrame {
		p := b[i:min(len(b), i+maxFrame)]
		flags := http2.Flags(0)
		if i+maxFrame >= len(b) {
			flags = flagEndHeaders
		}
		if i == 0 {
			r.wr.WriteRawFrame(frameHeaders, flags|flagEndStream, 1, p)
		} else {
			r.wr.WriteRawFrame(frameContinuation, flags, 1, p)
		}
	}
	r.send()
	if k.err == nil {
		t.Errorf("frames %q", r.frames())
	}
}

func TestTheConnectionPushesBackBeyondTheBudget(t *testing.T) {
	r := serverRig(t, ServerConfig{Limits: Limits{Window: 100_000, ConnWindow: 100_000, Buffered: 50_000}})
	s, k := r.serve(1, "POST", false)
	_, k2 := r.serve(3, "POST", false)
	k.limit, k2.limit = 0, 0
	sent := 0
	for r.c.recvWin >= 10_000 && sent < 200_000 {
		r.wr.WriteData(uint32(1+2*(sent/10_000%2)), false, make([]byte, 10_000))
		r.send()
		sent += 10_000
	}
	if sent > 150_000 || r.c.buffered != sent {
		t.Errorf("%d bytes were let through, %d are held", sent, r.c.buffered)
	}
	r.do(func() { k.limit = -1; s.Resume() })
	if r.c.recvWin+r.c.unacked != 100_000 || r.c.recvWin < 50_000 || k.got.Len()+r.c.buffered != sent {
		t.Errorf("window %d, to be returned %d, got %d", r.c.recvWin, r.c.unacked, k.got.Len())
	}
}

// until waits for something that time brings about.
func until(r *rig, what string, done func() bool) {
	r.t.Helper()
	for range 1000 {
		ok := false
		r.l.OnLoop(func() { ok = done() })
		if ok {
			r.settle()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Fatalf("%s does not come", what)
}

func TestASlowStartEndsTheConnection(t *testing.T) { // B7
	r := newRig(t, nil)
	r.do(func() {
		r.sc = NewServer(r.p, ServerConfig{Limits: Limits{SlowHead: 10 * time.Millisecond}}, r, r)
		r.c = &r.sc.c
	})
	r.recv([]byte(preface)[:10])
	until(r, "the end", func() bool { return r.c.state != up })
	r.wantGoAway(message.CodeSettingsTimeout)
}

func TestASlowHeaderBlockEndsTheConnection(t *testing.T) { // B7
	r := serverRig(t, ServerConfig{})
	r.do(func() { r.c.lim.SlowHead = 10 * time.Millisecond })
	r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
	r.send()
	until(r, "the end", func() bool { return r.c.state != up })
	r.wantGoAway(message.CodeEnhanceYourCalm)
}

func TestAnIdleConnectionIsDrained(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.do(func() { r.c.lim.Idle = 10 * time.Millisecond; r.c.timer.Stop(); r.c.arm(0) })
	until(r, "GOAWAY", func() bool { return r.c.draining })
	if got := r.frames(); len(got) < 2 || got[0] != "GOAWAY 2147483647 NO_ERROR" || got[1] != "PING" {
		t.Errorf("frames %q", got)
	}
}

func TestAWindowThatStaysAtZeroResetsTheStream(t *testing.T) { // B7
	r := serverRig(t, ServerConfig{})
	r.wr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	r.send()
	s, k := r.serve(1, "GET", true)
	r.do(func() { r.c.lim.Idle = 10 * time.Millisecond })
	r.do(func() { s.SendHead(response(200), false); s.SendData([]byte("x")) })
	until(r, "the reset", func() bool { return k.err != nil })
	if !errors.Is(k.err, message.ErrTimeout) {
		t.Errorf("told %v", k.err)
	}
	if got := r.frames(); !slices.Contains(got, "RST[1] CANCEL") {
		t.Errorf("frames %q", got)
	}
}
