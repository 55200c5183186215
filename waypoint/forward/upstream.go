package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/http2"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// dialError says that there is no connection to an endpoint.
type dialError struct {
	addr    string
	timeout bool
	err     error
}

// Error implements error.
func (e *dialError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *dialError) Unwrap() error { return e.err }

// upstreams are a worker's HTTP connections to endpoints. Loop only.
type upstreams struct {
	w     *worker
	pools map[poolKey]*pool
}

type poolKey struct {
	host  *cluster.Host
	dest  netip.AddrPort // of an endpoint that is wherever the client wanted to go; else not valid
	http2 bool
}

// pool is the connections to one endpoint, for one version of HTTP.
type pool struct {
	ups     *upstreams
	key     poolKey
	cluster *cluster.Cluster
	links   []*link    // the last one used is at the end
	waiting []*attempt // first come, first served
	dialing int
}

// link is one connection to an endpoint.
type link struct {
	pool    *pool
	conn    message.ClientConn
	streams int
	served  int // since the beginning
	idle    loop.Timer
	born    time.Duration
	gone    bool
	retired bool // takes no new requests
}

func (u *upstreams) init(w *worker) {
	u.w, u.pools = w, map[poolKey]*pool{}
}

// want finds a connection for an attempt, now or later.
func (u *upstreams) want(t *attempt) {
	key := t.key()
	p := u.pools[key]
	if p == nil {
		p = &pool{ups: u, key: key, cluster: t.cluster}
		u.pools[key] = p
	}
	p.waiting = append(p.waiting, t)
	p.serve()
}

// key says which connections can carry the attempt.
func (t *attempt) key() poolKey {
	k := poolKey{host: t.host, http2: t.cluster.HTTP2(t.req.Proto == message.HTTP2)}
	if e := t.host.Endpoint(); e.Via == cluster.HBONE && !e.Tunnel.IsValid() {
		k.dest = t.dest
	}
	return k
}

// forget takes an attempt out of the queue.
func (u *upstreams) forget(t *attempt) {
	p := u.pools[t.key()]
	if p == nil {
		return
	}
	for i, o := range p.waiting {
		if o == t {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			return
		}
	}
}

// serve gives connections to those who wait, and dials for the rest.
func (p *pool) serve() {
	for len(p.waiting) > 0 {
		l := p.free()
		if l == nil {
			break
		}
		t := p.waiting[0]
		n := copy(p.waiting, p.waiting[1:])
		p.waiting[n] = nil
		p.waiting = p.waiting[:n]
		t.start(l)
	}
	want := len(p.waiting)
	if p.key.http2 {
		want = min(want, 1)
	}
	for p.dialing < want {
		if !p.cluster.BeginConnection() {
			if p.dialing == 0 && len(p.links) == 0 {
				p.refuse(failure{kind: route.Overflow, reason: reasonOverflow})
			}
			return
		}
		p.dialing++
		p.dial()
	}
}

// free is a connection that takes a request now, the one used last; nil: there is none.
func (p *pool) free() *link {
	for i := len(p.links) - 1; i >= 0; i-- {
		if l := p.links[i]; !l.retired && l.conn.Room() > 0 {
			return l
		}
	}
	return nil
}

// dial opens a connection, and makes a link of it.
func (p *pool) dial() {
	p.ups.w.reach(p.key.host, p.cluster, p.key.dest, func(pipe loop.Pipe, err error) {
		p.dialing--
		if err != nil {
			p.cluster.EndConnection()
			p.refuse(failureOf(err))
			p.tidy()
			return
		}
		l := &link{pool: p, born: p.ups.w.loop.Now()}
		if p.key.http2 {
			l.conn = http2.NewClient(pipe, http2.ClientConfig{}, l)
		} else {
			l.conn = http1.NewClient(pipe, http1.ClientConfig{}, l)
		}
		p.links = append(p.links, l)
		p.serve()
		l.rest()
	})
}

// refuse fails all who wait.
func (p *pool) refuse(f failure) {
	list := p.waiting
	p.waiting = nil
	for _, t := range list {
		t.failLater(f)
	}
}

// tidy forgets a pool that nobody needs.
func (p *pool) tidy() {
	if len(p.links) == 0 && len(p.waiting) == 0 && p.dialing == 0 {
		delete(p.ups.pools, p.key)
	}
}

// begun counts a stream.
func (l *link) begun(*attempt) {
	l.streams++
	l.served++
	l.idle.Stop()
	if m := l.pool.cluster.MaxRequestsPerConnection; m > 0 && l.served >= m {
		l.retire()
	}
	if m := l.pool.cluster.MaxConnectionDuration; m > 0 && l.pool.ups.w.loop.Now()-l.born >= m {
		l.retire()
	}
}

// ended counts a stream that is over.
func (l *link) ended(*attempt) {
	l.streams--
	l.rest()
}

// rest starts the idle time of a connection that nothing uses.
func (l *link) rest() {
	if l.streams > 0 || l.gone {
		return
	}
	if l.pool.key.host.Gone() {
		l.retire()
		return
	}
	d := l.pool.cluster.IdleTimeout
	if d <= 0 {
		d = l.pool.ups.w.p.cfg.IdleUpstream
	}
	l.pool.ups.w.loop.Start(&l.idle, d, l)
}

// Expired implements loop.TimerHandler: the connection has been idle for long enough.
func (l *link) Expired(*loop.Timer) { l.retire() }

// retire lets the connection's streams end, and then closes it.
func (l *link) retire() {
	if !l.retired {
		l.retired = true
		l.conn.Drain()
	}
}

// Closed implements message.ConnHandler.
func (l *link) Closed(error) {
	if l.gone {
		return
	}
	l.gone, l.retired = true, true
	l.idle.Stop()
	p := l.pool
	for i, o := range p.links {
		if o == l {
			p.links = append(p.links[:i], p.links[i+1:]...)
			break
		}
	}
	p.cluster.EndConnection()
	p.serve()
	p.tidy()
}

// Changed implements message.ConnHandler.
func (l *link) Changed() { l.pool.serve() }

// sweep lets the connections to endpoints that are gone end.
func (u *upstreams) sweep() {
	for k, p := range u.pools {
		if k.host.Gone() {
			for _, l := range slices.Clone(p.links) {
				l.retire()
			}
		}
	}
}

// close ends everything at once.
func (u *upstreams) close() {
	for _, p := range u.pools {
		p.refuse(failure{reason: reasonTermination})
		for len(p.links) > 0 {
			p.links[len(p.links)-1].conn.Close(errGivenUp)
		}
	}
}

// reach opens a byte stream to an endpoint: through a tunnel to its pod, or straight. dest is where the client wanted to
// go, for endpoints that have no address of their own. done is called once, later.
func (w *worker) reach(h *cluster.Host, c *cluster.Cluster, dest netip.AddrPort, done func(loop.Pipe, error)) {
	e := h.Endpoint()
	switch e.Via {
	case cluster.Direct:
		w.connect(e.Addr, c.ConnectTimeout, func(f *loop.FD, err error) {
			if err != nil {
				done(nil, &dialError{addr: e.Addr.String(), timeout: errors.Is(err, unix.ETIMEDOUT), err: err})
				return
			}
			done(loop.NewPipe(f), nil)
		})
	case cluster.HBONE:
		to := e.Tunnel
		if !to.IsValid() {
			to = dest
		}
		w.tunnel(to, e.Waypoint, c.ConnectTimeout, done)
	default:
		w.later(func() {
			done(nil, &dialError{addr: e.String(), err: fmt.Errorf("endpoints behind the internal listener %q are not supported", e.Listener)})
		})
	}
}

// tunnel opens a stream to a pod's port.
func (w *worker) tunnel(to, waypoint netip.AddrPort, timeout time.Duration, done func(loop.Pipe, error)) {
	t, err := w.p.targetOf(to.Addr(), waypoint)
	if err != nil {
		w.later(func() { done(nil, &dialError{addr: to.String(), err: err}) })
		return
	}
	o := &opener{w: w, addr: to, done: done}
	o.opening = w.pool.Open(t.key, t, &hbone.Request{Authority: to.String()}, o)
	w.loop.Start(&o.timer, timeout, o)
}

// opener waits for a stream of a tunnel.
type opener struct {
	w       *worker
	addr    netip.AddrPort
	opening *hbone.Opening
	timer   loop.Timer
	done    func(loop.Pipe, error)
}

// StreamOpened implements hbone.OpenHandler.
func (o *opener) StreamOpened(s *hbone.Stream, _ *hbone.Response) {
	o.timer.Stop()
	o.done(s.Pipe(), nil)
}

// StreamFailed implements hbone.OpenHandler.
func (o *opener) StreamFailed(err error) {
	o.timer.Stop()
	o.done(nil, &dialError{addr: o.addr.String(), err: err})
}

// Expired implements loop.TimerHandler.
func (o *opener) Expired(*loop.Timer) {
	o.opening.Cancel()
	o.done(nil, &dialError{addr: o.addr.String(), timeout: true, err: errors.New("timed out")})
}
