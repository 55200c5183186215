package forward

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/listener"
)

func TestHeadersOfThePROXYProtocol(t *testing.T) {
	ap := netip.MustParseAddrPort
	none := netip.AddrPort{}
	sig := "0d0a0d0a000d0a515549540a"
	for _, c := range []struct {
		client, dest netip.AddrPort
		one, two     string
	}{
		{ap("10.0.0.1:4000"), ap("10.96.0.1:80"), "PROXY TCP4 10.0.0.1 10.96.0.1 4000 80\r\n", sig + "2111000c0a0000010a6000010fa00050"},
		{ap("[2001:db8::1]:4000"), ap("[2001:db8::2]:80"), "PROXY TCP6 2001:db8::1 2001:db8::2 4000 80\r\n",
			sig + "21210024" + "20010db8000000000000000000000001" + "20010db8000000000000000000000002" + "0fa00050"},
		{ap("[::ffff:10.0.0.1]:4000"), ap("10.96.0.1:80"), "PROXY TCP4 10.0.0.1 10.96.0.1 4000 80\r\n", sig + "2111000c0a0000010a6000010fa00050"},
		{ap("10.0.0.1:4000"), ap("[2001:db8::2]:80"), "PROXY TCP6 ::ffff:10.0.0.1 2001:db8::2 4000 80\r\n",
			sig + "21210024" + "00000000000000000000ffff0a000001" + "20010db8000000000000000000000002" + "0fa00050"},
		{none, ap("10.96.0.1:80"), "PROXY UNKNOWN\r\n", sig + "20000000"},
	} {
		if got := string(proxyHeader(1, c.client, c.dest)); got != c.one {
			t.Errorf("%v to %v, version 1: %q, want %q", c.client, c.dest, got, c.one)
		}
		if got := hex.EncodeToString(proxyHeader(2, c.client, c.dest)); got != c.two {
			t.Errorf("%v to %v, version 2: %s, want %s", c.client, c.dest, got, c.two)
		}
	}
}

// announced is a connection of a server that demands the PROXY protocol. RemoteAddr is what the header says.
type announced struct {
	net.Conn
	r    *bufio.Reader
	addr string
}

func (a *announced) Read(p []byte) (int, error) { return a.r.Read(p) }
func (a *announced) RemoteAddr() net.Addr       { return textAddr(a.addr) }

type textAddr string

func (a textAddr) Network() string { return "tcp" }
func (a textAddr) String() string  { return string(a) }

// announcedListener takes headers of both versions.
type announcedListener struct{ net.Listener }

func (l announcedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		a := &announced{Conn: c, r: bufio.NewReader(c)}
		if err := a.header(); err == nil {
			return a, nil
		}
		c.Close()
	}
}

func (a *announced) header() error {
	b, err := a.r.Peek(16)
	if err != nil {
		return err
	}
	if strings.HasPrefix(string(b), "PROXY ") {
		l, err := a.r.ReadString('\n')
		if err != nil {
			return err
		}
		var fam, src, dst string
		var sp, dp int
		if _, err := fmt.Sscanf(l, "PROXY %s %s %s %d %d\r\n", &fam, &src, &dst, &sp, &dp); err != nil {
			return err
		}
		a.addr = fmt.Sprintf("%s:%d to %s:%d", src, sp, dst, dp)
		return nil
	}
	if string(b[:12]) != proxySignature || b[12] != 0x21 || b[13] != 0x11 {
		return fmt.Errorf("no header: %q", b)
	}
	h := make([]byte, 16+binary.BigEndian.Uint16(b[14:]))
	if _, err := io.ReadFull(a.r, h); err != nil {
		return err
	}
	ip := func(b []byte) netip.Addr { x, _ := netip.AddrFromSlice(b); return x }
	a.addr = fmt.Sprintf("%v:%d to %v:%d", ip(h[16:20]), binary.BigEndian.Uint16(h[24:]), ip(h[20:24]), binary.BigEndian.Uint16(h[26:]))
	return nil
}

func proxySocket(version, inner string) string {
	return fmt.Sprintf(`{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
	 "config": {"version": %q}, "transport_socket": {"name": "inner", "typed_config": %s}}`, version, inner)
}

const rawSocket = `{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}`

func TestTheEndpointIsToldOfTheClientByThePROXYProtocol(t *testing.T) {
	a := newAuthority(t)
	for _, version := range []string{"V1", "V2"} {
		for _, secure := range []bool{false, true} {
			r := newRig(t)
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, q.RemoteAddr) }))
			s.Listener = announcedListener{s.Listener}
			s.Config.ErrorLog = quiet
			inner := rawSocket
			if secure {
				s.TLS = &tls.Config{Certificates: []tls.Certificate{a.issue("x.example")}}
				s.StartTLS()
				inner = upstreamTLS("x.example", "file-root:"+a.file, "", "x.example")
			} else {
				s.Start()
			}
			t.Cleanup(s.Close)
			addr := s.Listener.Addr().String()
			r.cluster("direct", `"transport_socket": {"name": "p", "typed_config": `+proxySocket(version, inner)+`}`, addr)
			r.mesh("mesh", proxySocket(version, inner), "", r.pod(addr, joins{}))
			r.routes(`[{"match": {"prefix": "/direct"}, "route": {"cluster": "direct"}}, {"match": {"prefix": "/mesh"}, "route": {"cluster": "mesh"}}]`)
			clients := []*http.Client{r.client(), r.client()}
			for range 3 {
				for _, path := range []string{"/direct", "/mesh"} {
					for _, c := range clients {
						_, body := get(t, c, path)
						src, dst, _ := strings.Cut(body, " to ")
						if from, err := netip.ParseAddrPort(src); err != nil || from.Addr() != r.addr.Addr() || dst != vip.String() {
							t.Errorf("%s, TLS %v, %s: %q", version, secure, path, body)
						}
					}
				}
			}
		}
	}
}

func TestConnectionsThatNameTheirClientAreForNoOther(t *testing.T) {
	r := newRig(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { io.WriteString(w, q.RemoteAddr) }))
	s.Listener = announcedListener{s.Listener}
	s.Start()
	t.Cleanup(s.Close)
	r.cluster("reviews", `"transport_socket": {"name": "p", "typed_config": `+proxySocket("V2", rawSocket)+`}`, s.Listener.Addr().String())
	r.routes(toReviews)
	second := r.another()
	one, two := r.client(), second.client()
	seen := map[string]bool{}
	for range 3 {
		_, a := get(t, one, "/")
		_, b := get(t, two, "/")
		if a == b {
			t.Fatalf("both clients are %s", a)
		}
		seen[a], seen[b] = true, true
	}
	if len(seen) != 2 {
		t.Errorf("2 clients were seen as %v", seen)
	}
}

func TestATCPConnectionBeginsWithThePROXYProtocolsHeader(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		c, err := announcedListener{ln}.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%s sent %s", c.RemoteAddr(), b)
	}()
	r.cluster("db", `"transport_socket": {"name": "p", "typed_config": `+proxySocket("V1", rawSocket)+`}`, ln.Addr().String())
	r.target(&listener.Target{TCP: raw(t, "db")})
	c, err := r.dial(t.Context(), vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "hello")
	c.(interface{ CloseWrite() error }).CloseWrite()
	b, err := io.ReadAll(c)
	if !strings.HasSuffix(string(b), " to "+vip.String()+" sent hello") || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// readProxy is a naive reader of a header that is all of b. Addresses that are of different families come as IPv6.
func readProxy(b []byte) (client, dest netip.AddrPort, local bool, err error) {
	if !bytes.HasPrefix(b, []byte(proxySignature)) {
		if len(b) > 107 || !bytes.HasSuffix(b, []byte("\r\n")) {
			return client, dest, false, fmt.Errorf("no line of 107 bytes: %q", b)
		}
		f := strings.Split(string(b[:len(b)-2]), " ")
		if len(f) == 2 && f[0] == "PROXY" && f[1] == "UNKNOWN" {
			return client, dest, true, nil
		}
		if len(f) != 6 || f[0] != "PROXY" || f[1] != "TCP4" && f[1] != "TCP6" {
			return client, dest, false, fmt.Errorf("fields %q", f)
		}
		if client, err = netip.ParseAddrPort(net.JoinHostPort(f[2], f[4])); err != nil {
			return client, dest, false, err
		}
		if dest, err = netip.ParseAddrPort(net.JoinHostPort(f[3], f[5])); err != nil {
			return client, dest, false, err
		}
		if four := f[1] == "TCP4"; client.Addr().Is4() != four || dest.Addr().Is4() != four {
			return client, dest, false, fmt.Errorf("%s with %v and %v", f[1], client, dest)
		}
		return client, dest, false, nil
	}
	b = b[len(proxySignature):]
	if len(b) < 4 || int(binary.BigEndian.Uint16(b[2:])) != len(b)-4 {
		return client, dest, false, fmt.Errorf("length of %x", b)
	}
	n := map[byte]int{0x11: 4, 0x21: 16}[b[1]]
	switch {
	case b[0] == 0x20 && len(b) == 4:
		return client, dest, true, nil
	case b[0] != 0x21 || n == 0 || len(b) != 4+2*n+4:
		return client, dest, false, fmt.Errorf("header %x", b)
	}
	b = b[4:]
	src, _ := netip.AddrFromSlice(b[:n])
	dst, _ := netip.AddrFromSlice(b[n : 2*n])
	return netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[2*n:])), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2*n+2:])), false, nil
}

// FuzzProxyHeader has a naive reader read what is written: the addresses come back, in both versions.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte{10, 0, 0, 1}, uint16(4000), []byte{10, 96, 0, 1}, uint16(80), "")
	f.Add([]byte{10, 0, 0, 1}, uint16(0), netip.MustParseAddr("2001:db8::1").AsSlice(), uint16(65535), "eth0")
	f.Add(netip.MustParseAddr("::ffff:10.0.0.1").AsSlice(), uint16(1), []byte{10, 96, 0, 1}, uint16(80), "")
	f.Add(netip.MustParseAddr("fe80::1").AsSlice(), uint16(1), netip.MustParseAddr("fe80::2").AsSlice(), uint16(80), "eth0\r\nPROXY")
	f.Add([]byte{}, uint16(1), []byte{1, 2, 3, 4}, uint16(2), "")
	f.Fuzz(func(t *testing.T, from []byte, fromPort uint16, to []byte, toPort uint16, zone string) {
		src, _ := netip.AddrFromSlice(from)
		dst, _ := netip.AddrFromSlice(to)
		if src.Is6() && !src.Is4In6() {
			src = src.WithZone(zone)
		}
		client, dest := netip.AddrPortFrom(src, fromPort), netip.AddrPortFrom(dst, toPort)
		for _, version := range []int{1, 2} {
			b := proxyHeader(version, client, dest)
			gotClient, gotDest, local, err := readProxy(b)
			if err != nil {
				t.Fatalf("%v to %v, version %d: %q: %v", client, dest, version, b, err)
			}
			if known := client.IsValid() && dest.IsValid(); local == known {
				t.Fatalf("%v to %v, version %d: %q", client, dest, version, b)
			} else if !known {
				continue
			}
			same := func(got, want netip.AddrPort) bool {
				return got.Port() == want.Port() && got.Addr().Unmap() == want.Addr().Unmap().WithZone("")
			}
			if !same(gotClient, client) || !same(gotDest, dest) {
				t.Fatalf("%v to %v, version %d: %v to %v", client, dest, version, gotClient, gotDest)
			}
		}
	})
}
