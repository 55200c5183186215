package diagnose

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
)

// marker is what a secret is in these tests: it must not come out.
const marker = "hunter2hunter2"

func TestRedactedObjectsHaveNoSecret(t *testing.T) {
	objects := kubetest.Decode(t, strings.ReplaceAll(`
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: n, annotations: {kubectl.kubernetes.io/last-applied-configuration: '{"x":"MARK"}', note: 'password=MARK'}}, spec: {containers: [{name: keepme, image: x, command: [run, MARK], args: [--key, MARK], env: [{name: HARMLESS, value: MARK}], livenessProbe: {httpGet: {port: 80, httpHeaders: [{name: Authorization, value: MARK}]}}}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: n}, data: {keepme: MARK}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: keepme, namespace: n}, spec: {rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Api-Key, value: MARK}, {name: x-other, value: Bearer MARK}]}}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: keepme, namespace: n}, spec: {hosts: [a], http: [{headers: {request: {set: {authorization: MARK, cookie: MARK}}}, route: [{destination: {host: a}}]}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: keepme, namespace: n}, spec: {rules: [{when: [{key: 'request.headers[x-token]', values: [MARK]}]}]}}
---
{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {name: keepme, namespace: n}, spec: {configPatches: [{applyTo: HTTP_FILTER, patch: {operation: ADD, value: {name: x, typed_config: {"@type": t, client_secret: MARK, uri: 'https://user:MARK@host/'}}}}]}}
`, "MARK", marker))
	for _, k := range objects.Keys() {
		body, err := RedactObject(objects.Lookup(k), false)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(body), marker) || !strings.Contains(string(body), "keepme") {
			t.Errorf("%s:\n%s", k, body)
		}
	}
	if n := len(objects.Keys()); n != 6 || objects.Lookup(kube.Key{Kind: kube.KindPod, Name: kube.Name{Namespace: "n", Name: "p"}}) == nil {
		t.Errorf("%d objects", n)
	}
}

func TestRedactedTextHasNoSecret(t *testing.T) {
	for _, text := range []string{
		"-----BEGIN EC PRIVATE KEY-----\n" + marker + "\n-----END EC PRIVATE KEY-----",
		"authorization: Bearer " + marker, "authorization=Basic " + marker, `{"access_token": "` + marker + `"`, "password=" + marker + "&x=1",
		"https://me:" + marker + "@host/path", "token eyJhbGciOiJIUzI1.eyJ" + marker + ".sig", "--api-key=" + marker,
	} {
		got := string(RedactText([]byte("before " + text + " after")))
		if strings.Contains(got, marker) || !strings.Contains(got, "before") || !strings.Contains(got, "after") {
			t.Errorf("%q: %q", text, got)
		}
	}
	line := `info access connection complete src.identity="spiffe://cluster.local/ns/shop/sa/web" dst.addr=10.0.0.1:80 error="no certificate for spiffe://cluster.local/ns/shop/sa/web"`
	if got := string(RedactText([]byte(line))); got != line {
		t.Errorf("a line without secrets: %q", got)
	}
	if got := string(RedactJSON([]byte(`{"data": "{\"password\": \"` + marker + `\"}", "tokenReview": {"kept": 1}, "isToken": true}`))); strings.Contains(got, marker) || !strings.Contains(got, "kept") || !strings.Contains(got, "true") {
		t.Errorf("a document in a document: %s", got)
	}
}
