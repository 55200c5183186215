package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// spaces are the namespaces that a process is started in. Nil ones are the supervisor's own.
type spaces struct {
	net           *netNS
	mnt, uts, ipc *os.File
}

// enter moves the calling thread into the namespaces. The thread must be locked and never be unlocked again.
func (s spaces) enter() error {
	if s.mnt != nil {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare file system attributes: %w", err)
		}
	}
	var fds []int
	for _, f := range []*os.File{s.mnt, s.uts, s.ipc} {
		if f != nil {
			fds = append(fds, int(f.Fd()))
		}
	}
	if s.net != nil {
		fds = append(fds, s.net.FD())
	}
	for _, fd := range fds {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
	}
	return nil
}

// start starts the command inside of the namespaces and of the cgroup, in a session of its own if it has no
// SysProcAttr yet. The thread that did it ends, so cmd must not ask for Pdeathsig.
func (s spaces) start(cmd *exec.Cmd, cg *cgroup) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	cmd.SysProcAttr.UseCgroupFD = true
	cmd.SysProcAttr.CgroupFD = int(cg.fd.Fd())
	return onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// onThread runs f on a thread of its own, which ends with it and so may be left in any namespace. The process's first
// thread never ends: if it is the one, it is held while another one does the work.
func onThread(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			errc <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		errc <- f()
	}()
	return <-errc
}

func (s *spaces) Close() {
	for _, f := range []io.Closer{s.net, s.mnt, s.uts, s.ipc} {
		f.Close()
	}
}

// bindFile is a file of the lab that a pod sees in place of the machine's.
type bindFile struct{ from, to string }

// newSpaces makes mount, UTS and IPC namespaces of a pod. Inside, /sys is the pod's own (its interfaces, and no way to
// cgroups and BPF pins), /run/netns is out of sight, and files are bound over the machine's.
func newSpaces(netns *netNS, hostname string, files []bindFile) (*spaces, error) {
	s := &spaces{net: netns}
	if err := onThread(func() error { return s.build(hostname, files) }); err != nil {
		return nil, fmt.Errorf("build namespaces of %s: %w", hostname, err)
	}
	return s, nil
}

func (s *spaces) build(hostname string, files []bindFile) error {
	if err := unix.Setns(s.net.FD(), unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC); err != nil {
		return err
	}
	// Slave: what the machine unmounts goes away here too, what is mounted here stays here.
	if err := unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{netnsDir, "/sys"} {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for _, f := range files {
		if !exists(f.to) {
			continue
		}
		to, err := filepath.EvalSymlinks(f.to)
		if err != nil {
			continue
		}
		if err := unix.Mount(f.from, to, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", f.to, err)
		}
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	var err error
	for name, to := range map[string]**os.File{"mnt": &s.mnt, "uts": &s.uts, "ipc": &s.ipc} {
		if *to, err = os.Open("/proc/thread-self/ns/" + name); err != nil {
			return err
		}
	}
	return nil
}
