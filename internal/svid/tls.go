package svid

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"sync"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// KeyExchange says which TLS key exchanges are offered. crypto/tls fixes the order within the list.
type KeyExchange uint8

const (
	// Classical offers X25519, P-256 and P-384. It is the default: the cheapest handshake.
	Classical KeyExchange = iota
	// Hybrid offers X25519MLKEM768 before the classical ones.
	Hybrid
	// HybridOnly offers X25519MLKEM768 alone, Istio's COMPLIANCE_POLICY=pqc.
	HybridOnly
)

func (k KeyExchange) curves() []tls.CurveID {
	switch k {
	case HybridOnly:
		return []tls.CurveID{tls.X25519MLKEM768}
	case Hybrid:
		return []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384}
	default:
		return []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}
	}
}

// Revocation tells whether a verified chain holds a revoked certificate. It must be a pointer, or otherwise
// comparable, and safe for any goroutine.
type Revocation interface {
	// Check returns an error that names the revoked certificate; chain is the peer's, leaf first.
	Check(chain []*x509.Certificate) error
}

// Options adjusts ServerConfig and ClientConfig. The zero value is the default. It is comparable.
type Options struct {
	// KeyExchange is what is offered and accepted.
	KeyExchange KeyExchange
	// TrustDomains are accepted from clients in addition to the server's own (H2 accepts that one only), joined by
	// commas. Not used by ClientConfig, which compares whole identities.
	TrustDomains string
	// Revocation is asked after all other checks; nil = none (H5).
	Revocation Revocation
}

// maxConfigs bounds the configurations that one SVID keeps; a node talks to that many different identities rarely.
const maxConfigs = 4096

// configs holds the configurations derived from one SVID.
type configs struct {
	mu     sync.Mutex
	server map[Options]*tls.Config
	client map[clientKey]*tls.Config
}

type clientKey struct {
	expect string
	opts   Options
}

// ServerConfig is the configuration for accepting HBONE connections as s: TLS 1.3, ALPN h2, a client certificate that
// chains to s.Roots for client use and carries an identity of the own trust domain (H2). It is kept with s: calls
// with equal arguments return the same configuration, which must not be modified.
func ServerConfig(s *SVID, opts Options) *tls.Config {
	s.configs.mu.Lock()
	defer s.configs.mu.Unlock()
	if c, ok := s.configs.server[opts]; ok {
		return c
	}
	tds := []string{s.ID.TrustDomain()}
	for td := range strings.SplitSeq(opts.TrustDomains, ",") {
		if td = strings.TrimSpace(td); td != "" {
			tds = append(tds, td)
		}
	}
	v := &verifier{
		roots:   s.Roots,
		eku:     x509.ExtKeyUsageClientAuth,
		want:    "an identity of trust domain " + strings.Join(tds, " or "),
		allowed: inTrustDomains(tds),
		revoked: opts.Revocation,
	}
	c := s.baseConfig(opts, v)
	c.ClientAuth = tls.RequireAnyClientCert // the chain is checked by v
	if s.configs.server == nil {
		s.configs.server = map[Options]*tls.Config{}
	}
	s.configs.server[opts] = c
	return c
}

// ClientConfig is the configuration for dialling as s a peer that must be one of expect (H1): TLS 1.3, ALPN h2, no
// SNI, and a server certificate that chains to s.Roots for server use and carries exactly such an identity. An empty
// expect accepts nobody. It is kept with s: calls with equal arguments, whatever the order of expect, return the same
// configuration, which must not be modified.
func ClientConfig(s *SVID, expect []spiffe.ID, opts Options) *tls.Config {
	want := joinIDs(expect)
	key := clientKey{expect: want, opts: opts}
	s.configs.mu.Lock()
	defer s.configs.mu.Unlock()
	if c, ok := s.configs.client[key]; ok {
		return c
	}
	v := &verifier{
		roots:   s.Roots,
		eku:     x509.ExtKeyUsageServerAuth,
		want:    want,
		allowed: oneOf(slices.Clone(expect)),
		revoked: opts.Revocation,
	}
	c := s.baseConfig(opts, v)
	c.InsecureSkipVerify = true // the chain is checked by v; without ServerName no SNI is sent
	if s.configs.client == nil || len(s.configs.client) >= maxConfigs {
		s.configs.client = map[clientKey]*tls.Config{}
	}
	s.configs.client[key] = c
	return c
}

func (s *SVID) baseConfig(opts Options, v *verifier) *tls.Config {
	return &tls.Config{
		Certificates:                []tls.Certificate{s.Cert},
		MinVersion:                  tls.VersionTLS13,
		MaxVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{"h2"},
		CurvePreferences:            opts.KeyExchange.curves(),
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		VerifyConnection:            v.verify,
	}
}

// joinIDs is a canonical text of a set of identities.
func joinIDs(ids []spiffe.ID) string {
	switch len(ids) {
	case 0:
		return "nobody"
	case 1:
		return ids[0].String()
	}
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	slices.Sort(texts)
	return strings.Join(slices.Compact(texts), " or ")
}
