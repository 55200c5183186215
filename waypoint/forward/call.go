package forward

import (
	"errors"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

const (
	// callTime is how long a filter's call may take if it does not say.
	callTime = time.Minute
	// callAnswer is how many bytes of an answer's body are taken if a call does not say.
	callAnswer = 1 << 20
)

var (
	errCallTime  = errors.New("no answer in time")
	errCallSize  = errors.New("answer too large")
	errNoCluster = errors.New("no such cluster")
)

// call is a request of a filter's own, to an authorization or a rate limit service.
type call struct {
	w     *worker
	c     *filter.Call
	try   *attempt
	sent  int
	ans   filter.CallAnswer
	limit int
	timer loop.Timer
	done  func(*filter.CallAnswer, error)
}

// Call implements filter.Host.
func (x *exchange) Call(c *filter.Call, done func(*filter.CallAnswer, error)) {
	cl := x.w.call(x.snap, c, done)
	if cl != nil {
		x.calls = append(x.calls, cl)
	}
}

// shared is a call that several exchanges wait for.
type shared struct{ waits []*sharedWait }

// sharedWait is one of them; done is nil when it is over.
type sharedWait struct{ done func() }

// Share implements filter.Host.
func (x *exchange) Share(key any, c *filter.Call, take func(*filter.CallAnswer, error), done func()) {
	w := x.w
	s := w.shared[key]
	if s == nil {
		s = &shared{}
		w.shared[key] = s
		w.call(x.snap, c, func(a *filter.CallAnswer, err error) {
			delete(w.shared, key)
			take(a, err)
			for _, o := range s.waits {
				if o.done != nil {
					o.done()
				}
			}
		})
	}
	o := &sharedWait{done}
	s.waits = append(s.waits, o)
	x.waits = append(x.waits, o)
}

// call begins a call; done is called once, later, unless it is dropped before.
func (w *worker) call(s *Snapshot, c *filter.Call, done func(*filter.CallAnswer, error)) *call {
	k := &call{w: w, c: c, done: done, limit: c.MaxAnswer}
	if k.limit == 0 {
		k.limit = callAnswer
	}
	cl := s.Clusters.Get(c.Cluster)
	if cl == nil {
		w.later(func() { k.finish(errNoCluster) })
		return k
	}
	h, err := cl.Pick(&cluster.Pick{Rand: w.rand})
	if err != nil {
		w.later(func() { k.finish(err) })
		return k
	}
	d := c.Timeout
	if d == 0 {
		d = callTime
	}
	w.loop.Start(&k.timer, d, k)
	k.try = w.newAttempt(k, cl, h, netip.AddrPort{})
	k.try.begin(&c.Req, len(c.Body) == 0)
	return k
}

// drop gives the call up.
func (k *call) drop() {
	k.done = nil
	k.timer.Stop()
	if t := k.try; t != nil {
		k.try = nil
		t.drop(errGivenUp)
	}
}

func (k *call) finish(err error) {
	done := k.done
	k.drop()
	if done == nil {
		return
	}
	if err != nil {
		done(nil, err)
		return
	}
	done(&k.ans, nil)
}

// Expired implements loop.TimerHandler.
func (k *call) Expired(*loop.Timer) { k.finish(errCallTime) }

func (k *call) push() {
	t := k.try
	for k.sent < len(k.c.Body) {
		n := t.up.SendData(k.c.Body[k.sent:])
		if n == 0 {
			return
		}
		k.sent += n
	}
	if !t.sentEnd {
		t.sentEnd = true
		t.up.SendEnd(nil)
	}
}

func (k *call) opened(*attempt)                     { k.push() }
func (k *call) room(*attempt)                       { k.push() }
func (k *call) interim(*attempt, *message.Response) {}

func (k *call) answer(_ *attempt, r *message.Response, _ bool) {
	k.ans.Status = r.Status
	k.ans.Header.Copy(&r.Header)
}

func (k *call) data(_ *attempt, p []byte) int {
	if len(k.ans.Body)+len(p) > k.limit {
		k.w.later(func() { k.finish(errCallSize) })
		return len(p)
	}
	k.ans.Body = append(k.ans.Body, p...)
	return len(p)
}

func (k *call) end(_ *attempt, trailer *message.Header) {
	if trailer != nil {
		k.ans.Trailer.Copy(trailer)
	}
	k.try = nil
	k.finish(nil)
}

func (k *call) failed(_ *attempt, f failure) {
	k.try = nil
	k.finish(errors.New(f.String()))
}
