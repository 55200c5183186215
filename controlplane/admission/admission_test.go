package admission

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// ask has an object, and perhaps the one before it (YAML), reviewed and returns the answer.
func ask(t *testing.T, judge Judge, object, old string) (*admissionv1.AdmissionResponse, int) {
	t.Helper()
	raw := func(text string) runtime.RawExtension {
		if text == "" {
			return runtime.RawExtension{}
		}
		body, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return runtime.RawExtension{Raw: body}
	}
	r := &admissionv1.AdmissionRequest{UID: "u1", Operation: admissionv1.Create, Object: raw(object), OldObject: raw(old)}
	if old != "" {
		r.Operation = admissionv1.Update
	}
	var head metav1.PartialObjectMetadata
	if err := json.Unmarshal(r.Object.Raw, &head); err != nil {
		t.Fatal(err)
	}
	k := head.GroupVersionKind()
	r.Kind = metav1.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind}
	r.Namespace, r.Name = "demo", head.Name
	body, err := json.Marshal(admissionv1.AdmissionReview{Request: r})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	NewHandler(judge, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest("POST", Path, strings.NewReader(string(body))))
	var answer admissionv1.AdmissionReview
	if w.Code != http.StatusOK {
		return nil, w.Code
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Response == nil || answer.Kind != "AdmissionReview" || answer.APIVersion != "admission.k8s.io/v1" {
		t.Fatalf("%v: %s", err, w.Body)
	}
	if answer.Response.UID != "u1" {
		t.Errorf("the answer is for %q", answer.Response.UID)
	}
	return answer.Response, w.Code
}

const (
	policy  = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: demo}, spec: {rules: [{from: [{source: {namespaces: [a]}}]}]}}`
	unknown = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: demo}, spec: {rules: [{from: [{source: {namespace: [a]}}]}]}}`
)

func TestReview(t *testing.T) {
	of := func(kind kube.Kind, name string) kube.Key {
		return kube.Key{Kind: kind, Name: kube.Name{Namespace: "demo", Name: name}}
	}
	found := []kube.Problem{
		{Severity: kube.Warning, Object: of("AuthorizationPolicy", "p"), Field: "spec.targetRefs", Cause: "nothing is there", Accepted: "a Service"},
		{Severity: kube.Ignored, Object: of("AuthorizationPolicy", "p"), Cause: "half of it"},
	}
	rejected := append(found, kube.Problem{Object: of("Service", "web"), Cause: "too much"}, kube.Problem{Object: of("AuthorizationPolicy", "p"), Field: "spec.rules", Cause: "wrong"})
	// names says which object was judged, as a warning.
	names := func(_ context.Context, o kube.Object) ([]kube.Problem, error) {
		return []kube.Problem{{Severity: kube.Warning, Object: of("x", "y"), Cause: o.GetName() + " " + o.GetCreationTimestamp().String()[:2]}}, nil
	}
	says := func(problems []kube.Problem) Judge {
		return func(context.Context, kube.Object) ([]kube.Problem, error) { return problems, nil }
	}
	never := func(context.Context, kube.Object) ([]kube.Problem, error) {
		t.Error("it was judged")
		return rejected, nil
	}
	for name, c := range map[string]struct {
		judge       Judge
		object, old string
		refused     string // "" = allowed
		warnings    []string
	}{
		"what is well is allowed": {judge: says(nil), object: policy},
		"what works in part is a warning": {judge: says(found), object: policy, warnings: []string{
			"warning: spec.targetRefs: nothing is there (accepted: a Service)", "ignored: half of it",
		}},
		"what is rejected is refused, and names the object if it is another": {judge: says(rejected), object: policy,
			refused: "Service demo/web: too much; spec.rules: wrong", warnings: []string{"warning: spec.targetRefs: nothing is there (accepted: a Service)", "ignored: half of it"}},
		"a field that nobody knows is refused": {judge: never, object: unknown,
			refused: `spec.rules[0].from[0].source.namespace: unknown field`},
		"a kind without meaning is said to have none": {judge: never,
			object:   `{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: s, namespace: demo}, spec: {}}`,
			warnings: []string{"ignored: kind Sidecar of networking.istio.io/v1 has no meaning to this control plane"}},
		"an update that says the same passes": {judge: never, object: strings.Replace(unknown, "name: p,", `name: p, annotations: {"kubectl.kubernetes.io/last-applied-configuration": x},`, 1), old: unknown},
		"another label is another object": {judge: never, object: strings.Replace(unknown, "name: p,", `name: p, labels: {a: b},`, 1), old: unknown,
			refused: `spec.rules[0].from[0].source.namespace: unknown field`},
		"what is being deleted passes":     {judge: never, object: strings.Replace(unknown, "name: p,", `name: p, deletionTimestamp: "2026-01-01T00:00:00Z", labels: {a: b},`, 1), old: unknown},
		"a name that is still to be made":  {judge: names, object: strings.Replace(policy, "name: p,", "generateName: p-,", 1), warnings: []string{"warning: x demo/y: p-new 20"}},
		"a foreign route is none of ours":  {judge: never, object: `{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: demo}, spec: {parentRefs: [{name: nginx}], novel: 1}}`},
		"a foreign Gateway is none either": {judge: never, object: `{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: g, namespace: demo}, spec: {gatewayClassName: nginx, novel: 1}}`},
		"a route of a Service is ours": {judge: never, object: `{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: demo}, spec: {parentRefs: [{kind: Service, group: "", name: web}], novel: 1}}`,
			refused: "spec.novel: unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			a, code := ask(t, c.judge, c.object, c.old)
			if a == nil {
				t.Fatalf("status %d", code)
			}
			if a.Allowed != (c.refused == "") || !a.Allowed && !strings.HasPrefix(a.Result.Message, c.refused) {
				t.Errorf("allowed %v, %+v, want %q", a.Allowed, a.Result, c.refused)
			}
			if d := cmp.Diff(c.warnings, a.Warnings); d != "" {
				t.Errorf("warnings (-want +got):\n%s", d)
			}
		})
	}
}

func TestWithoutAnAnswerTheAPIServerDecides(t *testing.T) {
	fails := func(context.Context, kube.Object) ([]kube.Problem, error) { return nil, errors.New("too early") }
	if a, code := ask(t, fails, policy, ""); code != http.StatusServiceUnavailable {
		t.Errorf("a judge that cannot tell: status %d, %+v", code, a)
	}
	for name, r := range map[string]*http.Request{
		"another method": httptest.NewRequest("GET", Path, nil),
		"another path":   httptest.NewRequest("POST", "/", strings.NewReader("{}")),
		"no review":      httptest.NewRequest("POST", Path, strings.NewReader(`{"request": null}`)),
		"no JSON":        httptest.NewRequest("POST", Path, strings.NewReader(`x`)),
		"no object":      httptest.NewRequest("POST", Path, strings.NewReader(`{"request": {"operation": "CREATE", "object": []}}`)),
		"too long":       httptest.NewRequest("POST", Path, strings.NewReader(strings.Repeat(" ", maxBody+1))),
	} {
		w := httptest.NewRecorder()
		NewHandler(fails, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
		if w.Code < 400 {
			t.Errorf("%s: status %d", name, w.Code)
		}
	}
}

// FuzzReview: whatever an API server or somebody else sends, there is an answer.
func FuzzReview(f *testing.F) {
	f.Add(`{"request": {"uid": "u", "operation": "CREATE", "kind": {"group": "security.istio.io", "kind": "AuthorizationPolicy"}, "object": {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p"}}}}`)
	f.Add(`{"request": {"operation": "UPDATE", "object": {"metadata": 1}, "oldObject": {"metadata": {"annotations": []}}}}`)
	f.Fuzz(func(t *testing.T, body string) {
		w := httptest.NewRecorder()
		h := NewHandler(func(context.Context, kube.Object) ([]kube.Problem, error) { return nil, nil }, slog.New(slog.DiscardHandler))
		h.ServeHTTP(w, httptest.NewRequest("POST", Path, strings.NewReader(body)))
		var answer admissionv1.AdmissionReview
		if w.Code == http.StatusOK && (json.Unmarshal(w.Body.Bytes(), &answer) != nil || answer.Response == nil) {
			t.Errorf("%q: %s", body, w.Body)
		}
	})
}
