//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// pinDir is a node's directory on a BPF file system.
type pinDir string

const (
	bpfFS        = "/sys/fs/bpf"
	stagedPrefix = "new-"
	stagedPod    = "pod-" // and the escaped UID
)

func (d pinDir) node(name string) string { return filepath.Join(string(d), "node", name) }
func (d pinDir) pods() string            { return filepath.Join(string(d), "pods") }
func (d pinDir) pod(uid string) string   { return filepath.Join(d.pods(), escape(uid)) }

// makePinDir makes the directory, and mounts a BPF file system if there is none and it may.
func makePinDir(path string, mount bool) (pinDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("make pin directory: %w", err)
	}
	at := path
	if strings.HasPrefix(path, bpfFS+"/") {
		at = bpfFS
	}
	if !onBPFFS(nearest(path)) {
		if !mount {
			return "", fmt.Errorf("make pin directory %q: %w", path, ErrNotMounted)
		}
		if err := os.MkdirAll(at, 0o700); err != nil {
			return "", fmt.Errorf("make pin directory: %w", err)
		}
		if err := Mount(at); err != nil {
			return "", err
		}
	}
	d := pinDir(path)
	if err := os.MkdirAll(d.pods(), 0o700); err != nil {
		return "", fmt.Errorf("make pin directory: %w", err)
	}
	return d, nil
}

// Mount mounts a BPF file system at a directory, unless it is on one.
func Mount(dir string) error {
	if onBPFFS(dir) {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount BPF file system at %q: %w", dir, err)
	}
	return nil
}

// nearest returns the longest part of path that exists.
func nearest(path string) string {
	for ; path != "/"; path = filepath.Dir(path) {
		if _, err := os.Lstat(path); err == nil {
			break
		}
	}
	return path
}

func onBPFFS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
}

// lock waits for the directory's lock. It ends with the process.
func (d pinDir) lock() (unlock func(), err error) {
	fd, err := unix.Open(string(d), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open pin directory %q: %w", string(d), err)
	}
	for {
		err = unix.Flock(fd, unix.LOCK_EX)
		if err == nil {
			return func() { unix.Close(fd) }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			return nil, fmt.Errorf("lock pin directory %q: %w", string(d), err)
		}
	}
}

// stage makes an empty directory in which pins are collected until publish makes them real.
func (d pinDir) stage(name string) (string, error) {
	path := filepath.Join(string(d), stagedPrefix+name)
	if err := removeTree(path); err != nil {
		return "", err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", fmt.Errorf("stage pins: %w", err)
	}
	return path, nil
}

// publish gives a staged directory its name, in one step.
func publish(staged, path string) error {
	if err := os.Rename(staged, path); err != nil {
		return fmt.Errorf("publish pins: %w", err)
	}
	return nil
}

// removePod removes a pod's directory, first its name, so that there is never half a one.
func (d pinDir) removePod(uid string) error {
	staged := filepath.Join(string(d), stagedPrefix+stagedPod+escape(uid))
	if err := removeTree(staged); err != nil {
		return err
	}
	if err := os.Rename(d.pod(uid), staged); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("unpublish pins: %w", err)
	}
	return removeTree(staged)
}

// removeStaged removes what a crash left half built. Its links, known by no name, end with it.
func (d pinDir) removeStaged() error {
	left, err := filepath.Glob(filepath.Join(string(d), stagedPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list staged pins: %w", err)
	}
	var errs []error
	for _, path := range left {
		errs = append(errs, removeTree(path))
	}
	return errors.Join(errs...)
}

// removeTree removes a directory of pins, if it is there.
func removeTree(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

// uids returns the pods that have a directory.
func (d pinDir) uids() ([]string, error) {
	entries, err := os.ReadDir(d.pods())
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("list pinned pods: %w", err)
	}
	var out []string
	for _, e := range entries {
		if uid, ok := unescape(e.Name()); ok && e.IsDir() {
			out = append(out, uid)
		}
	}
	return out, nil
}

const hex = "0123456789abcdef"

// escape makes a UID a file name; the BPF file system allows no dots. Other bytes than letters, digits and dashes become
// _ and two hex digits.
func escape(uid string) string {
	var b strings.Builder
	for i := range len(uid) {
		c := uid[i]
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'_', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// unescape is the inverse of escape; false for names that escape does not make.
func unescape(name string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if name[i] != '_' {
			b.WriteByte(name[i])
			continue
		}
		if i+2 >= len(name) {
			return "", false
		}
		hi, lo := strings.IndexByte(hex, name[i+1]), strings.IndexByte(hex, name[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	uid := b.String()
	return uid, uid != "" && escape(uid) == name
}

// checkUID refuses UIDs that make no file name.
func checkUID(uid string) error {
	if n := len(escape(uid)); n == 0 || n+len(stagedPrefix+stagedPod) > 255 {
		return fmt.Errorf("name pod %q: %w", uid, unix.EINVAL)
	}
	return nil
}
