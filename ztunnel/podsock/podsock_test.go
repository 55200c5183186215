package podsock

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"testing"
)

// serve answers every request at a socket.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return NewClient(path)
}

func TestARefusalIsTypedEvenWithoutJSON(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       Error
	}{
		{"with JSON", `{"error":"no","retry":true}`, Error{Status: 503, Text: "no", Retry: true}},
		{"without", "oops", Error{Status: 503, Text: "capture answered 503 Service Unavailable"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = w.Write([]byte(c.body))
			})
			var e *Error
			if _, err := cl.Add(t.Context(), &Pod{UID: "a"}); !errors.As(err, &e) || *e != c.want {
				t.Errorf("got %v, want %+v", err, c.want)
			}
		})
	}
}

func TestVerbsHaveTheirPaths(t *testing.T) {
	var got string
	cl := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Method + " " + r.URL.Path
		_, _ = w.Write([]byte("{}"))
	})
	for want, f := range map[string]func(context.Context, *Pod) (Result, error){
		"POST /v1/pods/add": cl.Add, "POST /v1/pods/update": cl.Update,
		"POST /v1/pods/remove": func(ctx context.Context, p *Pod) (Result, error) { return cl.Remove(ctx, p.UID) },
	} {
		if _, err := f(t.Context(), &Pod{}); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

func TestACaptureThatIsNotThereIsAnError(t *testing.T) {
	var e *Error
	if _, err := NewClient(filepath.Join(t.TempDir(), "none")).List(t.Context()); err == nil || errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
}

func TestAPodsOwnLabelGoesBeforeItsNamespaces(t *testing.T) { // redirection.md 1.2
	for _, c := range []struct {
		own, namespace string
		want           bool
	}{
		{"", "", false}, {"ambient", "", true}, {"none", "", false}, {"other", "", false},
		{"", "ambient", true}, {"ambient", "ambient", true}, {"none", "ambient", false}, {"other", "ambient", true},
	} {
		p := &Pod{Labels: map[string]string{LabelMode: c.own}, NamespaceLabels: map[string]string{LabelMode: c.namespace}}
		if got := p.WantsMesh(); got != c.want {
			t.Errorf("pod %q, namespace %q: %v", c.own, c.namespace, got)
		}
	}
}
