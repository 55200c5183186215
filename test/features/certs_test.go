package features

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// certificates are those of the server secure.example and of a client, in files, with the authority's and another's.
type certificates struct {
	dir   string // ca.pem, other.pem, client.pem, client-key.pem
	ca    string // the authority's, as a word of JSON
	roots *x509.CertPool
	web   tls.Certificate
}

func (c *certificates) server(auth tls.ClientAuthType) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.web}, ClientAuth: auth, ClientCAs: c.roots, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12}
}

func newCertificates(t *testing.T) certificates {
	t.Helper()
	c := certificates{dir: t.TempDir(), roots: x509.NewCertPool()}
	netnstest.Must(t, os.Chmod(c.dir, 0o755))
	write := func(name, kind string, der []byte) []byte {
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		netnstest.Must(t, os.WriteFile(filepath.Join(c.dir, name), text, 0o644))
		return text
	}
	ca, caKey, caDER := certificate(t, "authority", nil, nil)
	c.roots.AddCert(ca)
	word, err := json.Marshal(string(write("ca.pem", "CERTIFICATE", caDER)))
	netnstest.Must(t, err)
	c.ca = string(word)
	_, _, other := certificate(t, "another", nil, nil)
	write("other.pem", "CERTIFICATE", other)
	_, key, der := certificate(t, "secure.example", ca, caKey)
	c.web = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	_, key, der = certificate(t, "client.example", ca, caKey)
	write("client.pem", "CERTIFICATE", der)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	netnstest.Must(t, err)
	write("client-key.pem", "PRIVATE KEY", der)
	return c
}

// certificate makes one for a DNS name, signed by the parent, or an authority's without one.
func certificate(t *testing.T, name string, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	netnstest.Must(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	netnstest.Must(t, err)
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		parent, by = c, key
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	} else {
		c.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	netnstest.Must(t, err)
	cert, err := x509.ParseCertificate(der)
	netnstest.Must(t, err)
	return cert, key, der
}
