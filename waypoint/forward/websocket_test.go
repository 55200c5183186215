package forward

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// echoes answers each message of a WebSocket with the same.
func echoes(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		c, err := websocket.Accept(w, q, &websocket.AcceptOptions{Subprotocols: []string{"echo"}})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(2 << 20)
		for {
			kind, b, err := c.Read(q.Context())
			if err != nil {
				if s := websocket.CloseStatus(err); s != websocket.StatusNormalClosure {
					t.Errorf("the echo ended by %v", err)
				}
				return
			}
			if err := c.Write(q.Context(), kind, b); err != nil {
				t.Error(err)
				return
			}
		}
	}
}

// sizes are of n messages between 1 byte and 1 MiB, each power of two as often as the others. With few messages, few are large.
func sizes(n, largest int) []int {
	rnd := rand.New(rand.NewPCG(1, 2))
	out := make([]int, n)
	for i := range out {
		out[i] = min(largest, 1<<(i%21)+rnd.IntN(1<<(i%21)))
	}
	out[0], out[n-1] = 1, 1<<20
	return out
}

// TestAWebSocketEchoesEveryMessage is issue 4, point 7, with a client and a server that are not ours. 10,000 messages with
// AMBIT_SOAK=1.
func TestAWebSocketEchoesEveryMessage(t *testing.T) {
	n, largest := 300, 1<<17
	if os.Getenv("AMBIT_SOAK") == "1" {
		n, largest = 10_000, 1<<20
	}
	r := newRig(t)
	r.cluster("reviews", "", backend(t, echoes(t)))
	r.routes(toReviews)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, "ws://reviews:9080/ws", &websocket.DialOptions{Subprotocols: []string{"echo"}, HTTPClient: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx, vip) }}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if resp.StatusCode != 101 || c.Subprotocol() != "echo" {
		t.Errorf("status %d, protocol %q", resp.StatusCode, c.Subprotocol())
	}
	c.SetReadLimit(2 << 20)
	src := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{1}).Read(src)
	all := sizes(n, largest)
	message := func(i int) []byte { return src[i%1024:][:all[i]] }
	written := make(chan error, 1)
	go func() { // ahead of what has come back
		for i := range all {
			kind := websocket.MessageBinary
			if err := c.Write(ctx, kind, message(i)); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	begin, total := time.Now(), 0
	for i := range all {
		kind, b, err := c.Read(ctx)
		if err != nil {
			t.Fatalf("message %d of %d: %v", i, n, err)
		}
		if kind != websocket.MessageBinary || !bytes.Equal(b, message(i)) {
			t.Fatalf("message %d came back changed: %d bytes, sent %d", i, len(b), all[i])
		}
		total += len(b)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("close: %v", err)
	}
	t.Logf("%d messages, %.1f MiB each way, %.1f s", n, float64(total)/(1<<20), time.Since(begin).Seconds())
}

// RFC 8441: a WebSocket that begins as a stream of HTTP/2. The server is as above; the client is bare.
func TestAWebSocketOverHTTP2EchoesEveryMessage(t *testing.T) {
	r := newRig(t)
	r.cluster("reviews", "", backend(t, echoes(t)))
	r.routes(toReviews)
	c, err := r.dial(t.Context(), vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fr := extendedConnect(t, c)
	in, pipe := io.Pipe()
	defer in.Close()
	go pump2(fr, pipe)
	for i, size := range []int{1, 125, 126, 4000, 65535, 65536, 100_000} {
		p := bytes.Repeat([]byte{byte(i + 1)}, size)
		for f := clientFrame(2, p); len(f) > 0; f = f[min(len(f), 16384):] {
			if err := fr.WriteData(1, false, f[:min(len(f), 16384)]); err != nil {
				t.Fatal(err)
			}
		}
		var got []byte
		for fin := false; !fin; {
			var b []byte
			if b, fin, err = serverFrame(in); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			got = append(got, b...)
		}
		if !bytes.Equal(got, p) {
			t.Fatalf("message %d: %d bytes came back, sent %d", i, len(got), size)
		}
	}
	fr.WriteData(1, true, clientFrame(8, []byte{0x03, 0xe8})) // closed normally
	if _, _, err := serverFrame(in); err != nil {
		t.Errorf("close: %v", err)
	}
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 { // the last frame may be empty: not an end yet
		t.Errorf("end: %q, %v", rest, err)
	}
}

// An endpoint of HTTP/2 says neither 101 nor Sec-WebSocket-Accept. The key is that of RFC 6455.
func TestAWebSocketOfHTTP1IsAcceptedByAnEndpointOfHTTP2(t *testing.T) {
	r := newRig(t)
	r.cluster("reviews", h2, script(t, func(c net.Conn) {
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		fr := http2.NewFramer(c, c)
		fr.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			if f.Header().Type != http2.FrameHeaders {
				continue
			}
			var b bytes.Buffer
			hpack.NewEncoder(&b).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: f.Header().StreamID, BlockFragment: b.Bytes(), EndHeaders: true})
			fr.WriteData(f.Header().StreamID, true, []byte("hello"))
		}
	}))
	r.routes(toReviews)
	out, err := r.exchange("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	br := bufio.NewReader(bytes.NewReader(out))
	resp, respErr := http.ReadResponse(br, nil)
	if respErr != nil {
		t.Fatalf("%q, %v", out, err)
	}
	rest, _ := io.ReadAll(br)
	if got := resp.Header.Get("Sec-WebSocket-Accept"); resp.StatusCode != 101 || got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || string(rest) != "hello" {
		t.Errorf("status %d, accept %q, then %q", resp.StatusCode, got, rest)
	}
}

// extendedConnect opens stream 1 for a WebSocket.
func extendedConnect(t *testing.T, c net.Conn) *http2.Framer {
	t.Helper()
	io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	fr.WriteWindowUpdate(0, 1<<20)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() {
			if v, ok := s.Value(http2.SettingEnableConnectProtocol); !ok || v != 1 {
				t.Fatal("the waypoint does not offer ENABLE_CONNECT_PROTOCOL")
			}
			break
		}
	}
	fr.WriteSettingsAck()
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, kv := range [][2]string{{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "http"}, {":path", "/ws"}, {":authority", "reviews:9080"},
		{"sec-websocket-version", "13"}, {"sec-websocket-protocol", "echo"}} {
		e.WriteField(hpack.HeaderField{Name: kv[0], Value: kv[1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b.Bytes(), EndHeaders: true})
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			if h.PseudoValue("status") != "200" {
				t.Fatalf("answered %v", h.Fields)
			}
			return fr
		}
	}
}

// pump2 passes on the data of stream 1.
func pump2(fr *http2.Framer, to *io.PipeWriter) {
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			to.CloseWithError(err)
			return
		}
		if d, ok := f.(*http2.DataFrame); ok {
			if len(d.Data()) > 0 { // an empty write would be a read of nothing
				to.Write(d.Data())
			}
			if d.StreamEnded() {
				to.Close()
				return
			}
		}
	}
}

// clientFrame is a whole message of a client (RFC 6455 section 5.2), masked with zeros.
func clientFrame(op byte, p []byte) []byte {
	b := []byte{0x80 | op}
	switch n := len(p); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	return append(append(b, 0, 0, 0, 0), p...)
}

// serverFrame reads a frame of a server.
func serverFrame(r io.Reader) (p []byte, fin bool, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, false, err
	}
	n := uint64(head[1] & 0x7f)
	var long [8]byte
	switch n {
	case 126:
		_, err = io.ReadFull(r, long[6:])
		n = binary.BigEndian.Uint64(long[:])
	case 127:
		_, err = io.ReadFull(r, long[:])
		n = binary.BigEndian.Uint64(long[:])
	}
	if err != nil {
		return nil, false, err
	}
	p = make([]byte, n)
	_, err = io.ReadFull(r, p)
	return p, head[0]&0x80 != 0, err
}
