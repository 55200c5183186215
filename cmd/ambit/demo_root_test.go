package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

const demoManifests = "../../deploy/examples/demo"

// demoLeaves runs a part of the demo, and compares the machine before and after. wait is in the output when the demo is to be
// interrupted; "" never.
func demoLeaves(t *testing.T, name, wait string, args ...string) (out string, status int) {
	t.Helper()
	requireRoot(t)
	ztunnel, controlplane := buildMesh(t)
	if err := lab.Down(name, time.Minute); err != nil { // of a run that was killed
		t.Fatal(err)
	}
	before := traces(t, name)
	t.Cleanup(func() { _ = lab.Down(name, time.Minute) })
	cmd := ambit(t, append([]string{"lab", "demo", "--name", name, "--ztunnel", ztunnel, "--controlplane", controlplane}, args...)...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen []byte
	buf := make([]byte, 4096)
	for told := wait == ""; ; {
		n, err := pipe.Read(buf)
		seen = append(seen, buf[:n]...)
		if !told && bytes.Contains(seen, []byte(wait)) {
			told = true
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			break
		}
	}
	_ = cmd.Wait()
	t.Logf("status %d\n%s%s", cmd.ProcessState.ExitCode(), seen, errOut.String())
	var left []string
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) { // the kernel frees BPF objects a little later
		if left = before.left(t, name); len(left) == 0 {
			return string(seen), cmd.ProcessState.ExitCode()
		}
		if time.Now().After(end) {
			slices.Sort(left)
			t.Fatalf("left behind:\n%s", strings.Join(left, "\n"))
		}
	}
}

func TestRootAnInterruptedDemoLeavesNothing(t *testing.T) {
	out, status := demoLeaves(t, "demoint", "\n2. ", "--manifests", demoManifests)
	if status == 0 || !strings.Contains(out, "interrupted") || strings.Contains(out, "\n3. ") {
		t.Errorf("status %d", status)
	}
}

func TestRootADemoWithAClaimThatDoesNotHoldExitsWithOne(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(demoManifests)); err != nil {
		t.Fatal(err)
	}
	label, err := os.ReadFile(filepath.Join(dir, "enroll.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// The shop is in the mesh from the start, so the first claim, which wants plaintext, is wrong.
	file := filepath.Join(dir, "start", "namespaces.yaml")
	if err := os.WriteFile(file, append([]byte("{apiVersion: v1, kind: Namespace, metadata: {name: outside}}\n---\n"), label...), 0o644); err != nil {
		t.Fatal(err)
	}
	out, status := demoLeaves(t, "demofail", "", "--manifests", dir, "--claims=1")
	if status != 1 || !strings.Contains(out, "FAIL: ") || !strings.Contains(out, "0 of 1 claims hold") {
		t.Errorf("status %d", status)
	}
}
