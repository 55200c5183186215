package apiserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

const (
	// maxEvents bounds the events that one call writes; the rest follows with the next.
	maxEvents = 50
	// maxMessage is what the API server takes as a message, in bytes.
	maxMessage = 1024
	// eventNamespace is where events of objects without a namespace are.
	eventNamespace = "default"
)

// Events tells the owners of objects what is wrong with them, by an event on the object for each problem: kubectl
// describe shows it. One goroutine at a time.
type Events struct {
	client *Client

	mu        sync.Mutex
	told      map[kube.Problem]bool                     // guarded by mu
	resources map[kube.Kind]schema.GroupVersionResource // guarded by mu
	now       func() time.Time                          // a test seam
}

// NewEvents makes a teller.
func NewEvents(c *Client) *Events {
	return &Events{client: c, told: map[kube.Problem]bool{}, now: time.Now}
}

// Report implements a part of controlplane.Cluster: it writes an event for each problem of an object that it has not
// told yet. A problem that is gone and comes back is told again.
func (e *Events) Report(ctx context.Context, problems []kube.Problem) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := map[kube.Problem]bool{}
	var errs []error
	written := 0
	for _, p := range problems {
		if p.Object.Name.Name == "" {
			continue
		}
		if !e.told[p] && !now[p] {
			if written++; written > maxEvents {
				errs = append(errs, errors.New("too many problems to tell at once"))
				break
			}
			if err := e.tell(ctx, p); err != nil {
				errs = append(errs, fmt.Errorf("write event on %s: %w", p.Object, err))
				continue
			}
		}
		now[p] = true
	}
	e.told = now
	return errors.Join(errs...)
}

// tell writes the event of one problem. That the object is gone is no error.
func (e *Events) tell(ctx context.Context, p kube.Problem) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	gvr, err := e.resource(ctx, p.Object.Kind)
	if err != nil {
		return err
	}
	o, err := e.client.dynamic.Resource(gvr).Namespace(p.Object.Namespace).Get(ctx, p.Object.Name.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = e.client.dynamic.Resource(events).Namespace(spaceOf(p.Object)).Create(ctx, e.event(p, o), metav1.CreateOptions{FieldManager: Manager})
	if apierrors.IsAlreadyExists(err) || goneNamespace(err) {
		return nil
	}
	return err
}

func (e *Events) resource(ctx context.Context, kind kube.Kind) (schema.GroupVersionResource, error) {
	if gvr, ok := e.resources[kind]; ok {
		return gvr, nil
	}
	served, err := e.client.served(ctx)
	if err != nil {
		return schema.GroupVersionResource{}, err
	}
	e.resources = served
	if gvr, ok := served[kind]; ok {
		return gvr, nil
	}
	return schema.GroupVersionResource{}, fmt.Errorf("kind %s is not served", kind)
}

func spaceOf(k kube.Key) string {
	if k.Namespace == "" {
		return eventNamespace
	}
	return k.Namespace
}

// event is the event of a problem. Its name follows from what it says of which object, so that a control plane that
// starts anew does not say it twice while the first event is kept.
func (e *Events) event(p kube.Problem, o *unstructured.Unstructured) *unstructured.Unstructured {
	about := p
	about.Object = kube.Key{}
	message := about.Error()
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "")
	}
	sum := sha256.Sum256([]byte(string(o.GetUID()) + message))
	reasons := map[kube.Severity]string{kube.Rejected: "MeshRejected", kube.Ignored: "MeshIgnored", kube.Warning: "MeshWarning"}
	at := e.now().UTC().Format(time.RFC3339)
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata": map[string]any{"name": o.GetName() + "." + hex.EncodeToString(sum[:8]), "namespace": spaceOf(p.Object)},
		"involvedObject": map[string]any{
			"apiVersion": o.GetAPIVersion(), "kind": o.GetKind(), "name": o.GetName(), "namespace": o.GetNamespace(), "uid": string(o.GetUID()),
		},
		"type": "Warning", "reason": reasons[p.Severity], "message": message, "count": int64(1),
		"firstTimestamp": at, "lastTimestamp": at,
		"source": map[string]any{"component": Manager}, "reportingComponent": Manager,
	}}
}
