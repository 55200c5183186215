package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/status"
)

// Cluster is what the control plane writes to. Of several replicas only the one that leads writes. Methods may block
// for some seconds.
type Cluster interface {
	// Writer is what waypoints are made with.
	gateway.Writer
	// Lead calls lead whenever this replica leads, until its context ends; it blocks until ctx ends.
	Lead(ctx context.Context, lead func(context.Context)) error
	// PublishRoot makes sure that each namespace of the objects has the root certificates (PEM).
	PublishRoot(ctx context.Context, objects *kube.Objects, root []byte) error
	// PublishWebhook gives the webhooks of a ValidatingWebhookConfiguration the root certificates (PEM) that the control
	// plane is verified with. That there is no such configuration is no error.
	PublishWebhook(ctx context.Context, name string, root []byte) error
	// Report tells the owners of objects what is wrong with them: the complete list, each time.
	Report(ctx context.Context, problems []kube.Problem) error
	// PublishStatus writes to objects what became of them: the complete set, each time.
	PublishStatus(ctx context.Context, list []status.Status) error
}

const (
	// retryWrite is the pause after a write that failed.
	retryWrite = 5 * time.Second
	// checkWrites is when what was written is looked at again though nothing changed.
	checkWrites = 10 * time.Minute
	// checkWebhook is the same for the webhook's configuration, which may be made anew without anything else.
	checkWebhook = time.Minute
)

// writer writes to the cluster what follows from the newest objects. Safe for any goroutine.
type writer struct {
	cluster Cluster
	webhook string // "" = none
	log     *slog.Logger
	due     chan struct{} // cap 1
	rootDue chan struct{} // cap 1

	mu       sync.Mutex
	objects  *kube.Objects   // nil before the first set; guarded by mu
	problems []kube.Problem  // guarded by mu
	root     []byte          // guarded by mu
	plan     *gateway.Plan   // guarded by mu
	status   []status.Status // guarded by mu
}

func newWriter(c Cluster, webhook string, log *slog.Logger) *writer {
	return &writer{cluster: c, webhook: webhook, log: log, due: make(chan struct{}, 1), rootDue: make(chan struct{}, 1)}
}

// run writes while this replica leads, until ctx ends.
func (w *writer) run(ctx context.Context) error {
	if w.cluster == nil {
		return nil
	}
	return w.cluster.Lead(ctx, func(ctx context.Context) {
		var webhook sync.WaitGroup
		webhook.Go(func() { w.keepWebhook(ctx) })
		defer webhook.Wait()
		w.lead(ctx)
	})
}

// take notes a set of objects, what is wrong with them, what should be written to them, and which waypoints there should be.
func (w *writer) take(objects *kube.Objects, problems []kube.Problem, list []status.Status, plan *gateway.Plan) {
	w.mu.Lock()
	w.objects, w.problems, w.status, w.plan = objects, problems, list, plan
	w.mu.Unlock()
	w.wake()
}

// takeRoot notes the root certificates.
func (w *writer) takeRoot(pem []byte) {
	w.mu.Lock()
	w.root = pem
	w.mu.Unlock()
	w.wake()
	signal(w.rootDue)
}

func (w *writer) wake() { signal(w.due) }

// signal fills a channel of one place.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lead writes now and whenever something changes.
func (w *writer) lead(ctx context.Context) {
	waypoints := gateway.NewController(w.cluster) // which knows nothing: another replica may have led meanwhile
	upkeep{due: w.due, every: checkWrites, failure: "not written to the cluster", log: w.log, write: func(ctx context.Context) error {
		w.mu.Lock()
		objects, problems, root, list, plan := w.objects, w.problems, w.root, w.status, w.plan
		w.mu.Unlock()
		if objects == nil || root == nil {
			return nil
		}
		err := w.cluster.PublishRoot(ctx, objects, root) // which pods of waypoints need
		found, werr := waypoints.Reconcile(ctx, plan)
		return errors.Join(err, werr, w.cluster.Report(ctx, slices.Concat(problems, found)), w.cluster.PublishStatus(ctx, list))
	}}.run(ctx)
}

// keepWebhook gives the webhook the root certificates, and again whenever they or it are others.
func (w *writer) keepWebhook(ctx context.Context) {
	if w.webhook == "" {
		return
	}
	upkeep{due: w.rootDue, every: checkWebhook, failure: "root certificates not given to the webhook", log: w.log, write: func(ctx context.Context) error {
		w.mu.Lock()
		root := w.root
		w.mu.Unlock()
		if root == nil {
			return nil
		}
		return w.cluster.PublishWebhook(ctx, w.webhook, root)
	}}.run(ctx)
}

// upkeep is a write that is made again and again.
type upkeep struct {
	due     <-chan struct{} // something changed
	every   time.Duration   // it is made again though nothing changed
	failure string          // what is logged, once for the same error
	log     *slog.Logger
	write   func(ctx context.Context) error
}

// run writes now, when something changed, and soon again after a failure, until ctx ends.
func (u upkeep) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	troubled := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.due:
		case <-timer.C:
		}
		err := u.write(ctx)
		if err == nil || ctx.Err() != nil {
			troubled = ""
			timer.Reset(u.every)
			continue
		}
		if text := err.Error(); text != troubled {
			u.log.Error(u.failure, slog.Any("err", err))
			troubled = text
		}
		timer.Reset(retryWrite)
	}
}
