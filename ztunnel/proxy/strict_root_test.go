package proxy

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// fragmented has a socket send its SYN in several IP fragments: with 40 bytes of options it does not fit into the MTU.
func fragmented(_, _ string, c syscall.RawConn) (err error) {
	c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, strings.Repeat("\x01", 40))
		if err == nil {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		}
	})
	return err
}

// plaintextWay is a way in which plaintext may come to a pod.
type plaintextWay struct {
	what   string
	from   *netns.NS
	dialer net.Dialer
	to     string
}

// try tells what came of a connection: the peer address that the server saw, or an error.
func (w *plaintextWay) try() (string, error) {
	var host string
	err := w.from.Do(func() error {
		w.dialer.Timeout = 5 * time.Second
		c, err := w.dialer.Dial("tcp", w.to)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = fmt.Fscanln(c, &host)
		return err
	})
	return host, err
}

func TestRootMeshStrictTakesNoPlaintextWhicheverWayItComes(t *testing.T) { // B23, I17, I20
	m := newMesh(t, nil)
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n2", "10.99.0.4", "fd99::4")
	out, near := m.pod("out", "n1", "10.99.0.9", "fd99::9"), m.pod("near", "n2", "10.99.0.10", "fd99::10")
	var reached atomic.Int32
	m.serve(b, 8080, func(c *net.TCPConn) { reached.Add(1); tellPeer(c) })
	m.capture(a, b, c)

	const probe = "169.254.7.127" // the source that Istio's node agent gives to kubelet's probes
	small := m.router.Pod("10.99.0.11")
	m.router.Plug(small, "eth1", probe)
	h, err := small.Netlink(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err == nil {
		err = h.LinkSetMTU(link, 88)
	}
	if err != nil {
		t.Fatal(err)
	}
	local := func(ip string) *net.TCPAddr {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0))
	}
	const v4, v6 = "10.99.0.3:8080", "[fd99::3]:8080"
	ways := []plaintextWay{
		{what: "the node", from: m.router.NS, to: v4},
		{what: "an un-enrolled pod of another node", from: out.space, to: v4},
		{what: "an un-enrolled pod of another node, IPv6", from: out.space, to: v6},
		{what: "an un-enrolled pod of the node", from: near.space, to: v4},
		{what: "an un-enrolled pod of the node, IPv6", from: near.space, to: v6},
		{what: "a pod with the address of probes", from: small, dialer: net.Dialer{LocalAddr: local(probe)}, to: v4},
		{what: "a SYN in fragments", from: small, dialer: net.Dialer{Control: fragmented}, to: v4},
	}
	for _, w := range ways { // each of them works as long as plaintext is allowed
		if host, err := w.try(); err != nil || host == "" {
			t.Errorf("PERMISSIVE, from %s: served %q, %v", w.what, host, err)
		}
	}
	if n := fragments(t, small); n < 2 {
		t.Errorf("%d fragments were sent: the test does not send what it means to", n)
	}
	m.policy(strict("shop"))
	before := reached.Load()
	for _, w := range ways {
		start := time.Now()
		host, err := w.try()
		if err == nil || host != "" {
			t.Errorf("STRICT, from %s: served %q", w.what, host)
		} else if time.Since(start) > 3*time.Second {
			t.Errorf("STRICT, from %s: not refused but left alone: %v", w.what, err)
		}
	}
	if n := reached.Load() - before; n != 0 {
		t.Errorf("the application saw %d of %d refused connections", n, len(ways))
	}
	m.line("explicitly denied by shop/strict", "src.addr="+probe)
	// What has an identity is served: from another node, from the own one, from the pod itself.
	m.wantPeer(a, v4, "10.99.0.2")
	m.wantPeer(c, v6, "fd99::4")
	m.wantPeer(b, v4, "10.99.0.3")
}

// fragments is the number of IPv4 fragments that a namespace has made.
func fragments(t *testing.T, ns *netns.NS) int {
	t.Helper()
	var snmp []byte
	if err := ns.Do(func() (err error) { snmp, err = os.ReadFile("/proc/thread-self/net/snmp"); return err }); err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(snmp)) {
		f := strings.Fields(line)
		if f[0] != "Ip:" {
			continue
		}
		if i := slices.Index(names, "FragCreates"); i >= 0 {
			n, _ := strconv.Atoi(f[i])
			return n
		}
		names = f
	}
	t.Fatal("no FragCreates in /proc/net/snmp")
	return 0
}

func TestRootMeshAPolicyFlippedUnderAThousandConnectionsCutsThoseItDenies(t *testing.T) { // B48, I18
	const each, flips = 250, 3
	m := newMesh(t, func(c *Config) { c.Workers = 2 })
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n2", "10.99.0.4", "fd99::4")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
	m.serve(b, 8080, tellPeer)
	m.capture(a, b, c)
	open := func(from *meshPod) (l []*net.TCPConn) {
		for range each {
			l = append(l, m.greeted(from, "10.99.0.3:8080"))
		}
		return l
	}
	// 1,000 connections of four kinds: by tunnel twice, inside the node, in plaintext.
	d := m.pod("d", "n1", "10.99.0.5", "fd99::5")
	m.capture(d)
	tunnel, kept, inside, plain := open(a), open(d), open(c), open(out)
	alive := func(what string, l []*net.TCPConn) {
		t.Helper()
		for _, conn := range l {
			io.WriteString(conn, "x")
		}
		for i, conn := range l {
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatalf("%s: connection %d of %d is not untouched: %v", what, i, len(l), err)
			}
		}
	}
	cut := func(what string, since time.Time, l []*net.TCPConn) {
		t.Helper()
		for i, conn := range l {
			conn.SetReadDeadline(since.Add(time.Second))
			if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Fatalf("%s: connection %d of %d is open after a second: %v", what, i, len(l), err)
			}
		}
		t.Logf("%s: %d connections cut within %v", what, len(l), time.Since(since).Round(time.Millisecond))
	}
	for flip := range flips {
		now := time.Now()
		m.policy(strict("shop"))
		cut("STRICT, plaintext", now, plain)
		alive("STRICT, tunnels", tunnel)
		now = time.Now()
		m.policy(denyPrincipal("cluster.local/ns/shop/sa/a-sa"))
		cut("DENY of a by tunnel", now, tunnel)
		now = time.Now()
		m.policy(denyPrincipal("cluster.local/ns/shop/sa/c-sa"))
		cut("DENY of c inside the node", now, inside)
		alive("never denied", kept)
		m.forget("shop/strict")
		m.forget("shop/deny")
		alive("after the policies went", kept)
		if flip < flips-1 {
			tunnel, inside, plain = open(a), open(c), open(out)
		}
	}
	if n := m.nodes["n2"].proxy.Open(); n < each {
		t.Errorf("%d connections are open at the server's node, want at least the %d that were never denied", n, each)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}
