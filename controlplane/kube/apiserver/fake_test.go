package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/dynamic/fake"
	ktesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// TestMain takes away client-go's brake on errors: it compares the time of a synctest bubble with that outside.
func TestMain(m *testing.M) {
	utilruntime.ErrorHandlers = nil
	goleak.VerifyTestMain(m)
}

// fakeServer is client-go's fake of an API server, and discovery beside it.
type fakeServer struct {
	*fake.FakeDynamicClient

	mu     sync.Mutex
	served map[schema.GroupVersionResource]string // kind; guarded by mu
	broken map[string]error                       // by resource, "" = discovery; guarded by mu
}

// builtIn are the resources that every API server has.
var builtIn = map[schema.GroupVersionResource]string{
	{Version: "v1", Resource: "namespaces"}:                                "Namespace",
	{Version: "v1", Resource: "nodes"}:                                     "Node",
	{Version: "v1", Resource: "pods"}:                                      "Pod",
	{Version: "v1", Resource: "services"}:                                  "Service",
	{Version: "v1", Resource: "configmaps"}:                                "ConfigMap",
	{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}: "EndpointSlice",
}

// later are resources of definitions.
var (
	peerAuthentications = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
	pods                = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
)

func newFake(t *testing.T, manifests ...string) *fakeServer {
	t.Helper()
	lists := map[schema.GroupVersionResource]string{
		peerAuthentications: "PeerAuthenticationList", secrets: "SecretList", leases: "LeaseList", events: "EventList",
		definitions: "CustomResourceDefinitionList", tokenReviews: "TokenReviewList",
	}
	lists[schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}] = "GatewayList"
	for gvr, kind := range builtIn {
		lists[gvr] = kind + "List"
	}
	var objects []runtime.Object
	for _, m := range manifests {
		objects = append(objects, object(t, m))
	}
	s := &fakeServer{
		FakeDynamicClient: fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, objects...),
		served:            maps.Clone(builtIn), broken: map[string]error{},
	}
	for _, verb := range []string{"list", "watch"} {
		fail := func(a ktesting.Action) (bool, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			err := s.broken[a.GetResource().Resource]
			return err != nil && a.GetVerb() == verb, err
		}
		s.PrependReactor(verb, "*", func(a ktesting.Action) (bool, runtime.Object, error) {
			handled, err := fail(a)
			return handled, nil, err
		})
	}
	return s
}

// serve adds a resource to those that discovery names, or with kind "" takes it away.
func (s *fakeServer) serve(gvr schema.GroupVersionResource, kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind == "" {
		delete(s.served, gvr)
	} else {
		s.served[gvr] = kind
	}
}

// fail makes listing and watching a resource ("" = discovery) fail, or work again.
func (s *fakeServer) fail(resource string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken[resource] = err
}

func (s *fakeServer) client() *Client { return &Client{dynamic: s.FakeDynamicClient, get: s.discovery} }

// discovery answers /apis, /api/v1 and /apis/group/version.
func (s *fakeServer) discovery(_ context.Context, path string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.broken[""]; err != nil {
		return nil, err
	}
	if path == "/apis" {
		var list metav1.APIGroupList
		for gvr := range s.served {
			if gvr.Group != "" {
				list.Groups = append(list.Groups, metav1.APIGroup{Name: gvr.Group, Versions: []metav1.GroupVersionForDiscovery{
					{GroupVersion: gvr.GroupVersion().String(), Version: gvr.Version},
				}})
			}
		}
		return json.Marshal(list)
	}
	var list metav1.APIResourceList
	for gvr, kind := range s.served {
		if pathOf(gvr.GroupVersion()) == path {
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: gvr.Resource, Kind: kind})
		}
	}
	if list.APIResources == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, path)
	}
	return json.Marshal(list)
}

func object(t *testing.T, manifest string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	body, err := yaml.YAMLToJSON([]byte(manifest))
	if err == nil {
		err = u.UnmarshalJSON(body)
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// create, update and remove do what a user does.
func (s *fakeServer) create(t *testing.T, gvr schema.GroupVersionResource, manifest string) {
	t.Helper()
	u := object(t, manifest)
	if _, err := s.Resource(gvr).Namespace(u.GetNamespace()).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (s *fakeServer) update(t *testing.T, gvr schema.GroupVersionResource, namespace, name string, change func(o map[string]any)) {
	t.Helper()
	r := s.Resource(gvr).Namespace(namespace)
	u, err := r.Get(t.Context(), name, metav1.GetOptions{})
	if err == nil {
		change(u.Object)
		_, err = r.Update(t.Context(), u, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *fakeServer) remove(t *testing.T, gvr schema.GroupVersionResource, namespace, name string) {
	t.Helper()
	if err := s.Resource(gvr).Namespace(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// watched is a running Source and what it has delivered. To be used in a synctest bubble.
type watched struct {
	snaps []kube.Snapshot
	log   *bytes.Buffer
}

// follow runs a source until the test ends.
func follow(t *testing.T, s *fakeServer) *watched {
	t.Helper()
	w := &watched{log: &bytes.Buffer{}}
	ctx, cancel := context.WithCancel(t.Context())
	src := NewSource(SourceConfig{Client: s.client(), Logger: slog.New(slog.NewTextHandler(w.log, nil))})
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, func(snap kube.Snapshot) { w.snaps = append(w.snaps, snap) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		synctest.Wait()
	})
	return w
}

// state is the newest snapshot: keys of objects, and problems.
func (w *watched) state() string {
	if len(w.snaps) == 0 {
		return "nothing"
	}
	last := w.snaps[len(w.snaps)-1]
	var out []string
	for _, k := range last.Objects.Keys() {
		out = append(out, k.String())
	}
	for _, p := range last.Problems {
		out = append(out, "! "+p.Error())
	}
	return strings.Join(slices.DeleteFunc(out, func(s string) bool { return s == "" }), "\n")
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\ngot  %v\nwant %v", what, got, want)
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
