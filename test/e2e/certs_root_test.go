package e2e

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// shortLife is the lifetime of certificates in these tests. They are renewed at half of it.
func shortLife() time.Duration { return pick(5*time.Second, time.Minute) }

// issued counts the certificates that a node's proxy was given for the service account.
func (m *mesh) issued(node, account string) int {
	m.t.Helper()
	n := 0
	for line := range strings.Lines(m.log("ztunnel/"+node, "proxy")) {
		if strings.Contains(line, "certificate issued") && strings.Contains(line, "/ns/mart/sa/"+account) {
			n++
		}
	}
	return n
}

func TestRootSoakCertificatesOfShortLifeAreRenewedUnderLoad(t *testing.T) {
	m := start(t, lab.Options{Name: "e2erenew", Programs: lab.Programs{ProxyArgs: []string{"--cert-ttl=" + shortLife().String()}}})
	m.apply(mart())
	g := m.generator(pick(100, 200), 20)
	before := m.usage()
	stop := m.tap("node-1")
	client, far := m.issued("node-1", "client"), m.issued("node-2", "far")
	load := g.start(t.Context())
	time.Sleep(pick(11*time.Second, 10*time.Minute))
	sum := load.end()
	client, far = m.issued("node-1", "client")-client, m.issued("node-2", "far")-far
	t.Logf("certificates of %s, renewed %d (client) and %d times (server): %s", shortLife(), client, far, sum.words())
	wantEncrypted(t, "node-1", stop())
	m.settled(before)
	sum.zero(t)
	if want := int(sum.length / shortLife()); client < want || far < want {
		t.Errorf("renewed %d and %d times, want at least one renewal per lifetime, %d", client, far, want)
	}
}

// authority is what the control plane says of its CA.
type authority struct{ Phase, Roots string }

func (m *mesh) authority() (a authority) {
	m.t.Helper()
	body, err := m.control("GET", "/debug/ca")
	if err == nil {
		err = json.Unmarshal([]byte(body), &a)
	}
	if err != nil {
		m.t.Logf("ask the control plane for its authority: %v", err)
	}
	return a
}

// Two roots one after the other; in the full form the control plane is killed in each phase of the second one as well.
func TestRootSoakTheRootRotatesUnderLoad(t *testing.T) {
	life := "=" + shortLife().String()
	m := start(t, lab.Options{Name: "e2eroot", Programs: lab.Programs{ProxyArgs: []string{"--cert-ttl" + life}, ControlplaneArgs: []string{"--max-cert-ttl" + life}}})
	m.apply(mart())
	g := m.generator(pick(100, 200), 20)
	before := m.usage()
	stop := m.tap("node-1")
	load := g.start(t.Context())
	roots := m.authority().Roots
	for i := range pick(1, 2) {
		begin := time.Now()
		if _, err := m.control("POST", "/debug/ca/rotate"); err != nil {
			t.Fatal(err)
		}
		for _, phase := range []string{"prepared", "activated", "idle"} {
			m.eventually("phase "+phase, shortLife()+20*time.Second, func() bool { return m.authority().Phase == phase })
			t.Logf("rotation %d: %s after %.1f s, %d roots published", i+1, phase, time.Since(begin).Seconds(), strings.Count(m.authority().Roots, "BEGIN"))
			if i > 0 && phase != "idle" {
				time.Sleep(shortLife() / 4)
				if _, err := m.process("--manifests=/run/ambit-lab/e2eroot/manifests").kill(); err != nil {
					t.Error(err)
				}
			}
		}
		now := m.authority().Roots
		if now == roots || strings.Count(now, "BEGIN") != 1 {
			t.Errorf("after the rotation these roots are published, want one new one:\n%s", now)
		}
		roots = now
	}
	time.Sleep(shortLife())
	for node, accounts := range map[string][]string{"node-1": {"client", "near"}, "node-2": {"far"}} {
		for _, a := range accounts {
			m.signedBy(node, a, roots)
		}
	}
	sum := load.end()
	t.Logf("root rotated: %s", sum.words())
	wantEncrypted(t, "node-1", stop())
	m.settled(before)
	sum.zero(t)
}

// signedBy fails the test unless the node's proxy holds a certificate of the account that leads to the roots.
func (m *mesh) signedBy(node, account, roots string) {
	m.t.Helper()
	dump, err := m.dump(node)
	if err != nil {
		m.t.Error(err)
		return
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(roots))
	for _, c := range dump.Certificates {
		if !strings.HasSuffix(c.Identity, "/ns/mart/sa/"+account) || len(c.CertChain) == 0 {
			continue
		}
		raw, _ := base64.StdEncoding.DecodeString(c.CertChain[0].PEM)
		block, _ := pem.Decode(raw)
		if block == nil {
			break
		}
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err == nil {
			_, err = leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		}
		if err != nil {
			m.t.Errorf("the certificate of %s: %v", account, err)
		}
		return
	}
	m.t.Errorf("%s has no certificate of %s", node, account)
}
