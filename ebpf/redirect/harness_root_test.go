//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// patience bounds what must happen; nothing that works takes nearly as long.
const patience = 10 * time.Second

// world is a node with three pods: a and b can be captured, c is outside of the mesh.
type world struct {
	t       testing.TB
	router  *netnstest.Router
	pinDir  string
	probes  Probes // other than "": the router is the node
	node    *Node
	a, b, c *testPod
}

type testPod struct {
	w      *world
	uid    string
	ns     *netns.NS
	v4, v6 string
	proxy  *testProxy
	app    *app // echo on port 8080, both families
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, "")
}

func newWorldWith(t testing.TB, probes Probes) *world {
	t.Helper()
	netnstest.RequireRoot(t)
	w := &world{t: t, router: netnstest.NewRouter(t), pinDir: filepath.Join(t.TempDir(), "bpf"), probes: probes}
	w.open()
	w.a = w.pod("a", "10.77.0.2", "fd77::2")
	w.b = w.pod("b", "10.77.0.3", "fd77::3")
	w.c = w.pod("c", "10.77.0.4", "fd77::4")
	return w
}

// open opens the node and unloads it at the end.
func (w *world) open() {
	w.t.Helper()
	open := func() (err error) {
		w.node, err = Open(Config{PinDir: w.pinDir, Probes: w.probes})
		return err
	}
	if w.probes == "" {
		netnstest.Must(w.t, open())
	} else {
		netnstest.Must(w.t, w.router.NS.Do(open))
	}
	n := w.node
	w.t.Cleanup(func() {
		netnstest.Must(w.t, n.Close(), Unload(w.pinDir))
	})
}

func (w *world) pod(uid, v4, v6 string) *testPod {
	w.t.Helper()
	p := &testPod{w: w, uid: uid, v4: v4, v6: v6}
	var addrs []string
	for _, a := range []string{v4, v6} {
		if a != "" {
			addrs = append(addrs, a)
		}
	}
	p.ns = w.router.Pod(addrs...)
	p.app = serve(w.t, p.ns, 8080, nil)
	return p
}

func (p *testPod) addrs() (out []netip.Addr) {
	for _, a := range []string{p.v4, p.v6} {
		if a != "" {
			out = append(out, netip.MustParseAddr(a))
		}
	}
	return out
}

// capture attaches the pod and starts its proxy.
func (p *testPod) capture() {
	t := p.w.t
	t.Helper()
	l, err := Listen(p.ns)
	if err != nil {
		t.Fatal(err)
	}
	p.proxy = startProxy(p, l)
	p.attach(l)
}

func (p *testPod) attach(l Listeners) {
	p.w.t.Helper()
	p.attachPod(Pod{Listeners: l})
}

// attachPod attaches the pod with what is its own filled in.
func (p *testPod) attachPod(as Pod) {
	p.w.t.Helper()
	as.UID, as.NS, as.Addrs = p.uid, p.ns, p.addrs()
	netnstest.Must(p.w.t, p.w.node.Attach(as))
}

// seen is what a proxy saw of a connection.
type seen struct {
	via        string // outbound, plaintext, hbone
	peer, orig netip.AddrPort
}

// testProxy takes a pod's connections and carries them to where they were to go.
type testProxy struct {
	pod        *testPod
	ls         Listeners
	exempt     *Exempt
	next       atomic.Uint32
	mark, mask uint32
	vips       map[netip.Addr]netip.Addr // set before use

	wg    sync.WaitGroup // connections
	mu    sync.Mutex
	all   []seen     // guarded by mu
	conns []net.Conn // guarded by mu
	lns   []net.Listener
	errs  []error // guarded by mu: dials that failed
}

func startProxy(p *testPod, l Listeners) *testProxy { return startProxyWith(p, l, nil) }

func startProxyWith(p *testPod, l Listeners, vips map[netip.Addr]netip.Addr) *testProxy {
	t := p.w.t
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(p.w.node.ExemptFD()), unix.F_DUPFD_CLOEXEC, 3)
	netnstest.Must(t, err)
	x := &testProxy{pod: p, ls: l, vips: vips}
	x.mark, x.mask = p.w.node.Mark()
	x.next.Store(rand.Uint32())
	x.exempt, err = OpenExempt(fd)
	netnstest.Must(t, err)
	t.Cleanup(x.close)
	x.run()
	return x
}

// run accepts on duplicates of the listeners.
func (x *testProxy) run() {
	for via, fd := range map[string]int{"outbound": x.ls.Outbound, "plaintext": x.ls.Plaintext, "hbone": x.ls.HBONE} {
		ln := listenerOf(x.pod.w.t, fd)
		x.lns = append(x.lns, ln)
		go x.accept(ln, via)
	}
}

func listenerOf(t testing.TB, fd int) net.Listener {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	netnstest.Must(t, err)
	f := os.NewFile(uintptr(dup), "listener")
	defer f.Close()
	ln, err := net.FileListener(f)
	netnstest.Must(t, err)
	return ln
}

// stop ends accepting; the listeners stay.
func (x *testProxy) stop() {
	for _, ln := range x.lns {
		ln.Close()
	}
	x.lns = nil
}

// kill closes the listeners too, as the death of the process that has them does.
func (x *testProxy) kill() {
	x.stop()
	_ = x.ls.Close()
}

// close kills the proxy, cuts its connections and waits for them to end.
func (x *testProxy) close() {
	x.kill()
	x.mu.Lock()
	for _, c := range x.conns {
		c.Close()
	}
	x.mu.Unlock()
	x.wg.Wait()
	x.exempt.Close()
}

func (x *testProxy) accept(ln net.Listener, via string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		x.wg.Add(1)
		go x.carry(c.(*net.TCPConn), via)
	}
}

func addrOf(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

func (x *testProxy) carry(in *net.TCPConn, via string) {
	defer x.wg.Done()
	defer in.Close()
	s := seen{via, addrOf(in.RemoteAddr()), addrOf(in.LocalAddr())}
	x.mu.Lock()
	x.all = append(x.all, s)
	x.mu.Unlock()
	if via == "hbone" {
		io.WriteString(in, "hbone")
		return
	}
	dst := s.orig
	if to, ok := x.vips[dst.Addr()]; ok {
		dst = netip.AddrPortFrom(to, dst.Port())
	}
	var client netip.Addr
	if via == "plaintext" {
		client = s.peer.Addr()
	}
	out, err := x.dial(dst, client)
	if err != nil {
		x.mu.Lock()
		x.errs = append(x.errs, err)
		x.mu.Unlock()
		in.SetLinger(0)
		return
	}
	defer out.Close()
	x.mu.Lock()
	x.conns = append(x.conns, in, out)
	x.mu.Unlock()
	done := make(chan struct{})
	go func() {
		io.Copy(out, in)
		out.CloseWrite()
		close(done)
	}()
	io.Copy(in, out)
	in.CloseWrite()
	<-done
}

func (x *testProxy) dial(dst netip.AddrPort, client netip.Addr) (*net.TCPConn, error) {
	for {
		c, err := dial(x.pod.ns, dst, func(fd int) error {
			if err := x.exempt.Mark(fd); err != nil {
				return err
			}
			return PrepareApp(fd, client, AppOptions{Dst: dst.Addr(), Mark: x.mark, Mask: x.mask, Next: &x.next})
		})
		if err == nil || !PortTaken(err) {
			return c, err
		}
	}
}

// connections returns what the proxy saw.
func (x *testProxy) connections() []seen {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]seen(nil), x.all...)
}

func (x *testProxy) failures() []error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]error(nil), x.errs...)
}

// wantLast checks the last connection that a proxy saw.
func (x *testProxy) wantLast(via, orig string) seen {
	t := x.pod.w.t
	t.Helper()
	all := x.connections()
	if len(all) == 0 {
		t.Fatalf("proxy of %s saw no connection, want %s to %s", x.pod.uid, via, orig)
	}
	last := all[len(all)-1]
	if last.via != via || last.orig.String() != orig {
		t.Fatalf("proxy of %s saw %v, want %s to %s", x.pod.uid, last, via, orig)
	}
	return last
}

// app is an echo server that notes its clients.
type app struct {
	ln    net.Listener
	mu    sync.Mutex
	peers []netip.AddrPort
}

func serve(t testing.TB, ns *netns.NS, port int, prepare func(fd int) error) *app {
	t.Helper()
	fd, err := ns.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	netnstest.Must(t, err)
	netnstest.Must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if prepare != nil {
		netnstest.Must(t, prepare(fd))
	}
	netnstest.Must(t, unix.Bind(fd, &unix.SockaddrInet6{Port: port}), unix.Listen(fd, 4096))
	f := os.NewFile(uintptr(fd), "app")
	defer f.Close()
	ln, err := net.FileListener(f)
	netnstest.Must(t, err)
	a := &app{ln: ln}
	t.Cleanup(func() { ln.Close() })
	go a.run()
	return a
}

func (a *app) run() {
	for {
		c, err := a.ln.Accept()
		if err != nil {
			return
		}
		a.mu.Lock()
		a.peers = append(a.peers, addrOf(c.RemoteAddr()))
		a.mu.Unlock()
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func (a *app) clients() []netip.AddrPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]netip.AddrPort(nil), a.peers...)
}

// dial connects from a namespace; prepare sees the socket before connect.
func dial(ns *netns.NS, dst netip.AddrPort, prepare func(fd int) error) (*net.TCPConn, error) {
	family := unix.AF_INET
	if dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := ns.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	if prepare != nil {
		if err := prepare(fd); err != nil {
			return nil, err
		}
	}
	if err := connect(fd, dst); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// errTimeout is returned when nothing answers a SYN.
var errTimeout = errors.New("connect timed out")

// connect connects a non-blocking socket and waits for the outcome.
func connect(fd int, dst netip.AddrPort) error {
	if err := unix.Connect(fd, sockaddr(dst)); !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	return await(fd)
}

func await(fd int) error {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(patience/time.Millisecond))
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(patience/time.Millisecond))
	}
	if err != nil {
		return err
	}
	if n == 0 {
		return errTimeout
	}
	e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if e != 0 {
		return unix.Errno(e)
	}
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// echo exchanges some bytes.
func echo(c net.Conn) error {
	c.SetDeadline(time.Now().Add(patience))
	want := fmt.Sprintf("hello from %v", c.LocalAddr())
	if _, err := io.WriteString(c, want); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("echo %q of %q", got, want)
	}
	return nil
}

// fetch connects, exchanges, closes, and returns the first error.
func (p *testPod) fetch(to string, prepare func(fd int) error) error {
	c, err := dial(p.ns, netip.MustParseAddrPort(to), prepare)
	if err != nil {
		return err
	}
	defer c.Close()
	return echo(c)
}

func (p *testPod) mustFetch(to string, prepare func(fd int) error) {
	p.w.t.Helper()
	if err := p.fetch(to, prepare); err != nil {
		p.w.t.Fatalf("connect from %s to %s: %v", p.uid, to, err)
	}
}

// at4 and at6 are addresses of a port of the pod.
func (p *testPod) at4(port int) string { return fmt.Sprintf("%s:%d", p.v4, port) }
func (p *testPod) at6(port int) string { return fmt.Sprintf("[%s]:%d", p.v6, port) }
