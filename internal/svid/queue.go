package svid

import (
	"container/heap"
	"time"
)

// priority orders calls of the CA that could start now (C7).
type priority uint8

const (
	background priority = iota // renewals and retries
	warmup                     // wanted soon
	realTime                   // somebody waits
)

// queue holds the entries that wait, in two heaps: those whose time has not come, by time, and those that could
// start, by priority and then by order of asking.
type queue struct {
	later, ready entryHeap
}

func earlierFirst(a, b *entry) bool { return a.due.Before(b.due) }

func urgentFirst(a, b *entry) bool {
	if a.prio != b.prio {
		return a.prio > b.prio
	}
	return a.seq < b.seq
}

func (q *queue) add(e *entry, now time.Time) {
	q.remove(e)
	if e.due.After(now) {
		q.later.less = earlierFirst
		heap.Push(&q.later, e)
		return
	}
	q.ready.less = urgentFirst
	heap.Push(&q.ready, e)
}

func (q *queue) remove(e *entry) {
	for _, h := range []*entryHeap{&q.later, &q.ready} {
		if e.index >= 0 && e.index < len(h.entries) && h.entries[e.index] == e {
			heap.Remove(h, e.index)
			return
		}
	}
}

// next is the entry to start now, taken off the queue, or nil. Without anyPriority, only one that somebody waits for.
func (q *queue) next(now time.Time, anyPriority bool) *entry {
	for len(q.later.entries) > 0 && !q.later.entries[0].due.After(now) {
		e := heap.Pop(&q.later).(*entry)
		q.add(e, now)
	}
	if len(q.ready.entries) == 0 {
		return nil
	}
	if !anyPriority && q.ready.entries[0].prio < realTime {
		return nil
	}
	return heap.Pop(&q.ready).(*entry)
}

// wait is how long until the next entry's time comes; false = there is none.
func (q *queue) wait(now time.Time) (time.Duration, bool) {
	if len(q.later.entries) == 0 {
		return 0, false
	}
	return q.later.entries[0].due.Sub(now), true
}

// entryHeap is a container/heap of entries that know their index.
type entryHeap struct {
	entries []*entry
	less    func(a, b *entry) bool
}

func (h *entryHeap) Len() int           { return len(h.entries) }
func (h *entryHeap) Less(i, j int) bool { return h.less(h.entries[i], h.entries[j]) }

func (h *entryHeap) Swap(i, j int) {
	h.entries[i], h.entries[j] = h.entries[j], h.entries[i]
	h.entries[i].index, h.entries[j].index = i, j
}

func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(h.entries)
	h.entries = append(h.entries, e)
}

func (h *entryHeap) Pop() any {
	last := len(h.entries) - 1
	e := h.entries[last]
	h.entries[last] = nil
	h.entries = h.entries[:last]
	e.index = -1
	return e
}
