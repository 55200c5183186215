//go:build linux

package netns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// here is the calling thread's namespace.
func here(t testing.TB) netns.ID {
	t.Helper()
	n, err := netns.Current()
	netnstest.Must(t, err, n.Close())
	return n.ID()
}

// of returns the namespace that a socket belongs to, by its cookie.
func cookieOf(t testing.TB, fd int) uint64 {
	t.Helper()
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	netnstest.Must(t, err)
	return c
}

func TestRootSocketIsOfItsNamespaceAndTheThreadComesBack(t *testing.T) {
	netnstest.RequireRoot(t)
	home := here(t)
	a, b := netnstest.New(t), netnstest.New(t)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			n := []*netns.NS{a, b}[i%2]
			fd, err := n.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			want, err := n.Cookie()
			if got := cookieOf(t, fd); err != nil || got != want {
				t.Errorf("socket is in namespace %d, want %d (%v)", got, want, err)
			}
			flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			fdFlags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if flags&unix.O_NONBLOCK == 0 || fdFlags&unix.FD_CLOEXEC == 0 {
				t.Error("socket is blocking or survives exec")
			}
			if got := here(t); got != home {
				t.Errorf("thread is left in %v", got)
			}
		}()
	}
	wg.Wait()
	if _, err := a.Socket(unix.AF_INET, 99, 0); err == nil || here(t) != home {
		t.Errorf("socket of a type that does not exist: %v, thread in %v", err, here(t))
	}
}

func TestRootSocketInsideOfDoComesBackToWhereDoIs(t *testing.T) {
	netnstest.RequireRoot(t)
	a, b := netnstest.New(t), netnstest.New(t)
	netnstest.Must(t, a.Do(func() error {
		fd, err := b.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		want, err := b.Cookie()
		if got := cookieOf(t, fd); got != want {
			t.Errorf("socket is in namespace %d, want %d", got, want)
		}
		if got := here(t); got != a.ID() {
			t.Errorf("thread is in %v, want %v", got, a)
		}
		return err
	}))
}

func TestRootDoNeverMovesTheMainThread(t *testing.T) {
	netnstest.RequireRoot(t)
	a := netnstest.New(t)
	home := here(t)
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := a.Do(func() error {
				if unix.Gettid() == os.Getpid() {
					t.Error("Do runs on the main thread")
				}
				if got := here(t); got != a.ID() {
					t.Errorf("Do runs in %v, want %v", got, a)
				}
				return boom
			})
			if !errors.Is(err, boom) {
				t.Errorf("Do: %v, want what the function returned", err)
			}
		}()
	}
	wg.Wait()
	n, err := netns.Open("/proc/self/ns/net")
	netnstest.Must(t, err, n.Close())
	if n.ID() != home {
		t.Errorf("main thread is in %v, want %v", n.ID(), home)
	}
}

func TestRootNamedNamespacesAreThoseOfIPNetns(t *testing.T) {
	netnstest.RequireRoot(t)
	name := fmt.Sprintf("ambit-test-%d", os.Getpid())
	n, err := netns.Create(name)
	netnstest.Must(t, err)
	defer netns.Delete(name)
	defer n.Close()
	if _, err := netns.Create(name); !errors.Is(err, os.ErrExist) {
		t.Errorf("second Create: %v, want os.ErrExist", err)
	}
	again, err := netns.Open(netns.Dir + "/" + name)
	netnstest.Must(t, err)
	defer again.Close()
	found, err := netns.Find(n.ID())
	netnstest.Must(t, err)
	defer found.Close()
	for _, o := range []*netns.NS{again, found} {
		want, err1 := n.Cookie()
		got, err2 := o.Cookie()
		if err := errors.Join(err1, err2); err != nil || got != want || !o.Same(n) {
			t.Errorf("%v is not %v: %v", o, n, err)
		}
	}
	netnstest.Must(t, netns.Delete(name), netns.Delete(name))
	if _, err := os.Stat(netns.Dir + "/" + name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file after Delete: %v", err)
	}
	netnstest.Must(t, n.Close(), again.Close(), found.Close())
	if f, err := netns.Find(n.ID()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Find after Delete: %v, %v", f, err)
	}
	// What a crash between file and mount leaves.
	netnstest.Must(t, os.WriteFile(netns.Dir+"/"+name, nil, 0), netns.Delete(name))
}

func TestRootRouterCarriesPacketsOfBothFamilies(t *testing.T) {
	netnstest.RequireRoot(t)
	r := netnstest.NewRouter(t)
	a, b := r.Pod("10.1.0.1", "fd01::1"), r.Pod("10.1.0.2", "fd01::2")
	addrs, err := a.Addrs()
	netnstest.Must(t, err)
	for _, want := range []string{"10.1.0.1", "fd01::1"} {
		if !slices.Contains(addrs, netip.MustParseAddr(want)) {
			t.Errorf("addresses %v lack %s", addrs, want)
		}
	}
	srv, err := b.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	netnstest.Must(t, err)
	defer unix.Close(srv)
	netnstest.Must(t, unix.Bind(srv, &unix.SockaddrInet6{Port: 9}))
	for _, to := range []string{"10.1.0.2", "fd01::2"} {
		fd, err := a.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
		netnstest.Must(t, err)
		defer unix.Close(fd)
		netnstest.Must(t, unix.Sendto(fd, []byte(to), 0, &unix.SockaddrInet6{Port: 9, Addr: netip.MustParseAddr(to).As16()}))
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(srv), Events: unix.POLLIN}}, 5000); n != 1 {
			t.Fatalf("datagram to %s did not arrive: %v", to, err)
		}
		buf := make([]byte, 64)
		n, _, err := unix.Recvfrom(srv, buf, 0)
		if err != nil || string(buf[:n]) != to {
			t.Errorf("received %q, %v", buf[:n], err)
		}
	}
	netnstest.Must(t, a.DeleteLink("eth0"), a.DeleteLink("eth0"))
}

func TestRootBridgesAndAddressesAreIdempotent(t *testing.T) {
	netnstest.RequireRoot(t)
	br, a, b := netnstest.New(t), netnstest.New(t), netnstest.New(t)
	netnstest.Must(t, br.Bridge("br0"), br.Veth("a", a, "eth0"), br.Veth("b", b, "eth0"), br.Enslave("a", "br0"), br.Enslave("b", "br0"))
	p := netip.MustParsePrefix("192.168.9.1/24")
	netnstest.Must(t, a.AddAddr("eth0", p), a.AddAddr("eth0", p), b.AddAddr("eth0", netip.MustParsePrefix("192.168.9.2/24")))
	route := netns.Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Dev: "eth0", Via: netip.MustParseAddr("192.168.9.2"), Src: p.Addr()}
	netnstest.Must(t, a.AddRoute(route), a.AddRoute(route))
	netnstest.Must(t, a.DelAddr("eth0", p), a.DelAddr("eth0", p))
	if err := a.Up("eth7"); err == nil {
		t.Error("an interface that does not exist was set up")
	}
}

func TestRootSysctlsAreOfTheNamespace(t *testing.T) {
	netnstest.RequireRoot(t)
	a, b := netnstest.New(t), netnstest.New(t)
	netnstest.Must(t, a.SetSysctl("net.ipv4.ip_forward", "1"))
	netnstest.Must(t, b.SetSysctl("net.ipv4.ip_forward", "0")) // a new namespace has the machine's
	for n, want := range map[*netns.NS]string{a: "1", b: "0"} {
		if v, err := n.Sysctl("net/ipv4/ip_forward"); err != nil || v != want {
			t.Errorf("ip_forward is %q, %v, want %s", v, err, want)
		}
	}
	if _, err := a.Sysctl("net.ipv4.no_such_thing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("setting that does not exist: %v", err)
	}
	if out := netnstest.Output(t, a, "/bin/cat", "/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(out) != "1" {
		t.Errorf("a process inside sees %q", out)
	}
}

func TestOnlyNetworkNamespacesAreOpened(t *testing.T) {
	for _, path := range []string{"/proc/self/ns/mnt", "/dev/null", "/no/such/file"} {
		if n, err := netns.Open(path); err == nil {
			n.Close()
			t.Errorf("Open(%q) succeeded", path)
		}
	}
	n, err := netns.Open("/proc/self/ns/net")
	netnstest.Must(t, err)
	d, err := n.Dup()
	netnstest.Must(t, err, n.Close(), n.Close())
	if d.FD() < 0 || !d.Same(n) || n.FD() != -1 {
		t.Errorf("duplicate %v (%d) of %v (%d)", d, d.FD(), n, n.FD())
	}
	netnstest.Must(t, d.Close())
	for _, name := range []string{"", "..", "a/b"} {
		if _, err := netns.Create(name); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Create(%q): %v, want EINVAL", name, err)
		}
	}
}

func BenchmarkSocket(b *testing.B) {
	netnstest.RequireRoot(b)
	n := netnstest.New(b)
	b.Run("inside", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			fd, err := n.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				b.Fatal(err)
			}
			unix.Close(fd)
		}
	})
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				b.Fatal(err)
			}
			unix.Close(fd)
		}
	})
}
