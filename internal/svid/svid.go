// Package svid obtains, holds and renews X.509-SVIDs, and makes the TLS configurations that check SPIFFE IDs.
//
// A Manager asks a CAClient for the certificates of the identities of this node, renews each at half its life and
// serves the old one until it is replaced or expires. An SVID is immutable; ServerConfig and ClientConfig derive a
// *tls.Config from one and keep it there, so that no configuration is built per connection. Numbers such as C5 and
// H1 refer to the ztunnel specification.
package svid

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// SVID is one certificate with its key and the roots that came with it. It is immutable and safe for any goroutine;
// a renewal, and a change of the accepted roots, make a new SVID.
type SVID struct {
	// ID is the identity that the leaf carries.
	ID spiffe.ID
	// Cert is the leaf, its intermediates and the private key, as crypto/tls wants them.
	Cert tls.Certificate
	// Leaf is the parsed leaf.
	Leaf *x509.Certificate
	// Roots are the certificates that peers are verified against: those that came with this SVID and, during a
	// rotation, those that came with earlier SVIDs which have not expired yet.
	Roots *x509.CertPool
	// RootPEM holds the certificates of Roots.
	RootPEM []byte
	// NotBefore and NotAfter bound the validity of the leaf.
	NotBefore, NotAfter time.Time
	// Generation is unique in the process and grows: two SVIDs with one Generation are the same SVID.
	Generation uint64

	roots   []*x509.Certificate
	configs *configs
}

// generations numbers the SVIDs of the process.
var generations atomic.Uint64

// New makes an SVID from a CA's answer (C3): chain[0] is the leaf, the last element the root bundle (which may hold
// several certificates) and what is between them are intermediates, each element PEM. It checks that the leaf carries
// exactly id, belongs to key, and chains to the bundle for both client and server use at time now.
func New(id spiffe.ID, key crypto.Signer, chain []string, now time.Time) (*SVID, error) {
	if len(chain) < 2 {
		return nil, fmt.Errorf("want a certificate and a root bundle, got %d elements", len(chain))
	}
	certs, err := parsePEM([]byte(joinPEM(chain[:len(chain)-1])))
	if err != nil {
		return nil, fmt.Errorf("parse certificate chain: %w", err)
	}
	roots, err := parsePEM([]byte(chain[len(chain)-1]))
	if err != nil {
		return nil, fmt.Errorf("parse root bundle: %w", err)
	}
	leaf := certs[0]
	if got, err := spiffe.FromCert(leaf); err != nil {
		return nil, err
	} else if got != id {
		return nil, fmt.Errorf("want a certificate for %s, got one for %s", id, got)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the certificate is not for the key that was asked for")
	}
	cert := tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range certs {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	s := &SVID{ID: id, Cert: cert, Leaf: leaf, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	s = s.withRoots(roots)
	for _, eku := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := verifyChain(certs, s.Roots, eku, now); err != nil {
			return nil, fmt.Errorf("verify own certificate: %w", err)
		}
	}
	return s, nil
}

// withRoots is s with other roots and therefore a new generation.
func (s *SVID) withRoots(roots []*x509.Certificate) *SVID {
	out := *s
	out.roots = roots
	out.Roots = x509.NewCertPool()
	var buf bytes.Buffer
	for _, root := range roots {
		out.Roots.AddCert(root)
		_ = pem.Encode(&buf, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}) // a bytes.Buffer does not fail
	}
	out.RootPEM = buf.Bytes()
	out.Generation = generations.Add(1)
	out.configs = &configs{}
	return &out
}

// Chain is the leaf and the intermediates as sent to peers, leaf first.
func (s *SVID) Chain() [][]byte { return s.Cert.Certificate }

// joinPEM joins elements that may lack a final line break.
func joinPEM(parts []string) string {
	var buf bytes.Buffer
	for _, p := range parts {
		buf.WriteString(p)
		buf.WriteByte('\n')
	}
	return buf.String()
}

// parsePEM reads at least one certificate; blocks of other types and text between blocks are ignored.
func parsePEM(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in the PEM data")
	}
	return certs, nil
}

// RootCerts are the certificates of Roots, parsed. The slice must not be modified.
func (s *SVID) RootCerts() []*x509.Certificate { return s.roots }
