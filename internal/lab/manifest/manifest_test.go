package manifest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goodPod = `apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
  - name: c
    command: [sleep, infinity]
`

func TestBadManifestsNameLineObjectFieldCauseAndWhatIsAccepted(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"not YAML":                 {"a: b: c\n", "f.yaml:1: not YAML: mapping values are not allowed in this context"},
		"not a mapping":            {"- a\n", `f.yaml:1: a manifest is a mapping, not a list; accepted: apiVersion, kind, metadata, spec`},
		"no kind":                  {"apiVersion: v1\n", "f.yaml:1: kind: missing; accepted: Namespace, "},
		"unknown kind":             {"apiVersion: v1\nkind: Pot\n", `f.yaml:2: kind: unknown kind "Pot"; accepted: Namespace, `},
		"wrong group":              {"kind: Deployment\napiVersion: v1\nmetadata: {name: a}\n", `f.yaml:2: deployment: apiVersion: "v1" does not have kind Deployment; accepted: apps/v1`},
		"no name":                  {"apiVersion: v1\nkind: Pod\nmetadata: {}\n", "f.yaml:3: pod: metadata.name: missing; accepted: lower-case letters"},
		"bad name":                 {"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: A_b\n", `f.yaml:4: namespace: metadata.name: "A_b" is not a name; accepted: lower-case`},
		"namespaced namespace":     {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n", "metadata.namespace: objects of this kind have no namespace"},
		"unknown field":            {strings.Replace(goodPod, "  containers", "  nodename: x\n  containers", 1), "f.yaml:5: pod/default/a: spec.nodename: unknown field; accepted: nodeName, "},
		"wrong type":               {strings.Replace(goodPod, "[sleep, infinity]", "sleep", 1), `f.yaml:7: pod/default/a: spec.containers[0].command: expected a list, found "sleep"; accepted: a list`},
		"not a number":             {goodPod + "    ports: [{containerPort: http}]\n", `f.yaml:8: pod/default/a: spec.containers[0].ports[0].containerPort: "http" does not fit; accepted: a whole number of 32 bits`},
		"port out of range":        {goodPod + "    ports: [{containerPort: 65536}]\n", "containerPort: 65536 is no port; accepted: 1 to 65535"},
		"unknown enumeration":      {goodPod + "  restartPolicy: Sometimes\n", `f.yaml:8: pod/default/a: spec.restartPolicy: unknown value "Sometimes"; accepted: Always, OnFailure, Never`},
		"no command":               {strings.Replace(goodPod, "command: [sleep, infinity]", "image: nginx", 1), `spec.containers[0].command: missing: the lab does not pull image "nginx"; accepted: a command`},
		"two of one name":          {goodPod + "  - {name: c, image: ambit/echo}\n", `f.yaml:8: pod/default/a: spec.containers[1].name: there are two containers "c"`},
		"unknown downward path":    {goodPod + "    env: [{name: X, valueFrom: {fieldRef: {fieldPath: status.ip}}}]\n", `env[0].valueFrom.fieldRef.fieldPath: unknown path "status.ip"; accepted: metadata.name, `},
		"secret":                   {goodPod + "    env: [{name: X, valueFrom: {secretKeyRef: {name: s, key: k}}}]\n", "env[0].valueFrom: the lab knows only fieldRef"},
		"two probes":               {goodPod + "    readinessProbe: {exec: {command: [a]}, tcpSocket: {port: 1}}\n", "readinessProbe: 2 ways to probe; accepted: one of httpGet, tcpSocket, exec"},
		"selector without effect":  {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  selector:\n    matchLabels: {app: x}\n  template:\n    metadata: {labels: {app: y}}\n    spec: {containers: [{name: c, image: ambit/echo}]}\n", "f.yaml:6: deployment/default/d: spec.selector.matchLabels.app: the template's pods do not have app=x"},
		"service without ports":    {"apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {a: b}}\n", "spec.ports: missing"},
		"service ports unnamed":    {"apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 1}, {port: 2, name: b}]}\n", "spec.ports[0].name: missing"},
		"policy action":            {"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: x}\nspec:\n  action: DENIED\n", `f.yaml:5: authorizationpolicy/x/p: spec.action: unknown value "DENIED"; accepted: ALLOW, DENY, AUDIT, CUSTOM`},
		"policy field":             {"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  rules:\n  - from:\n    - source: {principal: [a]}\n", "f.yaml:7: authorizationpolicy/default/p: spec.rules[0].from[0].source.principal: unknown field; accepted: principals, notPrincipals, "},
		"policy number for string": {"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {rules: [{to: [{operation: {ports: [80]}}]}]}\n", `ports[0]: "80" does not fit; accepted: a string (in quotes)`},
		"mode":                     {"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {mtls: {mode: STRIKT}}\n", `spec.mtls.mode: unknown value "STRIKT"; accepted: UNSET, DISABLE, PERMISSIVE, STRICT`},
		"service entry":            {"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: p}\nspec: {hosts: a}\n", `spec.hosts: expected a list, found "a"`},
		"node":                     {"apiVersion: v1\nkind: Node\nmetadata: {name: n}\n", "the lab makes its own Node objects; accepted: the number of nodes with --nodes"},
		"alias in itself":          {"apiVersion: v1\nkind: Pod\nmetadata: &m {name: a, labels: *m}\n", "alias contains itself"},
		"in a list":                {"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pot\n", `f.yaml:5: kind: unknown kind "Pot"`},
	} {
		t.Run(name, func(t *testing.T) {
			objs, err := Parse("f.yaml", []byte(c.in))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want %q in it", err, c.want)
			}
			if objs != nil {
				t.Errorf("got objects %v with an error", objs)
			}
			var e *Error
			if !errors.As(err, &e) || e.Line == 0 {
				t.Errorf("got %#v, want an *Error with a line", err)
			}
		})
	}
}

func TestWhatTheControlPlaneWouldRejectIsRefused(t *testing.T) {
	bad := "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  rules:\n  - from:\n    - source: {ipBlocks: [10.0.0.0/99]}\n"
	_, err := ParseAll(File{"good.yaml", []byte(goodPod)}, File{"bad.yaml", []byte(bad)})
	var e *Error
	if !errors.As(err, &e) || e.Line != 7 || e.Object != "authorizationpolicy/default/p" || !strings.Contains(e.Field, "ipBlocks") {
		t.Errorf("got %v, want a refusal of line 7", err)
	}
}

func TestAllErrorsOfAFileAreReported(t *testing.T) {
	_, err := Parse("f.yaml", []byte("kind: Pot\napiVersion: v1\n---\nkind: Pan\napiVersion: v1\n"))
	if err == nil || !strings.Contains(err.Error(), "Pot") || !strings.Contains(err.Error(), "Pan") {
		t.Errorf("got %v, want both errors", err)
	}
}

func TestGoodManifestsAreTaken(t *testing.T) {
	objs, err := Parse("f.yaml", []byte(goodPod+"---\n# nothing\n---\n"+`apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: p, namespace: x}
spec:
  portLevelMtls:
    8080: {mode: DISABLE}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: x}
spec:
  hosts: [a.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 1.2.3.4, ports: {http: 8080}}]
---
apiVersion: v1
kind: Namespace
metadata: {name: n, labels: {istio.io/dataplane-mode: ambient, x: "1"}}
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objs {
		got = append(got, o.Key().String())
	}
	if want := "pod/default/a peerauthentication/x/p serviceentry/x/e namespace/n"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if l := objs[3].Labels(); l["istio.io/dataplane-mode"] != "ambient" || l["x"] != "1" {
		t.Errorf("got labels %v", l)
	}
	if file, line := objs[1].Position(); file != "f.yaml" || line != 11 {
		t.Errorf("got position %s:%d, want f.yaml:11", file, line)
	}
}

func TestTheDemosManifestsAreGood(t *testing.T) {
	files, err := Read("../../../deploy/examples/demo")
	if err != nil {
		t.Fatal(err)
	}
	if objs, err := ParseAll(files...); err != nil || len(objs) < 10 {
		t.Errorf("got %d objects, %v", len(objs), err)
	}
}

func TestADirectoryWithoutManifestsIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), "holds no manifest") {
		t.Errorf("got %v", err)
	}
	if _, err := Read(filepath.Join(dir, "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(goodPod))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Namespace, metadata: {name: a}}]\n"))
	f.Add([]byte("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: &m {name: p}\nspec: {mtls: {mode: STRICT}, selector: *m}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		objs, err := Parse("f", b)
		if err != nil && objs != nil {
			t.Error("objects with an error")
		}
		for _, o := range objs {
			if o.Name == "" || o.Kind == nil || o.Data["metadata"] == nil {
				t.Errorf("got %+v", o)
			}
		}
	})
}
