package cluster

import (
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/field"
)

// outlierConfig is when endpoints are taken out of the choice, and for how long. Percentages are 0 to 100. Immutable.
type outlierConfig struct {
	interval, base, longest, jitter time.Duration
	maxPercent                      uint32
	oneAlways                       bool
	split                           bool // failures of ours and of the endpoint are counted apart

	consecutive5xx, consecutiveGateway, consecutiveLocal uint32
	enforce5xx, enforceGateway, enforceLocal             uint32

	rate, localRate       uint32 // enforcing of success rates
	rateHosts, rateVolume uint32
	rateFactor            float64 // standard deviations

	share, localShare       uint32 // enforcing of failure percentages
	shareHosts, shareVolume uint32
	shareLimit              uint32
}

func (c *Config) compileOutlier(p *clusterv3.Cluster) error {
	o := p.GetOutlierDetection()
	if o == nil {
		return nil
	}
	x := &outlierConfig{split: o.GetSplitExternalLocalOriginErrors(), oneAlways: o.GetAlwaysEjectOneHost().GetValue()}
	var err error
	part := func(name string, v *wrapperspb.UInt32Value, def, most uint32) uint32 {
		n := def
		if v != nil {
			n = v.GetValue()
		}
		if n > most && err == nil {
			err = field.Errorf(name, "%d is more than %d", n, most)
		}
		return n
	}
	percent := func(name string, v *wrapperspb.UInt32Value, def uint32) uint32 { return part(name, v, def, 100) }
	number := func(name string, v *wrapperspb.UInt32Value, def uint32) uint32 {
		return part(name, v, def, math.MaxUint32)
	}
	x.consecutive5xx = number("consecutive_5xx", o.GetConsecutive_5Xx(), 5)
	x.consecutiveGateway = number("consecutive_gateway_failure", o.GetConsecutiveGatewayFailure(), 5)
	x.consecutiveLocal = number("consecutive_local_origin_failure", o.GetConsecutiveLocalOriginFailure(), 5)
	x.enforce5xx = percent("enforcing_consecutive_5xx", o.GetEnforcingConsecutive_5Xx(), 100)
	x.enforceGateway = percent("enforcing_consecutive_gateway_failure", o.GetEnforcingConsecutiveGatewayFailure(), 0)
	x.enforceLocal = percent("enforcing_consecutive_local_origin_failure", o.GetEnforcingConsecutiveLocalOriginFailure(), 100)
	x.maxPercent = percent("max_ejection_percent", o.GetMaxEjectionPercent(), 10)
	x.rate = percent("enforcing_success_rate", o.GetEnforcingSuccessRate(), 100)
	x.localRate = percent("enforcing_local_origin_success_rate", o.GetEnforcingLocalOriginSuccessRate(), 100)
	x.rateHosts = number("success_rate_minimum_hosts", o.GetSuccessRateMinimumHosts(), 5)
	x.rateVolume = number("success_rate_request_volume", o.GetSuccessRateRequestVolume(), 100)
	x.rateFactor = float64(number("success_rate_stdev_factor", o.GetSuccessRateStdevFactor(), 1900)) / 1000
	x.share = percent("enforcing_failure_percentage", o.GetEnforcingFailurePercentage(), 0)
	x.localShare = percent("enforcing_failure_percentage_local_origin", o.GetEnforcingFailurePercentageLocalOrigin(), 0)
	x.shareHosts = number("failure_percentage_minimum_hosts", o.GetFailurePercentageMinimumHosts(), 5)
	x.shareVolume = number("failure_percentage_request_volume", o.GetFailurePercentageRequestVolume(), 50)
	x.shareLimit = percent("failure_percentage_threshold", o.GetFailurePercentageThreshold(), 85)
	if err == nil {
		err = x.compileTimes(o)
	}
	c.outlier = x
	return field.At(err, "outlier_detection")
}

func (x *outlierConfig) compileTimes(o *clusterv3.OutlierDetection) (err error) {
	if x.interval, err = field.Duration("interval", o.GetInterval(), 10*time.Second); err != nil {
		return err
	}
	if x.interval < time.Millisecond {
		return field.Errorf("interval", "at least 1 ms is required")
	}
	if x.base, err = field.Duration("base_ejection_time", o.GetBaseEjectionTime(), 30*time.Second); err != nil {
		return err
	}
	if x.longest, err = field.Duration("max_ejection_time", o.GetMaxEjectionTime(), 300*time.Second); err != nil {
		return err
	}
	x.longest = max(x.longest, x.base)
	x.jitter, err = field.Duration("max_ejection_time_jitter", o.GetMaxEjectionTimeJitter(), 0)
	return err
}

// Failure is how a request to an endpoint ended without an answer.
type Failure uint8

// The failures.
const (
	// ConnectFailure: there was no connection.
	ConnectFailure Failure = iota
	// Timeout: the answer took too long.
	Timeout
	// Reset: the stream or connection broke off before the answer's head.
	Reset
)

// monitor is what outlier detection knows of an endpoint.
type monitor struct {
	consecutive5xx, consecutiveGateway, consecutiveLocal atomic.Uint32
	answers, local                                       tally // since the interval began

	// guarded by Cluster.mu
	at     time.Time     // when it was ejected
	times  int           // how often, less one for each quiet interval
	jitter time.Duration // of this time
}

// tally counts successes.
type tally struct{ total, good atomic.Uint64 }

func (t *tally) add(good bool) {
	t.total.Add(1)
	if good {
		t.good.Add(1)
	}
}

// Answered says that the endpoint has answered with a status; 0 means that a connection which is not HTTP was opened.
func (h *Host) Answered(status int) {
	if status >= 500 {
		h.failed.Add(1)
	}
	o := h.Cluster.outlier
	if o == nil {
		return
	}
	if o.split {
		h.monitor.consecutiveLocal.Store(0)
		h.monitor.local.add(true)
		if status == 0 {
			return
		}
	}
	h.Cluster.status(h, status)
}

// Failed says that a request to the endpoint ended without an answer.
func (h *Host) Failed(f Failure) {
	h.failed.Add(1)
	o := h.Cluster.outlier
	switch {
	case o == nil:
	case !o.split: // as Envoy translates them
		status := 503
		if f == Timeout {
			status = 504
		}
		h.Cluster.status(h, status)
	default:
		h.monitor.local.add(false)
		if h.monitor.consecutiveLocal.Add(1) >= o.consecutiveLocal {
			h.Cluster.eject(h, o.enforceLocal)
			h.monitor.consecutiveLocal.Store(0)
		}
	}
}

// status counts an answer.
func (c *Cluster) status(h *Host, status int) {
	m, o := &h.monitor, c.outlier
	m.answers.add(status < 500)
	if status < 500 {
		if m.consecutive5xx.Load() != 0 {
			m.consecutive5xx.Store(0)
		}
		if m.consecutiveGateway.Load() != 0 {
			m.consecutiveGateway.Store(0)
		}
		return
	}
	if status >= 502 && status <= 504 {
		if m.consecutiveGateway.Add(1) >= o.consecutiveGateway {
			c.eject(h, o.enforceGateway)
			m.consecutiveGateway.Store(0)
		}
	} else {
		m.consecutiveGateway.Store(0)
	}
	if m.consecutive5xx.Add(1) >= o.consecutive5xx {
		c.eject(h, o.enforce5xx)
		m.consecutive5xx.Store(0)
	}
}

// eject takes an endpoint out of the choice, unless chance (enforcing) or the number of those that are out says no.
func (c *Cluster) eject(h *Host, enforcing uint32) {
	if enforcing == 0 || rand.Uint32N(100) >= enforcing {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.ejected.Load() || h.gone.Load() {
		return
	}
	if c.out(h) {
		c.rebuild()
	}
}

// out marks an endpoint as ejected. c.mu is held.
func (c *Cluster) out(h *Host) bool {
	o := c.outlier
	if len(c.hosts) == 0 || 100*float64(c.ejected)/float64(len(c.hosts)) >= float64(o.maxPercent) && !(o.oneAlways && c.ejected == 0) {
		return false
	}
	h.ejected.Store(true)
	c.ejected++
	c.stats.Ejections.Add(1)
	m := &h.monitor
	m.at = c.now()
	if time.Duration(m.times)*o.base < o.longest {
		m.times++
	}
	m.jitter = 0
	if o.jitter > 0 {
		m.jitter = rand.N(o.jitter)
	}
	return true
}

// sweep does what is due at the end of an interval: it lets endpoints back in, and looks at success rates. c.mu is held.
func (c *Cluster) sweep(now time.Time) {
	o := c.outlier
	changed := false
	for _, h := range c.hosts {
		m := &h.monitor
		if !h.ejected.Load() {
			if m.times > 0 {
				m.times--
			}
			continue
		}
		if now.Sub(m.at) < min(time.Duration(m.times)*o.base, o.longest)+m.jitter {
			continue
		}
		m.consecutive5xx.Store(0)
		m.consecutiveGateway.Store(0)
		m.consecutiveLocal.Store(0)
		h.ejected.Store(false)
		h.since = now
		c.ejected--
		changed = true
	}
	for _, k := range []struct {
		tally       func(*Host) *tally
		rate, share uint32
	}{
		{func(h *Host) *tally { return &h.monitor.answers }, o.rate, o.share},
		{func(h *Host) *tally { return &h.monitor.local }, o.localRate, o.localShare},
	} {
		changed = c.judge(k.tally, k.rate, k.share) || changed
	}
	if changed {
		c.rebuild()
	}
}

// judge ejects endpoints whose success rate of the interval that has ended is much below the others', or too low at all.
func (c *Cluster) judge(of func(*Host) *tally, rate, share uint32) bool {
	type result struct {
		h       *Host
		success float64 // percent
		total   uint64
	}
	o := c.outlier
	var rs []result
	for _, h := range c.hosts {
		t := of(h)
		total, good := t.total.Swap(0), t.good.Swap(0)
		if total > 0 && !h.ejected.Load() {
			rs = append(rs, result{h, 100 * float64(min(good, total)) / float64(total), total})
		}
	}
	changed := false
	enough := func(volume uint32) (out []result) {
		for _, r := range rs {
			if r.total >= uint64(volume) {
				out = append(out, r)
			}
		}
		return out
	}
	if list := enough(o.rateVolume); rate > 0 && len(list) > 0 && uint32(len(list)) >= o.rateHosts {
		mean, variance := 0.0, 0.0
		for _, r := range list {
			mean += r.success / float64(len(list))
		}
		for _, r := range list {
			variance += (r.success - mean) * (r.success - mean) / float64(len(list))
		}
		limit := mean - o.rateFactor*math.Sqrt(variance)
		for _, r := range list {
			if r.success < limit && rand.Uint32N(100) < rate {
				changed = c.out(r.h) || changed
			}
		}
	}
	if list := enough(o.shareVolume); share > 0 && len(list) > 0 && uint32(len(list)) >= o.shareHosts {
		for _, r := range list {
			if !r.h.ejected.Load() && 100-r.success >= float64(o.shareLimit) && rand.Uint32N(100) < share {
				changed = c.out(r.h) || changed
			}
		}
	}
	return changed
}
