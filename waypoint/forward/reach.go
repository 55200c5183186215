package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
)

// version says what will be spoken on a connection, for TLS to agree on.
type version uint8

const (
	http1Only version = iota
	http2Only
	httpNegotiated
	notHTTP
)

// way says which connection to an endpoint is wanted.
type way struct {
	host    *cluster.Host
	cluster *cluster.Cluster
	// dest is where the client wanted to go, for endpoints without an address of their own and for the PROXY protocol;
	// client is its address, not valid if there is none.
	dest, client netip.AddrPort
	// name is the host that the request names, if TLS is to go by it.
	name string
	http version
}

// reaching is a connection that is being made: the way to the endpoint, then the PROXY protocol's header, then TLS. Loop
// only.
type reaching struct {
	way
	w     *worker
	until time.Duration // the end of the connect timeout, of loop.Now
	done  func(p loop.Pipe, alpn string, err error)
}

// reach opens a byte stream to an endpoint: through a tunnel to its pod, or straight. done is called once, later; alpn is
// the protocol that TLS has agreed on, or "".
func (w *worker) reach(y way, done func(p loop.Pipe, alpn string, err error)) {
	r := &reaching{way: y, w: w, until: w.loop.Now() + y.cluster.ConnectTimeout, done: done}
	e := y.host.Endpoint()
	switch e.Via {
	case cluster.Direct:
		w.connect(e.Addr, y.cluster.ConnectTimeout, r.connected)
	case cluster.HBONE:
		to := e.Tunnel
		if !to.IsValid() {
			to = y.dest
		}
		w.tunnel(to, e.Waypoint, y.cluster.ConnectTimeout, r.tunnelled)
	default:
		err := fmt.Errorf("endpoints behind the internal listener %q are not supported", e.Listener)
		w.later(func() { r.fail(err) })
	}
}

// fail reports an error.
func (r *reaching) fail(err error) {
	var d *dialError
	if !errors.As(err, &d) {
		timeout := errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, context.DeadlineExceeded)
		err = &dialError{timeout: timeout, err: err}
	}
	r.done(nil, "", err)
}

// connected has a socket to the endpoint.
func (r *reaching) connected(f *loop.FD, err error) {
	if err == nil {
		keepAlive(f.Fd(), r.cluster.Keepalive)
		if err = r.announce(f); err != nil {
			f.Reset()
		}
	}
	switch {
	case err != nil:
		r.fail(err)
	case r.host.Transport.TLS == nil:
		r.done(loop.NewPipe(f), "", nil)
	default:
		r.secure(f.Detach(), nil)
	}
}

// keepAlive sets the options of TCP keep-alive; what is not said stays the system's.
func keepAlive(fd int, k cluster.Keepalive) {
	if !k.On {
		return
	}
	set := func(level, name, v int) {
		if v > 0 {
			unix.SetsockoptInt(fd, level, name, v)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	set(unix.IPPROTO_TCP, unix.TCP_KEEPCNT, k.Probes)
	set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(k.Idle/time.Second))
	set(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(k.Interval/time.Second))
}

// tunnelled has a stream to the endpoint. TLS in it needs a descriptor: a pair of sockets, one of which is relayed to the
// stream.
func (r *reaching) tunnelled(p loop.Pipe, err error) {
	if err == nil {
		if err = r.announce(p); err != nil {
			p.Reset()
		}
	}
	switch {
	case err != nil:
		r.fail(err)
	case r.host.Transport.TLS == nil:
		r.done(p, "", nil)
	default:
		r.bridge(p)
	}
}

// bridge has TLS done over a pair of sockets.
func (r *reaching) bridge(p loop.Pipe) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.Reset()
		r.fail(err)
		return
	}
	f, err := r.w.loop.Add(fds[0], nil)
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		p.Reset()
		r.fail(err)
		return
	}
	r.secure(fds[1], newRelay(loop.NewPipe(f), p, nil, 0, nil))
}

// announce writes the PROXY protocol's header. It is the first thing on the connection, which has room for it.
func (r *reaching) announce(to io.Writer) error {
	v := r.host.Transport.Proxy
	if v == 0 {
		return nil
	}
	h := proxyHeader(v, r.client, r.dest)
	n, err := to.Write(h)
	if err == nil && n < len(h) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("write PROXY protocol header: %w", err)
	}
	return nil
}

// secure does the client's handshake on fd, which it takes over, on a goroutine. b is the relay behind fd, if there is one.
func (r *reaching) secure(fd int, b *relay) {
	left := r.until - r.w.loop.Now()
	p := r.w.p
	if p.ctx.Err() != nil {
		r.secured(fd, b, nil, p.ctx.Err())
		return
	}
	p.helpers.Go(func() {
		ctx, cancel := context.WithTimeout(p.ctx, left)
		defer cancel()
		var c *looptls.Conn
		cfg, err := p.clientTLS(ctx, &r.way)
		if err == nil {
			c, err = looptls.Client(ctx, fd, cfg)
		}
		r.w.loop.Inject(func() { r.secured(fd, b, c, err) })
	})
}

// secured has the outcome of the handshake.
func (r *reaching) secured(fd int, b *relay, c *looptls.Conn, err error) {
	var p loop.Pipe
	if err == nil && r.w.closed {
		err = errGivenUp
	}
	if err == nil {
		p, err = looptls.NewPipe(r.w.loop, fd, c)
	}
	if err != nil {
		unix.Close(fd)
		if b != nil {
			b.end(err)
		}
		r.fail(err)
		return
	}
	if b != nil {
		p = &bridged{Pipe: p, relay: b}
	}
	r.done(p, c.State().NegotiatedProtocol, nil)
}

// bridged is TLS in a tunnel: what ends the one ends the other.
type bridged struct {
	loop.Pipe
	relay  *relay
	linger loop.Timer
}

// bridgeLinger is how long a tunnel may go on when the TLS in it was closed.
const bridgeLinger = 20 * time.Second

// Close implements loop.Pipe.
func (b *bridged) Close() error {
	if !b.relay.over && !b.linger.Running() {
		b.Loop().Start(&b.linger, bridgeLinger, b)
		b.relay.done = func(int64, int64, error) { b.linger.Stop() }
	}
	return b.Pipe.Close()
}

// Reset implements loop.Pipe.
func (b *bridged) Reset() error {
	err := b.Pipe.Reset()
	b.relay.end(errGivenUp)
	return err
}

// Expired implements loop.TimerHandler: the peer has not ended its direction of the tunnel.
func (b *bridged) Expired(*loop.Timer) { b.relay.end(errIdle) }

// tunnel opens a stream to a pod's port.
func (w *worker) tunnel(to, waypoint netip.AddrPort, timeout time.Duration, done func(loop.Pipe, error)) {
	t, err := w.p.targetOf(to.Addr(), waypoint)
	if err != nil {
		w.later(func() { done(nil, &dialError{err: err}) })
		return
	}
	o := &opener{w: w, done: done}
	o.opening = w.pool.Open(t.key, t, &hbone.Request{Authority: to.String()}, o)
	w.loop.Start(&o.timer, timeout, o)
}

// opener waits for a stream of a tunnel.
type opener struct {
	w       *worker
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
	o.done(nil, &dialError{err: err})
}

// Expired implements loop.TimerHandler.
func (o *opener) Expired(*loop.Timer) {
	o.opening.Cancel()
	o.done(nil, &dialError{timeout: true, err: errors.New("timed out")})
}

// splitAuthority takes an authority apart. The host is lower case and without brackets; port is 0 if there is none, or none
// that is a port.
func splitAuthority(a string) (host string, port uint16) {
	host = a
	if i := strings.LastIndexByte(a, ':'); i >= 0 && (i == strings.IndexByte(a, ':') || a[0] == '[' && a[i-1] == ']') {
		host = a[:i]
		if n, err := strconv.ParseUint(a[i+1:], 10, 16); err == nil {
			port = uint16(n)
		}
	}
	if n := len(host); n > 2 && host[0] == '[' && host[n-1] == ']' {
		host = host[1 : n-1]
	}
	return strings.ToLower(host), port
}
