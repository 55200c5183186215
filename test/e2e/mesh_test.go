package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/echo"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// mesh is a lab with the mesh in it, removed at the end of the test.
type mesh struct {
	t    *testing.T
	name string
	c    *lab.Client
	echo []string // the echo program's command
}

// start makes a lab as o says, with our programs.
func start(t *testing.T, o lab.Options) *mesh {
	t.Helper()
	netnstest.RequireRoot(t)
	m := &mesh{t: t, name: o.Name, echo: []string{program(t, "ambit"), "echo"}}
	o.Programs.Ztunnel, o.Programs.Controlplane, o.Programs.Echo = program(t, "ztunnel"), program(t, "controlplane"), m.echo
	netnstest.Must(t, lab.Down(o.Name, time.Minute)) // of a run that was killed
	l, err := lab.Up(t.Context(), o)
	netnstest.Must(t, err)
	m.c = l.Client()
	t.Cleanup(func() {
		if t.Failed() {
			m.keepLogs()
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// up starts the shop of the demo: a client on node-1, a server on node-2, both in the mesh, and outside of it a pod on
// node-1.
func up(t *testing.T, o lab.Options) *mesh {
	t.Helper()
	m := start(t, o)
	m.demo("start/namespaces.yaml", "enroll.yaml", "start/shop.yaml")
	// that the server is ready reaches the ztunnels a moment later
	m.eventually("the first answer", 20*time.Second, func() bool { return m.ask("1").OK == 1 })
	return m
}

// in is the mesh in a subtest.
func (m *mesh) in(t *testing.T) *mesh {
	sub := *m
	sub.t = t
	return &sub
}

// keepLogs shows the end of the ztunnels' logs and, if AMBIT_KEEP_LOGS names a directory, copies all of the programs'
// logs into it.
func (m *mesh) keepLogs() {
	dir := os.Getenv("AMBIT_KEEP_LOGS")
	for _, p := range []struct{ target, part string }{
		{"ztunnel/node-1", "capture"}, {"ztunnel/node-1", "proxy"}, {"ztunnel/node-2", "capture"}, {"ztunnel/node-2", "proxy"}, {"controlplane", ""},
	} {
		log := m.log(p.target, p.part)
		if p.part != "" {
			var lines []string
			for line := range strings.Lines(log) {
				if !strings.Contains(line, "connection complete") {
					lines = append(lines, line)
				}
			}
			m.t.Logf("%s %s:\n%s", p.target, p.part, strings.Join(lines[max(0, len(lines)-20):], ""))
		}
		if dir != "" && log != "" {
			to := filepath.Join(dir, m.name+"-"+strings.ReplaceAll(p.target, "/", "-")+"-"+p.part+".log")
			if err := os.WriteFile(to, []byte(log), 0o644); err != nil {
				m.t.Error(err)
			}
		}
	}
}

// log is what a program has written so far; part as for lab.Client.LogFile.
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

// says waits until a node's proxy has written text behind the first `from` bytes of its log: it writes a connection's line after
// the client has had its answer.
func (m *mesh) says(node string, from int, text string) {
	m.t.Helper()
	m.await("the log of "+node+"'s proxy", 10*time.Second, func() error {
		if log := m.log("ztunnel/"+node, "proxy")[from:]; !strings.Contains(log, text) {
			return fmt.Errorf("it does not say %q:\n%s", text, log)
		}
		return nil
	})
}

// demo applies files of the demo and waits until all is ready.
func (m *mesh) demo(names ...string) {
	m.t.Helper()
	for _, name := range names {
		m.files(filepath.Join("../../deploy/examples/demo", name))
	}
	m.ready()
}

// files applies files together.
func (m *mesh) files(paths ...string) {
	m.t.Helper()
	files, err := manifest.Read(paths...)
	netnstest.Must(m.t, err)
	_, err = m.c.Apply(m.t.Context(), files...)
	netnstest.Must(m.t, err)
}

// apply applies manifests and waits until all is ready.
func (m *mesh) apply(yaml string) {
	m.t.Helper()
	netnstest.Must(m.t, m.c.ApplyYAML(m.t.Context(), yaml))
	m.ready()
}

func (m *mesh) ready() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	netnstest.Must(m.t, m.c.WaitReady(ctx, nil))
}

// program tells the lab what to do with a program of the mesh.
func (m *mesh) program(action, target, part string) {
	m.t.Helper()
	netnstest.Must(m.t, m.c.Program(m.t.Context(), action, target, part))
}

// ask makes n new connections of the client to the server.
func (m *mesh) ask(n string) echo.Summary {
	m.t.Helper()
	return m.from("shop", "client", "--fresh", "--timeout=3s", "--count="+n, "http://server.shop/")
}

// from runs the echo client in a pod.
func (m *mesh) from(namespace, pod string, args ...string) (sum echo.Summary) {
	m.t.Helper()
	argv := append(append([]string{}, m.echo...), "client", "--json")
	out, err := m.c.Run(m.t.Context(), namespace, pod, append(argv, args...)...)
	netnstest.Must(m.t, err)
	netnstest.Must(m.t, json.Unmarshal([]byte(out), &sum))
	return sum
}

// await repeats f until it returns nil.
func (m *mesh) await(what string, limit time.Duration, f func() error) {
	m.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("waited in vain for %s: %v", what, err)
		}
	}
}

// eventually repeats f until it holds.
func (m *mesh) eventually(what string, limit time.Duration, f func() bool) {
	m.t.Helper()
	m.await(what, limit, func() error {
		if !f() {
			return errors.New("not so")
		}
		return nil
	})
}
