package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/echo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// TestMain makes the test binary serve as the image ambit/echo and as a supervisor, by its first argument.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "echo":
			err := echo.Serve(context.Background(), echo.ServerConfig{Pod: os.Getenv("POD_NAME"), Namespace: os.Getenv("POD_NAMESPACE")})
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		case "ask":
			sum, err := echo.Run(context.Background(), echo.ClientConfig{URL: os.Args[2], Fresh: true, Timeout: 5 * time.Second})
			if err == nil && sum.Failed > 0 {
				err = fmt.Errorf("%v", sum.Errors)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Print(sum.First)
			os.Exit(0)
		case "fake":
			if err := fakeProgram(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "supervise":
			l, err := Up(context.Background(), testOptions(os.Args[2]))
			if err == nil {
				_, err = l.Client().Apply(context.Background(), File{Name: "test", Data: []byte(twoPods)})
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println("up")
			<-l.Ended()
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("AMBIT_ROOT_TESTS") == "off" {
		t.Skip("needs root: it makes network namespaces (make test-root)")
	}
}

func testOptions(name string) Options {
	self, _ := os.Executable()
	return Options{Name: name, NoMesh: true, Programs: Programs{Echo: []string{self, "echo"}}}
}

const twoPods = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: ambit/echo
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    command: [sleep, infinity]
    env:
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: GREETING, value: "I am $(IP)"}
`

func upTest(t *testing.T, name, manifests string) *Client {
	t.Helper()
	requireRoot(t)
	l, err := Up(t.Context(), testOptions(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	c := l.Client()
	apply(t, c, manifests)
	return c
}

func apply(t *testing.T, c *Client, manifests string) {
	t.Helper()
	if err := c.ApplyYAML(t.Context(), manifests); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.WaitReady(ctx, nil); err != nil {
		t.Fatal(err)
	}
}

func ask(t *testing.T, c *Client, url string) (string, error) {
	t.Helper()
	self, _ := os.Executable()
	return c.Run(t.Context(), "shop", "client", self, "ask", url)
}

func TestRootServicesAreReachedByNameOverBothFamilies(t *testing.T) {
	c := upTest(t, "labtest", twoPods)
	pods := map[string]bool{}
	for range 30 {
		out, err := ask(t, c, "http://web/")
		if err != nil {
			t.Fatal(err)
		}
		pods[strings.SplitN(out, "\n", 2)[0]] = true
	}
	if len(pods) != 2 {
		t.Errorf("30 connections reached %v, want both pods", pods)
	}
	svc := object1[struct{ Spec struct{ ClusterIPs []string } }](t, c, "svc", "shop", "web")
	for _, ip := range svc.Spec.ClusterIPs {
		host := ip
		if strings.Contains(ip, ":") {
			host = "[" + ip + "]"
		}
		if out, err := ask(t, c, "http://"+host+"/x"); err != nil || !strings.Contains(out, "path=/x") {
			t.Errorf("by %s: got %q, %v", ip, out, err)
		}
	}
	if out, err := ask(t, c, "http://web:81/"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("undeclared port: got %q, %v, want a refusal", out, err)
	}
	apply(t, c, strings.Replace(twoPods, "replicas: 2", "replicas: 0", 1))
	waitFor(t, "the last endpoint to go", func() bool { _, err := ask(t, c, "http://web/"); return err != nil })
}

// object1 gets one object.
func object1[T any](t *testing.T, c *Client, kind, ns, name string) (out T) {
	t.Helper()
	objs, err := c.Objects(t.Context(), kind, ns, name)
	if err == nil {
		err = json.Unmarshal(objs[0], &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestRootContainersGetTheirEnvironmentAndNames(t *testing.T) {
	c := upTest(t, "labtest", twoPods)
	out, err := c.Run(t.Context(), "shop", "client", "sh", "-c", "echo $GREETING; hostname; cat /etc/hostname; ls /sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	if want := "I am 10.244."; !strings.HasPrefix(out, want) || !strings.HasSuffix(out, "\nclient\nclient\neth0\nlo\n") {
		t.Errorf("got %q, want %q..., the host name twice, and the pod's interfaces", out, want)
	}
}

func TestRootRollingUpdateLosesNoRequest(t *testing.T) {
	c := upTest(t, "labtest", twoPods)
	done := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := ask(t, c, "http://web/"); err != nil {
				done <- err
				return
			}
		}
	}()
	before := names(t, c, "pods")
	apply(t, c, strings.Replace(twoPods, "labels: {app: web}", "labels: {app: web, version: v2}", 1))
	waitFor(t, "old pods to end", func() bool { return len(names(t, c, "pods")) == 3 })
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("a request failed during the update: %v", err)
	}
	for _, n := range names(t, c, "pods") {
		if n != "client" && slices.Contains(before, n) {
			t.Errorf("pod %s is still the old one", n)
		}
	}
}

func names(t *testing.T, c *Client, kind string) (out []string) {
	t.Helper()
	objs, err := c.Objects(t.Context(), kind, "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range objs {
		var o struct{ Metadata struct{ Name string } }
		if err := json.Unmarshal(raw, &o); err != nil {
			t.Fatal(err)
		}
		out = append(out, o.Metadata.Name)
	}
	return out
}

func TestRootCrashedContainerIsStartedAgain(t *testing.T) {
	pod := strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: crash, namespace: shop}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, command: [sh, -c, "test -e DIR/x && exec sleep infinity; touch DIR/x; exit 3"]}
`, "DIR", t.TempDir())
	c := upTest(t, "labtest", twoPods+"---"+pod)
	waitFor(t, "the restart", func() bool {
		p := object1[corev1.Pod](t, c, "pod", "shop", "crash")
		s := p.Status.ContainerStatuses[0]
		return s.RestartCount == 1 && s.Ready
	})
}

func TestRootInitContainersRunInOrderBeforeOthers(t *testing.T) {
	dir := t.TempDir()
	pod := strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: steps, namespace: default}
spec:
  restartPolicy: Never
  initContainers:
  - {name: one, command: [sh, -c, "sleep 0.1; echo one >> DIR/order"]}
  - {name: two, command: [sh, -c, "echo two >> DIR/order"]}
  containers:
  - {name: main, command: [sh, -c, "echo main >> DIR/order"]}
`, "DIR", dir)
	upTest(t, "labtest", pod)
	waitFor(t, "the pod to complete", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, "order"))
		return string(b) == "one\ntwo\nmain\n"
	})
}

// traces lists what a lab of that name may leave on the machine, on which others may be at work.
func traces(t *testing.T, name string) []string {
	t.Helper()
	p := paths{name}
	var out []string
	for _, pattern := range []string{netnsDir + "/" + p.prefix() + "*", p.dir(), p.supervisorLog()} {
		m, _ := filepath.Glob(pattern)
		out = append(out, m...)
	}
	if root, err := cgroupRoot(); err == nil {
		m, _ := filepath.Glob(filepath.Join(root, p.cgroup()))
		out = append(out, m...)
	}
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if strings.Contains(f[4]+"-", "/"+p.prefix()) || strings.HasPrefix(f[4], p.dir()) {
			out = append(out, "mount "+f[4])
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out = append(out, "link "+l.Name)
	}
	for _, dump := range []struct {
		what    string
		request int
		family  int
	}{{"rule", unix.RTM_GETRULE, unix.AF_INET}, {"rule", unix.RTM_GETRULE, unix.AF_INET6}, {"route", unix.RTM_GETROUTE, unix.AF_INET}} {
		b, err := syscall.NetlinkRIB(dump.request, dump.family)
		if err != nil {
			t.Fatal(err)
		}
		messages, err := syscall.ParseNetlinkMessage(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			out = append(out, fmt.Sprintf("%s of family %d: %x", dump.what, dump.family, m.Data))
		}
	}
	out = append(out, processes(t)...)
	slices.Sort(out)
	return out
}

// processes are those of this test binary's children that a lab started.
func processes(t *testing.T) (out []string) {
	t.Helper()
	self, _ := os.Executable()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(d, "environ"))
		if bytes.HasPrefix(cmdline, []byte(self+"\x00echo")) || bytes.HasPrefix(cmdline, []byte(self+"\x00supervise")) || bytes.Contains(env, []byte("GREETING=I am")) {
			out = append(out, "process "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return out
}

func TestRootDownLeavesNoTrace(t *testing.T) {
	requireRoot(t)
	before := traces(t, "tracea")
	l, err := Up(t.Context(), testOptions("tracea"))
	if err != nil {
		t.Fatal(err)
	}
	apply(t, l.Client(), twoPods)
	if during := traces(t, "tracea"); len(during) < len(before)+10 {
		t.Errorf("the comparison is blind: %d traces before, %d during", len(before), len(during))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	compareTraces(t, "tracea", before)
}

func compareTraces(t *testing.T, name string, before []string) {
	t.Helper()
	after := traces(t, name)
	for _, x := range after {
		if !slices.Contains(before, x) {
			t.Errorf("left behind: %s", x)
		}
	}
	for _, x := range before {
		if !slices.Contains(after, x) {
			t.Errorf("taken away though not ours: %s", x)
		}
	}
}

func TestRootDownAfterCrashLeavesNoTrace(t *testing.T) {
	requireRoot(t)
	before := traces(t, "traceb")
	self, _ := os.Executable()
	cmd := exec.Command(self, "supervise", "traceb")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := StartSupervisor("traceb", cmd); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	c, err := Dial("traceb")
	if err != nil {
		t.Fatal(err)
	}
	apply(t, c, twoPods)
	if err := cmd.Process.Kill(); err != nil { // SIGKILL: nothing of it can clean up
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if len(processes(t)) != 3 {
		t.Errorf("got %q, want three processes of pods that outlive the supervisor", processes(t))
	}
	if err := Down("traceb", time.Minute); err != nil {
		t.Fatal(err)
	}
	compareTraces(t, "traceb", before)
}

func TestRootLabsRunSideBySide(t *testing.T) {
	a, b := upTest(t, "sidea", twoPods), upTest(t, "sideb", twoPods)
	for _, c := range []*Client{a, b} {
		if _, err := ask(t, c, "http://web/"); err != nil {
			t.Error(err)
		}
	}
	if _, err := Up(t.Context(), testOptions("sidea")); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("a second lab of one name: got %v, want a refusal", err)
	}
	if _, err := ask(t, a, "http://web/"); err != nil {
		t.Errorf("the refusal hurt the first lab: %v", err)
	}
}
