package svid_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/svid/svidtest"
)

// handshake joins client and server and returns both ends' errors and states.
//
//lint:ignore ST1008 the two errors are the result, the states an extra
func handshake(t *testing.T, client, server *tls.Config) (clientErr, serverErr error, c, s tls.ConnectionState) {
	t.Helper()
	a, b := socketPair(t)
	cc, sc := tls.Client(a, client), tls.Server(b, server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		serverErr = sc.Handshake()
		if serverErr == nil {
			_, serverErr = sc.Write([]byte("x"))
		} else {
			b.Close()
		}
	}()
	clientErr = cc.Handshake()
	if clientErr == nil {
		_, clientErr = cc.Read(make([]byte, 1)) // a TLS 1.3 server's refusal comes after the client's handshake
	}
	if clientErr != nil {
		a.Close()
	}
	<-done
	return clientErr, serverErr, cc.ConnectionState(), sc.ConnectionState()
}

// socketPair is two ends of a loopback connection: unlike net.Pipe it takes an alert that nobody reads yet.
func socketPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return a, b
}

func TestPeersOfOneMeshConnect(t *testing.T) {
	ca := svidtest.NewCA(t, "cluster.local")
	client, server := ca.ID("a", "client"), ca.ID("b", "server")
	for _, kx := range []svid.KeyExchange{svid.Classical, svid.Hybrid, svid.HybridOnly} {
		opts := svid.Options{KeyExchange: kx}
		cErr, sErr, cs, ss := handshake(t,
			svid.ClientConfig(ca.Issue(client), []spiffe.ID{ca.ID("x", "y"), server}, opts),
			svid.ServerConfig(ca.Issue(server), opts))
		if cErr != nil || sErr != nil {
			t.Fatalf("key exchange %d: client %v, server %v", kx, cErr, sErr)
		}
		if got, err := svid.PeerID(cs); got != server || err != nil {
			t.Errorf("client sees %v, %v; want %v", got, err, server)
		}
		if got, err := svid.PeerID(ss); got != client || err != nil {
			t.Errorf("server sees %v, %v; want %v", got, err, client)
		}
		if ss.ServerName != "" {
			t.Errorf("client sent SNI %q, want none", ss.ServerName)
		}
		if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" {
			t.Errorf("got version %x and ALPN %q, want TLS 1.3 and h2", cs.Version, cs.NegotiatedProtocol)
		}
		wantCurve := map[svid.KeyExchange]tls.CurveID{svid.Classical: tls.X25519, svid.Hybrid: tls.X25519MLKEM768, svid.HybridOnly: tls.X25519MLKEM768}[kx]
		if cs.CurveID != wantCurve {
			t.Errorf("key exchange %d used %v, want %v", kx, cs.CurveID, wantCurve)
		}
	}
}

// TestServerRefusesBadPeers and TestClientRefusesBadPeers are row B21 of the hostile-input table.
func TestServerRefusesBadPeers(t *testing.T) {
	ca := svidtest.NewCA(t, "cluster.local")
	server := svid.ServerConfig(ca.Issue(ca.ID("b", "server")), svid.Options{})
	for _, tt := range badPeers(t, ca, ca.ID("a", "client")) {
		t.Run(tt.name, func(t *testing.T) {
			_, err, _, _ := handshake(t, bare(tt.cert), server)
			wantRefusal(t, err, tt.err, "an identity of trust domain cluster.local")
		})
	}
}

func TestClientRefusesBadPeers(t *testing.T) {
	ca := svidtest.NewCA(t, "cluster.local")
	want := ca.ID("b", "server")
	client := svid.ClientConfig(ca.Issue(ca.ID("a", "client")), []spiffe.ID{want}, svid.Options{})
	for _, tt := range badPeers(t, ca, want) {
		t.Run(tt.name, func(t *testing.T) {
			err, _, _, _ := handshake(t, client, bare(tt.cert))
			wantRefusal(t, err, tt.err, want.String())
		})
	}
	t.Run("another service account of the mesh", func(t *testing.T) {
		err, _, _, _ := handshake(t, client, bare(ca.Cert(ca.ID("b", "other"))))
		wantRefusal(t, err, "another identity", "ns/b/sa/other")
	})
	t.Run("nobody expected", func(t *testing.T) {
		nobody := svid.ClientConfig(ca.Issue(ca.ID("a", "client")), nil, svid.Options{})
		err, _, _, _ := handshake(t, nobody, bare(ca.Cert(want)))
		wantRefusal(t, err, "another identity", "want nobody")
	})
}

func TestServerRefusesAClientWithoutCertificate(t *testing.T) {
	ca := svidtest.NewCA(t, "cluster.local")
	server := svid.ServerConfig(ca.Issue(ca.ID("b", "server")), svid.Options{})
	_, err, _, _ := handshake(t, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}, server)
	if err == nil {
		t.Fatal("the handshake succeeded")
	}
}

func TestServerAcceptsListedTrustDomains(t *testing.T) {
	ca := svidtest.NewCA(t, "cluster.local")
	server := svid.ServerConfig(ca.Issue(ca.ID("b", "server")), svid.Options{TrustDomains: "old.example, older.example"})
	for td, ok := range map[string]bool{"cluster.local": true, "old.example": true, "older.example": true, "evil.example": false} {
		id, err := spiffe.New(td, "a", "client")
		if err != nil {
			t.Fatal(err)
		}
		if _, err, _, _ := handshake(t, bare(ca.Cert(id)), server); (err == nil) != ok {
			t.Errorf("trust domain %s: got %v, want accepted %v", td, err, ok)
		}
	}
}

func TestRevokedPeerIsRefused(t *testing.T) {
	ca := svidtest.NewCA(t, "cluster.local")
	server := svid.ServerConfig(ca.Issue(ca.ID("b", "server")), svid.Options{Revocation: &revokeAll{}})
	_, err, _, _ := handshake(t, bare(ca.Cert(ca.ID("a", "client"))), server)
	wantRefusal(t, err, "revoked", "ns/a/sa/client")
}

type revokeAll struct{ _ int }

func (*revokeAll) Check([]*x509.Certificate) error { return errors.New("revoked") }

// bare is a configuration without any checks, for the peer under suspicion.
func bare(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
}

func wantRefusal(t *testing.T, err error, texts ...string) {
	t.Helper()
	var peer *svid.PeerError
	if !errors.As(err, &peer) {
		t.Fatalf("got error %v, want a *PeerError", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not contain %q", err, text)
		}
	}
}

type badPeer struct {
	name string
	cert tls.Certificate
	err  string
}

func badPeers(t *testing.T, ca *svidtest.CA, id spiffe.ID) []badPeer {
	t.Helper()
	smallKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	evil := "spiffe://evil.local/ns/" + id.Namespace() + "/sa/" + id.ServiceAccount()
	td := "spiffe://cluster.local/ns/"
	change := func(f func(*x509.Certificate)) tls.Certificate { return ca.Cert(id, svidtest.Template(f)) }
	otherEKU := x509.ExtKeyUsageCodeSigning
	return []badPeer{
		{"another trust domain", ca.Cert(id, svidtest.URIs(evil)), "evil.local"},
		{"no URI SAN", ca.Cert(id, svidtest.URIs()), "no URI SAN"},
		{"two URI SANs", ca.Cert(id, svidtest.URIs(id.String(), td+"a/sa/other")), "2 URI SANs"},
		{"NUL in the SAN", ca.Cert(id, svidtest.URIs(id.String()+"%00")), "contains"},
		{"percent-encoding in the SAN", ca.Cert(id, svidtest.URIs(td+"%61/sa/client")), "contains '%'"},
		{"upper case in the SAN", ca.Cert(id, svidtest.URIs(td+"A/sa/client")), "contains 'A'"},
		{"dot-dot in the SAN", ca.Cert(id, svidtest.URIs(td+"../sa/client")), `".."`},
		{"expired", change(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}), "expired at"},
		{"not yet valid", change(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), "not valid before"},
		{"a CA as leaf", change(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), "is a CA"},
		{"a leaf that may sign", change(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), "may sign"},
		{"wrong extended key usage", change(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{otherEKU} }), "incompatible key usage"},
		{"RSA key of 1024 bits", ca.Cert(id, svidtest.Key(smallKey)), "1024 bits"},
		{"SHA-1 signature", ca.Cert(id, svidtest.Template(func(c *x509.Certificate) {
			c.SignatureAlgorithm = x509.ECDSAWithSHA1
		})), "SHA1"},
		{"another root", svidtest.NewCA(t, "cluster.local").Cert(id), "unknown authority"},
	}
}

func TestConfigsAreKeptPerSVID(t *testing.T) {
	ca := svidtest.NewCA(t, "cluster.local")
	s := ca.Issue(ca.ID("a", "client"))
	x, y := ca.ID("x", "x"), ca.ID("y", "y")
	if first := svid.ServerConfig(s, svid.Options{}); svid.ServerConfig(s, svid.Options{}) != first {
		t.Error("ServerConfig built a second configuration")
	}
	if svid.ClientConfig(s, []spiffe.ID{x, y}, svid.Options{}) != svid.ClientConfig(s, []spiffe.ID{y, x, x}, svid.Options{}) {
		t.Error("ClientConfig built a second configuration for the same identities")
	}
	if svid.ClientConfig(s, []spiffe.ID{x}, svid.Options{}) == svid.ClientConfig(s, []spiffe.ID{y}, svid.Options{}) {
		t.Error("ClientConfig shares a configuration between different identities")
	}
	if svid.ServerConfig(s, svid.Options{}) == svid.ServerConfig(ca.Issue(s.ID), svid.Options{}) {
		t.Error("two SVIDs share a configuration")
	}
}

func BenchmarkClientConfig(b *testing.B) {
	ca := svidtest.NewCA(b, "cluster.local")
	s := ca.Issue(ca.ID("a", "client"))
	expect := []spiffe.ID{ca.ID("x", "x")}
	b.ReportAllocs()
	for b.Loop() {
		svid.ClientConfig(s, expect, svid.Options{})
	}
}
