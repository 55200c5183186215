//go:build linux

package redirect

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// setInt returns a prepare function that sets an option of SOL_SOCKET.
func setInt(level, name, value int) func(fd int) error {
	return func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) }
}

func bind(addr string) func(fd int) error {
	return func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, sockaddr(netip.MustParseAddrPort(addr))))
	}
}

// Each row of redirection.md 3.1 about how an application connects.
func TestRootEveryWayToConnectIsCaptured(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.b.capture()
	to := w.c.at4(8080)
	for _, x := range []struct {
		name, to, peer string
		prepare        func(fd int) error
	}{
		{"blocking socket", to, "", func(fd int) error { return unix.SetNonblock(fd, false) }},
		{"bound to the pod's address", to, "10.77.0.2:4445", bind("10.77.0.2:4445")},
		{"bound to the pod's IPv6 address", w.c.at6(8080), "[fd77::2]:4445", bind("[fd77::2]:4445")},
		{"bound to a port", to, "10.77.0.2:4444", bind("0.0.0.0:4444")},
		{"own mark", to, "", setInt(unix.SOL_SOCKET, unix.SO_MARK, 0x7)},
		{"the mark of Istio's ztunnel", to, "", setInt(unix.SOL_SOCKET, unix.SO_MARK, 0x539)},
		{"our own mark", to, "", setInt(unix.SOL_SOCKET, unix.SO_MARK, int(DefaultMark))},
		{"bound to eth0, with CAP_NET_RAW", to, "", func(fd int) error { return unix.BindToDevice(fd, "eth0") }},
		{"bound to eth0, IPv6", w.c.at6(8080), "", func(fd int) error { return unix.BindToDevice(fd, "eth0") }},
		{"to another captured pod", w.b.at4(8080), "", nil},
		{"transparent, bound to the pod's address", to, "", func(fd int) error {
			return errors.Join(unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1), bind("10.77.0.2:0")(fd))
		}},
	} {
		n := len(w.a.proxy.connections())
		if err := w.a.fetch(x.to, x.prepare); err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		if got := len(w.a.proxy.connections()) - n; got != 1 {
			t.Errorf("%s: proxy saw %d connections, want 1", x.name, got)
			continue
		}
		if s := w.a.proxy.wantLast("outbound", x.to); x.peer != "" && s.peer.String() != x.peer {
			t.Errorf("%s: proxy sees %v, want %s", x.name, s.peer, x.peer)
		}
	}
}

func TestRootOtherBitsOfAMarkStay(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	c, err := dial(w.a.ns, netip.MustParseAddrPort(w.c.at4(8080)), setInt(unix.SOL_SOCKET, unix.SO_MARK, 0x0f4f0539))
	netnstest.Must(t, err)
	defer c.Close()
	if got, want := option(t, c, unix.SO_MARK), 0x0f4f0539&^DefaultMask|DefaultMark; uint32(got) != want {
		t.Errorf("mark after connect is %#x, want %#x", got, want)
	}
}

func option(t *testing.T, c *net.TCPConn, name int) int {
	t.Helper()
	rc, err := c.SyscallConn()
	netnstest.Must(t, err)
	var v int
	var oerr error
	netnstest.Must(t, rc.Control(func(fd uintptr) { v, oerr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, name) }), oerr)
	return v
}

func TestRootV4MappedConnectIsCaptured(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	dst := netip.AddrPortFrom(netip.AddrFrom16(netip.MustParseAddr(w.c.v4).As16()), 8080)
	c, err := dial(w.a.ns, dst, nil)
	netnstest.Must(t, err)
	defer c.Close()
	netnstest.Must(t, echo(c))
	w.a.proxy.wantLast("outbound", w.c.at4(8080))
}

func TestRootThePodItselfIsNotCaptured(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	for _, x := range []struct {
		name, to string
		prepare  func(fd int) error
	}{
		{"loopback", "127.0.0.1:8080", nil},
		{"another loopback address", "127.0.0.7:8080", nil},
		{"IPv6 loopback", "[::1]:8080", nil},
		{"unspecified address", "0.0.0.0:8080", nil},
		{"unspecified IPv6 address", "[::]:8080", nil},
		{"own address", w.a.at4(8080), nil},
		{"own IPv6 address", w.a.at6(8080), nil},
		{"own address from loopback", w.a.at4(8080), bind("127.0.0.1:0")},
		{"loopback from own address", "127.0.0.1:8080", bind("10.77.0.2:0")},
	} {
		err := w.a.fetch(x.to, x.prepare)
		if got := len(w.a.proxy.connections()); err != nil || got != 0 {
			t.Errorf("%s: %v, proxy saw %d connections, want 0", x.name, err, got)
		}
	}
}

func TestRootAPodReachesItselfByItsServiceAddress(t *testing.T) {
	w := newWorld(t)
	l, err := Listen(w.a.ns)
	netnstest.Must(t, err)
	w.a.proxy = startProxyWith(w.a, l, map[netip.Addr]netip.Addr{netip.MustParseAddr("10.96.0.10"): w.a.addrs()[0]})
	w.a.attach(l)
	w.a.mustFetch("10.96.0.10:8080", nil)
	w.a.proxy.wantLast("outbound", "10.96.0.10:8080")
	if peers := w.a.app.clients(); len(peers) != 1 || peers[0].Addr() != w.a.addrs()[0] {
		t.Errorf("application's clients are %v, want the pod itself once", peers)
	}
}

// dropCapabilities drops all capabilities of the calling thread.
func dropCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&hdr, &none[0])
}

func TestRootSocketBoundToADeviceIsRefusedWithoutCapability(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	err := w.a.ns.Do(func() error { // on a thread that ends
		netnstest.Must(t, dropCapabilities())
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.BindToDevice(fd, "eth0"); err != nil {
			return fmt.Errorf("bind to device: %w", err)
		}
		return connect(fd, netip.MustParseAddrPort(w.c.at4(8080)))
	})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("connect of a socket bound to eth0: %v, want EPERM", err)
	}
	if n := len(w.c.app.clients()); n != 0 {
		t.Errorf("it reached its destination past the proxy")
	}
}

func TestRootFastOpenIsCaptured(t *testing.T) {
	w := newWorld(t)
	for _, p := range []*testPod{w.a, w.c} {
		netnstest.Must(t, p.ns.SetSysctl("net.ipv4.tcp_fastopen", "1027"))
	}
	w.a.capture()
	dst := netip.MustParseAddrPort(w.c.at4(8080))
	// The first connection gets the cookie, the second sends data with its SYN.
	for i := range 2 {
		if sent := fastOpen(t, w.a.ns, dst); sent != (i == 1) {
			t.Errorf("connection %d: data was accepted with the SYN: %t", i, sent)
		}
		w.a.proxy.wantLast("outbound", w.c.at4(8080))
		if n := len(w.a.proxy.connections()); n != i+1 {
			t.Errorf("proxy saw %d connections, want %d", n, i+1)
		}
	}
	const fastOpenConnect = 30 // TCP_FASTOPEN_CONNECT
	for range 2 {
		w.a.mustFetch(w.c.at4(8080), setInt(unix.SOL_TCP, fastOpenConnect, 1))
	}
	if n := len(w.a.proxy.connections()); n != 4 {
		t.Errorf("proxy saw %d connections, want 4", n)
	}
}

// fastOpen connects by sendto(MSG_FASTOPEN), checks the echo, and reports whether the peer took data with the SYN.
func fastOpen(t *testing.T, ns *netns.NS, dst netip.AddrPort) bool {
	t.Helper()
	fd, err := ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	netnstest.Must(t, err)
	f := os.NewFile(uintptr(fd), "tfo")
	defer f.Close()
	data := []byte("data in the SYN")
	err = unix.Sendto(fd, data, unix.MSG_FASTOPEN, sockaddr(dst))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		t.Fatalf("sendto(MSG_FASTOPEN): %v", err)
	}
	netnstest.Must(t, await(fd))
	if err != nil { // no cookie yet: nothing was sent
		_, err = unix.Write(fd, data)
		netnstest.Must(t, err)
	}
	c, err := net.FileConn(f)
	netnstest.Must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, len(data))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != string(data) {
		t.Errorf("echo of %q: %q, %v", data, b, err)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	netnstest.Must(t, err)
	const synData = 32 // TCPI_OPT_SYN_DATA
	return info.Options&synData != 0
}

func TestRootMPTCPIsCaptured(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	fd, err := w.a.ns.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
		t.Skip("this kernel has no MPTCP")
	}
	netnstest.Must(t, err)
	f := os.NewFile(uintptr(fd), "mptcp")
	defer f.Close()
	netnstest.Must(t, connect(fd, netip.MustParseAddrPort(w.c.at4(8080))))
	c, err := net.FileConn(f)
	netnstest.Must(t, err)
	defer c.Close()
	netnstest.Must(t, echo(c))
	w.a.proxy.wantLast("outbound", w.c.at4(8080))
}

func TestRootUDPIsUntouched(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	srv, err := w.c.ns.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	netnstest.Must(t, err)
	defer unix.Close(srv)
	netnstest.Must(t, unix.Bind(srv, &unix.SockaddrInet4{Port: 53}))
	fd, err := w.a.ns.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	netnstest.Must(t, err)
	defer unix.Close(fd)
	netnstest.Must(t, unix.Connect(fd, sockaddr(netip.MustParseAddrPort(w.c.at4(53)))))
	if m, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil || m != 0 {
		t.Errorf("mark of a UDP socket is %#x, %v", m, err)
	}
	_, err = unix.Write(fd, []byte("query"))
	netnstest.Must(t, err)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(srv), Events: unix.POLLIN}}, int(patience/time.Millisecond)); n != 1 {
		t.Fatalf("datagram did not arrive: %v", err)
	}
	_, from, err := unix.Recvfrom(srv, make([]byte, 16), 0)
	netnstest.Must(t, err)
	if got := netip.AddrFrom4(from.(*unix.SockaddrInet4).Addr); got != w.a.addrs()[0] {
		t.Errorf("datagram comes from %v, want the pod", got)
	}
}

func TestRootAProcessInAnotherCgroupIsCaptured(t *testing.T) {
	w := newWorld(t)
	root, err := openCgroup("")
	netnstest.Must(t, err)
	defer root.Close()
	dir := fmt.Sprintf("/proc/%d/fd/%d/ambit-test-%[1]d", os.Getpid(), root.Fd())
	netnstest.Must(t, os.Mkdir(dir, 0o755))
	defer os.Remove(dir)
	w.a.capture()
	// A thread of its own would need threaded cgroups: a process does it.
	out := netnstest.Output(t, w.a.ns, "/bin/bash", "-c",
		`echo $$ >"$0/cgroup.procs" && exec 3<>/dev/tcp/10.77.0.4/8080 && echo hi >&3 && head -c 3 <&3; exec 3>&-; echo $$ >"$0/../cgroup.procs"`, dir)
	if strings.TrimSpace(out) != "hi" {
		t.Errorf("echo from another cgroup: %q", out)
	}
	w.a.proxy.wantLast("outbound", w.c.at4(8080))
}

func TestRootReversePathFiltersDoNotMatter(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.b.capture()
	for _, rp := range []string{"1", "2"} {
		for _, p := range []*testPod{w.a, w.b} {
			for _, dev := range []string{"all", "eth0", "lo"} {
				netnstest.Must(t, p.ns.SetSysctls(map[string]string{
					"net.ipv4.conf." + dev + ".rp_filter": rp, "net.ipv4.conf." + dev + ".src_valid_mark": "1",
				}))
			}
		}
		w.a.mustFetch(w.b.at4(8080), nil)
		w.c.mustFetch(w.b.at4(8080), nil)
	}
}

func TestRootNoNetfilterObjectsAreMade(t *testing.T) {
	w := newWorld(t)
	w.a.capture()
	w.b.capture()
	w.a.mustFetch(w.b.at4(8080), nil)
	for _, p := range []*testPod{w.a, w.b} {
		if v, err := p.ns.Sysctl("net.netfilter.nf_conntrack_count"); err == nil && v != "0" {
			t.Errorf("pod %s has %s entries of connection tracking", p.uid, v)
		}
		if n := nftTables(t, p.ns); n != 0 {
			t.Errorf("pod %s has %d nft tables", p.uid, n)
		}
	}
}
