package filter

import (
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// localLimit answers 429 to requests beyond a rate, each waypoint by itself (Envoy's local_ratelimit).
type localLimit struct {
	name
	limits
}

// limits are what a chain, or a route, sets. The buckets live as long as the configuration.
type limits struct {
	bucket            *bucket // nil: no limit
	byDescriptor      []limitedDescriptor
	rules             []descriptorRule
	always            bool // the bucket counts too if a descriptor's does
	enabled, enforced *route.Fraction
	status            int
	exhausted         bool // gRPC clients get RESOURCE_EXHAUSTED
	draft             bool // x-ratelimit headers
	retryAfter        bool
	answer, request   *route.HeaderOps
}

type limitedDescriptor struct {
	entries []entry // "" as a value stands for any: then each value has a bucket of its own
	bucket  *bucket
	shadow  bool
}

// bucket is a token bucket. Any goroutine.
type bucket struct {
	size, fill uint64
	every      time.Duration
	// state is the number of tokens (high half) and the number of the interval in which they were filled last (low half).
	state atomic.Uint64
}

// epoch is what the bucket's intervals are counted from.
var epoch = time.Now()

func newBucket(p *typev3.TokenBucket) (*bucket, error) {
	b := &bucket{size: uint64(p.GetMaxTokens()), fill: 1}
	if p.GetMaxTokens() == 0 {
		return nil, field.Errorf("max_tokens", "not positive")
	}
	if t := p.GetTokensPerFill(); t != nil {
		if b.fill = uint64(t.GetValue()); b.fill == 0 {
			return nil, field.Errorf("tokens_per_fill", "not positive")
		}
	}
	var err error
	if b.every, err = field.Duration("fill_interval", p.GetFillInterval(), 0); err != nil {
		return nil, err
	}
	if b.every < 50*time.Millisecond {
		return nil, field.Errorf("fill_interval", "at least 50 ms are required")
	}
	b.state.Store(b.size << 32)
	return b, nil
}

// take takes a token, and returns how many are left and how long it is until there are more.
func (b *bucket) take(now time.Time) (ok bool, left uint64, wait time.Duration) {
	since := now.Sub(epoch)
	turn := uint64(since / b.every)
	wait = b.every - since%b.every
	for {
		old := b.state.Load()
		tokens, last := old>>32, old&(1<<32-1)
		if n := (turn - last) & (1<<32 - 1); n > 0 && n < 1<<31 {
			tokens = min(b.size, tokens+min(n, b.size)*b.fill)
		}
		if tokens == 0 {
			return false, 0, wait
		}
		if b.state.CompareAndSwap(old, (tokens-1)<<32|turn&(1<<32-1)) {
			return true, tokens - 1, wait
		}
	}
}

func compileLimits(p *localv3.LocalRateLimit) (l limits, err error) {
	l.status, l.exhausted, l.retryAfter = 429, p.GetRateLimitedAsResourceExhausted(), p.GetEnableRetryAfterHeader()
	if s := int(p.GetStatus().GetCode()); s >= 400 && s <= 599 { // as in Envoy: others mean 429
		l.status = s
	}
	switch {
	case p.GetLocalRateLimitPerDownstreamConnection():
		return l, field.Errorf("local_rate_limit_per_downstream_connection", "not supported: clients share tunnels")
	case p.GetLocalClusterRateLimit() != nil:
		return l, field.Errorf("local_cluster_rate_limit", "not supported")
	}
	if p.GetTokenBucket() != nil {
		if l.bucket, err = newBucket(p.GetTokenBucket()); err != nil {
			return l, field.At(err, "token_bucket")
		}
	}
	if l.enabled, err = limitShare(p.GetFilterEnabled()); err != nil {
		return l, field.At(err, "filter_enabled")
	}
	if l.enforced, err = limitShare(p.GetFilterEnforced()); err != nil {
		return l, field.At(err, "filter_enforced")
	}
	l.draft = p.GetEnableXRatelimitHeaders() != 0
	l.always = p.GetAlwaysConsumeDefaultTokenBucket() == nil || p.GetAlwaysConsumeDefaultTokenBucket().GetValue()
	if l.answer, err = route.CompileHeaderOps("response_headers_to_add", p.GetResponseHeadersToAdd(), "", nil); err != nil {
		return l, err
	}
	if l.request, err = route.CompileHeaderOps("request_headers_to_add_when_not_enforced", p.GetRequestHeadersToAddWhenNotEnforced(), "", nil); err != nil {
		return l, err
	}
	if l.rules, err = compileDescriptors(p.GetRateLimits()); err != nil {
		return l, err
	}
	for i, d := range p.GetDescriptors() {
		b, err := newBucket(d.GetTokenBucket())
		if err != nil {
			return l, field.Index(field.At(err, "token_bucket"), "descriptors", i)
		}
		c := limitedDescriptor{bucket: b, shadow: d.GetShadowMode()}
		for k, e := range d.GetEntries() {
			if e.GetKey() == "" || e.GetValue() == "" {
				return l, field.Index(field.Errorf("entries", "entry %d: key and value are required", k), "descriptors", i)
			}
			c.entries = append(c.entries, entry{e.GetKey(), e.GetValue()})
		}
		l.byDescriptor = append(l.byDescriptor, c)
	}
	return l, nil
}

// limitShare is the share of a filter that is off, as Envoy's rate limits are, unless the configuration says something.
func limitShare(p *corev3.RuntimeFractionalPercent) (*route.Fraction, error) {
	if p == nil {
		return route.CompileFraction(&typev3.FractionalPercent{})
	}
	return enabledShare(p)
}

func compileLocalLimit(p *localv3.LocalRateLimit) (Filter, error) {
	l, err := compileLimits(p)
	return &localLimit{limits: l}, err
}

func compileLocalLimitPart(p *localv3.LocalRateLimit) (any, error) {
	l, err := compileLimits(p)
	return &l, err
}

// limited is what is to be said in the answer to a request that a bucket counted.
type limited struct {
	size, left uint64
	reset      time.Duration
}

// Request implements Filter.
func (f *localLimit) Request(x *Exchange) Action {
	l := &f.limits
	if v, off := x.settings(f.name.name); off {
		return Continue
	} else if own, ok := v.(*limits); ok {
		l = own
	}
	if l.bucket == nil && len(l.byDescriptor) == 0 || !l.enabled.Hit(x.Rand.Uint64()) {
		return Continue
	}
	b, shadow := l.choose(x)
	ok, note := l.count(b, x)
	if l.draft {
		x.Note(f, note)
	}
	switch {
	case ok || shadow:
		return Continue
	case !l.enforced.Hit(x.Rand.Uint64()):
		l.request.Apply(&x.Req.Header, x.Context())
		return Continue
	}
	x.Answered(l.status, "local_rate_limited", "local_rate_limited", RateLimited)
	if l.retryAfter {
		x.Reply.Header = append(x.Reply.Header, message.Field{Name: "retry-after", Value: strconv.Itoa(int((note.reset + time.Second - 1) / time.Second))})
	}
	if l.exhausted {
		x.Reply.HasGRPC, x.Reply.GRPC = true, 8
	}
	if l.answer != nil {
		x.Note(l, true)
	}
	return Stop
}

// choose finds the bucket of the first descriptor that has one; nil: only the default one counts.
func (l *limits) choose(x *Exchange) (*limitedDescriptor, bool) {
	for i := range l.rules {
		d := l.rules[i].descriptor(x)
		if d == nil {
			continue
		}
		for k := range l.byDescriptor {
			if c := &l.byDescriptor[k]; slices.Equal(c.entries, d) {
				return c, c.shadow
			}
		}
	}
	return nil, false
}

func (l *limits) count(c *limitedDescriptor, x *Exchange) (bool, limited) {
	var note limited
	ok := true
	if c != nil {
		var left uint64
		ok, left, note.reset = c.bucket.take(x.Now)
		note.size, note.left = c.bucket.size, left
	}
	if l.bucket != nil && (c == nil || l.always) {
		had, left, reset := l.bucket.take(x.Now)
		if c == nil || ok && !had {
			note = limited{l.bucket.size, left, reset}
		}
		ok = ok && had
	}
	return ok, note
}

// Answer implements Answering.
func (f *localLimit) Answer(x *Exchange) {
	h := &x.Resp.Header
	if n, ok := x.Noted(f).(limited); ok {
		h.Set("x-ratelimit-limit", strconv.FormatUint(n.size, 10))
		h.Set("x-ratelimit-remaining", strconv.FormatUint(n.left, 10))
		h.Set("x-ratelimit-reset", strconv.Itoa(int(n.reset/time.Second)))
	}
	l := &f.limits
	if v, _ := x.settings(f.name.name); v != nil {
		if own, ok := v.(*limits); ok {
			l = own
		}
	}
	if x.Noted(l) != nil {
		l.answer.Apply(h, x.Context())
	}
}
