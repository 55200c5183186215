package kube

import (
	"strings"
	"testing"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
)

// stored decodes as from an API server and returns the problems as text.
func stored(body string) (Object, string) {
	o, problems := DecodeStored([]byte(body))
	var text []string
	for _, p := range problems {
		text = append(text, p.Error())
	}
	return o, strings.Join(text, "\n")
}

func TestStoredObjectsHaveTheDefaultsOfManifests(t *testing.T) {
	o, problems := stored(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a","namespace":"b"},"spec":{"ports":[{"port":80}]}}`)
	if problems != "" {
		t.Fatal(problems)
	}
	if got := o.(*corev1.Service).Spec.Ports[0].TargetPort.IntVal; got != 80 {
		t.Errorf("got target port %d, want 80", got)
	}
}

func TestStoredObjectsOfANewerKubernetesAreTaken(t *testing.T) {
	o, problems := stored(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"b"},"spec":{"nodeName":"n","newIn2030":{"x":1}}}`)
	if problems != "" || o.(*corev1.Pod).Spec.NodeName != "n" {
		t.Errorf("got %v, %s", o, problems)
	}
}

func TestStoredPoliciesAreReadStrictly(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{
			"an unknown field of a policy",
			`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"x","namespace":"d"},"spec":{"mtls":{"mod":"STRICT"}}}`,
			"PeerAuthentication d/x: spec.mtls.mod: unknown field (accepted: mode)",
		}, {
			"an unknown field of a route",
			`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"x","namespace":"d"},"spec":{"rulez":[]}}`,
			"HTTPRoute d/x: spec.rulez: unknown field (accepted: hostnames, parentRefs, rules, useDefaultGateways)",
		}, {
			"a wrong type in a kind of Kubernetes",
			`{"apiVersion":"v1","kind":"Service","metadata":{"name":"x","namespace":"d"},"spec":{"ports":[{"port":"a"}]}}`,
			"Service d/x: spec.ports[0].port: unexpected string (accepted: integer of 32 bits)",
		}, {
			"a value that validation refuses",
			`{"apiVersion":"v1","kind":"Service","metadata":{"name":"x","namespace":"d"},"spec":{"ports":[{"port":70000,"targetPort":1}]}}`,
			"Service d/x: spec.ports[0].port: invalid port 70000 (accepted: 1..65535)",
		}, {
			"another kind", `{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"x","namespace":"d"}}`,
			"Job d/x: kind Job of batch/v1 has no meaning to this control plane",
		}, {
			"no JSON", `{`, "unexpected end of JSON input (accepted: a Kubernetes object in JSON)",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if o, got := stored(c.body); got != c.want || o != nil {
				t.Errorf("got %v and\n%s\nwant\n%s", o, got, c.want)
			}
		})
	}
}

func TestStoredDurationsMayBeSpeltAsUsersDo(t *testing.T) {
	o, problems := stored(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"x","namespace":"d"},
		"spec":{"host":"a","trafficPolicy":{"outlierDetection":{"interval":"1m"}}}}`)
	if problems != "" || o == nil {
		t.Fatal(problems)
	}
	o, problems = stored(`{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"x","namespace":"d"},"spec":{}}`)
	if p, ok := o.(*securityv1.AuthorizationPolicy); problems != "" || !ok || p.Name != "x" {
		t.Fatal(problems)
	}
}

func FuzzDecodeStored(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}`))
	f.Add([]byte(`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"x"},"spec":{"mtls":{"mode":1}}}`))
	f.Add([]byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"x"},"spec":{"host":[]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		o, problems := DecodeStored(body)
		if (o == nil) == (len(problems) == 0) {
			t.Errorf("object %v and %d problems", o, len(problems))
		}
	})
}
