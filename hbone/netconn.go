package hbone

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
)

const (
	// netConnOut is the data that a NetConn takes ahead of what the tunnel has sent, in bytes.
	netConnOut = 256 << 10
	// netConnCredit is how much is read before the loop is told, in bytes.
	netConnCredit = 256 << 10
)

// NetConn is a stream as a net.Conn. All methods but those of the loop may be called from any goroutine.
type NetConn struct {
	s             *Stream
	l             *loop.Loop
	local, remote netip.AddrPort
	visitFn       func()

	mu       sync.Mutex
	cond     sync.Cond
	in, out  loop.Queue
	freed    int  // read, and the loop not told
	visiting bool // a visit of the loop is under way
	call     bool // ... or has to be asked for by unlock
	recvEnd  bool
	noWrite  bool // CloseWrite or Close was called
	closed   bool
	err      error // the stream was cut
	rd, wr   deadline
}

// deadline wakes waiters when it passes. Guarded by NetConn.mu.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// NetConn turns the stream into a connection for goroutines. It is called once, on the loop, instead of Join. The stream
// must have been accepted, or be accepted soon. The caller has to Close the result.
func (s *Stream) NetConn() *NetConn {
	n := &NetConn{s: s, l: s.c.l, recvEnd: s.recvEnd, err: s.err}
	n.cond.L = &n.mu
	n.visitFn = n.visit
	if sc := s.Conn(); sc != nil {
		n.local, n.remote = sc.local, sc.remote
	}
	for s.queue.Len() > 0 { // stays accounted for as buffered
		p := s.queue.Front()
		n.in.Append(p)
		s.queue.Discard(len(p))
	}
	s.watch = nil
	s.side = n
	s.drained()
	return n
}

// Read implements net.Conn.
func (n *NetConn) Read(p []byte) (int, error) {
	n.mu.Lock()
	defer n.unlock()
	for n.in.Len() == 0 {
		switch {
		case n.closed:
			return 0, net.ErrClosed
		case n.recvEnd:
			return 0, io.EOF
		case n.err != nil:
			return 0, n.err
		case n.rd.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		}
		n.cond.Wait()
	}
	k := n.in.Read(p)
	n.freed += k
	if n.freed >= netConnCredit || n.in.Len() == 0 {
		n.callLoop()
	}
	return k, nil
}

// Write implements net.Conn. It returns when the bytes are in the connection's buffer of 256 KiB.
func (n *NetConn) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.unlock()
	done := 0
	for done < len(p) {
		switch {
		case n.noWrite:
			return done, net.ErrClosed
		case n.err != nil:
			return done, n.err
		case n.wr.passed():
			return done, os.ErrDeadlineExceeded
		case n.out.Len() >= netConnOut && n.call:
			n.unlock()
			n.mu.Lock()
			continue
		case n.out.Len() >= netConnOut:
			n.cond.Wait()
			continue
		}
		k := min(len(p)-done, netConnOut-n.out.Len())
		n.out.Append(p[done : done+k])
		done += k
		n.callLoop()
	}
	return done, nil
}

// CloseWrite ends this direction with END_STREAM, behind what was written.
func (n *NetConn) CloseWrite() error {
	n.mu.Lock()
	defer n.unlock()
	n.noWrite = true
	n.callLoop()
	n.cond.Broadcast()
	return nil
}

// Close ends both directions: this one as CloseWrite does; the other with RST_STREAM if the peer sends, or has sent,
// anything that was not read.
func (n *NetConn) Close() error {
	n.mu.Lock()
	defer n.unlock()
	n.noWrite, n.closed = true, true
	n.callLoop()
	n.cond.Broadcast()
	return nil
}

// callLoop has the loop look at the connection, once mu is unlocked by unlock.
func (n *NetConn) callLoop() {
	if !n.visiting {
		n.visiting, n.call = true, true
	}
}

// unlock unlocks mu and asks for a visit if there is to be one. It is not asked for under mu: a loop that has ended runs
// what is injected at once.
func (n *NetConn) unlock() {
	call := n.call
	n.call = false
	n.mu.Unlock()
	if call {
		n.l.Inject(n.visitFn)
	}
}

// visit runs on the loop.
func (n *NetConn) visit() {
	n.mu.Lock()
	n.visiting = false
	freed := n.freed
	n.freed = 0
	unread := n.in.Len()
	closed := n.closed
	if closed {
		freed += unread
		n.in.Clear()
	}
	n.mu.Unlock()
	n.s.dequeued(freed)
	if closed && unread > 0 {
		n.s.cut(CodeCancel, net.ErrClosed)
		return
	}
	n.pump()
}

// pump implements side: it sends what was written.
func (n *NetConn) pump() {
	s := n.s
	buf := n.l.Buffer()
	progressed := false
	for s.err == nil && !s.sentEnd {
		n.mu.Lock()
		waiting, end := n.out.Len(), n.noWrite
		n.mu.Unlock()
		if waiting == 0 {
			if end && s.answered {
				s.sendEnd()
			}
			return
		}
		room, connWaits := s.maySend()
		if room == 0 {
			if connWaits {
				s.c.enlist(s, progressed)
			}
			return
		}
		room = min(room, s.c.peerFrame, len(buf)-frameHeaderLen)
		n.mu.Lock()
		k := n.out.Read(buf[frameHeaderLen : frameHeaderLen+room])
		n.cond.Broadcast()
		n.mu.Unlock()
		s.spend(k)
		putFrameHeader(buf, k, frameData, 0, s.id)
		if k < smallFrame {
			s.c.append(buf[:frameHeaderLen+k])
		} else {
			s.c.write(buf[:frameHeaderLen+k])
		}
		progressed = true
	}
}

// take implements side.
func (n *NetConn) take(pieces [][]byte) {
	n.mu.Lock()
	size := 0
	closed := n.closed
	for _, p := range pieces {
		size += len(p)
		if !closed {
			n.in.Append(p)
		}
	}
	n.cond.Broadcast()
	n.mu.Unlock()
	if closed {
		n.s.cut(CodeCancel, net.ErrClosed)
		return
	}
	n.s.c.buffer(size)
}

// peerEnded implements side.
func (n *NetConn) peerEnded() {
	n.mu.Lock()
	n.recvEnd = true
	n.cond.Broadcast()
	n.mu.Unlock()
	n.s.drained() // the rest is here
}

// resume implements side.
func (n *NetConn) resume() { n.s.c.post(n.s, evPump) }

// ended implements side.
func (n *NetConn) ended() {
	n.mu.Lock()
	n.err = n.s.err
	held := n.freed
	n.freed = 0
	if n.s.lost == nil { // our own doing: nothing more is delivered
		held += n.in.Len()
		n.in.Clear()
		n.recvEnd = false
	}
	n.out.Clear()
	n.cond.Broadcast()
	n.mu.Unlock()
	n.s.c.buffer(-held)
}

// joined implements side.
func (n *NetConn) joined() {}

// LocalAddr implements net.Conn. For a server's stream it is the address of the tunnel's socket.
func (n *NetConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(n.local) }

// RemoteAddr implements net.Conn. For a server's stream it is the address of the tunnel's peer.
func (n *NetConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(n.remote) }

// SetDeadline implements net.Conn.
func (n *NetConn) SetDeadline(t time.Time) error {
	n.SetReadDeadline(t)
	return n.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (n *NetConn) SetReadDeadline(t time.Time) error { return n.setDeadline(&n.rd, t) }

// SetWriteDeadline implements net.Conn.
func (n *NetConn) SetWriteDeadline(t time.Time) error { return n.setDeadline(&n.wr, t) }

func (n *NetConn) setDeadline(d *deadline, t time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.cond.Broadcast()
		})
	}
	n.cond.Broadcast()
	return nil
}

// OpenConn opens a stream and waits for it, as a connection for goroutines. It may be called from any goroutine but the
// loop's own. The caller has to Close the result.
func (p *Pool) OpenConn(ctx context.Context, key Key, tag any, req *Request) (*NetConn, *Response, error) {
	w := &connWaiter{done: make(chan struct{})}
	var o *Opening
	p.l.Inject(func() { o = p.Open(key, tag, req, w) })
	select {
	case <-w.done:
		return w.conn, w.resp, w.err
	case <-ctx.Done():
	}
	p.l.Inject(func() {
		o.Cancel()
		if w.conn != nil {
			w.conn.Close()
		}
	})
	return nil, nil, context.Cause(ctx)
}

// connWaiter is the OpenHandler of OpenConn.
type connWaiter struct {
	done chan struct{}
	conn *NetConn
	resp *Response
	err  error
}

// StreamOpened implements OpenHandler.
func (w *connWaiter) StreamOpened(s *Stream, r *Response) {
	w.conn, w.resp = s.NetConn(), r
	close(w.done)
}

// StreamFailed implements OpenHandler.
func (w *connWaiter) StreamFailed(err error) {
	w.err = err
	close(w.done)
}
