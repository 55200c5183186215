package forward

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// PlainPort is a port that takes connections in cleartext.
type PlainPort struct {
	// Listen is where, As the address of the service that connections to it are for.
	Listen, As netip.AddrPort
}

// listenPlain opens the plain ports.
func (p *Proxy) listenPlain() (err error) {
	for _, c := range p.cfg.Plain {
		ln, err := listen(c.Listen)
		if err == nil {
			p.workers[0].loop.OnLoop(func() { err = p.workers[0].startAccepting(ln, c.As) })
		}
		if err != nil {
			return fmt.Errorf("listen on %v: %w", c.Listen, err)
		}
	}
	return nil
}

// takePlain begins a connection that came in cleartext, from nobody that is known.
func (w *worker) takePlain(fd int, from, as netip.AddrPort) {
	snap := w.p.cfg.Snapshot.Load()
	if w.closed || snap == nil {
		unix.Close(fd)
		return
	}
	target := snap.Listener.Lookup(as)
	if target == nil {
		unix.Close(fd)
		return
	}
	f, err := w.loop.Add(fd, nil)
	if err != nil {
		unix.Close(fd)
		return
	}
	w.take(loop.NewPipe(f), &peer{addr: from}, as, snap, target)
}
