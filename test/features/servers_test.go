package features

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"

	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// Ports of the pod helper.
const (
	portAuthzGRPC = 9001
	portAuthzHTTP = 9002
	portWire      = 9003
	portKeys      = 9004
	portProxied   = 9005
	portRPC       = 9007
	portEnds      = 9008
	portResets    = 9009
	portTLS       = 9443
	portMutual    = 9444
)

// serve starts what the pods helper and slow serve. It is this process that does, with sockets of theirs.
func (b *bed) serve(t *testing.T) {
	t.Helper()
	auth, rpcs := grpc.NewServer(), grpc.NewServer()
	authv3.RegisterAuthorizationServer(auth, authorizer{})
	testgrpc.RegisterTestServiceServer(rpcs, interop.NewTestServer())
	for port, s := range map[int]*grpc.Server{portAuthzGRPC: auth, portRPC: rpcs} {
		ln := b.listen(t, "helper", port)
		go func() { _ = s.Serve(ln) }()
		t.Cleanup(s.Stop)
	}
	b.serveLimits(t)
	b.web(t, b.listen(t, "helper", portAuthzHTTP), http.HandlerFunc(checkHTTP))
	b.web(t, b.listen(t, "helper", portWire), teller("helper"))
	b.web(t, b.listen(t, "helper", portKeys), &b.keys.published)
	b.web(t, proxied{b.listen(t, "helper", portProxied)}, teller("helper"))
	b.web(t, tls.NewListener(b.listen(t, "helper", portTLS), b.keys.server(tls.NoClientCert)), teller("helper"))
	b.web(t, tls.NewListener(b.listen(t, "helper", portMutual), b.keys.server(tls.RequireAndVerifyClientCert)), teller("helper"))
	for port, linger := range map[int]int{portEnds: -1, portResets: 0} {
		ln := b.listen(t, "helper", port)
		go func() { // ends with the listener
			for conn, err := ln.Accept(); err == nil; conn, err = ln.Accept() {
				_ = conn.(*net.TCPConn).SetLinger(linger)
				if linger != 0 {
					_, _ = io.WriteString(conn, "bye")
				}
				conn.Close()
			}
		}()
	}
	for _, node := range []string{"node-1", "node-2"} {
		b.enter(t, "/"+node)
		netnstest.Must(t, b.pods[node].AddAddr("lo", netip.MustParsePrefix("192.0.2.77/32")))
		b.web(t, b.listen(t, node, 8099), teller("dialled"))
	}
	b.web(t, b.listen(t, "slow", 8080), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(400 * time.Millisecond)
		teller("slow").ServeHTTP(w, r)
	}))
}

func (b *bed) listen(t *testing.T, pod string, port int) net.Listener {
	t.Helper()
	var ln net.Listener
	netnstest.Must(t, b.pods[pod].Do(func() (err error) {
		ln, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	t.Cleanup(func() { ln.Close() })
	return ln
}

func (b *bed) web(t *testing.T, ln net.Listener, h http.Handler) {
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) }
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { s.Close() })
}

type connKey struct{}

// teller answers with what it sees, as the lab's echo server does, and with what concerns TLS, the PROXY protocol and
// trailers. /upgrade is an echo of bytes after an upgrade.
type teller string

// ServeHTTP implements http.Handler.
func (pod teller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if up := r.Header.Get("Upgrade"); up != "" {
		upgraded(w, up)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header().Set("Trailer", "X-After")
	var s strings.Builder
	fmt.Fprintf(&s, "pod=%s\nmethod=%s\npath=%s\nproto=%s\nhost=%s\npeer=%s\nbody=%s\n", string(pod), r.Method, r.URL.RequestURI(), r.Proto, r.Host, r.RemoteAddr, body)
	for _, part := range []struct {
		name   string
		header http.Header
	}{{"header", r.Header}, {"trailer", r.Trailer}} {
		for n, values := range part.header {
			for _, v := range values {
				fmt.Fprintf(&s, "%s.%s=%s\n", part.name, n, v)
			}
		}
	}
	if c := r.TLS; c != nil {
		fmt.Fprintf(&s, "tls.sni=%s\ntls.alpn=%s\n", c.ServerName, c.NegotiatedProtocol)
		for _, cert := range c.PeerCertificates {
			fmt.Fprintf(&s, "tls.client=%s\n", cert.Subject.CommonName)
		}
	}
	if c, ok := r.Context().Value(connKey{}).(*proxiedConn); ok {
		fmt.Fprintf(&s, "proxy.version=%d\nproxy.client=%s\nproxy.dest=%s\n", c.version, c.client, c.dest)
	}
	_, _ = io.WriteString(w, s.String())
	w.Header().Set("X-After", "the end")
}

// upgraded answers 101 and echoes.
func upgraded(w http.ResponseWriter, protocol string) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
	_, _ = io.Copy(conn, rw)
}

// proxied takes the PROXY protocol's header off what it accepts.
type proxied struct{ net.Listener }

type proxiedConn struct {
	net.Conn
	r            *bufio.Reader
	version      int
	client, dest netip.AddrPort
}

func (c *proxiedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// Accept implements net.Listener. A connection without a header ends.
func (p proxied) Accept() (net.Conn, error) {
	for {
		conn, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &proxiedConn{Conn: conn, r: bufio.NewReader(conn)}
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err == nil && c.head() == nil && conn.SetReadDeadline(time.Time{}) == nil {
			return c, nil
		}
		conn.Close()
	}
}

func (c *proxiedConn) head() error {
	first, err := c.r.Peek(1)
	if err != nil {
		return err
	}
	if first[0] == 'P' {
		line, err := c.r.ReadString('\n')
		c.version = 1
		var family string
		var src, dst string
		var sport, dport uint16
		if n, _ := fmt.Sscanf(line, "PROXY %s %s %s %d %d", &family, &src, &dst, &sport, &dport); n == 5 {
			s, _ := netip.ParseAddr(src)
			d, _ := netip.ParseAddr(dst)
			c.client, c.dest = netip.AddrPortFrom(s, sport), netip.AddrPortFrom(d, dport)
		}
		return err
	}
	head := make([]byte, 16)
	if _, err := io.ReadFull(c.r, head); err != nil {
		return err
	}
	rest := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(c.r, rest); err != nil {
		return err
	}
	c.version = 2
	size := 4
	if head[13]>>4 == 2 {
		size = 16
	}
	if head[12]&0xf == 1 && len(rest) >= 2*size+4 {
		s, _ := netip.AddrFromSlice(rest[:size])
		d, _ := netip.AddrFromSlice(rest[size : 2*size])
		c.client = netip.AddrPortFrom(s, binary.BigEndian.Uint16(rest[2*size:]))
		c.dest = netip.AddrPortFrom(d, binary.BigEndian.Uint16(rest[2*size+2:]))
	}
	return nil
}

// authorizer is the service that CUSTOM policies ask over gRPC: the header x-ask says what it answers.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
}

// Check implements the service.
func (authorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	h := r.GetAttributes().GetRequest().GetHttp()
	set := func(name, value string) *corev3.HeaderValueOption {
		return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}
	}
	switch ask := h.GetHeaders()["x-ask"]; {
	case ask == "allow", ask == "body" && h.GetBody() == "secret":
		return &authv3.CheckResponse{Status: &statuspb.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{
				set("x-allowed-as", "grpc"), set("x-asked", h.GetMethod()+" "+h.GetHost()+h.GetPath()), set("x-principal", r.GetAttributes().GetSource().GetPrincipal()),
				set("x-source", r.GetAttributes().GetSource().GetAddress().GetSocketAddress().GetAddress()),
			},
			HeadersToRemove:      []string{"x-ask"},
			ResponseHeadersToAdd: []*corev3.HeaderValueOption{set("x-session", "begun")},
		}}}, nil
	case ask == "slow":
		select {
		case <-time.After(3 * time.Second):
		case <-ctx.Done():
		}
		return &authv3.CheckResponse{Status: &statuspb.Status{}}, nil
	}
	return &authv3.CheckResponse{Status: &statuspb.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: 418}, Body: "not you", Headers: []*corev3.HeaderValueOption{set("x-why", "because")},
	}}}, nil
}

// checkHTTP is the same over HTTP.
func checkHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	ask := r.Header.Get("X-Ask")
	if ask == "allow" || ask == "body" && string(body) == "secret" {
		w.Header().Set("X-Allowed-As", fmt.Sprintf("%s %s%s by %s", r.Method, r.Host, r.URL.RequestURI(), r.Header.Get("X-Asked-By")))
		w.Header().Set("X-Session", "begun")
		w.Header().Set("X-Kept-Back", "yes")
		w.Header().Set("X-Seen-Hidden", r.Header.Get("X-Hidden"))
		return
	}
	w.Header().Set("X-Why", "because")
	w.Header().Set("X-Kept-Back", "yes")
	w.WriteHeader(http.StatusTeapot)
	_, _ = io.WriteString(w, "not you")
}

// publisher serves a set of keys at /keys, and at /rotating one that can be replaced.
type publisher struct {
	set      string
	rotating atomic.Pointer[string]
}

// ServeHTTP implements http.Handler.
func (p *publisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/keys":
		_, _ = io.WriteString(w, p.set)
	case "/rotating":
		_, _ = io.WriteString(w, *p.rotating.Load())
	default:
		http.NotFound(w, r)
	}
}
