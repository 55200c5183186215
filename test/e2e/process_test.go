package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one process of a program of the lab.
type process struct {
	pid   int
	pidfd int
}

// process finds the running process of the lab whose command line begins with the words, as the programs' do.
func (m *mesh) process(words ...string) process {
	m.t.Helper()
	a, err := m.c.Access(m.t.Context(), "", "node-1", "")
	if err != nil {
		m.t.Fatal(err)
	}
	pids, err := os.ReadFile(filepath.Join(a.Cgroup, "cgroup.procs"))
	if err != nil {
		m.t.Fatal(err)
	}
	for f := range strings.FieldsSeq(string(pids)) {
		line, _ := os.ReadFile("/proc/" + f + "/cmdline") // it may have ended
		if !strings.Contains(string(line), strings.Join(words, "\x00")) {
			continue
		}
		pid, _ := strconv.Atoi(f)
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			return process{pid, fd}
		}
	}
	m.t.Fatalf("no process %q runs in the lab", words)
	return process{}
}

// proxyOf is the running proxy of a node.
func (m *mesh) proxyOf(node string) process { m.t.Helper(); return m.process("proxy", "--node="+node) }

// fds is the number of the process's open descriptors.
func (p process) fds() int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		return -1
	}
	return len(entries)
}

// resident is the process's resident memory in MiB.
func (p process) resident() int {
	statm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.pid)) // it may have ended
	var size, pages int
	fmt.Sscan(string(statm), &size, &pages)
	return pages * os.Getpagesize() >> 20
}

// close releases what refers to the process.
func (p process) close() { unix.Close(p.pidfd) }

// kill sends SIGKILL and blocks until the process has ended, with all its descriptors closed. It says between which
// times the process died.
func (p process) kill() (died window, err error) {
	defer p.close()
	died.from = time.Now()
	if err := unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0); err != nil {
		return died, fmt.Errorf("kill %d: %w", p.pid, err)
	}
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 10_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		died.to = time.Now()
		if err == nil && n == 0 {
			err = errors.New("it does not end")
		}
		if err != nil {
			return died, fmt.Errorf("wait for %d: %w", p.pid, err)
		}
		return died, nil
	}
}

// usage is what a proxy holds.
type usage struct{ descriptors, residentMiB int }

func (m *mesh) usage() map[string]usage {
	m.t.Helper()
	out := map[string]usage{}
	for _, node := range []string{"node-1", "node-2"} {
		p := m.proxyOf(node)
		out[node] = usage{p.fds(), p.resident()}
		p.close()
	}
	return out
}

// What a proxy may hold more after a load than before it: descriptors and MiB.
const moreDescriptors, moreMemory = 32, 96

// settled waits until the nodes' proxies hold about as much as before the load.
func (m *mesh) settled(before map[string]usage) {
	m.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		fine, after := true, m.usage()
		for node, b := range before {
			a := after[node]
			fine = fine && a.descriptors >= 0 && a.descriptors <= b.descriptors+moreDescriptors && a.residentMiB <= b.residentMiB+moreMemory
		}
		if fine || time.Now().After(end) {
			if !fine {
				m.t.Error("the proxies do not give back what they took")
			}
			m.t.Logf("proxies before the load: %+v, after it: %+v", before, after)
			return
		}
	}
}
