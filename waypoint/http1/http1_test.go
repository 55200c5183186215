package http1

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

func TestNetHTTPClientsAndServersAreServedThroughBothCodecs(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %d %v", r.Method, r.Host, r.URL.Path, r.ContentLength, r.TransferEncoding))
		n, err := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", fmt.Sprint(n, err, r.Trailer.Get("X-Up")))
	}))
	defer backend.Close()
	l := running(t)
	p := &proxy{t: t, l: l, addr: backend.Listener.Addr().String()}
	addr := listen(t, l, ServerConfig{}, p.handler)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	big := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{}).Read(big)
	for i := range 20 {
		for _, size := range []int{0, 1, 1000, 70_000, 1 << 20, len(big)} {
			if size > 1<<20 && i > 0 {
				continue
			}
			for _, known := range []bool{true, false} {
				body := io.Reader(bytes.NewReader(big[:size]))
				if !known {
					body = struct{ io.Reader }{body}
				}
				req, _ := http.NewRequest("POST", "http://"+addr+"/a/b", body)
				if !known {
					req.Trailer = http.Header{"X-Up": {"yes"}}
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatalf("%d bytes, known %v: %v", size, known, err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, big[:size]) {
					t.Fatalf("%d bytes, known %v: got %d bytes, %v", size, known, len(got), err)
				}
				if size > 0 && !known {
					if sum := resp.Trailer.Get("X-Sum"); sum != fmt.Sprintf("%d <nil>yes", size) {
						t.Errorf("trailer %q", sum)
					}
				}
				if seen := resp.Header.Get("X-Seen"); !strings.HasPrefix(seen, "POST "+addr+" /a/b") {
					t.Errorf("backend saw %q", seen)
				}
			}
		}
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	l := running(t)
	c, _, _ := dial(t, l, ServerConfig{}, echo(nil))
	var b strings.Builder
	for i := range 50 {
		fmt.Fprintf(&b, "POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n%03d", i, i)
	}
	b.WriteString("GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	if _, err := io.WriteString(c, b.String()); err != nil {
		t.Fatal(err)
	}
	got := drainAll(t, c)
	for i := range 50 {
		want := fmt.Sprintf("x-seen: POST h /%d\r\ntransfer-encoding: chunked\r\n\r\n3\r\n%03d\r\n0\r\n\r\n", i, i)
		_, rest, ok := strings.Cut(got, want)
		if !ok {
			t.Fatalf("answer %d is not there in %q", i, got)
		}
		got = rest
	}
	if want := "HTTP/1.1 200 OK\r\nx-seen: GET h /last\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"; got != want {
		t.Errorf("last answer %q, want %q", got, want)
	}
}

func TestATunnelCarriesBytesBothWaysWithHalfClose(t *testing.T) {
	for _, first := range []string{
		"GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n",
		"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n",
	} {
		l := running(t)
		up, done := rawServer(t, func(c io.ReadWriteCloser) {
			head := readHead(t, c)
			answer := "HTTP/1.1 200 OK\r\n\r\nhello"
			if strings.HasPrefix(head, "GET") {
				answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello"
			}
			io.WriteString(c, answer)
			closeWrite(c) // this direction ends first
			if got, err := io.ReadAll(c); string(got) != "bytes" || err != nil {
				t.Errorf("upstream got %q, %v", got, err)
			}
		})
		p := &proxy{t: t, l: l, addr: up}
		c, _, f := dial(t, l, ServerConfig{}, p)
		io.WriteString(c, first)
		readHead(t, c)
		if got := drainAll(t, c); got != "hello" {
			t.Errorf("got %q", got)
		}
		io.WriteString(c, "bytes")
		c.CloseWrite()
		<-done
		if err := <-f.closed; err != nil {
			t.Errorf("closed with %v", err)
		}
	}
}

func TestSlowReadersHoldTheOtherSideBack(t *testing.T) {
	l := running(t)
	const size = 64 << 20
	sent := make(chan int, 1)
	up, _ := rawServer(t, func(c io.ReadWriteCloser) {
		readHead(t, c)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
		n := 0
		b := make([]byte, 1<<20)
		for n < size {
			k, err := c.Write(b)
			if n += k; err != nil {
				break
			}
			select {
			case <-sent:
			default:
			}
			sent <- n
		}
	})
	p := &proxy{t: t, l: l, addr: up}
	c, s, _ := dial(t, l, ServerConfig{}, p)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	readHead(t, c)
	l.OnLoop(func() {})
	l.OnLoop(func() {
		if s.out != nil && len(*s.out) > 2*maxOut {
			t.Errorf("%d bytes wait to be written", len(*s.out))
		}
		if n := p.up.restLen(); n > readSize {
			t.Errorf("%d bytes are kept", n)
		}
	})
	if n, err := io.Copy(io.Discard, io.LimitReader(c, size)); n != size || err != nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
}

var _ message.ClientConn = (*ClientConn)(nil)
