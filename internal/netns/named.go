//go:build linux

package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where named namespaces are mounted, the same place that `ip netns` uses.
const Dir = "/run/netns"

func namedPath(name string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return "", fmt.Errorf("name network namespace %q: %w", name, unix.EINVAL)
	}
	return filepath.Join(Dir, name), nil
}

// Create makes a namespace with a name, as `ip netns add` does. It fails with os.ErrExist if there is one. A crash in
// between leaves an empty file of that name, which Delete removes.
func Create(name string) (*NS, error) {
	path, err := namedPath(name)
	if err != nil {
		return nil, err
	}
	if err := prepareDir(); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %q: %w", name, err)
	}
	unix.Close(fd)
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create network namespace %q: %w", name, err), os.Remove(path))
	}
	return Open(path)
}

// Delete removes the name, as `ip netns del` does; the namespace ends when nothing uses it any more. A name that does not
// exist is no error.
func Delete(name string) error {
	path, err := namedPath(name)
	if err != nil {
		return err
	}
	// EINVAL: nothing is mounted, only the file is there.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete network namespace %q: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %q: %w", name, err)
	}
	return nil
}

// prepareDir makes Dir a shared mount, so that namespaces come and go in other mount namespaces too.
func prepareDir() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return fmt.Errorf("make directory of network namespaces: %w", err)
	}
	err := unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share directory of network namespaces: %w", err)
	}
	return nil
}

// Find opens the namespace with the given identity, looking where namespaces are usually mounted and at the processes of
// this machine. Without one it returns os.ErrNotExist. It reads all of /proc: not for hot paths.
func Find(id ID) (*NS, error) {
	for _, glob := range []string{Dir + "/*", "/var/run/docker/netns/*", "/proc/[0-9]*/ns/net"} {
		paths, err := filepath.Glob(glob)
		if err != nil {
			return nil, fmt.Errorf("list %q: %w", glob, err)
		}
		for _, path := range paths {
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil || (ID{Dev: uint64(st.Dev), Ino: st.Ino}) != id {
				continue
			}
			if n, err := Open(path); err == nil {
				if n.id == id {
					return n, nil
				}
				n.Close()
			}
		}
	}
	return nil, fmt.Errorf("find network namespace %v: %w", id, os.ErrNotExist)
}
