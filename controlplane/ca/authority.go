// Package ca is the mesh's certificate authority: who may have which identity, and the keys that sign it.
//
// Authority holds the issuing key: self-signed and rotated by itself, or plugged in as a directory with Istio's file
// names. Server is Istio's certificate service on top of it: it authenticates the caller by token, decides which
// identity it may have, and writes an audit record for every request. Statements in controlplane.md section 2 are
// cited as "2.3".
package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// AuthorityConfig is what an Authority needs. It must not be modified after OpenAuthority.
type AuthorityConfig struct {
	// Dir holds the authority's files. When ca-cert.pem (or tls.crt) is there and was not made by us, the authority is
	// plugged in: it is only read, and read again when it changes. An empty directory gets a self-signed root, which is
	// rotated. "" keeps a self-signed root in memory.
	Dir string
	// Vault keeps the files in place of Dir, for replicas that share them; nil = Dir does.
	Vault Vault
	// TrustDomain is the organisation in a self-signed root. Required.
	TrustDomain string
	// DefaultTTL and MaxTTL are the lifetime of certificates when none is asked for and at most; 0 = 24 h and 90 days
	// (2.4).
	DefaultTTL, MaxTTL time.Duration
	// RootTTL is the lifetime of a self-signed root; 0 = 10 years. It is replaced when a fifth of it is left.
	RootTTL time.Duration
	// Overlap is how long a next root is published before it signs, and how long the old one stays published after;
	// 0 = MaxTTL. It must not be shorter than the certificates live.
	Overlap time.Duration
	// CheckEvery is the pause between looks at files and rotation; 0 = 5 s.
	CheckEvery time.Duration
	// Logger; nil = nothing is logged.
	Logger *slog.Logger
}

func (c AuthorityConfig) defaultTTL() time.Duration {
	return min(orDefault(c.DefaultTTL, 24*time.Hour), c.maxTTL())
}
func (c AuthorityConfig) maxTTL() time.Duration     { return orDefault(c.MaxTTL, 90*24*time.Hour) }
func (c AuthorityConfig) rootTTL() time.Duration    { return orDefault(c.RootTTL, 10*365*24*time.Hour) }
func (c AuthorityConfig) overlap() time.Duration    { return orDefault(c.Overlap, c.maxTTL()) }
func (c AuthorityConfig) checkEvery() time.Duration { return orDefault(c.CheckEvery, 5*time.Second) }

func (c AuthorityConfig) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.New(slog.DiscardHandler)
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// Errors of Authority.Sign that a caller tells apart.
var (
	// ErrCSR: the signing request is malformed, its signature wrong or its key too weak.
	ErrCSR = errors.New("bad signing request")
	// ErrTTL: the lifetime asked for is longer than allowed.
	ErrTTL = errors.New("lifetime too long")
)

// Authority signs certificates. All methods may be called from any goroutine.
type Authority struct {
	cfg AuthorityConfig
	cur atomic.Pointer[issuer] // never nil after OpenAuthority

	mu    sync.Mutex
	read  files                  // where the files are read, nil in memory; guarded by mu
	state state                  // guarded by mu
	kept  []keptRoot             // of a plugged-in authority: roots that were replaced; guarded by mu
	watch []func(rootPEM []byte) // guarded by mu

	version string // of what the vault holds, as far as we know; guarded by mu
}

// issuer is what signs at the moment. It is immutable.
type issuer struct {
	cert          *x509.Certificate
	key           crypto.Signer
	intermediates []*x509.Certificate // from cert up to below the root; empty when cert is a root
	roots         []*x509.Certificate // published: those in use, next and previous
	rootPEM       []byte
}

// keptRoot is a root that is no longer in the files but still published.
type keptRoot struct {
	cert  *x509.Certificate
	until time.Time
}

// OpenAuthority reads or makes the authority. It starts nothing, and blocks only for a Vault.
func OpenAuthority(ctx context.Context, cfg AuthorityConfig) (*Authority, error) {
	if err := spiffe.CheckTrustDomain(cfg.TrustDomain); err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	a := &Authority{cfg: cfg}
	if err := a.open(ctx, time.Now()); err != nil {
		return nil, fmt.Errorf("open authority %q: %w", cfg.Dir, err)
	}
	return a, nil
}

// RootPEM is the published bundle: the roots that verify certificates signed now, before and next.
func (a *Authority) RootPEM() []byte { return a.cur.Load().rootPEM }

// Watch calls f with the bundle now and after each change, one call at a time.
func (a *Authority) Watch(f func(rootPEM []byte)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watch = append(a.watch, f)
	f(a.RootPEM())
}

// Run looks for changed files and advances the rotation until ctx ends; then it returns nil. It blocks. Files are
// looked at in intervals and not watched: a mounted Secret changes by a swap of symbolic links, seldom, and nobody
// waits for it.
func (a *Authority) Run(ctx context.Context) error {
	ticker := time.NewTicker(a.cfg.checkEvery())
	defer ticker.Stop()
	var last string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			err := a.check(ctx, time.Now())
			// One line per distinct trouble, not one per look.
			if text := fmt.Sprint(err); err != nil && text != last {
				a.cfg.logger().Error("authority keeps its last good state", slog.String("dir", a.cfg.Dir), slog.Any("err", err))
				last = text
			} else if err == nil {
				last = ""
			}
		}
	}
}

// Sign certifies the key in csr (PKCS#10, PEM) for id and ttl (0 or less = the default): a leaf with id as its only
// name, for client and server use (2.2, 2.4). Everything else in the request is ignored. It returns PEM elements: the
// leaf, intermediates, and last the bundle. The leaf never outlives its issuer. Errors wrap ErrCSR or ErrTTL when it is
// the caller's fault.
func (a *Authority) Sign(csr []byte, id spiffe.ID, ttl time.Duration) ([]string, error) {
	if ttl <= 0 {
		ttl = a.cfg.defaultTTL()
	}
	if ttl > a.cfg.maxTTL() {
		return nil, fmt.Errorf("%w: want at most %s, got %s", ErrTTL, a.cfg.maxTTL(), ttl)
	}
	pub, err := csrKey(csr)
	if err != nil {
		return nil, err
	}
	uri, err := url.Parse(id.String())
	if err != nil || id.IsZero() {
		return nil, fmt.Errorf("sign certificate: no identity %q", id)
	}
	i := a.cur.Load()
	template := leaf(i, ttl, time.Now())
	template.URIs = []*url.URL{uri}
	template.KeyUsage |= x509.KeyUsageKeyEncipherment // as Istio's; without meaning for an ECDSA key
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	// With an empty subject x509 marks the SAN critical (RFC 5280 section 4.2.1.6).
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, pub, i.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", id, err)
	}
	chain := []string{encodeCert(der)}
	for _, c := range i.intermediates {
		chain = append(chain, encodeCert(c.Raw))
	}
	return append(chain, string(i.rootPEM)), nil
}

// leaf is the common part of what we sign.
func leaf(i *issuer, ttl time.Duration, now time.Time) *x509.Certificate {
	notAfter := now.Add(ttl)
	if notAfter.After(i.cert.NotAfter) {
		notAfter = i.cert.NotAfter
	}
	return &x509.Certificate{
		SerialNumber: serial(),
		// For clocks that go behind: 2 min as Istio, less for short-lived certificates, whose half life clients
		// measure from here (C5).
		NotBefore:             now.Add(-min(2*time.Minute, ttl/10)),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func encodeCert(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
