package telemetry

import (
	"bufio"
	"compress/gzip"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/prometheus/common/expfmt"
)

const (
	contentOpenMetrics = "application/openmetrics-text;charset=utf-8;version=1.0.0"
	contentText        = "text/plain; charset=utf-8"
)

// Handler serves the metrics in OpenMetrics text, under the content type that the client asks for: that is what the
// programs we are compatible with do, and every scraper reads it. The answer is streamed, gzipped if the client accepts it.
func (r *Registry) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		h := w.Header()
		h.Set("Content-Type", contentText)
		if strings.Contains(req.Header.Get("Accept"), "application/openmetrics-text") {
			h.Set("Content-Type", contentOpenMetrics)
		}
		h.Set("Vary", "Accept, Accept-Encoding")
		var out io.Writer = w
		if acceptsGzip(req.Header.Get("Accept-Encoding")) {
			h.Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			out = z
		}
		// The client is gone if this fails; there is nobody to tell.
		_ = r.Expose(out)
	})
}

func acceptsGzip(header string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(part, ";")
		if strings.TrimSpace(name) != "gzip" {
			continue
		}
		q, ok := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q=")
		v, err := strconv.ParseFloat(q, 64)
		return !ok || err != nil || v > 0
	}
	return false
}

// Expose writes all metrics in OpenMetrics text.
func (r *Registry) Expose(out io.Writer) error {
	families, err := r.prom.Gather()
	if err != nil && len(families) == 0 {
		return err
	}
	w := bufio.NewWriterSize(out, 32<<10)
	enc := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeOpenMetrics))
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	r.tcp.write(w)
	r.http.write(w)
	if _, err := w.WriteString("# EOF\n"); err != nil {
		return err
	}
	return w.Flush()
}

// tcpFamilies are the connection metrics; each sample is written with the flag of its own.
var tcpFamilies = []struct {
	name, help string
	value      func(*TCPSeries, Flag) (uint64, bool)
}{
	{"istio_tcp_connections_opened", "Connections opened.", only(func(s *TCPSeries) *atomic.Uint64 { return &s.opened })},
	{"istio_tcp_connections_closed", "Connections closed.", func(s *TCPSeries, f Flag) (uint64, bool) {
		n := s.closed[f].Load()
		return n, n > 0
	}},
	{"istio_tcp_connections_failed", "Connections that failed.", func(s *TCPSeries, f Flag) (uint64, bool) {
		n := s.closed[f].Load()
		return n, n > 0 && f != OK
	}},
	{"istio_tcp_received_bytes", "Bytes from client to server.", only(func(s *TCPSeries) *atomic.Uint64 { return &s.received })},
	{"istio_tcp_sent_bytes", "Bytes from server to client.", only(func(s *TCPSeries) *atomic.Uint64 { return &s.sent })},
}

// only is a value that exists without flag.
func only(f func(*TCPSeries) *atomic.Uint64) func(*TCPSeries, Flag) (uint64, bool) {
	return func(s *TCPSeries, flag Flag) (uint64, bool) { return f(s).Load(), flag == OK }
}

// write writes the connection metrics. The samples of a family must be together, so the labels are rendered once per
// family instead of being kept. Errors stay in w until its Flush.
func (t *tcpTable) write(w *bufio.Writer) {
	all := t.snapshot()
	viewed := slices.ContainsFunc(all, func(s *TCPSeries) bool { return s.labels.View != nil })
	var line []byte
	for _, fam := range tcpFamilies {
		writeFamily(w, fam.name, fam.help, "counter")
		views := shapes{family: fam.name}
		var sums merged[uint64]
		for _, s := range all {
			shape := views.of(s.labels.View)
			if shape != nil && shape.drop {
				continue
			}
			for f := range numFlags {
				n, ok := fam.value(s, f)
				if !ok {
					continue
				}
				if viewed {
					line = s.labels.append(line[:0], f, shape)
					*sums.at(line) += n
					continue
				}
				line = append(append(line[:0], fam.name...), "_total"...)
				line = s.labels.append(line, f, nil)
				line = append(line, ' ')
				line = strconv.AppendUint(line, n, 10)
				line = append(line, '\n')
				w.Write(line)
			}
		}
		sums.write(w, fam.name+"_total")
	}
}

// sourceLabels are the names of a source workload's labels.
func sourceLabels() []string {
	return []string{
		"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster",
	}
}

// append appends the label set T in the protocol's order (9.3).
func (l *Labels) append(b []byte, f Flag, as *shape) []byte {
	return l.appendWith(b, func(add func(name, value string)) {
		add("request_protocol", "tcp")
		add("response_flags", f.String())
	}, as)
}

// emptyValue stands for a label value that is empty and not unknown.
const emptyValue = "\x00"

// appendWith appends the label set with those of a kind of metric in their place, in the shape of a view if there is one.
func (l *Labels) appendWith(b []byte, kind func(add func(name, value string)), as *shape) []byte {
	first := true
	add := func(name, value string) {
		if as != nil {
			if _, ok := as.set[name]; ok || as.removed[name] {
				return
			}
		}
		c := byte(',')
		if first {
			c, first = '{', false
		}
		b = append(append(append(b, c), name...), `="`...)
		if value != emptyValue {
			b = appendLabelValue(b, unknown(value))
		}
		b = append(b, '"')
	}
	s, d := &l.Source, &l.Dest
	add("reporter", l.Reporter.String())
	add("source_workload", s.Workload)
	add("source_canonical_service", s.CanonicalService)
	add("source_canonical_revision", s.CanonicalRevision)
	add("source_workload_namespace", s.Namespace)
	add("source_principal", s.Principal)
	add("source_app", s.CanonicalService)
	add("source_version", s.CanonicalRevision)
	add("source_cluster", s.Cluster)
	add("destination_service", l.Service)
	add("destination_service_namespace", l.ServiceNamespace)
	add("destination_service_name", l.ServiceName)
	add("destination_workload", d.Workload)
	add("destination_canonical_service", d.CanonicalService)
	add("destination_canonical_revision", d.CanonicalRevision)
	add("destination_workload_namespace", d.Namespace)
	add("destination_principal", d.Principal)
	add("destination_app", d.CanonicalService)
	add("destination_version", d.CanonicalRevision)
	add("destination_cluster", d.Cluster)
	kind(add)
	add("connection_security_policy", l.Security.String())
	if s.Region != "" || s.Zone != "" || d.Region != "" || d.Zone != "" {
		add("source_region", s.Region)
		add("source_zone", s.Zone)
		add("destination_region", d.Region)
		add("destination_zone", d.Zone)
	}
	if as != nil {
		set := as.set
		as = nil
		for _, name := range slices.Sorted(maps.Keys(set)) {
			add(name, extra(l.Extra, set[name]))
		}
	}
	if first {
		return b
	}
	return append(b, '}')
}

// maxLabelValue bounds a label value in bytes; values come from peers too.
const maxLabelValue = 512

// appendLabelValue escapes as the text format wants it. Bytes that are not UTF-8 become '?'.
func appendLabelValue(b []byte, s string) []byte {
	if len(s) > maxLabelValue {
		s = s[:maxLabelValue]
	}
	for _, r := range s {
		switch r {
		case '\\':
			b = append(b, `\\`...)
		case '"':
			b = append(b, `\"`...)
		case '\n':
			b = append(b, `\n`...)
		case 0xFFFD:
			b = append(b, '?')
		default:
			b = append(b, string(r)...)
		}
	}
	return b
}
