package http2

import (
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

func TestARequestIsServedAndAnswered(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, k := r.serve(1, "POST", false, "content-type", "text/plain", "te", "trailers")
	if got, want := r.requests[0], "POST http a.example /x [content-type=text/plain te=trailers] -1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	r.wr.WriteData(1, false, []byte("hello "))
	r.wr.WriteDataPadded(1, false, []byte("world"), make([]byte, 9))
	r.headers(1, true, "grpc-status", "0")
	r.send()
	if k.got.String() != "hello world" || !k.ended || k.trailer != "grpc-status=0" {
		t.Errorf("got %q, ended %v, trailer %q", k.got.String(), k.ended, k.trailer)
	}
	r.do(func() {
		s.SendInterim(response(103, "link", "</a>"))
		s.SendHead(response(200, "content-type", "text/html"), false)
		if n := s.SendData([]byte("answer")); n != 6 {
			t.Errorf("took %d", n)
		}
		tr := &message.Header{}
		tr.Add("x-sum", "1")
		s.SendEnd(tr)
	})
	r.wantFrames("HEADERS[1] :status=103 link=</a>", "HEADERS[1] :status=200 content-type=text/html", "DATA[1] 6", "HEADERS[1] x-sum=1 END")
	if r.sc.Streams() != 0 {
		t.Errorf("%d streams left", r.sc.Streams())
	}
}

func TestTheEndIsPutOnTheLastFrame(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, _ := r.serve(1, "GET", true)
	r.do(func() {
		s.SendHead(response(200), false)
		s.SendData([]byte("ab"))
		s.SendData([]byte("cd"))
		s.SendEnd(nil)
	})
	r.wantFrames("HEADERS[1] :status=200", "DATA[1] 4 END")
	s, _ = r.serve(3, "GET", true)
	r.do(func() {
		s.SendHead(response(404), false)
		s.SendEnd(nil)
	})
	r.wantFrames("HEADERS[3] :status=404 END")
}

func TestAnEarlyAnswerDropsTheRestOfTheRequest(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, k := r.serve(1, "POST", false)
	r.do(func() { s.SendHead(response(403), true) })
	r.wantFrames("HEADERS[1] :status=403 END", "RST[1] NO_ERROR")
	r.wr.WriteData(1, false, make([]byte, 1000))
	r.headers(1, true, "a", "b")
	r.send()
	r.wantFrames()
	if k.got.Len() > 0 || k.ended || k.err != nil {
		t.Errorf("told of %d bytes, %v, %v", k.got.Len(), k.ended, k.err)
	}
}

func TestAResetOfTheClientIsTold(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	_, k := r.serve(1, "POST", false)
	r.wr.WriteRSTStream(1, http2.ErrCodeCancel)
	r.send()
	var se *message.StreamError
	if !errors.As(k.err, &se) || se.Code != message.CodeCancel || !se.Remote || se.Retryable {
		t.Errorf("got %v", k.err)
	}
	// also to a request that has no taker yet
	r.request(3, "POST", false)
	r.wr.WriteRSTStream(3, http2.ErrCodeCancel)
	r.send()
	k = &taker{r: r, limit: -1}
	r.do(func() { r.served[1].SetTaker(k) })
	if !errors.As(k.err, &se) || !se.Remote {
		t.Errorf("got %v", k.err)
	}
	r.wantFrames()
}

func TestAResetOfOursCarriesItsCode(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	a, _ := r.serve(1, "POST", false)
	b, _ := r.serve(3, "POST", false)
	r.do(func() {
		a.Reset(&message.StreamError{Code: message.CodeRefusedStream})
		b.Reset(io.ErrUnexpectedEOF)
	})
	r.wantFrames("RST[1] REFUSED_STREAM", "RST[3] INTERNAL_ERROR")
}

func TestBytesAreHeldUntilThereIsATaker(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.request(1, "POST", false)
	r.wr.WriteData(1, false, []byte("abc"))
	r.wr.WriteData(1, true, []byte("def"))
	r.send()
	k := &taker{r: r, limit: -1}
	r.do(func() { r.served[0].SetTaker(k) })
	if k.got.String() != "abcdef" || !k.ended {
		t.Errorf("got %q, ended %v", k.got.String(), k.ended)
	}
}

func TestCreditIsGivenForWhatWasTakenOnly(t *testing.T) {
	r := serverRig(t, ServerConfig{Limits: Limits{Window: 64 << 10, ConnWindow: 128 << 10, Buffered: 1 << 20}})
	s, k := r.serve(1, "POST", false)
	k.limit = 20 << 10
	for range 4 {
		r.wr.WriteData(1, false, make([]byte, 16<<10))
	}
	r.send()
	r.wantFrames("WINDOW[1] 16384", "WINDOW[0] 65536")
	r.do(func() { k.limit = -1; s.Resume() })
	r.wantFrames("WINDOW[1] 49152")
	if k.got.Len() != 64<<10 {
		t.Errorf("%d bytes arrived", k.got.Len())
	}
}

func TestAStalledStreamDoesNotStallOthers(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	_, k := r.serve(1, "POST", false)
	k.limit = 0
	_, other := r.serve(3, "POST", false)
	for range 16 {
		r.wr.WriteData(1, false, make([]byte, 16<<10))
	}
	for range 100 {
		for range 8 {
			r.wr.WriteData(3, false, make([]byte, 16<<10))
		}
		r.send()
	}
	if other.got.Len() != 100*8*16<<10 || r.c.state != up {
		t.Errorf("%d bytes arrived; %v", other.got.Len(), r.closed)
	}
	if r.c.buffered != 256<<10 {
		t.Errorf("%d bytes are held", r.c.buffered)
	}
}

func TestDataIsSentWithinTheWindowsAndRoomIsTold(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.wr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	r.send()
	s, k := r.serve(1, "GET", true)
	r.frames()
	n := 0
	r.do(func() { s.SendHead(response(200), false); n = s.SendData(make([]byte, 25)) })
	r.wantFrames("HEADERS[1] :status=200", "DATA[1] 10")
	k.onRoom = func() { n += s.SendData(make([]byte, 25-n)) }
	r.wr.WriteWindowUpdate(1, 7)
	r.send()
	r.wantFrames("DATA[1] 7")
	r.wr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
	r.send()
	r.wantFrames("SETTINGS ACK", "DATA[1] 8")
	if n != 25 || k.rooms != 2 {
		t.Errorf("sent %d, told %d times", n, k.rooms)
	}
	if w := s.(*stream).sendWin; w != 100+7-25 {
		t.Errorf("window %d", w)
	}
}

func TestAFrameThatIsPartlyWrittenIsNotChanged(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, _ := r.serve(1, "GET", true)
	r.do(func() {
		r.p.limited, r.p.full = true, 9+1+9+3 // the head, and three bytes of DATA
		s.SendHead(response(200), false)
		s.SendData([]byte("hello"))
	})
	r.do(func() { s.SendData([]byte(" world")); s.SendEnd(nil) })
	r.allow(1000)
	r.wantFrames("HEADERS[1] :status=200", "DATA[1] 5", "DATA[1] 6 END")
}

func TestStreamsThatWaitForTheConnectionShareIt(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.wr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	r.send()
	r.p.null = true
	sent := make([]int, 4)
	for i := range sent {
		s, k := r.serve(uint32(2*i+1), "GET", true)
		k.onRoom = func() { sent[i] += s.SendData(make([]byte, 1<<20)) }
		r.do(func() { s.SendHead(response(200), false); k.r.inCall = false; k.onRoom() })
	}
	for i := range sent {
		sent[i] = 0
	}
	for range 32 {
		r.wr.WriteWindowUpdate(0, 32<<10)
		r.send()
	}
	for i, n := range sent {
		if n < 240<<10 || n > 272<<10 {
			t.Errorf("stream %d sent %d of %v", i, n, sent)
		}
	}
}

func TestAFullPipeHoldsStreamsBack(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.wr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	r.wr.WriteWindowUpdate(0, 1<<29)
	r.send()
	s, k := r.serve(1, "GET", true)
	r.do(func() { r.p.limited, r.p.full, r.p.null = true, 0, true })
	total := 0
	k.onRoom = func() { total += s.SendData(make([]byte, 1<<20)) }
	r.do(func() { s.SendHead(response(200), false); r.inCall = false; k.onRoom() })
	if total > 64<<10 || total < 60<<10 {
		t.Errorf("%d bytes were gathered", total)
	}
	for range 10 {
		r.allow(64 << 10)
	}
	if total < 600<<10 || total > 720<<10 {
		t.Errorf("%d bytes were sent", total)
	}
}

func TestExtendedConnectBecomesAnUpgrade(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, k := r.serve(1, "CONNECT", false, ":protocol", "WebSocket", "sec-websocket-version", "13")
	if len(r.requests) == 0 {
		t.Fatal("not served")
	}
	if got, want := r.requests[0], "GET http a.example /x [sec-websocket-version=13] -1 upgrade:websocket"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	r.do(func() { s.SendHead(response(101, "upgrade", "websocket", "connection", "upgrade", "a", "b"), false) })
	r.wantFrames("HEADERS[1] :status=200 a=b")
	r.wr.WriteData(1, false, []byte("frame"))
	r.send()
	if k.got.String() != "frame" {
		t.Errorf("got %q", k.got.String())
	}
}

func TestConnectHasAnAuthorityOnly(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.headers(1, false, ":method", "CONNECT", ":authority", "db:5432")
	r.headers(3, false, ":method", "CONNECT", ":authority", "db:5432", ":path", "/")
	r.send()
	r.wantFrames("RST[3] PROTOCOL_ERROR")
	if len(r.requests) != 1 || r.requests[0] != "CONNECT http db:5432  [] -1" {
		t.Errorf("served %q", r.requests)
	}
}

func TestExpectContinueIsAnsweredWhenTheBodyIsAskedFor(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.request(1, "PUT", false, "expect", "100-continue")
	r.send()
	r.wantFrames()
	k := &taker{r: r, limit: -1}
	r.do(func() { r.served[0].SetTaker(k) })
	r.wantFrames("HEADERS[1] :status=100")
	r.request(3, "PUT", false, "expect", "x")
	r.send()
	r.wantFrames("HEADERS[3] :status=417 END", "RST[3] NO_ERROR")
}

func TestCookiesAreJoined(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.serve(1, "GET", true, "cookie", "a=1", "x", "y", "cookie", "b=2")
	if got, want := r.requests[0], "GET http a.example /x [cookie=a=1; b=2 x=y] 0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBadRequestsAreResetAndNotServed(t *testing.T) { // B6
	ok := []string{":method", "GET", ":scheme", "http", ":authority", "a.example", ":path", "/x"}
	with := func(name, value string) []string {
		out := append([]string(nil), ok...)
		for i := 0; i < len(out); i += 2 {
			if out[i] == name {
				out[i+1] = value
				return out
			}
		}
		return append(out, name, value)
	}
	without := func(name string) (out []string) {
		for i := 0; i < len(ok); i += 2 {
			if ok[i] != name {
				out = append(out, ok[i], ok[i+1])
			}
		}
		return out
	}
	for name, kv := range map[string][]string{
		"upper case name":            with("X-Foo", "1"),
		"blank in name":              with("x foo", "1"),
		"empty name":                 with("", "1"),
		"NUL in value":               with("x", "a\x00b"),
		"CR in value":                with("x", "a\rb"),
		"LF in value":                with("x", "a\nb"),
		"leading blank in value":     with("x", " a"),
		"trailing tab in value":      with("x", "a\t"),
		"connection":                 with("connection", "close"),
		"keep-alive":                 with("keep-alive", "1"),
		"proxy-connection":           with("proxy-connection", "close"),
		"transfer-encoding":          with("transfer-encoding", "chunked"),
		"upgrade":                    with("upgrade", "h2c"),
		"te":                         with("te", "gzip"),
		"unknown pseudo":             with(":foo", "1"),
		"status":                     with(":status", "200"),
		"duplicate path":             append(with("", "")[:8:8], ":path", "/y"),
		"duplicate method":           append(with("", "")[:8:8], ":method", "GET"),
		"pseudo behind ordinary":     append([]string{"x", "y"}, ok...),
		"no method":                  without(":method"),
		"no scheme":                  without(":scheme"),
		"no path":                    without(":path"),
		"no authority":               without(":authority"),
		"empty path":                 with(":path", ""),
		"relative path":              with(":path", "x"),
		"absolute form":              with(":path", "http://a/"),
		"fragment":                   with(":path", "/a#b"),
		"blank in path":              with(":path", "/a b"),
		"asterisk with GET":          with(":path", "*"),
		"strange scheme":             with(":scheme", "ftp"),
		"lower-case method":          with(":method", "get"),
		"mixed-case method":          with(":method", "dElEtE"),
		"blank in method":            with(":method", "DELETE "),
		"userinfo":                   with(":authority", "u@a.example"),
		"blank in authority":         with(":authority", "a b"),
		"host differs":               with("host", "b.example"),
		"two hosts":                  append(without(":authority"), "host", "a", "host", "a"),
		"protocol without CONNECT":   with(":protocol", "websocket"),
		"content-length with a sign": with("content-length", "+5"),
		"two content-lengths":        append(with("content-length", "5"), "content-length", "6"),
		"content-length list":        with("content-length", "5, 5"),
		"content-length without":     with("content-length", "5"),
	} {
		t.Run(name, func(t *testing.T) {
			r := serverRig(t, ServerConfig{})
			r.headers(1, true, kv...)
			r.send()
			r.wantFrames("RST[1] PROTOCOL_ERROR")
			if len(r.requests) != 0 {
				t.Errorf("served %q", r.requests)
			}
			r.serve(3, "GET", true) // the connection lives
		})
	}
}

func TestAFieldWithoutANameIsNotOverlookedInTheTable(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.request(1, "GET", true, "", "x")
	r.request(3, "GET", true, "", "x") // now by its index
	r.send()
	r.wantFrames("RST[1] PROTOCOL_ERROR", "RST[3] PROTOCOL_ERROR")
}

func TestHostAloneIsTheAuthority(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.headers(1, true, ":method", "GET", ":scheme", "https", ":path", "/", "host", "b.example:80")
	r.headers(3, true, ":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "A.example", "host", "a.example")
	r.send()
	want := "GET https b.example:80 / [] 0|OPTIONS http A.example * [] 0"
	if got := strings.Join(r.requests, "|"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBadBodiesAndTrailersAreReset(t *testing.T) { // B6, B9
	for name, send := range map[string]func(r *rig){
		"longer than its content-length": func(r *rig) { r.wr.WriteData(1, false, make([]byte, 6)) },
		"shorter":                        func(r *rig) { r.wr.WriteData(1, true, make([]byte, 4)) },
		"shorter, with a trailer":        func(r *rig) { r.headers(1, true, "a", "b") },
		"pseudo in trailer": func(r *rig) {
			r.wr.WriteData(1, false, make([]byte, 5))
			r.headers(1, true, ":path", "/")
		},
		"upper case in trailer": func(r *rig) {
			r.wr.WriteData(1, false, make([]byte, 5))
			r.headers(1, true, "X", "y")
		},
		"trailer without an end": func(r *rig) { r.headers(1, false, "a", "b") },
	} {
		t.Run(name, func(t *testing.T) {
			r := serverRig(t, ServerConfig{})
			_, k := r.serve(1, "POST", false, "content-length", "5")
			send(r)
			r.send()
			r.wantFrames("RST[1] PROTOCOL_ERROR")
			if !errors.Is(k.err, message.ErrMalformed) || k.ended {
				t.Errorf("told %v, ended %v", k.err, k.ended)
			}
		})
	}
}

func TestOurOwnBodyIsHeldToItsLength(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, k := r.serve(1, "GET", true)
	r.do(func() {
		s.SendHead(response(200, "content-length", "3"), false)
		s.SendData([]byte("ab"))
		s.SendEnd(nil)
	})
	r.wantFrames("HEADERS[1] :status=200 content-length=3", "DATA[1] 2", "RST[1] INTERNAL_ERROR")
	if k.err == nil {
		t.Error("not told")
	}
	s, _ = r.serve(3, "HEAD", true)
	r.do(func() {
		s.SendHead(response(200, "content-length", "3"), false)
		s.SendData([]byte("abc"))
		s.SendEnd(nil)
	})
	r.wantFrames("HEADERS[3] :status=200 content-length=3 END")
}

func TestALargeHeadIsSentInSeveralFrames(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s, _ := r.serve(1, "GET", true)
	big := strings.Repeat("x", 50000)
	r.fr.MaxHeaderListSize = 1 << 20
	r.do(func() { s.SendHead(response(200, "big", big), false); s.SendEnd(nil) })
	r.wantFrames("HEADERS[1] :status=200 big="+big, "DATA[1] 0 END")
}

func TestAnEndOfTheConnectionFailsItsStreams(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	_, k := r.serve(1, "POST", false)
	r.hangUp(io.EOF)
	if !errors.Is(k.err, message.ErrGone) || r.closes != 1 || !r.p.closed {
		t.Errorf("told %v, closed %d times, pipe closed: %v", k.err, r.closes, r.p.closed)
	}
}

func TestCloseEndsEverythingAtOnce(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	_, k := r.serve(1, "POST", false)
	why := errors.New("why")
	r.l.OnLoop(func() { r.sc.Close(why) })
	if !errors.Is(k.err, why) || !errors.Is(r.closed, why) || r.closes != 1 {
		t.Errorf("told %v and %v, %d times", k.err, r.closed, r.closes)
	}
	r.wantFrames("GOAWAY 1 NO_ERROR")
}
