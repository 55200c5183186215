package install

import (
	"fmt"
	"io/fs"
	"os"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
	"helm.sh/helm/v3/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/deploy"
)

// assumedVersion of Kubernetes is what is rendered for when there is no cluster to ask.
const assumedVersion = "v1.34.0"

// unknownVersion is what a Kubernetes says that was built without being told its version.
const unknownVersion = "v0.0.0"

// Rendering says what Render renders.
type Rendering struct {
	// Namespace is the mesh's. Mandatory.
	Namespace string
	// Version is the program's, and the tag of its images. Mandatory.
	Version string
	// KubeVersion is the cluster's. "" means one that the chart accepts.
	KubeVersion string
	// Values are those that are not the chart's defaults.
	Values map[string]any
}

// Render renders the chart to the objects in the order in which they are applied. Values that the chart's schema does not
// know are an error that names the key.
func Render(r Rendering) ([]*unstructured.Unstructured, error) {
	c, err := load()
	if err != nil {
		return nil, err
	}
	c.Metadata.AppVersion = r.Version
	if r.KubeVersion == "" || strings.HasPrefix(r.KubeVersion, unknownVersion) {
		r.KubeVersion = assumedVersion
	}
	caps := chartutil.DefaultCapabilities.Copy()
	version, err := chartutil.ParseKubeVersion(r.KubeVersion)
	if err != nil {
		return nil, fmt.Errorf("read the version of Kubernetes %q: %w", r.KubeVersion, err)
	}
	caps.KubeVersion = *version
	if want := c.Metadata.KubeVersion; !chartutil.IsCompatibleRange(want, r.KubeVersion) {
		return nil, fmt.Errorf("the cluster is Kubernetes %s: the mesh needs %s", r.KubeVersion, strings.TrimSuffix(want, "-0"))
	}
	values, err := chartutil.ToRenderValues(c, r.Values, chartutil.ReleaseOptions{Name: "ambit", Namespace: r.Namespace, IsInstall: true}, caps)
	if err != nil {
		return nil, fmt.Errorf("check values: %w", err)
	}
	values["Release"].(map[string]any)["Service"] = maker
	files, err := engine.Engine{Strict: true}.Render(c, values)
	if err != nil {
		return nil, fmt.Errorf("render the chart: %w", err)
	}
	_, manifests, err := releaseutil.SortManifests(files, caps.APIVersions, releaseutil.InstallOrder)
	if err != nil {
		return nil, fmt.Errorf("read the rendered chart: %w", err)
	}
	var out []*unstructured.Unstructured
	for _, m := range manifests {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(m.Content), &o.Object); err != nil {
			return nil, fmt.Errorf("read the rendered chart: %s: %w", m.Name, err)
		}
		out = append(out, o)
	}
	return out, nil
}

// Manifest is the objects as YAML, those of a namespace that is not there yet after it.
func Manifest(namespace string, objects []*unstructured.Unstructured) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: %s\n", namespace)
	for _, o := range objects {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			return "", fmt.Errorf("write %s: %w", name(o), err)
		}
		b.WriteString("---\n" + string(text))
	}
	return b.String(), nil
}

// ReadValues reads values: files first, then KEY=VALUE settings in Helm's language, later ones over earlier ones.
func ReadValues(files, settings []string) (map[string]any, error) {
	out := map[string]any{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read values: %w", err)
		}
		m, err := chartutil.ReadValues(text)
		if err != nil {
			return nil, fmt.Errorf("read values of %s: %w", f, err)
		}
		out = over(out, m)
	}
	for _, s := range settings {
		if err := strvals.ParseInto(s, out); err != nil {
			return nil, fmt.Errorf("read value %q: %w", s, err)
		}
	}
	return out, nil
}

// load reads the chart that the program carries.
func load() (*chart.Chart, error) {
	var files []*loader.BufferedFile
	err := fs.WalkDir(deploy.Chart, "chart", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := deploy.Chart.ReadFile(path)
		files = append(files, &loader.BufferedFile{Name: strings.TrimPrefix(path, "chart/"), Data: text})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	c, err := loader.LoadFiles(files)
	return c, wrap(err, "read the chart")
}
