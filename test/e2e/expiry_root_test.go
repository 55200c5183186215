package e2e

import (
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

func TestRootWithoutACAConnectionsWorkUntilExpiryAndAreRefusedAfterwards(t *testing.T) {
	life := pick(5*time.Second, 8*time.Second)
	m := up(t, lab.Options{Name: "e2eexpiry", Programs: lab.Programs{ProxyArgs: []string{"--cert-ttl=" + life.String()}}})
	m.demo("strict.yaml") // what is served came by a tunnel
	m.program("stop", "controlplane", "")
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
	m.says("node-1", 0, "certificate expired, connections of this identity are refused")
	m.says("node-1", 0, "no certificate for spiffe://cluster.local/ns/shop/sa/client: certificate expired")
	m.program("start", "controlplane", "")
	m.eventually("answers after the control plane is back", 30*time.Second, func() bool { return m.ask("1").OK == 1 })
}
