package forward

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/handshake"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/accesslog"
)

// worker is one event loop with what is bound to it: tunnels of clients, requests, connections to endpoints. All fields
// are the loop's unless said otherwise.
type worker struct {
	// immutable
	p    *Proxy
	id   int
	loop *loop.Loop
	rand *rand.Rand

	server     *hbone.Server     // tunnels of clients
	pool       *hbone.Pool       // tunnels to endpoints
	ups        upstreams         // HTTP connections to endpoints
	acceptors  []*acceptor       // on the first worker only
	silent     *handshake.Silent // accepted, and nothing heard yet
	deaf       bool              // takes no more of them
	spare      []*exchange       // to be used again
	spareTries []*attempt
	conns      map[*inbound]struct{}
	shared     map[any]*shared // calls that several exchanges wait for, by their key
	broom      loop.Timer
	closed     bool

	now    time.Duration // when dateAt was made
	dateAt string
	line   []byte // of an access log, being made
	entry  accesslog.Entry
	labels telemetry.HTTPLabels // of a metric, being looked up

	outboxes       map[any]box // for collectors, by configuration
	spans, entries exports
	draining       bool

	// any goroutine
	open    atomic.Int32 // connections and requests under way
	carried atomic.Int32 // connections
	waits   atomic.Int32 // requests that have waited for endpoints
}

func newWorker(p *Proxy, id int) (*worker, error) {
	l, err := loop.New(loop.Config{Name: fmt.Sprintf("worker-%d", id), Logger: p.log, Hold: loop.DefaultHold})
	if err != nil {
		return nil, err
	}
	w := &worker{p: p, id: id, loop: l, rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), conns: map[*inbound]struct{}{}, shared: map[any]*shared{}, silent: handshake.NewSilent(l, p.cfg.ConnectTimeout)}
	w.spans, w.entries = exports{what: "spans", counts: p.spans}, exports{what: "entries of access logs", counts: p.entries}
	w.ups.init(w)
	pc := p.cfg.Pool
	pc.Dial = w.dialTunnel
	w.pool = hbone.NewPool(l, pc)
	sc := p.cfg.Server
	sc.Handler = w
	w.server = hbone.NewServer(l, sc)
	return w, nil
}

// sweepEvery is how often connections to endpoints that are gone are looked for.
const sweepEvery = 2 * time.Second

// Expired implements loop.TimerHandler.
func (w *worker) Expired(*loop.Timer) {
	w.ups.sweep()
	w.loop.Start(&w.broom, sweepEvery, w)
}

// later runs f in the next turn.
func (w *worker) later(f func()) { w.loop.Inject(f) }

// date is the value of a date header, made anew once a second.
func (w *worker) date() string {
	if now := w.loop.Now(); w.dateAt == "" || now-w.now >= time.Second {
		w.now, w.dateAt = now, time.Now().UTC().Format(http.TimeFormat)
	}
	return w.dateAt
}

// drain has clients go elsewhere: no more requests on their connections, but for the first of one that comes yet.
func (w *worker) drain() {
	w.draining = true
	for c := range w.conns {
		c.drain()
	}
	w.flushOutboxes()
}

// drainTunnels is the second step: no more connections either.
func (w *worker) drainTunnels() {
	w.server.Drain()
	for c := range w.conns {
		c.drain()
	}
}

// close ends everything at once.
func (w *worker) close() {
	w.closed = true
	w.broom.Stop()
	for c := range w.conns {
		c.abort(errGivenUp)
	}
	w.ups.close()
	w.server.Close()
	w.pool.Close()
}
