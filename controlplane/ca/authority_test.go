package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

func open(t testing.TB, cfg AuthorityConfig) *Authority {
	t.Helper()
	cfg.TrustDomain = "cluster.local"
	a, err := OpenAuthority(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// issue signs a certificate of default/web and returns its chain.
func issue(t testing.TB, a *Authority) []string {
	t.Helper()
	id, err := spiffe.New("cluster.local", "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign([]byte(newCSR(t, newKey(t), nil)), id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// verify checks chain as a peer that has bundle.
func verify(t testing.TB, chain []string, bundle []byte) error {
	t.Helper()
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, c := range chain[1 : len(chain)-1] {
		above.AppendCertsFromPEM([]byte(c))
	}
	_, err := parseLeaf(t, chain).Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

func rootCount(bundle []byte) int { return bytes.Count(bundle, []byte("BEGIN CERTIFICATE")) }

func TestSelfSignedAuthorityOutlivesARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, AuthorityConfig{Dir: dir})
	second := open(t, AuthorityConfig{Dir: dir})
	if !bytes.Equal(first.RootPEM(), second.RootPEM()) {
		t.Error("the root changed")
	}
	if err := verify(t, issue(t, second), first.RootPEM()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{certFile, keyFile, rootFile, chainFile, stateFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", name, info.Mode())
		}
	}
}

// TestRotation replaces the root of a running authority: at every moment what was signed before verifies with the
// bundle of now, and what is signed now with the bundle that every proxy has had for a certificate's lifetime.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const overlap = 2 * time.Hour
		dir := t.TempDir()
		a := open(t, AuthorityConfig{Dir: dir, Overlap: overlap, MaxTTL: overlap})
		var published int
		a.Watch(func([]byte) { published++ })
		oldBundle := a.RootPEM()
		if err := a.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := a.Rotate(t.Context()); !errors.Is(err, ErrRotating) {
			t.Errorf("a second Rotate: %v, want ErrRotating", err)
		}
		step := func(d time.Duration, wantPhase string, wantRoots int) {
			t.Helper()
			time.Sleep(d)
			if err := a.check(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
			if phase, _ := a.Phase(); phase != wantPhase || rootCount(a.RootPEM()) != wantRoots {
				t.Errorf("got phase %s with %d roots, want %s with %d", phase, rootCount(a.RootPEM()), wantPhase, wantRoots)
			}
			a = open(t, AuthorityConfig{Dir: dir, Overlap: overlap, MaxTTL: overlap}) // a restart changes nothing
			if phase, _ := a.Phase(); phase != wantPhase || rootCount(a.RootPEM()) != wantRoots {
				t.Errorf("after a restart: phase %s with %d roots", phase, rootCount(a.RootPEM()))
			}
		}
		step(overlap-time.Minute, "prepared", 2)
		if err := verify(t, issue(t, a), oldBundle); err != nil {
			t.Errorf("the next root signs before it was published for long enough: %v", err)
		}
		both := a.RootPEM()
		step(time.Minute, "activated", 2)
		after := issue(t, a)
		if err := verify(t, after, both); err != nil {
			t.Errorf("signed by the next root: %v", err)
		}
		if verify(t, after, oldBundle) == nil {
			t.Error("the old root still signs")
		}
		step(overlap-time.Minute, "activated", 2)
		step(time.Minute, "idle", 1)
		if err := verify(t, issue(t, a), a.RootPEM()); err != nil {
			t.Error(err)
		}
		if published != 2 {
			t.Errorf("the watcher was called %d times, want at once and by Rotate", published)
		}
	})
}

func TestRootIsReplacedBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, AuthorityConfig{RootTTL: 100 * time.Hour, MaxTTL: time.Hour})
		time.Sleep(79 * time.Hour)
		if err := a.check(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if phase, _ := a.Phase(); phase != "idle" {
			t.Errorf("phase %s after 79 %% of the root's life, want idle", phase)
		}
		time.Sleep(2 * time.Hour)
		if err := a.check(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if phase, _ := a.Phase(); phase != "prepared" {
			t.Errorf("phase %s after 81 %% of the root's life, want prepared", phase)
		}
	})
}

// TestActivationThatWasCutOff restarts after every file that an activation writes.
func TestActivationThatWasCutOff(t *testing.T) {
	old := t.TempDir()
	a := open(t, AuthorityConfig{Dir: old})
	if err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := t.TempDir()
	if err := os.CopyFS(done, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	b := open(t, AuthorityConfig{Dir: done})
	_, since := b.Phase()
	if err := b.check(t.Context(), since.Add(91*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	names := []string{rootFile, keyFile, certFile, chainFile, stateFile}
	for n := range len(names) + 1 {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(old)); err != nil {
			t.Fatal(err)
		}
		for _, name := range names[:n] {
			data, err := os.ReadFile(filepath.Join(done, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := open(t, AuthorityConfig{Dir: dir})
		if err := verify(t, issue(t, c), a.RootPEM()); err != nil {
			t.Errorf("after %v: %v", names[:n], err)
		}
		if rootCount(c.RootPEM()) != 2 {
			t.Errorf("after %v: %d roots, want 2", names[:n], rootCount(c.RootPEM()))
		}
	}
	half := t.TempDir()
	if err := os.WriteFile(filepath.Join(half, stateFile), []byte(`{"phase":"creating"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, AuthorityConfig{Dir: half})
}

// plug writes an intermediate below a new root with Istio's file names and returns the root.
func plug(t testing.TB, dir string, root *slot) {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: "intermediate"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, root.cert, key.Public(), root.key)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})
	rootPEM := encodeCert(root.cert.Raw)
	for name, data := range map[string]string{certFile: encodeCert(der), keyFile: string(keyPEM), rootFile: rootPEM, chainFile: encodeCert(der) + rootPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPluggedInAuthority(t *testing.T) {
	dir := t.TempDir()
	root, err := newRoot(AuthorityConfig{TrustDomain: "corp"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	plug(t, dir, root)
	a := open(t, AuthorityConfig{Dir: dir})
	chain := issue(t, a)
	if len(chain) != 3 {
		t.Errorf("chain of %d elements, want leaf, intermediate and bundle", len(chain))
	}
	if err := verify(t, chain, []byte(encodeCert(root.cert.Raw))); err != nil {
		t.Error(err)
	}
	if leaf := parseLeaf(t, chain); leaf.NotAfter.After(a.cur.Load().cert.NotAfter) {
		t.Error("the leaf outlives its issuer (2.4)")
	}
	if err := a.Rotate(t.Context()); !errors.Is(err, ErrPlugged) {
		t.Errorf("Rotate: %v, want ErrPlugged", err)
	}

	// A half-written change leaves the last good state; a whole one is picked up, and the old root stays published.
	if err := os.WriteFile(filepath.Join(dir, keyFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.check(t.Context(), time.Now()); err == nil {
		t.Error("a broken key was not reported")
	}
	issue(t, a)
	next, err := newRoot(AuthorityConfig{TrustDomain: "corp"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	plug(t, dir, next)
	if err := a.check(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := verify(t, issue(t, a), []byte(encodeCert(next.cert.Raw))); err != nil {
		t.Error(err)
	}
	if rootCount(a.RootPEM()) != 2 {
		t.Errorf("%d roots, want the new and the old", rootCount(a.RootPEM()))
	}
	if err := a.check(t.Context(), time.Now()); err != nil || rootCount(a.RootPEM()) != 2 {
		t.Errorf("a second look: %v, %d roots", err, rootCount(a.RootPEM()))
	}
}

func TestPluggedInAuthorityMustFit(t *testing.T) {
	dir := t.TempDir()
	root, _ := newRoot(AuthorityConfig{TrustDomain: "corp"}, time.Now())
	other, _ := newRoot(AuthorityConfig{TrustDomain: "corp"}, time.Now())
	plug(t, dir, root)
	if err := os.WriteFile(filepath.Join(dir, rootFile), []byte(encodeCert(other.cert.Raw)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(t.Context(), AuthorityConfig{Dir: dir, TrustDomain: "cluster.local"}); err == nil || !strings.Contains(err.Error(), "verify ca-cert.pem with root-cert.pem") {
		t.Errorf("got %v, want an error that names the files", err)
	}
}

func TestServerCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, AuthorityConfig{Overlap: time.Minute})
		cfg := ServerTLS(a, []string{"istiod.istio-system.svc"}, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
		get := func() *x509.Certificate {
			t.Helper()
			c, err := cfg.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			return c.Leaf
		}
		first := get()
		for _, name := range []string{"istiod.istio-system.svc", "10.0.0.1"} {
			if err := first.VerifyHostname(name); err != nil {
				t.Error(err)
			}
		}
		if _, ok := first.PublicKey.(*ecdsa.PublicKey); !ok || len(first.URIs) != 0 || len(first.ExtKeyUsage) != 1 || first.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
			t.Errorf("got key %T, names %v, usages %v", first.PublicKey, first.URIs, first.ExtKeyUsage)
		}
		if get() != first {
			t.Error("a second handshake made a second certificate")
		}
		time.Sleep(13 * time.Hour)
		second := get()
		if second == first {
			t.Error("not renewed after half of its life")
		}
		if err := a.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if err := a.check(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if get() == second {
			t.Error("not renewed by the new root")
		}
	})
}
