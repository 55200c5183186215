package apiserver

import (
	"context"
	"encoding/base64"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/controlplane/ca"
)

// Secrets of the authority (2.4).
const (
	givenSecret = "cacerts"
	ownSecret   = "istio-ca-secret"
	ownType     = "istio.io/ca-root"
)

// Vault is the ca.Vault of a namespace: the Secret cacerts when somebody has put one there, else istio-ca-secret, which
// the first replica makes. Safe for any goroutine.
type Vault struct {
	client    *Client
	namespace string
}

// NewVault makes a vault of a namespace.
func NewVault(c *Client, namespace string) *Vault { return &Vault{client: c, namespace: namespace} }

// Load implements ca.Vault. It blocks for callTimeout at most.
func (v *Vault) Load(ctx context.Context) (map[string][]byte, string, error) {
	for _, name := range []string{givenSecret, ownSecret} {
		files, version, err := v.load(ctx, name)
		if err != nil || files != nil {
			return files, version, err
		}
	}
	return nil, "", nil
}

func (v *Vault) load(ctx context.Context, name string) (map[string][]byte, string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := v.client.dynamic.Resource(secrets).Namespace(v.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read secret %s/%s: %w", v.namespace, name, err)
	}
	files := map[string][]byte{}
	for key, value := range at(s.Object, "data") {
		text, _ := value.(string)
		if files[key], err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, "", fmt.Errorf("read secret %s/%s: key %q: %w", v.namespace, name, key, err)
		}
	}
	return files, s.GetResourceVersion(), nil
}

// Save implements ca.Vault. Of several replicas that make the first root, or go on with a rotation, one succeeds: the
// others get ca.ErrChanged, from the conflict that the API server tells them. It blocks for callTimeout at most.
func (v *Vault) Save(ctx context.Context, files map[string][]byte, version string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	data := map[string]any{}
	for key, value := range files {
		data[key] = base64.StdEncoding.EncodeToString(value)
	}
	metadata := map[string]any{"name": ownSecret, "namespace": v.namespace}
	s := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": ownType, "metadata": metadata, "data": data,
	}}
	resource := v.client.dynamic.Resource(secrets).Namespace(v.namespace)
	var saved *unstructured.Unstructured
	var err error
	if version == "" {
		saved, err = resource.Create(ctx, s, metav1.CreateOptions{FieldManager: Manager})
	} else {
		metadata["resourceVersion"] = version
		saved, err = resource.Update(ctx, s, metav1.UpdateOptions{FieldManager: Manager})
	}
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		return "", fmt.Errorf("write secret %s/%s: %w", v.namespace, ownSecret, ca.ErrChanged)
	}
	if err != nil {
		return "", fmt.Errorf("write secret %s/%s: %w", v.namespace, ownSecret, err)
	}
	return saved.GetResourceVersion(), nil
}
