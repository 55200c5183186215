//go:build linux

package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// rootCgroupID is the inode number of the real root of cgroup v2. Inside of a cgroup namespace "/" is another directory.
const rootCgroupID = 1

// connectHooks are the links of a node.
var connectHooks = []struct {
	pin    string
	attach ebpf.AttachType
	prog   func(*connectPrograms) *ebpf.Program
}{
	{"connect4", ebpf.AttachCGroupInet4Connect, func(p *connectPrograms) *ebpf.Program { return p.Connect4 }},
	{"connect6", ebpf.AttachCGroupInet6Connect, func(p *connectPrograms) *ebpf.Program { return p.Connect6 }},
}

// openConnect loads connect.c with the pinned maps, if there are any, and attaches or updates the links.
func (n *Node) openConnect() (err error) {
	spec, err := loadConnect()
	if err != nil {
		return fmt.Errorf("read connect program: %w", err)
	}
	if err := errors.Join(spec.Variables[connectVarMark].Set(n.cfg.Mark), spec.Variables[connectVarMarkMask].Set(n.cfg.Mask)); err != nil {
		return fmt.Errorf("set mark: %w", err)
	}
	reuse := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range reuse {
			m.Close() // the collection has descriptors of its own
		}
	}()
	for _, name := range []string{connectMapEnrolled, connectMapExempt} {
		m, err := ebpf.LoadPinnedMap(n.dir.node(name), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open pinned map %q: %w", name, err)
		}
		reuse[name] = m
	}
	var objs connectObjects
	if err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: reuse}); err != nil {
		return fmt.Errorf("load connect programs: %w", err)
	}
	defer objs.connectPrograms.Close() // the links hold them
	cg, err := openCgroup(n.cfg.Cgroup)
	if err == nil {
		defer cg.Close()
		err = n.pinConnect(&objs, cg, len(reuse) == 2)
	}
	if err != nil {
		objs.connectMaps.Close()
		return err
	}
	n.maps = objs.connectMaps
	return nil
}

// pinConnect brings the node directory up to date. A new one is built aside: until it has its name nothing is enrolled, so
// that programs attached by then do nothing.
func (n *Node) pinConnect(objs *connectObjects, cg *os.File, exists bool) error {
	dir := n.dir.node("")
	if !exists {
		// A directory without its maps is of no use: nothing can be enrolled by it.
		if err := removeTree(dir); err != nil {
			return err
		}
		staged, err := n.dir.stage("node")
		if err != nil {
			return err
		}
		defer func() { _ = removeTree(staged) }() // gone after publish
		for name, m := range map[string]*ebpf.Map{connectMapEnrolled: objs.Enrolled, connectMapExempt: objs.Exempt} {
			if err := m.Pin(staged + "/" + name); err != nil {
				return fmt.Errorf("pin map %q: %w", name, err)
			}
		}
		if err := attachConnect(staged, &objs.connectPrograms, cg); err != nil {
			return err
		}
		return publish(staged, dir)
	}
	return attachConnect(dir, &objs.connectPrograms, cg)
}

// updateHook gives a pinned link another program. One that is missing, or ended with its cgroup, is no error.
func updateHook(pin string, prog *ebpf.Program) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link: %w", err)
	}
	defer l.Close()
	if cgroupOf(l) == 0 {
		return nil
	}
	return l.Update(prog)
}

func attachConnect(dir string, progs *connectPrograms, cg *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(cg.Fd()), &st); err != nil {
		return fmt.Errorf("stat cgroup: %w", err)
	}
	for _, h := range connectHooks {
		if err := attachHook(dir+"/"+h.pin, h.attach, h.prog(progs), cg, st.Ino); err != nil {
			return fmt.Errorf("attach %s: %w", h.pin, err)
		}
	}
	return nil
}

// attachHook updates the pinned link, or makes a new one if there is none or it ended with its cgroup.
func attachHook(pin string, attach ebpf.AttachType, prog *ebpf.Program, cg *os.File, id uint64) error {
	old, err := link.LoadPinnedLink(pin, nil)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return fmt.Errorf("open pinned link: %w", err)
	default:
		defer old.Close()
		if cgroupOf(old) == id {
			return old.Update(prog)
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: fdPath(cg), Attach: attach, Program: prog})
	if err != nil {
		return err
	}
	defer l.Close()
	// From here to Pin a crash leaves the old link, on its old cgroup, or none; the next Open comes here again.
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return l.Pin(pin)
}

// cgroupOf returns the id of the cgroup that a link is attached to; 0 if it is none.
func cgroupOf(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil || info.Cgroup() == nil {
		return 0
	}
	return info.Cgroup().CgroupId
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// openCgroup opens the given directory, or the real root of cgroup v2: where it is mounted, or a mount of our own without
// a place in the file system. On machines with cgroup v1 only, all processes are in the root of v2.
func openCgroup(path string) (*os.File, error) {
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open cgroup: %w", err)
		}
		return f, nil
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup v2: %w", err)
	}
	defer mounts.Close()
	for s := bufio.NewScanner(mounts); s.Scan(); {
		// 36 35 98:0 /root /mount/point options [tags] - type source options
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || !strings.HasPrefix(after, "cgroup2 ") || len(fields) < 5 {
			continue
		}
		if f, err := os.Open(fields[4]); err == nil {
			if isRootCgroup(f) {
				return f, nil
			}
			f.Close()
		}
	}
	return mountCgroup()
}

func isRootCgroup(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Ino == rootCgroupID
}

// inHostCgroups runs f on a thread that sees cgroups as the machine's first process does, if we may.
func inHostCgroups(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in the foreign cgroup namespace
		if ns, err := os.Open("/proc/1/ns/cgroup"); err == nil {
			_ = unix.Setns(int(ns.Fd()), unix.CLONE_NEWCGROUP)
			ns.Close()
		}
		done <- f()
	}()
	return <-done
}

// mountCgroup mounts cgroup v2 as the machine's first process sees it.
func mountCgroup() (f *os.File, err error) {
	err = inHostCgroups(func() error {
		f, err = mountCgroupHere()
		return err
	})
	return f, err
}

func mountCgroupHere() (*os.File, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open cgroup v2: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make cgroup v2: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup v2: %w", err)
	}
	defer unix.Close(mnt)
	fd, err := unix.Openat(mnt, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root of cgroup v2: %w", err)
	}
	f := os.NewFile(uintptr(fd), "cgroup2")
	if !isRootCgroup(f) {
		f.Close()
		return nil, errors.New("find root of cgroup v2: only a part of it is visible here (use the host's cgroup namespace or mount, and Config.Cgroup)")
	}
	return f, nil
}
