package ca

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Vault keeps the files of an authority that several replicas share: a Secret. A file of the directory "next" has a dot
// in place of the slash there, which a Secret's key may not have. Safe for any goroutine.
type Vault interface {
	// Load returns the files and their version, nil when there are none.
	Load(ctx context.Context) (files map[string][]byte, version string, err error)
	// Save replaces all files if their version is still this one ("" = there are none) and returns the new version. The
	// error wraps ErrChanged when it is not.
	Save(ctx context.Context, files map[string][]byte, version string) (string, error)
}

// ErrChanged is wrapped by the error of Vault.Save when another replica was faster.
var ErrChanged = errors.New("another replica was faster")

// files reads a file of an authority by its name. The error is fs.ErrNotExist when there is none.
type files func(name string) ([]byte, error)

func filesOfDir(dir string) files {
	return func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }
}

func filesOfMap(m map[string][]byte) files {
	return func(name string) ([]byte, error) {
		if data, ok := m[vaultKey(name)]; ok {
			return data, nil
		}
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
}

func vaultKey(name string) string { return strings.ReplaceAll(name, "/", ".") }

// openVaultLocked takes in what the vault holds, or makes the first root. Of replicas that do so at once one succeeds,
// and the others take its root.
func (a *Authority) openVaultLocked(ctx context.Context, now time.Time) error {
	for {
		err := a.syncLocked(ctx, now)
		if !errors.Is(err, ErrChanged) || ctx.Err() != nil {
			return err
		}
	}
}

// syncLocked takes in what the vault holds when it is not what we know, so that all replicas go through a rotation
// together.
func (a *Authority) syncLocked(ctx context.Context, now time.Time) error {
	held, version, err := a.cfg.Vault.Load(ctx)
	open := a.cur.Load() != nil
	switch {
	case err != nil:
		return err
	case held == nil && !open:
		return a.createLocked(ctx, now)
	case held == nil && a.state.plugged:
		return errors.New("the authority that was plugged in is gone")
	case held == nil: // somebody deleted it: what we have is what proxies trust
		a.version = ""
		a.cfg.logger().Warn("certificate authority was deleted and is written again", slog.String("signing", a.cur.Load().cert.SerialNumber.Text(16)))
		return a.save(ctx, a.state)
	case open && version == a.version:
		return nil
	}
	f := filesOfMap(held)
	ours, err := exists(f, stateFile)
	switch {
	case err != nil:
		return err
	case ours && a.state.plugged:
		return errors.New("the authority that was plugged in is gone")
	case ours:
		err = a.restoreLocked(ctx, f, now)
	default:
		if err = a.reloadLocked(f, now); err == nil {
			a.state.plugged = true
		}
	}
	if err != nil {
		return fmt.Errorf("read the authority: %w", err)
	}
	a.version, a.read = version, f
	return nil
}

// saveToVault writes a self-signed authority, all at once.
func (a *Authority) saveToVault(ctx context.Context, s encoded) error {
	m := map[string][]byte{certFile: s.cert, keyFile: s.key, rootFile: s.roots, chainFile: nil, stateFile: s.state}
	if s.nextCert != nil {
		m[vaultKey(nextCertFile)], m[vaultKey(nextKeyFile)] = s.nextCert, s.nextKey
	}
	version, err := a.cfg.Vault.Save(ctx, m, a.version)
	if err != nil {
		return err
	}
	a.version = version
	return nil
}
