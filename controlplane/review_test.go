package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/admission"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

func decode(t *testing.T, text string) []kube.Object {
	t.Helper()
	objects, problems := kube.Decode("test.yaml", []byte(text))
	if len(problems) > 0 {
		t.Fatal(problems[0].Error())
	}
	return objects
}

const (
	badRoute = `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web, namespace: demo}, spec: {hosts: [web],
 http: [{retries: {attempts: 2, retryOn: "no-such-condition"}, corsPolicy: {allowOrigins: [{regex: "("}]}, route: [{destination: {host: web}}]}]}}`
	badFilter = `{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {name: f, namespace: demo}, spec: {targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: wp}],
 configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: often}}}]}}`
	l7Policy = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: l7, namespace: demo}, spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}}`
	nowhere  = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nowhere, namespace: demo}, spec: {targetRefs: [{kind: Service, group: "", name: none}]}}`
	orphan   = `{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: orphan, namespace: demo}, spec: {parentRefs: [{kind: Service, group: "", name: none}], rules: [{backendRefs: [{name: web, port: 80}]}]}}`
)

// TestAReviewSaysWhatBecomesOfAnObject: the answer is what would be reported if the object were stored, and nothing of the
// object stays.
func TestAReviewSaysWhatBecomesOfAnObject(t *testing.T) {
	src := source{make(chan kube.Snapshot, 1)}
	s, _, _ := start(t, src)
	if _, err := s.feed.judge(t.Context(), decode(t, l7Policy)[0]); err != errNotSynced {
		t.Errorf("before the first configuration: %v", err)
	}
	src.snaps <- kube.Snapshot{Objects: kube.NewObjects(waypointObjects()...)}
	for !s.feed.synced.Load() {
		time.Sleep(time.Millisecond)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.serveReviews(ctx, listener) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.authority.RootPEM())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "ambit-controlplane.istio-system.svc"}}}
	defer client.CloseIdleConnections()
	review := func(object string) *admissionv1.AdmissionResponse {
		t.Helper()
		raw, err := yaml.YAMLToJSON([]byte(object))
		if err != nil {
			t.Fatal(err)
		}
		o := decode(t, object)[0]
		request := &admissionv1.AdmissionRequest{Operation: admissionv1.Create, Namespace: "demo", Name: o.GetName(), Object: runtime.RawExtension{Raw: raw}}
		request.Kind.Kind = string(kube.KeyOf(o).Kind)
		body, err := json.Marshal(admissionv1.AdmissionReview{Request: request})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Post("https://"+listener.Addr().String()+admission.Path, "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer admissionv1.AdmissionReview
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return answer.Response
	}
	before := s.feed.translator.Result()
	for _, c := range []struct {
		object, refused string
		warnings        []string // parts
	}{
		{object: badFilter, refused: "spec.configPatches[0]"},
		{object: badRoute, refused: "the last good routes of the service stay in force"},
		{object: l7Policy, warnings: []string{"ztunnel does not support HTTP attributes (found: methods)"}},
		{object: nowhere, warnings: []string{"TargetNotFound"}},
		{object: orphan, warnings: []string{"spec.parentRefs[0]: Service demo/none does not exist"}},
		{object: strings.Replace(l7Policy, "methods: [GET]", `ports: ["80"]`, 1)},
	} {
		a := review(c.object)
		if a.Allowed != (c.refused == "") || !a.Allowed && !strings.Contains(a.Result.Message, c.refused) {
			t.Errorf("%s: allowed %v, %+v, want %q", c.object, a.Allowed, a.Result, c.refused)
		}
		for _, want := range c.warnings {
			if !slices.ContainsFunc(a.Warnings, func(w string) bool { return strings.Contains(w, want) }) {
				t.Errorf("%s: %q is not in %q", c.object, want, a.Warnings)
			}
		}
		if len(c.warnings) == 0 && len(a.Warnings) > 0 {
			t.Errorf("%s: warnings %q", c.object, a.Warnings)
		}
	}
	after := s.feed.translator.Result()
	if d := cmp.Diff(before.Problems, after.Problems); d != "" {
		t.Errorf("problems stay (-before +after):\n%s", d)
	}
	for name, r := range before.Authorizations {
		if after.Authorizations[name] == nil || after.Authorizations[name].Version != r.Version {
			t.Errorf("policy %s is another", name)
		}
	}
	if len(after.Authorizations) != len(before.Authorizations) || len(after.Addresses) != len(before.Addresses) {
		t.Error("something of what was reviewed stays")
	}
}
