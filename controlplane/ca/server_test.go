package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api/capb"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

var labKey = []byte("0123456789abcdef")

// token signs lab claims; change may spoil them.
func token(change func(map[string]any)) string {
	claims := map[string]any{"namespace": "istio-system", "serviceAccount": "ztunnel", "pod": "ztunnel-1", "uid": "z1", "node": "n1",
		"exp": time.Now().Add(time.Hour).Unix()}
	if change != nil {
		change(claims)
	}
	body, _ := json.Marshal(claims)
	first := base64.RawURLEncoding.EncodeToString(body)
	mac := hmac.New(sha256.New, labKey)
	mac.Write([]byte(first))
	return first + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// fakePods is a fixed Pods, until a test changes it and closes changed.
type fakePods struct {
	pods    map[string]Pod     // namespace/name
	running map[[3]string]bool // node, namespace, account
	changed chan struct{}
}

func (p *fakePods) Lookup(ns, name string) (Pod, bool) {
	pod, ok := p.pods[ns+"/"+name]
	return pod, ok
}
func (p *fakePods) RunsOn(node, ns, sa string) bool { return p.running[[3]string{node, ns, sa}] }
func (p *fakePods) Changed() <-chan struct{}        { return p.changed }

func somePods() *fakePods {
	return &fakePods{
		pods: map[string]Pod{
			"istio-system/ztunnel-1": {UID: "z1", Node: "n1"}, "istio-system/ztunnel-old": {UID: "z0", Node: "n1", Terminal: true},
			"default/web-1": {UID: "w1", Node: "n1"},
		},
		running: map[[3]string]bool{{"n1", "default", "web"}: true, {"n2", "default", "other"}: true},
		changed: make(chan struct{}),
	}
}

func newCSR(t testing.TB, key crypto.Signer, change func(*x509.CertificateRequest)) string {
	t.Helper()
	req := &x509.CertificateRequest{}
	if change != nil {
		change(req)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, req, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newTestServer(t testing.TB, log *bytes.Buffer, pods Pods, change func(*Config)) *Server {
	t.Helper()
	a, err := OpenAuthority(t.Context(), AuthorityConfig{TrustDomain: "cluster.local", MaxTTL: 48 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Authority: a, Authenticator: LabTokens{Key: labKey}, Pods: pods, TrustDomain: "cluster.local",
		TrustDomainAliases: []string{"old.local"}, ClusterID: "Kubernetes", PodWait: -1, Logger: slog.New(slog.NewTextHandler(log, nil))}
	if change != nil {
		change(&cfg)
	}
	return NewServer(cfg)
}

func incoming(ctx context.Context, token string, kv ...string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.Pairs(append([]string{"authorization", "Bearer " + token}, kv...)...))
}

func request(csr, id string) *capb.IstioCertificateRequest {
	req := &capb.IstioCertificateRequest{Csr: csr, ValidityDuration: 3600}
	if id != "" {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{impersonated: structpb.NewStringValue(id)}}
	}
	return req
}

// TestWhoGetsWhat is row B26 of the hostile-input table and 2.3.
func TestWhoGetsWhat(t *testing.T) {
	const web = "spiffe://cluster.local/ns/default/sa/web"
	set := func(kv ...any) func(map[string]any) {
		return func(c map[string]any) {
			for i := 0; i < len(kv); i += 2 {
				c[kv[i].(string)] = kv[i+1]
			}
		}
	}
	waypoint := set("namespace", "default", "serviceAccount", "web", "pod", "web-1", "uid", "w1")
	tests := []struct {
		name    string
		claims  func(map[string]any)
		id      string
		cluster string
		code    codes.Code
		text    string // in the answer, or the identity when it is granted
	}{
		{"a pod on the node", nil, web, "Kubernetes", codes.OK, web},
		{"a pod on the node, by an alias of the trust domain", nil, "spiffe://old.local/ns/default/sa/web", "Kubernetes", codes.OK, "spiffe://old.local/ns/default/sa/web"},
		{"own identity", waypoint, "", "", codes.OK, web},
		{"a pod on another node", nil, "spiffe://cluster.local/ns/default/sa/other", "Kubernetes", codes.PermissionDenied, "no running pod of default/other on node n1"},
		{"an unknown service account", nil, "spiffe://cluster.local/ns/default/sa/none", "Kubernetes", codes.PermissionDenied, "no running pod"},
		{"another trust domain, which istiod grants", nil, "spiffe://evil.local/ns/default/sa/web", "Kubernetes", codes.PermissionDenied, "trust domain cluster.local"},
		{"a malformed identity", nil, "spiffe://cluster.local/ns/default/sa/../web", "Kubernetes", codes.PermissionDenied, "invalid SPIFFE ID"},
		{"a caller that is no node proxy", waypoint, web, "Kubernetes", codes.PermissionDenied, "may not ask for the identities of pods"},
		{"no cluster", nil, web, "", codes.PermissionDenied, "want cluster"},
		{"another cluster", nil, web, "other", codes.PermissionDenied, "want cluster"},
		{"token of a deleted pod", set("pod", "ztunnel-9", "uid", "z9"), web, "Kubernetes", codes.PermissionDenied, "does not exist"},
		{"token of a pod that was replaced", set("uid", "z0"), web, "Kubernetes", codes.PermissionDenied, "not the one"},
		{"token of a pod that has ended", set("pod", "ztunnel-old", "uid", "z0"), web, "Kubernetes", codes.PermissionDenied, "has ended"},
		{"token without a pod", set("pod", ""), web, "Kubernetes", codes.PermissionDenied, "node of istio-system/ztunnel is not known"},
		{"token with another node than the pod's", set("node", "n2"), "spiffe://cluster.local/ns/default/sa/other", "Kubernetes", codes.PermissionDenied, "on node n1"},
		{"expired token", set("exp", time.Now().Add(-time.Minute).Unix()), web, "Kubernetes", codes.Unauthenticated, "could not be authenticated"},
		{"token for another audience", set("aud", "vault"), web, "Kubernetes", codes.Unauthenticated, "could not be authenticated"},
		{"token without a service account", set("serviceAccount", ""), web, "Kubernetes", codes.Unauthenticated, "could not be authenticated"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			s := newTestServer(t, &log, somePods(), nil)
			ctx := t.Context()
			if tt.cluster != "" {
				ctx = incoming(ctx, token(tt.claims), "clusterid", tt.cluster)
			} else {
				ctx = incoming(ctx, token(tt.claims))
			}
			resp, err := s.CreateCertificate(ctx, request(newCSR(t, newKey(t), nil), tt.id))
			if status.Code(err) != tt.code {
				t.Fatalf("got %v, want %v", err, tt.code)
			}
			if err != nil {
				if !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %q does not contain %q", err, tt.text)
				}
				issued, refused := s.Counts()
				reason := map[codes.Code]string{codes.Unauthenticated: RefusedToken, codes.PermissionDenied: RefusedIdentity}[tt.code]
				if resp != nil || !strings.Contains(log.String(), "certificate refused") || !strings.Contains(log.String(), "reason="+reason) {
					t.Errorf("got response %v and log %q, want no response and an audit record with reason %s", resp, log.String(), reason)
				}
				if issued != 0 || refused[reason] != 1 {
					t.Errorf("counted %d issued and refused %v, want one for %s", issued, refused, reason)
				}
				return
			}
			if id, err := spiffe.FromCert(parseLeaf(t, resp.GetCertChain())); err != nil || id.String() != tt.text {
				t.Errorf("got a certificate for %v, %v; want %s", id, err, tt.text)
			}
			if !strings.Contains(log.String(), "certificate issued") || !strings.Contains(log.String(), tt.text) {
				t.Errorf("no audit record in %q", log.String())
			}
		})
	}
}

func parseLeaf(t testing.TB, chain []string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(chain[0]))
	if block == nil {
		t.Fatal("no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestForgedAndMalformedTokensAreRefused(t *testing.T) {
	good := token(nil)
	for name, tok := range map[string]string{
		"empty": "", "no dot": "abc", "wrong signature": good[:len(good)-2] + "AA", "padding": good + "=",
		"claims changed": "e30" + good[strings.Index(good, "."):], "a JWT": "e30.e30.AAAA", "huge": strings.Repeat("a", maxToken+1),
	} {
		var log bytes.Buffer
		s := newTestServer(t, &log, somePods(), nil)
		_, err := s.CreateCertificate(incoming(t.Context(), tok), request(newCSR(t, newKey(t), nil), ""))
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: got %v, want Unauthenticated", name, err)
		}
		if tok != "" && strings.Contains(log.String(), tok) {
			t.Errorf("%s: the token is in the log", name)
		}
	}
	s := newTestServer(t, &bytes.Buffer{}, somePods(), nil)
	if _, err := s.CreateCertificate(t.Context(), request("", "")); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a token: got %v, want Unauthenticated", err)
	}
}

func TestSigningRequestsDecideTheKeyAlone(t *testing.T) {
	key := newKey(t)
	evil, _ := url.Parse("spiffe://cluster.local/ns/kube-system/sa/admin")
	csr := newCSR(t, key, func(r *x509.CertificateRequest) {
		r.URIs, r.DNSNames, r.IPAddresses = []*url.URL{evil}, []string{"istiod.istio-system.svc"}, []net.IP{{10, 0, 0, 1}}
		r.Subject.CommonName = "admin"
	})
	s := newTestServer(t, &bytes.Buffer{}, somePods(), nil)
	ctx := incoming(t.Context(), token(nil), "clusterid", "Kubernetes")
	resp, err := s.CreateCertificate(ctx, request(csr, "spiffe://cluster.local/ns/default/sa/web"))
	if err != nil {
		t.Fatal(err)
	}
	leaf := parseLeaf(t, resp.GetCertChain())
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/default/sa/web" || len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 || leaf.Subject.String() != "" {
		t.Errorf("got names %v %v %v subject %q", leaf.URIs, leaf.DNSNames, leaf.IPAddresses, leaf.Subject)
	}
	if leaf.IsCA || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("got CA %v, key %v", leaf.IsCA, leaf.PublicKey)
	}
	for _, ext := range leaf.Extensions {
		if ext.Id.String() == "2.5.29.17" && !ext.Critical {
			t.Error("the SAN is not critical though the subject is empty")
		}
	}
	if got := time.Until(leaf.NotAfter); got > time.Hour || got < 59*time.Minute {
		t.Errorf("valid for %v, want the hour asked for", got)
	}
	// The same request again, by someone who may not have the identity.
	if _, err := s.CreateCertificate(ctx, request(csr, evil.String())); status.Code(err) != codes.PermissionDenied {
		t.Errorf("replayed request: got %v, want PermissionDenied", err)
	}
}

func TestBadSigningRequestsAreInvalid(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := newCSR(t, newKey(t), nil)
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	for name, csr := range map[string]string{
		"empty": "", "not PEM": "x", "wrong signature": string(pem.EncodeToMemory(block)), "RSA-1024": newCSR(t, small, nil),
		"P-224": newCSR(t, p224, nil), "huge": good + strings.Repeat(" ", maxCSR),
	} {
		s := newTestServer(t, &bytes.Buffer{}, somePods(), nil)
		ctx := incoming(t.Context(), token(nil), "clusterid", "Kubernetes")
		if _, err := s.CreateCertificate(ctx, request(csr, "spiffe://cluster.local/ns/default/sa/web")); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v, want InvalidArgument", name, err)
		}
	}
}

func TestLifetimes(t *testing.T) {
	s := newTestServer(t, &bytes.Buffer{}, somePods(), nil)
	for seconds, want := range map[int64]time.Duration{0: 24 * time.Hour, -5: 24 * time.Hour, 60: time.Minute, 48 * 3600: 48 * time.Hour, 48*3600 + 1: 0, 1 << 62: 0} {
		req := request(newCSR(t, newKey(t), nil), "spiffe://cluster.local/ns/default/sa/web")
		req.ValidityDuration = seconds
		resp, err := s.CreateCertificate(incoming(t.Context(), token(nil), "clusterid", "Kubernetes"), req)
		if want == 0 {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%d s: got %v, want InvalidArgument", seconds, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Until(parseLeaf(t, resp.GetCertChain()).NotAfter).Round(time.Minute); got != want {
			t.Errorf("%d s: valid for %v, want %v", seconds, got, want)
		}
	}
}

func TestARequestWaitsForAPodThatIsNotKnownYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := somePods()
		s := newTestServer(t, &bytes.Buffer{}, pods, func(c *Config) { c.PodWait = 0 })
		ctx := incoming(t.Context(), token(nil), "clusterid", "Kubernetes")
		done := make(chan error)
		go func() {
			_, err := s.CreateCertificate(ctx, request(newCSR(t, newKey(t), nil), "spiffe://cluster.local/ns/default/sa/new"))
			done <- err
		}()
		synctest.Wait()
		pods.running[[3]string{"n1", "default", "new"}] = true
		close(pods.changed)
		if err := <-done; err != nil {
			t.Error(err)
		}
		pods.changed = make(chan struct{})
		start := time.Now()
		_, err := s.CreateCertificate(ctx, request(newCSR(t, newKey(t), nil), "spiffe://cluster.local/ns/default/sa/none"))
		if status.Code(err) != codes.PermissionDenied || time.Since(start) != 2*time.Second {
			t.Errorf("got %v after %v, want PermissionDenied after 2s", err, time.Since(start))
		}
	})
}

func TestLabNodesThatAreNoPods(t *testing.T) {
	s := newTestServer(t, &bytes.Buffer{}, somePods(), func(c *Config) { c.TrustNodeClaim = true })
	lab := token(func(c map[string]any) { c["pod"], c["uid"], c["node"] = "ztunnel-n2", "ztunnel-n2", "n2" })
	ctx := incoming(t.Context(), lab, "clusterid", "Kubernetes")
	if _, err := s.CreateCertificate(ctx, request(newCSR(t, newKey(t), nil), "spiffe://cluster.local/ns/default/sa/other")); err != nil {
		t.Error(err)
	}
	if _, err := s.CreateCertificate(ctx, request(newCSR(t, newKey(t), nil), "spiffe://cluster.local/ns/default/sa/web")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("identity of another node: got %v, want PermissionDenied", err)
	}
}

func FuzzLabTokens(f *testing.F) {
	f.Add(token(nil))
	f.Add("e30.AA")
	f.Fuzz(func(t *testing.T, tok string) {
		if c, err := (LabTokens{Key: []byte("another key, never used")}).Authenticate(t.Context(), tok); err == nil {
			t.Fatalf("accepted %q as %v", tok, c)
		}
	})
}

func FuzzCSR(f *testing.F) {
	f.Add([]byte(newCSR(f, newKey(f), nil)))
	f.Fuzz(func(t *testing.T, csr []byte) {
		if key, err := csrKey(csr); err == nil && key == nil {
			t.Fatal("no error and no key")
		}
	})
}
