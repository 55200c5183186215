// Package svidtest gives tests SVIDs: a certificate authority in the process, and static certificates from it.
package svidtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
)

// CA is a certificate authority for tests. It is an svid.CAClient too. All methods may be called from any goroutine
// of the test, but those that cannot fail end the test through testing.TB when they do.
type CA struct {
	// TrustDomain is the one that ID uses.
	TrustDomain string

	t testing.TB

	mu     sync.Mutex
	key    crypto.Signer       // guarded by mu
	cert   *x509.Certificate   // guarded by mu
	bundle []*x509.Certificate // guarded by mu
	fail   error               // guarded by mu
	calls  []spiffe.ID         // guarded by mu
}

// NewCA makes an authority with a self-signed root valid for ten years.
func NewCA(t testing.TB, trustDomain string) *CA {
	t.Helper()
	ca := &CA{TrustDomain: trustDomain, t: t}
	ca.Rotate(false)
	return ca
}

// Rotate replaces the root. With keepOld the old roots stay in the bundle behind the new one.
func (ca *CA) Rotate(keepOld bool) {
	ca.t.Helper()
	key := newKey(ca.t)
	template := &x509.Certificate{
		SerialNumber:          serial(ca.t),
		Subject:               pkix.Name{Organization: []string{ca.TrustDomain}},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().AddDate(10, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	cert := parse(ca.t, create(ca.t, template, template, key.Public(), key))
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.key, ca.cert = key, cert
	if !keepOld {
		ca.bundle = nil
	}
	ca.bundle = append([]*x509.Certificate{cert}, ca.bundle...)
}

// Fail makes Sign return err until called with nil.
func (ca *CA) Fail(err error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.fail = err
}

// Calls are the identities that Sign was asked for, oldest first.
func (ca *CA) Calls() []spiffe.ID {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return append([]spiffe.ID(nil), ca.calls...)
}

// RootPEM is the bundle, newest root first.
func (ca *CA) RootPEM() string {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.rootPEMLocked()
}

func (ca *CA) rootPEMLocked() string {
	var out []byte
	for _, c := range ca.bundle {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return string(out)
}

// ID is the identity of a service account in the CA's trust domain.
func (ca *CA) ID(namespace, serviceAccount string) spiffe.ID {
	ca.t.Helper()
	id, err := spiffe.New(ca.TrustDomain, namespace, serviceAccount)
	if err != nil {
		ca.t.Fatal(err)
	}
	return id
}

// Option changes the certificate that Issue or Cert makes.
type Option func(*spec)

// spec is a certificate to be.
type spec struct {
	template x509.Certificate
	uris     []string
	key      crypto.Signer
}

// TTL sets the lifetime from now; without it 24 h.
func TTL(d time.Duration) Option {
	return func(s *spec) { s.template.NotAfter = time.Now().Add(d) }
}

// URIs replaces the URI SANs by these bytes, well-formed or not.
func URIs(uris ...string) Option { return func(s *spec) { s.uris = uris } }

// Key replaces the P-256 key.
func Key(key crypto.Signer) Option { return func(s *spec) { s.key = key } }

// Template changes any field of the certificate's template; SANs are set by URIs.
func Template(change func(*x509.Certificate)) Option {
	return func(s *spec) { change(&s.template) }
}

// Issue makes a good SVID for id, valid from a minute ago for 24 h.
func (ca *CA) Issue(id spiffe.ID, opts ...Option) *svid.SVID {
	ca.t.Helper()
	cert := ca.Cert(id, opts...)
	chain := []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})), ca.RootPEM()}
	s, err := svid.New(id, cert.PrivateKey.(crypto.Signer), chain, time.Now())
	if err != nil {
		ca.t.Fatal(err)
	}
	return s
}

// Cert is Issue without any check of the result, for certificates that a peer must refuse.
func (ca *CA) Cert(id spiffe.ID, opts ...Option) tls.Certificate {
	ca.t.Helper()
	s := spec{template: leafTemplate(ca.t, 24*time.Hour), uris: []string{id.String()}}
	for _, o := range opts {
		o(&s)
	}
	if s.key == nil {
		s.key = newKey(ca.t)
	}
	if len(s.uris) > 0 {
		s.template.ExtraExtensions = append(s.template.ExtraExtensions, sanExtension(ca.t, s.uris))
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	der := create(ca.t, &s.template, ca.cert, s.key.Public(), ca.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: s.key}
}

// Sign implements svid.CAClient: it signs whatever is asked for, unless Fail was called.
func (ca *CA) Sign(ctx context.Context, csr []byte, id spiffe.ID, ttl time.Duration) ([]string, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.calls = append(ca.calls, id)
	if ca.fail != nil {
		return nil, ca.fail
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(csr)
	if block == nil {
		return nil, errors.New("no PEM in the signing request")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	template := leafTemplate(ca.t, ttl)
	template.ExtraExtensions = []pkix.Extension{sanExtension(ca.t, []string{id.String()})}
	der, err := x509.CreateCertificate(rand.Reader, &template, ca.cert, req.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	return []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), ca.rootPEMLocked()}, nil
}

func leafTemplate(t testing.TB, ttl time.Duration) x509.Certificate {
	return x509.Certificate{
		SerialNumber: serial(t),
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(ttl),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func sanExtension(t testing.TB, uris []string) pkix.Extension {
	var names []asn1.RawValue
	for _, u := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
	}
	value, err := asn1.Marshal(names)
	if err != nil {
		t.Error(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}
}

func newKey(t testing.TB) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Error(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Error(err)
	}
	return n
}

func create(t testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Error(err)
	}
	return der
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
