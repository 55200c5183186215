package trace

import (
	"encoding/hex"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Context names a span in a trace, and says whether the trace is recorded.
type Context struct {
	Trace [16]byte
	Span  [8]byte
	// Sampled says that the trace is recorded, Decided that somebody has said so or the opposite.
	Sampled, Decided bool
	// State is the value of tracestate; "" if there is none.
	State string
}

// Valid says that there is a trace and a span in it.
func (c *Context) Valid() bool { return c.Trace != [16]byte{} && c.Span != [8]byte{} }

// Forms are the ways in which a context stands in headers, a set.
type Forms uint8

// The forms: W3C Trace Context (traceparent and tracestate), B3 in several headers (x-b3-traceid ...), B3 in one (b3).
const (
	W3C Forms = 1 << iota
	B3Multi
	B3Single
)

// The names of headers.
const (
	nameParent   = "traceparent"
	nameState    = "tracestate"
	nameB3       = "b3"
	nameB3Trace  = "x-b3-traceid"
	nameB3Span   = "x-b3-spanid"
	nameB3Parent = "x-b3-parentspanid"
	nameB3Sample = "x-b3-sampled"
	nameB3Flags  = "x-b3-flags"
)

// Extract reads the context that a caller has sent, and which forms it has used; the one of first comes first. A malformed
// header counts as none (W3C Trace Context 4.3). State stays in the header's memory.
func Extract(h *message.Header, first Forms) (Context, Forms) {
	var found Forms
	w, okW := extractW3C(h)
	if okW {
		found |= W3C
	}
	b, f := extractB3(h)
	found |= f
	if f != 0 && (!okW || first != W3C && b.Valid()) {
		return b, found
	}
	return w, found
}

func extractW3C(h *message.Header) (Context, bool) {
	v, ok := h.Lookup(nameParent)
	if !ok {
		return Context{}, false
	}
	c, ok := parseParent(v)
	if !ok {
		return Context{}, false
	}
	c.State = h.Join(nameState)
	return c, true
}

// parseParent reads version-trace-span-flags (W3C Trace Context 3.2). Later versions may have more at the end.
func parseParent(v string) (c Context, ok bool) {
	if len(v) < 55 || v[2] != '-' || v[35] != '-' || v[52] != '-' || v[:2] == "ff" || len(v) > 55 && (v[:2] == "00" || v[55] != '-') {
		return c, false
	}
	var version, flags [1]byte
	if !unhex(version[:], v[:2]) || !unhex(c.Trace[:], v[3:35]) || !unhex(c.Span[:], v[36:52]) || !unhex(flags[:], v[53:55]) {
		return c, false
	}
	c.Sampled, c.Decided = flags[0]&1 != 0, true
	return c, c.Valid()
}

func extractB3(h *message.Header) (Context, Forms) {
	if v, ok := h.Lookup(nameB3); ok {
		if c, ok := parseB3(v); ok {
			return c, B3Single
		}
	}
	var c Context
	switch h.Get(nameB3Sample) {
	case "1", "true":
		c.Sampled, c.Decided = true, true
	case "0", "false":
		c.Decided = true
	}
	if h.Get(nameB3Flags) == "1" { // debug
		c.Sampled, c.Decided = true, true
	}
	known := c.Decided
	if t, ok := h.Lookup(nameB3Trace); ok {
		var n Context
		if !unhexID(n.Trace[:], t) || !unhexID(n.Span[:], h.Get(nameB3Span)) || !n.Valid() {
			return c, formIf(known)
		}
		c.Trace, c.Span, known = n.Trace, n.Span, true
	}
	return c, formIf(known)
}

func formIf(known bool) Forms {
	if known {
		return B3Multi
	}
	return 0
}

// parseB3 reads trace-span[-state[-parent]], or only the state.
func parseB3(v string) (c Context, ok bool) {
	state := v
	if len(v) > 1 {
		t, rest, _ := strings.Cut(v, "-")
		s, rest, _ := strings.Cut(rest, "-")
		if !unhexID(c.Trace[:], t) || len(s) != 16 || !unhex(c.Span[:], s) || !c.Valid() {
			return Context{}, false
		}
		state, _, _ = strings.Cut(rest, "-")
	}
	switch state {
	case "1", "d":
		c.Sampled, c.Decided = true, true
	case "0":
		c.Decided = true
	case "":
		return c, len(v) > 1
	default:
		return Context{}, false
	}
	return c, true
}

// Inject makes the headers name the context; parent is the span above it, zero if there is none.
func (c *Context) Inject(h *message.Header, forms Forms, parent [8]byte) {
	var buf [55]byte
	flag := byte('0')
	if c.Sampled {
		flag = '1'
	}
	if forms&W3C != 0 {
		b := append(buf[:0], "00-"...)
		b = hex.AppendEncode(b, c.Trace[:])
		b = append(b, '-')
		b = hex.AppendEncode(b, c.Span[:])
		b = append(b, '-', '0', flag)
		h.Set(nameParent, h.HoldBytes(b))
		if c.State == "" {
			h.Del(nameState)
		} else {
			h.Set(nameState, c.State)
		}
	}
	if forms&B3Single != 0 {
		b := append(appendTrace(buf[:0], c.Trace), '-')
		b = hex.AppendEncode(b, c.Span[:])
		b = append(b, '-', flag)
		h.Set(nameB3, h.HoldBytes(b))
	}
	if forms&B3Multi == 0 {
		return
	}
	h.Set(nameB3Trace, h.HoldBytes(appendTrace(buf[:0], c.Trace)))
	h.Set(nameB3Span, h.HoldBytes(hex.AppendEncode(buf[:0], c.Span[:])))
	if parent != [8]byte{} {
		h.Set(nameB3Parent, h.HoldBytes(hex.AppendEncode(buf[:0], parent[:])))
	} else {
		h.Del(nameB3Parent)
	}
	if c.Sampled {
		h.Set(nameB3Sample, "1")
	} else {
		h.Set(nameB3Sample, "0")
	}
}

// contextHeaders are all that tell of a trace.
var contextHeaders = []string{nameParent, nameState, nameB3, nameB3Trace, nameB3Span, nameB3Parent, nameB3Sample, nameB3Flags}

// Hide takes the context that a caller has sent out of the headers, if endpoints are not to be told of any.
func (c *Config) Hide(h *message.Header) {
	if !c.quiet {
		return
	}
	for _, name := range contextHeaders {
		h.Del(name)
	}
}

// AppendTrace appends the trace's ID: 32 digits.
func (c *Context) AppendTrace(b []byte) []byte { return hex.AppendEncode(b, c.Trace[:]) }

// appendTrace appends an ID as B3 has it: 16 digits if that is enough.
func appendTrace(b []byte, id [16]byte) []byte {
	if [8]byte(id[:8]) == [8]byte{} {
		return hex.AppendEncode(b, id[8:])
	}
	return hex.AppendEncode(b, id[:])
}

// unhexID reads an ID that may be shorter by half.
func unhexID(to []byte, s string) bool {
	if len(s) == 16 && len(to) == 16 {
		return unhex(to[8:], s)
	}
	return unhex(to, s)
}

// unhex reads lower-case digits, as many as to has room for.
func unhex(to []byte, s string) bool {
	if len(s) != 2*len(to) {
		return false
	}
	for i := range len(s) {
		var d byte
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			d = c - '0'
		case 'a' <= c && c <= 'f':
			d = c - 'a' + 10
		default:
			return false
		}
		to[i/2] = to[i/2]<<4 | d
	}
	return true
}
