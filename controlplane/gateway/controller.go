package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Writer is an API server to write to. Methods may block for some seconds.
type Writer interface {
	// Find reads an object of one of the kinds that this package renders; nil when there is none.
	Find(ctx context.Context, kind, namespace, name string) (*unstructured.Unstructured, error)
	// Apply makes an object what it should be by server-side apply.
	Apply(ctx context.Context, o *unstructured.Unstructured) error
	// Delete removes exactly the object that was read. That it is gone is no error.
	Delete(ctx context.Context, o *unstructured.Unstructured) error
}

const (
	// resync is how long it is believed that nobody else changed what was written: Deployments are not watched.
	resync = 10 * time.Minute
	// firstRetry and lastRetry are the shortest and the longest pause after a failure.
	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute
)

// kinds are all that a Gateway may become.
var kinds = []string{kindAccount, kindService, kindDeployment, kindAutoscaler, kindBudget}

// Controller writes plans. For one goroutine.
type Controller struct {
	writer Writer
	class  bool // the object of the class is there
	state  map[kube.Name]*state
}

// state is what is known of one Gateway's objects.
type state struct {
	waypoint *Waypoint // as last tried
	gone     int
	done     time.Time // when it was written; zero when it could not be
	retry    time.Time // not before
	pause    time.Duration
	err      error
	problem  *kube.Problem
}

// NewController makes a controller.
func NewController(w Writer) *Controller {
	c := &Controller{writer: w}
	c.Forget()
	return c
}

// Forget makes the next Reconcile look at everything: to be called when this replica begins to lead.
func (c *Controller) Forget() { c.class, c.state = false, map[kube.Name]*state{} }

// Reconcile writes what differs from a plan, and deletes what was made for a Gateway and is no longer wanted. It goes on
// after a failure, leaves a Gateway that failed alone for a while, longer each time, and returns what stands of failures,
// and of problems that only a user can solve. What a deleted Gateway had goes by its ownerReferences.
func (c *Controller) Reconcile(ctx context.Context, p *Plan) ([]kube.Problem, error) {
	var errs []error
	var problems []kube.Problem
	next := make(map[kube.Name]*state, len(p.Waypoints))
	for _, w := range p.Waypoints {
		name := kube.KeyOf(w.Gateway).Name
		if w.Refused {
			continue
		}
		s := c.state[name]
		if s == nil {
			s = &state{}
		}
		next[name] = s
		if s.waypoint != w {
			*s = state{waypoint: w, gone: p.Gone[name]}
		}
		now := time.Now()
		due := s.done.IsZero() && !now.Before(s.retry) || !s.done.IsZero() && (s.gone != p.Gone[name] || now.Sub(s.done) >= resync)
		if due && ctx.Err() == nil {
			s.gone = p.Gone[name]
			c.try(ctx, s)
		}
		if s.err != nil {
			errs = append(errs, fmt.Errorf("waypoint %s: %w", name, s.err))
		}
		if s.problem != nil {
			problems = append(problems, *s.problem)
		}
	}
	c.state = next
	if err := c.makeClass(ctx, p); err != nil {
		errs = append(errs, err)
	}
	return problems, errors.Join(errs...)
}

// try writes one Gateway's objects and notes how it went.
func (c *Controller) try(ctx context.Context, s *state) {
	s.problem = nil
	s.err = c.write(ctx, s)
	if s.err == nil {
		s.done, s.pause = time.Now(), 0
		return
	}
	s.done = time.Time{}
	s.pause = min(max(2*s.pause, firstRetry), lastRetry)
	s.retry = time.Now().Add(s.pause)
	if s.problem == nil && (apierrors.IsInvalid(s.err) || apierrors.IsBadRequest(s.err) || apierrors.IsForbidden(s.err)) {
		s.problem = &kube.Problem{Object: kube.KeyOf(s.waypoint.Gateway), Cause: "the API server refuses an object of the waypoint: " + s.err.Error()}
	}
}

// write makes the objects of a Gateway what they should be. When one of them is somebody else's nothing is written.
func (c *Controller) write(ctx context.Context, s *state) error {
	g := s.waypoint.Gateway
	wanted := func(kind string) bool {
		return slices.ContainsFunc(s.waypoint.Objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == kind })
	}
	var stale []*unstructured.Unstructured
	for _, kind := range kinds {
		have, err := c.writer.Find(ctx, kind, g.Namespace, g.Name)
		switch {
		case err != nil:
			return fmt.Errorf("read %s: %w", kind, err)
		case have == nil:
		case !Owns(g, have) && wanted(kind):
			p := foreign(g, kind)
			s.problem = &p
			return errors.New(p.Cause)
		case Owns(g, have) && !wanted(kind):
			stale = append(stale, have)
		}
	}
	for _, o := range s.waypoint.Objects {
		if err := c.writer.Apply(ctx, o); err != nil {
			return fmt.Errorf("apply %s: %w", o.GetKind(), err)
		}
	}
	for _, o := range slices.Backward(stale) {
		if err := c.writer.Delete(ctx, o); err != nil {
			return fmt.Errorf("delete %s: %w", o.GetKind(), err)
		}
	}
	return nil
}

// makeClass makes the object of the class for the first Gateway that names it.
func (c *Controller) makeClass(ctx context.Context, p *Plan) error {
	named := slices.ContainsFunc(p.Waypoints, func(w *Waypoint) bool { return w.Gateway.Spec.GatewayClassName == kube.WaypointClass })
	if p.Class || c.class || !named || ctx.Err() != nil {
		return nil
	}
	have, err := c.writer.Find(ctx, string(kube.KindGatewayClass), "", kube.WaypointClass)
	if err == nil && have == nil {
		err = c.writer.Apply(ctx, GatewayClass())
	}
	if err != nil {
		return fmt.Errorf("make GatewayClass %q: %w", kube.WaypointClass, err)
	}
	c.class = true
	return nil
}
