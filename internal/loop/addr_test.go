package loop

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAnAcceptedConnectionHasItsAddressesWithoutAllocations(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil && address[0] == '[' {
			t.Logf("no IPv6 here: %v", err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		file, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fd, peer, err := Accept(int(file.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if want := netip.MustParseAddrPort(c.LocalAddr().String()); peer != want {
			t.Errorf("peer %s, want %s", peer, want)
		}
		local, err := LocalAddr(fd)
		if want := netip.MustParseAddrPort(ln.Addr().String()); err != nil || local != want {
			t.Errorf("local %s, %v, want %s", local, err, want)
		}
		if again, err := PeerAddr(fd); err != nil || again != peer {
			t.Errorf("peer by name %s, %v, want %s", again, err, peer)
		}
		if n := testing.AllocsPerRun(10, func() { LocalAddr(fd) }); n != 0 {
			t.Errorf("%v allocations, want none", n)
		}
	}
}

func TestAcceptSaysThatTheQueueIsEmpty(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Accept(fd); err != unix.EAGAIN {
		t.Errorf("got %v, want EAGAIN", err)
	}
}

func TestAnAddressIsTheSameThroughASocket(t *testing.T) {
	for s, family := range map[string]int{"127.0.0.1:0": unix.AF_INET, "[::ffff:127.0.0.1]:0": unix.AF_INET6} {
		ap := netip.MustParseAddrPort(s)
		if Family(ap) != family {
			t.Errorf("family of %s is %d", ap, Family(ap))
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, Sockaddr(ap)); err != nil {
			t.Fatal(err)
		}
		if got, err := LocalAddr(fd); err != nil || got.Addr() != ap.Addr().Unmap() || got.Port() == 0 {
			t.Errorf("%s became %s, %v", ap, got, err)
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if got, err := LocalAddr(fd); err != nil || got.IsValid() {
		t.Errorf("a socket without an address of TCP has %s, %v", got, err)
	}
}
