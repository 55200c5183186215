package looptls

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func configs(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	server = &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	return server, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
}

// connection is a TCP connection over loopback, one end of it as a bare descriptor.
func connection(t testing.TB) (peer *net.TCPConn, fd int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	rc, _ := in.(*net.TCPConn).SyscallConn()
	rc.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), fd
}

// half is one direction's key.
type half struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func newHalf(t testing.TB, secret []byte) *half {
	t.Helper()
	h := &half{secret: secret}
	block, err := aes.NewCipher(expand(t, secret, "key", 16))
	if err != nil {
		t.Fatal(err)
	}
	if h.aead, err = cipher.NewGCM(block); err != nil {
		t.Fatal(err)
	}
	h.iv = expand(t, secret, "iv", 12)
	return h
}

// updated is the key after a KeyUpdate (RFC 8446 section 7.2).
func (h *half) updated(t testing.TB) *half { return newHalf(t, expand(t, h.secret, "traffic upd", 32)) }

func expand(t testing.TB, secret []byte, label string, n int) []byte {
	t.Helper()
	label = "tls13 " + label
	info := []byte{byte(n >> 8), byte(n), byte(len(label))}
	info = append(info, label...)
	out, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (h *half) nonce() []byte {
	n := bytes.Clone(h.iv)
	for i := range 8 {
		n[4+i] ^= byte(h.seq >> (56 - 8*i))
	}
	h.seq++
	return n
}

// record seals content of a type.
func (h *half) record(typ byte, p []byte) []byte {
	rec := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(rec[3:], uint16(len(p)+17))
	return h.aead.Seal(rec, h.nonce(), append(bytes.Clone(p), typ), rec)
}

// open decrypts a whole record into its content and type.
func (h *half) open(t testing.TB, rec []byte) ([]byte, byte) {
	t.Helper()
	p, err := h.aead.Open(nil, h.nonce(), rec[5:], rec[:5])
	if err != nil {
		t.Fatal(err)
	}
	return p[:len(p)-1], p[len(p)-1]
}

// peer speaks TLS records by hand with a server's Conn that runs on a loop.
type peer struct {
	t     testing.TB
	sock  *net.TCPConn
	wr    *half
	rd    *half
	l     *loop.Loop
	c     *Conn
	f     *loop.FD
	plain chan []byte
	fail  chan error
	fd    int

	onRead func(p []byte) error // on the loop, if set
}

// Ready implements loop.Handler.
func (p *peer) Ready(f *loop.FD) {
	if p.c.Queued() > 0 && f.Writable() {
		p.c.Flush()
	}
	for f.Readable() {
		err := p.c.ReadRecords(loop.BufferSize, func(b []byte) error {
			p.plain <- bytes.Clone(b)
			if p.onRead != nil {
				return p.onRead(b)
			}
			return nil
		})
		if err == loop.ErrAgain {
			return
		}
		if err != nil {
			p.fail <- err
			f.Close()
			return
		}
	}
}

func running(t testing.TB) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return l
}

// shaken makes a peer whose handshake is done; attached says whether its Conn is already on the loop.
func shaken(t testing.TB, attached bool) *peer {
	t.Helper()
	srv, cli := configs(t)
	p := &peer{t: t, plain: make(chan []byte, 1<<16), fail: make(chan error, 1)}
	p.sock, p.fd = connection(t)
	var log bytes.Buffer
	cli.KeyLogWriter = &log
	tc := tls.Client(p.sock, cli)
	done := make(chan error, 1)
	go func() {
		var err error
		p.c, err = Server(context.Background(), p.fd, srv)
		done <- err
	}()
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := tc.ConnectionState().CipherSuite; s != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatalf("the test's records need AES-128-GCM, which machines with AES instructions prefer; got %s", tls.CipherSuiteName(s))
	}
	for line := range strings.Lines(log.String()) {
		w := strings.Fields(line)
		secret, err := hex.DecodeString(w[2])
		if err != nil {
			t.Fatal(err)
		}
		switch w[0] {
		case "CLIENT_TRAFFIC_SECRET_0":
			p.wr = newHalf(t, secret)
		case "SERVER_TRAFFIC_SECRET_0":
			p.rd = newHalf(t, secret)
		}
	}
	if attached {
		p.attach()
	} else {
		t.Cleanup(func() {
			if p.f == nil {
				unix.Close(p.fd)
			}
		})
	}
	return p
}

func (p *peer) attach() {
	p.l = running(p.t)
	p.l.OnLoop(func() {
		f, err := p.l.Add(p.fd, p)
		if err != nil {
			p.t.Error(err)
			return
		}
		p.f = f
		p.c.Attach(f)
		f.Wake()
	})
}

func (p *peer) send(b []byte) {
	p.t.Helper()
	if _, err := p.sock.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// want waits until exactly these bytes have been handed out.
func (p *peer) want(b []byte) {
	p.t.Helper()
	var got []byte
	for len(got) < len(b) {
		select { // an end comes behind the bytes, though select might not take them so
		case x := <-p.plain:
			got = append(got, x...)
			continue
		default:
		}
		select {
		case x := <-p.plain:
			got = append(got, x...)
		case err := <-p.fail:
			if len(p.plain) > 0 {
				p.fail <- err
				continue
			}
			p.t.Fatalf("after %d of %d bytes: %v", len(got), len(b), err)
		}
	}
	if !bytes.Equal(got, b) {
		p.t.Fatalf("got %d bytes, want %d, or they differ", len(got), len(b))
	}
}

// receive reads one record from the Conn.
func (p *peer) receive() []byte {
	p.t.Helper()
	p.sock.SetReadDeadline(time.Now().Add(20 * time.Second))
	rec := make([]byte, 5)
	if _, err := readFull(p.sock, rec); err != nil {
		p.t.Fatal(err)
	}
	rec = append(rec, make([]byte, int(rec[3])<<8|int(rec[4]))...)
	if _, err := readFull(p.sock, rec[5:]); err != nil {
		p.t.Fatal(err)
	}
	return rec
}
