package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/status"
)

// judged are the kinds whose statuses are written (1.10, 5.3), and whether what we wrote is taken back when nothing is to
// be said any more. It is not of Gateways and their classes: their conditions have names that all controllers use, and an
// object that is no longer ours is another's.
var judged = map[kube.Kind]bool{
	kube.KindService: true, kube.KindServiceEntry: true, kube.KindWorkloadEntry: true,
	kube.KindAuthorizationPolicy: true, kube.KindRequestAuthentication: true, kube.KindTelemetry: true, kube.KindEnvoyFilter: true,
	kube.KindHTTPRoute: true, kube.KindGRPCRoute: true, kube.KindTCPRoute: true, kube.KindTLSRoute: true,
	kube.KindGateway: false, kube.KindGatewayClass: false,
}

// marks are in a status of which a part is ours.
var marks = [][]byte{
	[]byte(`"istio.io/Waypoint`), []byte(`"WaypointAccepted"`), []byte(`"ZtunnelAccepted"`), []byte(`"` + string(status.Controller) + `"`),
}

const (
	// relistAfter is how long it is believed that nobody else changed what we wrote.
	relistAfter = 10 * time.Minute
	// maxStatuses bounds the objects that one call writes; the rest follows with the next.
	maxStatuses = 500
	// writeTries is how often a status is written when somebody else changes the object meanwhile.
	writeTries = 3
)

// Statuses writes to objects what became of them. Safe for any goroutine; one call at a time.
type Statuses struct {
	client *Client
	now    func() time.Time // a test seam

	mu     sync.Mutex
	served map[kube.Kind]schema.GroupVersionResource // guarded by mu
	have   map[kube.Key]status.Status                // in the cluster; guarded by mu
	listed time.Time                                 // when have was read; guarded by mu
}

// NewStatuses makes a writer.
func NewStatuses(c *Client) *Statuses { return &Statuses{client: c, now: time.Now} }

// PublishStatus implements a part of controlplane.Cluster: it brings the statuses of objects to what they should be, and
// takes ours away from those that should have none. The argument is complete each time. Objects that are right already
// cost no request.
func (s *Statuses) PublishStatus(ctx context.Context, list []status.Status) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := make(map[kube.Key]status.Status, len(list))
	for _, w := range list {
		want[w.Object] = w
	}
	if s.now().Sub(s.listed) > relistAfter {
		if err := s.list(ctx, want); err != nil {
			return fmt.Errorf("list statuses: %w", err)
		}
	}
	var due []status.Status
	for key, w := range want {
		if _, ok := s.served[key.Kind]; ok && !reflect.DeepEqual(s.have[key], w) {
			due = append(due, w)
		}
	}
	for key := range s.have {
		if _, wanted := want[key]; wanted {
			continue
		}
		if judged[key.Kind] {
			due = append(due, status.Status{Object: key})
		} else {
			delete(s.have, key)
		}
	}
	slices.SortFunc(due, func(a, b status.Status) int { return a.Object.Compare(b.Object) })
	var errs []error
	for i, w := range due {
		if i == maxStatuses || ctx.Err() != nil {
			errs = append(errs, errors.New("too many objects to write at once"))
			break
		}
		if err := s.write(ctx, w); err != nil {
			errs = append(errs, fmt.Errorf("write status of %s: %w", w.Object, err))
			continue
		}
		if _, wanted := want[w.Object]; !wanted {
			delete(s.have, w.Object)
		}
	}
	return errors.Join(errs...)
}

// list reads which objects have the status that they should have, and which have one of ours and should have none.
func (s *Statuses) list(ctx context.Context, want map[kube.Key]status.Status) error {
	served, err := s.client.served(ctx)
	if err != nil {
		return err
	}
	have, ours := map[kube.Key]status.Status{}, map[kube.Kind]schema.GroupVersionResource{}
	for kind := range judged {
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
			old, err := statusOf(&list.Items[i])
			if err != nil {
				return err
			}
			w, wanted := want[key]
			if !wanted {
				w = status.Status{Object: key}
			}
			_, differs, err := w.Render(old, s.now())
			switch {
			case err != nil:
				return err
			case wanted && !differs, !wanted && differs && judged[kind] && slices.ContainsFunc(marks, func(m []byte) bool { return bytes.Contains(old, m) }):
				have[key] = w
			}
		}
	}
	s.served, s.have, s.listed = ours, have, s.now()
	return nil
}

func statusOf(u *unstructured.Unstructured) ([]byte, error) {
	if u.Object["status"] == nil {
		return nil, nil
	}
	return json.Marshal(u.Object["status"])
}

// errNoStatus is for objects of a definition without a status, of which an API server says that they are not there.
var errNoStatus = errors.New("the object has no status that could be written: its CustomResourceDefinition lacks subresources.status; apply that of Istio's release")

// write brings one object to what it should be. That it is gone is no error. One without a status is told, and not tried again
// before all are listed again.
func (s *Statuses) write(ctx context.Context, w status.Status) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r := s.client.dynamic.Resource(s.served[w.Object.Kind]).Namespace(w.Object.Namespace)
	var err error
	for range writeTries {
		var u *unstructured.Unstructured
		if u, err = r.Get(ctx, w.Object.Name.Name, metav1.GetOptions{}); err != nil {
			break
		}
		var changed bool
		if changed, err = s.merge(u, w); err == nil && changed {
			_, err = r.UpdateStatus(ctx, u, metav1.UpdateOptions{FieldManager: Manager})
		}
		if apierrors.IsNotFound(err) { // if the object itself is gone, the next try's Get says so
			err = errNoStatus
			continue
		}
		if !apierrors.IsConflict(err) {
			break
		}
	}
	if err == nil || apierrors.IsNotFound(err) {
		s.have[w.Object] = w
		return nil
	}
	if errors.Is(err, errNoStatus) {
		s.have[w.Object] = w
	}
	return err
}

// merge puts a status into an object and says whether that changed it.
func (s *Statuses) merge(u *unstructured.Unstructured, w status.Status) (bool, error) {
	old, err := statusOf(u)
	if err != nil {
		return false, err
	}
	body, changed, err := w.Render(old, s.now())
	if err != nil || !changed {
		return false, err
	}
	var now map[string]any
	if err := json.Unmarshal(body, &now); err != nil {
		return false, err
	}
	u.Object["status"] = now
	return true, nil
}
