package apiserver

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// PublishWebhook implements a part of controlplane.Cluster: it writes the root certificates into each webhook of a
// ValidatingWebhookConfiguration where they differ. Whoever made the configuration need not know them.
func (c *Client) PublishWebhook(ctx context.Context, name string, root []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resource := c.dynamic.Resource(webhooks)
	have, err := resource.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read webhook configuration %q: %w", name, err)
	}
	list, _, err := unstructured.NestedSlice(have.Object, "webhooks")
	if err != nil {
		return fmt.Errorf("read webhook configuration %q: %w", name, err)
	}
	want, changed := base64.StdEncoding.EncodeToString(root), false
	for _, w := range list {
		hook, ok := w.(map[string]any)
		if !ok {
			return fmt.Errorf("read webhook configuration %q: %w", name, errors.New("a webhook is no object"))
		}
		if got, _, _ := unstructured.NestedString(hook, "clientConfig", "caBundle"); got == want {
			continue
		}
		if err := unstructured.SetNestedField(hook, want, "clientConfig", "caBundle"); err != nil {
			return fmt.Errorf("write webhook configuration %q: %w", name, err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	if err = unstructured.SetNestedSlice(have.Object, list, "webhooks"); err == nil {
		_, err = resource.Update(ctx, have, metav1.UpdateOptions{FieldManager: Manager})
	}
	if err != nil {
		return fmt.Errorf("write webhook configuration %q: %w", name, err)
	}
	return nil
}
