// Package apiserver is the control plane's side of a Kubernetes API server: the Source of its objects, the reviewer of
// tokens, the Secret that replicas share their root by, the lease that says which replica writes, and what it writes.
//
// Everything goes through one Client, which speaks JSON and knows objects by their fields; kube.DecodeStored makes typed
// objects of them, so an object from an API server and one from a manifest are decoded, defaulted and refused alike.
// Kubernetes' generated clients are not used: they would double what the program is built from.
//
// The API server may be slow, end watches or be away at any time. Then what was last known stays in force, and
// everything is tried again. Statements of controlplane.md are cited as "2.1".
package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/kubeconfig"
)

// Manager is the name under which the control plane writes.
const Manager = "ambit-controlplane"

// callTimeout bounds every call but a watch.
const callTimeout = 10 * time.Second

// Requests a second and at once. The start lists two dozen kinds; afterwards there are few.
const (
	queriesPerSecond = 100
	queriesAtOnce    = 200
)

// Resources that are no kinds of the mesh.
var (
	configMaps   = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	secrets      = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	events       = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	leases       = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
	tokenReviews = schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: "tokenreviews"}
	webhooks     = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
	definitions  = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
)

// Client is the connection to an API server. Safe for any goroutine.
type Client struct {
	dynamic dynamic.Interface
	// get reads a path, for discovery.
	get func(ctx context.Context, path string) ([]byte, error)
}

// Connect prepares a client from a kubeconfig file, or from the pod's service account when the path is empty. It does
// not talk to the server yet.
func Connect(file string) (*Client, error) {
	cfg, err := kubeconfig.Load(file)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = Manager
	cfg.QPS, cfg.Burst = queriesPerSecond, queriesAtOnce
	d, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to API server: %w", err)
	}
	plain := dynamic.ConfigFor(cfg)
	plain.GroupVersion = &schema.GroupVersion{}
	r, err := rest.UnversionedRESTClientFor(plain)
	if err != nil {
		return nil, fmt.Errorf("connect to API server: %w", err)
	}
	return &Client{dynamic: d, get: func(ctx context.Context, path string) ([]byte, error) {
		return r.Get().AbsPath(path).DoRaw(ctx)
	}}, nil
}

// unread are the accepted kinds that are not watched: nothing is made of the first two, and which Deployment a pod
// belongs to follows from the hash in its labels without the ReplicaSets, of which a cluster keeps many.
var unread = map[kube.Kind]bool{kube.KindServiceAccount: true, kube.KindDeployment: true, kube.KindReplicaSet: true}

// served finds out which of the kinds the API server has, and under which resource: of the versions of a kind that we
// accept the first.
func (c *Client) served(ctx context.Context) (map[kube.Kind]schema.GroupVersionResource, error) {
	var groups metav1.APIGroupList
	if err := c.getJSON(ctx, "/apis", &groups); err != nil {
		return nil, err
	}
	offered := map[string]bool{"v1": true}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			offered[v.GroupVersion] = true
		}
	}
	out := map[kube.Kind]schema.GroupVersionResource{}
	lists := map[schema.GroupVersion]*metav1.APIResourceList{}
	for _, kind := range kube.Kinds() {
		group, versions := kind.Versions()
		for _, v := range versions {
			gv := schema.GroupVersion{Group: group, Version: v}
			if unread[kind] || !offered[gv.String()] {
				continue
			}
			if lists[gv] == nil {
				lists[gv] = &metav1.APIResourceList{}
				if err := c.getJSON(ctx, pathOf(gv), lists[gv]); err != nil && !apierrors.IsNotFound(err) {
					return nil, err
				}
			}
			if name := resourceOf(lists[gv], kind); name != "" {
				out[kind] = gv.WithResource(name)
				break
			}
		}
	}
	return out, nil
}

func pathOf(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "/api/" + gv.Version
	}
	return "/apis/" + gv.String()
}

// resourceOf is the name of a kind's resource in a list, "" when it is not there.
func resourceOf(list *metav1.APIResourceList, kind kube.Kind) string {
	for _, r := range list.APIResources {
		// Subresources, "pods/eviction", may have the kind of another resource.
		if r.Kind == string(kind) && !strings.Contains(r.Name, "/") {
			return r.Name
		}
	}
	return ""
}

func (c *Client) getJSON(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, err := c.get(ctx, path)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	return nil
}

// undefined says whether a kind's definition is gone for certain: the API server answers that there is no such
// CustomResourceDefinition. That the resource itself is not found means less: a server that has just started may not
// know its definitions yet, and to drop policies then would open doors.
func (c *Client) undefined(ctx context.Context, gvr schema.GroupVersionResource) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.dynamic.Resource(definitions).Get(ctx, gvr.GroupResource().String(), metav1.GetOptions{})
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	d := status.Status().Details
	return d != nil && d.Group == definitions.Group && d.Name != ""
}

func discard(l *slog.Logger) *slog.Logger {
	if l != nil {
		return l
	}
	return slog.New(slog.DiscardHandler)
}
