package hbone

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/looptls"
)

// 3.8
func TestTheFirstBytesAreZtunnels(t *testing.T) {
	settings := func(hexes ...string) string {
		b, err := hex.DecodeString("000018040000000000" + strings.Join(hexes, "") + "000004080000000000" + "00ff0001")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct {
		name, want string
		out        func() string
	}{
		{"client", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings("000200000000", "000400400000", "000500100000", "000600004000"), func() string {
			p := NewPool(newLoop(t), PoolConfig{})
			tr := &fake{}
			cc := &clientConn{pool: p, e: p.entry(testKey)}
			cc.init(p.l, &p.sh, cc, true, tr)
			cc.flush()
			return tr.out.String()
		}},
		{"server", settings("0003000000c8", "000400400000", "000500100000", "000600010000"), func() string {
			s := NewServer(newLoop(t), ServerConfig{})
			tr := &fake{}
			sc := &ServerConn{srv: s}
			sc.init(s.l, &s.sh, sc, false, tr)
			sc.flush()
			return tr.out.String()
		}},
	} {
		if got := c.out(); got != c.want {
			t.Errorf("%s\n got %x\nwant %x", c.name, got, c.want)
		}
	}
}

// H12, 3.8
func TestARequestIsConnectWithAuthorityOnlyAndItsHeadersInOrder(t *testing.T) {
	r := clientRig(t, PoolConfig{})
	r.pool.Open(testKey, nil, &Request{Authority: "10.20.3.9:8080", Header: []HeaderField{
		{"baggage", "k8s.cluster.name=c1,k8s.namespace.name=shop"}, {"forwarded", `for="[fd00::7]:40112"`}, {"traceparent", "00-0-0-00"},
		{"long", strings.Repeat("x", 40000)},
	}}, nopOpener{})
	r.turn()
	r.wantFrames(`HEADERS[1] :method=CONNECT :authority=10.20.3.9:8080 baggage=k8s.cluster.name=c1,k8s.namespace.name=shop forwarded=for="[fd00::7]:40112" traceparent=00-0-0-00 long=` + strings.Repeat("x", 40000))
}

type nopOpener struct{}

func (nopOpener) StreamOpened(*Stream, *Response) {}
func (nopOpener) StreamFailed(error)              {}

// Prototype fault: a frame without payload that ends a segment was skipped until more came.
func TestAnEmptyFrameAtTheEndOfASegmentIsNotHeldBack(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	s := r.serve(1)
	f, app := socket(t, r.l, nil)
	s.Join(f, nil)
	r.recv(rawFrame(frameData, flagEndStream, 1, nil))
	if n, err := unix.Read(app, make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the application read %d, %v; want its end", n, err)
	}
}

func TestFramesMayBeCutAnywhere(t *testing.T) {
	script := func(r *rig) []byte {
		r.connect(1)
		r.wr.WriteData(1, false, bytes.Repeat([]byte("data"), 50))
		r.wr.WritePing(false, [8]byte{1})
		r.wr.WriteDataPadded(1, false, []byte("padded"), make([]byte, 9))
		r.wr.WriteRawFrame(0xbe, 0, 0, []byte("unknown"))
		r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: r.block(":method", "CONNECT")})
		r.wr.WriteContinuation(3, true, r.block(":authority", "x:1"))
		r.wr.WriteData(1, true, nil)
		return bytes.Clone(r.wbuf.Bytes())
	}
	for k := 1; k < 60; k++ {
		r := serverRig(t, ServerConfig{})
		for b := script(r); len(b) > 0; b = b[min(k, len(b)):] {
			r.recv(b[:min(k, len(b))])
		}
		if len(r.served) != 2 || r.c.dead {
			t.Fatalf("cut every %d bytes: %d requests, dead %v", k, len(r.served), r.c.dead)
		}
		s := r.served[0]
		got := make([]byte, 1000)
		if n := s.queue.Read(got); string(got[:n]) != strings.Repeat("data", 50)+"padded" || !s.recvEnd {
			t.Fatalf("cut every %d bytes: %q, end %v", k, got[:n], s.recvEnd)
		}
		r.wantFrames("PONG")
	}
}

// B22, H12, RFC 9113 section 8.5
func TestRequestsThatAreNotConnect(t *testing.T) {
	for _, c := range []struct {
		name string
		kv   []string
		want string
	}{
		{"GET", []string{":method", "GET", ":scheme", "http", ":authority", "x:80", ":path", "/"}, "HEADERS[1] :status=400 END"},
		{"no authority", []string{":method", "CONNECT"}, "RST[1] PROTOCOL_ERROR"},
		{"empty authority", []string{":method", "CONNECT", ":authority", ""}, "RST[1] PROTOCOL_ERROR"},
		{"with path", []string{":method", "CONNECT", ":authority", "x:80", ":path", "/"}, "RST[1] PROTOCOL_ERROR"},
		{"with scheme", []string{":method", "CONNECT", ":authority", "x:80", ":scheme", "http"}, "RST[1] PROTOCOL_ERROR"},
		{"extended connect", []string{":method", "CONNECT", ":authority", "x:80", ":protocol", "websocket"}, "RST[1] PROTOCOL_ERROR"},
		{"two authorities", []string{":method", "CONNECT", ":authority", "x:80", ":authority", "y:80"}, "RST[1] PROTOCOL_ERROR"},
		{"pseudo-header behind a header", []string{":method", "CONNECT", "a", "b", ":authority", "x:80"}, "RST[1] PROTOCOL_ERROR"},
		{"upper case", []string{":method", "CONNECT", ":authority", "x:80", "Baggage", "x"}, "RST[1] PROTOCOL_ERROR"},
		{"line feed", []string{":method", "CONNECT", ":authority", "x:80", "baggage", "x\ny: z"}, "RST[1] PROTOCOL_ERROR"},
		{"line feed in authority", []string{":method", "CONNECT", ":authority", "x:80\n"}, "RST[1] PROTOCOL_ERROR"},
		{"connection header", []string{":method", "CONNECT", ":authority", "x:80", "connection", "close"}, "RST[1] PROTOCOL_ERROR"},
		{"method in lower case", []string{":method", "connect", ":authority", "x:80"}, "RST[1] PROTOCOL_ERROR"},
	} {
		r := serverRig(t, ServerConfig{})
		r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(c.kv...), EndHeaders: true, EndStream: c.name == "GET"})
		r.sendFrames()
		if got := strings.Join(r.frames(), "; "); got != c.want || len(r.served) != 0 {
			t.Errorf("%s: %q and %d requests served, want %q", c.name, got, len(r.served), c.want)
		}
	}
}

func TestTrailersOnATunnelResetIt(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.serve(1)
	r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block("a", "b"), EndHeaders: true, EndStream: true})
	r.sendFrames()
	r.wantFrames("RST[1] PROTOCOL_ERROR")
}

func TestFaultsOfThePeerEndTheConnectionWithTheirCode(t *testing.T) {
	for _, c := range []struct {
		name  string
		code  ErrCode
		frame []byte
	}{
		{"DATA on stream 0", CodeProtocol, rawFrame(frameData, 0, 0, []byte("x"))},
		{"DATA on an idle stream", CodeProtocol, rawFrame(frameData, 0, 5, []byte("x"))},
		{"HEADERS with an even number", CodeProtocol, rawFrame(frameHeaders, flagEndHeaders, 2, []byte{0x82})},
		{"HEADERS on a closed stream", CodeStreamClosed, rawFrame(frameHeaders, flagEndHeaders, 1, []byte{0x82})},
		{"a broken header block", CodeCompression, rawFrame(frameHeaders, flagEndHeaders, 5, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})},
		{"CONTINUATION without HEADERS", CodeProtocol, rawFrame(frameContinuation, flagEndHeaders, 5, nil)},
		{"a frame inside a header block", CodeProtocol, append(rawFrame(frameHeaders, 0, 5, nil), rawFrame(framePing, 0, 0, make([]byte, 8))...)},
		{"a frame of 1 MiB + 1", CodeFrameSize, rawFrame(frameData, 0, 3, make([]byte, maxFrameSize+1))},
		{"PING of 7 bytes", CodeFrameSize, rawFrame(framePing, 0, 0, make([]byte, 7))},
		{"PING on a stream", CodeProtocol, rawFrame(framePing, 0, 3, make([]byte, 8))},
		{"SETTINGS of 5 bytes", CodeFrameSize, rawFrame(frameSettings, 0, 0, make([]byte, 5))},
		{"SETTINGS acknowledgement with content", CodeFrameSize, rawFrame(frameSettings, flagAck, 0, make([]byte, 6))},
		{"INITIAL_WINDOW_SIZE of 2^31", CodeFlowControl, rawFrame(frameSettings, 0, 0, []byte{0, 4, 0x80, 0, 0, 0})},
		{"MAX_FRAME_SIZE of 16383", CodeProtocol, rawFrame(frameSettings, 0, 0, []byte{0, 5, 0, 0, 0x3f, 0xff})},
		{"WINDOW_UPDATE of 0", CodeProtocol, rawFrame(frameWindowUpdate, 0, 0, u32(0))},
		{"WINDOW_UPDATE over 2^31-1", CodeFlowControl, rawFrame(frameWindowUpdate, 0, 0, u32(maxWindow))},
		{"RST_STREAM on an idle stream", CodeProtocol, rawFrame(frameRST, 0, 5, u32(0))},
		{"PUSH_PROMISE", CodeProtocol, rawFrame(framePushPromise, 0, 3, make([]byte, 4))},
		{"padding longer than the frame", CodeProtocol, rawFrame(frameData, flagPadded, 3, []byte{5, 0, 0})},
	} {
		r := serverRig(t, ServerConfig{})
		r.connect(1)
		r.connect(3)
		r.wr.WriteRSTStream(1, http2.ErrCodeCancel)
		r.sendFrames()
		r.recv(c.frame)
		if r.wantGoAway(c.code); t.Failed() {
			t.Fatal(c.name)
		}
	}
}

func TestAConnectionThatDoesNotBeginWithPrefaceAndSettingsIsRefused(t *testing.T) {
	for name, b := range map[string]string{
		"HTTP/1":       "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
		"TLS":          "\x16\x03\x01\x02\x00\x01",
		"PING instead": clientPreface + string(rawFrame(framePing, 0, 0, make([]byte, 8))),
	} {
		s := NewServer(newLoop(t), ServerConfig{})
		r := &rig{t: t, l: s.l, tr: &fake{}, srv: s, sc: &ServerConn{srv: s}}
		r.c = &r.sc.conn
		f, _ := socket(t, r.l, r.c)
		r.sc.init(s.l, &s.sh, r.sc, false, r.tr)
		r.c.fd = f
		r.setup()
		r.turn()
		r.recv([]byte(b))
		if r.wantGoAway(CodeProtocol); t.Failed() {
			t.Fatal(name)
		}
	}
}

// 3.2: every 10 s, 20 s timeout; B9: data-aware
func TestASilentPeerIsPingedAndThenGivenUp(t *testing.T) {
	at := func(r *rig, s time.Duration) { r.c.lookAround(r.c.born + s*time.Second); r.turn() }
	t.Run("client", func(t *testing.T) {
		r := clientRig(t, PoolConfig{})
		var got error
		r.pool.Open(testKey, nil, &Request{Authority: "x:1"}, openFunc(func(err error) { got = err }))
		r.turn()
		r.frames()
		at(r, 9)
		r.wantFrames()
		at(r, 10)
		r.wantFrames("PING")
		at(r, 29)
		if r.c.dead {
			t.Fatal("given up before the timeout")
		}
		at(r, 30)
		if !r.c.dead || !errors.Is(got, ErrPingTimeout) {
			t.Errorf("dead %v, stream ended with %v", r.c.dead, got)
		}
	})
	t.Run("server says GOAWAY", func(t *testing.T) {
		r := serverRig(t, ServerConfig{})
		at(r, 10)
		at(r, 30)
		r.wantFrames("PING", "GOAWAY 0 NO_ERROR")
		if !r.c.dead {
			t.Error("not given up")
		}
	})
	t.Run("whatever arrives is life", func(t *testing.T) {
		r := serverRig(t, ServerConfig{})
		at(r, 10)
		r.c.lastRead = r.c.born + 11*time.Second
		at(r, 20)
		at(r, 31)
		at(r, 40)
		r.wantFrames("PING", "PING") // at 10 and, after new silence, at 31
		r.c.lastRead = 0
		r.recv(rawFrame(framePing, flagAck, 0, make([]byte, 8)))
		if r.c.lastRead != r.l.Now() {
			t.Error("what arrives is not noted")
		}
		if r.c.dead {
			t.Error("given up")
		}
	})
}

type openFunc func(error)

func (f openFunc) StreamOpened(*Stream, *Response) { f(nil) }
func (f openFunc) StreamFailed(err error)          { f(err) }

func TestSlowPrefacesAndHeaderBlocksAreGivenUp(t *testing.T) { // B7
	s := NewServer(newLoop(t), ServerConfig{})
	r := &rig{t: t, l: s.l, tr: &fake{}, srv: s, sc: &ServerConn{srv: s}}
	r.c = &r.sc.conn
	f, _ := socket(t, r.l, r.c)
	r.sc.init(s.l, &s.sh, r.sc, false, r.tr)
	r.c.fd = f
	r.setup()
	r.turn()
	r.recv([]byte(clientPreface[:5]))
	r.c.lookAround(r.c.born + 10*time.Second)
	r.wantGoAway(CodeSettingsTimeout)

	r = serverRig(t, ServerConfig{})
	r.recv(rawFrame(frameHeaders, 0, 1, []byte{0x82}))
	r.c.lastRead = r.c.born + 15*time.Second
	r.c.lookAround(r.c.born + 15*time.Second)
	r.wantGoAway(CodeEnhanceYourCalm)
}

func TestServerDrainServesWhatRacesWithTheGoAway(t *testing.T) { // H9
	r := serverRig(t, ServerConfig{})
	s1 := r.serve(1)
	r.srv.Drain()
	r.turn()
	r.wantFrames("GOAWAY 2147483647 NO_ERROR", "PING")
	ack := [8]byte{0x61, 0x6d, 0x62, 0x69, 0x74, 0, 0, 2}
	s3 := r.serve(3) // was on its way
	r.wr.WritePing(true, ack)
	r.sendFrames()
	r.wantFrames("PING")
	s5 := r.serve(5) // was queued when the PING was answered, as hyper's h2 does it
	r.wr.WritePing(true, ack)
	r.sendFrames()
	r.wantFrames("GOAWAY 5 NO_ERROR")
	r.connect(7)
	r.sendFrames()
	r.wantFrames("RST[7] REFUSED_STREAM")
	s1.Reset(CodeCancel)
	s5.Reset(CodeCancel)
	r.turn()
	if r.c.dead {
		t.Fatal("closed with a stream left")
	}
	s3.Reset(CodeCancel)
	r.turn()
	if !r.c.dead || !r.tr.closed {
		t.Errorf("after the last stream: dead %v, close_notify %v", r.c.dead, r.tr.closed)
	}
}

func TestServerDrainDoesNotWaitForThePingForEver(t *testing.T) {
	r := serverRig(t, ServerConfig{})
	r.srv.Drain()
	r.turn()
	r.c.lookAround(r.c.born + 10*time.Second)
	r.turn()
	if !r.c.dead {
		t.Error("still there")
	}
}

func TestAStreamBehindTheGoAwayIsTriedAgainAndOthersGoOn(t *testing.T) { // H10
	dials := 0
	r := clientRig(t, PoolConfig{})
	r.pool.dial = func(Key, any, func(int, *looptls.Conn, error)) { dials++ }
	var s1 *Stream
	var err3 = errors.New("not told")
	r.pool.Open(testKey, nil, &Request{Authority: "x:1"}, streamFunc(func(s *Stream) { s1 = s }))
	r.pool.Open(testKey, nil, &Request{Authority: "x:1"}, openFunc(func(err error) { err3 = err }))
	r.turn()
	r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(":status", "200"), EndHeaders: true})
	r.wr.WriteGoAway(1, http2.ErrCodeNo, nil)
	r.sendFrames()
	if s1 == nil || s1.Err() != nil {
		t.Fatalf("stream 1: %v", s1)
	}
	if dials != 1 || err3.Error() != "not told" || r.pool.Stats().Waiting != 1 {
		t.Errorf("stream 3 was not tried again: %d dials, %v", dials, err3)
	}
	s1.Reset(CodeCancel)
	r.turn()
	if !r.c.dead {
		t.Error("a connection that has been told to go, without streams, is still there")
	}
}

// TestARequestThatMeetsTheFirstGoAwayIsAskedAgainIfItIsNotAnswered: the peer's first GOAWAY refuses nothing, but Istio's
// ztunnel does not serve what arrives behind it (ztunnel.md H9).
func TestARequestThatMeetsTheFirstGoAwayIsAskedAgainIfItIsNotAnswered(t *testing.T) {
	dials := 0
	r := clientRig(t, PoolConfig{})
	r.pool.dial = func(Key, any, func(int, *looptls.Conn, error)) { dials++ }
	var s1 *Stream
	err3 := errors.New("not told")
	r.pool.Open(testKey, nil, &Request{Authority: "x:1"}, streamFunc(func(s *Stream) { s1 = s }))
	r.pool.Open(testKey, nil, &Request{Authority: "x:1"}, openFunc(func(err error) { err3 = err }))
	r.turn()
	r.wr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(":status", "200"), EndHeaders: true})
	r.wr.WriteGoAway(maxStreamID, http2.ErrCodeNo, nil)
	r.sendFrames()
	r.frames()
	r.c.lookAround(r.c.awayAt + awayWait - 1)
	r.turn()
	r.wantFrames()
	if dials != 0 {
		t.Fatal("the peer was given no time to answer")
	}
	r.c.lookAround(r.c.awayAt + awayWait)
	r.turn()
	r.wantFrames("RST[3] CANCEL")
	if dials != 1 || err3.Error() != "not told" || r.pool.Stats().Waiting != 1 {
		t.Errorf("stream 3 was not tried again: %d dials, %v", dials, err3)
	}
	if s1 == nil || s1.Err() != nil {
		t.Errorf("the open stream did not go on: %v", s1)
	}
}

type streamFunc func(*Stream)

func (f streamFunc) StreamOpened(s *Stream, _ *Response) { f(s) }
func (f streamFunc) StreamFailed(error)                  {}

func TestConnectionsRetireByBytesAndByIdleTime(t *testing.T) {
	r := clientRig(t, PoolConfig{})
	r.tr.sealed = 128 << 30
	r.pool.Open(testKey, nil, &Request{Authority: "x:1"}, nopOpener{})
	r.turn()
	r.frames()
	r.c.lookAround(r.c.born + time.Second)
	r.turn()
	r.wantFrames("GOAWAY 0 NO_ERROR")
	if r.c.dead || r.cc.slots() != 0 {
		t.Errorf("dead %v, room for %d streams; want alive and none", r.c.dead, r.cc.slots())
	}
	r.tr.sealed = 256<<30 - 1
	r.c.lookAround(r.c.born + 2*time.Second)
	if r.c.dead {
		t.Error("ended before its keys were worn")
	}
	r.tr.sealed++ // RFC 8446 section 5.5: one stream without end would wear the keys out
	r.c.lookAround(r.c.born + 3*time.Second)
	if !r.c.dead {
		t.Error("goes on with worn keys")
	}

	r = clientRig(t, PoolConfig{KeepAlive: KeepAlive{Interval: -1}})
	r.c.lookAround(r.c.born + 299*time.Second)
	if r.c.draining {
		t.Error("closed before its time")
	}
	r.c.lookAround(r.c.born + 300*time.Second)
	r.turn()
	if !r.c.dead || len(r.pool.entries) != 0 {
		t.Errorf("after 5 minutes: dead %v, %d keys left", r.c.dead, len(r.pool.entries))
	}
}
