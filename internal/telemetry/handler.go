package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Handler is an slog.Handler that prints lines like ztunnel's: time, level, scope and message separated by tabs, then the
// attributes; or the same as JSON. Each scope has its own level. Lines are bounded and escaped like access records.
type Handler struct {
	w      *Writer
	levels *Levels
	format Format
	scope  string
	prefix string // of the open groups, with a dot at the end
	attrs  []byte // preformatted
	some   bool   // attrs is not empty
}

var linePool = sync.Pool{New: func() any {
	b := make([]byte, 0, 1024)
	return &b
}}

// NewHandler returns a handler of the scope "main".
func NewHandler(w *Writer, format Format, levels *Levels) *Handler {
	return &Handler{w: w, levels: levels, format: format, scope: "main"}
}

// Scope returns a logger of another scope, for example "xds"; scopes below are written "proxy::outbound".
func (h *Handler) Scope(scope string) *slog.Logger {
	c := *h
	c.scope = scope
	return slog.New(&c)
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool {
	return h.levels.enabled(h.scope, Level(l))
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	w := &line{b: append([]byte(nil), h.attrs...), json: h.format == JSON, some: h.some}
	for _, a := range attrs {
		appendAttr(w, h.prefix, a)
	}
	c.attrs, c.some = w.b, len(w.b) > 0
	return &c
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	c := *h
	if name != "" {
		c.prefix += name + "."
	}
	return &c
}

// Handle implements slog.Handler.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	bp := linePool.Get().(*[]byte)
	b := (*bp)[:0]
	if h.format == JSON {
		b = append(append(append(b, `{"level":"`...), Level(r.Level).String()...), `","time":"`...)
		b = r.Time.UTC().AppendFormat(b, timeFormat)
		b = append(append(append(b, `","scope":"`...), h.scope...), `","message":"`...)
		b = append(appendEscaped(b, r.Message, maxError), '"')
	} else {
		b = r.Time.UTC().AppendFormat(b, timeFormat)
		b = append(append(append(b, '\t'), Level(r.Level).String()...), '\t')
		b = append(append(append(b, h.scope...), '\t'), appendEscaped(nil, r.Message, maxError)...)
		if h.some || r.NumAttrs() > 0 {
			b = append(b, '\t')
		}
	}
	w := &line{b: append(b, h.attrs...), json: h.format == JSON, some: h.some}
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(w, h.prefix, a)
		return len(w.b) < maxLine-maxError-maxValue
	})
	b = w.b
	if h.format == JSON {
		b = append(b, '}')
	}
	h.w.Line(append(b, '\n'))
	*bp = b
	linePool.Put(bp)
	return nil
}

// appendAttr writes one attribute; groups become dotted names.
func appendAttr(w *line, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	key := prefix + a.Key
	switch v.Kind() {
	case slog.KindGroup:
		if a.Key != "" {
			prefix = key + "."
		}
		for _, m := range v.Group() {
			appendAttr(w, prefix, m)
		}
	case slog.KindInt64:
		w.raw(key, strconv.FormatInt(v.Int64(), 10))
	case slog.KindUint64:
		w.num(key, v.Uint64())
	case slog.KindBool:
		w.raw(key, strconv.FormatBool(v.Bool()))
	case slog.KindDuration:
		w.str(key, v.Duration().String(), maxValue)
	case slog.KindTime:
		w.str(key, v.Time().UTC().Format(time.RFC3339Nano), maxValue)
	case slog.KindAny:
		if ap, ok := v.Any().(netip.AddrPort); ok {
			w.addr(key, ap)
			return
		}
		w.str(key, fmt.Sprint(v.Any()), maxError)
	default:
		w.str(key, v.String(), maxError)
	}
}
