package svid

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// newCSR makes a key and a signing request for id as C1 wants it: P-256 with SHA-256, empty subject, and one critical
// SAN extension with one URI. It returns the request as PEM.
func newCSR(id spiffe.ID) (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	san, err := sanExtension(id)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtraExtensions:    []pkix.Extension{san},
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make signing request: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// sanExtension is RFC 5280 section 4.2.1.6: SEQUENCE { [6] IA5String }. x509 would not mark it critical in a request.
func sanExtension(id spiffe.ID) (pkix.Extension, error) {
	uri := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(id.String())}
	value, err := asn1.Marshal([]asn1.RawValue{uri})
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encode subject alternative name: %w", err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}, nil
}
