package dns

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxConns is how many connections of a pod are served at a time; more wait in the listener.
	maxConns = 64
	// maxPipelined is how many queries of a connection are under way at a time (D10).
	maxPipelined = 32
	// acceptPause is how long nothing is accepted when descriptors have run out.
	acceptPause = 100 * time.Millisecond
)

// takeStreams accepts the pod's connections until the pod is stopped.
func (p *pod) takeStreams() {
	rc, err := p.streams.SyscallConn()
	if err != nil {
		return
	}
	for {
		select {
		case p.conns <- struct{}{}:
		case <-p.ctx.Done():
			return
		}
		fd, err := -1, error(nil)
		if rerr := rc.Read(func(l uintptr) bool {
			fd, err = accept(int(l))
			return !errors.Is(err, unix.EAGAIN)
		}); rerr != nil {
			<-p.conns
			return // closed
		}
		if err != nil {
			<-p.conns
			p.s.log.Warn("connection not accepted", "src.workload", p.name, "src.namespace", p.namespace, "err", err)
			if !sleep(p.ctx, acceptPause) {
				return
			}
			continue
		}
		p.wg.Go(func() {
			defer func() { <-p.conns }()
			p.serveStream(fd)
		})
	}
}

// drainStreams accepts what waits.
func (p *pod) drainStreams() {
	rc, err := p.streams.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(l uintptr) {
		for {
			fd, err := accept(int(l))
			if err != nil {
				return
			}
			select {
			case p.conns <- struct{}{}:
				p.wg.Go(func() {
					defer func() { <-p.conns }()
					p.serveStream(fd)
				})
			default:
				unix.Close(fd)
				return
			}
		}
	})
}

func accept(l int) (int, error) {
	fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	return fd, err
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serveStream serves a connection, which it closes.
func (p *pod) serveStream(fd int) {
	f := os.NewFile(uintptr(fd), "dns client")
	to, err := localAddr(fd)
	if err != nil || to.Port() != port {
		f.Close() // not captured: somebody found the listener's own port
		return
	}
	p.serveClient(f, to)
}

// serveClient serves a connection to the nameserver to, and closes it.
func (p *pod) serveClient(f *os.File, to netip.AddrPort) {
	defer f.Close()
	unwatch := context.AfterFunc(p.ctx, func() { f.Close() })
	defer unwatch()
	c := &client{p: p, f: f, turns: make(chan struct{}, maxPipelined)}
	c.serve(to)
	for range maxPipelined {
		c.turns <- struct{}{} // until all answers are written
	}
}

// client is a connection of a pod.
type client struct {
	p     *pod
	f     *os.File
	turns chan struct{} // one for each query under way
	mu    sync.Mutex    // held while an answer is written
	taken bool          // guarded by mu: the nameserver's by now
}

// serve reads queries until the connection is idle, or ends, or becomes the nameserver's.
func (c *client) serve(to netip.AddrPort) {
	for c.p.taking.Err() == nil {
		if c.f.SetReadDeadline(time.Now().Add(c.p.s.cfg.Timeout)) != nil {
			return
		}
		b, err := readMessage(c.f)
		if err != nil || !isQuery(b) {
			return
		}
		c.turns <- struct{}{}
		over := make(chan struct{})
		finish := func() { <-c.turns; close(over) }
		q := query{b: b, to: to, stream: true, reply: func(b []byte) { c.write(b); finish() }}
		if isStream(b) {
			q.take = func(f *os.File) { c.join(f); finish() }
		}
		c.p.serve(q)
		if q.take != nil {
			<-over
			return
		}
	}
}

// write writes an answer. Who does not read it loses the connection.
func (c *client) write(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken {
		return
	}
	err := c.f.SetWriteDeadline(time.Now().Add(c.p.s.cfg.Timeout))
	if err == nil {
		err = writeMessage(c.f, b)
	}
	if err != nil {
		c.f.Close()
	}
}

// join copies between the client and the nameserver until both have nothing to say, or one is idle.
func (c *client) join(upstream *os.File) {
	c.mu.Lock()
	c.taken = true
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, dir := range [][2]*os.File{{c.f, upstream}, {upstream, c.f}} {
		wg.Go(func() {
			copyIdle(dir[1], dir[0], c.p.s.cfg.Timeout)
			shutdown(dir[1])
		})
	}
	wg.Wait()
}

// copyIdle copies until the end, or until nothing moves for a while.
func copyIdle(to, from *os.File, idle time.Duration) {
	buf := make([]byte, 16<<10)
	for {
		if from.SetReadDeadline(time.Now().Add(idle)) != nil {
			return
		}
		n, err := from.Read(buf)
		if n > 0 {
			if to.SetWriteDeadline(time.Now().Add(idle)) != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// shutdown says that nothing more comes.
func shutdown(f *os.File) {
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
}

// localAddr is where a connection was to go.
func localAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addrPort(sa), nil
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
