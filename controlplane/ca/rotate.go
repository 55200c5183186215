package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// phase is where the rotation of a self-signed root stands. It only ever goes to the next one, around.
type phase string

const (
	// creating: the first root is being written; what is there is not whole.
	creating phase = "creating"
	// idle: one root, which signs and is published.
	idle phase = "idle"
	// prepared: a next root is published beside the one that signs, until every proxy has it.
	prepared phase = "prepared"
	// activated: the next root signs; the old one is published until all that it signed has expired.
	activated phase = "activated"
)

// state is all of a self-signed authority; its parts are immutable.
type state struct {
	Phase phase     `json:"phase"`
	Since time.Time `json:"since"`
	// plugged: the files belong to somebody else; then nothing here is used.
	plugged bool
	cur     *slot
	next    *slot               // in phase prepared
	roots   []*x509.Certificate // published
}

// slot is a root with its key.
type slot struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// ErrPlugged is returned by Rotate for an authority whose files are not ours.
var ErrPlugged = errors.New("the authority is plugged in and rotated by its owner")

// ErrRotating is returned by Rotate while a rotation goes on.
var ErrRotating = errors.New("a rotation is going on already")

// Rotate begins the replacement of a self-signed root: the next one is published now, signs after Config.Overlap, and
// the old one is withdrawn after Config.Overlap again.
func (a *Authority) Rotate(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.state.plugged:
		return ErrPlugged
	case a.state.Phase != idle:
		return fmt.Errorf("%w: %s since %s", ErrRotating, a.state.Phase, a.state.Since.Format(time.RFC3339))
	}
	return a.prepareLocked(ctx, time.Now())
}

// Phase says where the rotation stands ("idle", "prepared", "activated", or "plugged" for files of somebody else) and
// since when.
func (a *Authority) Phase() (string, time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state.plugged {
		return "plugged", time.Time{}
	}
	return string(a.state.Phase), a.state.Since
}

// check does what is due at now: takes in what other replicas did, re-reads plugged-in files, or advances the rotation by at most one phase.
func (a *Authority) check(ctx context.Context, now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cfg.Vault != nil {
		if err := a.syncLocked(ctx, now); err != nil {
			return err
		}
	}
	if a.state.plugged {
		return a.reloadLocked(a.read, now)
	}
	s := a.state
	switch {
	case s.Phase == idle && s.cur.cert.NotAfter.Sub(now) < a.cfg.rootTTL()/5:
		return a.prepareLocked(ctx, now)
	case s.Phase == prepared && now.Sub(s.Since) >= a.cfg.overlap():
		return a.advanceLocked(ctx, state{Phase: activated, Since: now, cur: s.next, roots: s.roots})
	case s.Phase == activated && now.Sub(s.Since) >= a.cfg.overlap():
		return a.advanceLocked(ctx, state{Phase: idle, Since: now, cur: s.cur, roots: []*x509.Certificate{s.cur.cert}})
	}
	return nil
}

func (a *Authority) prepareLocked(ctx context.Context, now time.Time) error {
	next, err := newRoot(a.cfg, now)
	if err != nil {
		return err
	}
	s := a.state
	return a.advanceLocked(ctx, state{Phase: prepared, Since: now, cur: s.cur, next: next,
		roots: []*x509.Certificate{s.cur.cert, next.cert}})
}

// advanceLocked makes s the state: first where it is kept, then in force. When the first fails nothing has changed.
func (a *Authority) advanceLocked(ctx context.Context, s state) error {
	if err := a.save(ctx, s); err != nil {
		return fmt.Errorf("save phase %s of the rotation: %w", s.Phase, err)
	}
	a.state = s
	a.cfg.logger().Info("certificate authority changed phase", slog.String("phase", string(s.Phase)),
		slog.String("signing", s.cur.cert.SerialNumber.Text(16)), slog.Int("roots", len(s.roots)))
	a.publishLocked(&issuer{cert: s.cur.cert, key: s.cur.key, roots: s.roots})
	return nil
}

// publishLocked puts i in force and tells the watchers when the bundle changed.
func (a *Authority) publishLocked(i *issuer) {
	for _, c := range i.roots {
		i.rootPEM = append(i.rootPEM, encodeCert(c.Raw)...)
	}
	old := a.cur.Swap(i)
	if old != nil && !bytes.Equal(old.rootPEM, i.rootPEM) {
		for _, f := range a.watch {
			f(i.rootPEM)
		}
	}
}

// newRoot makes a self-signed root.
func newRoot(cfg AuthorityConfig, now time.Time) (*slot, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{cfg.TrustDomain}},
		NotBefore:             now.Add(-2 * time.Minute),
		NotAfter:              now.Add(cfg.rootTTL()),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse root: %w", err)
	}
	return &slot{cert: cert, key: key}, nil
}
