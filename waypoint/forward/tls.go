package forward

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
)

// Names of secrets as istiod gives them (controlplane.md 3.6).
const (
	secretOwn    = "default"
	secretRoots  = "ROOTCA"
	secretSystem = "file-root:system"
	fileRoot     = "file-root:"
	fileCert     = "file-cert:"
)

// clientTLS is the configuration of a connection to an endpoint. It may block: for our certificate, and for files.
func (p *Proxy) clientTLS(ctx context.Context, y *way) (*tls.Config, error) {
	t := y.host.Transport.TLS
	c := &tls.Config{
		ServerName: t.SNI, NextProtos: offer(t.ALPN, y.http), MinVersion: t.Min, MaxVersion: t.Max,
		InsecureSkipVerify: true, // v checks
		// Connections are kept and used again, so sessions are not.
		DynamicRecordSizingDisabled: true,
	}
	if c.MinVersion == 0 {
		c.MinVersion = tls.VersionTLS12
	}
	v := &verifier{sans: t.SANs}
	if y.cluster.AutoSNI && y.name != "" {
		c.ServerName = y.name // an address is not sent
	}
	if y.cluster.AutoSAN {
		if y.name == "" && y.http != notHTTP {
			return nil, errors.New("the request names no host that the server's certificate could be checked for")
		}
		v.host = y.name
	}
	var err error
	if t.Verify() {
		if v.roots, err = p.roots(ctx, t); err != nil {
			return nil, err
		}
	}
	if c.Certificates, err = p.ownCerts(ctx, t); err != nil {
		return nil, err
	}
	c.VerifyConnection = v.verify
	return c, nil
}

// offer is what ALPN offers: what is configured and can be spoken on the connection, or else what will be.
func offer(configured []string, v version) []string {
	var out []string
	for _, a := range configured {
		if two := a == "h2"; v == notHTTP || v == httpNegotiated || two == (v == http2Only) {
			out = append(out, a)
		}
	}
	if len(out) > 0 {
		return out
	}
	switch v {
	case http1Only:
		return []string{"http/1.1"}
	case http2Only:
		return []string{"h2"}
	case httpNegotiated:
		return []string{"h2", "http/1.1"}
	}
	return nil
}

// roots are the authorities that may vouch for the peer.
func (p *Proxy) roots(ctx context.Context, t *cluster.TLS) (*x509.CertPool, error) {
	switch name := t.CAName; {
	case name == "":
		return p.secrets.pool(t.CA)
	case name == secretRoots:
		s, err := p.certificate(ctx)
		if err != nil {
			return nil, err
		}
		return s.Roots, nil
	case name == secretSystem:
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("read the system's authorities: %w", err)
		}
		return pool, nil
	case strings.HasPrefix(name, fileRoot):
		return p.secrets.pool(cluster.Source{File: name[len(fileRoot):]})
	default:
		return nil, fmt.Errorf("unknown secret %q for authorities: want file-root:PATH, file-root:system or ROOTCA", name)
	}
}

// ownCerts are the certificates that we may show.
func (p *Proxy) ownCerts(ctx context.Context, t *cluster.TLS) ([]tls.Certificate, error) {
	var out []tls.Certificate
	for _, name := range t.CertNames {
		if name == secretOwn {
			s, err := p.certificate(ctx)
			if err != nil {
				return nil, err
			}
			out = append(out, s.Cert)
			continue
		}
		files, ok := strings.CutPrefix(name, fileCert)
		cert, key, found := strings.Cut(files, "~")
		if !ok || !found {
			return nil, fmt.Errorf("unknown secret %q for the own certificate: want file-cert:CERT~KEY or default", name)
		}
		c, err := p.secrets.cert(cluster.Certificate{Chain: cluster.Source{File: cert}, Key: cluster.Source{File: key}})
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	for _, s := range t.Certs {
		c, err := p.secrets.cert(s)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// verifier checks an endpoint's certificate.
type verifier struct {
	roots *x509.CertPool // nil: any authority
	sans  []cluster.SAN  // one of them has to be there, if there are any
	host  string         // likewise; "": none
}

// verify is a tls.Config.VerifyConnection.
func (v *verifier) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the server sent no certificate")
	}
	leaf := cs.PeerCertificates[0]
	if v.roots != nil {
		o := x509.VerifyOptions{Roots: v.roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		for _, c := range cs.PeerCertificates[1:] {
			o.Intermediates.AddCert(c)
		}
		if _, err := leaf.Verify(o); err != nil {
			return fmt.Errorf("verify server certificate: %w", err)
		}
	}
	if v.host != "" {
		if err := leaf.VerifyHostname(v.host); err != nil {
			return fmt.Errorf("verify server certificate: %w", err)
		}
	}
	if len(v.sans) > 0 && !slices.ContainsFunc(v.sans, func(s cluster.SAN) bool { return hasSAN(leaf, s) }) {
		return fmt.Errorf("verify server certificate: it has none of the names that are expected, but %s", namesOf(leaf))
	}
	return nil
}

// hasSAN says whether the certificate has a name that s means.
func hasSAN(c *x509.Certificate, s cluster.SAN) bool {
	is := func(t cluster.SANType) bool { return s.Type == t || s.Type == cluster.AnySAN }
	if is(cluster.DNSSAN) {
		host, exact := s.Match.Exact()
		for _, n := range c.DNSNames {
			// An exact name may be met by a wildcard in the certificate, as in Envoy.
			if s.Match.Match(n) || exact && (&x509.Certificate{DNSNames: []string{n}}).VerifyHostname(host) == nil {
				return true
			}
		}
	}
	if is(cluster.URISAN) {
		for _, u := range c.URIs {
			if s.Match.Match(u.String()) {
				return true
			}
		}
	}
	if is(cluster.EmailSAN) && slices.ContainsFunc(c.EmailAddresses, s.Match.Match) {
		return true
	}
	if is(cluster.IPSAN) {
		for _, ip := range c.IPAddresses {
			if s.Match.Match(ip.String()) {
				return true
			}
		}
	}
	return false
}

// namesOf is the certificate's names, for errors.
func namesOf(c *x509.Certificate) string {
	out := slices.Clone(c.DNSNames)
	for _, u := range c.URIs {
		out = append(out, u.String())
	}
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	if len(out) == 0 {
		return "no names"
	}
	return strings.Join(out, ", ")
}

// secrets are certificates and authorities read from files, or given in the configuration. They are read again when the
// file has changed. The zero value is ready; it is safe for any goroutine.
type secrets struct {
	mu    sync.Mutex
	known map[string]*secret // by what they were made of
}

// secret is one of the two.
type secret struct {
	stamp string // of the files
	pool  *x509.CertPool
	cert  tls.Certificate
}

// maxSecrets is the number of secrets that are kept in memory.
const maxSecrets = 1024

// get finds a secret, or makes it of the text of its sources.
func (s *secrets) get(sources []cluster.Source, load func(text [][]byte) (*secret, error)) (*secret, error) {
	var key, stamp strings.Builder
	for _, src := range sources {
		fmt.Fprintf(&key, "%q %q ", src.File, src.Text)
		if src.File == "" {
			continue
		}
		st, err := os.Stat(src.File)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&stamp, "%v %d ", st.ModTime().Format(time.RFC3339Nano), st.Size())
	}
	s.mu.Lock()
	x := s.known[key.String()]
	s.mu.Unlock()
	if x != nil && x.stamp == stamp.String() {
		return x, nil
	}
	text := make([][]byte, len(sources))
	for i, src := range sources {
		text[i] = src.Text
		if src.File != "" {
			var err error
			if text[i], err = os.ReadFile(src.File); err != nil {
				return nil, err
			}
		}
	}
	x, err := load(text)
	if err != nil {
		return nil, err
	}
	x.stamp = stamp.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || len(s.known) >= maxSecrets {
		s.known = map[string]*secret{}
	}
	s.known[key.String()] = x
	return x, nil
}

func (s *secrets) pool(src cluster.Source) (*x509.CertPool, error) {
	x, err := s.get([]cluster.Source{src}, func(text [][]byte) (*secret, error) {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(bytes.TrimSpace(text[0])) {
			return nil, fmt.Errorf("no certificate in %s", sourceName(src))
		}
		return &secret{pool: pool}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read authorities: %w", err)
	}
	return x.pool, nil
}

func (s *secrets) cert(c cluster.Certificate) (tls.Certificate, error) {
	x, err := s.get([]cluster.Source{c.Chain, c.Key}, func(text [][]byte) (*secret, error) {
		cert, err := tls.X509KeyPair(text[0], text[1])
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", sourceName(c.Chain), sourceName(c.Key), err)
		}
		return &secret{cert: cert}, nil
	})
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read own certificate: %w", err)
	}
	return x.cert, nil
}

// sourceName says where a secret comes from, and never what it is.
func sourceName(s cluster.Source) string {
	if s.File != "" {
		return fmt.Sprintf("file %q", s.File)
	}
	return "inline text"
}
