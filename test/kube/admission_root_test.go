package kube

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// checkedEach is how often the leader looks at the webhook's configuration when nothing else changes.
const checkedEach = time.Minute

// reviewed are objects and what kubectl says of them: an error when they are refused, a warning when they are stored.
var reviewed = []struct{ name, object, refused, warned string }{
	{"a policy whose address is none", `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: km-review},
 spec: {action: DENY, rules: [{from: [{source: {ipBlocks: ["10.0.0.0/99"]}}]}]}}`,
		`spec.rules[0].from[0].source.ipBlocks[0]: invalid CIDR "10.0.0.0/99" (accepted: an address or a CIDR, for example 10.0.0.0/8)`, ""},
	{"a policy whose port is a name", `{apiVersion: security.istio.io/v1beta1, kind: AuthorizationPolicy, metadata: {name: p, namespace: km-review},
 spec: {rules: [{to: [{operation: {ports: [http]}}]}]}}`, `spec.rules[0].to[0].operation.ports[0]: invalid port "http" (accepted: 1..65535)`, ""},
	{"a policy that only a waypoint can enforce", `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: l7, namespace: km-review},
 spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}}`, "", "ztunnel does not support HTTP attributes (found: methods)"},
	{"a policy for a Service that is not there", `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nowhere, namespace: km-review},
 spec: {targetRefs: [{kind: Service, group: "", name: none}]}}`, "", "TargetNotFound: Service km-review/none does not exist"},
	{"a route that no waypoint could read", `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: server, namespace: km-review},
 spec: {hosts: [server], http: [{corsPolicy: {allowOrigins: [{regex: "("}]}, route: [{destination: {host: server}}]}]}}`, "spec.http[0]: error parsing regexp", ""},
	{"a filter with a value of another type", `{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {name: f, namespace: km-review},
 spec: {targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}], configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: often}}}]}}`,
		"spec.configPatches[0].patch.value: invalid google.protobuf.Duration", ""},
	{"a route for a Service that is not there", `{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: orphan, namespace: km-review},
 spec: {parentRefs: [{kind: Service, group: "", name: none, port: 80}], rules: [{backendRefs: [{name: server, port: 80}]}]}}`, "", "Service km-review/none does not exist"},
	{"a kind that means nothing here", `{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: s, namespace: km-review}, spec: {egress: [{hosts: ["./*"]}]}}`,
		"", "kind Sidecar of networking.istio.io/v1 has no meaning to this control plane"},
	{"a policy that is well", `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: well, namespace: km-review}, spec: {mtls: {mode: STRICT}}}`, "", ""},
}

// TestRootAWrongObjectIsRefusedWithTheText: kubectl says at once what would otherwise be found out by looking.
func TestRootAWrongObjectIsRefusedWithTheText(t *testing.T) {
	m := newMesh(t, "km-review", "km-outside")
	hook := "ambit-controlplane-" + m.system
	roots := func() error {
		got, err := kubectl(t.Context(), "", "get", "validatingwebhookconfiguration", hook, "-o", "jsonpath={.webhooks[*].clientConfig.caBundle}")
		if err != nil {
			return err
		}
		want, err := kubectl(t.Context(), "", "-n", m.system, "get", "configmap", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)
		if err != nil {
			return err
		}
		if have, _ := base64.StdEncoding.DecodeString(got); strings.TrimSpace(string(have)) != want || want == "" {
			return fmt.Errorf("the webhook has %q, want %q", have, want)
		}
		return nil
	}
	eventually(t, "the mesh's roots in the webhook", roots)
	apply(t, `
{apiVersion: v1, kind: Namespace, metadata: {name: km-review, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: km-review}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: km-review}, spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}}`)
	must(t, "", "-n", "km-review", "wait", "--for=condition=Programmed", "gateway/waypoint", "--timeout=90s")
	eventually(t, "the Service to be bound", func() error {
		out, err := kubectl(t.Context(), "", "-n", "km-review", "get", "service", "server", "-o", `jsonpath={.status.conditions[?(@.type=="istio.io/WaypointBound")].status}`)
		if err != nil || out != "True" {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	for _, c := range reviewed {
		t.Run(c.name, func(t *testing.T) {
			out, err := kubectlBoth(t, c.object, "apply", "-f", "-")
			t.Log(out)
			switch want := c.refused; {
			case want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case want != "" && (err == nil || !strings.Contains(out, `admission webhook "validation.ambit-controlplane.svc" denied the request: `+want)):
				t.Errorf("want %q refused", want)
			}
			if warned := strings.Contains(out, "Warning: "); warned != (c.warned != "") || !strings.Contains(out, c.warned) {
				t.Errorf("want the warning %q", c.warned)
			}
		})
	}
	t.Run("what is stored with a flaw can be labelled", func(t *testing.T) {
		if out, err := kubectlBoth(t, "", "-n", "km-review", "annotate", "authorizationpolicy", "l7", "a=b"); err != nil {
			t.Error(out)
		}
	})
	t.Run("an object without a status has an event", func(t *testing.T) {
		// In the root namespace, where nothing is reviewed.
		apply(t, `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: km-selects, namespace: `+m.system+`}, spec: {selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}}}`)
		defer must(t, "", "-n", m.system, "delete", "peerauthentication", "km-selects")
		eventually(t, "the event", func() error {
			out, err := kubectl(t.Context(), "", "-n", m.system, "get", "events", "--field-selector=involvedObject.name=km-selects", "-o", "jsonpath={.items[*].message}")
			if err != nil || !strings.Contains(out, "a selector in the root namespace selects nothing") {
				return fmt.Errorf("%w: %q", err, out)
			}
			return nil
		})
	})
	t.Run("whoever takes the roots away gets them back", func(t *testing.T) {
		must(t, "", "patch", "validatingwebhookconfiguration", hook, "--type=json", `-p=[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]`)
		eventuallyWithin(t, 2*patience+checkedEach, "the roots", roots)
	})
	t.Run("without a control plane objects are stored", func(t *testing.T) {
		must(t, "", "-n", m.system, "scale", "deployment/ambit-controlplane", "--replicas=0")
		back := func() {
			must(t, "", "-n", m.system, "scale", "deployment/ambit-controlplane", "--replicas=1")
			must(t, "", "-n", m.system, "rollout", "status", "deployment/ambit-controlplane", "--timeout=90s")
		}
		defer back()
		must(t, "", "-n", m.system, "wait", "--for=delete", "pod", "-l", "app=ambit-controlplane", "--timeout=90s")
		if out, err := kubectlBoth(t, reviewed[0].object, "apply", "-f", "-"); err != nil {
			t.Error(out)
		}
	})
	t.Run("and told of when it is back", func(t *testing.T) {
		eventually(t, "the event", func() error {
			out, err := kubectl(t.Context(), "", "-n", "km-review", "get", "events", "--field-selector=involvedObject.name=p", "-o", "jsonpath={.items[*].message}")
			if err != nil || !strings.Contains(out, reviewed[0].refused) {
				return errors.Join(err, fmt.Errorf("got %q", out))
			}
			return nil
		})
	})
}
