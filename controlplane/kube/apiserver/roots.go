package apiserver

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// The ConfigMap that pods mount to verify the control plane (2.4).
const (
	rootMap = "istio-ca-root-cert"
	rootKey = "root-cert.pem"
)

// PublishRoot makes sure that each namespace of a set of objects has a ConfigMap with the mesh's root certificates. It
// writes only what differs in the set, so calling it for every set also mends what somebody changed. It goes on after
// an error and returns all of them.
func (c *Client) PublishRoot(ctx context.Context, objects *kube.Objects, root []byte) error {
	var errs []error
	for ns := range kube.List[*corev1.Namespace](objects) {
		if ns.DeletionTimestamp != nil {
			continue
		}
		have := kube.Get[*corev1.ConfigMap](objects, ns.Name, rootMap)
		if have != nil && have.Data[rootKey] == string(root) {
			continue
		}
		if err := c.writeRoot(ctx, ns.Name, root); err != nil && !goneNamespace(err) {
			errs = append(errs, fmt.Errorf("write root certificates to namespace %q: %w", ns.Name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// goneNamespace says whether a write failed because its namespace is going or gone.
func goneNamespace(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

func (c *Client) writeRoot(ctx context.Context, namespace string, root []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	maps := c.dynamic.Resource(configMaps).Namespace(namespace)
	_, err := maps.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": rootMap, "namespace": namespace, "labels": map[string]any{"istio.io/config": "true"}},
		"data":     map[string]any{rootKey: string(root)},
	}}, metav1.CreateOptions{FieldManager: Manager})
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	have, err := maps.Get(ctx, rootMap, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if v, _, _ := unstructured.NestedString(have.Object, "data", rootKey); v == string(root) {
		return nil
	}
	if err := unstructured.SetNestedField(have.Object, string(root), "data", rootKey); err != nil {
		return err
	}
	_, err = maps.Update(ctx, have, metav1.UpdateOptions{FieldManager: Manager})
	return err
}
