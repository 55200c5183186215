package nodepods

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/procfs"
)

// Running describes a running pod whose network namespace is looked for.
type Running struct {
	// UID is the pod's.
	UID string
	// Containers are the identifiers of its containers, as the runtime has them.
	Containers []string
	// Addresses are the pod's: its namespace has one of them.
	Addresses []netip.Addr
}

// separators stand in a cgroup's name where the pod's UID has a dash, or nothing.
var separators = regexp.MustCompile(`[-_:.]`)

// NewFinder returns a function that finds the network namespace of a pod by its processes: the cgroup of such a process names
// the pod or one of its containers. proc is the host's /proc. addrs are the addresses in a namespace: one without any of the
// pod's is not the pod's, whoever is in it. Of several namespaces the one of the oldest process counts: that is the pod's
// own sandbox, not a process which happens to look into another pod. The path is that of the process.
func NewFinder(proc string, addrs func(path string) ([]netip.Addr, error)) func(Running) (string, error) {
	return func(r Running) (string, error) {
		list, err := os.ReadDir(proc)
		if err != nil {
			return "", fmt.Errorf("list processes: %w", err)
		}
		uid := separators.ReplaceAllString(r.UID, "")
		best, age, foreign := "", uint64(0), 0
		seen := map[uint64]bool{} // namespaces
		for _, e := range list {
			dir := filepath.Join(proc, e.Name())
			if _, err := strconv.Atoi(e.Name()); err != nil || !r.owns(dir, uid) {
				continue
			}
			stat, err := procfs.ReadStat(dir)
			path := filepath.Join(dir, "ns/net")
			if err != nil || best != "" && stat.Started >= age {
				continue
			}
			if !slices.ContainsFunc(addrsOf(addrs, path), func(a netip.Addr) bool { return slices.Contains(r.Addresses, a) }) {
				if id, err := inode(path); err == nil && !seen[id] {
					seen[id] = true
					foreign++
				}
				continue
			}
			best, age = path, stat.Started
		}
		switch {
		case best != "":
			return best, nil
		case foreign > 0:
			return "", fmt.Errorf("none of the %d network namespaces of its processes has an address of the pod (%v)", foreign, r.Addresses)
		}
		return "", fmt.Errorf("no process on the node belongs to the pod (its UID and its %d containers were looked for in the cgroups of all processes)",
			len(r.Containers))
	}
}

func addrsOf(addrs func(string) ([]netip.Addr, error), path string) []netip.Addr {
	list, err := addrs(path)
	if err != nil {
		return nil // the process has ended
	}
	return list
}

// owns says whether the cgroup of a process names the pod.
func (r *Running) owns(dir, uid string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return false
	}
	if uid != "" && bytes.Contains(separators.ReplaceAll(b, nil), []byte(uid)) {
		return true
	}
	return slices.ContainsFunc(r.Containers, func(id string) bool { return id != "" && bytes.Contains(b, []byte(id)) })
}

func inode(path string) (uint64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino, nil
	}
	return 0, fs.ErrInvalid
}
