package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// Times of a lease, as in Kubernetes' own components. A leader that could not renew for renewWithin stops before the
// others may take over, leaseFor after they saw its last renewal.
const (
	leaseFor    = 15 * time.Second
	renewWithin = 10 * time.Second
	renewEvery  = 2 * time.Second
)

// Lease is the right to write, which one replica at a time has.
type Lease struct {
	client          *Client
	namespace, name string
	holder          string
	log             *slog.Logger

	// For Lead's goroutine only.
	seen   coordinationv1.LeaseSpec // as last read
	seenAt time.Time                // when it was first read like this, by our own clock
}

// NewLease makes a lease. The holder must be another one in each replica: the pod's name.
func NewLease(c *Client, namespace, name, holder string, logger *slog.Logger) *Lease {
	return &Lease{client: c, namespace: namespace, name: name, holder: holder, log: discard(logger)}
}

// Lead calls lead whenever this replica holds the lease, with a context that ends when it may hold it no longer; the
// next call comes after lead has returned, which it should do promptly. It blocks until ctx ends and returns nil; then
// it gives the lease back, so that another replica need not wait. One call at a time.
func (l *Lease) Lead(ctx context.Context, lead func(context.Context)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	troubled := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		held, err := l.acquire(ctx)
		if text := fmt.Sprint(err); err != nil && text != troubled && ctx.Err() == nil {
			l.log.Warn("lease not acquired", slog.String("lease", l.name), slog.Any("err", err))
			troubled = text
		} else if err == nil {
			troubled = ""
		}
		if held {
			l.hold(ctx, lead)
		}
		timer.Reset(renewEvery)
	}
}

// hold runs lead and renews the lease until ctx ends or the lease is lost.
func (l *Lease) hold(ctx context.Context, lead func(context.Context)) {
	l.log.Info("this replica leads", slog.String("lease", l.name), slog.String("holder", l.holder))
	leading, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); lead(leading) }()
	renewed := time.Now()
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for lost := false; !lost && ctx.Err() == nil; {
		select {
		case <-ctx.Done():
			continue
		case <-ticker.C:
		}
		deadline, cancel := context.WithDeadline(ctx, renewed.Add(renewWithin))
		started := time.Now()
		held, err := l.acquire(deadline)
		cancel()
		switch {
		case held:
			renewed = started
		case err == nil: // somebody else has it
			lost = true
		default:
			lost = time.Since(renewed) >= renewWithin
		}
	}
	stop()
	<-done
	l.release(context.WithoutCancel(ctx))
	l.log.Info("this replica leads no more", slog.String("lease", l.name))
}

// acquire takes or renews the lease if it is free or ours. Nobody else's clock is believed: a lease is free when its
// record has not changed for its duration by our own clock.
func (l *Lease) acquire(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resource := l.client.dynamic.Resource(leases).Namespace(l.namespace)
	now := time.Now()
	u, err := resource.Get(ctx, l.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		spec := l.spec(now, now, 0)
		created := &coordinationv1.Lease{Spec: spec}
		created.Name, created.Namespace = l.name, l.namespace
		return l.write(created, spec, now, func(u *unstructured.Unstructured) error {
			_, err := resource.Create(ctx, u, metav1.CreateOptions{FieldManager: Manager})
			return err
		})
	}
	if err != nil {
		return false, fmt.Errorf("read lease %s/%s: %w", l.namespace, l.name, err)
	}
	var lease coordinationv1.Lease
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &lease); err != nil {
		return false, fmt.Errorf("read lease %s/%s: %w", l.namespace, l.name, err)
	}
	if !sameSpec(lease.Spec, l.seen) {
		l.seen, l.seenAt = lease.Spec, now
	}
	holder := deref(lease.Spec.HolderIdentity)
	lasts := max(time.Duration(deref(lease.Spec.LeaseDurationSeconds))*time.Second, time.Second)
	if holder != "" && holder != l.holder && now.Before(l.seenAt.Add(lasts)) {
		return false, nil
	}
	since, transitions := now, deref(lease.Spec.LeaseTransitions)
	if holder == l.holder && lease.Spec.AcquireTime != nil {
		since = lease.Spec.AcquireTime.Time
	} else {
		transitions++
	}
	spec := l.spec(now, since, transitions)
	lease.Spec = spec
	return l.write(&lease, spec, now, func(u *unstructured.Unstructured) error {
		_, err := resource.Update(ctx, u, metav1.UpdateOptions{FieldManager: Manager})
		return err
	})
}

func (l *Lease) spec(now, since time.Time, transitions int32) coordinationv1.LeaseSpec {
	return coordinationv1.LeaseSpec{
		HolderIdentity: &l.holder, LeaseDurationSeconds: new(int32(leaseFor / time.Second)), LeaseTransitions: &transitions,
		AcquireTime: &metav1.MicroTime{Time: since}, RenewTime: &metav1.MicroTime{Time: now},
	}
}

// write stores a lease of ours. A conflict means that somebody else was faster.
func (l *Lease) write(lease *coordinationv1.Lease, spec coordinationv1.LeaseSpec, now time.Time, store func(*unstructured.Unstructured) error) (bool, error) {
	lease.APIVersion, lease.Kind = "coordination.k8s.io/v1", "Lease"
	o, err := runtime.DefaultUnstructuredConverter.ToUnstructured(lease)
	if err != nil {
		return false, fmt.Errorf("write lease %s/%s: %w", l.namespace, l.name, err)
	}
	switch err := store(&unstructured.Unstructured{Object: o}); {
	case apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("write lease %s/%s: %w", l.namespace, l.name, err)
	}
	l.seen, l.seenAt = spec, now
	return true, nil
}

// release gives the lease back if it is still ours; when it fails the lease runs out by itself.
func (l *Lease) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, renewEvery)
	defer cancel()
	resource := l.client.dynamic.Resource(leases).Namespace(l.namespace)
	u, err := resource.Get(ctx, l.name, metav1.GetOptions{})
	if err != nil {
		return
	}
	if holder, _, _ := unstructured.NestedString(u.Object, "spec", "holderIdentity"); holder != l.holder {
		return
	}
	if unstructured.SetNestedField(u.Object, "", "spec", "holderIdentity") == nil {
		_, _ = resource.Update(ctx, u, metav1.UpdateOptions{FieldManager: Manager})
	}
}

func sameSpec(a, b coordinationv1.LeaseSpec) bool {
	at, bt := deref(a.RenewTime), deref(b.RenewTime)
	return deref(a.HolderIdentity) == deref(b.HolderIdentity) && deref(a.LeaseTransitions) == deref(b.LeaseTransitions) && at.Equal(&bt)
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
