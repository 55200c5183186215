package telemetry

import (
	"bufio"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

// HTTPLabels is the label set of a request. It is a comparable key.
type HTTPLabels struct {
	Labels
	// Protocol is "http" or "grpc".
	Protocol string
	// Code is the answer's status; 0 if there was none.
	Code int
	// GRPC is the answer's gRPC status, a number; "" if it is not gRPC.
	GRPC string
	// Flags are Envoy's response flags, "-" if there are none.
	Flags string
}

// buckets are the upper bounds of Envoy's histograms, which Istio's metrics use for milliseconds and bytes alike.
var buckets = [...]float64{
	0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
}

// histogram counts values. Safe from any goroutine.
type histogram struct {
	counts [len(buckets) + 1]atomic.Uint64
	sum    atomic.Uint64 // in thousandths
}

func (h *histogram) observe(v float64) {
	i := 0
	for i < len(buckets) && v > buckets[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(uint64(v * 1000))
}

// HTTPSeries counts the requests of one label set. Safe from any goroutine.
type HTTPSeries struct {
	labels   HTTPLabels
	holders  use
	total    atomic.Uint64
	duration histogram
	request  histogram
	response histogram
	sent     atomic.Uint64 // messages of gRPC
	received atomic.Uint64
}

func (s *HTTPSeries) use() *use { return &s.holders }

// Request is what is counted of one request.
type Request struct {
	Duration time.Duration
	// Received and Sent are the bytes of the request's and the answer's bodies.
	Received, Sent int64
	// Messages and Answers are the numbers of gRPC messages in the request and in the answer.
	Messages, Answers int64
}

// HTTP counts a request that is over. It takes a read lock for the time of a map lookup and allocates only for a new set.
func (r *Registry) HTTP(l *HTTPLabels, q *Request) {
	s := r.AcquireHTTP(l)
	s.Count(q)
	s.Release()
}

// AcquireHTTP is the series of a label set, for several requests in a row. It stays until Release.
func (r *Registry) AcquireHTTP(l *HTTPLabels) *HTTPSeries { return r.http.acquire(l) }

// Release lets the series go.
func (s *HTTPSeries) Release() { s.holders.release() }

// Count counts a request that is over. It takes no lock.
func (s *HTTPSeries) Count(q *Request) {
	s.total.Add(1)
	s.duration.observe(float64(q.Duration) / float64(time.Millisecond))
	s.request.observe(float64(q.Received))
	s.response.observe(float64(q.Sent))
	if q.Messages > 0 {
		s.received.Add(uint64(q.Messages))
	}
	if q.Answers > 0 {
		s.sent.Add(uint64(q.Answers))
	}
}

// httpTable holds the metrics of requests.
type httpTable struct {
	*table[HTTPLabels, *HTTPSeries]
}

func (t *httpTable) init(maxSeries int, overflows Counter) {
	over := &HTTPSeries{labels: HTTPLabels{Labels: overflowLabels(Waypoint), Protocol: "http", Flags: "-"}}
	t.table = newTable(maxSeries, overflows,
		func(l *HTTPLabels) (string, string, string) { return l.Source.Workload, l.Service, l.Dest.Workload },
		func(l *HTTPLabels) *HTTPSeries { return &HTTPSeries{labels: *l} },
		func(*HTTPLabels) *HTTPSeries { return over })
	t.extra = []*HTTPSeries{over}
}

// httpCounters and httpHistograms are the metrics of requests.
var httpCounters = []struct {
	name, help string
	value      func(*HTTPSeries) uint64
	grpc       bool
}{
	{"istio_requests", "Requests.", func(s *HTTPSeries) uint64 { return s.total.Load() }, false},
	{"istio_request_messages", "Messages in gRPC requests.", func(s *HTTPSeries) uint64 { return s.received.Load() }, true},
	{"istio_response_messages", "Messages in gRPC answers.", func(s *HTTPSeries) uint64 { return s.sent.Load() }, true},
}

var httpHistograms = []struct {
	name, help string
	value      func(*HTTPSeries) *histogram
}{
	{"istio_request_duration_milliseconds", "Time from the request's head to the answer's end.", func(s *HTTPSeries) *histogram { return &s.duration }},
	{"istio_request_bytes", "Size of request bodies.", func(s *HTTPSeries) *histogram { return &s.request }},
	{"istio_response_bytes", "Size of answers' bodies.", func(s *HTTPSeries) *histogram { return &s.response }},
}

// write writes the metrics of requests. Errors stay in w until its Flush.
func (t *httpTable) write(w *bufio.Writer) {
	all := t.snapshot()
	if len(all) == 0 {
		return
	}
	viewed := slices.ContainsFunc(all, func(s *HTTPSeries) bool { return s.labels.View != nil })
	var line []byte
	for _, f := range httpCounters {
		writeFamily(w, f.name, f.help, "counter")
		views := shapes{family: f.name}
		var sums merged[uint64]
		for _, s := range all {
			n, shape := f.value(s), views.of(s.labels.View)
			switch {
			case f.grpc && n == 0, shape != nil && shape.drop:
			case viewed:
				line = s.labels.append(line[:0], shape)
				*sums.at(line) += n
			default:
				line = s.labels.append(append(append(line[:0], f.name...), "_total"...), nil)
				w.Write(append(strconv.AppendUint(append(line, ' '), n, 10), '\n'))
			}
		}
		sums.write(w, f.name+"_total")
	}
	for _, f := range httpHistograms {
		writeFamily(w, f.name, f.help, "histogram")
		views := shapes{family: f.name}
		var sums merged[histogramSum]
		for _, s := range all {
			shape := views.of(s.labels.View)
			if shape != nil && shape.drop {
				continue
			}
			line = s.labels.append(line[:0], shape)
			if viewed {
				sums.at(line).add(f.value(s))
				continue
			}
			var h histogramSum
			h.add(f.value(s))
			h.write(w, f.name, string(line))
		}
		for _, labels := range sums.order {
			sums.by[labels].write(w, f.name, labels)
		}
	}
}

func writeFamily(w *bufio.Writer, name, help, kind string) {
	w.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n")
}

// histogramSum is a histogram as it is read, of one series or of several.
type histogramSum struct {
	counts [len(buckets) + 1]uint64
	sum    uint64
}

func (s *histogramSum) add(h *histogram) {
	for i := range h.counts {
		s.counts[i] += h.counts[i].Load()
	}
	s.sum += h.sum.Load()
}

func (s *histogramSum) write(w *bufio.Writer, name, labels string) {
	n := uint64(0)
	var line []byte
	for i, c := range s.counts {
		n += c
		le := "+Inf"
		if i < len(buckets) {
			le = strconv.FormatFloat(buckets[i], 'f', -1, 64)
		}
		line = withLE(append(append(line[:0], name...), "_bucket"...), labels, le)
		w.Write(append(strconv.AppendUint(append(line, ' '), n, 10), '\n'))
	}
	line = append(append(append(append(line[:0], name...), "_count"...), labels...), ' ')
	w.Write(append(strconv.AppendUint(line, n, 10), '\n'))
	line = append(append(append(append(line[:0], name...), "_sum"...), labels...), ' ')
	w.Write(append(strconv.AppendFloat(line, float64(s.sum)/1000, 'f', -1, 64), '\n'))
}

// append appends the label set, in the shape of a view if there is one.
func (l *HTTPLabels) append(b []byte, as *shape) []byte {
	code := strconv.Itoa(l.Code)
	return l.Labels.appendWith(b, func(add func(name, value string)) {
		add("request_protocol", l.Protocol)
		add("response_code", code)
		addPlain(add, "grpc_response_status", l.GRPC)
		add("response_flags", l.Flags)
	}, as)
}

// addPlain adds a label that may be empty.
func addPlain(add func(name, value string), name, value string) {
	if value == "" {
		value = emptyValue
	}
	add(name, value)
}
