package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/echo"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// bin is the directory of the built programs: AMBIT_BIN_DIR, or one that TestMain fills and removes.
var bin = os.Getenv("AMBIT_BIN_DIR")

func TestMain(m *testing.M) {
	code := 1
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	if os.Getenv("AMBIT_BIN_DIR") == "" && bin != "" {
		os.RemoveAll(bin)
	}
	os.Exit(code)
}

// prepare builds the programs if the tests will run and nobody built them before.
func prepare() (err error) {
	if bin != "" || os.Geteuid() != 0 || os.Getenv("AMBIT_ROOT_TESTS") == "off" {
		return nil
	}
	if bin, err = os.MkdirTemp("", "ambit-e2e-"); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", bin, "./cmd/...")
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

// mesh is a lab with the mesh in it, removed at the end of the test.
type mesh struct {
	t    *testing.T
	l    *lab.Lab
	c    *lab.Client
	echo []string
}

// start makes a lab and applies manifests to it.
func start(t *testing.T, name string, programs lab.Programs, files ...lab.File) *mesh {
	t.Helper()
	m := &mesh{t: t, echo: []string{filepath.Join(bin, "ambit"), "echo"}}
	programs.Ztunnel, programs.Controlplane = cmp.Or(programs.Ztunnel, filepath.Join(bin, "ztunnel")), filepath.Join(bin, "controlplane")
	programs.Echo = m.echo
	l, err := lab.Up(t.Context(), lab.Options{Name: name, Programs: programs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			m.keepLogs(name)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	m.l, m.c = l, l.Client()
	_, err = m.c.Apply(t.Context(), files...)
	netnstest.Must(t, err, m.c.WaitReady(t.Context(), nil))
	return m
}

// keepLogs copies the programs' logs out of a lab that is about to be removed, if AMBIT_KEEP_LOGS names a directory.
func (m *mesh) keepLogs(name string) {
	dir := os.Getenv("AMBIT_KEEP_LOGS")
	if dir == "" {
		return
	}
	for _, p := range []struct{ target, part string }{
		{"ztunnel/node-1", "proxy"}, {"ztunnel/node-1", "capture"}, {"ztunnel/node-2", "proxy"}, {"ztunnel/node-2", "capture"}, {"controlplane", ""},
	} {
		if log := m.log(p.target, p.part); log != "" {
			to := filepath.Join(dir, name+"-"+strings.ReplaceAll(p.target, "/", "-")+"-"+p.part+".log")
			if err := os.WriteFile(to, []byte(log), 0o644); err != nil {
				m.t.Error(err)
			}
		}
	}
}

// log is what a program has written so far.
func (m *mesh) log(target, part string) string {
	m.t.Helper()
	path, err := m.c.LogFile(context.WithoutCancel(m.t.Context()), "", target, part) // also during clean-up
	if err != nil {
		m.t.Error(err)
		return ""
	}
	log, err := os.ReadFile(path)
	if err != nil {
		m.t.Error(err)
	}
	return string(log)
}

// up starts the shop of the demo: a client on node-1, a server on node-2, both in the mesh, and outside of it a pod on
// node-1.
func up(t *testing.T, name string, proxyArgs ...string) *mesh {
	t.Helper()
	return upWith(t, name, func(ztunnel string) string { return ztunnel }, proxyArgs...)
}

// upWith is up with the program that wrap makes of the ztunnel.
func upWith(t *testing.T, name string, wrap func(ztunnel string) string, proxyArgs ...string) *mesh {
	t.Helper()
	netnstest.RequireRoot(t)
	m := start(t, name, lab.Programs{Ztunnel: wrap(filepath.Join(bin, "ztunnel")), ProxyArgs: proxyArgs})
	m.apply("start/namespaces.yaml", "enroll.yaml", "start/shop.yaml")
	if err := m.c.WaitReady(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	// that the server is ready reaches the ztunnels a moment later
	m.eventually("the first answer", 20*time.Second, func() bool { return m.ask("1").OK == 1 })
	return m
}

// apply applies files of the demo.
func (m *mesh) apply(files ...string) {
	m.t.Helper()
	for _, f := range files {
		files, err := manifest.Read(filepath.Join("../../deploy/examples/demo", f))
		if err == nil {
			_, err = m.c.Apply(m.t.Context(), files...)
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
}

// ask makes n new connections of the client to the server.
func (m *mesh) ask(n string) echo.Summary {
	m.t.Helper()
	return m.from("shop", "client", "--fresh", "--timeout=3s", "--count="+n, "http://server.shop/")
}

// from runs the echo client in a pod.
func (m *mesh) from(namespace, pod string, args ...string) echo.Summary {
	m.t.Helper()
	argv := append(append([]string{}, m.echo...), "client", "--json")
	out, err := m.c.Run(m.t.Context(), namespace, pod, append(argv, args...)...)
	var sum echo.Summary
	if err == nil {
		err = json.Unmarshal([]byte(out), &sum)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return sum
}

func (m *mesh) eventually(what string, limit time.Duration, f func() bool) {
	m.t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// program tells the lab what to do with a program of the mesh.
func (m *mesh) program(action, target, part string) {
	m.t.Helper()
	if err := m.c.Program(m.t.Context(), action, target, part); err != nil {
		m.t.Errorf("%s %s %s: %v", action, target, part, err)
	}
}

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

// serviceTargets are the addresses and ports of a service, all of its addresses with all of its ports.
func (m *mesh) serviceTargets(namespace, name string) (out []netip.AddrPort) {
	m.t.Helper()
	raw, err := m.c.Objects(m.t.Context(), "service", namespace, name)
	if err != nil || len(raw) != 1 {
		m.t.Fatalf("service %s/%s: %v", namespace, name, err)
	}
	var svc struct {
		Spec struct {
			ClusterIPs []netip.Addr
			Ports      []struct{ Port uint16 }
		}
	}
	if err := json.Unmarshal(raw[0], &svc); err != nil {
		m.t.Fatal(err)
	}
	for _, p := range svc.Spec.Ports {
		for _, ip := range svc.Spec.ClusterIPs {
			out = append(out, netip.AddrPortFrom(ip, p.Port))
		}
	}
	return out
}

// control calls the control plane's administration from its own host and returns the answer's body.
func (m *mesh) control(method, path string) (string, error) {
	a, err := m.c.Access(m.t.Context(), "", "controlplane", "")
	if err != nil {
		return "", err
	}
	var body []byte
	err = a.Do(func() error {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:15014", 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.0\r\nHost: controlplane\r\n\r\n", method, path); err != nil {
			return err
		}
		answer, err := io.ReadAll(conn)
		if err != nil {
			return err
		}
		head, rest, _ := strings.Cut(string(answer), "\r\n\r\n")
		body = []byte(rest)
		if !strings.HasPrefix(head, "HTTP/1.0 "+strconv.Itoa(http.StatusOK)) {
			return fmt.Errorf("%s %s: %s: %s", method, path, head, rest)
		}
		return nil
	})
	return string(body), err
}
