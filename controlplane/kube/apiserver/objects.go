package apiserver

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// made are the resources that waypoints consist of. All but the class of Gateways are in every API server.
var made = map[string]schema.GroupVersionResource{
	"ServiceAccount":          {Version: "v1", Resource: "serviceaccounts"},
	"Service":                 {Version: "v1", Resource: "services"},
	"Deployment":              {Group: "apps", Version: "v1", Resource: "deployments"},
	"HorizontalPodAutoscaler": {Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"},
	"PodDisruptionBudget":     {Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
	"GatewayClass":            {Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"},
}

func (c *Client) resource(kind, namespace string) (dynamic.ResourceInterface, error) {
	gvr, ok := made[kind]
	if !ok {
		return nil, fmt.Errorf("kind %s is not one that is made", kind)
	}
	return c.dynamic.Resource(gvr).Namespace(namespace), nil
}

// Find implements a part of gateway.Writer.
func (c *Client) Find(ctx context.Context, kind, namespace, name string) (*unstructured.Unstructured, error) {
	r, err := c.resource(kind, namespace)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o, err := r.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return o, err
}

// Apply implements a part of gateway.Writer. Fields that somebody else set otherwise become ours.
func (c *Client) Apply(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := c.resource(o.GetKind(), o.GetNamespace())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// Some implementations write into what they are given.
	_, err = r.Apply(ctx, o.GetName(), o.DeepCopy(), metav1.ApplyOptions{FieldManager: Manager, Force: true})
	return err
}

// Delete implements a part of gateway.Writer. Another object of the same name, made since, stays.
func (c *Client) Delete(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := c.resource(o.GetKind(), o.GetNamespace())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	uid := o.GetUID()
	background := metav1.DeletePropagationBackground
	err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
