package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// built is the directory of programs that were built for this run.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// program is the path of one of the mesh's programs: in AMBIT_BIN_DIR, or built once for all tests.
func program(t *testing.T, name string) string {
	t.Helper()
	if dir := os.Getenv("AMBIT_BIN_DIR"); dir != "" {
		return filepath.Join(dir, name)
	}
	built.once.Do(func() { built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

func build() (err error) {
	if built.dir, err = os.MkdirTemp("", "ambit-e2e-"); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", built.dir, "./cmd/...")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build programs: %w\n%s", err, out)
	}
	return nil
}

// soak tells whether the full forms are asked for.
func soak() bool { return os.Getenv("AMBIT_SOAK") == "1" }

// pick is the short or the full form of a number.
func pick[T any](short, full T) T {
	if soak() {
		return full
	}
	return short
}
