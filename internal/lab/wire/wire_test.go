package wire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

func seg(from, to string, seq uint32, syn, ack bool, payload string) Segment {
	return Segment{Src: netip.MustParseAddrPort(from), Dst: netip.MustParseAddrPort(to), Seq: seq, SYN: syn, ACK: ack, Payload: []byte(payload)}
}

const cl, sv = "10.0.0.1:40000", "10.0.0.2:80"

func TestPlaintextIsTold(t *testing.T) {
	tr := Tracker{Marker: []byte("secret")}
	tr.Add(seg(cl, sv, 99, true, false, ""))
	tr.Add(seg(sv, cl, 499, true, true, ""))
	tr.Add(seg(cl, sv, 100, false, true, "GET /sec"))
	tr.Add(seg(cl, sv, 100, false, true, "GET /sec")) // sent again
	tr.Add(seg(cl, sv, 108, false, true, "ret secret"))
	fs := tr.Flows()
	if len(fs) != 1 {
		t.Fatalf("got %d flows, want 1", len(fs))
	}
	if f := fs[0]; !f.Plaintext() || f.TLS13() || f.Markers != 2 || f.Bytes != 18 || !f.Whole || f.Client.String() != cl {
		t.Errorf("got %+v, want a plaintext flow of 18 bytes with 2 markers", f)
	}
}

func TestSegmentsOutOfOrderArePutInOrder(t *testing.T) {
	tr := Tracker{Marker: []byte("abcdef")}
	tr.Add(seg(cl, sv, 99, true, false, ""))
	tr.Add(seg(cl, sv, 103, false, true, "def"))
	tr.Add(seg(cl, sv, 100, false, true, "abc"))
	if f := tr.Flows()[0]; f.Markers != 1 || f.Bytes != 6 || string(f.First) != "abcdef" {
		t.Errorf("got %+v, want the marker once", f)
	}
}

func TestANewConnectionOnTheSamePortsIsAnother(t *testing.T) {
	tr := Tracker{}
	for _, isn := range []uint32{99, 7000} {
		tr.Add(seg(cl, sv, isn, true, false, ""))
		tr.Add(seg(cl, sv, isn+1, false, true, "x"))
	}
	if n := len(tr.Flows()); n != 2 {
		t.Errorf("got %d flows, want 2", n)
	}
}

// recordTLS makes a TLS connection in memory and gives the bytes of both directions to a tracker in pieces of size.
func recordTLS(t *testing.T, version uint16, size int) Flow {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"a"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	up, down := &tee{Conn: a}, &tee{Conn: b}
	served := make(chan struct{})
	go func() {
		defer close(served)
		c := tls.Server(down, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MaxVersion: version})
		_, _ = io.Copy(c, c)
		c.Close()
	}()
	c := tls.Client(up, &tls.Config{InsecureSkipVerify: true})
	if _, err := io.WriteString(c, "marker in the clear"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 19)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	b.Close() // the server's own close_notify has no reader
	<-served
	tr := Tracker{Marker: []byte("marker")}
	tr.Add(seg(cl, sv, 99, true, false, ""))
	tr.Add(seg(sv, cl, 499, true, true, ""))
	feed := func(from, to string, seq uint32, b []byte) {
		for len(b) > 0 {
			n := min(size, len(b))
			tr.Add(seg(from, to, seq, false, true, string(b[:n])))
			b, seq = b[n:], seq+uint32(n)
		}
	}
	feed(cl, sv, 100, up.sent.Bytes())
	feed(sv, cl, 500, down.sent.Bytes())
	return tr.Flows()[0]
}

type tee struct {
	net.Conn
	sent bytes.Buffer
}

func (t *tee) Write(p []byte) (int, error) { t.sent.Write(p); return t.Conn.Write(p) }

func TestTLSVersionsAreTold(t *testing.T) {
	for _, size := range []int{1, 7, 4096} {
		if f := recordTLS(t, tls.VersionTLS13, size); !f.TLS13() || f.Markers != 0 || len(f.Offered) == 0 {
			t.Errorf("in pieces of %d: got %+v, want TLS 1.3 without marker", size, f)
		}
		if f := recordTLS(t, tls.VersionTLS12, size); !f.TLS || f.Version != 0x0303 || f.TLS13() {
			t.Errorf("in pieces of %d: got %+v, want TLS 1.2", size, f)
		}
	}
}

func TestPlaintextAfterAHandshakeIsNotTLS(t *testing.T) {
	tr := Tracker{}
	tr.Add(seg(cl, sv, 99, true, false, ""))
	tr.Add(seg(cl, sv, 100, false, true, "\x17\x03\x03\x00\x01xhello"))
	if f := tr.Flows()[0]; f.TLS {
		t.Errorf("got %+v, want no TLS", f)
	}
}

func TestRootCaptureSeesTheWire(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("AMBIT_ROOT_TESTS") == "off" {
		t.Skip("needs root: it opens a packet socket")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	server := ln.Addr().(*net.TCPAddr).AddrPort()
	c, err := Open(Config{Link: "lo", Marker: []byte("hunter2"), Filter: func(s Segment) bool { return s.Src == server || s.Dst == server }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "the password is hunter2")
	conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // Run still reads what is queued
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	r := c.Report()
	// The loopback shows each packet twice, going out and coming in.
	if len(r.Flows) != 1 || r.Markers() != 1 || r.Flows[0].Server != server {
		t.Errorf("got %+v, want one flow with one marker", r)
	}
}

func TestRootCaptureEndsOnALinkThatIsNeverSilent(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("AMBIT_ROOT_TESTS") == "off" {
		t.Skip("needs root: it opens a packet socket")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	go io.Copy(io.Discard, peer) // ends with the connection
	server, seen := ln.Addr().(*net.TCPAddr).AddrPort(), 0
	c, err := Open(Config{Link: "lo", Filter: func(s Segment) bool {
		if s.Dst == server && seen < 10_000 { // each packet that is looked at brings the next one
			seen++
			_, _ = conn.Write([]byte("x"))
		}
		return false
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = conn.Write([]byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if seen == 0 || seen >= 10_000 {
		t.Errorf("Run read %d packets, want those from before its end and no more", seen)
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x08\x00\x45\x00\x00\x2c\x00\x00\x00\x00\x40\x06\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02\x9c\x40\x00\x50\x00\x00\x00\x64\x00\x00\x00\x00\x50\x18\x00\x00\x00\x00\x00\x00abcd"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := ParseFrame(b)
		if ok && len(s.Payload) > len(b) {
			t.Errorf("payload of %d bytes out of %d", len(s.Payload), len(b))
		}
	})
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"), 3)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		var whole, parts records
		whole.take(b)
		for p := b; len(p) > 0; {
			n := min(max(1, size&0xff), len(p))
			parts.take(p[:n])
			p = p[n:]
		}
		if whole.records != parts.records || whole.broken != parts.broken || whole.selected != parts.selected {
			t.Errorf("whole %+v, in parts %+v", whole, parts)
		}
	})
}
