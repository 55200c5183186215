package forward

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

const (
	// maxMirrored is how much of a body a mirror may be behind, in bytes; then it is given up.
	maxMirrored = 1 << 20
	// mirrorTime is how long a mirrored request may go on when the request itself is over.
	mirrorTime = time.Minute
)

// mirror is a copy of a request, whose answer nobody wants.
type mirror struct {
	w     *worker
	req   message.Request
	try   *attempt
	held  []byte // of the body, not yet sent
	ended bool
	timer loop.Timer
}

// mirror begins the copies that the route wants.
func (x *exchange) mirror(a *route.Action) {
	for _, p := range a.Mirrors {
		if !p.Wanted(x.Rand.Uint64()) {
			continue
		}
		c := x.snap.Clusters.Get(p.ClusterName(x.Req))
		if c == nil {
			continue
		}
		h, err := c.Pick(&cluster.Pick{Rand: x.Rand})
		if err != nil {
			continue
		}
		m := &mirror{w: x.w, held: append([]byte(nil), x.kept...), ended: x.ended || x.bodiless()}
		m.req.Copy(x.Req)
		m.req.Upgrade, m.req.Expect100 = "", false
		p.Change(&m.req, x.Context())
		m.try = x.w.newAttempt(m, c, h, x.Dest)
		m.try.client = x.Client.Addr
		m.try.begin(&m.req, m.ended && len(m.held) == 0)
		x.mirrors = append(x.mirrors, m)
	}
}

// feed adds to the body.
func (m *mirror) feed(p []byte) {
	if m.try == nil {
		return
	}
	m.held = append(m.held, p...)
	if m.push(); len(m.held) > maxMirrored {
		m.drop()
	}
}

// finish says that the body is complete.
func (m *mirror) finish() {
	if m.ended {
		return
	}
	m.ended = true
	m.push()
}

func (m *mirror) push() {
	t := m.try
	if t == nil || !t.open || t.sentEnd {
		return
	}
	n := 0
	for n < len(m.held) {
		k := t.up.SendData(m.held[n:])
		if k == 0 {
			break
		}
		n += k
	}
	m.held = append(m.held[:0], m.held[n:]...)
	if m.ended && len(m.held) == 0 {
		t.sentEnd = true
		t.up.SendEnd(nil)
	}
}

// leave says that the request is over: a complete copy goes on for a while.
func (m *mirror) leave() {
	switch {
	case m.try == nil:
	case !m.ended:
		m.drop()
	default:
		m.w.loop.Start(&m.timer, mirrorTime, m)
	}
}

// Expired implements loop.TimerHandler.
func (m *mirror) Expired(*loop.Timer) { m.drop() }

func (m *mirror) drop() {
	m.timer.Stop()
	if t := m.try; t != nil {
		m.try, m.held = nil, nil
		t.drop(errGivenUp)
	}
}

func (m *mirror) done() {
	m.timer.Stop()
	m.try, m.held = nil, nil
}

// The methods of caller.
func (m *mirror) opened(*attempt)                          { m.push() }
func (m *mirror) interim(*attempt, *message.Response)      {}
func (m *mirror) answer(*attempt, *message.Response, bool) {}
func (m *mirror) data(_ *attempt, p []byte) int            { return len(p) }
func (m *mirror) end(*attempt, *message.Header)            { m.done() }
func (m *mirror) room(*attempt)                            { m.push() }
func (m *mirror) failed(*attempt, failure)                 { m.done() }
