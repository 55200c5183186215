package forward

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/filter"
)

const (
	// outboxMax and outboxBytes are how many items a worker holds for a collector, and of what size together: what they say comes
	// from peers. More are dropped, and counted.
	outboxMax   = 4096
	outboxBytes = 8 << 20
	// outboxBatch and batchBytes are how many items a call carries at most, and of what size: gRPC's servers take 4 MiB.
	outboxBatch = 512
	batchBytes  = 1 << 20
	// outboxDelay is how long an item waits for others.
	outboxDelay = time.Second
	// outboxWarn is the least time between two lines about a collector that does not answer.
	outboxWarn = 10 * time.Second
)

// sink makes calls that tell a collector of items, and judges the answers.
type sink[T any] interface {
	Call([]T) (*filter.Call, error)
	Check(*filter.CallAnswer) error
}

// exports are a worker's items of one kind.
type exports struct {
	what   string                // for lines about lost ones
	counts *telemetry.CounterVec // by result
	warned time.Duration
}

// box is an outbox of any kind.
type box interface {
	// flush sends what is held back.
	flush()
}

// outbox holds a worker's items for one collector. One call at a time is under way; requests never wait for it.
type outbox[T any] struct {
	w     *worker
	key   any
	sink  sink[T]
	kind  *exports
	items []T
	sizes []int // of items, in bytes
	bytes int   // their sum
	timer loop.Timer
	busy  bool
}

// outboxOf is the one for the collector of a configuration, its key.
func outboxOf[T any](w *worker, key any, s sink[T], kind *exports) *outbox[T] {
	o, ok := w.outboxes[key].(*outbox[T])
	if !ok {
		o = &outbox[T]{w: w, key: key, sink: s, kind: kind}
		if w.outboxes == nil {
			w.outboxes = map[any]box{}
		}
		w.outboxes[key] = o
	}
	return o
}

func (o *outbox[T]) room() bool {
	if len(o.items) < outboxMax && o.bytes < outboxBytes {
		return true
	}
	o.kind.counts.WithLabelValues("dropped").Inc()
	return false
}

// add takes an item of a size in bytes.
func (o *outbox[T]) add(item T, size int) {
	o.items, o.sizes = append(o.items, item), append(o.sizes, size)
	o.bytes += size
	switch {
	case o.busy:
	case o.full() || o.w.draining:
		o.send()
	case len(o.items) == 1:
		o.w.loop.Start(&o.timer, outboxDelay, o)
	}
}

// full says that there is enough for a call.
func (o *outbox[T]) full() bool { return len(o.items) >= outboxBatch || o.bytes >= batchBytes }

// batch takes out what the next call carries: at least one item.
func (o *outbox[T]) batch() []T {
	n, size := 0, 0
	for n < len(o.items) && n < outboxBatch && (n == 0 || size+o.sizes[n] <= batchBytes) {
		size += o.sizes[n]
		n++
	}
	out := o.items[:n]
	o.items, o.sizes = append(o.items[:0:0], o.items[n:]...), append(o.sizes[:0:0], o.sizes[n:]...)
	o.bytes -= size
	return out
}

// Expired implements loop.TimerHandler.
func (o *outbox[T]) Expired(*loop.Timer) { o.flush() }

func (o *outbox[T]) flush() {
	if !o.busy {
		o.send()
	}
}

// send tells the collector of what there is. An outbox that is empty is forgotten: its configuration may be gone.
func (o *outbox[T]) send() {
	w := o.w
	o.timer.Stop()
	if len(o.items) == 0 {
		delete(w.outboxes, o.key)
		return
	}
	items := o.batch()
	n := len(items)
	c, err := o.sink.Call(items)
	if err != nil {
		o.failed(n, err)
		return
	}
	o.busy = true
	w.open.Add(1) // a waypoint that drains waits for it
	w.call(w.p.cfg.Snapshot.Load(), c, func(a *filter.CallAnswer, err error) {
		w.open.Add(-1)
		o.busy = false
		if err == nil {
			err = o.sink.Check(a)
		}
		if err != nil {
			o.failed(n, err)
		} else {
			o.kind.counts.WithLabelValues("sent").Add(float64(n))
		}
		if len(o.items) > 0 && !o.full() && !w.draining {
			w.loop.Start(&o.timer, outboxDelay, o)
			return
		}
		o.send()
	})
}

func (o *outbox[T]) failed(n int, err error) {
	o.kind.counts.WithLabelValues("failed").Add(float64(n))
	if now := o.w.loop.Now(); o.kind.warned == 0 || now-o.kind.warned > outboxWarn {
		o.kind.warned = now
		o.w.p.log.Warn(o.kind.what+" lost: the collector did not take them", "number", n, "error", err)
	}
}

// flushOutboxes sends what is held back.
func (w *worker) flushOutboxes() {
	w.draining = true
	for _, o := range w.outboxes {
		o.flush()
	}
}
