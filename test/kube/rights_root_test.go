package kube

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/ambit-mesh/ambit/ztunnel/capture"
	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// wrong are objects that are refused where there is a mesh, so that they must be older than that.
const wrong = `
{apiVersion: v1, kind: Namespace, metadata: {name: km-rights}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: shop, namespace: km-rights}, spec: {host: shop, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 5000012}}}}}}
---
{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {name: refused, namespace: km-rights}, spec: {targetRefs: [{group: "", kind: Service, name: shop}], configPatches: [{applyTo: LISTENER, patch: {operation: REMOVE}}]}}
`

// everything has an object of each kind that the control plane writes a status of or an event on.
const everything = `
{apiVersion: v1, kind: Namespace, metadata: {name: km-rights}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: wp, namespace: km-rights}, spec: {gatewayClassName: istio-waypoint,
 infrastructure: {parametersRef: {group: "", kind: ConfigMap, name: options}}, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: options, namespace: km-rights}, data: {horizontalPodAutoscaler: "spec: {maxReplicas: 1}", podDisruptionBudget: "spec: {minAvailable: 0}"}}
---
{apiVersion: v1, kind: Service, metadata: {name: shop, namespace: km-rights, labels: {istio.io/use-waypoint: wp}}, spec: {ports: [{name: http, port: 80}, {name: tcp, port: 81}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: lost, namespace: km-rights, labels: {istio.io/use-waypoint: nowhere}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: IMAGE, args: [echo]}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: outside, namespace: km-rights, labels: {istio.io/use-waypoint: wp}}, spec: {hosts: [example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: machine, namespace: km-rights, labels: {istio.io/use-waypoint: wp}}, spec: {address: 192.0.2.7}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: outside, namespace: km-rights}, spec: {hosts: [example.com], http: [{delegate: {name: gone}}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: l4, namespace: km-rights}, spec: {selector: {matchLabels: {app: x}}, rules: [{to: [{operation: {methods: [GET]}}]}]}}
---
{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: jwt, namespace: km-rights}, spec: {targetRefs: [{group: "", kind: Service, name: gone}], jwtRules: [{issuer: me, jwks: '{"keys":[]}'}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: km-nothing, namespace: istio-system}, spec: {selector: {matchLabels: {app: km-nothing}}}}
---
{apiVersion: telemetry.istio.io/v1, kind: Telemetry, metadata: {name: logs, namespace: km-rights}, spec: {targetRefs: [{group: "", kind: Service, name: gone}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: shop, namespace: km-rights}, spec: {targetRefs: [{group: "", kind: Service, name: shop}],
 validation: {hostname: shop, caCertificateRefs: [{group: "", kind: ConfigMap, name: gone}]}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: http, namespace: km-rights}, spec: {parentRefs: [{group: "", kind: Service, name: shop, port: 80}], rules: [{backendRefs: [{name: shop, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: grpc, namespace: km-rights}, spec: {parentRefs: [{group: "", kind: Service, name: shop, port: 80}], rules: [{backendRefs: [{name: shop, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: TCPRoute, metadata: {name: tcp, namespace: km-rights}, spec: {parentRefs: [{group: "", kind: Service, name: shop, port: 81}], rules: [{backendRefs: [{name: shop, port: 81}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: TLSRoute, metadata: {name: tls, namespace: km-rights}, spec: {hostnames: [a.example], parentRefs: [{group: "", kind: Service, name: shop, port: 81}], rules: [{backendRefs: [{name: shop, port: 81}]}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: "nothing: [known"}}
`

// right is one thing that a service account may do. name is "" for all objects of the resource.
type right struct{ account, group, resource, verb, name string }

func (r right) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s: %s %s.%s %s", r.account, r.verb, r.resource, r.group, r.name))
}

// TestRootRightsAreTheLeast goes through the life of a mesh and compares what each component may ask of the API server with
// what it did ask, by the server's audit log. A right that was never used is one too many, a request that was forbidden
// one too few. Then it takes each away, and the server refuses what was done by it.
func TestRootRightsAreTheLeast(t *testing.T) {
	requireCluster(t)
	requireBed(t)
	audit := openAudit(t)
	if out, status := ambit(t, "uninstall", "-y"); status == 0 { // the secret is made only once
		t.Log(out)
	}
	if _, err := audit.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	apply(t, strings.ReplaceAll(shop, "IMAGE", image())) // pods that run before there is a mesh
	apply(t, wrong)
	must(t, "", "-n", "km-shop", "wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
	m := newMesh(t, "km-shop", "km-outside", "km-rights")
	eventually(t, "the client's annotation", m.redirection("km-shop", "client", "enabled"))
	m.apply(everything)
	ctx := context.WithoutCancel(t.Context())
	t.Cleanup(func() {
		if _, err := kubectl(ctx, "", "-n", m.system, "delete", "--ignore-not-found", "configmap/istio", "peerauthentication/km-nothing"); err != nil {
			t.Error(err)
		}
	})
	given := rightsGiven(t)
	if len(given) < 50 {
		t.Fatalf("only %d rights found: %v", len(given), given)
	}
	must(t, "", "-n", "km-rights", "wait", "--for=condition=Programmed", "gateway/wp", "--timeout=90s")
	if out, status := ambit(t, "cert", "rotate"); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	askForPod(t, "node1")
	used := map[right]bool{}
	expect := func(what string, ignore func(right) bool) {
		t.Helper()
		eventuallyWithin(t, 90*time.Second, what, func() error {
			for r := range audit.rights(t, given) {
				used[r] = true
			}
			var unused []string
			for r := range given {
				if !used[r] && !ignore(r) {
					unused = append(unused, r.String())
				}
			}
			if slices.Sort(unused); unused != nil {
				return fmt.Errorf("never used:\n%s", strings.Join(unused, "\n"))
			}
			return nil
		})
	}
	ends := func(r right) bool { return r.verb == "delete" || r.resource == "customresourcedefinitions" }
	expect("all rights but those for the end to be used", ends)
	takeAway(t, "telemetries.telemetry.istio.io") // a kind is asked for when it seems to be gone
	must(t, "", "-n", "km-rights", "patch", "configmap", "options", "-p", `{"data": {"horizontalPodAutoscaler": null, "podDisruptionBudget": null, "service": "metadata: {labels: {a: b}}"}}`)
	must(t, "", "-n", "km-rights", "patch", "gateway", "wp", "--type=merge", "-p", `{"spec": {"gatewayClassName": "another"}}`)
	expect("all rights to be used", func(right) bool { return false })
	t.Logf("%d rights, all used", len(given))
	if audit.forbidden != nil {
		t.Errorf("forbidden:\n%s", strings.Join(slices.Sorted(maps.Keys(audit.forbidden)), "\n"))
	}
	takeEach(t)
}

// takeAway deletes a definition of a kind until the test has ended.
func takeAway(t *testing.T, name string) {
	t.Helper()
	crd := withoutState(t, must(t, "", "get", "crd", name, "-o", "json"))
	t.Cleanup(func() {
		if _, err := kubectl(context.WithoutCancel(t.Context()), crd, "apply", "--server-side", "-f", "-"); err != nil {
			t.Error(err)
		}
	})
	must(t, "", "delete", "crd", name)
}

// askForPod asks a node's capture for a pod that it cannot have heard of, so that it asks the API server.
func askForPod(t *testing.T, node string) {
	t.Helper()
	pid, err := os.ReadFile(filepath.Join(bedDir(), "run", node+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	c := podsock.NewClient("/proc/" + strings.TrimSpace(string(pid)) + "/root/run/ambit/" + capture.PodsSocket)
	_, err = c.AddSandbox(t.Context(), &podsock.Sandbox{Namespace: "km-shop", Name: "nobody", Netns: "/var/run/netns/nobody"})
	if err == nil || !strings.Contains(err.Error(), "the API server knows no pod km-shop/nobody") {
		t.Fatalf("got %v, want what the API server says", err)
	}
}

// TestRootAMissingRightIsNamed takes rights away, and the log of who had them says which.
func TestRootAMissingRightIsNamed(t *testing.T) {
	m := newMesh(t, "km-missing")
	apply(t, `{apiVersion: v1, kind: Namespace, metadata: {name: km-missing, labels: {istio.io/dataplane-mode: ambient}}}`)
	const controlPlane, node = "ambit-controlplane", "ztunnel"
	pod := strings.NewReplacer("late", "NAME", "NAMESPACE", "km-missing", "IMAGE", m.image).Replace(late)
	for _, c := range []struct{ app, verb, group, resource, trigger string }{
		{controlPlane, "create", "", "events", `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: told, namespace: km-missing}, spec: {selector: {matchLabels: {app: x}}, rules: [{to: [{operation: {methods: [GET]}}]}]}}`},
		{controlPlane, "update", "networking.istio.io", "serviceentries/status", `{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: judged, namespace: km-missing, labels: {istio.io/use-waypoint: nowhere}}, spec: {hosts: [missing.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}}`},
		{controlPlane, "patch", "apps", "deployments", `{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: made, namespace: km-missing}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}`},
		{controlPlane, "create", "", "configmaps", `{apiVersion: v1, kind: Namespace, metadata: {name: km-missing-root}}`},
		{node, "patch", "", "pods/status", strings.ReplaceAll(pod, "NAME", "annotated")},
	} {
		t.Run(c.verb+" "+c.resource, func(t *testing.T) {
			name := "ambit-" + strings.TrimPrefix(c.app, "ambit-") + "-" + m.system
			roles := rolesGiven(t)
			i := slices.IndexFunc(roles, func(r role) bool { return r.kind == "ClusterRole" && r.name == name })
			if i < 0 {
				t.Fatalf("no ClusterRole %s", name)
			}
			r := &roles[i]
			defer r.keep(t)()
			r.take(t, right{r.account, c.group, c.resource, c.verb, ""})
			apply(t, c.trigger)
			want := "cannot " + c.verb + ` resource \"` + c.resource + `\" in API group \"` + c.group + `\"`
			eventually(t, "the log", func() error {
				log, err := kubectl(t.Context(), "", "-n", m.system, "logs", "-l", "app="+c.app, "--all-containers", "--tail=100")
				if err != nil {
					return err
				}
				if !strings.Contains(log, want) {
					return fmt.Errorf("no line with %q", want)
				}
				return nil
			})
		})
	}
	must(t, "", "delete", "namespace", "km-missing-root")
	eventually(t, "what was not allowed to be done at last", m.redirection("km-missing", "annotated", "enabled"))
	must(t, "", "-n", "km-missing", "wait", "--for=condition=Programmed", "gateway/made", "--timeout=90s")
}

// withoutState is an object as it can be made again.
func withoutState(t *testing.T, text string) string {
	t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	meta := o["metadata"].(map[string]any)
	o["metadata"] = map[string]any{"name": meta["name"], "labels": meta["labels"], "annotations": meta["annotations"]}
	delete(o, "status")
	out, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// role is a Role or ClusterRole of the mesh, and the service account that has it.
type role struct {
	kind, namespace, name, account string
	rights                         map[right]bool
}

func rolesGiven(t *testing.T) (out []role) {
	t.Helper()
	rules := map[string][]rbacv1.PolicyRule{} // by kind and name of the role
	for _, r := range list[rbacv1.ClusterRole](t, "clusterroles") {
		rules["ClusterRole "+r.Name] = r.Rules
	}
	for _, r := range list[rbacv1.Role](t, "roles") {
		rules["Role "+r.Name] = r.Rules
	}
	add := func(ref rbacv1.RoleRef, namespace string, subjects []rbacv1.Subject) {
		for _, s := range subjects {
			r := role{ref.Kind, namespace, ref.Name, s.Namespace + ":" + s.Name, map[right]bool{}}
			for _, rule := range rules[ref.Kind+" "+ref.Name] {
				addRights(r.rights, r.account, rule)
			}
			out = append(out, r)
		}
	}
	for _, b := range list[rbacv1.ClusterRoleBinding](t, "clusterrolebindings") {
		add(b.RoleRef, "", b.Subjects)
	}
	for _, b := range list[rbacv1.RoleBinding](t, "rolebindings") {
		add(b.RoleRef, b.Namespace, b.Subjects)
	}
	return out
}

// rightsGiven are the rights of the mesh's service accounts.
func rightsGiven(t *testing.T) map[right]bool {
	t.Helper()
	out := map[right]bool{}
	for _, r := range rolesGiven(t) {
		maps.Copy(out, r.rights)
	}
	return out
}

// takeEach takes one right after the other from who has it. The API server refuses then what used it, so that none is given twice.
func takeEach(t *testing.T) {
	for _, r := range rolesGiven(t) {
		t.Cleanup(r.keep(t))
		for x := range r.rights {
			r.take(t, x)
		}
		t.Logf("%s of %s: %d rights taken, one after the other", r.name, r.account, len(r.rights))
	}
}

// kubectl runs kubectl in the role's namespace.
func (r *role) kubectl(t *testing.T, input string, args ...string) (string, error) {
	if r.namespace != "" {
		args = append([]string{"-n", r.namespace}, args...)
	}
	return kubectl(context.WithoutCancel(t.Context()), input, args...)
}

// keep reads the role; back makes it what it was.
func (r *role) keep(t *testing.T) (back func()) {
	t.Helper()
	whole, err := r.kubectl(t, "", "get", r.kind, r.name, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := r.kubectl(t, withoutState(t, whole), "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
			t.Error(err)
		}
	}
}

// take takes one right away, and gives all others back. The API server's authorizer reads roles by a watch of its own.
func (r *role) take(t *testing.T, x right) {
	t.Helper()
	if !r.rights[x] {
		t.Fatalf("%s has no right %s", r.name, x)
	}
	if _, err := r.kubectl(t, r.without(t, x), "replace", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	eventually(t, x.String()+" to be refused", func() error { return r.refused(t, x) })
}

// without is the role's manifest without one right.
func (r *role) without(t *testing.T, gone right) string {
	t.Helper()
	rules := []rbacv1.PolicyRule{}
	for x := range r.rights {
		if x == gone {
			continue
		}
		rule := rbacv1.PolicyRule{APIGroups: []string{x.group}, Resources: []string{x.resource}, Verbs: []string{x.verb}}
		if x.name != "" {
			rule.ResourceNames = []string{x.name}
		}
		rules = append(rules, rule)
	}
	out, err := json.Marshal(map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": r.kind, "rules": rules,
		"metadata": map[string]any{"name": r.name, "labels": map[string]string{"app.kubernetes.io/part-of": "ambit"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// refused asks the API server whether it refuses what a right is for.
func (r *role) refused(t *testing.T, x right) error {
	t.Helper()
	namespace, _, _ := strings.Cut(r.account, ":")
	resource, subresource, _ := strings.Cut(x.resource, "/")
	review := fmt.Sprintf(`{apiVersion: authorization.k8s.io/v1, kind: SubjectAccessReview, spec: {user: "system:serviceaccount:%s",
 groups: ["system:serviceaccounts", "system:serviceaccounts:%s", "system:authenticated"],
 resourceAttributes: {namespace: %q, group: %q, resource: %q, subresource: %q, verb: %q, name: %q}}}`, r.account, namespace, r.namespace, x.group, resource, subresource, x.verb, x.name)
	out, err := kubectl(t.Context(), review, "create", "-f", "-", "-o", "jsonpath={.status.allowed}")
	if err == nil && out == "true" {
		err = fmt.Errorf("%s may still", r.account)
	}
	return err
}

func addRights(out map[right]bool, account string, rule rbacv1.PolicyRule) {
	names := rule.ResourceNames
	if names == nil {
		names = []string{""}
	}
	for _, g := range rule.APIGroups {
		for _, r := range rule.Resources {
			for _, v := range rule.Verbs {
				for _, n := range names {
					out[right{account, g, r, v, n}] = true
				}
			}
		}
	}
}

func list[T any](t *testing.T, kind string) []T {
	t.Helper()
	var l struct{ Items []T }
	if err := json.Unmarshal([]byte(must(t, "", "get", kind, "-A", "-l", "app.kubernetes.io/part-of=ambit", "-o", "json")), &l); err != nil {
		t.Fatal(err)
	}
	return l.Items
}

// auditEvent is what is read of a line of the audit log (audit.k8s.io/v1).
type auditEvent struct {
	Verb, RequestURI string
	User             struct{ Username string }
	ObjectRef        *struct{ Resource, Subresource, Name, APIGroup string }
	ResponseStatus   struct{ Code int }
	Annotations      map[string]string
}

// auditLog is the API server's, which is read on from where it was read before.
type auditLog struct {
	*os.File
	rest      string          // of a line that was not whole
	forbidden map[string]bool // what was refused so far
}

// bedDir is where the cluster of this machine keeps its files.
func bedDir() string { return cmp.Or(os.Getenv("KUBE_DIR"), "/var/tmp/kubebox") }

func openAudit(t *testing.T) *auditLog {
	t.Helper()
	f, err := os.Open(bedDir() + "/log/audit.log")
	if err != nil {
		t.Fatalf("the bed's API server keeps an audit log: %v", err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &auditLog{File: f}
}

// rights are those of some that were used since the last call.
func (a *auditLog) rights(t *testing.T, given map[right]bool) map[right]bool {
	t.Helper()
	accounts := map[string]bool{}
	for r := range given {
		accounts[r.account] = true
	}
	out := map[right]bool{}
	for r := bufio.NewReader(a.File); ; {
		line, err := r.ReadString('\n')
		if a.rest += line; err != nil {
			return out
		}
		line, a.rest = a.rest, ""
		var e auditEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		account, ours := strings.CutPrefix(e.User.Username, "system:serviceaccount:")
		if !ours || !accounts[account] {
			continue
		}
		if e.Annotations["authorization.k8s.io/decision"] == "forbid" {
			if a.forbidden == nil {
				a.forbidden = map[string]bool{}
			}
			a.forbidden[account+": "+e.Verb+" "+e.RequestURI] = true
			continue
		}
		if e.ObjectRef == nil {
			continue // what there is, and how it is: that is for everybody
		}
		resource := e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			resource += "/" + e.ObjectRef.Subresource
		}
		verbs := []string{e.Verb}
		if e.Verb == "patch" && e.ResponseStatus.Code == 201 { // who makes an object by a patch must be allowed both
			verbs = append(verbs, "create")
		}
		for _, v := range verbs {
			for _, name := range []string{"", e.ObjectRef.Name} {
				if used := (right{account, e.ObjectRef.APIGroup, resource, v, name}); given[used] {
					out[used] = true
				}
			}
		}
	}
}
