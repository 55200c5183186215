package svid

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// minRSABits is the smallest RSA key accepted anywhere in a peer's chain.
const minRSABits = 2048

// PeerError says that a peer's certificate was refused: whom we wanted and whom we got. It is the peer's fault, or
// that of the configuration which sent us there, never that of our own certificate.
type PeerError struct {
	// Want describes the identities that would have been accepted.
	Want string
	// Got describes the certificate that came.
	Got string
	// Err is the reason.
	Err error
}

func (e *PeerError) Error() string {
	return fmt.Sprintf("verify peer certificate: want %s, got %s: %v", e.Want, e.Got, e.Err)
}

func (e *PeerError) Unwrap() error { return e.Err }

// PeerID is the identity of the other end of a connection made with ServerConfig or ClientConfig, after the handshake.
func PeerID(cs tls.ConnectionState) (spiffe.ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return spiffe.ID{}, errors.New("the peer sent no certificate")
	}
	return spiffe.FromCert(cs.PeerCertificates[0])
}

// verifier checks one side's peers. It is immutable.
type verifier struct {
	roots   *x509.CertPool
	eku     x509.ExtKeyUsage
	want    string // for errors
	allowed func(spiffe.ID) error
	revoked Revocation
}

// verify is a tls.Config.VerifyConnection: unlike VerifyPeerCertificate it also runs for resumed sessions.
func (v *verifier) verify(cs tls.ConnectionState) error {
	certs := cs.PeerCertificates
	if len(certs) == 0 {
		return &PeerError{Want: v.want, Got: "no certificate", Err: errors.New("a certificate is required")}
	}
	id, err := spiffe.FromCert(certs[0])
	if err != nil {
		return &PeerError{Want: v.want, Got: describe(certs[0]), Err: err}
	}
	if err := verifyChain(certs, v.roots, v.eku, time.Now()); err != nil {
		return &PeerError{Want: v.want, Got: describe(certs[0]), Err: err}
	}
	if err := v.allowed(id); err != nil {
		return &PeerError{Want: v.want, Got: id.String(), Err: err}
	}
	if v.revoked != nil {
		if err := v.revoked.Check(certs); err != nil {
			return &PeerError{Want: v.want, Got: describe(certs[0]), Err: err}
		}
	}
	return nil
}

// verifyChain checks that certs (leaf first) lead to roots for the use eku at time now, that the leaf is a leaf, and
// that no key or signature below the root is weak.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, eku x509.ExtKeyUsage, now time.Time) error {
	leaf := certs[0]
	// X509-SVID section 4.3 and 5.2: a leaf is no CA and signs no certificates.
	if leaf.IsCA {
		return errors.New("the certificate is a CA")
	}
	if leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return errors.New("the certificate may sign certificates or CRLs")
	}
	if now.Before(leaf.NotBefore) {
		return fmt.Errorf("not valid before %s, now %s", leaf.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("expired at %s, now %s", leaf.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	for _, c := range certs {
		if err := checkStrength(c); err != nil {
			return err
		}
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{eku},
	})
	return err
}

func checkStrength(c *x509.Certificate) error {
	if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < minRSABits {
		return fmt.Errorf("RSA key of %d bits, want at least %d", key.N.BitLen(), minRSABits)
	}
	switch c.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return fmt.Errorf("signature algorithm %s is not secure", c.SignatureAlgorithm)
	}
	return nil
}

// describe names a refused certificate by its URI SANs, which may be malformed, and else by its subject.
func describe(c *x509.Certificate) string {
	var names []string
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	if len(names) == 0 {
		names = append(names, "subject "+c.Subject.String())
	}
	return fmt.Sprintf("%q (serial %x)", strings.Join(names, " "), c.SerialNumber)
}

// oneOf accepts exactly the identities of expect (H1).
func oneOf(expect []spiffe.ID) func(spiffe.ID) error {
	return func(id spiffe.ID) error {
		if !slices.Contains(expect, id) {
			return errors.New("another identity")
		}
		return nil
	}
}

// inTrustDomains accepts every identity of the given trust domains (H2).
func inTrustDomains(tds []string) func(spiffe.ID) error {
	return func(id spiffe.ID) error {
		if !slices.Contains(tds, id.TrustDomain()) {
			return errors.New("another trust domain")
		}
		return nil
	}
}
