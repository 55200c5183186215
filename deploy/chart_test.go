// Package deploy tests what is deployed: the chart, rendered in the way of Helm.
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
	"text/template"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the results into testdata")

// render renders the chart's templates with its values, some of them changed, and returns them by file. It knows the
// functions of Helm that the chart uses, as Helm has them; any other fails the test.
func render(t *testing.T, changes map[string]any) map[string]string {
	t.Helper()
	var values, chart map[string]any
	load(t, "chart/values.yaml", &values)
	load(t, "chart/Chart.yaml", &chart)
	lay(values, changes)
	root := map[string]any{
		"Values":  values,
		"Release": map[string]any{"Name": "ambit", "Namespace": "istio-system", "Service": "Helm"},
		"Chart":   map[string]any{"AppVersion": chart["appVersion"], "Name": chart["name"], "Version": chart["version"]},
	}
	all := template.New("chart").Option("missingkey=error")
	all.Funcs(functions(all))
	files, err := filepath.Glob("chart/templates/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no templates: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil {
			_, err = all.New(filepath.Base(f)).Parse(string(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out := map[string]string{}
	for _, f := range files {
		name := filepath.Base(f)
		var b strings.Builder
		if err := all.ExecuteTemplate(&b, name, root); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(name, "_") {
			out[name] = b.String()
		}
	}
	return out
}

func functions(all *template.Template) template.FuncMap {
	indent := func(n int, s string) string {
		pad := strings.Repeat(" ", n)
		return "\n" + pad + strings.ReplaceAll(s, "\n", "\n"+pad)
	}
	return template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var b strings.Builder
			err := all.ExecuteTemplate(&b, name, data)
			return b.String(), err
		},
		"nindent": indent,
		"quote":   func(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) },
		"default": func(d, v any) any {
			if v == nil || v == "" {
				return d
			}
			return v
		},
		"dict": func(kv ...any) map[string]any {
			m := map[string]any{}
			for i := 0; i+1 < len(kv); i += 2 {
				m[kv[i].(string)] = kv[i+1]
			}
			return m
		},
		"toYaml": func(v any) (string, error) {
			b, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(b), "\n"), err
		},
		"toJson":    func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
		"first":     func(list []string) string { return list[0] },
		"splitList": func(sep, s string) []string { return strings.Split(s, sep) },
		"join": func(sep string, list []any) string {
			var out []string
			for _, v := range list {
				out = append(out, fmt.Sprint(v))
			}
			return strings.Join(out, sep)
		},
		"int": whole,
		"add": func(a, b any) int { return whole(a) + whole(b) },
	}
}

// whole is a number of values, which are read as floats.
func whole(v any) int {
	switch n := v.(type) {
	case float64:
		return int(n)
	case int:
		return n
	}
	return 0
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

// lay puts values over others.
func lay(over, changes map[string]any) {
	for k, v := range changes {
		if m, ok := v.(map[string]any); ok {
			if below, ok := over[k].(map[string]any); ok {
				lay(below, m)
				continue
			}
		}
		over[k] = v
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
			"ztunnel":      map[string]any{"probes": map[string]any{"mode": "address", "nodes": map[string]any{"n1": "kubelet", "n2": "captured"}}},
			"cni":          map[string]any{"enabled": false},
		},
	} {
		var b bytes.Buffer
		files := render(t, changes)
		for _, f := range slices.Sorted(maps.Keys(files)) {
			documents(t, files[f])
			fmt.Fprintf(&b, "# %s\n%s\n", f, strings.TrimSpace(files[f]))
		}
		path := "testdata/" + name + ".yaml"
		if *update {
			if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), b.String()); d != "" {
			t.Errorf("%s (-want +got); -update writes it:\n%s", path, d)
		}
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
		"tokenreviews": {"create"}, "configmaps": {"create", "update", "patch"}, "events": {"create", "patch"},
		"services": {"create", "patch", "delete"}, "serviceaccounts": {"create", "patch", "delete"}, "deployments": {"create", "patch", "delete"},
		"horizontalpodautoscalers": {"create", "patch", "delete"}, "poddisruptionbudgets": {"create", "patch", "delete"},
		"gatewayclasses": {"create", "patch"},
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
