//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// nftTables counts the nft tables of a namespace.
func nftTables(t *testing.T, ns *netns.NS) int {
	t.Helper()
	n := 0
	netnstest.Must(t, ns.Do(func() error {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		n = len(msgs)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil // the kernel has no nft
		}
		return err
	}))
	return n
}

func TestRootTheHBONEPortHasItsListener(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	for _, to := range []string{w.b.at4(15008), w.b.at6(15008)} {
		c, err := dial(w.c.ns, netip.MustParseAddrPort(to), nil)
		netnstest.Must(t, err)
		b := make([]byte, 5)
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(b); err != nil || string(b) != "hbone" {
			t.Errorf("HBONE listener says %q, %v", b, err)
		}
		c.Close()
		w.b.proxy.wantLast("hbone", to)
	}
}

func TestRootInboundToAClosedPortIsRefusedAtOnce(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	for i, to := range []string{w.b.at4(9999), w.b.at6(9999)} {
		if err := w.c.fetch(to, nil); !isReset(err) {
			t.Errorf("connect to closed port %s: %v, want a reset", to, err)
		}
		errs := w.b.proxy.failures()
		if len(errs) != i+1 || !errors.Is(errs[i], unix.ECONNREFUSED) {
			t.Errorf("proxy's dials failed with %v, want ECONNREFUSED (fwmark_reflect)", errs)
		}
	}
}

func isReset(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

func TestRootWithoutProxyInboundIsRefusedAndNeverReachesTheApplication(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	w.c.mustFetch(w.b.at4(8080), nil)
	before := len(w.b.app.clients())
	w.b.proxy.kill()
	for _, to := range []string{w.b.at4(8080), w.b.at6(8080), w.b.at4(15008), w.b.at6(15008), w.b.at4(9)} {
		if err := w.c.fetch(to, nil); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to %s without proxy: %v, want ECONNREFUSED", to, err)
		}
	}
	if got := len(w.b.app.clients()); got != before {
		t.Errorf("application saw %d connections past the proxy", got-before)
	}
}

func TestRootWithoutProxyOutboundNeverGoesDirect(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.a.proxy.kill()
	if err := w.a.fetch(w.c.at6(8080), nil); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect without proxy: %v, want ECONNREFUSED", err)
	}
	// IPv4 waits: the kernel sends no RST from a foreign source.
	fd, err := w.a.ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	netnstest.Must(t, err)
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(netip.MustParseAddrPort(w.c.at4(8080)))); !errors.Is(err, unix.EINPROGRESS) {
		t.Errorf("connect without proxy: %v, want EINPROGRESS", err)
	}
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 100); n != 0 {
		t.Error("IPv4 connect without proxy came to an end")
	}
	if n := len(w.c.app.clients()); n != 0 {
		t.Errorf("destination saw %d connections past the proxy", n)
	}
}

func TestRootAnApplicationOnTheHBONEPortGetsNothingFromOutside(t *testing.T) {
	w := newWorld(t)
	evil := serve(t, w.b.ns, 15008, nil)
	w.b.attach(Listeners{})
	for _, to := range []string{w.b.at4(15008), w.b.at6(15008)} {
		if err := w.c.fetch(to, nil); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to %s: %v, want ECONNREFUSED", to, err)
		}
	}
	if n := len(evil.clients()); n != 0 {
		t.Errorf("application got %d connections in the proxy's stead", n)
	}
}

// Long-lived connections from one client: none may share its 4-tuple with the proxy's connection of another (3.1 item 7).
func TestRootSourcePortsNeverCollide(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	const count = 400
	var mu sync.Mutex
	var conns []net.Conn
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range count / 8 {
				c, err := dial(w.c.ns, netip.MustParseAddrPort(w.b.at4(8080)), nil)
				if err == nil {
					err = echo(c)
				}
				if err != nil {
					t.Errorf("connect: %v", err)
					return
				}
				mu.Lock()
				conns = append(conns, c)
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	for i, c := range conns {
		if err := echo(c); err != nil {
			t.Errorf("connection %d of %d was lost: %v", i, len(conns), err)
		}
		c.Close()
	}
	for _, p := range w.b.app.clients() {
		if p.Port() < DefaultAppPorts.First || p.Port() > DefaultAppPorts.Last || p.Port() >= 15000 && p.Port() < 15100 {
			t.Errorf("proxy used source port %d", p.Port())
		}
	}
}

func TestRootSmallPortRangeIsUsedAgainForManyConnections(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	mark, mask := w.node.Mark()
	o := AppOptions{Dst: w.b.addrs()[0], Mark: mark, Mask: mask, Ports: PortRange{20000, 20001}, Next: new(atomic.Uint32)}
	for i := range 6 { // sockets in TIME_WAIT have the ports
		c, err := dial(w.b.ns, netip.MustParseAddrPort(w.b.at4(8080)), func(fd int) error {
			return PrepareApp(fd, w.c.addrs()[0], o)
		})
		if err != nil {
			if PortTaken(err) && i >= 2 {
				continue // TIME_WAIT is younger than a second
			}
			t.Fatal(err)
		}
		netnstest.Must(t, echo(c), c.Close())
	}
}

func TestRootListenersThatNobodyAcceptsOnHoldConnections(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	for range 3 {
		w.b.proxy.stop() // the acceptor dies, another process has the listeners still
		const waiting = 20
		errc := make(chan error, waiting)
		for range waiting {
			c, err := dial(w.c.ns, netip.MustParseAddrPort(w.b.at4(8080)), nil)
			if err != nil {
				t.Fatalf("connect while nobody accepts: %v", err)
			}
			go func() {
				defer c.Close()
				errc <- echo(c)
			}()
		}
		w.b.proxy.run()
		for range waiting {
			netnstest.Must(t, <-errc)
		}
	}
}

func TestRootListenDoesNotShareAPort(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	if l, err := Listen(w.b.ns); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second Listen: %v, %v, want EADDRINUSE", l, err)
	}
	w.b.proxy.kill()
	l, err := Listen(w.b.ns)
	netnstest.Must(t, err, l.Close(), l.Close())
}

func TestRootNewListenersTakeOverInOneStep(t *testing.T) {
	w := newWorld(t)
	w.b.capture()
	old := w.b.proxy
	l := Listeners{}
	for i, fd := range []*int{&l.Outbound, &l.Plaintext, &l.HBONE} {
		var err error
		*fd, err = listen(w.b.ns, 16000+i)
		netnstest.Must(t, err)
	}
	w.b.proxy = startProxy(w.b, l)
	errs := make(chan error)
	stop := make(chan struct{})
	go func() {
		var bad error
		for n := 0; ; n++ {
			select {
			case <-stop:
				errs <- bad
				return
			default:
			}
			if err := w.c.fetch(w.b.at4(8080), nil); err != nil && bad == nil {
				bad = fmt.Errorf("connection %d: %w", n, err)
			}
		}
	}()
	w.b.attach(l)
	n := len(old.connections())
	w.c.mustFetch(w.b.at4(8080), nil)
	close(stop)
	netnstest.Must(t, <-errs)
	w.c.mustFetch(w.b.at6(8080), nil)
	if got := len(old.connections()); got > n+1 {
		t.Errorf("old listeners got %d connections after the change", got-n)
	}
	w.b.proxy.wantLast("plaintext", w.b.at6(8080))
}
