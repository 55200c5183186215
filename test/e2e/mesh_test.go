package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/echo"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// programs is the directory of the built programs: AMBIT_BIN_DIR, or one of the test's own.
func programs(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("AMBIT_BIN_DIR"); dir != "" {
		return dir
	}
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir, "./cmd/...")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

type mesh struct {
	t    *testing.T
	c    *lab.Client
	echo []string
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
	bin := programs(t)
	m := &mesh{t: t, echo: []string{filepath.Join(bin, "ambit"), "echo"}}
	l, err := lab.Up(t.Context(), lab.Options{Name: name, Programs: lab.Programs{
		Ztunnel: wrap(filepath.Join(bin, "ztunnel")), Controlplane: filepath.Join(bin, "controlplane"),
		Echo: m.echo, ProxyArgs: proxyArgs,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	m.c = l.Client()
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

// log is the log of a program so far; part as for lab.Client.LogFile.
func (m *mesh) log(program, part string) string {
	m.t.Helper()
	path, err := m.c.LogFile(m.t.Context(), "", program, part)
	if err != nil {
		m.t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

func (m *mesh) eventually(what string, limit time.Duration, f func() bool) {
	m.t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("waited in vain for %s", what)
		}
	}
}
