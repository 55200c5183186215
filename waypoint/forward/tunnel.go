package forward

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/looptls"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// hbonePort is the port of node proxies and waypoints.
const hbonePort = 15008

// target says how a tunnel to an endpoint is opened.
type target struct {
	key    hbone.Key
	expect []spiffe.ID // who may answer
}

// targetOf is the tunnel to a pod, or to the waypoint via if that is valid. The peer has to prove the identity that the
// mesh's records give to the pod: without a record nobody is trusted.
func (p *Proxy) targetOf(pod netip.Addr, via netip.AddrPort) (*target, error) {
	dial := netip.AddrPortFrom(pod, hbonePort)
	if via.IsValid() {
		dial = via
	}
	w := p.cfg.Workloads.View().Workload(p.cfg.Network, dial.Addr())
	if w == nil {
		return nil, fmt.Errorf("no workload record for endpoint %v: its identity cannot be checked", dial.Addr())
	}
	if w.Protocol != workload.HBONE {
		return nil, fmt.Errorf("endpoint %v is named as a mesh pod, and its workload record says that it is not", dial.Addr())
	}
	expect := []spiffe.ID{w.ID}
	return &target{key: hbone.Key{Source: p.principal, Dest: w.ID.String(), Addr: dial}, expect: expect}, nil
}

// dialTunnel is the pool's Dial hook.
func (w *worker) dialTunnel(key hbone.Key, tag any, done func(int, *looptls.Conn, error)) {
	t := tag.(*target)
	w.connect(key.Addr, w.p.cfg.ConnectTimeout, func(f *loop.FD, err error) {
		if err != nil {
			done(-1, nil, err)
			return
		}
		fd := f.Detach()
		w.p.helpers.Go(func() {
			conn, err := w.p.connectTLS(t, fd)
			if err != nil {
				unix.Close(fd)
				fd = -1
			}
			done(fd, conn, err)
		})
	})
}

// connectTLS does the client's handshake.
func (p *Proxy) connectTLS(t *target, fd int) (*looptls.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.ConnectTimeout)
	defer cancel()
	s, err := p.certificate(ctx)
	if err != nil {
		return nil, err
	}
	return looptls.Client(ctx, fd, svid.ClientConfig(s, t.expect, p.cfg.TLS))
}

// connecting is one non-blocking connect under way. Loop only.
type connecting struct {
	fd    loop.FD
	timer loop.Timer
	done  func(*loop.FD, error)
}

// connect dials addr; done is called once, later, on the loop.
func (w *worker) connect(addr netip.AddrPort, timeout time.Duration, done func(*loop.FD, error)) {
	c := &connecting{done: done}
	if err := w.begin(c, addr); err != nil {
		w.loop.Inject(func() { done(nil, err) })
		return
	}
	w.loop.Start(&c.timer, timeout, c)
}

func (w *worker) begin(c *connecting, addr netip.AddrPort) error {
	fd, err := unix.Socket(loop.Family(addr), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err = unix.Connect(fd, loop.Sockaddr(addr)); err == unix.EINPROGRESS {
		err = nil
	}
	if err == nil {
		err = w.loop.Register(&c.fd, fd, c)
	}
	if err != nil {
		unix.Close(fd)
	}
	return err
}

// Ready implements loop.Handler.
func (c *connecting) Ready(*loop.FD) {
	switch err := c.fd.ConnectError(); err {
	case nil:
		c.timer.Stop()
		c.done(&c.fd, nil)
	case loop.ErrAgain:
	default:
		c.Abort(err)
	}
}

// Expired implements loop.TimerHandler.
func (c *connecting) Expired(*loop.Timer) { c.Abort(unix.ETIMEDOUT) }

// Abort implements loop.Aborter.
func (c *connecting) Abort(err error) {
	c.timer.Stop()
	c.fd.Close()
	c.done(nil, err)
}
