package forward

import (
	"errors"
	"io"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/http2"
	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// inbound is one CONNECT stream of a client: a connection to a service, whatever is spoken on it.
type inbound struct {
	w          *worker
	peer       *peer
	client     filter.Peer
	dest       netip.AddrPort
	serverName string // of a TLS connection
	snap       *Snapshot
	target     *listener.Target
	pipe       loop.Pipe
	first      []byte // read while the protocol was being found out
	quiet      loop.Timer
	age        loop.Timer // until it is old enough to be drained
	requests   int

	counted     []countedSeries // of the last requests
	nextCounted int

	http   serverConn // the codec, if the connection speaks HTTP
	chain  *listener.HTTP
	two    bool    // it speaks HTTP/2
	stream *stream // if it does not
	over   bool
}

// serverConn is what both codecs' server connections can do.
type serverConn interface {
	// Drain lets the requests under way end and then closes.
	Drain()
	// Close ends the connection at once.
	Close(err error)
}

// ServeConnect implements hbone.Handler.
func (w *worker) ServeConnect(st *hbone.Stream, req *hbone.Request) {
	snap := w.p.cfg.Snapshot.Load()
	if snap == nil {
		st.Reject(503)
		return
	}
	to, err := hbone.ParseAuthority(req.Authority)
	if err != nil {
		st.Reject(400)
		return
	}
	var target *listener.Target
	if !to.IsName() {
		target = snap.Listener.Lookup(to.AddrPort())
	}
	p := st.Conn().Tag().(*peer)
	if target == nil { // Envoy's NR: an address or port that is not one of the waypoint's
		w.p.log.Info("no service at this address and port", "client", p.addr, "identity", p.id, "authority", req.Authority)
		st.Reject(404)
		return
	}
	if o := w.p.lighter(w); o != nil && target.HTTP != nil && w.handOver(o, st, p, to.AddrPort(), snap, target) {
		return
	}
	st.Accept(nil)
	w.take(st.Pipe(), p, to.AddrPort(), snap, target)
}

// take begins a client's connection.
func (w *worker) take(pipe loop.Pipe, p *peer, dest netip.AddrPort, snap *Snapshot, target *listener.Target) {
	c := &inbound{
		w: w, peer: p, client: filter.Peer{Principal: p.name, Addr: p.addr}, dest: dest, snap: snap, target: target, pipe: pipe,
	}
	w.conns[c] = struct{}{}
	w.carried.Add(1)
	w.open.Add(1)
	c.begin()
}

// begin finds out what the connection speaks, unless its port says so.
func (c *inbound) begin() {
	t := c.target
	if t.HTTP == nil && t.H2C == nil && t.Names == nil {
		c.decided(plainTCP)
		return
	}
	c.pipe.SetHandler(c)
	if t.TCP != nil && !t.TCP.ReadsName { // who waits long enough must not get around a rule about names
		c.w.loop.Start(&c.quiet, c.w.p.cfg.DetectTimeout, c)
	}
	c.pipe.Wake()
}

// PipeReady implements loop.PipeHandler, for as long as the protocol is not known.
func (c *inbound) PipeReady() {
	for !c.over {
		buf := c.w.loop.Buffer()[:16<<10]
		n, err := c.pipe.Read(buf)
		if n > 0 {
			c.first = append(c.first, buf[:n]...)
		}
		switch proto := c.sniff(); {
		case proto != undecided:
			c.decided(proto)
			return
		case errors.Is(err, loop.ErrAgain):
			return
		case errors.Is(err, io.EOF):
			c.decided(plainTCP)
			return
		case err != nil:
			c.abort(err)
			return
		}
	}
}

// sniff looks at what has come.
func (c *inbound) sniff() protocol {
	if c.target.Names == nil || len(c.first) == 0 || c.first[0] != tlsHandshake {
		return sniff(c.first)
	}
	name, done, ok := hello(c.first)
	switch {
	case !done && ok && len(c.first) <= maxHello+5:
		return undecided
	case !done || !ok:
		return plainTCP
	}
	c.serverName = name
	return tlsProto
}

// Expired implements loop.TimerHandler: nothing that can be told apart has come. Server-first protocols end here.
func (c *inbound) Expired(*loop.Timer) { c.decided(plainTCP) }

// decided hands the connection to its codec.
func (c *inbound) decided(proto protocol) {
	c.quiet.Stop()
	t := c.target
	switch {
	case proto == tlsProto:
		if tcp := t.Names.Lookup(c.serverName); tcp != nil {
			c.serveTCP(tcp)
			return
		}
		c.abort(errNoChain)
	case proto == http2Proto && t.H2C != nil:
		c.serveHTTP(t.H2C, true)
	case t.HTTP != nil && (proto == http1Proto || t.TCP == nil): // a port that is HTTP by name: the codec says what is wrong
		c.serveHTTP(t.HTTP, t.HTTP.Codec == listener.HTTP2)
	case t.TCP != nil && t.TCP.ReadsName && len(c.first) > 0 && c.first[0] == tlsHandshake:
		c.abort(errUnreadable)
	case t.TCP != nil:
		c.serveTCP(t.TCP)
	default:
		c.abort(errNoChain)
	}
}

// serveHTTP has a codec serve the connection.
func (c *inbound) serveHTTP(h *listener.HTTP, two bool) {
	c.chain, c.two = h, two
	if len(h.Gates) > 0 {
		x := c.gated()
		for _, g := range h.Gates {
			if !g.Admit(x) {
				c.w.p.log.Info("connection refused", "client", c.client.Addr, "identity", c.client.Principal, "service", c.dest, "reason", x.Details)
				c.abort(errRefused)
				return
			}
		}
	}
	if two {
		c.http = http2.NewServer(c.rest(), http2.ServerConfig{
			MaxStreams: h.MaxStreams, Limits: http2.Limits{HeadBytes: h.MaxHeaderBytes, Fields: h.MaxHeaders, SlowHead: h.HeaderTimeout, Idle: h.IdleTimeout},
		}, c, c)
	} else {
		c.http = http1.NewServer(c.rest(), http1.ServerConfig{
			MaxHead: h.MaxHeaderBytes, MaxFields: h.MaxHeaders, HeadTimeout: h.HeaderTimeout, IdleTimeout: orNever(h.IdleTimeout),
		}, c, c)
	}
	if h.MaxConnectionDuration > 0 {
		c.w.loop.Start(&c.age, h.MaxConnectionDuration, (*ageEnd)(c))
	}
}

// orNever is a time for which 0 means no bound, as the codecs say it.
func orNever(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// ageEnd drains a connection that is old enough.
type ageEnd inbound

// Expired implements loop.TimerHandler.
func (a *ageEnd) Expired(*loop.Timer) { (*inbound)(a).drain() }

// gated is the connection as gates see it.
func (c *inbound) gated() *filter.Exchange {
	return &filter.Exchange{
		Req: &message.Request{}, Client: c.client, Local: c.w.p.principal, Dest: c.dest, ServerName: c.serverName, Now: time.Now(), Rand: c.w.rand,
	}
}

// errUnreadable ends connections whose server name a rule asks for and nobody can read.
var errUnreadable = errors.New("the beginning of TLS cannot be read")

// errNoChain ends connections of a protocol that the port has no chain for.
var errNoChain = errors.New("no filter chain for this protocol")

// rest is the pipe with what was read already in front.
func (c *inbound) rest() loop.Pipe {
	if len(c.first) == 0 {
		return c.pipe
	}
	p := &prefixed{Pipe: c.pipe, first: c.first}
	c.first = nil
	return p
}

// refresh has the next request go by the configuration that is in force now. A chain that is gone serves the connection to
// its end, which is near.
func (c *inbound) refresh() {
	snap := c.w.p.cfg.Snapshot.Load()
	if snap == c.snap {
		return
	}
	var h *listener.HTTP
	if t := snap.Listener.Lookup(c.dest); t != nil && c.two {
		h = t.H2C
	} else if t != nil {
		h = t.HTTP
	}
	if h == nil {
		c.drain()
		return
	}
	c.snap, c.chain = snap, h
}

// ServeRequest implements message.ServerHandler.
func (c *inbound) ServeRequest(s message.ServerStream) {
	c.refresh()
	c.requests++
	if n := c.chain.MaxRequestsPerConnection; n > 0 && c.requests >= n || c.w.draining {
		c.drain()
	}
	c.w.serve(c, s)
}

// Closed implements message.ConnHandler.
func (c *inbound) Closed(error) { c.end() }

// Changed implements message.ConnHandler.
func (c *inbound) Changed() {}

func (c *inbound) drain() {
	if c.http != nil {
		c.http.Drain()
	}
}

// abort ends the connection at once.
func (c *inbound) abort(err error) {
	if c.over {
		return
	}
	switch {
	case c.http != nil:
		c.http.Close(err)
	case c.stream != nil:
		c.stream.end(err)
	default:
		c.pipe.Reset()
	}
	c.end()
}

// end forgets the connection.
func (c *inbound) end() {
	if c.over {
		return
	}
	c.over = true
	c.uncount()
	c.quiet.Stop()
	c.age.Stop()
	delete(c.w.conns, c)
	c.w.carried.Add(-1)
	c.w.open.Add(-1)
}

// prefixed is a pipe whose first bytes have been read already.
type prefixed struct {
	loop.Pipe
	first []byte
}

// Read implements loop.Pipe.
func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) == 0 {
		return p.Pipe.Read(b)
	}
	n := copy(b, p.first)
	if p.first = p.first[n:]; len(p.first) == 0 {
		p.first = nil
	}
	return n, nil
}

// Readable implements loop.Pipe.
func (p *prefixed) Readable() bool { return len(p.first) > 0 || p.Pipe.Readable() }
