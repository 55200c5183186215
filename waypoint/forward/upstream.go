package forward

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/http2"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// dialError says that there is no connection to an endpoint.
type dialError struct {
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
	host   *cluster.Host
	dest   netip.AddrPort // where the client wanted to go, if that decides about the connection; else not valid
	client netip.AddrPort // likewise
	name   string         // of the TLS server, if the request decides about it
	http   version
}

// pool is the connections to one endpoint, for one version of HTTP.
type pool struct {
	ups     *upstreams
	key     poolKey
	cluster *cluster.Cluster
	links   []*link    // the last one used is at the end
	waiting []*attempt // first come, first served
	dialing int
	one     bool // a connection carries several requests, or may
}

// link is one connection to an endpoint.
type link struct {
	pool    *pool
	conn    message.ClientConn
	streams int
	served  int // since the beginning
	idle    loop.Timer
	age     loop.Timer
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
		key.name = strings.Clone(key.name)
		p = &pool{ups: u, key: key, cluster: t.cluster, one: key.http != http1Only}
		u.pools[key] = p
	}
	p.waiting = append(p.waiting, t)
	p.serve()
}

// key says which connections can carry the attempt.
func (t *attempt) key() poolKey {
	k := poolKey{host: t.host}
	tr := t.host.Transport
	switch {
	case tr.TLS != nil && t.cluster.Protocol == cluster.Negotiated:
		k.http = httpNegotiated
	case t.cluster.HTTP2(t.req.Proto == message.HTTP2):
		k.http = http2Only
	}
	if e := t.host.Endpoint(); e.Via == cluster.HBONE && !e.Tunnel.IsValid() {
		k.dest = t.dest
	}
	if tr.Proxy != 0 {
		k.dest, k.client = t.dest, t.client
	}
	if tr.TLS != nil && (t.cluster.AutoSNI || t.cluster.AutoSAN) {
		k.name, _ = splitAuthority(t.req.Authority)
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
	if p.one {
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
	k := &p.key
	y := way{host: k.host, cluster: p.cluster, dest: k.dest, client: k.client, name: k.name, http: k.http}
	p.ups.w.reach(y, func(pipe loop.Pipe, alpn string, err error) {
		p.dialing--
		if err != nil {
			p.cluster.EndConnection()
			p.refuse(failureOf(err))
			p.tidy()
			return
		}
		l := &link{pool: p}
		if p.one = k.http == http2Only || k.http == httpNegotiated && alpn == "h2"; p.one {
			l.conn = http2.NewClient(pipe, http2.ClientConfig{MaxStreams: p.cluster.MaxStreams}, l)
		} else {
			l.conn = http1.NewClient(pipe, http1.ClientConfig{}, l)
		}
		p.links = append(p.links, l)
		if d := p.cluster.MaxConnectionDuration; d > 0 {
			p.ups.w.loop.Start(&l.age, d, l)
		}
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

// Expired implements loop.TimerHandler: the connection has been idle, or there, for long enough.
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
	l.age.Stop()
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
