// Package scale tests the control plane and the node proxies with 10,000 workloads and 1,000 services: what a change
// costs, what a restart costs, and what both take of memory and CPU. The control plane is always the real program, a
// process that can be killed; the proxies are the real program, or its xDS client and workload store in this process.
//
// With AMBIT_SOAK=1 in the environment the tests do more of the same and log the figures that docs/scale.md has. No test
// fails because of a time.
package scale

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// The mesh of the tests.
const (
	manyPods     = 10000
	manyServices = 1000
)

// soak says whether the long forms are to run.
func soak() bool { return slices.Contains(os.Environ(), "AMBIT_SOAK=1") }

// amount is n, or long when the long forms are to run.
func amount(n, long int) int {
	if soak() {
		return long
	}
	return n
}

// binDir has the programs.
var binDir string

func TestMain(m *testing.M) {
	code, err := withPrograms(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// withPrograms runs f with binDir set: AMBIT_BIN_DIR's, or one with programs built for this run.
func withPrograms(f func() int) (int, error) {
	for _, e := range os.Environ() {
		if dir, ok := cutEnv(e, "AMBIT_BIN_DIR"); ok && dir != "" {
			binDir = dir
			return f(), nil
		}
	}
	dir, err := os.MkdirTemp("", "ambit-scale-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "./cmd/controlplane", "./cmd/ztunnel", "./cmd/waypoint")
	build.Dir = filepath.Join("..", "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build programs: %w\n%s", err, out)
	}
	binDir = dir
	return f(), nil
}

func cutEnv(entry, name string) (string, bool) {
	if len(entry) > len(name) && entry[:len(name)] == name && entry[len(name)] == '=' {
		return entry[len(name)+1:], true
	}
	return "", false
}

// quantile is the value below which a share q of the times lies.
func quantile(times []time.Duration, q float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))].Round(100 * time.Microsecond)
}

// within is how long anything that must happen may take; a test that waits longer fails.
const within = time.Minute
