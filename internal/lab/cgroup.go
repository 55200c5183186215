package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup is a group of cgroup v2 that holds processes of a lab. Processes are born into it, so none escapes between
// fork and bookkeeping.
type cgroup struct {
	dir string
	fd  *os.File
}

// cgroupRoot finds the cgroup2 mount: /sys/fs/cgroup, or .../unified where v1 is used beside it.
func cgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		for i := 6; i+1 < len(fields); i++ {
			if fields[i] == "-" && fields[i+1] == "cgroup2" {
				return fields[4], nil
			}
		}
	}
	return "", errors.New("no cgroup2 is mounted; accepted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

func createCgroup(name string) (*cgroup, error) {
	root, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	return openCgroup(filepath.Join(root, name))
}

func openCgroup(dir string) (*cgroup, error) {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create cgroup: %w", err)
	}
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_PATH, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return &cgroup{dir, f}, nil
}

// sub makes a group below, whose processes c.kill ends as well.
func (c *cgroup) sub(name string) (*cgroup, error) { return openCgroup(filepath.Join(c.dir, name)) }

// kill ends every process of the group and of those below, and waits until none is left. A nil group has none.
func (c *cgroup) kill() error {
	if c == nil {
		return nil
	}
	deadline := time.Now().Add(10 * time.Second)
	for wait := time.Millisecond; ; wait = min(wait*2, 50*time.Millisecond) {
		if err := os.WriteFile(filepath.Join(c.dir, "cgroup.kill"), []byte("1"), 0); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return fmt.Errorf("kill cgroup: %w", err)
		}
		if !c.populated() {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of %s do not end", c.dir)
		}
		time.Sleep(wait)
	}
}

func (c *cgroup) populated() bool {
	b, err := os.ReadFile(filepath.Join(c.dir, "cgroup.events"))
	return err == nil && strings.Contains(string(b), "populated 1")
}

// remove takes away the group and those below; they must hold no process.
func (c *cgroup) remove() error {
	if c == nil {
		return nil
	}
	c.fd.Close()
	return removeCgroup(c.dir)
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// The kernel may still be letting go of the last process.
	for range 100 {
		if err = unix.Rmdir(dir); err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup %s: %w", dir, err)
}

// join moves the calling process into the group.
func (c *cgroup) join() error {
	if err := os.WriteFile(filepath.Join(c.dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// leave moves the calling process out of the group, if it is in it or below.
func (c *cgroup) leave() error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return fmt.Errorf("find own cgroup: %w", err)
	}
	rel := strings.TrimPrefix(c.dir, root)
	for line := range strings.Lines(string(b)) {
		if own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && (own == rel || strings.HasPrefix(own, rel+"/")) {
			return (&cgroup{dir: root}).join()
		}
	}
	return nil
}

// StartSupervisor starts cmd as the supervisor of the named lab: in the lab's cgroup, so that Down finds it, and with a
// log of its own, which is returned open; the caller closes it.
func StartSupervisor(name string, cmd *exec.Cmd) (log *os.File, err error) {
	if err := ValidName(name); err != nil {
		return nil, err
	}
	p := paths{name}
	if exists(p.dir()) {
		return nil, p.errExists()
	}
	if err := os.MkdirAll(stateRoot, 0o755); err != nil {
		return nil, fmt.Errorf("create state: %w", err)
	}
	f, err := os.Create(p.supervisorLog())
	if err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	cg, err := createCgroup(p.cgroup())
	if err != nil {
		return nil, err
	}
	defer cg.fd.Close()
	cmd.Stderr = f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(cg.fd.Fd())}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	return f, nil
}
