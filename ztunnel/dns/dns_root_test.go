package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

const (
	clientIP, clientIP6 = "10.99.0.1", "fd99::1"
	serverIP, serverIP6 = "10.99.0.53", "fd99::53"
	otherIP             = "10.99.0.54"
)

// node is a pod with real redirection, nameservers on another pod, and the server under test.
type node struct {
	t           *testing.T
	kern        *redirect.Node
	pod, server *netns.NS
	listeners   redirect.Listeners
	sockets     redirect.DNSSockets
	proxy       *testServer

	mu    sync.Mutex
	asked []string // "question from address" that nameservers got
}

func newNode(t *testing.T) *node {
	t.Helper()
	netnstest.RequireRoot(t)
	router := netnstest.NewRouter(t)
	n := &node{t: t, pod: router.Pod(clientIP, clientIP6), server: router.Pod(serverIP, serverIP6)}
	netnstest.Must(t, n.server.AddAddr("eth0", netip.MustParsePrefix(otherIP+"/32")),
		router.NS.AddRoute(netns.Route{Dst: netip.MustParsePrefix(otherIP + "/32"), Dev: "pod2"}))
	dir := filepath.Join(t.TempDir(), "bpf")
	var err error
	if n.kern, err = redirect.Open(redirect.Config{PinDir: dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netnstest.Must(t, n.kern.Close(), redirect.Unload(dir)) })
	if n.listeners, err = redirect.Listen(n.pod); err != nil {
		t.Fatal(err)
	}
	if n.sockets, err = redirect.ListenDNS(n.pod); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.listeners.Close(); n.sockets.Close() })
	for _, ip := range []string{serverIP, serverIP6, otherIP} {
		n.nameserver(ip)
	}
	return n
}

func (n *node) attach(dns redirect.DNSSockets) {
	n.t.Helper()
	addrs := []netip.Addr{netip.MustParseAddr(clientIP), netip.MustParseAddr(clientIP6)}
	if err := n.kern.Attach(redirect.Pod{UID: "u", NS: n.pod, Addrs: addrs, Listeners: n.listeners, DNS: dns}); err != nil {
		n.t.Fatal(err)
	}
	if p := n.kern.Verify("u"); len(p) > 0 {
		n.t.Fatalf("redirection: %v", p)
	}
}

// nameserver answers every question, at an address of the server's pod, with a TXT record that says which it is.
func (n *node) nameserver(ip string) {
	n.t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		host, _, _ := net.SplitHostPort(w.RemoteAddr().String())
		n.mu.Lock()
		n.asked = append(n.asked, m.Question[0].Name+" from "+host)
		n.mu.Unlock()
		r := new(dns.Msg).SetReply(m)
		r.Answer = append(r.Answer, &dns.TXT{Hdr: header(m.Question[0].Name, dns.TypeTXT), Txt: []string{"server " + ip}})
		if m.Question[0].Name == "long.example." {
			if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
				r.Answer, r.Truncated = nil, true
			}
		}
		_ = w.WriteMsg(r)
	})
	serveDNS(n.t, n.serverIn(n.server, ip, handler)...)
}

func (n *node) serverIn(ns *netns.NS, ip string, h dns.Handler) []*dns.Server {
	n.t.Helper()
	at := net.JoinHostPort(ip, "53")
	var pc net.PacketConn
	var l net.Listener
	netnstest.Must(n.t, ns.Do(func() (err error) {
		if pc, err = net.ListenPacket("udp", at); err == nil {
			l, err = net.Listen("tcp", at)
		}
		return err
	}))
	return []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}}
}

// proxied serves the pod until stop is called, at the latest when the test ends.
func (n *node) proxied(cfg Config) (stop func()) {
	n.t.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(n.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := newServer(n.t, cfg)
	n.proxy = s
	setup := zds.Setup{Exempt: file(n.t, n.kern.ExemptFD())}
	setup.Mark, setup.Mask = n.kern.Mark()
	netnstest.Must(n.t, s.SetupNode(setup), setup.Exempt.Close())
	w := &zds.Workload{UID: "u", Name: "client", Namespace: "shop", ServiceAccount: "sa", Files: zds.Files{
		NetNS: file(n.t, n.pod.FD()), Outbound: file(n.t, n.listeners.Outbound), Plaintext: file(n.t, n.listeners.Plaintext),
		HBONE: file(n.t, n.listeners.HBONE), DNS: file(n.t, n.sockets.Datagram), DNSStream: file(n.t, n.sockets.Stream),
	}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	netnstest.Must(n.t, s.StartPod(ctx, w), w.Files.Close())
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				n.t.Error(err)
			}
		})
	}
	n.t.Cleanup(stop)
	return stop
}

func file(t *testing.T, fd int) *zds.File {
	t.Helper()
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return zds.NewFile(d)
}

// ask asks a nameserver from inside of the pod.
func (n *node) ask(network, server, name string, qtype uint16) (*dns.Msg, error) {
	c := dns.Client{Net: network, Timeout: 10 * time.Second}
	var r *dns.Msg
	err := n.pod.Do(func() (err error) {
		r, _, err = c.Exchange(asking(name, qtype), net.JoinHostPort(server, "53"))
		return err
	})
	return r, err
}

func (n *node) want(network, server, name string, qtype uint16, want string) {
	n.t.Helper()
	r, err := n.ask(network, server, name, qtype)
	got := fmt.Sprint(err)
	if err == nil {
		got = dns.RcodeToString[r.Rcode]
		for _, rr := range r.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				got += " " + rr.A.String()
			case *dns.AAAA:
				got += " " + rr.AAAA.String()
			case *dns.TXT:
				got += " " + rr.Txt[0]
			}
		}
	}
	if got != want {
		n.t.Errorf("%s asked %s about %s: got %q, want %q", network, server, name, got, want)
	}
}

func TestRootQueriesOfAPodAreAnsweredByTheMeshOrByItsOwnNameserver(t *testing.T) {
	n := newNode(t)
	n.attach(n.sockets)
	n.proxied(Config{})
	for _, network := range []string{"udp", "tcp"} {
		for _, server := range []string{serverIP, serverIP6, otherIP} {
			n.want(network, server, "web.", dns.TypeA, "NOERROR 10.96.0.1")
			n.want(network, server, "api.other.", dns.TypeAAAA, "NOERROR fd00::3")
			n.want(network, server, "web.", dns.TypeAAAA, "NOERROR")
			n.want(network, server, "www.example.org.", dns.TypeA, "NOERROR server "+server)
		}
	}
	// Names of the mesh need no nameserver; others fail with theirs, and soon.
	n.want("udp", "10.99.0.99", "web.", dns.TypeA, "NOERROR 10.96.0.1")
	n.want("tcp", "10.99.0.99", "web.", dns.TypeA, "NOERROR 10.96.0.1")
	n.want("udp", "10.99.0.99", "www.example.org.", dns.TypeA, "SERVFAIL")
	// The answer is cut: the client asks again over TCP.
	if r, err := n.ask("udp", serverIP, "long.example.", dns.TypeA); err != nil || !r.Truncated {
		t.Errorf("got %v, %v", r, err)
	}
	n.want("tcp", serverIP, "long.example.", dns.TypeA, "NOERROR server "+serverIP)
	// The nameserver sees the pod, as its NetworkPolicy does.
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, q := range n.asked {
		if !strings.HasSuffix(q, " from "+clientIP) && !strings.HasSuffix(q, " from "+clientIP6) || strings.HasPrefix(q, "web.") {
			t.Errorf("a nameserver was asked %s", q)
		}
	}
	n.proxy.wantMetric(t, "istio_dns_requests_total", "A", "udp", "9.0")
}

func TestRootForeignResolversWorkInACapturedPod(t *testing.T) {
	n := newNode(t)
	n.attach(n.sockets)
	n.proxied(Config{})
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	text := fmt.Sprintf("search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver %s\nnameserver %s\noptions ndots:5\n", serverIP, otherIP)
	netnstest.Must(t, os.WriteFile(conf, []byte(text), 0o644))
	for name, want := range map[string]string{
		"web": "10.96.0.1", "web.other": "10.96.0.2", "api.other.svc": "10.96.0.3", "db-1.db": "10.1.0.11",
		"db": "10.1.0.11", "api.example.com": "240.240.0.1", "x.wild.example.com": "240.240.0.3",
	} {
		script := "mount --bind " + conf + " /etc/resolv.conf && getent -s dns ahosts " + name
		if out := netnstest.Output(t, n.pod, "unshare", "-m", "sh", "-c", script); !strings.Contains(out, want+" ") {
			t.Errorf("getent ahosts %s: got %q, want %s", name, out, want)
		}
	}
}

func TestRootOneSocketMayAskTwoNameservers(t *testing.T) {
	n := newNode(t)
	n.attach(n.sockets)
	n.proxied(Config{})
	var c net.PacketConn
	netnstest.Must(t, n.pod.Do(func() (err error) {
		c, err = net.ListenPacket("udp", clientIP+":0")
		return err
	}))
	defer c.Close()
	netnstest.Must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	for _, name := range []string{"web.", "www.example.org."} {
		for _, server := range []string{serverIP, otherIP} {
			to := netip.AddrPortFrom(netip.MustParseAddr(server), 53)
			if _, err := c.WriteTo(packed(t, asking(name, dns.TypeA)), net.UDPAddrFromAddrPort(to)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 4096)
			k, from, err := c.ReadFrom(buf)
			if err != nil {
				t.Fatalf("answer of %s about %s: %v", server, name, err)
			}
			if from.String() != to.String() || len(unpacked(t, buf[:k]).Answer) != 1 {
				t.Errorf("answer from %v, want %v", from, to)
			}
		}
	}
}

func TestRootADNSServerInACapturedPodIsLeftAlone(t *testing.T) {
	n := newNode(t)
	n.attach(n.sockets)
	n.proxied(Config{})
	n.want("udp", serverIP, "web.", dns.TypeA, "NOERROR 10.96.0.1")
	own := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		r.Answer = append(r.Answer, &dns.TXT{Hdr: header(m.Question[0].Name, dns.TypeTXT), Txt: []string{"own"}})
		_ = w.WriteMsg(r)
	})
	// The port is free although answers seem to come from it.
	serveDNS(t, n.serverIn(n.pod, "0.0.0.0", own)...)
	for _, at := range []string{clientIP, "127.0.0.1"} {
		n.want("udp", at, "web.", dns.TypeA, "NOERROR own")
		n.want("tcp", at, "web.", dns.TypeA, "NOERROR own")
	}
	n.want("udp", serverIP, "web.", dns.TypeA, "NOERROR 10.96.0.1")
	// From outside too; and our own port is nobody's nameserver.
	c := dns.Client{Timeout: 10 * time.Second}
	netnstest.Must(t, n.server.Do(func() error {
		r, _, err := c.Exchange(asking("web.", dns.TypeA), clientIP+":53")
		if err == nil && len(r.Answer) != 1 {
			err = fmt.Errorf("got %v", r)
		}
		return err
	}))
	if err := n.server.Do(func() error {
		_, _, err := c.Exchange(asking("web.", dns.TypeA), fmt.Sprintf("%s:%d", clientIP, redirect.DNSPort))
		return err
	}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("our own port, from outside: %v", err)
	}
}

func TestRootQueriesWaitWhileTheProxyIsReplaced(t *testing.T) {
	n := newNode(t)
	n.attach(n.sockets)
	stop := n.proxied(Config{})
	n.want("udp", serverIP, "web.", dns.TypeA, "NOERROR 10.96.0.1")
	stop()
	type result struct {
		r   *dns.Msg
		err error
	}
	out := make(chan result, 2)
	for _, network := range []string{"udp", "tcp"} {
		go func() {
			r, err := n.ask(network, serverIP, "web.", dns.TypeA)
			out <- result{r, err}
		}()
	}
	// Both wait in the sockets, by which it can be seen.
	for i, fd := range []int{n.sockets.Datagram, n.sockets.Stream} {
		pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if k, err := unix.Poll(pfd, 10_000); k != 1 || err != nil {
			t.Fatalf("socket %d: nothing waits: %v", i, err)
		}
	}
	n.proxied(Config{})
	for range 2 {
		if got := <-out; got.err != nil || len(got.r.Answer) != 1 {
			t.Errorf("got %v, %v", got.r, got.err)
		}
	}
}

// While a node is upgraded two proxies have the pods' sockets; the new one does not know the mesh yet.
func TestRootAProxyThatKnowsNothingLeavesQueriesToItsPredecessor(t *testing.T) {
	n := newNode(t)
	n.attach(n.sockets)
	stop := n.proxied(Config{})
	synced, alone := make(chan struct{}), make(chan struct{})
	n.proxied(Config{Synced: synced, Alone: alone, Wait: time.Nanosecond})
	const answer = "NOERROR 10.96.0.1"
	for range 50 {
		n.want("udp", serverIP, "web.", dns.TypeA, answer)
		n.want("tcp", serverIP, "web.", dns.TypeA, answer)
	}
	stop()
	close(alone)
	n.want("udp", serverIP, "web.", dns.TypeA, "SERVFAIL")
	close(synced)
	n.want("udp", serverIP, "web.", dns.TypeA, answer)
	n.want("tcp", serverIP, "web.", dns.TypeA, answer)
}

func TestRootCaptureOfDNSComesAndGoes(t *testing.T) {
	n := newNode(t)
	n.proxied(Config{})
	const captured, direct = "NOERROR 10.96.0.1", "NOERROR server " + serverIP
	n.want("udp", serverIP, "web.", dns.TypeA, direct)
	for range 2 {
		n.attach(n.sockets)
		n.want("udp", serverIP, "web.", dns.TypeA, captured)
		n.want("tcp", serverIP, "web.", dns.TypeA, captured)
		n.attach(redirect.DNSSockets{})
		n.want("udp", serverIP, "web.", dns.TypeA, direct)
	}
	n.attach(n.sockets)
	netnstest.Must(t, n.kern.Detach("u"))
	n.want("udp", serverIP, "web.", dns.TypeA, direct)
	n.want("tcp", serverIP, "web.", dns.TypeA, direct)
	n.attach(n.sockets)
	n.want("udp", serverIP, "web.", dns.TypeA, captured)
}
