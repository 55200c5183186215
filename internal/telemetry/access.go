package telemetry

import (
	"net/netip"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// Format is how log lines look.
type Format uint8

// The formats.
const (
	Plain Format = iota // tab separated, fields k=v
	JSON                // one object per line
)

// Event says which moment of a connection a record is about.
type Event uint8

// The events.
const (
	Complete Event = iota // info, or error if Err is set
	Opened                // debug
	Refused               // warn: before the connection meant anything; only addresses, direction and error are shown
)

// Record is one access record (M6). Zero fields are left out.
type Record struct {
	Event Event
	Time  time.Time // end of the connection

	Src          netip.AddrPort
	SrcWorkload  string
	SrcNamespace string
	SrcIdentity  string // SPIFFE ID; only if proven by TLS or vouched for on the node
	SrcCluster   string

	Dst          netip.AddrPort // TCP address that was dialled, or at which a tunnel was accepted
	DstHBONE     string         // authority of the tunnel
	DstService   string         // hostname
	DstWorkload  string
	DstNamespace string
	DstIdentity  string
	DstCluster   string

	Direction string // "inbound" or "outbound"
	// Via names a path that is not Istio's, for example "same-node"; then nothing was encrypted.
	Via       string
	BytesSent uint64 // as the reporter sends: outbound client to server, inbound server to client
	BytesRecv uint64
	Duration  time.Duration
	Err       string
}

// scopeAccess is the log scope of access records.
const scopeAccess = "access"

// AccessLog writes access records. Safe from any goroutine.
type AccessLog struct {
	w      *Writer
	format Format
	levels *Levels
	pool   sync.Pool
}

// NewAccessLog writes records to w if levels lets the scope "access" through; levels may be nil.
func NewAccessLog(w *Writer, format Format, levels *Levels) *AccessLog {
	return &AccessLog{w: w, format: format, levels: levels, pool: sync.Pool{New: func() any {
		b := make([]byte, 0, maxLine)
		return &b
	}}}
}

// Enabled tells whether records of an event are written, so that a caller can skip making them.
func (l *AccessLog) Enabled(e Event, failed bool) bool {
	return l.levels == nil || l.levels.enabled(scopeAccess, (&Record{Event: e, Err: failedText(failed)}).level())
}

func failedText(failed bool) string {
	if failed {
		return "failed"
	}
	return ""
}

// Write formats and queues a record. It neither blocks nor allocates.
func (l *AccessLog) Write(r *Record) {
	if l.levels != nil && !l.levels.enabled(scopeAccess, r.level()) {
		return
	}
	b := l.pool.Get().(*[]byte)
	if l.format == JSON {
		*b = r.AppendJSON((*b)[:0])
	} else {
		*b = r.AppendPlain((*b)[:0])
	}
	l.w.Line(*b)
	l.pool.Put(b)
}

func (r *Record) level() Level {
	switch {
	case r.Event == Opened:
		return LevelDebug
	case r.Event == Refused:
		return LevelWarn
	case r.Err != "":
		return LevelError
	}
	return LevelInfo
}

func (r *Record) message() string {
	switch r.Event {
	case Opened:
		return "connection opened"
	case Refused:
		return "connection failed"
	}
	return "connection complete"
}

// A line is at most maxLine bytes: values that come from elsewhere are cut to maxValue bytes, escapes included, and the
// error to maxError.
const (
	maxLine  = 8 << 10
	maxValue = 450
	maxError = 1024
)

const timeFormat = "2006-01-02T15:04:05.000000Z"

// AppendPlain appends the record as a line of the plain format.
func (r *Record) AppendPlain(b []byte) []byte {
	b = r.Time.UTC().AppendFormat(b, timeFormat)
	b = append(append(append(b, '\t'), r.level().String()...), '\t')
	b = append(append(append(b, scopeAccess...), '\t'), r.message()...)
	l := line{b: append(b, '\t')}
	r.fields(&l)
	return append(l.b, '\n')
}

// AppendJSON appends the record as a line of the JSON format.
func (r *Record) AppendJSON(b []byte) []byte {
	b = append(append(append(b, `{"level":"`...), r.level().String()...), `","time":"`...)
	b = r.Time.UTC().AppendFormat(b, timeFormat)
	b = append(append(append(b, `","scope":"`...), scopeAccess...), `","message":"`...)
	b = append(append(b, r.message()...), '"')
	l := line{b: b, json: true}
	r.fields(&l)
	return append(l.b, "}\n"...)
}

// fields writes the fields in the protocol's order (M6).
func (r *Record) fields(w *line) {
	w.addr("src.addr", r.Src)
	if r.Event == Refused {
		w.addr("dst.addr", r.Dst)
		w.str("direction", r.Direction, maxValue)
		w.str("error", r.Err, maxError)
		return
	}
	w.str("src.workload", r.SrcWorkload, maxValue)
	w.str("src.namespace", r.SrcNamespace, maxValue)
	w.str("src.identity", r.SrcIdentity, maxValue)
	w.str("src.cluster", r.SrcCluster, maxValue)
	w.addr("dst.addr", r.Dst)
	w.bare("dst.hbone_addr", r.DstHBONE)
	w.str("dst.service", r.DstService, maxValue)
	w.str("dst.workload", r.DstWorkload, maxValue)
	w.str("dst.namespace", r.DstNamespace, maxValue)
	w.str("dst.identity", r.DstIdentity, maxValue)
	w.str("dst.cluster", r.DstCluster, maxValue)
	w.str("direction", r.Direction, maxValue)
	w.str("via", r.Via, maxValue)
	if r.Event == Complete {
		w.num("bytes_sent", r.BytesSent)
		w.num("bytes_recv", r.BytesRecv)
		w.ms("duration", r.Duration)
	}
	w.str("error", r.Err, maxError)
}

// line writes the fields of one line. In the plain format they are space separated k=v with strings quoted, addresses and
// numbers bare; in JSON they are members after the first ones. Empty strings and invalid addresses are left out.
type line struct {
	b    []byte
	json bool
	some bool // a field was written (plain only)
}

func (l *line) key(k string) {
	if l.json {
		l.b = append(append(append(l.b, `,"`...), k...), `":`...)
		return
	}
	if l.some {
		l.b = append(l.b, ' ')
	}
	l.some = true
	l.b = append(append(l.b, k...), '=')
}

// str writes a string, cut to limit bytes.
func (l *line) str(k, v string, limit int) {
	if v != "" {
		l.key(k)
		l.b = append(appendEscaped(append(l.b, '"'), v, limit), '"')
	}
}

// bare writes an authority: without quotes in the plain format, if nothing in it needs them.
func (l *line) bare(k, v string) {
	quote := l.json || len(v) > maxValue
	for i := range len(v) {
		quote = quote || v[i] <= ' ' || v[i] > '~' || v[i] == '"' || v[i] == '\\'
	}
	if quote {
		l.str(k, v, maxValue)
	} else if v != "" {
		l.raw(k, v)
	}
}

func (l *line) addr(k string, v netip.AddrPort) {
	if !v.IsValid() {
		return
	}
	l.key(k)
	if l.json {
		l.b = append(v.AppendTo(append(l.b, '"')), '"')
	} else {
		l.b = v.AppendTo(l.b)
	}
}

func (l *line) num(k string, v uint64) {
	l.key(k)
	l.b = strconv.AppendUint(l.b, v, 10)
}

// raw writes a number or a word that needs no quotes.
func (l *line) raw(k, v string) {
	l.key(k)
	l.b = append(l.b, v...)
}

func (l *line) ms(k string, v time.Duration) {
	l.key(k)
	l.b = append(strconv.AppendInt(append(l.b, '"'), v.Milliseconds(), 10), `ms"`...)
}

// harmless tells whether c is printable ASCII that needs no escape.
func harmless(c byte) bool { return c >= ' ' && c <= '~' && c != '"' && c != '\\' }

const hexDigits = "0123456789abcdef"

// appendEscaped appends s as the inside of a JSON string, which is also what the plain format uses: one line, no control
// bytes, no terminal escapes, valid UTF-8. What does not fit into limit bytes is cut and marked with "...".
func appendEscaped(b []byte, s string, limit int) []byte {
	start := len(b)
	for i := 0; i < len(s); {
		if len(b)-start > limit-9 && len(s)-i > 3 {
			return append(b, "..."...)
		}
		run := i
		for run < len(s) && run-i < limit-9-(len(b)-start) && harmless(s[run]) {
			run++
		}
		if run > i {
			b = append(b, s[i:run]...)
			i = run
			continue
		}
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				b = append(b, `\ufffd`...)
			case r < 0xA0 || r == 0x2028 || r == 0x2029 || r == 0x202E: // C1 controls, line separators, bidi override
				b = append(b, `\u`...)
				b = append(b, hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
			default:
				b = append(b, s[i:i+n]...)
			}
			i += n
			continue
		}
		i++
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < ' ' || c == 0x7f:
			b = append(append(b, `\u00`...), hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}
