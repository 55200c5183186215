package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/wire"
	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

const (
	clientID = "spiffe://cluster.local/ns/shop/sa/client"
	serverID = "spiffe://cluster.local/ns/shop/sa/server"
	bareID   = "spiffe://cluster.local/ns/outside/sa/bare"
)

// The golden bytes of ztunnel.md 3.8: SETTINGS, and WINDOW_UPDATE on stream 0 by 16711681.
const (
	goldenClient = "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a" + // preface
		"000018" + "04" + "00" + "00000000" + "000200000000" + "000400400000" + "000500100000" + "000600004000" +
		"000004" + "08" + "00" + "00000000" + "00ff0001"
	goldenServer = "000018" + "04" + "00" + "00000000" + "0003000000c8" + "000400400000" + "000500100000" + "000600010000" +
		"000004" + "08" + "00" + "00000000" + "00ff0001"
)

// bareManifests are a pod that says that it speaks HBONE itself, so that a node sends it tunnels which no ztunnel takes,
// and a cart whose baggage is that of 3.8.
const bareManifests = `
{apiVersion: v1, kind: ServiceAccount, metadata: {name: bare, namespace: outside}}
---
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: outside, labels: {app: bare, networking.istio.io/tunnel: http}}
spec:
  serviceAccountName: bare
  nodeSelector: {kubernetes.io/hostname: node-2}
  terminationGracePeriodSeconds: 1
  containers: [{name: echo, image: ambit/echo}]
---
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: outside}
spec: {selector: {app: bare}, ipFamilyPolicy: PreferDualStack, ports: [{name: tcp, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart, version: v1}}
spec:
  serviceAccountName: client
  nodeSelector: {kubernetes.io/hostname: node-1}
  terminationGracePeriodSeconds: 1
  containers: [{name: echo, image: ambit/echo}]
`

// Acceptance point 4: what stands on the wire between two nodes, and what the running ztunnel says inside of it.
func TestRootTheWireShowsTLS13AndTheGoldenBytes(t *testing.T) {
	m := start(t, lab.Options{Name: "e2ewire"})
	m.demo("start")
	t.Run("before enrolment the capture sees the marker", m.markerIsSeen)
	both := []func() wire.Report{m.tap("node-1"), m.tap("node-2")} // from before the first handshake
	m.demo("enroll.yaml")
	m.apply(bareManifests)
	m.tunnelled("node-1", "server-", true)
	m.tunnelled("node-1", "bare", true)
	t.Run("1,000 requests are TLS 1.3 only and show no marker", func(t *testing.T) {
		m.thousand(t)
		for i, stop := range both {
			if wantEncrypted(t, fmt.Sprint("node-", i+1), stop()) == 0 {
				t.Error("no tunnel was seen")
			}
		}
	})
	t.Run("a bare client sees the server's bytes", m.serversBytes)
	t.Run("a bare server sees the client's bytes", m.clientsBytes)
}

func (m *mesh) markerIsSeen(t *testing.T) {
	stop := m.tap("node-1")
	sum := m.from("shop", "client", "--fresh", "--count=10", "--data="+marker, "http://server.shop/")
	r := stop()
	if sum.OK != 10 || r.Markers() < 10 || encrypted(r) == nil {
		t.Errorf("%d of 10 served, marker seen %d times: the comparison is blind", sum.OK, r.Markers())
	}
}

// thousand makes 1,000 requests, the half of them over each family, by service and by pod.
func (m *mesh) thousand(t *testing.T) {
	t.Helper()
	to := []string{"server.shop"}
	for _, a := range ports(m.addrs("shop", "server-"), 8080) {
		to = append(to, a.String())
	}
	to = append(to, netip.AddrPortFrom(m.vips("shop", "server")[1], 80).String())
	for _, host := range to {
		sum := m.from("shop", "client", "--fresh", "--count=250", "--parallel=4", "--data="+marker, "http://"+host+"/")
		if sum.OK != 250 || !strings.Contains(sum.First, marker) {
			t.Errorf("to %s: %d of 250 served: %v", host, sum.OK, sum.Errors)
		}
	}
}

// serversBytes connects to the server's tunnel port with nothing but crypto/tls, from a pod that is not in the mesh.
func (m *mesh) serversBytes(t *testing.T) {
	server := m.addrs("shop", "server-")
	good := m.credentials("node-1", "spiffe://cluster.local/ns/outside/sa/default")
	for _, to := range server {
		t.Run(to.String(), func(t *testing.T) {
			c, err := m.openTunnel("outside", "outsider", to, good)
			netnstest.Must(t, err)
			cs := c.ConnectionState()
			if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" {
				t.Errorf("version %#x, protocol %q, want TLS 1.3 and h2", cs.Version, cs.NegotiatedProtocol)
			}
			wantOneURI(t, cs, serverID)
			_, err = c.Write(append([]byte(preface), frame{typ: typeSettings}.bytes()...))
			netnstest.Must(t, err)
			got := make([]byte, len(goldenServer)/2)
			_, err = io.ReadFull(c, got)
			if hex.EncodeToString(got) != goldenServer {
				t.Errorf("the server begins with\n%x, %v, want\n%s", got, err, goldenServer)
			}
			stream, answer, err := c.connect(":method", "CONNECT", ":authority", netip.AddrPortFrom(to, 8080).String())
			netnstest.Must(t, err)
			if len(answer) != 2 || answer[0] != ":status: 200" || !strings.HasPrefix(answer[1], "baggage: k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,") {
				t.Errorf("answer %q, want status 200 and the server's baggage", answer)
			}
			text, err := c.exchange(stream, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "local=")
			if want := "peer=" + hostPort(c.LocalAddr()); err != nil || !strings.Contains(text, want) {
				t.Errorf("got %q, %v, want %q in it (P10)", text, err, want)
			}
		})
	}
	t.Run("TLS 1.2 is refused", func(t *testing.T) {
		old := good.Clone()
		old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		if _, err := m.openTunnel("outside", "outsider", server[0], old); err == nil || !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("got %v, want an alert about the version", err)
		}
	})
	t.Run("a client without certificate is refused", func(t *testing.T) {
		none := good.Clone()
		none.Certificates = nil
		c, err := m.openTunnel("outside", "outsider", server[0], none)
		if err == nil { // in TLS 1.3 the client is done before its certificate is looked at
			_, err = c.Read(make([]byte, 1))
		}
		if err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("got %v, want an alert that asks for a certificate", err)
		}
	})
}

// hostPort is an address with its port left open: the proxy chooses another one.
func hostPort(a net.Addr) string {
	s := netip.AddrPortFrom(a.(*net.TCPAddr).AddrPort().Addr().Unmap(), 0).String()
	return strings.TrimSuffix(s, "0")
}

// seen is what a bare server saw of one tunnel and its first request.
type seen struct {
	hello  *tls.ClientHelloInfo
	state  tls.ConnectionState
	first  []byte // as many as the golden bytes have
	frames []frame
	block  []byte // of the request's header
	data   []byte
	err    error
}

// serveBare takes one tunnel on l, reads what the golden bytes foresee, answers the first request with 200, and sends its
// DATA back until the client ends.
func serveBare(l net.Listener, cfg *tls.Config) (s seen) {
	conn, err := l.Accept()
	if err != nil {
		return seen{err: err}
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	cfg = cfg.Clone()
	cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) { s.hello = h; return nil, nil }
	c := tls.Server(conn, cfg)
	defer c.Close()
	s.first = make([]byte, len(goldenClient)/2)
	if _, s.err = io.ReadFull(c, s.first); s.err != nil {
		return s
	}
	s.state = c.ConnectionState()
	if _, s.err = c.Write(frame{typ: typeSettings}.bytes()); s.err != nil {
		return s
	}
	for {
		var f frame
		if f, s.err = readUntil(c, typeHeaders, typeData, typeReset); s.err != nil {
			return s
		}
		s.frames = append(s.frames, f)
		switch f.typ {
		case typeHeaders:
			s.block = f.payload
			_, s.err = c.Write(frame{typeHeaders, endHeaders, f.stream, block(":status", "200")}.bytes())
		case typeData:
			s.data = append(s.data, f.payload...)
			_, s.err = c.Write(f.bytes())
			if f.flags&endStream != 0 {
				return s
			}
		default:
			s.err = errors.New("the client reset the stream")
		}
		if s.err != nil {
			return s
		}
	}
}

// clientsBytes stands in for the tunnel port of a pod with nothing but crypto/tls, and looks at what the ztunnel of the
// client's node sends. Each destination is another tunnel.
func (m *mesh) clientsBytes(t *testing.T) {
	cfg := m.credentials("node-2", bareID)
	var l net.Listener
	netnstest.Must(t, m.inside("outside", "bare", func() (err error) { l, err = net.Listen("tcp", ":15008"); return err }))
	defer l.Close()
	bare, vips, cart := m.addrs("outside", "bare"), m.vips("outside", "pay"), m.addrs("shop", "cart")
	for _, c := range []struct {
		name, host    string
		to, authority netip.AddrPort
		from          netip.Addr
	}{
		{"a pod over IPv4", "", netip.AddrPortFrom(bare[0], 8080), netip.AddrPortFrom(bare[0], 8080), cart[0]},
		{"a pod over IPv6", "", netip.AddrPortFrom(bare[1], 8080), netip.AddrPortFrom(bare[1], 8080), cart[1]},
		{"a service over IPv4", ";host=pay.outside.svc.cluster.local", netip.AddrPortFrom(vips[0], 80), netip.AddrPortFrom(bare[0], 8080), cart[0]},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.in(t).program("restart", "ztunnel/node-1", "proxy") // no tunnel is there yet
			got := make(chan seen, 1)
			go func() { got <- serveBare(l, cfg) }() // ends with the connection below, or by its deadline
			conn, err := m.dial("shop", "cart", c.to, 5*time.Second)
			netnstest.Must(t, err)
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			_, err = io.WriteString(conn, "ping")
			netnstest.Must(t, err)
			netnstest.Must(t, conn.CloseWrite())
			back, err := io.ReadAll(conn)
			if string(back) != "ping" || err != nil {
				t.Errorf("got %q, %v back, want what was sent and a FIN", back, err)
			}
			s := <-got
			netnstest.Must(t, s.err)
			s.wantHello(t)
			wantOneURI(t, s.state, clientID)
			if hex.EncodeToString(s.first) != goldenClient {
				t.Errorf("the client begins with\n%x, want\n%s", s.first, goldenClient)
			}
			from := netip.AddrPortFrom(c.from, conn.LocalAddr().(*net.TCPAddr).AddrPort().Port())
			s.wantRequest(t, c.authority, from, c.host)
		})
	}
}

// wantHello checks the handshake (3.1): TLS 1.3 alone, h2, no SNI, no resumption.
func (s *seen) wantHello(t *testing.T) {
	t.Helper()
	h := s.hello
	if !slices.Equal(h.SupportedVersions, []uint16{tls.VersionTLS13}) || !slices.Equal(h.SupportedProtos, []string{"h2"}) || h.ServerName != "" {
		t.Errorf("the client offers versions %x, protocols %q, name %q, want TLS 1.3, h2 and no name", h.SupportedVersions, h.SupportedProtos, h.ServerName)
	}
	for _, want := range []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384} {
		if !slices.Contains(h.CipherSuites, want) {
			t.Errorf("the client does not offer %s", tls.CipherSuiteName(want))
		}
	}
	for _, want := range []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384} {
		if !slices.Contains(h.SupportedCurves, want) {
			t.Errorf("the client does not offer %s", want)
		}
	}
	if s.state.DidResume {
		t.Error("the session was resumed")
	}
}

// wantRequest checks the CONNECT (3.3) as 3.8 spells it, and the frames that carried it and its bytes.
func (s *seen) wantRequest(t *testing.T, authority, from netip.AddrPort, host string) {
	t.Helper()
	got, err := fields(s.block)
	want := []string{
		":method: CONNECT", ":authority: " + authority.String(),
		"baggage: k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=cart,service.name=cart,service.version=v1,cloud.region=region-1,cloud.availability_zone=zone-1",
		fmt.Sprintf("forwarded: for=%q%s", from, host),
		"traceparent: 00-<32hex>-<16hex>-00",
	}
	trace := regexp.MustCompile(`^(traceparent: 00-)[0-9a-f]{32}-[0-9a-f]{16}(-00)$`)
	raw := slices.Clone(got)
	if n := len(got); n > 0 {
		got[n-1] = trace.ReplaceAllString(got[n-1], "$1<32hex>-<16hex>$2")
	}
	if !slices.Equal(got, want) || err != nil {
		t.Errorf("header\n%q, %v, want\n%q", got, err, want)
		return
	}
	if again := literals(raw); !bytes.Equal(s.block, again) {
		t.Errorf("header block\n%x, want\n%x", s.block, again)
	}
	first := s.frames[0]
	if first.stream != 1 || first.flags != endHeaders || string(s.data) != "ping" {
		t.Errorf("HEADERS on stream %d with flags %#x, then %q; want stream 1, END_HEADERS, then ping", first.stream, first.flags, s.data)
	}
	if last := s.frames[len(s.frames)-1]; last.typ != typeData || last.flags != endStream {
		t.Errorf("the stream ends with frame %d, flags %#x, want DATA with END_STREAM", last.typ, last.flags)
	}
}

// literals is a CONNECT's header block byte for byte: literal fields without indexing (RFC 7541 section 6.2.2), the names
// :method and :authority by their numbers in the static table, strings in the shorter of both codings.
func literals(fields []string) (b []byte) {
	str := func(s string) {
		n, coded := len(s), false
		if h := int(hpack.HuffmanEncodeLength(s)); h < n {
			n, coded = h, true
		}
		high := byte(0)
		if coded {
			high = 0x80
		}
		if n < 127 {
			b = append(b, high|byte(n))
		} else {
			b = append(b, high|127, byte(n-127)) // no string here is longer than 254 bytes
		}
		if coded {
			b = hpack.AppendHuffmanString(b, s)
		} else {
			b = append(b, s...)
		}
	}
	for _, f := range fields {
		i := strings.Index(f[1:], ": ") + 1
		switch name := f[:i]; name {
		case ":method":
			b = append(b, 2)
		case ":authority":
			b = append(b, 1)
		default:
			b = append(b, 0)
			str(name)
		}
		str(f[i+2:])
	}
	return b
}
