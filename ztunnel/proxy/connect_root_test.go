package proxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/internal/svid"
)

// rawTunnel is a peer's end of a tunnel into a pod, of which every byte is the test's.
type rawTunnel struct {
	t      *testing.T
	conn   *tls.Conn
	fr     *http2.Framer
	stream uint32
}

// tunnelFrom dials the tunnel port of a pod from another one as the service account of by.
func (m *mesh) tunnelFrom(from, by, to *meshPod) *rawTunnel {
	m.t.Helper()
	c, err := m.dial(from, net.JoinHostPort(to.v4.String(), "15008"))
	if err != nil {
		m.t.Fatal(err)
	}
	return m.tunnelOn(c, by)
}

// tunnelOn makes a tunnel of a connection.
func (m *mesh) tunnelOn(c net.Conn, by *meshPod) *rawTunnel {
	m.t.Helper()
	cfg := svid.ClientConfig(m.ca.Issue(m.ca.ID(by.ns, by.sa)), nil, svid.Options{}).Clone()
	cfg.VerifyConnection = nil // the server is not what is tested
	r := &rawTunnel{t: m.t, conn: tls.Client(c, cfg), stream: 1}
	if err := r.conn.Handshake(); err != nil {
		m.t.Fatal(err)
	}
	r.fr = http2.NewFramer(r.conn, r.conn)
	r.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fmt.Fprint(r.conn, http2.ClientPreface)
	if err := r.fr.WriteSettings(); err != nil {
		m.t.Fatal(err)
	}
	return r
}

// send sends a request and returns the number of its stream.
func (r *rawTunnel) send(kv ...string) uint32 {
	r.t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(kv); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	id := r.stream
	r.stream += 2
	end := kv[1] != "CONNECT" // other requests are answered behind their end
	if err := r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end}); err != nil {
		r.t.Fatal(err)
	}
	return id
}

// ask sends a request and tells how it was answered: a status, the code of a reset, or the end of the tunnel.
func (r *rawTunnel) ask(kv ...string) string {
	r.t.Helper()
	id := r.send(kv...)
	for {
		f, err := r.fr.ReadFrame()
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				return f.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return f.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				return "GOAWAY " + f.ErrCode.String()
			}
		case *http2.SettingsFrame:
			if !f.IsAck() {
				r.fr.WriteSettingsAck()
			}
		}
		if err != nil {
			return err.Error()
		}
	}
}

func TestRootMeshATunnelLeadsNowhereButIntoItsPod(t *testing.T) { // B22, I3, the malicious_calls of an HBONE peer
	m := newMesh(t, nil)
	a, b, c := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3"), m.pod("c", "n2", "10.99.0.4", "fd99::4")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9") // not captured: it speaks HBONE by itself
	reached := make(chan string, 100)
	for _, p := range []*meshPod{b, c} {
		for _, port := range []int{8080, 53} {
			m.serve(p, port, func(conn *net.TCPConn) { reached <- p.name; tellPeer(conn) })
		}
	}
	m.capture(a, b, c)
	m.tell(&workloadpb.Address{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{
		Name: "c", Namespace: "shop", Hostname: "c.shop.svc.cluster.local", Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}},
		Addresses: []*workloadpb.NetworkAddress{{Address: []byte{10, 96, 0, 1}}},
	}}})
	connect := func(authority string) []string { return []string{":method", "CONNECT", ":authority", authority} }
	r := m.tunnelFrom(out, a, b)
	for _, tc := range []struct {
		what string
		kv   []string
		want string
	}{
		{"its own port", connect("10.99.0.3:8080"), "200"},
		{"loopback", connect("127.0.0.1:8080"), "400"},
		{"IPv6 loopback", connect("[::1]:8080"), "400"},
		{"localhost by name", connect("localhost:8080"), "503"},
		{"another pod of the node", connect("10.99.0.4:8080"), "400"},
		{"another pod of the node, IPv6", connect("[fd99::4]:8080"), "400"},
		{"its own IPv6 address through a tunnel to the IPv4 one", connect("[fd99::3]:8080"), "400"},
		{"another pod's service", connect("10.96.0.1:80"), "400"},
		{"a pod of another node", connect("10.99.0.2:8080"), "400"},
		{"an address outside of the mesh", connect("192.0.2.1:80"), "400"},
		{"the metadata address", connect("169.254.169.254:80"), "400"},
		{"IPv6 link-local with a zone", connect("[fe80::1%eth0]:8080"), "400"},
		{"IPv6 link-local", connect("[fe80::1]:8080"), "400"},
		{"the unspecified address", connect("0.0.0.0:8080"), "400"},
		{"the proxy's outbound port", connect("10.99.0.3:15001"), "503"},
		{"the proxy's plaintext port", connect("10.99.0.3:15006"), "503"},
		{"the proxy's tunnel port", connect("10.99.0.3:15008"), "503"},
		{"a name of UDP", connect("_dns._udp.kube-dns.kube-system.svc.cluster.local:53"), "503"},
		{"port 0", connect("10.99.0.3:0"), "400"},
		{"port 70000", connect("10.99.0.3:70000"), "400"},
		{"a negative port", connect("10.99.0.3:-1"), "400"},
		{"no port", connect("10.99.0.3"), "400"},
		{"userinfo", connect("root@10.99.0.3:8080"), "400"},
		{"no authority", []string{":method", "CONNECT"}, "PROTOCOL_ERROR"},
		{"with path", append(connect("10.99.0.3:8080"), ":path", "/"), "PROTOCOL_ERROR"},
		{"GET", []string{":method", "GET", ":scheme", "http", ":authority", "10.99.0.3:8080", ":path", "/"}, "400"},
		{"its own port, after all this", connect("10.99.0.3:8080"), "200"},
	} {
		if got := r.ask(tc.kv...); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.what, got, tc.want)
		}
	}
	if n := m.nodes["n2"].proxy.Open(); n > 2 {
		t.Errorf("%d connections are open, want the two that were allowed at most: the proxy called itself", n)
	}
	for range 2 {
		if name := <-reached; name != "b" {
			t.Errorf("pod %s was reached", name)
		}
	}
	select {
	case name := <-reached:
		t.Errorf("pod %s was reached once more than allowed", name)
	case <-time.After(50 * time.Millisecond):
	}
}

func TestRootMeshAStreamThatWaitsHearsOfItsPeersResetAtOnce(t *testing.T) {
	m := newMesh(t, func(c *Config) { c.WorkloadWait = time.Minute })
	a, b := m.pod("a", "n1", "10.99.0.2", "fd99::2"), m.pod("b", "n2", "10.99.0.3", "fd99::3")
	out := m.pod("out", "n1", "10.99.0.9", "fd99::9")
	m.capture(a, b)
	r := m.tunnelFrom(out, a, b)
	connect := []string{":method", "CONNECT", ":authority", "10.99.0.3:8080"}
	if got := r.ask(connect...); got != "503" { // nobody listens
		t.Fatalf("got %s", got)
	}
	p := m.nodes["n2"].proxy
	m.nodes["n2"].wl.Apply(nil, []string{"c//Pod/shop/b"})
	id := r.send(connect...)
	wait(t, "the stream to wait for the pod's record", func() bool { return p.Open() == 1 })
	if err := r.fr.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	wait(t, "the end of a stream that its peer has given up", func() bool { return p.Open() == 0 })
	m.line(`direction="inbound"`, "the client is gone")
}
