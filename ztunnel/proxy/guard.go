package proxy

import (
	"errors"
	"slices"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// errPolicyPending says that a connection is to wait: the pod's record names a policy that may be on its way.
var errPolicyPending = errors.New("a policy has not been delivered yet")

// guard is a pod's policy on one worker, and the inbound connections that it let in. Loop only.
type guard struct {
	w      *worker
	pod    *Pod
	record *workload.Workload // nil while unknown
	view   *rbac.View
	set    *rbac.Set
	conns  guardedList
	// grace runs from the moment that the record names a policy which is not there: workloads and policies are two streams,
	// and neither waits for the other. New connections are parked meanwhile and those that were let in go on. overdue says
	// that the policy did not come in that time: everybody is refused until it does.
	grace   loop.Timer
	overdue bool
	// stale says that the set has changed since conns were last checked against it: a new connection may be the first to
	// see the change.
	stale bool
}

// guarded is an inbound connection under a guard: embedded where the connection enters a pod.
type guarded struct {
	prev, next *guarded
	g          *guard
	attrs      rbac.Attributes // frozen when the connection began (I18)
	end        cutter
}

// guard returns pod's guard, up to date.
func (w *worker) guard(pod *Pod) *guard {
	g := w.guards[pod]
	if g == nil {
		g = &guard{w: w, pod: pod}
		w.guards[pod] = g
	}
	g.refresh()
	return g
}

// refresh looks the pod's record and policies up again.
func (g *guard) refresh() {
	wv, pv := g.w.views()
	rec := g.w.p.record(g.pod, wv)
	if rec == g.record && pv == g.view {
		return
	}
	g.record, g.view = rec, pv
	before := g.set
	if g.set = nil; rec != nil {
		g.set = pv.Set(rec.Namespace, rec.Policies, before)
	}
	g.stale = true
	g.await(before)
}

// await starts or ends the grace of policies that are missing. A further one that is missing has a grace of its own.
func (g *guard) await(before *rbac.Set) {
	if g.set == nil || len(g.set.Missing) == 0 {
		g.grace.Stop()
		g.overdue = false
		return
	}
	known := func(n string) bool { return before != nil && slices.Contains(before.Missing, n) }
	if !slices.ContainsFunc(g.set.Missing, func(n string) bool { return !known(n) }) {
		return
	}
	g.overdue = false
	g.w.loop.Start(&g.grace, g.w.p.cfg.WorkloadWait, g)
}

// Expired implements loop.TimerHandler: the grace is over.
func (g *guard) Expired(*loop.Timer) {
	g.overdue, g.stale = true, true
	g.w.p.log.Warn("a policy that a pod is under has not been delivered: its connections are refused",
		"policy", g.set.Missing[0], "missing", len(g.set.Missing), "pod", g.pod.Name, "namespace", g.pod.Namespace)
	g.w.changed() // for those that wait, and those that were let in
}

// admit decides whether a connection may enter the pod and, if so, keeps it under watch until leave. A pod without a
// record lets nobody in. On errPolicyPending the caller parks and asks again when it is told to.
func (g *guard) admit(c *guarded, attrs rbac.Attributes, end cutter) error {
	if g.set == nil {
		return errUnknownWorkload
	}
	c.attrs, c.end, c.g = attrs, end, g
	d := g.set.Check(&c.attrs)
	if d.Reason == rbac.UnknownPolicy && !g.overdue {
		return errPolicyPending
	}
	g.w.reportDryRun(d, &c.attrs)
	if !d.Allowed {
		return deniedError{decision: d}
	}
	g.conns.add(c)
	return nil
}

// leave ends the watch; c may be in none.
func (c *guarded) leave() {
	if c.g != nil && (c.prev != nil || c.next != nil || c.g.conns.head == c) {
		c.g.conns.remove(c)
	}
}

// recheck closes the connections that the policy of now would not let in (I18). A pod whose record is gone keeps its
// connections: the record may be on its way back, and a pod that is gone is cut by capture.
func (g *guard) recheck() {
	if g.set == nil || !g.stale {
		return
	}
	g.stale = false
	var denied []*guarded // ending one connection may end others
	var why []rbac.Decision
	for c := g.conns.head; c != nil; c = c.next {
		if d := g.set.Check(&c.attrs); !d.Allowed && (d.Reason != rbac.UnknownPolicy || g.overdue) {
			denied, why = append(denied, c), append(why, d)
		}
	}
	for i, c := range denied {
		c.end.cut(policyChangedError{decision: why[i]})
	}
}

// guardedList is an intrusive list.
type guardedList struct{ head *guarded }

func (l *guardedList) empty() bool { return l.head == nil }

func (l *guardedList) add(c *guarded) {
	c.prev, c.next = nil, l.head
	if l.head != nil {
		l.head.prev = c
	}
	l.head = c
}

func (l *guardedList) remove(c *guarded) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.head = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
}
