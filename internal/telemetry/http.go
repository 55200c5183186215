package telemetry

import (
	"bufio"
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
	s := r.http.acquire(l)
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
	s.holders.release()
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
	for _, f := range httpCounters {
		writeFamily(w, f.name, f.help, "counter")
		for _, s := range all {
			if n := f.value(s); !f.grpc || n > 0 {
				writeSample(w, f.name, "_total", &s.labels, "", n)
			}
		}
	}
	for _, f := range httpHistograms {
		writeFamily(w, f.name, f.help, "histogram")
		for _, s := range all {
			h, n := f.value(s), uint64(0)
			for i := range h.counts {
				n += h.counts[i].Load()
				le := "+Inf"
				if i < len(buckets) {
					le = strconv.FormatFloat(buckets[i], 'f', -1, 64)
				}
				writeSample(w, f.name, "_bucket", &s.labels, le, n)
			}
			writeSample(w, f.name, "_count", &s.labels, "", n)
			line := s.labels.append(append([]byte(f.name), "_sum"...), "")
			line = strconv.AppendFloat(append(line, ' '), float64(h.sum.Load())/1000, 'f', -1, 64)
			w.Write(append(line, '\n'))
		}
	}
}

func writeFamily(w *bufio.Writer, name, help, kind string) {
	w.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n")
}

func writeSample(w *bufio.Writer, name, suffix string, l *HTTPLabels, le string, n uint64) {
	line := l.append(append([]byte(name), suffix...), le)
	line = strconv.AppendUint(append(line, ' '), n, 10)
	w.Write(append(line, '\n'))
}

// append appends the label set; le is the bound of a bucket, or "".
func (l *HTTPLabels) append(b []byte, le string) []byte {
	code := strconv.Itoa(l.Code)
	return l.Labels.appendWith(b, func(add func(name, value string)) {
		add("request_protocol", l.Protocol)
		add("response_code", code)
		addPlain(add, "grpc_response_status", l.GRPC)
		add("response_flags", l.Flags)
	}, le)
}

// addPlain adds a label that may be empty.
func addPlain(add func(name, value string), name, value string) {
	if value == "" {
		value = emptyValue
	}
	add(name, value)
}
