package deploy

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

var update = flag.Bool("update", false, "write the results into testdata")

// render renders the chart's templates with its values, some of them changed, as Helm does, and returns them by file.
func render(t *testing.T, changes map[string]any) map[string]string {
	t.Helper()
	c, err := loader.LoadDir("chart")
	if err != nil {
		t.Fatal(err)
	}
	values, err := chartutil.ToRenderValues(c, changes, chartutil.ReleaseOptions{Name: "ambit", Namespace: "istio-system"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Engine{Strict: true}.Render(c, values)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for path, text := range files {
		if name := filepath.Base(path); !strings.HasPrefix(name, "_") && strings.TrimSpace(text) != "" {
			out[name] = text
		}
	}
	return out
}

func load(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
}

// documents are the objects of a rendered file.
func documents(t *testing.T, text string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var o map[string]any
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatalf("%v:\n%s", err, doc)
		}
		if len(o) > 0 {
			out = append(out, o)
		}
	}
	return out
}

func TestChartIsAsRendered(t *testing.T) {
	for name, changes := range map[string]map[string]any{
		"default": nil,
		"other": {
			"image":        map[string]any{"registry": "localhost:5000/x", "tag": "v9", "pullPolicy": "Always"},
			"mesh":         map[string]any{"trustDomain": "example.org", "clusterId": "c1", "clusterDomain": "k.local"},
			"controlPlane": map[string]any{"replicas": 3.0},
			"waypoint":     map[string]any{"image": "mine:1", "replicas": 2.0, "resources": map[string]any{"limits": map[string]any{"memory": "2Gi"}}},
			"ztunnel":      map[string]any{"mountBPF": true, "capture": map[string]any{"addCapabilities": []any{"DAC_OVERRIDE"}}, "probes": map[string]any{"mode": "address", "nodes": map[string]any{"n1": "kubelet", "n2": "captured"}}},
			"cni":          map[string]any{"enabled": false},
			"admission":    map[string]any{"failurePolicy": "Fail", "timeoutSeconds": 9.0},

			"networkPolicy":  map[string]any{"enabled": true, "monitoringNamespaces": map[string]any{"kubernetes.io/metadata.name": "monitoring"}},
			"serviceMonitor": map[string]any{"enabled": true, "labels": map[string]any{"release": "p"}},
		},
	} {
		var b bytes.Buffer
		files := render(t, changes)
		for _, f := range slices.Sorted(maps.Keys(files)) {
			documents(t, files[f])
			fmt.Fprintf(&b, "# %s\n%s\n", f, strings.TrimSpace(files[f]))
		}
		golden(t, "testdata/"+name+".yaml", b.String())
	}
}

// TestManifestsAreTheChartsDefaults: deploy/manifests is for those who use neither Helm nor the command line.
func TestManifestsAreTheChartsDefaults(t *testing.T) {
	files := render(t, nil)
	var b strings.Builder
	b.WriteString("# Made from the chart with its defaults; TestManifestsAreTheChartsDefaults -update writes it.\n" +
		"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: istio-system\n")
	for _, f := range slices.Sorted(maps.Keys(files)) {
		b.WriteString("---\n" + strings.ReplaceAll(strings.TrimSpace(files[f]), "managed-by: Helm", "managed-by: kubectl") + "\n")
	}
	golden(t, "manifests/ambit.yaml", b.String())
}

// golden compares with a file.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got); -update writes it:\n%s", path, d)
	}
}

// TestSchemaKnowsEveryValue: a value that the schema does not know could not be set, and one without a default would not
// be found in values.yaml.
func TestSchemaKnowsEveryValue(t *testing.T) {
	var values, schema map[string]any
	load(t, "chart/values.yaml", &values)
	load(t, "chart/values.schema.json", &schema)
	definitions, _ := schema["definitions"].(map[string]any)
	var walk func(path string, v any, s map[string]any)
	walk = func(path string, v any, s map[string]any) {
		if ref, ok := s["$ref"].(string); ok {
			s, _ = definitions[strings.TrimPrefix(ref, "#/definitions/")].(map[string]any)
		}
		object, isObject := v.(map[string]any)
		properties, described := s["properties"].(map[string]any)
		if !isObject || !described {
			return
		}
		if s["additionalProperties"] != false {
			t.Errorf("%s: a key that is written wrong would go unseen", path)
		}
		for k, below := range object {
			p, ok := properties[k].(map[string]any)
			if !ok {
				t.Errorf("%s.%s is not in the schema", path, k)
				continue
			}
			walk(path+"."+k, below, p)
		}
		for k := range properties {
			// requests and limits are optional, and global is Helm's.
			if _, ok := object[k]; !ok && k != "global" && k != "requests" && k != "limits" {
				t.Errorf("%s.%s has no default", path, k)
			}
		}
	}
	walk("", values, schema)
}

// TestControlPlaneMayMakeWaypointsAndNoMore holds the permissions to write against what the control plane writes.
func TestControlPlaneMayMakeWaypointsAndNoMore(t *testing.T) {
	got := map[string][]string{}
	for _, o := range documents(t, render(t, nil)["controlplane.yaml"]) {
		if o["kind"] != "ClusterRole" {
			continue
		}
		var role rbacv1.ClusterRole
		body, err := json.Marshal(o)
		if err == nil {
			err = json.Unmarshal(body, &role)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range role.Rules {
			for _, v := range r.Verbs {
				if v == "get" || v == "list" || v == "watch" {
					continue
				}
				for _, resource := range r.Resources {
					got[resource] = append(got[resource], v)
				}
			}
		}
	}
	want := map[string][]string{
		"tokenreviews": {"create"}, "configmaps": {"create", "update"}, "events": {"create"},
		"services": {"create", "patch", "delete"}, "serviceaccounts": {"create", "patch", "delete"}, "deployments": {"create", "patch", "delete"},
		"horizontalpodautoscalers": {"create", "patch", "delete"}, "poddisruptionbudgets": {"create", "patch", "delete"},
		"gatewayclasses": {"create", "patch"}, "validatingwebhookconfigurations": {"update"},
	}
	for _, r := range []string{
		"services", "serviceentries", "workloadentries", "envoyfilters", "authorizationpolicies", "requestauthentications", "telemetries",
		"gateways", "gatewayclasses", "httproutes", "grpcroutes", "tcproutes", "tlsroutes",
	} {
		want[r+"/status"] = []string{"update"}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("permissions to write (-want +got):\n%s", d)
	}
}

// TestEveryKindOfTheMeshIsReviewed: an object of a kind and version that the control plane reads is asked about before it is
// stored. (The API server converts other versions.) Those of Kubernetes itself are not: its own parts depend on them.
func TestEveryKindOfTheMeshIsReviewed(t *testing.T) {
	var hook admissionv1.ValidatingWebhookConfiguration
	if err := yaml.UnmarshalStrict([]byte(render(t, nil)["admission.yaml"]), &hook); err != nil {
		t.Fatal(err)
	}
	for _, kind := range kube.Kinds() {
		if kind.BuiltIn() || kind == kube.KindGatewayClass || kind == kube.KindReferenceGrant {
			continue
		}
		group, versions := kind.Versions()
		if !slices.ContainsFunc(hook.Webhooks[0].Rules, func(r admissionv1.RuleWithOperations) bool {
			resource := strings.ToLower(string(kind)) + "s"
			if strings.HasSuffix(string(kind), "Policy") {
				resource = strings.TrimSuffix(strings.ToLower(string(kind)), "y") + "ies"
			}
			return slices.Contains(r.APIGroups, group) && slices.Contains(r.APIVersions, versions[0]) && (r.Resources[0] == "*" || slices.Contains(r.Resources, resource))
		}) {
			t.Errorf("no rule for %s %s/%s", kind, group, versions[0])
		}
	}
	if _, there := render(t, map[string]any{"admission": map[string]any{"enabled": false}})["admission.yaml"]; there {
		t.Error("it is there when it is turned off")
	}
}
