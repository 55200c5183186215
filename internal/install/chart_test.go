package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func renderWith(t *testing.T, settings ...string) ([]*unstructured.Unstructured, error) {
	t.Helper()
	values, err := ReadValues(nil, settings)
	if err != nil {
		t.Fatal(err)
	}
	return Render(Rendering{Namespace: "mesh", Version: "v1.2.3", Values: values})
}

func TestTheChartIsRenderedForItsNamespaceAndVersion(t *testing.T) {
	objects, err := renderWith(t, "controlPlane.replicas=3", "image.registry=localhost:5000/x")
	if err != nil {
		t.Fatal(err)
	}
	text, err := Manifest("mesh", objects)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"image: localhost:5000/x/ambit-ztunnel:v1.2.3", "replicas: 3", "kind: PodDisruptionBudget", "namespace: mesh", labelMaker + ": " + maker} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	if strings.Contains(text, "istio-system") {
		t.Error("istio-system is named, and the mesh is in namespace mesh")
	}
	if a, b := strings.Index(text, "kind: ServiceAccount"), strings.Index(text, "kind: DaemonSet"); a < 0 || b < a {
		t.Errorf("accounts at %d, workloads at %d: what others need comes first", a, b)
	}
}

func TestAWrongValueIsRefusedByItsName(t *testing.T) {
	for setting, want := range map[string]string{
		"image.regsitry=x":          "regsitry",
		"controlPlane.replicas=0":   "/controlPlane/replicas",
		"controlPlane.replicas=two": "/controlPlane/replicas",
		"ztunnel.sameNode=maybe":    "/ztunnel/sameNode",
		"cni.confDir=etc":           "/cni/confDir",
		"nonsense=1":                "nonsense",
	} {
		if _, err := renderWith(t, setting); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v does not name %q", setting, err, want)
		}
	}
}

func TestAClusterThatIsTooOldIsRefused(t *testing.T) {
	r := Rendering{Namespace: "mesh", Version: "v1", KubeVersion: "v1.29.4"}
	if _, err := Render(r); err == nil || !strings.Contains(err.Error(), "the mesh needs >=1.30.0") {
		t.Errorf("got %v", err)
	}
	for _, v := range []string{"v1.30.0", "v1.34.4-gke.1", "v0.0.0-master+$Format:%H$", ""} {
		r.KubeVersion = v
		if _, err := Render(r); err != nil {
			t.Errorf("%q: %v", v, err)
		}
	}
}

func TestLaterValuesGoOverEarlierOnes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "v.yaml")
	if err := os.WriteFile(file, []byte("mesh: {clusterId: a, trustDomain: td}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadValues([]string{file}, []string{"mesh.clusterId=b", "controlPlane.replicas=2"})
	want := map[string]any{"mesh": map[string]any{"clusterId": "b", "trustDomain": "td"}, "controlPlane": map[string]any{"replicas": int64(2)}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	below := map[string]any{"mesh": map[string]any{"clusterId": "old", "clusterDomain": "d"}}
	if d := cmp.Diff(map[string]any{"clusterId": "b", "clusterDomain": "d", "trustDomain": "td"}, over(below, got)["mesh"]); d != "" {
		t.Errorf("over an earlier install (-want +got):\n%s", d)
	}
	if below["mesh"].(map[string]any)["clusterId"] != "old" {
		t.Error("over changed what it was given")
	}
}

func TestAnotherMeshIsInTheWay(t *testing.T) {
	workload := func(kind, namespace, name string, labels map[string]string) unstructured.Unstructured {
		var o unstructured.Unstructured
		o.SetKind(kind)
		o.SetNamespace(namespace)
		o.SetName(name)
		o.SetLabels(labels)
		return o
	}
	ours := func(maker string) map[string]string {
		return map[string]string{"app": "ztunnel", labelPart: part, labelMaker: maker}
	}
	c := &Config{Namespace: "mesh"}
	for name, tc := range map[string]struct {
		o    unstructured.Unstructured
		want string
	}{
		"istiod":                    {workload("Deployment", "istio-system", "istiod", nil), "deployment/istiod in namespace istio-system: Istio's control plane"},
		"a revision of istiod":      {workload("Deployment", "i", "istiod-canary", map[string]string{"app": "istiod"}), "istioctl uninstall"},
		"Istio's ztunnel":           {workload("DaemonSet", "istio-system", "ztunnel", map[string]string{"app": "ztunnel"}), "another mesh captures"},
		"Istio's CNI plugin":        {workload("DaemonSet", "kube-system", "istio-cni-node", nil), "another mesh captures"},
		"ours elsewhere":            {workload("DaemonSet", "other", "ztunnel", ours("ambit")), "installed in namespace other already"},
		"ours by Helm elsewhere":    {workload("DaemonSet", "other", "ztunnel", ours("Helm")), "installed in namespace other already"},
		"ours by Helm here":         {workload("DaemonSet", "mesh", "ztunnel", ours("Helm")), "helm upgrade"},
		"ours here":                 {workload("DaemonSet", "mesh", "ztunnel", ours("ambit")), ""},
		"a waypoint of ours":        {workload("Deployment", "shop", "waypoint", ours(waypointsBy)), ""},
		"something else altogether": {workload("Deployment", "shop", "web", map[string]string{"app": "web"}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.conflict(tc.o)
			if tc.want == "" && r != nil || tc.want != "" && (r == nil || !strings.Contains(r.Error(), tc.want)) {
				t.Errorf("got %v, want %q", r, tc.want)
			}
		})
	}
}
