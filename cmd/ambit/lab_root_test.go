package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// TestMain makes the test binary the program itself when it is told so.
func TestMain(m *testing.M) {
	if os.Getenv("AMBIT_TEST_MAIN") != "" || len(os.Args) > 1 && os.Args[1] == "echo" {
		main()
	}
	os.Exit(m.Run())
}

func ambit(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "AMBIT_TEST_MAIN=1")
	return cmd
}

// run runs the program to its end and returns its output and exit status.
func run(t *testing.T, stdin string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := ambit(t, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

const manifests = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: echo, image: ambit/echo, readinessProbe: {tcpSocket: {port: 8080}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, command: [sh, -c, "echo hello; exec sleep infinity"], env: [{name: COLOUR, value: blue}]}]
`

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("AMBIT_ROOT_TESTS") == "off" {
		t.Skip("needs root: it makes network namespaces (make test-root)")
	}
}

func upLab(t *testing.T, name string) {
	t.Helper()
	requireRoot(t)
	file := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(file, []byte(manifests), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(name, time.Minute); err != nil {
			t.Error(err)
		}
	})
	if out, errOut, status := run(t, "", "lab", "up", "--no-mesh", "--name", name, "-f", file); status != 0 || out != "" || !strings.Contains(errOut, "lab "+name+" is up") {
		t.Fatalf("up: status %d, output %q, progress %q", status, out, errOut)
	}
}

func TestRootExecPassesInputOutputStatusAndSignals(t *testing.T) {
	upLab(t, "cliexec")
	out, errOut, status := run(t, "input", "lab", "exec", "--name", "cliexec", "client", "--", "sh", "-c", "cat; echo $COLOUR; hostname; echo oops >&2; exit 42")
	if out != "inputblue\nclient\n" || errOut != "oops\n" || status != 42 {
		t.Errorf("got %q, %q, %d", out, errOut, status)
	}
	cmd := ambit(t, "lab", "exec", "--name", "cliexec", "client", "--", "sh", "-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if _, err := pipe.Read(buf); err != nil { // ready
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n, _ := pipe.Read(buf)
	_ = cmd.Wait()
	if string(buf[:n]) != "got it\n" || cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("got %q, status %d, want the signal to arrive", buf[:n], cmd.ProcessState.ExitCode())
	}
}

func TestRootGetLogsNetnsApplyDelete(t *testing.T) {
	upLab(t, "cliget")
	expect := func(want []string, args ...string) {
		t.Helper()
		out, errOut, status := run(t, "", append([]string{"lab", "--name", "cliget"}, args...)...)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%v: got %q (%s), want %q in it", args, out, errOut, w)
			}
		}
		if status != 0 {
			t.Errorf("%v: status %d: %s", args, status, errOut)
		}
	}
	expect([]string{"NAME", "READY", "STATUS", "client", "1/1", "Running"}, "get", "pods")
	expect([]string{"NAMESPACE", "IP", "NODE", "10.244."}, "get", "pods", "-A", "-o", "wide")
	expect([]string{"node-1", "node-2", "172.30.0.11"}, "get", "nodes", "-o", "wide")
	expect([]string{"ClusterIP", "10.96.", "80/TCP"}, "get", "svc")
	expect([]string{"2/2"}, "get", "deploy", "web")
	expect([]string{`"kind": "Pod"`, `"podIP": "10.244.`}, "get", "pod", "client", "-o", "json")
	expect([]string{"kind: List", "name: client"}, "get", "pods", "-o", "yaml")
	expect([]string{"pod/client\n"}, "get", "pods", "-o", "name")
	expect([]string{"hello\n"}, "logs", "client")
	expect([]string{"ambit-cliget-pod-default.client\n"}, "netns", "client")
	expect([]string{"ambit-cliget-node-2\n"}, "netns", "node-2")
	expect([]string{"pod=web-", "path=/p"}, "exec", "client", "--", os.Args[0], "echo", "client", "http://web/p")

	_, errOut, status := run(t, "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {contaners: []}}", "lab", "apply", "--name", "cliget", "-f", "-")
	if status != 1 || !strings.Contains(errOut, "-:1: pod/default/x: spec.contaners: unknown field; accepted: containers") {
		t.Errorf("bad manifest: status %d, %q", status, errOut)
	}
	out, _, status := run(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}}", "lab", "apply", "--name", "cliget", "-f", "-")
	if status != 0 || out != "configmap/default/x created\n" {
		t.Errorf("apply: status %d, %q", status, out)
	}
	expect(nil, "delete", "configmap", "x")
	expect([]string{"No resources found."}, "get", "cm")
}

func TestExitStatusTellsUsageFromNoLab(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"lab", "get"}, 2, "usage: ambit lab get KIND"},
		{[]string{"lab", "get", "pots"}, 2, `unknown kind "pots"; accepted: Namespace, `},
		{[]string{"lab", "get", "pods", "-o", "xml"}, 2, `"xml" for "-o, --output" flag: accepted: table, wide, json, yaml, name`},
		{[]string{"lab", "up", "--nodes=x"}, 2, "--nodes"},
		{[]string{"lab", "get", "pods", "--name=none"}, 3, `lab "none": no such lab`},
		{[]string{"lab", "down", "--name=a-b"}, 1, `lab name "a-b": accepted: 1 to 12 lower-case letters and digits`},
		{[]string{"lab", "apply"}, 2, "accepted: -f FILE"},
	} {
		_, errOut, status := run(t, "", c.args...)
		if status != c.status || !strings.Contains(errOut, c.want) {
			t.Errorf("%v: status %d, %q, want %d with %q", c.args, status, errOut, c.status, c.want)
		}
	}
}

func TestRootKilledUpIsCleanedByDown(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "p.yaml")
	never := "{apiVersion: v1, kind: Pod, metadata: {name: never}, spec: {containers: [{name: c, image: ambit/echo, readinessProbe: {tcpSocket: {port: 1}}}]}}"
	if err := os.WriteFile(file, []byte(never), 0o644); err != nil {
		t.Fatal(err)
	}
	up := ambit(t, "lab", "up", "--no-mesh", "--name", "clikill", "-f", file)
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if c, err := lab.Dial("clikill"); err == nil {
			if objs, err := c.Objects(ctx, "pod", "default", ""); err == nil && len(objs) == 1 && bytes.Contains(objs[0], []byte(`"running"`)) {
				break
			}
		}
		if ctx.Err() != nil {
			t.Fatal("the pod did not start")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := up.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = up.Wait()
	if _, errOut, status := run(t, "", "lab", "down", "--name", "clikill"); status != 0 {
		t.Errorf("down: status %d: %s", status, errOut)
	}
	for _, pattern := range []string{"/run/netns/ambit-clikill-*", "/run/ambit-lab/clikill*", "/sys/fs/cgroup/*/ambit-lab-clikill", "/sys/fs/cgroup/ambit-lab-clikill"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func TestRootInterruptedUpLeavesNothing(t *testing.T) {
	requireRoot(t)
	file := filepath.Join(t.TempDir(), "p.yaml")
	never := "{apiVersion: v1, kind: Pod, metadata: {name: never}, spec: {containers: [{name: c, image: ambit/echo, readinessProbe: {tcpSocket: {port: 1}}}]}}"
	if err := os.WriteFile(file, []byte(never), 0o644); err != nil {
		t.Fatal(err)
	}
	up := ambit(t, "lab", "up", "--no-mesh", "--name", "cliint", "-f", file)
	progress, err := up.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	var seen []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(seen, []byte("waiting:")) {
		n, err := progress.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, seen)
		}
		seen = append(seen, buf[:n]...)
	}
	if err := up.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = up.Wait()
	if left, _ := filepath.Glob("/run/netns/ambit-cliint-*"); len(left) > 0 || up.ProcessState.ExitCode() == 0 {
		t.Errorf("left behind: %q, status %d", left, up.ProcessState.ExitCode())
	}
}
