package proxy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/looptls"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// poolKey is the identity of a tunnel (H20).
type poolKey = hbone.Key

// peerSpec says how to dial a tunnel of a pool key. Not changed once made.
type peerSpec struct {
	pod    *Pod
	source spiffe.ID
	expect []spiffe.ID // who may answer
}

// tunnelDial is one tunnel on its way. Loop only, apart from the handshake.
type tunnelDial struct {
	dial
	w    *worker
	t    *peerSpec
	addr netip.AddrPort
	done func(int, *looptls.Conn, error)
	told bool // done was called, or a goroutine will call it
}

// dialTunnel is the pool's Dial hook: a TCP connection from the pod's namespace, then TLS under the pod's identity.
func (w *worker) dialTunnel(key poolKey, tag any, done func(int, *looptls.Conn, error)) {
	t := tag.(*peerSpec)
	fd, err := w.p.sock().Upstream(t.pod, key.Addr)
	if err != nil {
		done(-1, nil, err)
		return
	}
	d := &tunnelDial{w: w, t: t, addr: key.Addr, done: done}
	d.start(w, fd, d)
}

// dialed implements dialHandler.
func (d *tunnelDial) dialed(err error) {
	if d.told {
		return
	}
	d.told = true
	if err != nil {
		d.done(-1, nil, err)
		return
	}
	fd := d.fd.Detach()
	ok := d.w.p.goHelper(func() {
		conn, err := d.w.p.connectTLS(d.t, fd)
		if err != nil {
			unix.Close(fd)
			d.done(-1, nil, err)
			return
		}
		d.done(fd, conn, nil)
	})
	if !ok {
		unix.Close(fd)
		d.done(-1, nil, errDrained)
	}
}

// connectTLS does the client's handshake (H1).
func (p *Proxy) connectTLS(t *peerSpec, fd int) (*looptls.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.ConnectTimeout)
	defer cancel()
	s, err := p.certificateOf(ctx, t.source)
	if err != nil {
		return nil, err
	}
	select {
	case p.connecting <- struct{}{}:
		defer func() { <-p.connecting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	conn, err := looptls.Client(ctx, fd, svid.ClientConfig(s, t.expect, p.cfg.TLS))
	if err != nil {
		return nil, handshakeError{err}
	}
	return conn, nil
}

// awaitRecord is the pod's entry in the workload table, after a wait of WorkloadWait if it is still to come. Blocks.
func (p *Proxy) awaitRecord(ctx context.Context, pod *Pod) (*workload.Workload, error) {
	if w := pod.record(p.cfg.Workloads.View()); w != nil {
		return w, nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.WorkloadWait)
	defer cancel()
	for {
		changed := *p.changes.Load() // before looking, so that no change is missed
		if w := pod.record(p.cfg.Workloads.View()); w != nil {
			return w, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errUnknownWorkload
		}
	}
}

// lookup is an address of a hostname, of the client's family if there is one (O22). Blocks.
func (p *Proxy) lookup(host string, v4 bool) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.ConnectTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("resolve %q: %w", host, err)
	}
	var best []netip.Addr
	for _, ip := range ips {
		if ip.Unmap().Is4() == v4 {
			best = append(best, ip.Unmap())
		}
	}
	if len(best) == 0 {
		best = ips
	}
	if len(best) == 0 {
		return netip.Addr{}, fmt.Errorf("resolve %q: no address", host)
	}
	return best[rand.IntN(len(best))].Unmap(), nil
}
