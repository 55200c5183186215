package trace

import (
	"encoding/binary"
	"strconv"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// The digit of a request ID (a UUID, at the place of its version) in which Envoy's proxies tell each other what was decided.
const (
	reasonAt      = 14
	reasonNone    = '4' // a random UUID: nobody has decided for recording
	reasonSampled = '9'
	reasonService = 'a' // an operator wanted it (x-envoy-force-trace, which we take from nobody)
	reasonClient  = 'b' // the client wanted it (x-client-trace-id)
)

// Decide says whether a request without a decision from above is recorded, by the ID in its x-request-id if byID, and writes
// the decision there. wanted: the client asks for it (x-client-trace-id). draw is random.
func (c *Config) Decide(h *message.Header, byID, wanted bool, draw uint64) bool {
	const name = "x-request-id"
	id, _ := h.Lookup(name)
	at, ok := uint64(draw%scale), false
	if byID {
		if len(id) > reasonAt && id[8] == '-' {
			n, err := strconv.ParseUint(id[:8], 16, 32)
			at, ok = n%scale, err == nil
		}
		if !ok {
			return false // Envoy traces nothing whose ID it cannot read
		}
		switch id[reasonAt] {
		case reasonSampled, reasonService, reasonClient:
			return at < c.overall
		}
	}
	reason := byte(reasonNone)
	switch {
	case wanted && at < c.client:
		reason = reasonClient
	case at < c.random:
		reason = reasonSampled
	}
	if reason == reasonNone || at >= c.overall {
		return false
	}
	if ok && id[reasonAt] == reasonNone && len(id) == 36 {
		var b [36]byte
		copy(b[:], id)
		b[reasonAt] = reason
		h.Set(name, h.HoldBytes(b[:]))
	}
	return true
}

// Begin makes the context of our span for a request whose headers are h, of a parent that is zero if the trace begins here,
// and puts it into h, unless endpoints are not to be told. draw gives random numbers.
func (c *Config) Begin(h *message.Header, byID bool, draw func() uint64) (own Context, parent [8]byte) {
	above, forms := Extract(h, c.forms)
	own = above
	if above.Valid() {
		parent = above.Span
	} else {
		binary.BigEndian.PutUint64(own.Trace[8:], draw()|1)
		if !c.short {
			binary.BigEndian.PutUint64(own.Trace[:8], draw()|1)
		}
		own.State = ""
	}
	if !own.Decided {
		own.Sampled = c.Decide(h, byID, h.Has("x-client-trace-id"), draw())
	}
	own.Decided = true
	binary.BigEndian.PutUint64(own.Span[:], draw()|1)
	if !c.quiet {
		own.Inject(h, c.forms|forms, parent)
	}
	c.Hide(h)
	return own, parent
}
