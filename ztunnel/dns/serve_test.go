package dns

import (
	"bytes"
	"context"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// testServer is a server of the fixture's mesh.
type testServer struct {
	*Server
	registry *telemetry.Registry
}

func newServer(t *testing.T, cfg Config) *testServer {
	t.Helper()
	cfg.Lookup, cfg.Workloads = lookup, workload.NewStore(workload.Config{})
	fill(t, cfg.Workloads, fixture()...)
	r := telemetry.NewRegistry(telemetry.Config{})
	cfg.Metrics = telemetry.NewZtunnel(r)
	return &testServer{New(cfg), r}
}

// wantMetric wants a line of the metrics.
func (s *testServer) wantMetric(t *testing.T, name, qtype, protocol, value string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.registry.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, name+"{") && strings.Contains(line, `request_query_type="`+qtype+`"`) && strings.Contains(line, `request_protocol="`+protocol+`"`) {
			if f := strings.Fields(line); f[len(f)-1] != value {
				t.Errorf("got %q, want %s", line, value)
			}
			return
		}
	}
	t.Errorf("no %s of %s over %s", name, qtype, protocol)
}

// newTestPod makes a pod of namespace shop without sockets.
func newTestPod(t *testing.T, s *testServer) *pod {
	t.Helper()
	p := &pod{s: s.Server, name: "client", namespace: "shop", slots: make(chan struct{}, s.cfg.MaxPerPod), conns: make(chan struct{}, maxConns)}
	p.ctx, p.cancel = context.WithCancel(t.Context())
	p.taking, p.leave = context.WithCancel(p.ctx)
	t.Cleanup(func() { p.cancel(); p.wg.Wait() })
	return p
}

// ask has the pod serve a datagram; the answer comes by the channel.
func (p *pod) ask(b []byte) <-chan []byte {
	out := make(chan []byte, 1)
	p.serve(query{b: b, to: netip.MustParseAddrPort("192.0.2.53:53"), reply: func(b []byte) { out <- b }})
	return out
}

// loopback reaches one nameserver, whoever is asked for.
type loopback struct {
	udp, tcp net.Addr
}

func (l loopback) socket(_ *netns.NS, _ netip.AddrPort, typ int) (int, error) {
	var to netip.AddrPort
	if typ == unix.SOCK_STREAM {
		to = l.tcp.(*net.TCPAddr).AddrPort()
	} else {
		to = l.udp.(*net.UDPAddr).AddrPort()
	}
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// nameserver serves f on loopback.
func nameserver(t *testing.T, f dns.HandlerFunc) loopback {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveDNS(t, &dns.Server{PacketConn: pc, Handler: f}, &dns.Server{Listener: l, Handler: f})
	return loopback{pc.LocalAddr(), l.Addr()}
}

func serveDNS(t *testing.T, servers ...*dns.Server) {
	for _, s := range servers {
		started, ended := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			<-ended
		})
	}
}

func echo(w dns.ResponseWriter, m *dns.Msg) {
	r := new(dns.Msg).SetReply(m)
	if m.Opcode == dns.OpcodeQuery {
		r.Answer = append(r.Answer, &dns.TXT{Hdr: header(m.Question[0].Name, dns.TypeTXT), Txt: []string{"nameserver"}})
	}
	_ = w.WriteMsg(r)
}

func TestAForwardedQueryArrivesUnchangedButForItsID(t *testing.T) {
	arrived := make(chan *dns.Msg, 3)
	s := newServer(t, Config{})
	s.dial = nameserver(t, func(w dns.ResponseWriter, m *dns.Msg) {
		arrived <- m.Copy()
		echo(w, m)
	})
	p := newTestPod(t, s)
	kept := 0
	for range 2 {
		m := asking("www.example.org.", dns.TypeTXT)
		m.CheckingDisabled, m.AuthenticatedData, m.RecursionDesired = true, true, false
		m.SetEdns0(3000, true)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"})
		m.Id = 7
		r := unpacked(t, <-p.ask(packed(t, m)))
		if r.Id != m.Id || len(r.Answer) != 1 || r.Answer[0].(*dns.TXT).Txt[0] != "nameserver" {
			t.Errorf("got %v", r)
		}
		got := <-arrived
		if got.Id == m.Id {
			kept++
		}
		m.Id = got.Id
		if !bytes.Equal(packed(t, got), packed(t, m)) {
			t.Errorf("arrived: %v, want %v", got, m)
		}
	}
	if kept == 2 {
		t.Error("the client's ID went on")
	}
	if r := unpacked(t, <-p.ask(packed(t, new(dns.Msg).SetNotify("example.org.")))); r.Opcode != dns.OpcodeNotify || r.Rcode != dns.RcodeSuccess {
		t.Errorf("NOTIFY: got %v", r)
	}
	s.wantMetric(t, "istio_dns_requests_total", "TXT", "udp", "2.0")
	s.wantMetric(t, "istio_dns_upstream_requests_total", "TXT", "udp", "2.0")
	s.wantMetric(t, "istio_dns_upstream_request_duration_seconds_count", "TXT", "udp", "2")
}

// B29: a spoofed answer, and one lost.
func TestALostOrForeignAnswerIsWaitedOut(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 4096)
		for i := 0; ; i++ {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if i == 0 {
				continue // lost
			}
			m := new(dns.Msg)
			if m.Unpack(buf[:n]) != nil {
				return
			}
			r := new(dns.Msg).SetReply(m)
			r.Answer = append(r.Answer, record(m.Question[0].Name, netip.MustParseAddr("192.0.2.1")))
			good, _ := r.Pack()
			r.Id++
			r.Answer[0] = record(m.Question[0].Name, netip.MustParseAddr("6.6.6.6"))
			bad, _ := r.Pack()
			for _, b := range [][]byte{{}, {1}, bad, buf[:n], good} {
				_, _ = pc.WriteTo(b, from)
			}
		}
	}()
	s := newServer(t, Config{Timeout: 3 * time.Second})
	s.dial = loopback{udp: pc.LocalAddr()}
	r := unpacked(t, <-newTestPod(t, s).ask(packed(t, asking("www.example.org.", dns.TypeA))))
	if len(r.Answer) != 1 || !strings.Contains(r.Answer[0].String(), "192.0.2.1") {
		t.Errorf("got %v", r)
	}
}

func TestADeadNameserverFailsOnlyNamesOutsideOfTheMesh(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	l.Close() // refuses
	for name, d := range map[string]dialer{"silent": loopback{pc.LocalAddr(), l.Addr()}, "none": nil} {
		s := newServer(t, Config{Timeout: 50 * time.Millisecond})
		s.dial = d
		p := newTestPod(t, s)
		if r := unpacked(t, <-p.ask(packed(t, asking("www.example.org.", dns.TypeA)))); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: outside: got %v", name, r)
		}
		if r := unpacked(t, <-p.ask(packed(t, asking("web.", dns.TypeA)))); r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 {
			t.Errorf("%s: the mesh: got %v", name, r)
		}
		if r := unpacked(t, <-p.ask(packed(t, asking("web.", dns.TypeMX)))); r.Rcode != dns.RcodeSuccess || len(r.Answer) != 0 {
			t.Errorf("%s: another type: got %v", name, r)
		}
		s.wantMetric(t, "istio_dns_upstream_failures_total", "A", "udp", "1.0")
	}
}

// B29: storms of names that do not exist, floods of ANY.
func TestAStormOfOnePodLeavesTheOthersTheirShare(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, Config{Max: 6, MaxPerPod: 4, Timeout: time.Minute})
	s.dial = nameserver(t, func(w dns.ResponseWriter, m *dns.Msg) {
		<-release
		echo(w, m)
	})
	stormy, calm := newTestPod(t, s), newTestPod(t, s)
	var waiting []<-chan []byte
	for i := range 20 {
		out := stormy.ask(packed(t, asking("x.example.org.", []uint16{dns.TypeA, dns.TypeANY}[i%2])))
		if i < 4 {
			waiting = append(waiting, out)
		} else if r := unpacked(t, <-out); r.Rcode != dns.RcodeServerFailure {
			t.Fatalf("query %d: got %v", i, r)
		}
	}
	if r := unpacked(t, <-stormy.ask(packed(t, asking("web.", dns.TypeA)))); len(r.Answer) != 1 {
		t.Errorf("the stormy pod's own mesh: got %v", r)
	}
	for range 2 {
		waiting = append(waiting, calm.ask(packed(t, asking("y.example.org.", dns.TypeA))))
	}
	if r := unpacked(t, <-calm.ask(packed(t, asking("y.example.org.", dns.TypeA)))); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("beyond the node's bound: got %v", r)
	}
	close(release)
	for i, out := range waiting {
		if r := unpacked(t, <-out); r.Rcode != dns.RcodeSuccess {
			t.Errorf("waiting query %d: got %v", i, r)
		}
	}
}

func TestUntilTheControlPlaneHasSpokenQueriesWaitAndThenFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		synced := make(chan struct{})
		s := newServer(t, Config{Synced: synced})
		p := newTestPod(t, s)
		start := time.Now()
		if r := unpacked(t, <-p.ask(packed(t, asking("web.", dns.TypeA)))); r.Rcode != dns.RcodeServerFailure || time.Since(start) != DefaultWait {
			t.Errorf("got %v after %v", r, time.Since(start))
		}
		out := p.ask(packed(t, asking("web.", dns.TypeA)))
		time.Sleep(time.Second)
		close(synced)
		if r := unpacked(t, <-out); len(r.Answer) != 1 {
			t.Errorf("got %v", r)
		}
		p.cancel()
		p.wg.Wait()
	})
}

func TestWithTheProxyOffEverythingIsForwarded(t *testing.T) {
	s := newServer(t, Config{Off: true})
	s.dial = nameserver(t, echo)
	if r := unpacked(t, <-newTestPod(t, s).ask(packed(t, asking("web.", dns.TypeA)))); len(r.Answer) != 1 || r.Answer[0].Header().Rrtype != dns.TypeTXT {
		t.Errorf("got %v", r)
	}
}

// connect makes a connection to the pod.
func connect(t *testing.T, p *pod) *os.File {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(fds[0]), "client")
	t.Cleanup(func() { ours.Close() })
	p.wg.Go(func() { p.serveClient(os.NewFile(uintptr(fds[1]), "pod"), netip.MustParseAddrPort("192.0.2.53:53")) })
	if err := ours.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return ours
}

func TestAConnectionCarriesManyQueriesAtATime(t *testing.T) {
	s := newServer(t, Config{})
	s.dial = nameserver(t, echo)
	c := connect(t, newTestPod(t, s))
	const n = 2 * maxPipelined
	go func() {
		for i := range n {
			m := asking([]string{"web.", "www.example.org."}[i%2], dns.TypeA)
			m.Id = uint16(i)
			b, _ := m.Pack()
			_ = writeMessage(c, b)
		}
	}()
	got := map[uint16]int{}
	for range n {
		b, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		r := unpacked(t, b)
		if got[r.Id]++; len(r.Answer) != 1 {
			t.Errorf("got %v", r)
		}
	}
	if len(got) != n {
		t.Errorf("%d different answers, want %d", len(got), n)
	}
}

// B29: 64 KiB over TCP, both ways.
func TestMessagesOf64KiBPassOverAConnection(t *testing.T) {
	big := func(m *dns.Msg) {
		text := &dns.TXT{Hdr: header(".", dns.TypeTXT)}
		for range 254 {
			text.Txt = append(text.Txt, strings.Repeat("x", 255))
		}
		m.Extra = append(m.Extra, text)
	}
	s := newServer(t, Config{})
	s.dial = nameserver(t, func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		r.Extra = m.Extra
		_ = w.WriteMsg(r)
	})
	c := connect(t, newTestPod(t, s))
	m := asking("www.example.org.", dns.TypeA)
	big(m)
	q := packed(t, m)
	if len(q) < 60000 {
		t.Fatalf("%d bytes", len(q))
	}
	if err := writeMessage(c, q); err != nil {
		t.Fatal(err)
	}
	if b, err := readMessage(c); err != nil || len(b) != len(q) {
		t.Errorf("got %d bytes, %v, want %d", len(b), err, len(q))
	}
	// What is no DNS at all ends the connection, or is answered as malformed.
	junk := bytes.Repeat([]byte{0x55}, 65535)
	if err := writeMessage(c, junk); err != nil {
		t.Fatal(err)
	}
	if b, err := readMessage(c); err == nil && b[3]&rcodeMask == dns.RcodeSuccess {
		t.Errorf("junk: got %x", b[:headerLen])
	}
}

func TestAZoneTransferIsTheNameserversConnection(t *testing.T) {
	s := newServer(t, Config{})
	s.dial = nameserver(t, func(w dns.ResponseWriter, m *dns.Msg) {
		for range 3 {
			echo(w, m)
		}
		w.Close()
	})
	c := connect(t, newTestPod(t, s))
	m := asking("example.org.", dns.TypeAXFR)
	if err := writeMessage(c, packed(t, m)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if b, err := readMessage(c); err != nil || unpacked(t, b).Id != m.Id {
			t.Fatalf("message %d: %x, %v", i, b, err)
		}
	}
	if b, err := readMessage(c); err == nil {
		t.Errorf("after the end: %x", b)
	}
}

func TestAnIdleConnectionIsClosed(t *testing.T) {
	s := newServer(t, Config{Timeout: 50 * time.Millisecond})
	c := connect(t, newTestPod(t, s))
	if _, err := c.Write([]byte{0}); err != nil { // half a length
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes", n)
	}
}

func TestADatagramHasTheChecksumThatItsReceiverWants(t *testing.T) {
	for _, c := range []struct{ from, to string }{{"10.96.0.10:53", "10.1.2.3:40000"}, {"[fd00::10]:53", "[fd00:1::3]:40001"}} {
		from, to := netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to)
		for _, payload := range []string{"", "x", "even", strings.Repeat("odd", 1001)} {
			p := datagram(from, to, []byte(payload))
			udp := p[len(p)-len(payload)-udpHeaderLen:]
			if got := checksum(from.Addr().AsSlice(), to.Addr().AsSlice(), udp); got != 0xffff {
				t.Errorf("%s, %d bytes: sum of all is %#x", c.from, len(payload), got)
			}
			if !bytes.HasSuffix(p, []byte(payload)) || int(udp[4])<<8+int(udp[5]) != len(udp) {
				t.Errorf("%s: %x", c.from, p)
			}
		}
	}
}
