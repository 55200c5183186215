package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/ambit-mesh/ambit/internal/atomicfile"
)

const (
	settle  = 200 * time.Millisecond // after a change, before it is looked at
	recheck = 30 * time.Second       // also without a change: a watch can be lost
	war     = 5                      // rewrites within warTime after which somebody is told that another program undoes them
	warTime = time.Minute
)

// Installer keeps the plugin in a node's network configuration: its binary, and its entry at the end of the configuration
// that the container runtime takes.
type Installer struct {
	// ConfDir is the runtime's directory of network configurations, usually /etc/cni/net.d. Mandatory.
	ConfDir string
	// BinDir is the runtime's directory of plugins, usually /opt/cni/bin. Mandatory.
	BinDir string
	// Binary is the plugin's file to be copied there. Mandatory.
	Binary string
	// Entry is what the plugin is told.
	Entry Config
	// Logger, nil for none.
	Logger *slog.Logger

	installed atomic.Bool
	copied    os.FileInfo // the plugin in BinDir, when it was last seen to be Binary; nil: not yet
}

// Installed says that the configuration that the runtime takes has the plugin. Any goroutine.
func (i *Installer) Installed() bool { return i.installed.Load() }

// Run installs the plugin, waiting for a configuration to put it into if need be, and repairs it until ctx is done. Then it
// leaves everything in place: new pods wait until the next Installer's capture is there. It returns an error only if it
// cannot watch.
func (i *Installer) Run(ctx context.Context) error {
	log := i.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the network configuration: %w", err)
	}
	defer w.Close()
	for _, dir := range []string{i.ConfDir, i.BinDir} {
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = w.Add(dir)
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", dir, fix(err))
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	rewrites, first, said := 0, time.Time{}, ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
			timer.Reset(settle)
			continue
		case err := <-w.Errors:
			log.Warn("watch of the network configuration", "err", err)
			timer.Reset(settle)
			continue
		case <-timer.C:
		}
		timer.Reset(recheck)
		path, changed, err := i.Install()
		state := path
		switch {
		case err != nil:
			state = fix(err).Error()
		case path == "":
			state = "no network configuration in " + i.ConfDir + " yet: waiting for the cluster's own CNI plugin"
		}
		if state != said {
			said = state
			if err != nil || path == "" {
				log.Warn("CNI plugin not installed", "cause", state)
			}
		}
		if !changed {
			continue
		}
		log.Info("CNI plugin installed", "configuration", path)
		if time.Since(first) > warTime {
			rewrites, first = 0, time.Now()
		}
		if rewrites++; rewrites == war {
			log.Warn("another program keeps removing the CNI plugin from the network configuration: with Cilium set cni.exclusive=false",
				"configuration", path)
		}
	}
}

// fix adds to an error what the user can do about it.
func fix(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: where the directories of CNI are not root's, capture needs the capability DAC_OVERRIDE (the chart's ztunnel.capture.addCapabilities)", err)
	}
	return err
}

// Install does once what Run does, and may be repeated. path is the configuration that has the plugin, "" if there is none to
// put it into; changed says that something had to be written. Blocks on files only.
func (i *Installer) Install() (path string, changed bool, err error) {
	defer func() { i.installed.Store(err == nil && path != "") }()
	if changed, err = i.copyBinary(); err != nil {
		return "", false, fmt.Errorf("install the plugin's binary: %w", err)
	}
	path, conf, err := primary(i.ConfDir)
	if err != nil || path == "" {
		return "", changed, err
	}
	next, err := withEntry(conf, &i.Entry)
	if err != nil {
		return "", changed, fmt.Errorf("network configuration %s: %w", path, err)
	}
	list := strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
	if path != list || !bytes.Equal(next, conf) {
		if err := rewrite(path, list, next); err != nil {
			return "", changed, fmt.Errorf("write network configuration: %w", err)
		}
		changed = true
	}
	return list, changed, i.clean(list)
}

// rewrite writes the list that takes the place of the configuration at path.
func rewrite(path, list string, conf []byte) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(list, conf, st.Mode().Perm()); err != nil || path == list {
		return err
	}
	return os.Remove(path)
}

// Withdraw takes the plugin out of every configuration: pods that are started from now on are not asked about. Its binary
// stays for those that are being started. Run must have ended.
func (i *Installer) Withdraw() error {
	i.installed.Store(false)
	return i.clean("")
}

// Remove is Withdraw, and takes the plugin's binary away.
func (i *Installer) Remove() error {
	if err := i.Withdraw(); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(i.BinDir, Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the plugin's binary: %w", err)
	}
	return nil
}

// clean takes the plugin out of all configurations but one.
func (i *Installer) clean(keep string) error {
	files, err := configs(i.ConfDir)
	if err != nil {
		return fmt.Errorf("list network configurations: %w", err)
	}
	for _, path := range files {
		if path == keep {
			continue
		}
		conf, err := os.ReadFile(path)
		if err != nil {
			continue // somebody took it away
		}
		rest, changed, err := withoutEntry(conf)
		if err != nil || !changed {
			continue // not ours, or no configuration at all
		}
		if err := rewrite(path, path, rest); err != nil {
			return fmt.Errorf("write network configuration: %w", err)
		}
	}
	return nil
}

// copyBinary copies the plugin if it is not there or another one. A running one is not written to.
func (i *Installer) copyBinary() (changed bool, err error) {
	to := filepath.Join(i.BinDir, Name)
	if st, err := os.Stat(to); err == nil && i.copied != nil && os.SameFile(st, i.copied) && st.ModTime().Equal(i.copied.ModTime()) && st.Size() == i.copied.Size() {
		return false, nil // megabytes need not be read for that
	}
	want, err := os.ReadFile(i.Binary)
	if err != nil {
		return false, err
	}
	if have, err := os.ReadFile(to); err != nil || !bytes.Equal(have, want) {
		if err := atomicfile.Write(to, want, 0o755); err != nil {
			return true, err
		}
		changed = true
	}
	i.copied, err = os.Stat(to)
	return changed, err
}
