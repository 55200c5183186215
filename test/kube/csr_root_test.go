package kube

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
)

// alone is an account with a pod on one node only, and a place outside the mesh to ask from.
const alone = `
{apiVersion: v1, kind: Namespace, metadata: {name: km-csr}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: alone, namespace: km-csr}}
---
{apiVersion: v1, kind: Pod, metadata: {name: alone, namespace: km-csr, labels: {istio.io/dataplane-mode: ambient}}, spec: {nodeName: node1, serviceAccountName: alone, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: thief, namespace: km-csr}, spec: {nodeName: node2, terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
`

// TestRootACertificateIsForTheNodesOwnPods asks the control plane, from a pod, with tokens that somebody could have stolen.
func TestRootACertificateIsForTheNodesOwnPods(t *testing.T) {
	requireCluster(t)
	requireBed(t)
	m := newMesh(t, "km-csr")
	m.apply(alone)
	m.ready("km-csr", "alone")
	m.ready("km-csr", "thief")
	a := newThief(m)
	proxy := map[string]string{}
	for _, node := range []string{"node1", "node2"} {
		proxy[node] = must(t, "", "-n", m.system, "get", "pods", "-l", "app=ztunnel", "--field-selector=spec.nodeName="+node, "-o", "jsonpath={.items[0].metadata.name}")
	}
	token := func(account, pod, audience string) string {
		namespace, name, _ := strings.Cut(account, "/")
		args := []string{"-n", namespace, "create", "token", name, "--audience=" + audience}
		if pod != "" {
			args = append(args, "--bound-object-kind=Pod", "--bound-object-name="+pod)
		}
		return must(t, "", args...)
	}
	ztunnel := m.system + "/ztunnel"
	good := token(ztunnel, proxy["node1"], "istio-ca")
	if err := a.ask(good); err != nil {
		t.Fatalf("the proxy of the pod's own node is refused: %v", err)
	}
	for _, c := range []struct {
		name, token    string
		code           codes.Code
		reason, record string // in the line of the log
	}{
		{"the proxy of another node", token(ztunnel, proxy["node2"], "istio-ca"), codes.PermissionDenied, "identity", `node=node2 id=spiffe://cluster.local/ns/km-csr/sa/alone reason=identity err="no running pod of km-csr/alone on node node2"`},
		{"a token of the proxy's account that is bound to no pod", token(ztunnel, "", "istio-ca"), codes.PermissionDenied, "identity", "the node of " + ztunnel + " is not known"},
		{"another pod of the node", token("km-csr/default", "thief", "istio-ca"), codes.PermissionDenied, "identity", `err="km-csr/default may not ask for the identities of pods"`},
		{"a token of another audience", token(ztunnel, proxy["node1"], "https://kubernetes.default.svc"), codes.Unauthenticated, "token", "audience"},
		{"a token that has expired", expired(t, good), codes.Unauthenticated, "token", "expired"},
		{"no token of this cluster", forged(t, good), codes.Unauthenticated, "token", "token refused"},
	} {
		t.Run(c.name, func(t *testing.T) { a.refused(t, c.token, c.code, c.reason, c.record) })
	}
	t.Run("a proxy that has been deleted", func(t *testing.T) {
		must(t, "", "-n", m.system, "delete", "pod", proxy["node1"], "--timeout=90s")
		must(t, "", "-n", m.system, "rollout", "status", "daemonset/ztunnel", "--timeout=90s")
		// What the API server said of the token is remembered, for as long as the pod is seen.
		eventually(t, "the token to be refused", func() error {
			if err := a.ask(good); err == nil {
				return fmt.Errorf("a certificate was issued")
			}
			return nil
		})
		if code := status.Code(a.ask(good)); code != codes.PermissionDenied && code != codes.Unauthenticated {
			t.Errorf("got %v", code)
		}
		eventually(t, "the record", a.recorded(`caller="`+ztunnel+` (pod `+proxy["node1"]+`)"`, "certificate refused"))
	})
}

// thief asks the control plane for one identity out of a pod's network, with tokens that others were given.
type thief struct {
	m       *meshWorld
	network *netns.NS
	address string // pod of the control plane
	roots   string // file
	id      spiffe.ID
}

func newThief(m *meshWorld) *thief {
	t := m.t
	t.Helper()
	a := &thief{m: m, roots: filepath.Join(t.TempDir(), "roots.pem")}
	var err error
	if a.network, err = netns.Open(fmt.Sprintf("/proc/%d/ns/net", processOf(t, "km-csr", "thief", "echo"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.network.Close() })
	a.address = must(t, "", "-n", m.system, "get", "pods", "-l", "app=ambit-controlplane", "-o", "jsonpath={.items[0].status.podIP}")
	if err := os.WriteFile(a.roots, []byte(must(t, "", "-n", "km-csr", "get", "configmap", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)), 0o600); err != nil {
		t.Fatal(err)
	}
	if a.id, err = spiffe.New("cluster.local", "km-csr", "alone"); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *thief) ask(token string) error {
	c, err := svid.NewCAClient(svid.CAClientConfig{
		Address: "https://ambit-controlplane." + a.m.system + ".svc:15012", RootCA: a.roots, ClusterID: "Kubernetes",
		Token: func() (string, error) { return token, nil },
		Dial: func(ctx context.Context, _ string) (c net.Conn, err error) {
			into := a.network.Do(func() error {
				c, err = (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(a.address, "15012"))
				return err
			})
			return c, into
		},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(a.m.t.Context(), patience)
	defer cancel()
	_, err = c.Sign(ctx, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), a.id, time.Hour)
	return err
}

func (a *thief) refused(t *testing.T, token string, want codes.Code, reason, record string) {
	count := `ambit_ca_requests_refused_total{reason="` + reason + `"}`
	before := a.metric(t, count)
	if err := a.ask(token); status.Code(err) != want {
		t.Fatalf("got %v, want %v", err, want)
	}
	if after := a.metric(t, count); after <= before {
		t.Errorf("%s was %g before and is %g", count, before, after)
	}
	eventually(t, "the record", a.recorded("certificate refused", "id="+a.id.String(), "reason="+reason, record))
}

// recorded waits for a line with all of the words in the log of the control plane.
func (a *thief) recorded(words ...string) func() error {
	return func() error {
		log, err := kubectl(a.m.t.Context(), "", "-n", a.m.system, "logs", "-l", "app=ambit-controlplane", "--tail=200")
		if err != nil {
			return err
		}
	next:
		for line := range strings.Lines(log) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue next
				}
			}
			return nil
		}
		return fmt.Errorf("no line with %q", words)
	}
}

// metric reads a counter of the control plane.
func (a *thief) metric(t *testing.T, name string) float64 {
	t.Helper()
	text := must(t, "", "get", "--raw", "/api/v1/namespaces/"+a.m.system+"/services/ambit-controlplane:15014/proxy/metrics")
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			var v float64
			if _, err := fmt.Sscan(rest, &v); err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s in\n%s", name, text)
	return 0
}

// expired is a token as it would be an hour after its end, signed with the cluster's own key.
func expired(t *testing.T, token string) string {
	key, err := os.ReadFile(filepath.Join(bedDir(), "pki/sa.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(key)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	return signed(t, token, parsed.(*rsa.PrivateKey), map[string]any{"iat": now.Add(-2 * time.Hour).Unix(), "nbf": now.Add(-2 * time.Hour).Unix(), "exp": now.Add(-time.Hour).Unix()})
}

// forged is a token that somebody else signed.
func forged(t *testing.T, token string) string {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, token, key, nil)
}

// signed is a token with some claims changed, signed again.
func signed(t *testing.T, token string, key *rsa.PrivateKey, changes map[string]any) string {
	t.Helper()
	parts := strings.Split(token, ".")
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := json.Unmarshal(body, &claims); err != nil {
		t.Fatal(err)
	}
	for k, v := range changes {
		claims[k] = v
	}
	if body, err = json.Marshal(claims); err != nil {
		t.Fatal(err)
	}
	text := parts[0] + "." + base64.RawURLEncoding.EncodeToString(body)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}
