package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// trace is what may be left on a machine, a line each, with its kind in front.
type trace map[string]bool

// traces lists namespaces, links, addresses, rules, routes, BPF objects, pins, mounts, control groups, files and processes
// of the machine; of the last three those that have the lab's name.
func traces(t *testing.T, lab string) trace {
	t.Helper()
	tr := trace{}
	add := func(kind string, parts ...any) { tr[kind+" "+strings.TrimSpace(fmt.Sprintln(parts...))] = true }
	for _, id := range bpfIDs(t) {
		add("bpf", id)
	}
	names, err := filepath.Glob("/run/netns/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		add("namespace", n)
	}
	tr.links(t, add)
	tr.mounts(t, add)
	tr.files(t, lab, add)
	tr.processes(t, lab, add)
	return tr
}

// links are those of the calling process's namespace, with addresses, routes and rules.
func (trace) links(t *testing.T, add func(string, ...any)) {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		addrs, _ := l.Addrs()
		add("link", l.Index, l.Name, addrs)
	}
	const newRule, getRule = 32, 34 // RTM_NEWRULE, RTM_GETRULE
	for _, q := range []struct {
		kind     string
		ask, got int
	}{{"route", syscall.RTM_GETROUTE, syscall.RTM_NEWROUTE}, {"rule", getRule, newRule}} {
		b, err := syscall.NetlinkRIB(q.ask, syscall.AF_UNSPEC)
		if err != nil {
			t.Fatal(err)
		}
		msgs, err := syscall.ParseNetlinkMessage(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			if int(m.Header.Type) == q.got {
				add(q.kind, describe(m.Data))
			}
		}
	}
}

// describe is a route or rule without what changes by itself (RTA_CACHEINFO). Both have a header of 12 bytes and then
// attributes: length and type, 16 bits each, padded to 4 bytes.
func describe(b []byte) string {
	const header, cacheInfo = 12, 12
	out := hex.EncodeToString(b[:header])
	for b = b[header:]; len(b) >= unix.SizeofNlAttr; {
		n, typ := int(b[0])|int(b[1])<<8, int(b[2])|int(b[3])<<8
		if n < unix.SizeofNlAttr || n > len(b) {
			break
		}
		if typ != cacheInfo {
			out += fmt.Sprintf(" %d=%x", typ, b[unix.SizeofNlAttr:n])
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return out
}

// mounts are all mounts, and the pins in those that are a BPF file system.
func (trace) mounts(t *testing.T, add func(string, ...any)) {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		head, tail, _ := strings.Cut(s.Text(), " - ")
		w, kind := strings.Fields(head), strings.Fields(tail)
		if len(w) < 5 || len(kind) == 0 {
			continue
		}
		add("mount", w[3], w[4], kind[0])
		if kind[0] != "bpf" {
			continue
		}
		_ = filepath.WalkDir(w[4], func(path string, d fs.DirEntry, err error) error {
			if err == nil && path != w[4] {
				add("pin", path)
			}
			return nil
		})
	}
}

// files are control groups and state.
func (trace) files(t *testing.T, lab string, add func(string, ...any)) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/run"} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil
			case path == "/run/netns":
				return fs.SkipDir
			case strings.Contains(path, "ambit-lab-"+lab) || strings.HasPrefix(path, "/run/ambit-lab/"+lab):
				add("file", path)
				if d.IsDir() {
					return fs.SkipDir
				}
			}
			return nil
		})
	}
}

// processes are those of the lab: by their control group, their words or the namespaces they are in.
func (trace) processes(t *testing.T, lab string, add func(string, ...any)) {
	t.Helper()
	spaces := map[uint64]bool{}
	names, _ := filepath.Glob("/run/netns/ambit-" + lab + "-*")
	for _, n := range names {
		var st unix.Stat_t
		if unix.Stat(n, &st) == nil {
			spaces[st.Ino] = true
		}
	}
	eachProcess(func(pid int, dir string) {
		cmd, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		group, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		var st unix.Stat_t
		inside := unix.Stat(filepath.Join(dir, "ns/net"), &st) == nil && spaces[st.Ino]
		words := strings.Split(string(cmd), "\x00")
		named := strings.Contains(string(cmd), "/ambit-lab/"+lab+"/")
		for _, w := range words {
			named = named || w == "--name="+lab
		}
		if inside || named && pid != os.Getpid() || strings.Contains(string(group), "ambit-lab-"+lab) {
			add("process", pid, words)
		}
	})
}

func eachProcess(f func(pid int, dir string)) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			f(pid, dir)
		}
	}
}

// heldBPF are the BPF objects that a process of now has open, as bpfIDs names them.
func heldBPF() map[string]bool {
	held := map[string]bool{}
	eachProcess(func(_ int, dir string) {
		infos, _ := filepath.Glob(filepath.Join(dir, "fdinfo/*"))
		for _, f := range infos {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(b)) {
				for word, kind := range map[string]string{"prog_id:": "program", "map_id:": "map", "link_id:": "link"} {
					if id, ok := strings.CutPrefix(line, word); ok {
						held["bpf "+kind+" "+strings.TrimSpace(id)] = true
					}
				}
			}
		}
	})
	return held
}

// left is what is there now, was not there before, and is not of another lab or test that runs at the same time: those
// have other names, and their BPF objects are in the hands of a process.
func (before trace) left(t *testing.T, lab string) (out []string) {
	t.Helper()
	var held map[string]bool
	for x := range traces(t, lab) {
		kind, _, _ := strings.Cut(x, " ")
		switch {
		case before[x]:
			continue
		case kind == "bpf":
			if held == nil {
				held = heldBPF()
			}
			if held[x] {
				continue
			}
		case kind == "namespace", kind == "mount", kind == "pin":
			if !strings.Contains(x, lab) {
				continue
			}
		}
		out = append(out, x)
	}
	return out
}
