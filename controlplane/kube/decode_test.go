package kube

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
)

// decode expects one object and no problems.
func decode[T Object](t *testing.T, manifest string) T {
	t.Helper()
	objects, problems := Decode("test.yaml", []byte(manifest))
	for _, p := range problems {
		t.Error(p.Error())
	}
	if len(objects) != 1 {
		t.Fatalf("got %d objects, want 1", len(objects))
	}
	o, ok := objects[0].(T)
	if !ok {
		t.Fatalf("got %T", objects[0])
	}
	return o
}

func TestBadManifestsAreExplained(t *testing.T) {
	for _, c := range []struct{ name, manifest, want string }{
		{
			"an unknown field names what is accepted",
			"apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  lables: {}\n",
			"f.yaml:5: Pod x: metadata.lables: unknown field (accepted: annotations, creationTimestamp, deletionGracePeriodSeconds, deletionTimestamp, finalizers, generateName, generation, labels, managedFields, name, namespace, ownerReferences, resourceVersion, selfLink, uid)",
		}, {
			"a wrong type names the element of the list",
			"kind: Service\napiVersion: v1\nmetadata: {name: x}\nspec:\n  ports:\n  - port: 80\n  - port: abc\n",
			"f.yaml:7: Service x: spec.ports[1].port: unexpected string (accepted: integer of 32 bits)",
		}, {
			"a port out of range",
			"apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec:\n  ports:\n  - port: 70000\n    targetPort: 1\n",
			"f.yaml:6: Service default/x: spec.ports[0].port: invalid port 70000 (accepted: 1..65535)",
		}, {
			"an unknown enumeration value of an Istio kind",
			"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec:\n  mtls:\n    mode: STRICTT\n",
			`f.yaml:6: PeerAuthentication x: spec.mtls.mode: invalid value for enum field mode: "STRICTT" (accepted: UNSET, DISABLE, PERMISSIVE, STRICT)`,
		}, {
			"an unknown field of an Istio kind",
			"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec:\n  mtls:\n    mod: STRICT\n",
			"f.yaml:6: PeerAuthentication x: spec.mtls.mod: unknown field (accepted: mode)",
		}, {
			"a value in a map of an Istio kind",
			"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec:\n  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    80: {mode: STRICT}\n    81: {mode: X}\n",
			`f.yaml:8: PeerAuthentication x: spec.portLevelMtls.81.mode: invalid value for enum field mode: "X" (accepted: UNSET, DISABLE, PERMISSIVE, STRICT)`,
		}, {
			"a list where a map is meant, after a character beyond ASCII",
			"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  rules:\n  - from:\n    - source:\n        principals: [\"ü\"]\n        ipBlocks: {a: b}\n",
			"f.yaml:9: AuthorizationPolicy x: spec.rules[0].from[0].source.ipBlocks: unexpected token { (accepted: list)",
		}, {
			"a bad CIDR",
			"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  rules:\n  - from:\n    - source:\n        ipBlocks:\n        - 10.0.0.0/8\n        - 10.0.0.0/33\n",
			`f.yaml:10: AuthorizationPolicy default/x: spec.rules[0].from[0].source.ipBlocks[1]: invalid CIDR "10.0.0.0/33" (accepted: an address or a CIDR, for example 10.0.0.0/8)`,
		}, {
			"a version that does not exist",
			"apiVersion: security.istio.io/v2\nkind: PeerAuthentication\nmetadata: {name: x}\n",
			`f.yaml:1: PeerAuthentication x: apiVersion: unsupported version "security.istio.io/v2" (accepted: security.istio.io/v1, security.istio.io/v1beta1)`,
		}, {
			"a duplicate key",
			"apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  name: y\n",
			`f.yaml:5: Pod x: metadata.name: key "name" appears twice`,
		}, {
			"a syntax error in the second document counts lines of the file",
			"apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n---\nkind: Pod\nmetadata: {name: [}\n",
			"f.yaml:6: invalid YAML: did not find expected node content (accepted: YAML or JSON)",
		}, {
			"no kind", "apiVersion: v1\nmetadata: {name: x}\n",
			"f.yaml:1: x: kind: required value is missing (accepted: for example Pod)",
		}, {
			"no object at all", "- 1\n- 2\n", "f.yaml:1: not an object (accepted: a mapping with apiVersion, kind and metadata)",
		}, {
			"an item of a list",
			"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: X\n",
			`f.yaml:7: Pod default/X: metadata.name: invalid name "X" (accepted: lower case letters, digits, '-' and '.', at most 253, beginning and ending with a letter or digit)`,
		}, {
			"a namespace on a kind that has none",
			"apiVersion: v1\nkind: Node\nmetadata:\n  name: x\n  namespace: y\n",
			"f.yaml:5: Node y/x: metadata.namespace: kind Node has no namespace (accepted: no namespace)",
		}, {
			"a rule that matches nothing it says",
			"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  rules:\n  - from:\n    - source: {}\n",
			"f.yaml:7: AuthorizationPolicy default/x: spec.rules[0].from[0].source: nothing is set (accepted: at least one field with values)",
		}, {
			"selector and endpoints together",
			"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\nspec:\n  hosts: [a.b]\n  resolution: STATIC\n  workloadSelector: {labels: {a: b}}\n  endpoints: [{address: 1.2.3.4}]\n",
			"f.yaml:7: ServiceEntry default/x: spec.workloadSelector: both endpoints and workloadSelector are set (accepted: endpoints or workloadSelector)",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			objects, problems := Decode("f.yaml", []byte(c.manifest))
			if len(problems) != 1 || problems[0].Severity != Rejected {
				t.Fatalf("got %d problems %v and %d objects, want one rejection", len(problems), problems, len(objects))
			}
			if d := cmp.Diff(c.want, problems[0].Error()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestForeignKindsAreReportedAndIgnored(t *testing.T) {
	objects, problems := Decode("f.yaml", []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: y}\n"))
	if len(objects) != 1 || len(problems) != 1 || problems[0].Severity != Ignored {
		t.Errorf("got %d objects and problems %v", len(objects), problems)
	}
}

func TestDefaultsAreThoseOfAnAPIServer(t *testing.T) {
	p := decode[*corev1.Pod](t, "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, ports: [{containerPort: 80}]}]}\nstatus: {podIP: 10.0.0.1}\n")
	if p.Namespace != "default" || p.Spec.ServiceAccountName != "default" || len(p.Status.PodIPs) != 1 || p.Spec.Containers[0].Ports[0].Protocol != corev1.ProtocolTCP {
		t.Errorf("got pod %+v", p)
	}
	s := decode[*corev1.Service](t, "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n")
	if s.Spec.Type != corev1.ServiceTypeClusterIP || s.Spec.Ports[0].TargetPort.IntVal != 80 || s.Spec.ClusterIPs[0] != "10.0.0.1" ||
		s.Spec.IPFamilies[0] != corev1.IPv4Protocol || *s.Spec.InternalTrafficPolicy != corev1.ServiceInternalTrafficPolicyCluster {
		t.Errorf("got service %+v", s.Spec)
	}
	n := decode[*corev1.Namespace](t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n")
	if n.Labels["kubernetes.io/metadata.name"] != "x" {
		t.Errorf("got labels %v", n.Labels)
	}
}

func TestAllSpellingsOfAManifestAreRead(t *testing.T) {
	for _, c := range []struct{ name, manifest string }{
		{"JSON", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}`},
		{"a typed list", "apiVersion: v1\nkind: PodList\nitems: [{apiVersion: v1, kind: Pod, metadata: {name: x}}]\n"},
		{"an anchor", "apiVersion: &v v1\nkind: Pod\nmetadata: {name: x, resourceVersion: *v}\n"},
		{"Windows line ends", "---\r\napiVersion: v1\r\nkind: Pod\r\nmetadata: {name: x}\r\n---\r\n"},
		{"markers and comments", "# a\n---\n# b\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: x}\n...\n---\n"},
		{"null timestamps", "apiVersion: v1\nkind: Pod\nmetadata: {name: x, creationTimestamp: null}\nstatus: {}\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if p := decode[*corev1.Pod](t, c.manifest); p.Name != "x" {
				t.Errorf("got name %q", p.Name)
			}
		})
	}
}

func TestDurationsOfGoAreRead(t *testing.T) {
	v := decode[*networkingv1.VirtualService](t, "apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {name: x}\nspec:\n  hosts: [a]\n  http:\n  - timeout: 1h30m\n    retries: {attempts: 1, perTryTimeout: 250ms}\n    route: [{destination: {host: a}}]\n")
	if got := v.Spec.Http[0].Timeout.AsDuration().String() + " " + v.Spec.Http[0].Retries.PerTryTimeout.AsDuration().String(); got != "1h30m0s 250ms" {
		t.Errorf("got %s", got)
	}
}

func TestMapKeysMayBeNumbers(t *testing.T) {
	p := decode[*securityv1.PeerAuthentication](t, "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec:\n  selector: {matchLabels: {a: b}}\n  portLevelMtls: {8080: {mode: DISABLE}}\n")
	if p.Spec.PortLevelMtls[8080] == nil {
		t.Errorf("got %v", p.Spec.PortLevelMtls)
	}
}

func TestNestedAliasesAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\na0: &a0 [x]\n")
	for i := range 9 {
		fmt.Fprintf(&b, "a%d: &a%d [%s*a%d]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 9), i)
	}
	_, problems := Decode("f.yaml", []byte(b.String()))
	if len(problems) != 1 || !strings.Contains(problems[0].Cause, "too large") {
		t.Errorf("got %v", problems)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, ports: [{containerPort: 80}]}]}\n"))
	f.Add([]byte("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  rules:\n  - from: [{source: {ipBlocks: [1.2.3.4]}}]\n"))
	f.Add([]byte("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\nspec: {hosts: [a.b], endpoints: [null]}\nstatus: {addresses: [null]}\n"))
	f.Add([]byte("kind: List\napiVersion: v1\nitems: [&a {kind: List, apiVersion: v1, items: [*a]}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, problems := Decode("f.yaml", data)
		for _, p := range problems {
			if p.Error() == "" || p.Line < 1 {
				t.Errorf("problem without text or line: %+v", p)
			}
		}
		for _, o := range objects {
			if k := KeyOf(o); k.Kind == "" || k.Name.Name == "" {
				t.Errorf("object without key: %v", k)
			}
		}
	})
}
