package peer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/api/capb"
)

// A CA signs whatever it is asked for: it is for benchmarks in namespaces of their own, where nobody else can reach it.
// Make one with NewCA. Its methods are safe for use by several goroutines.
type CA struct {
	capb.UnimplementedIstioCertificateServiceServer

	key    crypto.Signer
	root   *x509.Certificate
	pem    string
	server *grpc.Server
}

// NewCA makes a self-signed root and a server certificate for addrs. It starts nothing.
func NewCA(addrs ...netip.Addr) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &CA{key: key}
	t := template(pkix.Name{Organization: []string{"bench root"}})
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root: %w", err)
	}
	if c.root, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	c.pem = encode(der)

	t = template(pkix.Name{})
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, a := range addrs {
		t.IPAddresses = append(t.IPAddresses, a.AsSlice())
	}
	der, err = x509.CreateCertificate(rand.Reader, t, c.root, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign server certificate: %w", err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	creds := credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	c.server = grpc.NewServer(grpc.Creds(creds))
	capb.RegisterIstioCertificateServiceServer(c.server, c)
	return c, nil
}

// RootPEM is the root certificate.
func (c *CA) RootPEM() string { return c.pem }

// Serve answers on l until Stop; it may be called for several listeners.
func (c *CA) Serve(l net.Listener) error { return c.server.Serve(l) }

// Stop ends every Serve.
func (c *CA) Stop() { c.server.Stop() }

// CreateCertificate signs a request for the one URI that it names (ztunnel.md C1 to C3).
func (c *CA) CreateCertificate(_ context.Context, req *capb.IstioCertificateRequest) (*capb.IstioCertificateResponse, error) {
	block, _ := pem.Decode([]byte(req.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "no PEM block")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err == nil && len(csr.URIs) != 1 {
		err = errors.New("want one URI")
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "certificate request: %v", err)
	}
	t := template(pkix.Name{})
	t.URIs = csr.URIs
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if s := req.GetValidityDuration(); s > 0 {
		t.NotAfter = t.NotBefore.Add(time.Duration(s) * time.Second)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.root, csr.PublicKey, c.key)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "sign: %v", err)
	}
	return &capb.IstioCertificateResponse{CertChain: []string{encode(der), c.pem}}, nil
}

// Issue makes a key and a certificate for a SPIFFE ID, as PEM.
func (c *CA) Issue(id string) (cert, key string, err error) {
	u, err := url.Parse(id)
	if err != nil {
		return "", "", err
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	t := template(pkix.Name{})
	t.URIs = []*url.URL{u}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, c.root, k.Public(), c.key)
	if err != nil {
		return "", "", fmt.Errorf("sign %q: %w", id, err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", err
	}
	return encode(der), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder})), nil
}

// template is a certificate valid for a day, with a random serial number.
func template(subject pkix.Name) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic("peer: " + err.Error()) // crypto/rand does not fail
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
	}
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
