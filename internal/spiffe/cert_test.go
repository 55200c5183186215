package spiffe_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// certWithNames makes a certificate whose SAN extension holds names exactly as given.
func certWithNames(t testing.TB, names ...asn1.RawValue) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	if len(names) > 0 {
		value, err := asn1.Marshal(names)
		if err != nil {
			t.Fatal(err)
		}
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func uri(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(s)}
}

func dns(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(s)}
}

func TestFromCertTakesExactlyOneURI(t *testing.T) {
	const good = "spiffe://cluster.local/ns/default/sa/sleep"
	tests := []struct {
		name  string
		names []asn1.RawValue
		err   string
	}{
		{"one SPIFFE ID", []asn1.RawValue{uri(good)}, ""},
		{"a DNS name beside it", []asn1.RawValue{dns("a.example"), uri(good)}, ""},
		{"no SAN at all", nil, "no URI SAN"},
		{"only a DNS name", []asn1.RawValue{dns("a.example")}, "no URI SAN"},
		{"two IDs", []asn1.RawValue{uri(good), uri("spiffe://cluster.local/ns/default/sa/other")}, "2 URI SANs"},
		{"an ID and another URI", []asn1.RawValue{uri("https://a.example/"), uri(good)}, "2 URI SANs"},
		{"the same ID twice", []asn1.RawValue{uri(good), uri(good)}, "2 URI SANs"},
		{"an empty fragment, which net/url drops", []asn1.RawValue{uri(good + "#")}, "contains '#'"},
		{"an upper-case scheme, which net/url lowers", []asn1.RawValue{uri("SPIFFE" + good[6:])}, "want the prefix"},
		{"percent-encoding", []asn1.RawValue{uri("spiffe://cluster.local/ns/default/sa/sl%65ep")}, "contains '%'"},
		{"dot-dot", []asn1.RawValue{uri("spiffe://cluster.local/ns/../sa/sleep")}, `is ".."`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, err := spiffe.FromCert(certWithNames(t, tt.names...))
			if tt.err == "" {
				if err != nil || id.String() != good {
					t.Fatalf("got %v, %v; want %s", id, err, good)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("got %v, %v; want an error with %q", id, err, tt.err)
			}
		})
	}
}

func FuzzFromCert(f *testing.F) {
	value, _ := asn1.Marshal([]asn1.RawValue{uri("spiffe://cluster.local/ns/default/sa/sleep")})
	f.Add(value)
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, value []byte) {
		cert := &x509.Certificate{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}}
		if id, err := spiffe.FromCert(cert); err == nil && id.IsZero() {
			t.Fatal("no error and no identity")
		}
	})
}
