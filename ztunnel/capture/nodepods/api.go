package nodepods

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/internal/kubeconfig"
)

// API is what a Source asks of the API server. Its permissions: get, list, watch of pods and namespaces, patch of pods/status,
// create of events.
type API interface {
	// Pods watches the pods of a node, Namespaces all namespaces.
	Pods(node string) cache.ListerWatcher
	Namespaces() cache.ListerWatcher
	// Pod gets a pod; apierrors.IsNotFound tells that there is none.
	Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	// PatchStatus merges a patch into a pod by way of its status, which needs less permission.
	PatchStatus(ctx context.Context, namespace, name string, patch []byte) error
	// Event writes an event.
	Event(ctx context.Context, e *corev1.Event) error
}

// api is the API of a cluster. The generated clients are not used: they know every kind of Kubernetes, which costs each
// process of the node's proxy megabytes.
type api struct{ c *rest.RESTClient }

// NewAPI returns the API server that a kubeconfig names, or that of the cluster the process runs in if path is "".
func NewAPI(path, userAgent string) (API, error) {
	cfg, err := kubeconfig.Load(path)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register kinds: %w", err)
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	cfg.APIPath, cfg.UserAgent, cfg.GroupVersion = "/api", userAgent, &corev1.SchemeGroupVersion
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	cfg.ContentType = runtime.ContentTypeProtobuf
	c, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client of the API server: %w", err)
	}
	return &api{c}, nil
}

// Pods implements API.
func (a *api) Pods(node string) cache.ListerWatcher {
	return cache.NewListWatchFromClient(a.c, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", node))
}

// Namespaces implements API.
func (a *api) Namespaces() cache.ListerWatcher {
	return cache.NewListWatchFromClient(a.c, "namespaces", metav1.NamespaceAll, fields.Everything())
}

// Pod implements API.
func (a *api) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	p := &corev1.Pod{}
	return p, a.c.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(p)
}

// PatchStatus implements API.
func (a *api) PatchStatus(ctx context.Context, namespace, name string, patch []byte) error {
	return a.c.Patch(types.MergePatchType).Namespace(namespace).Resource("pods").Name(name).SubResource("status").Body(patch).Do(ctx).Error()
}

// Event implements API.
func (a *api) Event(ctx context.Context, e *corev1.Event) error {
	return a.c.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(ctx).Error()
}

// annotate writes an annotation; "" takes it away. A pod of the same name that followed is not touched: the patch names the
// UID.
func (s *Source) annotate(ctx context.Context, p *corev1.Pod, key, value string) error {
	var v any
	if value != "" {
		v = value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID, "annotations": map[string]any{key: v}}})
	if err != nil {
		return err
	}
	err = s.cfg.API.PatchStatus(ctx, p.Namespace, p.Name, patch)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // it is gone; another one may have its name
		return nil
	}
	if err != nil {
		return fmt.Errorf("annotate pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}
