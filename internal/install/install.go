// Package install puts the mesh into a cluster and takes it out again: it renders the chart as Helm does, applies the objects on
// the server's side, and waits until they work. What it applied is written down in a ConfigMap, so that a later version can
// remove what it no longer has.
package install

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	// DefaultNamespace is where the mesh is installed if nothing else is said: where Istio's users look for it.
	DefaultNamespace = "istio-system"

	manager     = "ambit-install" // of fields in server-side apply
	recordName  = "ambit-install" // the ConfigMap
	labelPart   = "app.kubernetes.io/part-of"
	labelMaker  = "app.kubernetes.io/managed-by"
	part        = "ambit"
	maker       = "ambit"
	waypointsBy = "ambit-controlplane" // labelMaker of what Gateways became
)

// Config says what is installed, and how.
type Config struct {
	// Cluster is where. Mandatory.
	Cluster *Cluster
	// Namespace is the mesh's. "" means DefaultNamespace.
	Namespace string
	// Version is the program's, which is the tag of images too, unless the values say otherwise. Mandatory.
	Version string
	// Values are those of the chart that are not its defaults.
	Values map[string]any
	// Upgrade wants a mesh that is there, and keeps the values it was installed with below Values.
	Upgrade bool
	// DryRun has the API server check everything and change nothing.
	DryRun bool
	// Wait is how long to wait until the mesh works; 0 is not at all.
	Wait time.Duration
	// Progress is told what happens, line by line. nil for nobody.
	Progress io.Writer
}

func (c *Config) namespace() string {
	if c.Namespace == "" {
		return DefaultNamespace
	}
	return c.Namespace
}

func (c *Config) say(format string, args ...any) {
	if c.Progress != nil {
		fmt.Fprintf(c.Progress, format+"\n", args...)
	}
}

// Install puts the mesh into the cluster, or makes the one that is there what Config says. It may be repeated. It refuses a
// cluster with another mesh, by a Refusal.
func Install(ctx context.Context, cfg Config) error {
	old, err := cfg.Cluster.record(ctx, cfg.namespace())
	if err != nil {
		return err
	}
	if err := cfg.check(ctx, old); err != nil {
		return err
	}
	values := cfg.Values
	if cfg.Upgrade {
		values = over(old.Values, values)
	}
	objects, err := Render(Rendering{
		Namespace: cfg.namespace(), Version: cfg.Version, KubeVersion: cfg.Cluster.Version(), Values: values,
	})
	if err != nil {
		return err
	}
	if err := cfg.hints(ctx); err != nil {
		return err
	}
	next := &record{Version: cfg.Version, Values: values, Objects: refs(objects)}
	if err := cfg.apply(ctx, old, next, objects); err != nil || cfg.DryRun || cfg.Wait == 0 {
		return err
	}
	return cfg.await(ctx, objects)
}

// apply writes the record, then the objects in their order, then removes those that are no longer wanted. If it ends halfway
// the record names everything that may be there.
func (c *Config) apply(ctx context.Context, old, next *record, objects []*unstructured.Unstructured) error {
	if err := c.ensureNamespace(ctx); err != nil {
		return err
	}
	gone := slices.DeleteFunc(slices.Clone(old.Objects), func(r ref) bool { return slices.Contains(next.Objects, r) })
	between := *next
	between.Objects = append(slices.Clone(next.Objects), gone...)
	if err := c.Cluster.writeRecord(ctx, c.namespace(), &between, c.DryRun); err != nil {
		return err
	}
	counts := map[string]int{}
	for _, o := range objects {
		done, err := c.Cluster.apply(ctx, o, c.DryRun)
		if err != nil {
			return err
		}
		if counts[done]++; done != unchanged {
			c.say("%s %s", name(o), done)
		}
	}
	c.say("%d objects: %d created, %d changed, %d as they were", len(objects), counts[created], counts[changed], counts[unchanged])
	for _, r := range slices.Backward(gone) {
		if err := c.Cluster.delete(ctx, r, c.DryRun); err != nil {
			return err
		}
		c.say("%s removed: version %s has none", r, c.Version)
	}
	return c.Cluster.writeRecord(ctx, c.namespace(), next, c.DryRun)
}

// ensureNamespace makes the mesh's namespace; one that was there stays as it is, also when the mesh goes.
func (c *Config) ensureNamespace(ctx context.Context) error {
	spaces := c.Cluster.dynamic.Resource(namespaces)
	_, err := spaces.Get(ctx, c.namespace(), metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return wrap(err, "get namespace %q", c.namespace())
	}
	ns := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": c.namespace(), "labels": map[string]any{labelPart: part, labelMaker: maker}},
	}}
	if c.DryRun {
		return c.noNamespace()
	}
	if _, err := spaces.Create(ctx, ns, metav1.CreateOptions{FieldManager: manager}); err != nil {
		return fmt.Errorf("create namespace %q: %w", c.namespace(), err)
	}
	c.say("namespace/%s created", c.namespace())
	return nil
}

// noNamespace is why the API server cannot check what is to go into a namespace that is not there.
func (c *Config) noNamespace() error {
	return fmt.Errorf("namespace %q is not there, so that the API server cannot check what goes into it: kubectl create namespace %s, or --dry-run=client",
		c.namespace(), c.namespace())
}

// Refusal is why nothing was done: something in the cluster is in the way.
type Refusal struct {
	// Object is in the way.
	Object string
	// Cause says why, Fix what to do.
	Cause, Fix string
}

// Error implements error.
func (r *Refusal) Error() string { return r.Object + ": " + r.Cause + "; " + r.Fix }

// over lays values over others, which are not changed.
func over(below, above map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range below {
		out[k] = v
	}
	for k, v := range above {
		m, ok := v.(map[string]any)
		if b, isMap := out[k].(map[string]any); ok && isMap {
			out[k] = over(b, m)
			continue
		}
		out[k] = v
	}
	return out
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// name is an object as kubectl writes it.
func name(o *unstructured.Unstructured) string {
	return strings.ToLower(o.GetKind()) + "/" + o.GetName()
}
