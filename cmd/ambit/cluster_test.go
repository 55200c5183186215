package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// apiServer answers what the command line asks of a cluster: what kinds there are, and lists of objects. It keeps what it is
// asked to change, and changes nothing.
type apiServer struct {
	*httptest.Server
	objects []*unstructured.Unstructured

	mu      sync.Mutex
	changes []string // METHOD path?query body
}

const shop = `
{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: red, istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {team: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: lone, labels: {team: blue}}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-1}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ambit-controlplane-1, namespace: istio-system, labels: {app: ambit-controlplane}}, spec: {nodeName: node-1}, status: {phase: Running}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ztunnel-a, namespace: istio-system, labels: {app: ztunnel}}, spec: {nodeName: node-1}, status: {phase: Running}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ztunnel-b, namespace: istio-system, labels: {app: ztunnel}}, spec: {nodeName: node-2}, status: {phase: Running}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web, tier: front}}, spec: {nodeName: node-1}, status: {phase: Running}}
---
{apiVersion: v1, kind: Pod, metadata: {name: cart-1, namespace: shop, labels: {app: cart}}, spec: {nodeName: node-2}, status: {phase: Running}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop, labels: {app: cart}}, spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: shop, labels: {app: nobody}}, spec: {clusterIP: 10.96.0.8, selector: {app: nobody}, ports: [{port: 80}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: shop, labels: {istio.io/rev: canary, track: a}}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}, status: {addresses: [{type: IPAddress, value: 10.96.0.9}], conditions: [{type: Programmed, status: "True", reason: Programmed, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: second, namespace: shop, labels: {track: b}}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
`

func newAPIServer(t *testing.T, manifests string) *apiServer {
	t.Helper()
	s := &apiServer{}
	for doc := range strings.SplitSeq(manifests, "---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			t.Fatal(err)
		}
		s.objects = append(s.objects, u)
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func plural(k schema.GroupVersionKind) string {
	r, _ := meta.UnsafeGuessKindToResource(k)
	return strings.Replace(r.Resource, "gatewaies", "gateways", 1)
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Path == "/version":
		answer(map[string]string{"gitVersion": "v1.34.0"})
	case strings.HasSuffix(r.URL.Path, "/portforward"):
		http.Error(w, "no port is forwarded in this test", http.StatusForbidden)
	case r.Method != http.MethodGet:
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.changes = append(s.changes, strings.TrimSpace(fmt.Sprintf("%s %s?%s %s", r.Method, r.URL.Path, r.URL.RawQuery, body)))
		s.mu.Unlock()
		answer(s.objects[0].Object)
	case len(path) == 2 && path[0] == "api":
		answer(s.kinds("", path[1]))
	case len(path) == 3 && path[0] == "apis":
		answer(s.kinds(path[1], path[2]))
	default:
		answer(s.list(path[len(path)-1], strings.Join(path[1:len(path)-1], "/")))
	}
}

func (s *apiServer) kinds(group, version string) *metav1.APIResourceList {
	gv := schema.GroupVersion{Group: group, Version: version}
	out := &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String()}
	for _, k := range kube.Kinds() {
		if g, versions := k.Versions(); g == group && slices.Contains(versions, version) {
			out.APIResources = append(out.APIResources, metav1.APIResource{Name: plural(gv.WithKind(string(k))), Kind: string(k), Verbs: metav1.Verbs{"list"}})
		}
	}
	return out
}

func (s *apiServer) list(resource, apiVersion string) map[string]any {
	items, kind := []any{}, "List"
	if resource == "networkpolicies" { // the one that is not read as whatever it is
		kind = "NetworkPolicyList"
	}
	for _, o := range s.objects {
		if o.GetAPIVersion() == apiVersion && plural(o.GroupVersionKind()) == resource {
			items = append(items, o.Object)
		}
	}
	return map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"resourceVersion": "1"}, "items": items}
}

// run runs the command line against the server and returns what it wrote and its exit status.
func (s *apiServer) run(t *testing.T, args ...string) (string, int) {
	t.Helper()
	s.configure(t)
	return runAmbit(t.Context(), strings.NewReader(""), args...)
}

// configure has the command line find the server.
func (s *apiServer) configure(t *testing.T) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	config := "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: \"" + s.URL + "\"}}]\nusers: [{name: u, user: {}}]\ncontexts: [{name: a, context: {cluster: a, user: u}}]\n"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", file)
}

// runAmbit runs the command line. An error is the last line of what it returns.
func runAmbit(ctx context.Context, input io.Reader, args ...string) (string, int) {
	var out bytes.Buffer
	c := rootCommand()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetIn(input)
	err := c.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(&out, "ambit: %v\n", err)
	}
	return out.String(), exitStatus(err)
}

func (s *apiServer) changed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.changes)
}
