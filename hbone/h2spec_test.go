package hbone_test

import (
	"bytes"
	"crypto/tls"
	"encoding/xml"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
)

// h2specExceptions are the cases of h2spec that a server of CONNECT tunnels need not, or must not, pass.
var h2specExceptions = map[string]string{
	"generic/2: Sends a WINDOW_UPDATE frame on half-closed (remote) stream":                                                                                 noBody,
	"generic/2: Sends a PRIORITY frame on half-closed (remote) stream":                                                                                      noBody,
	"http2/4.2: Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE":                                                                  "h2spec sends 16 KiB + 1, and we announce 1 MiB",
	"http2/8.1.2.6: Sends a HEADERS frame with the \"content-length\" header field which does not equal the DATA frame payload length":                      noLength,
	"http2/8.1.2.6: Sends a HEADERS frame with the \"content-length\" header field which does not equal the sum of the multiple DATA frames payload length": noLength,
}

const (
	noBody   = "it waits for a DATA frame, and refusals have no body (H17)"
	noLength = "the request is refused anyway, and its body not looked at"
)

// TestH2SpecFindsNothingButTheKnownExceptions runs https://github.com/summerwind/h2spec, named by H2SPEC_BIN, through a
// forwarder that holds the client certificate which h2spec cannot. h2spec sends GET and POST, which are answered 400.
func TestH2SpecFindsNothingButTheKnownExceptions(t *testing.T) {
	bin := os.Getenv("H2SPEC_BIN")
	if bin == "" {
		t.Skip("H2SPEC_BIN does not name h2spec")
	}
	port := h2specTarget(t)
	report := filepath.Join(t.TempDir(), "report.xml")
	out, err := exec.Command(bin, "-p", strconv.Itoa(port), "-o", "3", "-j", report).CombinedOutput()
	if err != nil {
		t.Log(err) // it fails if a case does
	}
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var suites struct {
		Suites []struct {
			Name  string `xml:"name,attr"`
			Cases []struct {
				Package string `xml:"package,attr"`
				Class   string `xml:"classname,attr"`
				Failure string `xml:"failure"`
				Error   string `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &suites); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			n++
			bad := strings.TrimSpace(c.Failure + c.Error)
			name := c.Package + ": " + c.Class
			reason, known := h2specExceptions[name]
			switch {
			case bad != "" && !known:
				t.Errorf("%s\n%s", name, bad)
			case bad != "":
				t.Logf("exception: %s (%s)", name, reason)
			case known:
				t.Errorf("passes, though it is listed as an exception: %s", name)
			}
		}
	}
	t.Logf("%d cases", n)
	if n < 100 {
		t.Errorf("only %d cases were run\n%s", n, out)
	}
}

// TestAStreamBeyondTheLimitIsRefusedHoweverSlowlyTheyCome does what h2spec's case 5.1.2 does, with a pause between two of its
// requests, which load makes as well.
func TestAStreamBeyondTheLimitIsRefusedHoweverSlowlyTheyCome(t *testing.T) {
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(h2specTarget(t))))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	fr := http2.NewFramer(c, c)
	io.WriteString(c, http2.ClientPreface)
	fr.WriteSettings()
	var limit, id uint32 = 0, 1
	answered := 0
	// until is the next frame of a type. What is answered on the way is counted.
	until := func(typ http2.FrameType) http2.Frame {
		t.Helper()
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatalf("no %v: %v; limit %d, %d requests answered", typ, err, limit, answered)
			}
			if f.Header().Type == typ {
				return f
			}
			if f.Header().Type == http2.FrameHeaders {
				answered++
			}
		}
	}
	limit, _ = until(http2.FrameSettings).(*http2.SettingsFrame).Value(http2.SettingMaxConcurrentStreams)
	if limit == 0 {
		t.Fatal("no limit is announced")
	}
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "127.0.0.1"}} {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}) // so that the block may be sent again
	}
	send := func(n uint32) {
		for range n {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: true})
			id += 2
		}
	}
	send(limit)
	fr.WritePing(false, [8]byte{})
	for !until(http2.FramePing).(*http2.PingFrame).IsAck() {
	}
	send(1)
	if f := until(http2.FrameRSTStream).(*http2.RSTStreamFrame); f.StreamID != id-2 || f.ErrCode != http2.ErrCodeRefusedStream {
		t.Errorf("got %v, want stream %d refused", f, id-2)
	}
}

// h2specTarget is a port of a server that h2spec can speak to.
func h2specTarget(t *testing.T) (port int) {
	l := hbonetest.Loop(t)
	ca := hbonetest.NewCA(t)
	var srv *hbone.Server
	l.OnLoop(func() {
		srv = hbone.NewServer(l, hbone.ServerConfig{Handler: hbonetest.HandlerFunc(func(s *hbone.Stream, _ *hbone.Request) { s.Accept(nil) })})
	})
	addr := hbonetest.Listen(t, l, srv, ca.Config("spiffe://cluster.local/ns/s/sa/server"))
	return forward(t, addr.String(), ca.Config("spiffe://cluster.local/ns/c/sa/client"))
}

// forward accepts plain connections and continues them over TLS; what goes out is read by unending.
func forward(t *testing.T, addr string, cfg *tls.Config) (port int) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	one := func(in net.Conn) {
		defer in.Close()
		out, err := tls.Dial("tcp", addr, cfg)
		if err != nil {
			return
		}
		defer out.Close()
		done := make(chan struct{})
		go func() {
			io.Copy(in, out)
			in.Close()
			close(done)
		}()
		io.Copy(out, &unending{Conn: in})
		out.Close()
		<-done
	}
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { one(in) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().(*net.TCPAddr).Port
}

// unending reads what h2spec sends, and takes the end from requests once their client has no window: by that case 5.1.2 means
// to keep its streams open, but a refusal has no body that would have to wait for one, only the request's end is waited for.
type unending struct {
	net.Conn
	seen    int    // of the preface
	head    []byte // of the frame
	left    int    // of the frame's payload
	setting uint64 // the last bytes of a SETTINGS frame
	noRoom  bool
}

// Read implements net.Conn.
func (u *unending) Read(p []byte) (int, error) {
	n, err := u.Conn.Read(p)
	for i := range p[:n] {
		p[i] = u.next(p[i])
	}
	return n, err
}

// next is what becomes of the next byte (RFC 9113 sections 4.1 and 6.5.1).
func (u *unending) next(b byte) byte {
	switch {
	case u.seen < len(http2.ClientPreface):
		u.seen++
	case u.left > 0:
		u.left--
		u.setting = u.setting<<8 | uint64(b)
		if http2.FrameType(u.head[3]) == http2.FrameSettings && u.left%6 == 0 && uint16(u.setting>>32) == uint16(http2.SettingInitialWindowSize) {
			u.noRoom = uint32(u.setting) == 0
		}
		if u.left == 0 {
			u.head = u.head[:0]
		}
	default:
		if len(u.head) == 4 && u.noRoom && http2.FrameType(u.head[3]) == http2.FrameHeaders {
			b &^= byte(http2.FlagHeadersEndStream)
		}
		if u.head = append(u.head, b); len(u.head) == 9 {
			if u.left = int(u.head[0])<<16 | int(u.head[1])<<8 | int(u.head[2]); u.left == 0 {
				u.head = u.head[:0]
			}
		}
	}
	return b
}
