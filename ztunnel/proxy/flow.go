package proxy

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// flow is what every connection has, whichever way it goes. Loop only.
type flow struct {
	w   *worker
	pod *Pod // whose listener it came in by
	end cutter

	prev, next *flow
	listed     bool
	started    time.Duration // of loop.Now

	// peer is who connected; orig the address that it meant to reach; actual the one that was dialled.
	peer, orig, actual netip.AddrPort
	// authority is the CONNECT authority, empty without HBONE.
	authority string
	direction direction
	security  security
	// source and destination as far as they are known; the identities only where TLS (or this node) vouches for them.
	source, destination     *workload.Workload
	service                 *workload.Service
	sourceID, destinationID spiffe.ID
	// claimed is what the peer says of itself, used where the table does not know it; nil where that is not needed.
	claimed *Baggage

	rec record
}

// cutter ends a connection from outside: a pod gone, a policy changed, the drain time over.
type cutter interface {
	cut(err error)
}

type direction uint8

const (
	outboundDir direction = iota
	inboundDir
)

// security is how the connection's bytes travel.
type security uint8

const (
	plaintext security = iota
	mutualTLS
	// sameNode: both identities are vouched for by this node, the bytes are not encrypted.
	sameNode
)

// begin lists the flow with its worker.
func (f *flow) begin(w *worker, pod *Pod, end cutter, d direction) {
	f.w, f.pod, f.end, f.direction = w, pod, end, d
	f.started = w.loop.Now()
	f.listed = true
	w.flows.add(f)
	w.open.Add(1)
	pod.ref()
}

// finish takes the flow off the list and reports it. Calling it again does nothing; it says whether this was the first
// call.
func (f *flow) finish(err error, sent, received int64) bool {
	if !f.listed {
		return false
	}
	f.listed = false
	f.w.flows.remove(f)
	f.w.open.Add(-1)
	f.rec.close(f, err, sent, received)
	f.pod.unref()
	return true
}

// flowList is an intrusive list.
type flowList struct{ head *flow }

func (l *flowList) add(f *flow) {
	f.prev, f.next = nil, l.head
	if l.head != nil {
		l.head.prev = f
	}
	l.head = f
}

func (l *flowList) remove(f *flow) {
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		l.head = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	}
	f.prev, f.next = nil, nil
}
