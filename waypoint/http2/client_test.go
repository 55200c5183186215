package http2

import (
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

func TestARequestIsSentAndItsAnswerTold(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	s, k := r.open("POST", false, "content-type", "text/plain", "te", "trailers", "te", "gzip", "connection", "close")
	r.do(func() {
		s.SendData([]byte("hello"))
		s.SendEnd(nil)
	})
	r.wantFrames("HEADERS[1] :method=POST :authority=a.example :scheme=http :path=/x content-type=text/plain te=trailers", "DATA[1] 5 END")
	r.headers(1, false, ":status", "103", "link", "x")
	r.headers(1, false, ":status", "200", "a", "b")
	r.wr.WriteData(1, false, []byte("answer"))
	r.headers(1, true, "grpc-status", "0", "content-length", "7")
	r.send()
	if k.status != 200 || k.head != "a=b" || k.got.String() != "answer" || k.trailer != "grpc-status=0" || len(k.interims) != 1 || !k.ended {
		t.Errorf("told %+v", k)
	}
	if r.cc.Streams() != 0 {
		t.Errorf("%d streams left", r.cc.Streams())
	}
	r.wantFrames()
}

func TestAnAnswerWithoutABodyEnds(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	_, k := r.open("GET", true)
	r.headers(1, true, ":status", "204")
	r.send()
	if k.status != 204 || !k.headEnd || !k.ended {
		t.Errorf("told %+v", k)
	}
	_, k = r.open("HEAD", true)
	r.headers(3, true, ":status", "200", "content-length", "500")
	r.send()
	if k.status != 200 || !k.ended {
		t.Errorf("told %+v", k)
	}
}

func TestAnAnswerAheadOfTheRequestsEndGivesUpTheRest(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	s, k := r.open("POST", false)
	r.frames()
	r.headers(1, true, ":status", "413")
	r.send()
	r.wantFrames("RST[1] NO_ERROR")
	r.do(func() {
		if n := s.SendData([]byte("abc")); n != 3 {
			t.Errorf("took %d", n)
		}
		s.SendEnd(nil)
	})
	r.wantFrames()
	if !k.ended {
		t.Error("not ended")
	}
}

func TestResetsAreMappedToTheirCodes(t *testing.T) {
	for code, retryable := range map[http2.ErrCode]bool{
		http2.ErrCodeRefusedStream: true, http2.ErrCodeInternal: false, http2.ErrCodeCancel: false, http2.ErrCodeNo: false, http2.ErrCodeHTTP11Required: false,
	} {
		r := clientRig(t, ClientConfig{})
		_, k := r.open("POST", false)
		r.wr.WriteRSTStream(1, code)
		r.send()
		var se *message.StreamError
		if !errors.As(k.err, &se) || se.Code != message.ErrCode(code) || !se.Remote || se.Retryable != retryable {
			t.Errorf("%v: told %#v", code, k.err)
		}
	}
}

func TestAServersStopSendingDoesNotCutItsAnswer(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	s, k := r.open("POST", false)
	k.limit = 0
	r.headers(1, false, ":status", "200")
	r.wr.WriteData(1, true, []byte("answer"))
	r.wr.WriteRSTStream(1, http2.ErrCodeNo)
	r.send()
	if k.ended || k.err != nil {
		t.Fatalf("told %+v", k)
	}
	r.do(func() { k.limit = -1; s.Resume() })
	if !k.ended || k.got.String() != "answer" {
		t.Errorf("told %+v", k)
	}
}

func TestAWholeAnswerIsToldAfterTheConnectionHasEnded(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	s, k := r.open("GET", true)
	_, other := r.open("GET", true)
	k.limit = 0
	r.headers(1, false, ":status", "200")
	r.wr.WriteData(1, true, []byte("answer"))
	r.send()
	r.hangUp(io.EOF)
	var se *message.StreamError
	if !errors.As(other.err, &se) || se.Retryable || !errors.Is(se, message.ErrGone) {
		t.Errorf("told %v", other.err)
	}
	if r.closes != 0 {
		t.Error("closed ahead of its streams")
	}
	r.do(func() { k.limit = -1; s.Resume() })
	if !k.ended || k.got.String() != "answer" || r.closes != 1 {
		t.Errorf("told %+v, closed %d times", k, r.closes)
	}
}

func TestAGoAwayRefusesTheStreamsBehindIt(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	_, a := r.open("GET", true)
	_, b := r.open("GET", true)
	r.frames()
	r.wr.WriteGoAway(1, http2.ErrCodeNo, nil)
	r.send()
	var se *message.StreamError
	if a.err != nil || !errors.As(b.err, &se) || !se.Retryable || !se.Remote {
		t.Errorf("told %v and %v", a.err, b.err)
	}
	if r.cc.Room() != 0 || r.changes == 0 {
		t.Errorf("room %d, %d changes", r.cc.Room(), r.changes)
	}
	if _, k := r.open("GET", true); !errors.Is(k.err, message.ErrNoRoom) {
		t.Errorf("opened: %v", k.err)
	}
	r.headers(1, true, ":status", "200")
	r.send()
	if !a.ended || !r.p.ended {
		t.Errorf("ended %v, connection %v", a.ended, r.p.ended)
	}
	r.hangUp(io.EOF)
	if r.closes != 1 || !errors.Is(r.closed, message.ErrDrained) {
		t.Errorf("closed %d times, %v", r.closes, r.closed)
	}
}

func TestADrainedClientClosesBehindItsLastStream(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	_, k := r.open("GET", true)
	r.do(r.cc.Drain)
	if r.cc.Room() != 0 {
		t.Errorf("room %d", r.cc.Room())
	}
	r.frames()
	r.headers(1, true, ":status", "200")
	r.send()
	r.wantFrames("GOAWAY 0 NO_ERROR")
	if !k.ended || !r.p.ended {
		t.Errorf("ended %v, connection %v", k.ended, r.p.ended)
	}
}

func TestRoomIsWhatTheServerAllows(t *testing.T) {
	r := newRig(t, nil)
	r.do(func() { r.cc = NewClient(r.p, ClientConfig{MaxStreams: 300}, r); r.c = &r.cc.c })
	if n := r.cc.Room(); n != 100 {
		t.Errorf("room %d before SETTINGS", n)
	}
	r.wr.WriteSettings()
	r.send()
	if n := r.cc.Room(); n != 300 {
		t.Errorf("room %d without a limit", n)
	}
	r.wr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2})
	r.send()
	r.open("GET", true)
	if n := r.cc.Room(); n != 1 {
		t.Errorf("room %d", n)
	}
	r.open("GET", true)
	if _, k := r.open("GET", true); !errors.Is(k.err, message.ErrNoRoom) {
		t.Errorf("opened: %v", k.err)
	}
	changes := r.changes
	r.headers(1, true, ":status", "200")
	r.send()
	if n := r.cc.Room(); n != 1 || r.changes == changes {
		t.Errorf("room %d, %d changes", n, r.changes-changes)
	}
}

func TestAnUpgradeIsAnExtendedConnectWhereTheServerTakesIt(t *testing.T) {
	enable := http2.Setting{ID: settingExtendedConnect, Val: 1}
	check := func(r *rig, s message.ClientStream, k *taker) {
		t.Helper()
		r.headers(1, false, ":status", "200", "a", "b")
		r.wr.WriteData(1, false, []byte("down"))
		r.send()
		if k.status != 101 || k.head != "a=b upgrade:websocket" || k.got.String() != "down" {
			t.Errorf("told %+v", k)
		}
		r.do(func() { s.SendData([]byte("up")) })
		r.wantFrames("DATA[1] 2")
	}
	want := "HEADERS[1] :method=CONNECT :authority=a.example :scheme=http :path=/x :protocol=websocket x=y"
	r := clientRig(t, ClientConfig{}, enable)
	s, k := r.open("GET", false, ":protocol", "websocket", "x", "y")
	r.wantFrames(want)
	check(r, s, k)

	// opened before the server's SETTINGS
	r = newRig(t, nil)
	r.do(func() { r.cc = NewClient(r.p, ClientConfig{}, r); r.c = &r.cc.c })
	s, k = r.open("GET", false, ":protocol", "websocket", "x", "y")
	r.p.out.Reset()
	r.wr.WriteSettings(enable)
	r.send()
	r.wantFrames("SETTINGS ACK", want)
	check(r, s, k)

	r = clientRig(t, ClientConfig{})
	_, k = r.open("GET", false, ":protocol", "websocket")
	if message.CodeOf(k.err, 0) != message.CodeHTTP11Required {
		t.Errorf("told %v", k.err)
	}
}

func TestBadAnswersAreResetAndTold(t *testing.T) {
	for name, send := range map[string]func(r *rig){
		"no status":              func(r *rig) { r.headers(1, false, "a", "b") },
		"two statuses":           func(r *rig) { r.headers(1, false, ":status", "200", ":status", "200") },
		"status of two digits":   func(r *rig) { r.headers(1, false, ":status", "20") },
		"status of letters":      func(r *rig) { r.headers(1, false, ":status", "2oo") },
		"status 600":             func(r *rig) { r.headers(1, false, ":status", "600") },
		"status 101":             func(r *rig) { r.headers(1, false, ":status", "101") },
		"path":                   func(r *rig) { r.headers(1, false, ":status", "200", ":path", "/") },
		"connection":             func(r *rig) { r.headers(1, false, ":status", "200", "connection", "close") },
		"interim with an end":    func(r *rig) { r.headers(1, true, ":status", "100") },
		"body ahead of the head": func(r *rig) { r.wr.WriteData(1, false, []byte("x")) },
		"body shorter":           func(r *rig) { r.headers(1, true, ":status", "200", "content-length", "1") },
		"body with 204":          func(r *rig) { r.headers(1, false, ":status", "204"); r.wr.WriteData(1, false, []byte("x")) },
		"upper case name":        func(r *rig) { r.headers(1, false, ":status", "200", "A", "b") },
		"pseudo behind ordinary": func(r *rig) { r.headers(1, false, "a", "b", ":status", "200") },
		"trailer without an end": func(r *rig) { r.headers(1, false, ":status", "200"); r.headers(1, false, "a", "b") },
		"trailer with a pseudo":  func(r *rig) { r.headers(1, false, ":status", "200"); r.headers(1, true, ":status", "200") },
		"content-length with 0x": func(r *rig) { r.headers(1, false, ":status", "200", "content-length", "0x5") },
		"line feed in a value":   func(r *rig) { r.headers(1, false, ":status", "200", "a", "b\nc: d") },
		"body beyond its length": func(r *rig) {
			r.headers(1, false, ":status", "200", "content-length", "1")
			r.wr.WriteData(1, true, []byte("xy"))
		},
		"window update of 0":      func(r *rig) { r.wr.WriteRawFrame(frameWindowUpdate, 0, 1, u32(0)) },
		"dependency on itself":    func(r *rig) { r.wr.WriteRawFrame(framePriority, 0, 1, []byte{0, 0, 0, 1, 0}) },
		"transfer-encoding field": func(r *rig) { r.headers(1, false, ":status", "200", "transfer-encoding", "chunked") },
	} {
		t.Run(name, func(t *testing.T) {
			r := clientRig(t, ClientConfig{})
			_, k := r.open("GET", true)
			r.frames()
			send(r)
			r.send()
			if got := r.frames(); len(got) != 1 || !strings.HasPrefix(got[0], "RST[1] PROTOCOL_ERROR") {
				t.Errorf("frames %q", got)
			}
			if !errors.Is(k.err, message.ErrMalformed) || k.ended {
				t.Errorf("told %v", k.err)
			}
			if r.c.state != up {
				t.Errorf("closed: %v", r.closed)
			}
		})
	}
}

func TestTooManyInterimResponsesEndTheStream(t *testing.T) { // B34
	r := clientRig(t, ClientConfig{})
	_, k := r.open("GET", true)
	r.frames()
	for range maxInterim + 1 {
		r.headers(1, false, ":status", "100")
	}
	r.send()
	r.wantFrames("RST[1] ENHANCE_YOUR_CALM")
	if k.err == nil || len(k.interims) != maxInterim {
		t.Errorf("told %v, %d interim", k.err, len(k.interims))
	}
}

func TestARequestThatWasNeverWrittenMayBeSentAgain(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	_, a := r.open("GET", true)
	r.do(func() { r.p.limited = true })
	_, b := r.open("POST", true)
	r.hangUp(errors.New("reset"))
	var se *message.StreamError
	if !errors.As(a.err, &se) || se.Retryable {
		t.Errorf("written: %#v", a.err)
	}
	if !errors.As(b.err, &se) || !se.Retryable {
		t.Errorf("not written: %#v", b.err)
	}
}

func TestAServerThatPushesIsRefused(t *testing.T) {
	r := clientRig(t, ClientConfig{})
	r.open("GET", true)
	r.frames()
	r.wr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: r.block(":method", "GET"), EndHeaders: true})
	r.send()
	r.wantGoAway(message.CodeProtocol)
}
