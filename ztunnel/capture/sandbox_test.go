package capture

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// fakeCluster knows one pod.
type fakeCluster struct {
	pod      podsock.Pod
	err      error
	admitted []string
}

func (c *fakeCluster) Resolve(_ context.Context, s podsock.Sandbox) (podsock.Pod, error) {
	p := c.pod
	p.Netns = s.Netns
	return p, c.err
}

func (c *fakeCluster) Admitted(p podsock.Pod) { c.admitted = append(c.admitted, p.UID) }

func TestASandboxIsCapturedAsTheClusterDescribesItsPod(t *testing.T) {
	n := newNode(t)
	c := &fakeCluster{pod: *n.pod("a")}
	n.cfg.Cluster = c
	s := podsock.Sandbox{UID: "a", Namespace: "default", Name: "a", Netns: n.netns("first")}
	if r, err := n.SetSandbox(t.Context(), s); err != nil || r.Result != podsock.Captured || len(c.admitted) != 1 {
		t.Fatalf("%+v, %v, %v", r, err, c.admitted)
	}
	n.want("a", stateCaptured)
	c.err = errors.New("no such pod")
	if _, err := n.SetSandbox(t.Context(), s); err == nil || !strings.Contains(err.Error(), "look up pod default/a: no such pod") || len(c.admitted) != 1 {
		t.Errorf("%v, %v", err, c.admitted)
	}
}

func TestTheEndOfASandboxDoesNotTouchTheOneThatTookItsPlace(t *testing.T) {
	n := newNode(t)
	n.cfg.Cluster = &fakeCluster{pod: *n.pod("a")}
	first := podsock.Sandbox{Namespace: "default", Name: "a", Netns: n.netns("first")}
	second := first
	second.Netns = n.netns("second")
	for _, s := range []podsock.Sandbox{first, second} {
		if _, err := n.SetSandbox(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.RemoveSandbox(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	n.want("a", stateCaptured)
	for range 2 {
		if err := n.RemoveSandbox(t.Context(), second); err != nil {
			t.Fatal(err)
		}
		n.want("a", "")
	}
}

func TestACaptureWithoutClusterRefusesSandboxesForGood(t *testing.T) {
	n := newNode(t)
	for body, want := range map[string]string{
		`{"namespace":"shop","name":"web"}`: "cannot look up pod shop/web itself", `{`: "decode pod",
	} {
		w := httptest.NewRecorder()
		n.handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/sandboxes/add", strings.NewReader(body)))
		if w.Code != http.StatusUnprocessableEntity || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
}
