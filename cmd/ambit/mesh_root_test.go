package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/ambit-mesh/ambit/internal/lab"
	"golang.org/x/sys/unix"
)

// buildMesh builds the programs that a lab starts, unless AMBIT_BIN_DIR has them.
func buildMesh(t *testing.T) (ztunnel, controlplane string) {
	t.Helper()
	if dir := os.Getenv("AMBIT_BIN_DIR"); dir != "" {
		return filepath.Join(dir, "ztunnel"), filepath.Join(dir, "controlplane")
	}
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir, "../ztunnel", "../controlplane")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return filepath.Join(dir, "ztunnel"), filepath.Join(dir, "controlplane")
}

// bpfIDs lists the BPF programs, maps and links of the machine.
func bpfIDs(t *testing.T) (out []string) {
	t.Helper()
	for name, next := range map[string]uintptr{"program": unix.BPF_PROG_GET_NEXT_ID, "map": unix.BPF_MAP_GET_NEXT_ID, "link": unix.BPF_LINK_GET_NEXT_ID} {
		attr := struct{ start, next, flags uint32 }{}
		for {
			_, _, errno := unix.Syscall(unix.SYS_BPF, next, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
			if errors.Is(errno, unix.ENOENT) {
				break
			}
			if errno != 0 {
				t.Fatalf("list BPF objects: %v", errno)
			}
			out = append(out, fmt.Sprint(name, " ", attr.next))
			attr.start = attr.next
		}
	}
	return out
}

func minus(a, b []string) (out []string) {
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	return out
}

// Point 2 of the mesh's promise: no BPF object outlives the lab, however it ended.
func TestRootDownLeavesNoBPFObject(t *testing.T) {
	requireRoot(t)
	ztunnel, controlplane := buildMesh(t)
	for name, crash := range map[string]bool{"bpfdown": false, "bpfkill": true} {
		t.Run(name, func(t *testing.T) {
			before := bpfIDs(t)
			t.Cleanup(func() { _ = lab.Down(name, time.Minute) })
			_, errOut, status := run(t, "", "lab", "up", "--name", name, "--ztunnel", ztunnel, "--controlplane", controlplane,
				"-f", "../../deploy/examples/demo/start", "-f", "../../deploy/examples/demo/enroll.yaml")
			if status != 0 {
				t.Fatalf("up: status %d: %s", status, errOut)
			}
			out, _, _ := run(t, "", "lab", "--name", name, "get", "pods", "-n", "shop", "-o", "wide")
			if strings.Count(out, "captured") != 2 {
				t.Fatalf("pods are not captured:\n%s", out)
			}
			made := minus(bpfIDs(t), before)
			if len(made) < 6 {
				t.Fatalf("the comparison is blind: the lab made %q", made)
			}
			if crash {
				killSupervisor(t, name)
			}
			if _, errOut, status := run(t, "", "lab", "down", "--name", name); status != 0 {
				t.Fatalf("down: status %d: %s", status, errOut)
			}
			// The kernel frees them a little later.
			var left []string
			for range 200 {
				held := heldBPF() // by another lab or test: all processes of this one have ended
				left = slices.DeleteFunc(minus(made, minus(made, bpfIDs(t))), func(x string) bool { return held["bpf "+x] })
				if len(left) == 0 {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Errorf("left behind: %q", left)
		})
	}
}

func killSupervisor(t *testing.T, name string) {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range dirs {
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b), "\x00supervise\x00--name="+name+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("no supervisor found")
}
