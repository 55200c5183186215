package proxy

import (
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// guard is a pod's policy on one worker, and the inbound connections that it let in. Loop only.
type guard struct {
	w      *worker
	record *workload.Workload // nil while unknown
	view   *rbac.View
	set    *rbac.Set
	conns  guardedList
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
		g = &guard{w: w}
		w.guards[pod] = g
	}
	g.refresh(pod)
	return g
}

// refresh looks the pod's record and policies up again.
func (g *guard) refresh(pod *Pod) {
	wv, pv := g.w.views()
	rec := g.w.p.record(pod, wv)
	if rec == g.record && pv == g.view {
		return
	}
	g.record, g.view = rec, pv
	if rec == nil {
		g.set = nil
		return
	}
	g.set = pv.Set(rec.Namespace, rec.Policies)
	g.stale = true
}

// admit decides whether a connection may enter the pod and, if so, keeps it under watch until leave. A pod without a
// record lets nobody in.
func (g *guard) admit(c *guarded, attrs rbac.Attributes, end cutter) error {
	if g.set == nil {
		return errUnknownWorkload
	}
	c.attrs, c.end, c.g = attrs, end, g
	d := g.set.Check(&c.attrs)
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
		if d := g.set.Check(&c.attrs); !d.Allowed {
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
