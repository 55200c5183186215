package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
)

// maxCSR bounds a signing request in bytes; one of a P-256 key has some 500.
const maxCSR = 64 << 10

// csrKey is the public key of a signing request whose signature is right. Errors wrap ErrCSR.
func csrKey(csr []byte) (crypto.PublicKey, error) {
	if len(csr) > maxCSR {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrCSR, len(csr), maxCSR)
	}
	block, _ := pem.Decode(csr)
	if block == nil {
		return nil, fmt.Errorf("%w: no PEM block", ErrCSR)
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	switch key := req.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve.Params().BitSize < 256 {
			return nil, fmt.Errorf("%w: curve %s", ErrCSR, key.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if key.N.BitLen() < 2048 || key.N.BitLen() > 8192 {
			return nil, fmt.Errorf("%w: RSA key of %d bits, want 2048 to 8192", ErrCSR, key.N.BitLen())
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("%w: key of type %T", ErrCSR, key)
	}
	return req.PublicKey, nil
}
