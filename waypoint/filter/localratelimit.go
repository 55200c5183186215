package filter

import (
	"cmp"
	"container/list"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
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
	rules             []descriptorRule // nil: those of the route and its virtual host
	stage             uint32
	hostLimits        int
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
	bucket  *bucket // of entries without such a value
	each    *bucketsByValue
	shadow  bool
}

// bucketsByValue has a bucket for each set of values of a descriptor, of those asked for last. Any goroutine.
type bucketsByValue struct {
	settings *typev3.TokenBucket
	max      int

	mu    sync.Mutex
	known map[string]*list.Element // of *valueBucket
	order list.List                // the one asked for last in front
}

type valueBucket struct {
	key    string
	bucket *bucket
}

func (v *bucketsByValue) of(d []entry) *bucket {
	var b strings.Builder
	for _, e := range d {
		b.WriteString(strconv.Quote(e.value))
	}
	key := b.String()
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.known[key]; e != nil {
		v.order.MoveToFront(e)
		return e.Value.(*valueBucket).bucket
	}
	if last := v.order.Back(); last != nil && v.order.Len() >= v.max {
		delete(v.known, v.order.Remove(last).(*valueBucket).key)
	}
	made, _ := newBucket(v.settings) // which was tried when the configuration was read
	v.known[key] = v.order.PushFront(&valueBucket{key, made})
	return made
}

// bucket is a token bucket that fills all the time, as Envoy's does. Any goroutine.
type bucket struct {
	size float64
	rate float64 // tokens a second
	// since are the bits of the seconds since epoch at which the bucket was, or would have been, empty.
	since atomic.Uint64
}

// epoch is what buckets count time from.
var epoch = time.Now()

func newBucket(p *typev3.TokenBucket) (*bucket, error) {
	b := &bucket{size: float64(p.GetMaxTokens())}
	if p.GetMaxTokens() == 0 {
		return nil, field.Errorf("max_tokens", "not positive")
	}
	fill := uint32(1)
	if t := p.GetTokensPerFill(); t != nil {
		if fill = t.GetValue(); fill == 0 {
			return nil, field.Errorf("tokens_per_fill", "not positive")
		}
	}
	every, err := field.Duration("fill_interval", p.GetFillInterval(), 0)
	if err != nil {
		return nil, err
	}
	if every < 50*time.Millisecond {
		return nil, field.Errorf("fill_interval", "at least 50 ms are required")
	}
	b.rate = float64(fill) / every.Seconds()
	b.since.Store(math.Float64bits(math.Inf(-1))) // full
	return b, nil
}

// nearly is what rounding may cost a token.
const nearly = 1e-6

// take takes tokens, and returns how many whole ones are left and how long it is until the next one is there, or the
// bucket is full again.
func (b *bucket) take(n float64, now time.Time) (ok bool, left uint64, next, full time.Duration) {
	at := now.Sub(epoch).Seconds()
	for {
		old := b.since.Load()
		tokens := min(b.size, (at-math.Float64frombits(old))*b.rate)
		if ok = tokens+nearly >= n; ok {
			tokens = max(tokens-n, 0)
		}
		if ok && !b.since.CompareAndSwap(old, math.Float64bits(at-tokens/b.rate)) {
			continue
		}
		whole := math.Floor(tokens + nearly)
		return ok, uint64(max(whole, 0)), b.time(whole + 1 - tokens), b.time(b.size - tokens)
	}
}

// time is how long it takes until there are so many tokens more.
func (b *bucket) time(tokens float64) time.Duration {
	return time.Duration(tokens / b.rate * float64(time.Second))
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
	l.draft, l.stage, l.hostLimits = p.GetEnableXRatelimitHeaders() != 0, p.GetStage(), int(p.GetVhRateLimits())
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
		c, err := compileLimited(d, p.GetMaxDynamicDescriptors().GetValue())
		if err != nil {
			return l, field.Index(err, "descriptors", i)
		}
		l.byDescriptor = append(l.byDescriptor, c)
	}
	return l, nil
}

// dynamicDescriptors is how many buckets a descriptor with a value left open has, if the configuration does not say (Envoy's
// number).
const dynamicDescriptors = 20

func compileLimited(d *commonv3.LocalRateLimitDescriptor, most uint32) (c limitedDescriptor, err error) {
	if c.bucket, err = newBucket(d.GetTokenBucket()); err != nil {
		return c, field.At(err, "token_bucket")
	}
	c.shadow = d.GetShadowMode()
	open := false
	for k, e := range d.GetEntries() {
		if e.GetKey() == "" {
			return c, field.Errorf("entries", "entry %d: a key is required", k)
		}
		open = open || e.GetValue() == ""
		c.entries = append(c.entries, entry{e.GetKey(), e.GetValue()})
	}
	if open {
		if most == 0 {
			most = dynamicDescriptors
		}
		c.bucket, c.each = nil, &bucketsByValue{settings: d.GetTokenBucket(), max: int(most), known: map[string]*list.Element{}}
	}
	return c, nil
}

// of is the bucket for a descriptor, nil when the limit is for others.
func (c *limitedDescriptor) of(d []entry) *bucket {
	if len(d) != len(c.entries) {
		return nil
	}
	for i, e := range c.entries {
		if e.key != d[i].key || e.value != d[i].value && e.value != "" {
			return nil
		}
	}
	if c.each != nil {
		return c.each.of(d)
	}
	return c.bucket
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
	next, full time.Duration
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
	ok, note := l.count(x)
	if l.draft {
		x.Note(f, note)
	}
	switch {
	case ok:
		return Continue
	case !l.enforced.Hit(x.Rand.Uint64()):
		l.request.Apply(&x.Req.Header, x.Context())
		return Continue
	}
	x.Answered(l.status, "local_rate_limited", "local_rate_limited", RateLimited)
	if l.retryAfter {
		x.Reply.Header = append(x.Reply.Header, message.Field{Name: "retry-after", Value: seconds(note.next)})
	}
	if l.exhausted {
		x.Reply.HasGRPC, x.Reply.GRPC = true, 8
	}
	if l.answer != nil {
		x.Note(l, true)
	}
	return Stop
}

// counted is a bucket that counts a request.
type counted struct {
	bucket *bucket
	hits   float64
	shadow bool
}

// choose finds the buckets that count a request by its descriptors, the slowest first, as in Envoy.
func (l *limits) choose(x *Exchange) []counted {
	if len(l.byDescriptor) == 0 {
		return nil
	}
	rules, more := l.rules, []descriptorRule(nil)
	if len(rules) == 0 {
		rules, more = x.routeLimits(l.hostLimits)
	}
	var out []counted
	for _, list := range [][]descriptorRule{rules, more} {
		for i := range list {
			if len(l.rules) == 0 && list[i].stage != l.stage {
				continue
			}
			d := list[i].descriptor(x)
			if d == nil {
				continue
			}
			for k := range l.byDescriptor {
				if b := l.byDescriptor[k].of(d); b != nil {
					out = append(out, counted{b, float64(max(list[i].hits, 1)), l.byDescriptor[k].shadow})
					break
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b counted) int { return cmp.Compare(a.bucket.rate, b.bucket.rate) })
	return out
}

// count takes the tokens of a request; the first bucket that has none decides.
func (l *limits) count(x *Exchange) (bool, limited) {
	all := l.choose(x)
	if l.bucket != nil && (len(all) == 0 || l.always) {
		all = append(all, counted{bucket: l.bucket, hits: 1})
	}
	var note limited
	for i, c := range all {
		ok, left, next, full := c.bucket.take(c.hits, x.Now)
		refused := !ok && !c.shadow
		if i == 0 || refused {
			note = limited{uint64(c.bucket.size), left, next, full}
		}
		if refused {
			return false, note
		}
	}
	return true, note
}

// seconds rounds up to whole seconds.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// Answer implements Answering.
func (f *localLimit) Answer(x *Exchange) {
	h := &x.Resp.Header
	if n, ok := x.Noted(f).(limited); ok {
		h.Set("x-ratelimit-limit", strconv.FormatUint(n.size, 10))
		h.Set("x-ratelimit-remaining", strconv.FormatUint(n.left, 10))
		h.Set("x-ratelimit-reset", seconds(n.full))
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
