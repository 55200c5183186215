package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// Down removes every trace of the lab of that name, whether it runs, crashed or was never completely built; also one
// that another process runs. It needs no state but the name. It blocks until all is gone, or timeout has passed.
func Down(name string, timeout time.Duration) error {
	if err := ValidName(name); err != nil {
		return err
	}
	p := paths{name}
	stopSupervisor(p, timeout)
	var errs []error
	if err := killAll(p); err != nil {
		errs = append(errs, err)
	}
	if err := unmountBelow(p.dir()); err != nil {
		errs = append(errs, err)
	}
	names, err := p.namespaces()
	errs = append(errs, err)
	for _, n := range names {
		errs = append(errs, netns.Delete(n))
	}
	if root, err := cgroupRoot(); err == nil {
		errs = append(errs, removeCgroup(filepath.Join(root, p.cgroup())))
	}
	if err := errors.Join(errs...); err != nil {
		return err // the state directory stays, so that the lab is still listed
	}
	if err := os.RemoveAll(p.dir()); err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	os.Remove(p.supervisorLog())
	os.Remove(stateRoot) // the last one takes it away
	return nil
}

// stopSupervisor asks a supervisor outside of the lab's cgroup (a test, a demo) to let go. One inside is killed with
// the others.
func stopSupervisor(p paths, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), min(timeout, 5*time.Second))
	defer cancel()
	if c, err := Dial(p.lab); err == nil {
		c.release(ctx)
	}
}

// killAll ends the processes of the lab's cgroup, and those that somebody started in its namespaces by other means:
// they would keep the namespaces alive.
func killAll(p paths) error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	c := &cgroup{dir: filepath.Join(root, p.cgroup())}
	if err := c.leave(); err != nil {
		return err
	}
	if err := c.kill(); err != nil {
		return err
	}
	inodes := map[uint64]bool{}
	names, err := p.namespaces()
	if err != nil {
		return err
	}
	for _, n := range names {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(netnsDir, n), &st) == nil {
			inodes[st.Ino] = true
		}
	}
	if len(inodes) == 0 {
		return nil
	}
	return killInside(inodes)
}

func killInside(inodes map[uint64]bool) error {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, e := range procs {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns/net"), &st) == nil && inodes[st.Ino] {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
	}
	return nil
}

// unmountBelow takes away all mounts at or below dir, the deepest first.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	lines := strings.Split(string(b), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		if len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmount %s: %w", f[4], err)
			}
		}
	}
	return nil
}

// mountBPF gives the lab a bpffs of its own: its pins cannot meet another lab's and end with the mount.
func mountBPF(dir string) error {
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", dir, err)
	}
	return nil
}

// exists tells whether a path is there.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
