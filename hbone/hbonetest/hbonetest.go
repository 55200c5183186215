// Package hbonetest has what tests of HBONE peers need: certificates with SPIFFE identities, running loops, servers on
// loopback, and a dialler for a Pool. Everything ends with the test.
package hbonetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
)

// CA signs identities.
type CA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a self-signed authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{t: t}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hbonetest"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca.cert, ca.key = issue(t, tmpl, nil, nil)
	return ca
}

// Config is a TLS configuration for either end, with the SPIFFE identity id; it wants a certificate of the same CA from
// the other end and does not look at the identity in it.
func (ca *CA) Config(id string) *tls.Config {
	ca.t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		ca.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{u},
	}
	cert, key := issue(ca.t, tmpl, ca.cert, ca.key)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, DynamicRecordSizingDisabled: true, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: roots,
		InsecureSkipVerify: true, // there is no DNS name to check: the chain is verified below
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("no certificate")
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		},
	}
}

func issue(t testing.TB, tmpl, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// Loop runs a loop until the test ends.
func Loop(t testing.TB) *loop.Loop {
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

// Dialer returns a function for PoolConfig.Dial. It dials from the key's source address if there is one.
func Dialer(l *loop.Loop, cfg *tls.Config) func(hbone.Key, any, func(int, *looptls.Conn, error)) {
	return func(key hbone.Key, _ any, done func(int, *looptls.Conn, error)) {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			fd, err := dial(ctx, key.SourceIP, key.Addr)
			if err != nil {
				done(-1, nil, err)
				return
			}
			c, err := looptls.Client(ctx, fd, cfg)
			if err != nil {
				unix.Close(fd)
				done(-1, nil, err)
				return
			}
			done(fd, c, nil)
		}()
	}
}

// Dial connects by TCP and returns a non-blocking descriptor.
func Dial(ctx context.Context, addr netip.AddrPort) (int, error) {
	return dial(ctx, netip.Addr{}, addr)
}

func dial(ctx context.Context, from netip.Addr, addr netip.AddrPort) (int, error) {
	var d net.Dialer
	if from.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return -1, err
	}
	return Descriptor(c)
}

// Descriptor takes the descriptor out of a TCP connection, which it closes.
func Descriptor(c net.Conn) (int, error) {
	defer c.Close()
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if cerr := rc.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return -1, cerr
	}
	return fd, err
}

// Listen serves TLS connections on loopback until the test ends. s must belong to l.
func Listen(t testing.TB, l *loop.Loop, s *hbone.Server, cfg *tls.Config) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { accept(l, s, cfg, c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func accept(l *loop.Loop, s *hbone.Server, cfg *tls.Config, c net.Conn) {
	fd, err := Descriptor(c)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tc, err := looptls.Server(ctx, fd, cfg)
	if err != nil {
		unix.Close(fd)
		return
	}
	l.Inject(func() {
		if s.Serve(fd, tc, nil) != nil {
			unix.Close(fd)
		}
	})
}

// HandlerFunc is a function as an hbone.Handler.
type HandlerFunc func(s *hbone.Stream, r *hbone.Request)

// ServeConnect implements hbone.Handler.
func (f HandlerFunc) ServeConnect(s *hbone.Stream, r *hbone.Request) { f(s, r) }

// JoinTo answers every request by joining its stream with a new TCP connection to addr.
func JoinTo(t testing.TB, l *loop.Loop, addr netip.AddrPort, done hbone.JoinHandler) hbone.Handler {
	return HandlerFunc(func(s *hbone.Stream, _ *hbone.Request) {
		go func() {
			fd, err := Dial(context.Background(), addr)
			l.Inject(func() {
				if err != nil {
					s.Reject(503)
					return
				}
				f, err := l.Add(fd, nil)
				if err != nil {
					t.Error(err)
					s.Reject(503)
					return
				}
				s.Accept(nil)
				s.Join(f, done)
			})
		}()
	})
}
