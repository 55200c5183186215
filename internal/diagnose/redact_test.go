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
