// Package listener compiles Envoy's Listener and decides by it: which chain of filters a connection gets, by the address
// that it was meant for (Listener.Lookup), and then by the protocol that is spoken on it (Target).
//
// A waypoint receives several listeners (controlplane.md 3.3). main_internal is the one that decides about services. The
// others describe how Envoy builds and ends tunnels by connections to itself; they are compiled, so that a fault in them is
// found, and the data path does what they say by itself.
//
// Everything compiled is immutable and may be used by all loops. Compiling is pure; an error names the path of the field
// that it is about (package field).
package listener

import (
	"crypto/sha256"
	"fmt"
	"net/netip"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	snidfpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/accesslog"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/stats"
	"github.com/ambit-mesh/ambit/waypoint/trace"
)

// Main is the name of the listener that decides about services.
const Main = "main_internal"

// Listener is a compiled Listener. It is immutable.
type Listener struct {
	Name string
	// Address is where it listens; not valid of an internal one.
	Address netip.AddrPort
	// Chains are all chains, by name the ones that are chosen.
	Chains []*Chain
	// Logs are the access logs of connections that get no chain.
	Logs []*accesslog.Log

	root        *node
	byAuthority map[string]*Target
}

// Chain is a compiled FilterChain: exactly one of HTTP and TCP is set.
type Chain struct {
	Name string
	HTTP *HTTP
	TCP  *TCP
	// TLS are the settings of a server that ends TLS; nil: plaintext. Only a listener with an address has any.
	TLS *cluster.TLS

	digest [sha256.Size]byte // of the resource
}

// Target is what is done with connections to an address: a chain for each protocol that is told apart. If neither HTTP, H2C
// nor Names is set, nothing has to be told apart.
type Target struct {
	// HTTP is for HTTP/1, H2C for HTTP/2 without TLS; nil: connections of that protocol get TCP.
	HTTP, H2C *HTTP
	// TCP is for what is not HTTP; nil: there must be nothing else.
	TCP *TCP
	// Names chooses for connections that begin with TLS; nil: they get TCP.
	Names *Names
}

// Decode reads and compiles a resource; it has the form that package xds asks for.
func Decode(_ string, body []byte) (*Listener, error) { return DecodeOver(nil, body) }

// DecodeOver reads and compiles a resource that takes the place of old; see CompileOver.
func DecodeOver(old *Listener, body []byte) (*Listener, error) {
	var p listenerv3.Listener
	if err := proto.Unmarshal(body, &p); err != nil {
		return nil, err
	}
	return CompileOver(old, &p)
}

// Compile compiles a listener. What would change which chain a connection gets, or what is done in it, and is not known
// here is refused.
func Compile(p *listenerv3.Listener) (*Listener, error) { return CompileOver(nil, p) }

// CompileOver compiles a listener that takes the place of old. Chains whose resource is the same stay the same objects, and
// with them what their filters keep: counts of rate limits, keys that were fetched.
func CompileOver(old *Listener, p *listenerv3.Listener) (*Listener, error) {
	l := &Listener{Name: p.GetName()}
	if l.Name == "" {
		return nil, field.Errorf("name", "required")
	}
	if err := l.refuse(p); err != nil {
		return nil, err
	}
	var err error
	if l.Logs, err = accesslog.Compile(p.GetAccessLog()); err != nil {
		return nil, err
	}
	c := &compiler{l: l, chains: map[string]*Chain{}, logs: map[string][]*accesslog.Log{}, tracing: map[string]*trace.Config{}, stats: map[string]*stats.Config{}}
	c.keep(old)
	for i, f := range p.GetFilterChains() {
		x, err := c.chain(f)
		if err != nil {
			return nil, field.Index(err, "filter_chains", i)
		}
		l.Chains = append(l.Chains, x)
	}
	var fallback *node
	if f := p.GetDefaultFilterChain(); f != nil {
		x, err := c.chain(f)
		if err != nil {
			return nil, field.At(err, "default_filter_chain")
		}
		l.Chains = append(l.Chains, x)
		fallback = &node{target: c.leaf(x).target()}
	}
	return l, c.matcher(p, fallback)
}

// refuse names what is not supported in a listener.
func (l *Listener) refuse(p *listenerv3.Listener) error {
	switch {
	case p.GetApiListener() != nil:
		return field.Errorf("api_listener", "unsupported")
	case p.GetUdpListenerConfig() != nil:
		return field.Errorf("udp_listener_config", "unsupported")
	case p.GetFcdsConfig() != nil:
		return field.Errorf("fcds_config", "unsupported")
	case len(p.GetAdditionalAddresses()) > 0 && p.GetInternalListener() != nil:
		return field.Errorf("additional_addresses", "an internal listener has no address")
	}
	if a := p.GetAddress().GetSocketAddress(); a != nil {
		if a.GetProtocol() != corev3.SocketAddress_TCP {
			return field.Errorf("address.socket_address.protocol", "unsupported %v", a.GetProtocol())
		}
		addr, err := field.Addr(a)
		if err != nil {
			return field.At(err, "address.socket_address")
		}
		l.Address = addr
	} else if p.GetInternalListener() == nil {
		return field.Errorf("address", "a socket address, or internal_listener, is required")
	}
	for i, f := range p.GetListenerFilters() {
		switch n := string(f.GetTypedConfig().MessageName()); n {
		case "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
			"envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
			"envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
			"envoy.extensions.filters.listener.set_filter_state.v3.Config":
		default:
			return field.Index(field.Errorf("typed_config", "unknown type %q of listener filter %q", n, f.GetName()), "listener_filters", i)
		}
	}
	return nil
}

// compiler compiles one listener.
type compiler struct {
	l      *Listener
	chains map[string]*Chain
	// What most chains have alike is shared by them, by its serialized form.
	logs    map[string][]*accesslog.Log
	tracing map[string]*trace.Config
	stats   map[string]*stats.Config
	kept    map[[sha256.Size]byte]*Chain // of the listener before
}

// keep remembers the chains of the listener before.
func (c *compiler) keep(old *Listener) {
	if old == nil {
		return
	}
	c.kept = make(map[[sha256.Size]byte]*Chain, len(old.Chains))
	for _, x := range old.Chains {
		c.kept[x.digest] = x
	}
}

// form is the serialized form of messages.
func form[M proto.Message](ms ...M) (string, error) {
	var b []byte
	var err error
	for _, m := range ms {
		if b, err = (proto.MarshalOptions{Deterministic: true}).MarshalAppend(append(b, 0), m); err != nil {
			return "", err
		}
	}
	return string(b), nil
}

// accessLogs compiles access logs.
func (c *compiler) accessLogs(ps []*accesslogv3.AccessLog) ([]*accesslog.Log, error) {
	if len(ps) == 0 {
		return nil, nil
	}
	k, err := form(ps...)
	if err != nil {
		return nil, err
	}
	if ls := c.logs[k]; ls != nil {
		return ls, nil
	}
	ls, err := accesslog.Compile(ps)
	c.logs[k] = ls
	return ls, err
}

// compileStats compiles the statistics filter, if a is one; the same configuration is one object.
func (c *compiler) compileStats(a *anypb.Any) (*stats.Config, bool, error) {
	if a.MessageName() != stats.Type {
		return nil, false, nil
	}
	k := string(a.GetValue())
	if x, ok := c.stats[k]; ok {
		return x, true, nil
	}
	x, err := stats.Compile(a)
	c.stats[k] = x
	return x, true, field.At(err, "typed_config")
}

// sharedTracing is one object for all configurations of spans that are the same.
func (c *compiler) sharedTracing(p *hcmv3.HttpConnectionManager_Tracing) (*trace.Config, error) {
	if p == nil {
		return nil, nil
	}
	k, err := form(p)
	if err != nil {
		return nil, err
	}
	if c.tracing[k] == nil {
		if c.tracing[k], err = trace.Compile(p); err != nil {
			return nil, err
		}
	}
	return c.tracing[k], nil
}

func (c *compiler) chain(p *listenerv3.FilterChain) (*Chain, error) {
	k, err := form(p)
	if err != nil {
		return nil, err
	}
	x := &Chain{Name: p.GetName(), digest: sha256.Sum256([]byte(k))}
	kept := c.kept[x.digest]
	if kept != nil {
		x = kept
	}
	if x.Name != "" {
		if c.chains[x.Name] != nil {
			return nil, field.Errorf("name", "%q is there twice", x.Name)
		}
		c.chains[x.Name] = x
	}
	if kept != nil {
		return kept, nil
	}
	if err := c.compileTLS(x, p.GetTransportSocket()); err != nil {
		return nil, field.At(err, "transport_socket")
	}
	fs := p.GetFilters()
	if len(fs) == 0 {
		return nil, field.Errorf("filters", "required")
	}
	last := len(fs) - 1
	var gates []filter.Gate
	readsName := false
	var names snidfpv3.FilterConfig
	var metrics *stats.Config
	for i, f := range fs[:last] {
		if s, ok, err := c.compileStats(f.GetTypedConfig()); err != nil {
			return nil, field.Index(err, "filters", i)
		} else if ok {
			metrics = s
			continue
		}
		if f.GetTypedConfig().MessageIs(&names) {
			if err := f.GetTypedConfig().UnmarshalTo(&names); err != nil {
				return nil, field.Index(field.At(err, "typed_config"), "filters", i)
			}
			continue
		}
		g, err := compileGate(f)
		if err != nil {
			return nil, field.Index(err, "filters", i)
		}
		if g != nil {
			gates = append(gates, g)
			readsName = readsName || asksServerName(f.GetTypedConfig())
		}
	}
	if err := c.last(x, fs[last], gates); err != nil {
		return nil, field.Index(err, "filters", last)
	}
	if x.TCP != nil {
		x.TCP.Stats = metrics
	}
	if port := names.GetPortValue(); port > 65535 {
		return nil, field.Errorf("filters", "not a port: %d", port)
	} else if x.TCP != nil {
		x.TCP.NamePort, x.TCP.ReadsName = uint16(port), readsName
	}
	return x, nil
}

// asksServerName says whether a gate's rules ask for the server name of TLS clients.
func asksServerName(a *anypb.Any) bool {
	m, err := a.UnmarshalNew()
	if err != nil {
		return false
	}
	found := false
	err = protorange.Range(m.ProtoReflect(), func(p protopath.Values) error {
		if s := p.Path.Index(-1); s.Kind() == protopath.FieldAccessStep && s.FieldDescriptor().Name() == "requested_server_name" {
			found = true
			return protorange.Terminate
		}
		return nil
	})
	return found || err != nil // rules of a type that nobody knows: better wait than miss a name
}

func compileGate(f *listenerv3.Filter) (filter.Gate, error) {
	if f.GetConfigDiscovery() != nil {
		return nil, field.Errorf("config_discovery", "filters by extension discovery are not supported")
	}
	if f.GetTypedConfig() == nil {
		return nil, field.Errorf("typed_config", "required")
	}
	g, err := filter.CompileGate(f.GetName(), f.GetTypedConfig())
	return g, field.At(err, "typed_config")
}

// last compiles the filter that ends a chain.
func (c *compiler) last(x *Chain, f *listenerv3.Filter, gates []filter.Gate) (err error) {
	a := f.GetTypedConfig()
	var h hcmv3.HttpConnectionManager
	var t tcpv3.TcpProxy
	switch {
	case a.MessageIs(&h):
		if err = a.UnmarshalTo(&h); err == nil {
			x.HTTP, err = c.http(&h)
		}
		if err == nil {
			x.HTTP.Chain, x.HTTP.Gates = x, gates
		}
	case a.MessageIs(&t):
		if err = a.UnmarshalTo(&t); err == nil {
			x.TCP, err = c.tcp(&t)
		}
		if err == nil {
			x.TCP.Chain, x.TCP.Gates = x, gates
		}
	default:
		err = fmt.Errorf("the last filter %q of type %q is neither a connection manager nor a TCP proxy", f.GetName(), a.MessageName())
	}
	return field.At(err, "typed_config")
}

func (c *compiler) compileTLS(x *Chain, s *corev3.TransportSocket) error {
	a := s.GetTypedConfig()
	if s == nil || a == nil && s.GetName() == "envoy.transport_sockets.raw_buffer" || a.MessageName() == "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" {
		return nil
	}
	var d tlsv3.DownstreamTlsContext
	switch {
	case !a.MessageIs(&d):
		return field.Errorf("typed_config", "unknown transport socket %q of type %q", s.GetName(), a.MessageName())
	case !c.l.Address.IsValid():
		return field.Errorf("typed_config", "unsupported: TLS is not ended behind the tunnel")
	}
	if err := a.UnmarshalTo(&d); err != nil {
		return field.At(err, "typed_config")
	}
	t, err := cluster.CompileTLS(d.GetCommonTlsContext())
	if err != nil {
		return field.At(err, "typed_config.common_tls_context")
	}
	t.ClientCert = d.GetRequireClientCertificate().GetValue()
	x.TLS = t
	return nil
}

// Lookup is what is done with connections to an address; nil: they are refused. It does not allocate.
func (l *Listener) Lookup(dst netip.AddrPort) *Target {
	return l.root.lookup(netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()))
}

// LookupName is what is done with connections to "host:port", as tunnels between networks name their destination; nil: they
// are refused.
func (l *Listener) LookupName(authority string) *Target { return l.byAuthority[authority] }
