package authz

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	commonstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	httpstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/internal/envoytest"
)

// identityHeader tells Envoy who the client is: the identity of a tunnel's client cannot be had without its certificate.
const identityHeader = "x-test-identity"

// theirs is a real Envoy with a listener's chains. The address that a connection is meant for comes in a PROXY header,
// the client's address is the connection's.
type theirs struct{ addr string }

// startEnvoy runs an Envoy until stop is called.
func startEnvoy(t *testing.T, bin string, main *listenerv3.Listener) (e *theirs, stop func()) {
	t.Helper()
	at := envoytest.Addrs(t, 1)[0]
	b := &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{Listeners: []*listenerv3.Listener{listenerAt(t, main, at)}}}
	raw, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return &theirs{at.String()}, envoytest.Start(t, bin, "envoy.pb", raw, "tcp", at.String())
}

// listenerAt is main_internal, less the filter types that only Istio's build of Envoy has, at an address.
func listenerAt(t *testing.T, main *listenerv3.Listener, at netip.AddrPort) *listenerv3.Listener {
	t.Helper()
	l := envoy.Plain([]envoy.Resource{envoy.NewResource(main.GetName(), main)})[0].Message.(*listenerv3.Listener)
	l.Name, l.AccessLog, l.ListenerSpecifier = "test", nil, nil
	l.Address = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: at.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(at.Port())}}}}
	l.ListenerFilters = []*listenerv3.ListenerFilter{{Name: "proxy", ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(t, &proxyv3.ProxyProtocol{})}}}
	who := &hcmv3.HttpFilter{Name: "who", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &httpstatev3.Config{OnRequestHeaders: []*commonstatev3.FilterStateValue{{
		Key: &commonstatev3.FilterStateValue_ObjectKey{ObjectKey: "io.istio.peer_principal"}, FactoryKey: "envoy.string",
		Value: &commonstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "%REQ(" + identityHeader + ")%"}}}}},
	}}})}}
	var chains []*listenerv3.FilterChain
	for _, c := range l.GetFilterChains() {
		for _, f := range c.GetFilters() {
			var m hcmv3.HttpConnectionManager
			if !f.GetTypedConfig().MessageIs(&m) {
				continue
			}
			if err := f.GetTypedConfig().UnmarshalTo(&m); err != nil {
				t.Fatal(err)
			}
			m.HttpFilters = append([]*hcmv3.HttpFilter{who}, m.HttpFilters...)
			f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, &m)}
		}
		chains = append(chains, c)
	}
	l.FilterChains = chains
	return l
}

func (e *theirs) decide(r *request) (decision, path string, err error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: r.source.AsSlice()}, Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", e.addr)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "PROXY TCP4 %v %v %d %d\r\n", r.source, r.dest.Addr(), c.LocalAddr().(*net.TCPAddr).Port, r.dest.Port()); err != nil {
		return "", "", err
	}
	return r.ask(c, []pair{{identityHeader, "spiffe://" + r.identity}})
}

// ask sends the request, with more header fields, and reads what was decided.
func (r *request) ask(c net.Conn, more []pair) (decision, path string, err error) {
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nhost: %s\r\n", r.method, r.path, r.host)
	for _, p := range append(more, r.fields()...) {
		fmt.Fprintf(&b, "%s: %s\r\n", p.name, p.value)
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(c, b.String()); err != nil {
		return "", "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: r.method})
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", "", err
	}
	switch {
	case resp.StatusCode == 200:
		return allowed, resp.Header.Get(pathHeader), nil
	case resp.StatusCode == 403 && (string(body) == "RBAC: access denied" || r.method == "HEAD"):
		return denied, "", nil
	case resp.StatusCode == 400:
		return refused, "", nil
	}
	return fmt.Sprint(resp.StatusCode, " ", string(body)), "", nil
}
