package forward

import (
	"io"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// A client's node proxy may have one tunnel for all of its connections, and a tunnel belongs to one worker. So that one
// client can use all of them, its connections are handed to others when the worker has so many more than they: by a pair of
// sockets, between which and the tunnel's stream the worker relays. That costs some microseconds for each request, so it is
// not done as long as tunnels alone spread the load.

// handOverMargin is how many connections more a worker must have than another to give it one; of many it is a quarter.
const handOverMargin = 4

// lighter is the worker with the fewest connections if it has so much fewer than w; else nil.
func (p *Proxy) lighter(w *worker) *worker {
	n := w.carried.Load()
	best, least := (*worker)(nil), n-max(handOverMargin, n/4)
	for _, o := range p.workers {
		if n := o.carried.Load(); n < least {
			best, least = o, n
		}
	}
	return best
}

// handOver has the worker o carry a connection; false if that cannot be.
func (w *worker) handOver(o *worker, st *hbone.Stream, p *peer, dest netip.AddrPort, snap *Snapshot, target *listener.Target) bool {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	f, err := w.loop.Add(fds[0], nil)
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return false
	}
	here, there := &atomic.Bool{}, &atomic.Bool{}
	st.Accept(nil)
	newRelay(&handed{Pipe: loop.NewPipe(f), mine: here, theirs: there}, st.Pipe(), nil, 0, nil)
	o.carried.Add(1) // now, so that the next one sees it
	o.open.Add(1)
	o.loop.Inject(func() {
		o.carried.Add(-1)
		o.open.Add(-1)
		g, err := o.loop.Add(fds[1], nil)
		if o.closed || err != nil {
			if err == nil {
				g.Close()
			} else {
				unix.Close(fds[1])
			}
			return
		}
		o.take(&handed{Pipe: loop.NewPipe(g), mine: there, theirs: here}, p, dest, snap, target)
	})
	return true
}

// handed is one end of the pair. Sockets of this kind know no reset: the ends tell each other.
type handed struct {
	loop.Pipe
	mine, theirs *atomic.Bool // which end was reset
}

// Reset implements loop.Pipe.
func (h *handed) Reset() error {
	h.mine.Store(true)
	return h.Pipe.Close()
}

// Read implements loop.Pipe.
func (h *handed) Read(p []byte) (int, error) {
	n, err := h.Pipe.Read(p)
	if err == io.EOF && h.theirs.Load() {
		err = unix.ECONNRESET
	}
	return n, err
}
