package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// up starts the shop of the demo: a client on node-1, a server on node-2, both in the mesh.
func up(t *testing.T, name string, life time.Duration) *mesh {
	netnstest.RequireRoot(t)
	if os.Getenv("AMBIT_SOAK") != "1" {
		t.Skip("takes 20 s of real certificate lifetime: runs in make soak (AMBIT_SOAK=1)")
	}
	bin := programs(t)
	m := &mesh{t: t, echo: []string{filepath.Join(bin, "ambit"), "echo"}}
	l, err := lab.Up(t.Context(), lab.Options{Name: name, Programs: lab.Programs{
		Ztunnel: filepath.Join(bin, "ztunnel"), Controlplane: filepath.Join(bin, "controlplane"),
		Echo: m.echo, ProxyArgs: []string{"--cert-ttl=" + life.String()},
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
	for _, f := range []string{"start/namespaces.yaml", "enroll.yaml", "start/shop.yaml", "strict.yaml"} { // STRICT: what is served came by a tunnel
		files, err := manifest.Read(filepath.Join("../../deploy/examples/demo", f))
		if err == nil {
			_, err = m.c.Apply(t.Context(), files...)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.c.WaitReady(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return m
}

// ask makes n new connections of the client to the server.
func (m *mesh) ask(n string) echo.Summary {
	m.t.Helper()
	argv := append(append([]string{}, m.echo...), "client", "--json", "--fresh", "--timeout=3s", "--count="+n, "http://server.shop/")
	out, err := m.c.Run(m.t.Context(), "shop", "client", argv...)
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

func TestRootWithoutACAConnectionsWorkUntilExpiryAndAreRefusedAfterwards(t *testing.T) {
	const life = 8 * time.Second
	m := up(t, "e2eexpiry", life)
	m.eventually("the first answer", 20*time.Second, func() bool { return m.ask("1").OK == 1 })
	if err := m.c.Program(t.Context(), "stop", "controlplane", ""); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	if s := m.ask("50"); s.OK != 50 {
		t.Errorf("without a control plane %d of 50 were served: %v", s.OK, s.Errors)
	}
	for time.Since(stopped) < life+time.Second { // the tunnel is kept warm: it must not outlive its certificates
		m.ask("1")
		time.Sleep(100 * time.Millisecond)
	}
	s := m.ask("20")
	if s.OK != 0 {
		t.Errorf("after the expiry %d of 20 were served", s.OK)
	}
	t.Logf("after the expiry: %d served, %v", s.OK, s.Errors)
	path, err := m.c.LogFile(t.Context(), "", "ztunnel/node-1", "proxy")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(log), "certificate expired, connections of this identity are refused") ||
		!strings.Contains(string(log), "no certificate for spiffe://cluster.local/ns/shop/sa/client: certificate expired") {
		t.Errorf("the proxy's log does not name the cause: %v", err)
	}
	if err := m.c.Program(t.Context(), "start", "controlplane", ""); err != nil {
		t.Fatal(err)
	}
	m.eventually("answers after the control plane is back", 30*time.Second, func() bool { return m.ask("1").OK == 1 })
}
