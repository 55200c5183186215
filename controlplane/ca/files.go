package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/atomicfile"
)

// Files of an authority: Istio's names (Secret cacerts), then cert-manager's (2.4).
const (
	certFile, keyFile, chainFile, rootFile = "ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"

	tlsCertFile, tlsKeyFile, tlsRootFile = "tls.crt", "tls.key", "ca.crt"

	// stateFile marks a directory as ours and says where the rotation stands.
	stateFile = "rotation.json"
	// nextDir holds certFile and keyFile of the next root.
	nextDir                   = "next"
	nextCertFile, nextKeyFile = nextDir + "/" + certFile, nextDir + "/" + keyFile
)

// open decides which kind of authority this is and puts it in force.
func (a *Authority) open(ctx context.Context, now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.cfg.Vault != nil:
		return a.openVaultLocked(ctx, now)
	case a.cfg.Dir == "":
		return a.createLocked(ctx, now)
	}
	a.read = filesOfDir(a.cfg.Dir)
	ours, err := exists(a.read, stateFile)
	if err != nil {
		return err
	}
	if ours {
		return a.restoreLocked(ctx, a.read, now)
	}
	for _, name := range []string{certFile, tlsCertFile} {
		plugged, err := exists(a.read, name)
		if err != nil {
			return err
		}
		if plugged {
			a.state.plugged = true
			return a.reloadLocked(a.read, now)
		}
	}
	return a.createLocked(ctx, now)
}

func exists(f files, name string) (bool, error) {
	_, err := f(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (a *Authority) createLocked(ctx context.Context, now time.Time) error {
	root, err := newRoot(a.cfg, now)
	if err != nil {
		return err
	}
	if a.cfg.Vault == nil && a.cfg.Dir != "" {
		// First of all the mark that the directory is ours: after a crash half a root is not taken for a plugged-in one.
		if err := os.MkdirAll(a.cfg.Dir, 0o700); err != nil {
			return err
		}
		if err := write(a.cfg.Dir, stateFile, []byte(`{"phase":"creating"}`)); err != nil {
			return err
		}
	}
	return a.advanceLocked(ctx, state{Phase: idle, Since: now, cur: root, roots: []*x509.Certificate{root.cert}})
}

// restoreLocked reads files that save wrote, and finishes an activation that was cut off.
func (a *Authority) restoreLocked(ctx context.Context, f files, now time.Time) error {
	var s state
	data, err := f(stateFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("parse %s: %w", stateFile, err)
	}
	if s.Phase == creating {
		return a.createLocked(ctx, now)
	}
	if s.roots, err = readCerts(f, rootFile); err != nil {
		return err
	}
	next, nextErr := readSlot(f, nextCertFile, nextKeyFile)
	s.cur, err = readSlot(f, certFile, keyFile)
	if err != nil && nextErr == nil {
		// save writes the new key before the new certificate; with the next pair at hand both are known.
		if s, err := f(keyFile); err != nil || !sameKey(s, next.key) {
			return fmt.Errorf("%s does not fit %s or %s", keyFile, certFile, nextCertFile)
		}
		return a.advanceLocked(ctx, state{Phase: activated, Since: s.Since, cur: next, roots: s.roots})
	}
	if err != nil {
		return err
	}
	switch s.Phase {
	case idle, activated:
	case prepared:
		if nextErr != nil {
			return nextErr
		}
		s.next = next
	default:
		return fmt.Errorf("parse %s: unknown phase %q", stateFile, s.Phase)
	}
	a.state = s
	a.publishLocked(&issuer{cert: s.cur.cert, key: s.cur.key, roots: s.roots})
	return nil
}

func sameKey(data []byte, key crypto.Signer) bool {
	parsed, err := parseKey(data)
	return err == nil && samePublic(parsed.Public(), key.Public())
}

// encoded is a self-signed authority as it is written.
type encoded struct {
	cert, key, roots, state []byte
	nextCert, nextKey       []byte // nil when there is no next root
}

func encode(s state) (encoded, error) {
	var e encoded
	for _, c := range s.roots {
		e.roots = append(e.roots, encodeCert(c.Raw)...)
	}
	e.cert = []byte(encodeCert(s.cur.cert.Raw))
	var err error
	if e.key, err = encodeKey(s.cur.key); err != nil {
		return e, err
	}
	if s.next != nil {
		e.nextCert = []byte(encodeCert(s.next.cert.Raw))
		if e.nextKey, err = encodeKey(s.next.key); err != nil {
			return e, err
		}
	}
	e.state, err = json.Marshal(s)
	return e, err
}

// save writes a self-signed authority. In a directory each file is replaced whole, in an order in which a crash between
// any two is read as the old or the new state: the bundle only grows before the key changes and only shrinks after it.
func (a *Authority) save(ctx context.Context, s state) error {
	if a.cfg.Vault == nil && a.cfg.Dir == "" {
		return nil
	}
	e, err := encode(s)
	if err != nil {
		return err
	}
	if a.cfg.Vault != nil {
		return a.saveToVault(ctx, e)
	}
	dir, next := a.cfg.Dir, filepath.Join(a.cfg.Dir, nextDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if e.nextCert != nil {
		if err := os.MkdirAll(next, 0o700); err != nil {
			return err
		}
		if err := errors.Join(write(next, keyFile, e.nextKey), write(next, certFile, e.nextCert)); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{rootFile, e.roots}, {keyFile, e.key}, {certFile, e.cert}, {chainFile, nil}, {stateFile, e.state},
	} {
		if err := write(dir, f.name, f.data); err != nil {
			return err
		}
	}
	if e.nextCert == nil {
		return os.RemoveAll(next)
	}
	return nil
}

// write replaces a file of the authority, which nobody else may read.
func write(dir, name string, data []byte) error {
	return atomicfile.Write(filepath.Join(dir, name), data, 0o600)
}

// reloadLocked reads a plugged-in authority and puts it in force when it is whole and differs. Roots that are no longer
// in the files stay published as long as certificates below them may live.
func (a *Authority) reloadLocked(f files, now time.Time) error {
	i, err := readPlugged(f, now)
	if err != nil {
		return err
	}
	old := a.cur.Load()
	if old != nil {
		for _, c := range old.roots {
			known := slices.ContainsFunc(a.kept, func(k keptRoot) bool { return k.cert.Equal(c) })
			if !known && !slices.ContainsFunc(i.roots, c.Equal) {
				a.kept = append(a.kept, keptRoot{cert: c, until: now.Add(a.cfg.maxTTL())})
			}
		}
	}
	a.kept = slices.DeleteFunc(a.kept, func(k keptRoot) bool {
		return now.After(k.until) || slices.ContainsFunc(i.roots, k.cert.Equal)
	})
	for _, k := range a.kept {
		i.roots = append(i.roots, k.cert)
	}
	if old != nil && old.cert.Equal(i.cert) && slices.EqualFunc(old.roots, i.roots, (*x509.Certificate).Equal) &&
		slices.EqualFunc(old.intermediates, i.intermediates, (*x509.Certificate).Equal) {
		return nil
	}
	a.cfg.logger().Info("certificate authority loaded", slog.String("dir", a.cfg.Dir),
		slog.String("signing", i.cert.SerialNumber.Text(16)), slog.Time("notAfter", i.cert.NotAfter), slog.Int("roots", len(i.roots)))
	a.publishLocked(i)
	return nil
}

// readPlugged reads and checks the files of a plugged-in authority.
func readPlugged(f files, now time.Time) (*issuer, error) {
	cert, key, root := certFile, keyFile, rootFile
	if ok, err := exists(f, cert); err != nil {
		return nil, err
	} else if !ok {
		cert, key, root = tlsCertFile, tlsKeyFile, tlsRootFile
	}
	s, err := readSlot(f, cert, key)
	if err != nil {
		return nil, err
	}
	i := &issuer{cert: s.cert, key: s.key}
	if i.roots, err = readCerts(f, root); err != nil {
		return nil, err
	}
	chain, err := readCerts(f, cert) // cert-manager puts the chain behind the certificate
	if err != nil {
		return nil, err
	}
	if ok, err := exists(f, chainFile); err != nil {
		return nil, err
	} else if ok {
		more, err := readCerts(f, chainFile)
		if err != nil && !errors.Is(err, errNoCert) {
			return nil, err
		}
		chain = append(chain, more...)
	}
	pool, above := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range i.roots {
		pool.AddCert(c)
	}
	for _, c := range chain {
		if slices.ContainsFunc(i.roots, c.Equal) || slices.ContainsFunc(i.intermediates, c.Equal) {
			continue
		}
		i.intermediates = append(i.intermediates, c)
		above.AddCert(c)
	}
	_, err = i.cert.Verify(x509.VerifyOptions{Roots: pool, Intermediates: above, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("verify %s with %s: %w", cert, root, err)
	}
	return i, nil
}

// readSlot reads a CA certificate and the key that belongs to it.
func readSlot(f files, certName, keyName string) (*slot, error) {
	certs, err := readCerts(f, certName)
	if err != nil {
		return nil, err
	}
	data, err := f(keyName)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", keyName, err)
	}
	if !samePublic(key.Public(), certs[0].PublicKey) {
		return nil, fmt.Errorf("%s does not belong to %s", keyName, certName)
	}
	if !certs[0].IsCA || certs[0].KeyUsage != 0 && certs[0].KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("%s may not sign certificates", certName)
	}
	return &slot{cert: certs[0], key: key}, nil
}

var errNoCert = errors.New("no certificate in the file")

func readCerts(f files, name string) ([]*x509.Certificate, error) {
	data, err := f(name)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", name, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("read %s: %w", name, errNoCert)
	}
	return certs, nil
}

// parseKey reads PKCS#8, PKCS#1 or SEC 1.
func parseKey(data []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("no private key in the file")
		}
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			if s, ok := key.(crypto.Signer); ok {
				return s, nil
			}
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			return x509.ParseECPrivateKey(block.Bytes)
		}
	}
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func samePublic(a, b crypto.PublicKey) bool {
	switch a := a.(type) {
	case *ecdsa.PublicKey:
		return a.Equal(b)
	case *rsa.PublicKey:
		return a.Equal(b)
	case interface{ Equal(crypto.PublicKey) bool }:
		return a.Equal(b)
	}
	return false
}
