package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// quantile is the p-th quantile with linear interpolation, or NaN without values.
func quantile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	x := p * float64(len(v)-1)
	i := int(x)
	if i+1 >= len(v) {
		return v[i]
	}
	return v[i] + (x-float64(i))*(v[i+1]-v[i])
}

// A spread is a median with its middle half and the number of values.
type spread struct {
	low, mid, high float64
	n              int
}

func spreadOf(values []float64) spread {
	return spread{quantile(values, .25), quantile(values, .5), quantile(values, .75), len(values)}
}

func (s spread) String() string {
	if s.n == 0 {
		return "-"
	}
	return fmt.Sprintf("%s [%s-%s]", short(s.mid), short(s.low), short(s.high))
}

// short prints three significant digits.
func short(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

// A metric reads one figure off a sample.
type metric struct {
	name string
	of   func(*sample) float64
}

var (
	proxyCPU = metric{"proxy CPU", func(s *sample) float64 { return s.cpuPerUnit(proxyA, proxyB) }}
	totalCPU = metric{"total CPU", func(s *sample) float64 { return s.cpuPerUnit(proxyA, proxyB, clientRole, serverRole) }}
	appCPU   = metric{"applications' CPU", func(s *sample) float64 { return s.cpuPerUnit(clientRole, serverRole) }}
	rate     = metric{"rate", (*sample).rate}
	p50      = metric{"p50", func(s *sample) float64 { return micros(s.Result.P50) }}
	resident = metric{"memory", func(s *sample) float64 { return float64(s.Memory[proxyA].Resident+s.Memory[proxyB].Resident) / 1e6 }}
	p99      = metric{"p99", func(s *sample) float64 { return micros(s.Result.P99) }}
)

// cpuPerUnit is seconds for each GB, or microseconds for each round trip.
func (s *sample) cpuPerUnit(roles ...role) float64 {
	var sum time.Duration
	for _, r := range roles {
		sum += s.CPU[r]
	}
	if s.Workload.bytes() {
		return float64(sum) / s.units() // ns for each byte are s for each GB
	}
	return micros(sum) / s.units()
}

// rate is GB or round trips a second.
func (s *sample) rate() float64 {
	r := s.units() / s.Result.Wall.Seconds()
	if s.Workload.bytes() {
		return r / 1e9
	}
	return r
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// line is a sample on the terminal.
func (s *sample) line() string {
	if s.Invalid != "" {
		return "INVALID: " + s.Invalid
	}
	l := fmt.Sprintf("%9s/s  proxies %7s %s, all %7s", short(s.rate()), short(proxyCPU.of(s)), s.Workload.unit(), short(totalCPU.of(s)))
	if s.Result.P50 > 0 {
		l += fmt.Sprintf("  p50 %s p99 %s us", short(p50.of(s)), short(p99.of(s)))
	}
	return l
}

// key names a series of samples.
type key struct{ system, workload string }

// series are the valid samples of a system on a workload, by round.
func (b *bencher) series(k key) map[int]*sample {
	m := map[int]*sample{}
	for _, s := range b.samples {
		if s.System == k.system && s.Workload.Name == k.workload && s.Invalid == "" {
			m[s.Round] = s
		}
	}
	return m
}

// values are a metric over the rounds.
func (b *bencher) values(k key, m metric) []float64 {
	var v []float64
	for _, s := range b.series(k) {
		v = append(v, m.of(s))
	}
	return v
}

// ratio compares two series round by round; m and n are usually the same metric.
func (b *bencher) ratio(x key, m metric, y key, n metric) spread {
	xs, ys := b.series(x), b.series(y)
	var v []float64
	for round, s := range xs {
		if o, ok := ys[round]; ok {
			v = append(v, m.of(s)/n.of(o))
		}
	}
	return spreadOf(v)
}
