package proxy

import "github.com/ambit-mesh/ambit/internal/rbac"

// inPod is the destination's half of a connection between two pods of this node: its policy watches it, and it is
// reported by the destination as well as by the source.
type inPod struct {
	flow
	watch guarded
	o     *outbound
}

func newInPod(o *outbound, pod *Pod) *inPod {
	d := &inPod{o: o}
	d.peer, d.orig, d.actual = o.peer, o.actual, o.actual
	d.security = sameNode
	d.source, d.destination, d.service = o.source, o.destination, o.service
	d.sourceID, d.destinationID = o.sourceID, o.destinationID
	d.begin(o.w, pod, d, inboundDir)
	d.rec.open(&d.flow)
	return d
}

func (d *inPod) admit(attrs rbac.Attributes) error {
	return d.w.guard(d.pod).admit(&d.watch, attrs, d)
}

// cut implements cutter: the connection is one, so both halves end.
func (d *inPod) cut(err error) { d.o.fail(err) }

// over reports the end. Bytes are those of the outbound half.
func (d *inPod) over(err error, sent, received int64) {
	d.watch.leave()
	d.finish(err, sent, received)
}
