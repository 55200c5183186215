package spiffe

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

// uriTag is the context tag of uniformResourceIdentifier in a GeneralName (RFC 5280 section 4.2.1.6).
const uriTag = 6

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// FromCert is the identity of a parsed certificate: it must have exactly one URI SAN, and that must be an ID. Other
// kinds of names are allowed beside it. The SAN is read from the certificate's own bytes, since a net/url.URL does not
// keep everything that was in them (an upper-case scheme, an empty fragment). It does not verify the certificate.
// Errors about the URI's form wrap ErrInvalid.
func FromCert(cert *x509.Certificate) (ID, error) {
	uris, err := uriSANs(cert)
	if err != nil {
		return ID{}, fmt.Errorf("read subject alternative names: %w", err)
	}
	switch len(uris) {
	case 0:
		return ID{}, errors.New("want one SPIFFE ID in the certificate, got no URI SAN")
	case 1:
		return Parse(uris[0])
	default:
		return ID{}, fmt.Errorf("want one SPIFFE ID in the certificate, got %d URI SANs %q", len(uris), uris)
	}
}

func uriSANs(cert *x509.Certificate) ([]string, error) {
	var uris []string
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil {
			return nil, err
		} else if len(rest) != 0 || names.Tag != asn1.TagSequence || names.Class != asn1.ClassUniversal {
			return nil, errors.New("not one sequence")
		}
		for rest := names.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			var err error
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return nil, err
			}
			if name.Class == asn1.ClassContextSpecific && name.Tag == uriTag {
				uris = append(uris, string(name.Bytes))
			}
		}
	}
	return uris, nil
}
