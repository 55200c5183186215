package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// servingTTL is the lifetime of the control plane's own certificate.
const servingTTL = 24 * time.Hour

// ServerTLS is the TLS configuration of the control plane's port: a certificate for the given names, signed by a, made
// at the first handshake and again at half of its life or when the authority changed. TLS 1.2 and later, h2.
func ServerTLS(a *Authority, dnsNames []string, ips []netip.Addr) *tls.Config {
	s := &serving{authority: a, dnsNames: dnsNames, ips: ips}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate(time.Now()) },
	}
}

type serving struct {
	authority *Authority
	dnsNames  []string
	ips       []netip.Addr

	mu      sync.Mutex
	cert    *tls.Certificate // guarded by mu
	by      *issuer          // who signed it; guarded by mu
	renewAt time.Time        // guarded by mu
}

func (s *serving) certificate(now time.Time) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.authority.cur.Load()
	if s.cert != nil && s.by == i && now.Before(s.renewAt) {
		return s.cert, nil
	}
	cert, err := s.make(i, now)
	if err != nil {
		return nil, fmt.Errorf("make server certificate: %w", err)
	}
	s.cert, s.by = cert, i
	s.renewAt = now.Add(cert.Leaf.NotAfter.Sub(now) / 2)
	return cert, nil
}

func (s *serving) make(i *issuer, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := leaf(i, servingTTL, now)
	template.DNSNames = s.dnsNames
	for _, ip := range s.ips {
		template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, key.Public(), i.key)
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: crypto.Signer(key)}
	for _, c := range i.intermediates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	cert.Leaf, err = x509.ParseCertificate(der)
	return cert, err
}
