package ca

import (
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
)

// Files of an authority: Istio's names (Secret cacerts), then cert-manager's (2.4).
const (
	certFile, keyFile, chainFile, rootFile = "ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"

	tlsCertFile, tlsKeyFile, tlsRootFile = "tls.crt", "tls.key", "ca.crt"

	// stateFile marks a directory as ours and says where the rotation stands.
	stateFile = "rotation.json"
	// nextDir holds certFile and keyFile of the next root.
	nextDir = "next"
)

// open decides which kind of authority this is and puts it in force.
func (a *Authority) open(now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cfg.Dir == "" {
		return a.createLocked(now)
	}
	ours, err := exists(filepath.Join(a.cfg.Dir, stateFile))
	if err != nil {
		return err
	}
	if ours {
		return a.restoreLocked(now)
	}
	for _, name := range []string{certFile, tlsCertFile} {
		plugged, err := exists(filepath.Join(a.cfg.Dir, name))
		if err != nil {
			return err
		}
		if plugged {
			a.state.plugged = true
			return a.reloadLocked(now)
		}
	}
	return a.createLocked(now)
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (a *Authority) createLocked(now time.Time) error {
	root, err := newRoot(a.cfg, now)
	if err != nil {
		return err
	}
	if a.cfg.Dir != "" {
		// First of all the mark that the directory is ours: after a crash half a root is not taken for a plugged-in one.
		if err := os.MkdirAll(a.cfg.Dir, 0o700); err != nil {
			return err
		}
		if err := write(a.cfg.Dir, stateFile, []byte(`{"phase":"creating"}`)); err != nil {
			return err
		}
	}
	return a.advanceLocked(state{Phase: idle, Since: now, cur: root, roots: []*x509.Certificate{root.cert}})
}

// restoreLocked reads a directory that save wrote, and finishes an activation that was cut off.
func (a *Authority) restoreLocked(now time.Time) error {
	var s state
	data, err := os.ReadFile(filepath.Join(a.cfg.Dir, stateFile))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("parse %s: %w", stateFile, err)
	}
	if s.Phase == creating {
		return a.createLocked(now)
	}
	if s.roots, err = readCerts(filepath.Join(a.cfg.Dir, rootFile)); err != nil {
		return err
	}
	next, nextErr := readSlot(filepath.Join(a.cfg.Dir, nextDir), certFile, keyFile)
	s.cur, err = readSlot(a.cfg.Dir, certFile, keyFile)
	if err != nil && nextErr == nil {
		// save writes the new key before the new certificate; with the next pair at hand both are known.
		if s, err := os.ReadFile(filepath.Join(a.cfg.Dir, keyFile)); err != nil || !sameKey(s, next.key) {
			return fmt.Errorf("%s does not fit %s or %s/%s", keyFile, certFile, nextDir, certFile)
		}
		return a.advanceLocked(state{Phase: activated, Since: s.Since, cur: next, roots: s.roots})
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

// save writes a self-signed authority. Each file is replaced whole, in an order in which a crash between any two is
// read as the old or the new state: the bundle only grows before the key changes and only shrinks after it.
func (a *Authority) save(s state) error {
	if a.cfg.Dir == "" {
		return nil
	}
	var roots string
	for _, c := range s.roots {
		roots += encodeCert(c.Raw)
	}
	key, err := encodeKey(s.cur.key)
	if err != nil {
		return err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	dir, next := a.cfg.Dir, filepath.Join(a.cfg.Dir, nextDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if s.next != nil {
		nextKey, err := encodeKey(s.next.key)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(next, 0o700); err != nil {
			return err
		}
		if err := errors.Join(write(next, keyFile, nextKey), write(next, certFile, []byte(encodeCert(s.next.cert.Raw)))); err != nil {
			return err
		}
	}
	if err := write(dir, rootFile, []byte(roots)); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{keyFile, key}, {certFile, []byte(encodeCert(s.cur.cert.Raw))}, {chainFile, nil}, {stateFile, data},
	} {
		if err := write(dir, f.name, f.data); err != nil {
			return err
		}
	}
	if s.next == nil {
		return os.RemoveAll(next)
	}
	return nil
}

// write replaces a file of mode 0600 by a rename, after its content has reached the disk.
func write(dir, name string, data []byte) error {
	f, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// reloadLocked reads a plugged-in authority and puts it in force when it is whole and differs. Roots that are no longer
// in the files stay published as long as certificates below them may live.
func (a *Authority) reloadLocked(now time.Time) error {
	i, err := readPlugged(a.cfg.Dir, now)
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
func readPlugged(dir string, now time.Time) (*issuer, error) {
	cert, key, root := certFile, keyFile, rootFile
	if ok, err := exists(filepath.Join(dir, cert)); err != nil {
		return nil, err
	} else if !ok {
		cert, key, root = tlsCertFile, tlsKeyFile, tlsRootFile
	}
	s, err := readSlot(dir, cert, key)
	if err != nil {
		return nil, err
	}
	i := &issuer{cert: s.cert, key: s.key}
	if i.roots, err = readCerts(filepath.Join(dir, root)); err != nil {
		return nil, err
	}
	chain, err := readCerts(filepath.Join(dir, cert)) // cert-manager puts the chain behind the certificate
	if err != nil {
		return nil, err
	}
	if ok, err := exists(filepath.Join(dir, chainFile)); err != nil {
		return nil, err
	} else if ok {
		more, err := readCerts(filepath.Join(dir, chainFile))
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
func readSlot(dir, certName, keyName string) (*slot, error) {
	certs, err := readCerts(filepath.Join(dir, certName))
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, keyName))
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

func readCerts(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
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
			return nil, fmt.Errorf("parse %s: %w", filepath.Base(path), err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("read %s: %w", filepath.Base(path), errNoCert)
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
