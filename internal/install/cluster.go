package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// What the package asks for by name.
var (
	namespaces  = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	pods        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	daemonSets  = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	crds        = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
)

// What became of an object.
const (
	created   = "created"
	changed   = "changed"
	unchanged = "unchanged"
)

// Cluster is where a mesh is installed. It is safe for concurrent use.
type Cluster struct {
	dynamic dynamic.Interface
	mapper  meta.RESTMapper
	version string
}

// Open returns the cluster that a configuration names. An error means that it cannot be reached.
func Open(cfg *rest.Config) (*Cluster, error) {
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client of the API server: %w", err)
	}
	v, err := d.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", cfg.Host, err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client of the API server: %w", err)
	}
	return &Cluster{dynamic: dyn, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d)), version: v.GitVersion}, nil
}

// Version is that of the cluster's Kubernetes.
func (c *Cluster) Version() string { return c.version }

// ref names an object.
type ref struct {
	schema.GroupVersionKind
	Namespace, Name string
}

// String is kind/name, and the namespace if it has one.
func (r ref) String() string {
	o := &unstructured.Unstructured{}
	o.SetKind(r.Kind)
	o.SetName(r.Name)
	if r.Namespace == "" {
		return name(o)
	}
	return name(o) + " in " + r.Namespace
}

func refOf(o *unstructured.Unstructured) ref {
	return ref{o.GroupVersionKind(), o.GetNamespace(), o.GetName()}
}

func refs(objects []*unstructured.Unstructured) []ref {
	var out []ref
	for _, o := range objects {
		out = append(out, refOf(o))
	}
	return out
}

// resource is where objects of a kind are.
func (c *Cluster) resource(r ref) (dynamic.ResourceInterface, error) {
	m, err := c.mapper.RESTMapping(r.GroupKind(), r.Version)
	if err != nil {
		return nil, fmt.Errorf("look up kind %s: %w", r.GroupVersionKind, err)
	}
	if m.Scope.Name() == meta.RESTScopeNameRoot {
		return c.dynamic.Resource(m.Resource), nil
	}
	return c.dynamic.Resource(m.Resource).Namespace(r.Namespace), nil
}

// apply makes an object what it should be and says what was done.
func (c *Cluster) apply(ctx context.Context, o *unstructured.Unstructured, dryRun bool) (string, error) {
	r := refOf(o)
	in, err := c.resource(r)
	if err != nil {
		return "", err
	}
	old, err := in.Get(ctx, r.Name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "", fmt.Errorf("get %s: %w", r, err)
	}
	there := err == nil
	body, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", r, err)
	}
	force := true // what others changed of the mesh's own objects is changed back
	now, err := in.Patch(ctx, r.Name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: manager, Force: &force, DryRun: dry(dryRun)})
	switch {
	case err != nil:
		return "", fmt.Errorf("apply %s: %w", r, err)
	case !there:
		return created, nil
	case old.GetResourceVersion() == now.GetResourceVersion():
		return unchanged, nil
	}
	return changed, nil
}

// delete deletes an object, and what belongs to it; one that is gone is no error.
func (c *Cluster) delete(ctx context.Context, r ref, dryRun bool) error {
	in, err := c.resource(r)
	if noKind(err) {
		return nil
	}
	if err != nil {
		return err
	}
	background := metav1.DeletePropagationBackground
	err = in.Delete(ctx, r.Name, metav1.DeleteOptions{PropagationPolicy: &background, DryRun: dry(dryRun)})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return wrap(err, "delete %s", r)
}

// noKind says that the cluster has no such kind of objects (any more).
func noKind(err error) bool { return err != nil && meta.IsNoMatchError(errors.Unwrap(err)) }

func dry(run bool) []string {
	if run {
		return []string{metav1.DryRunAll}
	}
	return nil
}

// record is what is known of an installed mesh.
type record struct {
	Version string
	Values  map[string]any
	Objects []ref
}

// record reads the record of a mesh; an empty one if there is none.
func (c *Cluster) record(ctx context.Context, namespace string) (*record, error) {
	o, err := c.dynamic.Resource(configMaps).Namespace(namespace).Get(ctx, recordName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return &record{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get ConfigMap %s/%s: %w", namespace, recordName, err)
	}
	data, _, _ := unstructured.NestedStringMap(o.Object, "data")
	r := &record{Version: data["version"]}
	err = errors.Join(yaml.Unmarshal([]byte(data["values"]), &r.Values), json.Unmarshal([]byte(data["objects"]), &r.Objects))
	return r, wrap(err, "read ConfigMap %s/%s", namespace, recordName)
}

func (c *Cluster) writeRecord(ctx context.Context, namespace string, r *record, dryRun bool) error {
	values, err := yaml.Marshal(r.Values)
	if err != nil {
		return fmt.Errorf("encode values: %w", err)
	}
	objects, err := json.Marshal(r.Objects)
	if err != nil {
		return fmt.Errorf("encode names of objects: %w", err)
	}
	_, err = c.apply(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": recordName, "namespace": namespace, "labels": map[string]any{labelPart: part, labelMaker: maker}},
		"data":     map[string]any{"version": r.Version, "values": string(values), "objects": string(objects)},
	}}, dryRun)
	return err
}
