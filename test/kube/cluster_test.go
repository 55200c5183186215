package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience is how long a test waits for something that has no reason to take so long.
const patience = 30 * time.Second

// requireCluster skips a test without a cluster.
func requireCluster(t *testing.T) {
	t.Helper()
	if os.Getenv("KUBECONFIG") == "" {
		t.Skip("KUBECONFIG does not name a cluster (make kube-up starts one)")
	}
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("no kubectl in PATH (eval \"$(test/kube/cluster env)\")")
	}
}

// kubectl runs kubectl with some input and returns its output.
func kubectl(ctx context.Context, input string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, "kubectl", args...)
	c.Stdin = strings.NewReader(input)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// kubectlBoth returns what kubectl writes to both its outputs.
func kubectlBoth(t *testing.T, input string, args ...string) (string, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "kubectl", args...)
	c.Stdin = strings.NewReader(input)
	out, err := c.CombinedOutput()
	return string(out), err
}

func must(t *testing.T, input string, args ...string) string {
	t.Helper()
	out, err := kubectl(t.Context(), input, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func apply(t *testing.T, manifest string) { t.Helper(); must(t, manifest, "apply", "-f", "-") }

// eventually waits until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	eventuallyWithin(t, patience, what, check)
}

func eventuallyWithin(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		if err = check(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s: %v", what, err)
}

// program is the path of one of our programs: that of AMBIT_BIN_DIR, else it is built.
func program(t *testing.T, name string) string {
	t.Helper()
	if dir := os.Getenv("AMBIT_BIN_DIR"); dir != "" {
		return filepath.Join(dir, name)
	}
	out := filepath.Join(t.TempDir(), name)
	build := exec.CommandContext(t.Context(), "go", "build", "-o", out, "github.com/ambit-mesh/ambit/cmd/"+name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, text)
	}
	return out
}

// replica is a control plane outside the cluster, which works from its API server.
type replica struct {
	xds, admin string
	cmd        *exec.Cmd
	log        string // file
}

func startReplica(t *testing.T, bin, name, rootNamespace string) *replica {
	t.Helper()
	r := &replica{xds: freePort(t), admin: freePort(t), log: filepath.Join(t.TempDir(), name+".log")}
	log, err := os.Create(r.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r.cmd = exec.Command(bin, "--kubeconfig="+os.Getenv("KUBECONFIG"), "--replica-name="+name, "--root-namespace="+rootNamespace,
		"--listen="+r.xds, "--admin-address="+r.admin)
	r.cmd.Stderr = log
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.kill()
		if t.Failed() {
			text, _ := os.ReadFile(r.log)
			t.Logf("log of %s:\n%s", name, text)
		}
	})
	eventually(t, name+" is ready", func() error { _, err := r.get("/ready"); return err })
	return r
}

// kill ends a replica without a chance to give back its lease. It may be called twice.
func (r *replica) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

func (r *replica) get(path string) (string, error) {
	resp, err := http.Get("http://" + r.admin + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// freePort is a loopback address that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
