package forward

import (
	"context"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

const (
	// maxHeld is how much of a request's body is held while there is no endpoint to send it to, in bytes; then the client
	// waits.
	maxHeld = 64 << 10
	// maxRetry is the longest body that is kept for a retry, in bytes; a longer one cannot be sent again.
	maxRetry = 1 << 20
	// keptCap is the memory of a body that an exchange keeps for the next one, in bytes.
	keptCap = 16 << 10
	// maxSpare is the number of exchanges that a worker keeps for later.
	maxSpare = 1024
)

// stage is how far an exchange has come.
type stage uint8

const (
	filtering stage = iota // on its way through the filters
	waiting                // for an endpoint's answer
	answering              // the head of the answer is out
	over
)

// exchange is one HTTP request: filters, route, attempts, answer. It belongs to its worker's loop and is used again.
type exchange struct {
	filter.Exchange
	w     *worker
	in    *inbound
	down  message.ServerStream
	chain *listener.HTTP
	snap  *Snapshot

	stage   stage
	step    int  // the next filter
	calling bool // a filter is being called: what it resumes goes on when it has returned
	resumed bool
	again   filter.Action

	// the request's body
	kept     []byte // received; the endpoint has been sent the first passed bytes
	passed   int
	keyed    bool // with a Sec-WebSocket-Key of ours
	keep     bool // kept stays after it was sent, for a retry
	ended    bool // the request is complete
	trailer  message.Header
	trailed  bool
	received int64
	watch    *bodyWatch

	// forwarding
	cluster  *cluster.Cluster // of the last attempt
	host     *cluster.Host
	try      *attempt
	tries    int
	resends  int              // of a request that no endpoint has seen
	fed      bool             // some of the body was sent, to an endpoint
	retrying *cluster.Cluster // counts a retry of this request
	total    loop.Timer       // of the route's timeout
	timed    bool             // it was started
	limit    loop.Timer       // of the longest time that a stream may take
	whole    loop.Timer       // until the request has to be complete
	idle     loop.Timer       // of a stream on which nothing moves
	idleFor  time.Duration    // its time; 0: no bound
	moved    time.Duration    // when something moved last
	pause    loop.Timer       // a filter's delay, or the back-off before a retry
	paused   func()           // what happens when the pause is over
	mirrors  []*mirror
	used     []*cluster.Host // endpoints tried, if the retry policy asks for others
	cookie   string          // to be set in the answer
	begun    time.Duration   // when the request came
	wholeAt  time.Duration   // when it was complete; 0 if it is not yet
	headAt   time.Duration   // when the endpoint's answer began

	calls []*call       // of filters
	waits []*sharedWait // for calls that others wait for, too

	span spanState

	asked, told frames // messages of gRPC in the request and in the answer

	// the answer
	grpc     string           // the trailer's gRPC status
	resp     message.Response // of ours
	body     string           // of ours, what is left
	sent     int64
	upstream bool // it comes from an endpoint
	answered bool // it is complete

	ctx    context.Context // of what filters do on goroutines; nil until one does
	cancel context.CancelFunc
}

// serve begins a request.
func (w *worker) serve(in *inbound, s message.ServerStream) {
	var x *exchange
	if n := len(w.spare); n > 0 {
		x = w.spare[n-1]
		w.spare = w.spare[:n-1]
	} else {
		x = &exchange{}
	}
	x.w, x.in, x.down, x.chain = w, in, s, in.chain
	x.snap = in.snap
	x.Host, x.Values = x, x
	x.Req = s.Request()
	x.Client = in.client
	x.Local = w.p.principal
	x.Dest = in.dest
	x.Routes = x.chain.Routes
	x.Now = time.Now()
	x.Rand = w.rand
	x.begun = w.loop.Now()
	x.asked.on = route.IsGRPC(x.Req)
	x.told.on = x.asked.on
	w.open.Add(1)
	s.SetTaker(x)
	x.setIdle(x.chain.StreamIdleTimeout)
	if d := x.chain.MaxStreamDuration; d > 0 {
		w.loop.Start(&x.limit, d, (*limitEnd)(x))
	}
	if d := x.chain.RequestTimeout; d > 0 && !x.bodiless() {
		w.loop.Start(&x.whole, d, (*wholeEnd)(x))
	}
	if x.prepare() {
		x.run()
	}
}

// run goes through the filters from step on, and then forwards.
func (x *exchange) run() {
	for x.stage == filtering {
		if x.step == len(x.chain.Filters) {
			x.forward()
			return
		}
		f := x.chain.Filters[x.step]
		x.step++
		x.calling, x.resumed = true, false
		a := f.Request(&x.Exchange)
		x.calling = false
		if a == filter.Wait && x.resumed {
			a = x.again
		}
		switch a {
		case filter.Stop:
			x.reply()
			return
		case filter.Wait:
			return
		}
	}
}

// Resume implements filter.Host.
func (x *exchange) Resume(a filter.Action) {
	switch {
	case x.stage != filtering, a == filter.Wait:
	case x.calling:
		x.again, x.resumed = a, true
	case a == filter.Stop:
		x.reply()
	default:
		x.run()
	}
}

// After implements filter.Host.
func (x *exchange) After(d time.Duration, f func() filter.Action) {
	x.wait(d, func() { x.Resume(f()) })
}

// wait has f called after d, unless the exchange is over by then.
func (x *exchange) wait(d time.Duration, f func()) {
	x.paused = f
	x.w.loop.Start(&x.pause, d, (*pauseEnd)(x))
}

type pauseEnd exchange

// Expired implements loop.TimerHandler.
func (p *pauseEnd) Expired(*loop.Timer) {
	f := p.paused
	p.paused = nil
	f()
}

// Go implements filter.Host.
func (x *exchange) Go(f func(ctx context.Context) func()) {
	if x.ctx == nil {
		x.ctx, x.cancel = context.WithCancel(x.w.p.ctx)
	}
	ctx, l := x.ctx, x.w.loop // x may be another exchange when f returns
	x.w.p.helpers.Go(func() {
		done := f(ctx)
		l.Inject(func() {
			if ctx.Err() == nil && done != nil {
				done()
			}
		})
	})
}

// Data implements message.Taker: the client's body.
func (x *exchange) Data(p []byte) int {
	if x.stage == over || x.answered && !x.tunnelled() {
		return len(p) // nobody wants it any more
	}
	n := x.take(p)
	x.moved = x.w.loop.Now()
	x.received += int64(n)
	x.asked.count(p[:n])
	for _, m := range x.mirrors {
		m.feed(p[:n])
	}
	if x.watch != nil {
		x.watch.check(x)
	}
	return n
}

func (x *exchange) take(p []byte) int {
	a := x.try
	if a == nil || !a.open || x.passed < len(x.kept) {
		n := min(len(p), maxHeld-len(x.kept)+x.passed)
		if n <= 0 {
			return 0
		}
		x.kept = append(x.kept, p[:n]...)
		return n
	}
	n := a.up.SendData(p)
	x.fed = x.fed || n > 0
	if !x.keep {
		return n
	}
	if len(x.kept)+n > maxRetry {
		x.forgetBody()
		return n
	}
	x.kept = append(x.kept, p[:n]...)
	x.passed = len(x.kept)
	return n
}

// forgetBody gives up the possibility of a retry.
func (x *exchange) forgetBody() {
	x.keep = false
	x.kept = append(x.kept[:0], x.kept[x.passed:]...)
	x.passed = 0
}

// End implements message.Taker.
func (x *exchange) End(trailer *message.Header) {
	if x.ended || x.stage == over {
		return
	}
	x.ended = true
	x.wholeAt = x.w.loop.Now()
	x.whole.Stop()
	if trailer != nil {
		x.trailed = true
		x.trailer.Copy(trailer)
	}
	for _, m := range x.mirrors {
		m.finish()
	}
	if x.watch != nil {
		x.watch.check(x)
	}
	x.startTimeout()
	x.push()
	x.settle()
}

// Failed implements message.Taker: the client is gone.
func (x *exchange) Failed(error) {
	if x.stage == over {
		return
	}
	x.Flags |= filter.DownstreamReset
	if x.Details == "" {
		x.Details = "downstream_remote_disconnect"
	}
	x.finish(false)
}

// Room implements message.Taker: the client takes more of the answer.
func (x *exchange) Room() {
	switch {
	case !x.upstream:
		x.pushReply()
	case x.try != nil && x.try.open:
		x.try.up.Resume()
	}
}

// push sends what is kept of the request's body, and its end.
func (x *exchange) push() {
	a := x.try
	if a == nil || !a.open || a.sentEnd {
		return
	}
	for x.passed < len(x.kept) {
		n := a.up.SendData(x.kept[x.passed:])
		x.passed += n
		if n == 0 {
			return
		}
		x.fed = true
	}
	if !x.keep {
		x.kept, x.passed = x.kept[:0], 0
	}
	if !x.ended {
		x.down.Resume()
		return
	}
	a.sentEnd = true
	if x.trailed {
		a.up.SendEnd(&x.trailer)
	} else {
		a.up.SendEnd(nil)
	}
	x.settle()
}

// settle ends the exchange when the answer is complete, and of a tunnel the other direction too.
func (x *exchange) settle() {
	if x.stage == answering && x.answered && (!x.tunnelled() || x.try.sentEnd) {
		x.finish(true)
	}
}

// tunnelled says that the exchange has become a tunnel.
func (x *exchange) tunnelled() bool { return x.try != nil && x.try.tunnel }

// finish ends the exchange, however far it has come. whole says that the client has its answer.
func (x *exchange) finish(whole bool) {
	if x.stage == over {
		return
	}
	x.stage = over
	x.total.Stop()
	x.pause.Stop()
	if x.cancel != nil {
		x.cancel()
	}
	x.limit.Stop()
	x.whole.Stop()
	x.idle.Stop()
	x.endRetry()
	x.dropTry(errGivenUp)
	for _, m := range x.mirrors {
		m.leave()
	}
	for i := x.step - 1; i >= 0; i-- {
		if f, ok := x.chain.Filters[i].(filter.Ending); ok {
			f.End(&x.Exchange)
		}
	}
	for _, k := range x.calls {
		k.drop()
	}
	for _, o := range x.waits {
		o.done = nil
	}
	x.record()
	if !whole {
		x.down.Reset(errGivenUp)
	}
	// Callers up the stack may still look at it in this turn.
	x.w.loop.AtTurnEnd(x)
}

// CommitTurn implements loop.Committer: the exchange is ready for another request.
func (x *exchange) CommitTurn() {
	w := x.w
	w.open.Add(-1)
	if cap(x.kept) > keptCap {
		x.kept = nil
	}
	x.trailer.Reset()
	x.resp.Reset()
	x.Exchange.Reset()
	clear(x.mirrors)
	clear(x.used)
	clear(x.calls)
	clear(x.waits)
	*x = exchange{
		Exchange: x.Exchange, trailer: x.trailer, resp: x.resp, kept: x.kept[:0], mirrors: x.mirrors[:0], used: x.used[:0], calls: x.calls[:0], waits: x.waits[:0],
	}
	if len(w.spare) < maxSpare {
		w.spare = append(w.spare, x)
	}
}

// bodyWatch waits for a part of the request's body on behalf of a filter.
type bodyWatch struct {
	limit int
	done  func(body []byte, whole bool)
}

// Body implements filter.Host.
func (x *exchange) Body(limit int, done func(body []byte, whole bool)) {
	x.watch = &bodyWatch{min(limit, maxHeld-1), done}
	b := x.watch
	x.w.later(func() {
		if x.watch == b {
			b.check(x)
		}
	})
}

func (b *bodyWatch) check(x *exchange) {
	if !x.ended && len(x.kept) <= b.limit {
		return
	}
	x.watch = nil
	b.done(append([]byte{}, x.kept[:min(len(x.kept), b.limit)]...), x.ended && len(x.kept) <= b.limit)
}

var _ route.Values = (*exchange)(nil)
