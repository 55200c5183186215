package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/controlplane/admission"
	"github.com/ambit-mesh/ambit/controlplane/ca"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
)

// review is the question what would be wrong if an object were there.
type review struct {
	object   kube.Object
	problems chan []kube.Problem // cap 1
}

var errNotSynced = errors.New("no configuration has been published yet")

// judge is an admission.Judge. It waits its turn between the sets that are published.
func (f *feed) judge(ctx context.Context, o kube.Object) ([]kube.Problem, error) {
	if !f.synced.Load() {
		return nil, errNotSynced
	}
	r := &review{object: o, problems: make(chan []kube.Problem, 1)}
	select {
	case f.reviews <- r:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case problems := <-r.problems:
		return problems, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// try translates the objects with one more, takes it back, and returns what was found: of the object everything, of
// others what is rejected and was not before. Nothing is published. What it costs is what the object would cost anyway.
func (f *feed) try(o kube.Object) []kube.Problem {
	key, objects := kube.KeyOf(o), f.objects.With([]kube.Object{o}, nil)
	change := f.translator.Update(objects)
	found := slices.Clone(f.translator.Problems(key))
	f.translator.Update(f.objects)
	found = append(found, f.s.waypoints.try(objects, change.Addresses)...)
	if key.Kind == kube.KindGateway {
		for _, p := range gateway.NewPlanner(f.s.cfg.Waypoint).Update(objects).Problems {
			p.Severity = kube.Warning // what it lacks may come after it
			found = append(found, p)
		}
	}
	found = slices.DeleteFunc(found, func(p kube.Problem) bool {
		return p.Object != key && (p.Severity != kube.Rejected || slices.Contains(f.routing, p))
	})
	kube.SortProblems(found)
	return slices.Compact(found)
}

// try makes the resources of all waypoints for other objects and returns what is wrong, also of routes that are not
// accepted. It publishes nothing.
func (w *waypoints) try(objects *kube.Objects, change translate.Delta) []kube.Problem {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !hasGateway(objects) {
		return nil
	}
	addresses := maps.Clone(w.addresses)
	apply(addresses, change)
	index := envoy.NewIndex(w.cfg, objects, slices.Collect(maps.Values(addresses)))
	var found []kube.Problem
	for _, name := range index.Waypoints() {
		found = append(found, index.Build(name, w.built[name]).Problems...)
	}
	if hasRoute(objects) {
		for _, p := range index.RouteParents() {
			found = append(found, notServed(p, found)...)
		}
	}
	return found
}

// notServed says what of a route at one of its parents is not as it should be, unless it is among what is known.
func notServed(r envoy.RouteParent, known []kube.Problem) []kube.Problem {
	var found []kube.Problem
	for _, v := range []struct {
		envoy.Verdict
		field, part string
	}{{r.Accepted, "spec.parentRefs", "parentRefs"}, {r.Refs, "spec.rules", "backendRefs"}} {
		p := kube.Problem{Severity: kube.Warning, Object: kube.KeyOf(r.Route), Field: v.field, Cause: v.Reason + ": " + v.Message}
		if !v.OK && !slices.ContainsFunc(known, func(q kube.Problem) bool { return q.Object == p.Object && strings.Contains(q.Field, v.part) }) {
			found = append(found, p)
		}
	}
	return found
}

// serveReviews answers the API server on a port of its own until ctx ends.
func (s *server) serveReviews(ctx context.Context, listener net.Listener) error {
	ips, err := serverIPs(listener.Addr())
	if err != nil {
		return err
	}
	web := &http.Server{
		Handler: admission.NewHandler(s.feed.judge, s.log), TLSConfig: ca.ServerTLS(s.authority, s.serverNames(), ips),
		ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
	}
	stop := context.AfterFunc(ctx, func() { _ = web.Close() })
	defer stop()
	if err := web.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve reviews: %w", err)
	}
	return nil
}
