package dumps

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	commonstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/internal/envoytest"
)

// theirs is a real Envoy. It has one listener for each client, with all recorded chains and the recorded choice among
// them; the address that a connection is meant for, and the client's, come in a PROXY header (version 1), the client's
// identity is filter state that the listener sets.
type theirs struct {
	addrs map[client]netip.AddrPort
}

// startEnvoy runs an Envoy until the test ends.
func startEnvoy(t *testing.T, bin string, r *resources) *theirs {
	t.Helper()
	e := &theirs{addrs: map[client]netip.AddrPort{}}
	b := &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: r.clusters}}
	var last netip.AddrPort
	for _, c := range clients {
		last = envoytest.Addrs(t, 1)[0]
		e.addrs[c] = last
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, listenerFor(t, r.main, c, last))
	}
	raw, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	envoytest.Start(t, bin, "envoy.pb", raw, "tcp", last.String())
	return e
}

// listenerFor is main_internal, less the filter types that only Istio's build of Envoy has, at an address.
func listenerFor(t *testing.T, main *listenerv3.Listener, who client, at netip.AddrPort) *listenerv3.Listener {
	t.Helper()
	l := envoy.Plain([]envoy.Resource{envoy.NewResource(main.GetName(), main)})[0].Message.(*listenerv3.Listener)
	l.Name, l.AccessLog, l.ListenerSpecifier = who.String(), nil, nil
	l.Address = socketAddress(at)
	filters := []*listenerv3.ListenerFilter{{Name: "proxy", ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(t, &proxyv3.ProxyProtocol{})}}}
	for _, f := range l.GetListenerFilters() {
		if !strings.HasSuffix(f.GetTypedConfig().GetTypeUrl(), "OriginalDst") {
			filters = append(filters, f)
		}
	}
	l.ListenerFilters = filters
	state := pack(t, &statev3.Config{OnNewConnection: []*commonstatev3.FilterStateValue{{
		Key: &commonstatev3.FilterStateValue_ObjectKey{ObjectKey: "io.istio.peer_principal"}, FactoryKey: "envoy.string",
		Value: &commonstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: who.principal()}}}}},
	}}})
	for _, c := range l.GetFilterChains() {
		c.Filters = append([]*listenerv3.Filter{{Name: "who", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: state}}}, c.Filters...)
	}
	return l
}

func socketAddress(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())}}}}
}

func pack(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (e *theirs) dial(ctx context.Context, who client, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", e.addrs[who].String())
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "PROXY TCP4 127.0.0.1 %v %d %d\r\n", to.Addr(), c.LocalAddr().(*net.TCPAddr).Port, to.Port()); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
