package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/echo"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// upShop starts the shop of the demo: a client on node-1, a server on node-2, both in the mesh. STRICT: what is served came
// by a tunnel.
func upShop(t *testing.T, name string, life time.Duration) *mesh {
	t.Helper()
	return up(t, name, lab.Programs{ProxyArgs: []string{"--cert-ttl=" + life.String()}},
		demoFiles(t, "start/namespaces.yaml", "enroll.yaml", "start/shop.yaml", "strict.yaml")...)
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

func TestRootWithoutACAConnectionsWorkUntilExpiryAndAreRefusedAfterwards(t *testing.T) {
	netnstest.RequireRoot(t)
	life := pick(5*time.Second, 8*time.Second)
	m := upShop(t, "e2eexpiry", life)
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
	log := m.log("ztunnel/node-1", "proxy")
	if !strings.Contains(log, "certificate expired, connections of this identity are refused") ||
		!strings.Contains(log, "no certificate for spiffe://cluster.local/ns/shop/sa/client: certificate expired") {
		t.Error("the proxy's log does not name the cause")
	}
	if err := m.c.Program(t.Context(), "start", "controlplane", ""); err != nil {
		t.Fatal(err)
	}
	m.eventually("answers after the control plane is back", 30*time.Second, func() bool { return m.ask("1").OK == 1 })
}
