package controlplane

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/ca"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/rootca"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/xds"
)

var labKey = []byte("0123456789abcdef")

func labToken(t testing.TB, claims map[string]any) string {
	t.Helper()
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	first := base64.RawURLEncoding.EncodeToString(body)
	mac := hmac.New(sha256.New, labKey)
	mac.Write([]byte(first))
	return first + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func ztunnelToken(t testing.TB, node string) string {
	return labToken(t, map[string]any{"namespace": "istio-system", "serviceAccount": "ztunnel", "pod": "ztunnel-" + node,
		"uid": "ztunnel-" + node, "node": node, "exp": time.Now().Add(time.Hour).Unix()})
}

// source is a kube.Source that a test feeds.
type source struct{ snaps chan kube.Snapshot }

func (s source) Run(ctx context.Context, deliver func(kube.Snapshot)) error {
	for {
		select {
		case snap := <-s.snaps:
			deliver(snap)
		case <-ctx.Done():
			return nil
		}
	}
}

func pod(namespace, name, node, ip string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "uid-x", Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: name},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// addresses is an xds.Handler that tells a test what came.
type addresses struct {
	mu    sync.Mutex
	names map[string]bool
	came  chan struct{}
}

func (a *addresses) Apply(up []xds.Resource[*workloadpb.Address], removed []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range up {
		a.names[r.Name] = true
	}
	for _, n := range removed {
		delete(a.names, n)
	}
	select {
	case a.came <- struct{}{}:
	default:
	}
	return nil
}

func (a *addresses) wait(t *testing.T, name string, want bool) {
	t.Helper()
	for {
		a.mu.Lock()
		got := a.names[name]
		a.mu.Unlock()
		if got == want {
			return
		}
		select {
		case <-a.came:
		case <-t.Context().Done():
			t.Fatalf("%s: present %v, want %v", name, got, want)
		}
	}
}

// start runs a control plane on a loopback port and returns its address and root file.
func start(t testing.TB, src kube.Source) (*server, string, string) {
	t.Helper()
	rootFile := filepath.Join(t.TempDir(), "root.pem")
	s, err := newServer(t.Context(), Config{
		Source: src, Authenticator: ca.LabTokens{Key: labKey}, TrustNodeClaim: true, RootCAOut: rootFile,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rootFile, s.authority.RootPEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run returned %v", err)
		}
	})
	return s, "https://" + l.Addr().String(), rootFile
}

func TestAProxyGetsAddressesAndCertificates(t *testing.T) {
	src := source{make(chan kube.Snapshot, 1)}
	s, address, rootFile := start(t, src)
	if code := get(s, "/ready").Code; code != http.StatusServiceUnavailable {
		t.Errorf("/ready before the first configuration says %d", code)
	}
	objects := kube.NewObjects(pod("default", "sleep", "n1", "10.0.0.1"), pod("default", "web", "n2", "10.0.0.2"))
	src.snaps <- kube.Snapshot{Objects: objects}

	token := func() (string, error) { return ztunnelToken(t, "n1"), nil }
	transport, err := xds.NewTransport(xds.TransportConfig{Address: address, RootCA: rootFile, Token: token, ClusterID: "Kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	client := xds.NewClient(xds.Config{Transport: transport, Node: xds.Node{
		ID:       "ztunnel~1.1.1.1~ztunnel-n1.istio-system~istio-system.svc.cluster.local",
		Metadata: map[string]string{"NAMESPACE": "istio-system", "NODE_NAME": "n1"},
	}})
	got := &addresses{names: map[string]bool{}, came: make(chan struct{}, 1)}
	decode := func(_ string, body []byte) (*workloadpb.Address, error) {
		a := &workloadpb.Address{}
		return a, proto.Unmarshal(body, a)
	}
	xds.Subscribe(client, xds.Type[*workloadpb.Address]{URL: xds.AddressType, Decode: decode}, got, xds.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	defer func() { cancel(); <-done }()

	<-client.Ready()
	got.wait(t, "Kubernetes//Pod/default/sleep", true)
	got.wait(t, "Kubernetes//Pod/default/web", true)
	src.snaps <- kube.Snapshot{Objects: objects.With([]kube.Object{pod("default", "new", "n1", "10.0.0.3")},
		[]kube.Key{{Kind: "Pod", Name: kube.Name{Namespace: "default", Name: "web"}}})}
	got.wait(t, "Kubernetes//Pod/default/new", true)
	got.wait(t, "Kubernetes//Pod/default/web", false)
	if body := get(s, "/debug/syncz").Body.String(); !strings.Contains(body, `"client": "ztunnel~1.1.1.1`) {
		t.Errorf("/debug/syncz does not show the client: %s", body)
	}
	if body := get(s, "/metrics").Body.String(); !strings.Contains(body, "ambit_xds_clients 1\n") || !strings.Contains(body, "ambit_controlplane_ready 1\n") {
		t.Errorf("/metrics: %s", body)
	}

	caClient, err := svid.NewCAClient(svid.CAClientConfig{Address: address, RootCA: rootFile, Token: token, ClusterID: "Kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	defer caClient.Close()
	manager := svid.NewManager(svid.Config{CA: caClient})
	managed := make(chan error, 1)
	go func() { managed <- manager.Run(ctx) }()
	defer func() { cancel(); <-managed }()
	id, err := spiffe.New("cluster.local", "default", "new")
	if err != nil {
		t.Fatal(err)
	}
	if sv, err := manager.Fetch(ctx, id); err != nil || sv.ID != id {
		t.Errorf("certificate of a pod on the node: %v, %v", sv, err)
	}
	if body := get(s, "/metrics").Body.String(); !strings.Contains(body, "ambit_ca_certificates_issued_total 1\n") || !strings.Contains(body, `ambit_ca_requests_refused_total{reason="identity"} 0`) {
		t.Errorf("/metrics: %s", body)
	}
}

func xdsNode(node string) *corepb.Node {
	field := func(s string) *structpb.Value { return structpb.NewStringValue(s) }
	return &corepb.Node{
		Id:       "ztunnel~1.1.1.1~ztunnel-" + node + ".istio-system~istio-system.svc.cluster.local",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"NAMESPACE": field("istio-system"), "NODE_NAME": field(node)}},
	}
}

func get(s *server, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", path, nil)
	r.RemoteAddr = "127.0.0.1:40000"
	s.admin().ServeHTTP(w, r)
	return w
}

func TestDebugEndpointsAreForThisHostAlone(t *testing.T) {
	s := &server{}
	for _, path := range []string{"/debug/", "/debug/syncz", "/debug/problems", "/debug/status", "/debug/ca"} {
		for _, from := range []string{"10.244.1.7:40000", "[fd00::7]:40000", "@", ""} {
			w, r := httptest.NewRecorder(), httptest.NewRequest("GET", path, nil)
			r.RemoteAddr = from
			s.admin().ServeHTTP(w, r)
			if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "kubectl port-forward") {
				t.Errorf("GET %s from %q: %d %q, want 403 and how it is done", path, from, w.Code, w.Body)
			}
		}
	}
	w := httptest.NewRecorder()
	s.admin().ServeHTTP(w, httptest.NewRequest("POST", "/debug/ca/rotate", nil))
	if w.Code != http.StatusForbidden {
		t.Errorf("POST /debug/ca/rotate from elsewhere: %d", w.Code)
	}
}

func TestPlaintextIsRefusedByAddress(t *testing.T) {
	if _, _, err := rootca.HostPort("http://10.0.0.1:15012"); err == nil {
		t.Error("a plaintext address was accepted")
	}
}
