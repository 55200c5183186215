//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Unload removes every trace of the node at pinDir: links, programs, maps, and in pods that still live the routes, rules and
// sysctls, which cuts connections that are open by the proxy. A mount that Open made at pinDir goes as well. A directory that
// does not exist is no error. No process may have the node open. After an error, or a crash, call it again.
func Unload(dir string) error {
	path, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("unload redirection: %w", err)
	}
	d := pinDir(path)
	unlock, err := d.lock()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if !onBPFFS(path) {
		return nil // nothing was ever opened here
	}
	// First no more sockets get the mark, of any pod.
	for _, pin := range nodeLinks() {
		if err := unloadHook(d.node(pin)); err != nil {
			return fmt.Errorf("unload %s: %w", pin, err)
		}
	}
	uids, err := d.uids()
	if err != nil {
		return err
	}
	var errs []error
	for _, uid := range uids {
		if err := unloadPod(d, uid); err != nil {
			errs = append(errs, fmt.Errorf("unload pod %q: %w", uid, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if err := errors.Join(removeTree(d.node("")), removeTree(d.pods()), d.removeStaged()); err != nil {
		return err
	}
	return removePinDir(path)
}

// nodeLinks are the pins of the node's links.
func nodeLinks() (pins []string) {
	for _, h := range connectHooks {
		pins = append(pins, h.pin)
	}
	for _, h := range probeHooks {
		pins = append(pins, h.pin)
	}
	return pins
}

func unloadHook(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Close()
	_ = l.Detach() // it may have ended with its cgroup
	return os.Remove(pin)
}

func unloadPod(d pinDir, uid string) error {
	st, err := openPod(d, uid)
	if err != nil && !errors.Is(err, ErrUnknownPod) {
		return err
	}
	if err == nil {
		defer st.Close()
		ns, err := findNamespace(st)
		switch {
		case errors.Is(err, os.ErrNotExist): // ended, with all that was in it
		case err != nil:
			return err
		default:
			defer ns.Close()
			if err := removeDNS(ns, st); err != nil {
				return err
			}
		}
		if err := unlinkLookup(st); err != nil {
			return err
		}
		if ns != nil {
			if err := undo(ns, st); err != nil {
				return err
			}
		}
	}
	return d.removePod(uid)
}

// removePinDir removes the directory; if it is a mount of its own, the mount.
func removePinDir(path string) error {
	err := os.Remove(path)
	if errors.Is(err, unix.EBUSY) {
		if err = unix.Unmount(path, unix.MNT_DETACH); err == nil {
			err = os.Remove(path)
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pin directory: %w", err)
	}
	return nil
}
