package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
)

// conditions are those that this control plane writes (1.10), and on which kinds. Others in the same lists are others'.
var conditions = map[kube.Kind][]string{
	kube.KindService:             {"istio.io/WaypointBound"},
	kube.KindServiceEntry:        {"istio.io/WaypointBound", "istio.io/WaypointMissing"},
	kube.KindWorkloadEntry:       {"istio.io/WaypointBound"},
	kube.KindAuthorizationPolicy: {"ZtunnelAccepted", "WaypointAccepted"},
}

const (
	// relistAfter is how long it is believed that nobody else changed what we wrote.
	relistAfter = 10 * time.Minute
	// maxStatuses bounds the objects that one call writes; the rest follows with the next.
	maxStatuses = 500
)

// Statuses writes to objects what became of them. Safe for any goroutine; one call at a time.
type Statuses struct {
	client *Client
	now    func() time.Time // a test seam

	mu     sync.Mutex
	served map[kube.Kind]schema.GroupVersionResource // guarded by mu
	have   map[kube.Key][]translate.Condition        // in the cluster; guarded by mu
	listed time.Time                                 // when have was read; guarded by mu
}

// NewStatuses makes a writer.
func NewStatuses(c *Client) *Statuses { return &Statuses{client: c, now: time.Now} }

// PublishStatus implements a part of controlplane.Cluster: it brings the conditions and automatic addresses of objects
// to what they should be, and takes away our conditions from those that should have none. The argument is complete each
// time. Objects that are right already cost no request.
func (s *Statuses) PublishStatus(ctx context.Context, want map[kube.Key]translate.Status) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.listed) > relistAfter {
		if err := s.list(ctx); err != nil {
			return fmt.Errorf("list conditions: %w", err)
		}
	}
	var due []kube.Key
	for key, status := range want {
		if _, ours := s.served[key.Kind]; ours && (len(status.Addresses) > 0 || !slices.Equal(s.have[key], status.Conditions)) {
			due = append(due, key)
		}
	}
	for key := range s.have {
		if _, wanted := want[key]; !wanted {
			due = append(due, key)
		}
	}
	slices.SortFunc(due, kube.Key.Compare)
	var errs []error
	for i, key := range due {
		if i == maxStatuses || ctx.Err() != nil {
			errs = append(errs, errors.New("too many objects to write at once"))
			break
		}
		if err := s.write(ctx, key, want[key]); err != nil {
			errs = append(errs, fmt.Errorf("write status of %s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}

// list reads which objects have conditions of ours.
func (s *Statuses) list(ctx context.Context) error {
	served, err := s.client.served(ctx)
	if err != nil {
		return err
	}
	have, ours := map[kube.Key][]translate.Condition{}, map[kube.Kind]schema.GroupVersionResource{}
	for kind := range conditions {
		gvr, ok := served[kind]
		if !ok {
			continue
		}
		ours[kind] = gvr
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		list, err := s.client.dynamic.Resource(gvr).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		cancel()
		if err != nil {
			return err
		}
		for i := range list.Items {
			key := kube.Key{Kind: kind, Name: kube.Name{Namespace: list.Items[i].GetNamespace(), Name: list.Items[i].GetName()}}
			if c := oursOf(kind, &list.Items[i]); len(c) > 0 {
				have[key] = c
			}
		}
	}
	s.served, s.have, s.listed = ours, have, s.now()
	return nil
}

// oursOf reads the conditions of an object that are of our types.
func oursOf(kind kube.Kind, u *unstructured.Unstructured) []translate.Condition {
	var out []translate.Condition
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range list {
		c, _ := c.(map[string]any)
		text := func(field string) string { v, _ := c[field].(string); return v }
		if slices.Contains(conditions[kind], text("type")) {
			out = append(out, translate.Condition{Type: text("type"), Status: text("status"), Reason: text("reason"), Message: text("message")})
		}
	}
	return out
}

// write brings one object to what it should be. That it is gone is no error.
func (s *Statuses) write(ctx context.Context, key kube.Key, want translate.Status) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r := s.client.dynamic.Resource(s.served[key.Kind]).Namespace(key.Namespace)
	u, err := r.Get(ctx, key.Name.Name, metav1.GetOptions{})
	if err == nil && s.merge(key.Kind, u, want) {
		_, err = r.UpdateStatus(ctx, u, metav1.UpdateOptions{FieldManager: Manager})
	}
	switch {
	case apierrors.IsNotFound(err):
		delete(s.have, key)
		return nil
	case err != nil:
		return err
	case len(want.Conditions) == 0:
		delete(s.have, key)
	default:
		s.have[key] = want.Conditions
	}
	return nil
}

// merge puts a status into an object and says whether that changed it.
func (s *Statuses) merge(kind kube.Kind, u *unstructured.Unstructured, want translate.Status) bool {
	before, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	changed := !slices.Equal(oursOf(kind, u), want.Conditions)
	if changed {
		old := map[any]map[string]any{}
		var list []any
		for _, c := range before {
			if m, _ := c.(map[string]any); m != nil {
				old[m["type"]] = m
				if name, _ := m["type"].(string); !slices.Contains(conditions[kind], name) {
					list = append(list, c)
				}
			}
		}
		for _, c := range want.Conditions {
			since := any(s.now().UTC().Format(time.RFC3339))
			if o := old[c.Type]; o["status"] == c.Status && o["lastTransitionTime"] != nil {
				since = o["lastTransitionTime"]
			}
			m := map[string]any{"type": c.Type, "status": c.Status, "reason": c.Reason, "message": c.Message, "lastTransitionTime": since}
			if g := u.GetGeneration(); g > 0 {
				m["observedGeneration"] = g
			}
			list = append(list, m)
		}
		_ = unstructured.SetNestedSlice(u.Object, list, "status", "conditions") // list holds JSON values only
	}
	addresses, _, _ := unstructured.NestedSlice(u.Object, "status", "addresses")
	for _, a := range want.Addresses {
		known := slices.ContainsFunc(addresses, func(v any) bool {
			m, _ := v.(map[string]any)
			return m["host"] == a.Host && m["value"] == a.Address
		})
		if !known {
			addresses = append(addresses, map[string]any{"host": a.Host, "value": a.Address})
			changed = true
		}
	}
	if len(addresses) > 0 {
		_ = unstructured.SetNestedSlice(u.Object, addresses, "status", "addresses") // as above
	}
	return changed
}
