// Package telemetry is what the data plane says about itself: metrics under Istio's names, one access record per
// connection, and the program's log.
//
// It is the only package that knows Prometheus. A [Registry] has the connection metrics, which are counted through
// handles ([TCPSeries]) looked up once per connection, and everything else as ordinary counters and gauges. An [AccessLog]
// formats records without allocating and hands them to a [Writer], which never blocks a connection. [NewHandler] makes an
// slog.Handler whose level can be changed per scope at run time.
package telemetry

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Counter, Gauge and the others let packages use metrics without importing Prometheus.
type (
	Counter      = prometheus.Counter
	CounterVec   = prometheus.CounterVec
	Gauge        = prometheus.Gauge
	GaugeVec     = prometheus.GaugeVec
	Observer     = prometheus.Observer
	Histogram    = prometheus.Histogram
	HistogramVec = prometheus.HistogramVec
)

// Config sets up a Registry. The zero value has the documented defaults.
type Config struct {
	// MaxSeries bounds the label sets of connection metrics; what comes above is counted under "overflow". 0 means
	// 10,000; negative means no bound.
	MaxSeries int
	// SeriesTTL is how long a label set without connections is kept after its last use. 0 means 1 h; negative keeps
	// it forever.
	SeriesTTL time.Duration
	// Component and Tag are the labels of istio_build. Empty Component means "ztunnel".
	Component, Tag string
}

// Registry holds all metrics of a program. Safe from any goroutine. Create it with NewRegistry.
type Registry struct {
	cfg  Config
	prom *prometheus.Registry
	tcp  tcpTable
	http httpTable

	SeriesOverflows Counter // connections counted under "overflow"
}

// NewRegistry returns a registry with the metrics that every program has: Go runtime, process (process_open_fds,
// process_max_fds) and istio_build.
func NewRegistry(cfg Config) *Registry {
	if cfg.MaxSeries == 0 {
		cfg.MaxSeries = 10000
	}
	if cfg.SeriesTTL == 0 {
		cfg.SeriesTTL = time.Hour
	}
	if cfg.Component == "" {
		cfg.Component = "ztunnel"
	}
	r := &Registry{cfg: cfg, prom: prometheus.NewPedanticRegistry()}
	r.prom.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.Gauges("istio_build", "Build of the component.", "component", "tag").WithLabelValues(cfg.Component, unknown(cfg.Tag)).Set(1)
	r.SeriesOverflows = r.Counter("ambit_metric_series_overflow_total", "Connections counted under the label value overflow.")
	r.tcp.init(cfg.MaxSeries, r.SeriesOverflows)
	r.http.init(cfg.MaxSeries, r.SeriesOverflows)
	return r
}

// Run expires idle series until ctx is done. It returns nil.
func (r *Registry) Run(ctx context.Context) error {
	if r.cfg.SeriesTTL < 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(r.cfg.SeriesTTL / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			r.tcp.sweep(now.Add(-r.cfg.SeriesTTL))
			r.http.sweep(now.Add(-r.cfg.SeriesTTL))
		}
	}
}

// Counter makes and registers a counter; names of counters end in _total. It panics if the name is taken, which is a bug.
func (r *Registry) Counter(name, help string) Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	r.prom.MustRegister(c)
	return c
}

// Counters makes a counter per value of labels.
func (r *Registry) Counters(name, help string, labels ...string) *CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.prom.MustRegister(c)
	return c
}

// Gauge makes and registers a gauge.
func (r *Registry) Gauge(name, help string) Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	r.prom.MustRegister(g)
	return g
}

// Gauges makes a gauge per value of labels.
func (r *Registry) Gauges(name, help string, labels ...string) *GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	r.prom.MustRegister(g)
	return g
}

// GaugeFunc registers a gauge that is read when scraped; f must be safe from any goroutine.
func (r *Registry) GaugeFunc(name, help string, f func() float64) {
	r.prom.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
}

// CounterFunc registers a counter that is read when scraped; f must be safe from any goroutine and never go down.
func (r *Registry) CounterFunc(name, help string, f func() float64) {
	r.prom.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, f))
}

// Histograms makes a histogram per value of labels; buckets are upper bounds in the metric's unit.
func (r *Registry) Histograms(name, help string, buckets []float64, labels ...string) *HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	r.prom.MustRegister(h)
	return h
}

// unknown is what a missing label value is called.
func unknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
