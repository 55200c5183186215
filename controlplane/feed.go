package controlplane

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/discovery"
	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/status"
	"github.com/ambit-mesh/ambit/controlplane/translate"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// feed carries objects from the source to the proxies.
type feed struct {
	s       *server
	latest  atomic.Pointer[kube.Snapshot]
	arrived chan struct{} // cap 1: latest was set
	synced  atomic.Bool   // the first set was published
	reviews chan *review

	// For run's goroutine only.
	translator  *translate.Translator
	objects     *kube.Objects
	translation []kube.Problem // of the translation, as last listed
	planner     *gateway.Planner
	plan        *gateway.Plan
	routing     []kube.Problem // of waypoints

	status map[kube.Key]translate.Status // as last listed
}

func newFeed(s *server, cfg translate.Config) *feed {
	return &feed{s: s, arrived: make(chan struct{}, 1), reviews: make(chan *review), translator: translate.NewTranslator(cfg), plan: &gateway.Plan{}, planner: gateway.NewPlanner(s.cfg.Waypoint)}
}

// deliver is for kube.Source.Run.
func (f *feed) deliver(snap kube.Snapshot) {
	f.latest.Store(&snap)
	select {
	case f.arrived <- struct{}{}:
	default:
	}
}

// run publishes each set that arrives, once the objects are quiet.
func (f *feed) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-f.reviews:
			r.problems <- f.try(r.object)
			continue
		case <-f.arrived:
		}
		if !f.settle(ctx) {
			return nil
		}
		f.publish(*f.latest.Load())
	}
}

// settle waits until nothing arrived for Quiet, MaxWait at most; false when ctx ended.
func (f *feed) settle(ctx context.Context) bool {
	quiet := time.NewTimer(f.s.cfg.Quiet)
	defer quiet.Stop()
	atMost := time.NewTimer(f.s.cfg.MaxWait)
	defer atMost.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-f.arrived:
			quiet.Reset(f.s.cfg.Quiet)
		case <-quiet.C:
			return true
		case <-atMost.C:
			return true
		}
	}
}

// publish translates a set of objects and hands what changed to the proxies. Services and workloads go before the
// policies that name them (1.11).
func (f *feed) publish(snap kube.Snapshot) {
	start := time.Now()
	f.s.pods.update(snap.Objects, f.objects)
	f.objects = snap.Objects
	change := f.translator.Update(snap.Objects)
	addresses, policies := discovery.Set{TypeURL: xds.AddressType}, discovery.Set{TypeURL: xds.AuthorizationType}
	first := !f.synced.Load()
	workloads := discovery.Set{TypeURL: xds.WorkloadType}
	if first {
		result := f.translator.Result()
		f.s.discovery.Publish(workloads, workloadsOf(slices.Collect(maps.Values(result.Addresses))))
		f.s.discovery.Publish(addresses, all(result.Addresses))
		f.s.discovery.Publish(policies, all(result.Authorizations))
		f.synced.Store(true)
		f.s.log.Info("first configuration published", slog.Int("addresses", len(result.Addresses)),
			slog.Int("authorizations", len(result.Authorizations)), slog.Duration("dur", time.Since(start)))
	} else {
		f.s.discovery.Update(workloads, workloadsOf(change.Addresses.Updated), change.Addresses.Removed)
		f.s.discovery.Update(addresses, converted(change.Addresses.Updated), change.Addresses.Removed)
		f.s.discovery.Update(policies, converted(change.Authorizations.Updated), change.Authorizations.Removed)
		f.s.log.Debug("configuration published", slog.Int("addresses", len(change.Addresses.Updated)+len(change.Addresses.Removed)),
			slog.Int("authorizations", len(change.Authorizations.Updated)+len(change.Authorizations.Removed)), slog.Duration("dur", time.Since(start)))
	}
	f.s.waypoints.update(snap.Objects, change.Addresses)
	f.report(snap, first || change.Reported)
}

// report notes the problems that stand, and logs those of the translation that are new; the source logs its own.
// reported says whether the translation's may have changed: listing them costs as much as there are objects.
func (f *feed) report(snap kube.Snapshot, reported bool) {
	if reported {
		before := f.translation
		result := f.translator.Result()
		f.translation, f.status = result.Problems, result.Status
		f.logNew(before, f.translation)
	}
	before := f.routing
	f.routing = f.s.waypoints.problems()
	f.logNew(before, f.routing)
	unplanned := f.plan
	f.plan = f.planner.Update(snap.Objects)
	if unplanned != f.plan {
		f.logNew(unplanned.Problems, f.plan.Problems)
	}
	standing := slices.Concat(snap.Problems, f.translation, f.routing, f.plan.Problems)
	texts := make([]string, len(standing))
	for i, p := range standing {
		texts[i] = p.Error()
	}
	f.s.problems.Store(&texts)
	list := status.Compute(status.Input{
		Objects: snap.Objects, Translated: f.status, Routes: f.s.waypoints.routeParents(), Problems: slices.Concat(f.routing, f.translation, f.plan.Problems),
		ClusterDomain: f.s.cfg.Waypoint.ClusterDomain,
	})
	f.s.statuses.update(snap.Objects, list, time.Now())
	f.s.writer.take(snap.Objects, standing, list, f.plan)
}

// logNew logs the problems that were not there before.
func (f *feed) logNew(before, now []kube.Problem) {
	known := map[kube.Problem]bool{}
	for _, p := range before {
		known[p] = true
	}
	for _, p := range now {
		if !known[p] {
			f.s.log.Warn("problem in the configuration", slog.String("problem", p.Error()))
		}
		known[p] = true
	}
}

// workloadsOf are the workloads alone, as waypoints get them, named as the addresses.
func workloadsOf(list []*translate.Resource) []discovery.Resource {
	var out []discovery.Resource
	for _, r := range list {
		w := r.Message.(*workloadpb.Address).GetWorkload()
		if w == nil {
			continue
		}
		// The version of the address changes exactly when the workload does.
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(w)
		if err == nil { // it was marshaled before, as part of the address
			out = append(out, discovery.Resource{Name: r.Name, Version: r.Version, Aliases: r.Aliases, Body: body})
		}
	}
	return out
}

func all(m map[string]*translate.Resource) []discovery.Resource {
	out := make([]discovery.Resource, 0, len(m))
	for _, r := range m {
		out = append(out, convert(r))
	}
	return out
}

func converted(list []*translate.Resource) []discovery.Resource {
	out := make([]discovery.Resource, 0, len(list))
	for _, r := range list {
		out = append(out, convert(r))
	}
	return out
}

func convert(r *translate.Resource) discovery.Resource {
	out := discovery.Resource{Name: r.Name, Version: r.Version, Aliases: r.Aliases, Body: r.Body}
	if a, ok := r.Message.(*workloadpb.Address); ok {
		if w := a.GetWorkload(); w != nil {
			out.Traits.Node = w.GetNode()
			for service := range w.GetServices() {
				out.Traits.Groups = append(out.Traits.Groups, service)
			}
		}
	}
	return out
}
